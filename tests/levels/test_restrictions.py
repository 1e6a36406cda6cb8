"""Restrictions of a level: what a call may ask for, how many a window takes, at both of its edges."""

import asyncio
import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import aiohttp
import asyncpg
import pytest

from tests.concurrency.test_gateway_race import call, many, request
from tests.conftest import Cluster, People, Person, migrated_database
from tests.processes import over
from tests.tokens.support import START, Books, User
from tests.tokens.test_wallet_routes import put
from vanilla_saas.database.pool import _prepare
from vanilla_saas.levels.models import RestrictionType

ROOT = Path(__file__).parents[2]
ADMIT = "select vanilla.admit_call($1, null, $2, $3, 10, 10, $4, 1, $5, false, '11 minutes')"
SETTLE = "select vanilla.settle_call($1, $2, 'succeeded', $3, 0, 0, 0)"


async def restricted(books: Books, **rules: Any) -> tuple[User, bytes]:
    """A user with tokens on a level with these rules, and the hash of a key of theirs."""
    user = await books.user(balance=1_000_000, time_zone="Europe/Berlin")
    for kind, value in rules.items():
        await rule(books, user, kind, value)
    key = hashlib.sha256(user.id.bytes).digest()
    make = "select create_api_key('k', 'k', $1, '{chat}', p_user_id => $2)"
    await books.connection.fetchval(make, key, user.id)
    return user, key


async def rule(books: Books, user: User, kind: str | None, value: Any) -> None:
    amount, patterns = (None, value) if isinstance(value, list) else (value, None)
    statement = "select set_level_restriction($1, $2, $3, $4, $5)"
    await books.connection.fetchval(statement, user.levels["free"], kind, amount, patterns, user.tenant_id)


async def admit(books: Books, key: bytes, model: str = "sandbox-small", limit: int | None = 10) -> dict[str, Any]:
    return await books.connection.fetchval(ADMIT, key, None, model, limit, uuid.uuid4())


async def refused(books: Books, key: bytes, **more: Any) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as error:
        await admit(books, key, **more)
    return error.value


async def admitted(books: Books, key: bytes, most: int) -> int:
    """How many calls of `most` are let in, one after the other."""
    count = 0
    for _ in range(most):
        try:
            await admit(books, key)
            count += 1
        except asyncpg.PostgresError as error:
            assert error.sqlstate == "VS429", error  # noqa: PT017
    return count


@pytest.mark.parametrize(("kind", "value"), [("requests_per_minute", 3), ("tokens_per_minute", 60)])
async def test_a_minute_takes_what_the_level_says_and_the_next_begins_at_its_first_instant(
    books: Books, kind: str, value: int
) -> None:
    user, key = await restricted(books, **{kind: value})
    await books.at(START + timedelta(seconds=59, microseconds=999_999))
    assert await admitted(books, key, 5) == 3
    error = await refused(books, key)
    detail = json.loads(error.detail)
    assert (detail["restriction"], detail["limit"], detail["retry_after_s"]) == (kind, value, 1)
    assert detail["resets_at"] == (START + timedelta(minutes=1)).isoformat()
    # fixed windows: a new minute is empty, so twice the number fits around its beginning
    await books.at(START + timedelta(minutes=1))
    assert await admitted(books, key, 5) == 3
    await books.at(START + timedelta(minutes=1, seconds=59, microseconds=999_999))
    assert await admitted(books, key, 1) == 0
    rows = "select count(*) from user_rate_windows where user_id = $1"
    assert await books.connection.fetchval(rows, user.id) == 1


async def test_a_day_ends_at_midnight_in_the_tenants_zone(books: Books) -> None:
    _, key = await restricted(books, requests_per_day=2)
    assert await admitted(books, key, 3) == 2
    await books.at(datetime(2026, 3, 1, 22, 59, 59, tzinfo=UTC))
    assert await admitted(books, key, 1) == 0
    await books.at(datetime(2026, 3, 1, 23, tzinfo=UTC))
    assert await admitted(books, key, 3) == 2


async def test_a_refused_call_counts_nothing_and_reserves_nothing(books: Books) -> None:
    user, key = await restricted(books, requests_per_minute=5, tokens_per_minute=30)
    await admit(books, key)
    before = dict(await books.wallet(user))
    assert (await refused(books, key)).sqlstate == "VS429"
    assert dict(await books.wallet(user)) == before
    window = await books.connection.fetchrow("select * from user_rate_windows where user_id = $1", user.id)
    assert (window["minute_requests"], window["minute_tokens"]) == (1, 20)
    # a smaller one fits into what is left
    assert (await admit(books, key, "sandbox-embed", limit=0))["reserved"] == 10


async def test_what_a_call_did_not_use_is_given_back_to_its_minute_and_to_no_other(books: Books) -> None:
    user, key = await restricted(books, tokens_per_minute=40)
    calls = [await admit(books, key), await admit(books, key)]
    assert (await refused(books, key)).sqlstate == "VS429"
    await books.connection.fetchval(SETTLE, user.tenant_id, uuid.UUID(calls[0]["hold_id"]), 0)
    assert await admitted(books, key, 2) == 1
    await books.at(START + timedelta(minutes=1))
    await admit(books, key)
    await books.connection.fetchval(SETTLE, user.tenant_id, uuid.UUID(calls[1]["hold_id"]), 0)
    tokens = "select minute_tokens from user_rate_windows where user_id = $1"
    assert await books.connection.fetchval(tokens, user.id) == 20


async def test_a_clock_that_leapt_ahead_and_came_back_shuts_nobody_out(books: Books) -> None:
    _, key = await restricted(books, requests_per_minute=1, requests_per_day=9)
    await books.at(START + timedelta(days=30))
    await admit(books, key)
    await books.at(START)
    await admit(books, key)
    assert (await refused(books, key)).sqlstate == "VS429"


async def test_so_many_calls_run_at_a_time_and_one_that_ended_makes_room(books: Books) -> None:
    user, key = await restricted(books, concurrent_executions=2)
    calls = [await admit(books, key) for _ in range(2)]
    assert (await refused(books, key)).sqlstate == "VS429"
    await books.connection.fetchval(SETTLE, user.tenant_id, uuid.UUID(calls[0]["hold_id"]), 5)
    await admit(books, key)
    assert (await refused(books, key)).sqlstate == "VS429"
    # a process that died leaves holds that expire
    await books.at(START + timedelta(minutes=12))
    await admit(books, key)


@pytest.mark.parametrize(
    ("rules", "small", "large"),
    [
        ({"allowed_models": ["sandbox-small"]}, None, "allowed_models"),
        ({"allowed_models": ["*-large", "gpt-*"]}, "allowed_models", None),
        ({"denied_models": ["*large"]}, None, "denied_models"),
        ({"allowed_models": ["sandbox-*"], "denied_models": ["sandbox-s*l"]}, "denied_models", None),
        # signs of LIKE stand for themselves
        ({"allowed_models": ["sandbox%", "sandbox_small", "!*"]}, "allowed_models", "allowed_models"),
        ({"denied_models": ["SANDBOX-SMALL"]}, None, None),
    ],
)
async def test_patterns_name_models(books: Books, rules: Any, small: str | None, large: str | None) -> None:
    _, key = await restricted(books, **rules)
    for model, why in (("sandbox-small", small), ("sandbox-large", large)):
        if why is None:
            await admit(books, key, model)
        else:
            error = await refused(books, key, model=model)
            assert error.sqlstate == "VS403"
            assert f'"{why}"' in error.detail


async def test_sizes_are_limited_and_an_answer_without_a_named_limit_is_clamped(books: Books) -> None:
    user, key = await restricted(books, max_output_tokens=50)
    assert (await admit(books, key, limit=None))["output_limit"] == 50
    assert (await admit(books, key, limit=50))["output_limit"] == 50
    assert (await refused(books, key, limit=51)).sqlstate == "VS400"
    await rule(books, user, "max_prompt_tokens", 10)
    await admit(books, key)
    await rule(books, user, "max_prompt_tokens", 9)
    assert (await refused(books, key)).sqlstate == "VS400"


async def test_so_many_keys_a_user_and_one_that_is_revoked_makes_room(books: Books) -> None:
    user, _ = await restricted(books)
    await rule(books, user, "api_keys", 2)
    make = "select create_api_key('k', 'k', $1, p_user_id => $2)"
    second = await books.connection.fetchval(make, uuid.uuid4().bytes * 2, user.id)
    with pytest.raises(asyncpg.PostgresError) as error:
        await books.connection.fetchval(make, uuid.uuid4().bytes * 2, user.id)
    assert error.value.sqlstate == "VS429"
    await books.connection.fetchval("select revoke_api_key($1)", second)
    await books.connection.fetchval(make, uuid.uuid4().bytes * 2, user.id)


async def test_the_level_of_who_pays_restricts_not_that_of_the_key(books: Books) -> None:
    user, _ = await restricted(books, denied_models=["*"])
    await books.allocate(user, "basic")
    await books.adjust(user, 100_000, "credit")
    key, external = hashlib.sha256(b"act" + user.id.bytes).digest(), f"x{user.id.hex}"
    await books.connection.fetchval(
        "select create_api_key('k', 'k', $1, '{chat,act_as,act_as:create}', p_user_id => $2)", key, user.id
    )
    await books.connection.fetchval(ADMIT, key, None, "sandbox-small", 10, uuid.uuid4())
    with pytest.raises(asyncpg.PostgresError) as error:  # a new payer is on the default level
        await books.connection.fetchval(ADMIT, key, external, "sandbox-small", 10, uuid.uuid4())
    assert error.value.sqlstate == "VS403"


async def test_the_database_the_api_and_the_page_of_levels_know_the_same_types(books: Books) -> None:
    check = await books.connection.fetchval(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'level_restrictions_type_check'"
    )
    known = set(re.findall(r"'(\w+)'", check))
    assert known == set(get_args(RestrictionType))
    page = (ROOT / "docs/design/levels.md").read_text().partition("## Restrictions")[2].partition("\n## ")[0]
    assert known <= set(re.findall(r"`(\w+)`", page))
    # what counts to a user's own has a limit of its own
    counts = await books.connection.fetchval("select prosrc from pg_proc where proname = 'require_place'")
    assert {"api_keys", "workflows", "agents"} <= known & set(re.findall(r"\w+", counts))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("requests_per_hour", 5),
        (None, 5),
        ("requests_per_minute", None),
        ("requests_per_minute", ["a"]),
        ("requests_per_minute", -1),
        ("requests_per_minute", 10**12 + 1),
        ("allowed_models", 5),
        ("allowed_models", []),
        ("allowed_models", [""]),
        ("allowed_models", [None]),
        ("allowed_models", ["x"] * 101),
        # of the platform's levels alone
        ("users_per_tenant", 5),
        ("history_days_per_tenant", 5),
        ("tokens_per_tenant", 5),
    ],
)
async def test_an_unknown_type_and_a_value_of_the_wrong_one_are_refused(
    books: Books, kind: str | None, value: Any
) -> None:
    user = await books.user()
    with pytest.raises(asyncpg.PostgresError) as error:
        await rule(books, user, kind, value)
    assert error.value.sqlstate == "VS400"
    restrictions = "select restrictions from levels where id = $1"
    assert await books.connection.fetchval(restrictions, user.levels["free"]) is None


async def test_a_restriction_that_is_lifted_holds_no_longer(books: Books) -> None:
    user, key = await restricted(books, requests_per_minute=0, denied_models=["x"])
    assert (await refused(books, key)).sqlstate == "VS429"
    lift = "select delete_level_restriction($1, $2, $3)"
    await books.connection.fetchval(lift, user.levels["free"], "requests_per_minute", user.tenant_id)
    await admit(books, key)
    await books.connection.fetchval(lift, user.levels["free"], "denied_models", user.tenant_id)
    restrictions = "select restrictions from levels where id = $1"
    assert await books.connection.fetchval(restrictions, user.levels["free"]) is None


async def test_answers_and_refusals_carry_the_rate(http: aiohttp.ClientSession, people: People) -> None:
    tenant = await people.tenant()
    person = await people.user(tenant_id=tenant, balance=100_000)
    admin = await people.user("admin", tenant, scopes=["admin"])
    level = await people.operator.fetchval("select id from levels where tenant_id = $1 and is_default", tenant)
    problem = await put(http, admin, f"/levels/{level}/restrictions/requests_per_day", {"patterns": ["x"]}, status=400)
    assert problem["code"] == "invalid_request"
    await put(http, admin, f"/levels/{level}/restrictions/nothing", {"amount": 1}, status=400)
    await put(http, person, f"/levels/{level}/restrictions/requests_per_day", {"amount": 9}, status=403)
    await put(http, admin, f"/levels/{level}/restrictions/requests_per_day", {"amount": 2})
    body = request({"completion_tokens": 2}, max_tokens=5)
    for left, stream in ((1, False), (0, True)):
        async with http.post("/v1/chat/completions", json=body | {"stream": stream}, headers=person.headers) as answer:
            await answer.read()
            assert answer.status == 200
            assert answer.headers["ratelimit-policy"] == '"requests_per_day";q=2;w=86400'
            assert answer.headers["ratelimit"].startswith(f'"requests_per_day";r={left};t=')
    async with http.post("/v1/chat/completions", json=body, headers=person.headers) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], error["type"]) == (429, "limit_reached", "rate_limit_error")
        assert (error["restriction"], error["limit"], error["used"]) == ("requests_per_day", 2, 2)
        assert 0 < int(answer.headers["retry-after"]) <= 86400
        assert answer.headers["ratelimit"] == f'"requests_per_day";r=0;t={answer.headers["retry-after"]}'
    async with http.delete(f"/api/v1/levels/{level}/restrictions/requests_per_day", headers=admin.headers) as answer:
        assert answer.status == 204
    async with http.post("/v1/chat/completions", json=body, headers=person.headers) as answer:
        assert (answer.status, "ratelimit" in answer.headers) == (200, False)


@pytest.fixture
async def stopped(cluster: Cluster) -> AsyncIterator[tuple[str, People]]:
    """A database whose clock stands, so that no window ends while the calls run."""
    async with migrated_database(cluster) as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await _prepare(connection)
        moment = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        await connection.execute(
            "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe"
            f" as $f$ select '{moment}'::timestamptz $f$"
        )
        yield name, People(connection)
        await connection.close()


async def test_three_server_processes_admit_exactly_as_many_as_the_level_says(
    stopped: tuple[str, People], cluster: Cluster, tmp_path: Path
) -> None:
    name, people = stopped
    person: Person = await people.user(balance=1_000_000)
    await people.operator.execute(
        "select set_level_restriction(id, 'requests_per_minute', 25, null, tenant_id) from levels"
        " where tenant_id = $1 and is_default",
        person.identity.tenant_id,
    )
    body = request({"completion_tokens": 2}, max_tokens=5)
    async with over(cluster, name, tmp_path).serving("serve", "--processes", "3") as running, many() as session:
        answers = await asyncio.gather(*(call(session, running.url, person, body) for _ in range(100)))
        assert await running.stop() == 0
    codes = Counter(answer["error"]["code"] if status != 200 else "answered" for status, answer in answers)
    assert codes == {"answered": 25, "limit_reached": 75}


async def test_keys_made_at_once_are_as_many_as_the_level_says(
    cluster: Cluster, database_name: str, people: People
) -> None:
    person = await people.user(tenant_id=await people.tenant())
    await people.operator.execute(
        "select set_level_restriction(id, 'api_keys', 4, null, tenant_id) from levels"
        " where tenant_id = $1 and is_default",
        person.identity.tenant_id,
    )
    crowd = await asyncio.gather(*(asyncpg.connect(cluster.url(database=database_name)) for _ in range(8)))
    make = "select create_api_key('k', 'k', $1, p_user_id => $2)"
    try:
        made = await asyncio.gather(
            *(c.fetchval(make, uuid.uuid4().bytes * 2, person.identity.user_id) for c in crowd), return_exceptions=True
        )
    finally:
        await asyncio.gather(*(connection.close() for connection in crowd))
    assert Counter(getattr(one, "sqlstate", "made") for one in made) == {"made": 3, "VS429": 5}
