"""Every line of bad input for the wallet, in SQL under a signed context and over HTTP: a code, and nothing written."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.conftest import Cluster, People, Person, migrated_database, serve, settings_for
from tests.tokens.support import Books
from vanilla_saas.app import create_app
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.pool import _prepare

MOST, LIMIT = 10**15, 10**17
LONG_KEY = "".join(uuid.uuid4().hex for _ in range(300))
"""9,600 characters that no compression makes short."""


@dataclass
class Place:
    """An admin of a tenant, users of it and of another one, and what there is to misuse; a database of its own."""

    operator: asyncpg.Connection
    app: asyncpg.Connection
    signer: ContextSigner
    http: aiohttp.ClientSession
    admin: Person
    names: dict[str, str]

    async def rows(self) -> dict[str, int]:
        """How many rows every table has, and what all wallets, grants and holds are."""
        tables = await self.operator.fetch(
            "select c.oid::regclass::text as name from pg_class c where c.relnamespace = 'public'::regnamespace"
            # the server of these tests rolls days up and counts minutes meanwhile
            " and c.relname not in ('level_analytics', 'system_metrics')"
            " and c.relkind in ('r', 'p') and not c.relispartition"
        )
        names = [row["name"] for row in tables]
        counts = {name: await self.operator.fetchval(f"select count(*) from {name}") for name in names}
        for name in ("user_token_wallets", "user_token_grants", "user_token_holds", "level_token_policies"):
            digest = f"select md5(string_agg(t::text, ',' order by t::text)) from {name} t"
            counts[f"{name} digest"] = await self.operator.fetchval(digest)
        return counts

    async def by_sql(self, statement: str) -> str:
        """The SQLSTATE of a statement of the admin."""
        async with self.app.transaction():
            await self.app.fetchval("select vanilla.set_context($1)", self.signer.sign(self.admin.identity))
            with pytest.raises(asyncpg.PostgresError) as refused:
                await self.app.fetchval(statement.format(**self.names))
            raise _Undone(str(refused.value.sqlstate))

    async def over_http(self, method: str, path: str, body: Any) -> tuple[int, str]:
        key = body.pop("key", str(uuid.uuid4()))
        body = {name: value.format(**self.names) if isinstance(value, str) else value for name, value in body.items()}
        headers = self.admin.headers | {"idempotency-key": key}
        async with self.http.request(
            method, f"/api/v1{path.format(**self.names)}", json=body, headers=headers
        ) as answer:
            problem = await answer.json()
            return answer.status, problem.get("code", str(problem))


class _Undone(Exception):
    pass


@pytest.fixture(scope="module")
async def place(
    cluster: Cluster, signer: ContextSigner, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Place]:
    async with migrated_database(cluster) as name:
        operator = await asyncpg.connect(cluster.url(database=name))
        app = await asyncpg.connect(cluster.url("vanilla_app", name))
        await _prepare(operator)
        people, home = People(operator), Path(tmp_path_factory.mktemp("home"))
        admin = await people.user("admin", scopes=["read", "admin"])
        user = await people.user(balance=1000)
        rich = await people.user(balance=1000)
        other = await people.user(tenant_id=await people.tenant())
        ids = {"user": user, "rich": rich, "other": other}
        names = {key: str(person.identity.user_id) for key, person in ids.items()}
        adjust = "select adjust_user_tokens($1, $2, $3, p_idempotency_key => $4)"
        await operator.fetchval(adjust, user.identity.user_id, 10, "debit", "used")
        for key in ("settled", "expired"):
            entry = await operator.fetchval(adjust, user.identity.user_id, 100, "reserve", key)
            names[key] = entry["hold_id"]
        await operator.fetchval("select settle_user_tokens($1, 40)", uuid.UUID(names["settled"]))
        await operator.execute(
            "update user_token_holds set expires_at = now() where id = $1", uuid.UUID(names["expired"])
        )
        await operator.fetchval("select vanilla.reap_holds()")
        # as full as a wallet may be: a hundred gifts, the last one smaller
        full = [{"user_id": names["rich"], "amount": MOST, "direction": "credit"}] * 99
        full += [{"user_id": names["rich"], "amount": MOST - 1000, "direction": "credit"}]
        outcomes = await operator.fetchval("select adjust_user_tokens_batch($1)", full)
        assert all(outcome["ok"] for outcome in outcomes)
        assert (await people.wallet(rich))["available_tokens"] == LIMIT
        level = await operator.fetchval(
            "select level_id from user_token_wallets where user_id = $1", user.identity.user_id
        )
        names |= {"level": str(level), "nobody": str(uuid.uuid4()), "long": LONG_KEY}
        async with (
            serve(create_app(settings_for(cluster, name, home))) as address,
            aiohttp.ClientSession(address) as http,
        ):
            yield Place(operator, app, signer, http, admin, names)
        await app.close()
        await operator.close()


def adjusting(amount: Any, direction: str = "debit", who: str = "user", **more: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", f"/wallets/{{{who}}}/adjust", {"amount": amount, "direction": direction, "reason": "x", **more}


POLICY = {"base_allocation": 0, "monthly_allocation": 10}
LINES: list[tuple[str, str, str, tuple[str, str, dict[str, Any]]]] = [
    ("zero", "select adjust_user_tokens('{user}', 0, 'debit')", "VS400", adjusting(0)),
    ("nothing", "select adjust_user_tokens('{user}', null, 'debit')", "VS400", adjusting(None)),
    ("a negative credit", "select adjust_user_tokens('{user}', -5, 'credit')", "VS400", adjusting(-5, "credit")),
    ("an amount too large", f"select adjust_user_tokens('{{user}}', {MOST + 1}, 'debit')", "VS400", adjusting(MOST + 1)),
    ("an amount of 64 bits", f"select adjust_user_tokens('{{user}}', {-(2**63)}, 'debit')", "VS400", adjusting(-(2**63))),
    ("a credit to a full wallet", "select adjust_user_tokens('{rich}', 1, 'credit')", "VS400", adjusting(1, "credit", "rich")),
    ("a correction of a full wallet", "select adjust_user_tokens('{rich}', 1, 'adjustment')", "VS400",
     adjusting(1, "adjustment", "rich")),
    ("a grant to a full wallet", "select grant_user_tokens('{rich}', 1)", "VS400",
     ("POST", "/wallets/{rich}/grants", {"amount": 1, "kind": "promo", "reason": "x"})),
    ("a later grant to a full wallet", "select grant_user_tokens('{rich}', 1, p_effective_at => '2999-01-01')", "VS400",
     ("POST", "/wallets/{rich}/grants", {"amount": 1, "kind": "promo", "reason": "x", "effective_at": "2999-01-01T00:00:00Z"})),
    ("sums of a batch", "select adjust_user_tokens_batch('[{{\"user_id\": \"{user}\", \"amount\": 1, \"direction\": \"credit\"}},"
     " {{\"user_id\": \"{rich}\", \"amount\": 1, \"direction\": \"credit\"}}]', true)", "VS400",
     ("POST", "/wallets/batch", {"atomic": True, "operations": "{batch}"})),
    ("an unknown user", "select adjust_user_tokens('{nobody}', 5, 'debit')", "VS404", adjusting(5, who="nobody")),
    ("another tenant's user", "select adjust_user_tokens('{other}', 5, 'debit')", "VS404", adjusting(5, who="other")),
    ("a grant to another tenant's user", "select grant_user_tokens('{other}', 5)", "VS404",
     ("POST", "/wallets/{other}/grants", {"amount": 5, "kind": "promo", "reason": "x"})),
    ("a direction that is none", "select adjust_user_tokens('{user}', 5, 'gift')", "VS400", adjusting(5, "gift")),
    ("a key with another body", "select adjust_user_tokens('{user}', 11, 'debit', p_idempotency_key => 'used')", "VS410",
     adjusting(11, key="used")),
    ("a key that is too long", "select adjust_user_tokens('{user}', 5, 'debit', p_idempotency_key => '{long}')", "VS400",
     adjusting(5, key="x" * 300)),
    ("a grant's key that is too long", "select grant_user_tokens('{user}', 5, p_idempotency_key => '{long}')", "VS400",
     ("POST", "/wallets/{user}/grants", {"amount": 5, "kind": "promo", "reason": "x", "key": "x" * 300})),
    ("a batch's key that is too long", "select adjust_user_tokens_batch('[{{\"user_id\": \"{user}\", \"amount\": 1,"
     " \"direction\": \"debit\", \"idempotency_key\": \"{long}\"}}]', true)", "VS400",
     ("POST", "/wallets/batch", {"operations": "{long_batch}"})),
    ("settling twice", "select settle_user_tokens('{settled}', 5)", "VS409",
     ("POST", "/holds/{settled}/settle", {"actual": 5, "reason": "x"})),
    ("settling an expired hold", "select settle_user_tokens('{expired}', 5)", "VS409",
     ("POST", "/holds/{expired}/settle", {"actual": 5, "reason": "x"})),
    ("a rollover over 100 percent", "select set_level_token_policy('{level}', 0, 10, p_rollover_percent => 101)", "VS400",
     ("PUT", "/levels/{level}/policy", POLICY | {"rollover_percent": 101})),
    ("a user's rollover over 100 percent", "select set_user_token_policy('{user}', p_rollover_percent => 101)", "VS400",
     ("PUT", "/wallets/{user}/policy", {"rollover_percent": 101})),
    ("an allocation too large", f"select set_level_token_policy('{{level}}', 0, {MOST + 1})", "VS400",
     ("PUT", "/levels/{level}/policy", POLICY | {"monthly_allocation": MOST + 1})),
    ("an expiry in the past", "select adjust_user_tokens('{user}', 5, 'credit', p_expires_at => '2020-01-01')", "VS400",
     adjusting(5, "credit", expires_at="2020-01-01T00:00:00Z")),
    ("a grant that has lapsed", "select grant_user_tokens('{user}', 5, p_expires_at => '2020-01-01')", "VS400",
     ("POST", "/wallets/{user}/grants", {"amount": 5, "kind": "promo", "reason": "x", "expires_at": "2020-01-01T00:00:00Z"})),
    ("a policy without a period", "select set_level_token_policy('{level}', 0, 10, p_period => null)", "VS400",
     ("PUT", "/levels/{level}/policy", POLICY | {"period": None})),
    ("a policy of an unknown period", "select set_level_token_policy('{level}', 0, 10, p_period => 'eon')", "VS400",
     ("PUT", "/levels/{level}/policy", POLICY | {"period": "eon"})),
]  # fmt: skip
CODES = {"VS400": (400, "invalid_request"), "VS404": (404, "not_found"), "VS409": (409, "invalid_state")}
CODES["VS410"] = (409, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("statement", "sqlstate", "request_"), [line[1:] for line in LINES], ids=[line[0] for line in LINES]
)
async def test_bad_input_is_refused_with_its_code_and_nothing_is_written(
    place: Place, statement: str, sqlstate: str, request_: tuple[str, str, dict[str, Any]]
) -> None:
    before = await place.rows()
    with pytest.raises(_Undone, match=sqlstate):
        await place.by_sql(statement)
    assert await place.rows() == before
    method, path, body = request_
    body = dict(body)
    one = {"amount": 1, "direction": "credit", "reason": "x"}
    if body.get("operations") == "{batch}":
        body["operations"] = [one | {"user_id": place.names[who], "idempotency_key": who} for who in ("user", "rich")]
    elif body.get("operations") == "{long_batch}":
        body["operations"] = [one | {"user_id": place.names["user"], "idempotency_key": "x" * 300}]
    assert await place.over_http(method, path, body) == CODES[sqlstate]
    assert await place.rows() == before


async def test_a_rollover_into_a_wallet_at_its_limit_closes_the_period(books: Books) -> None:
    """No sum of what is given, carried over and allocated stops a period from ending, or the books from being right."""
    policy = {"monthly_allocation": MOST, "rollover_percent": 100, "rollover_cap": MOST}
    user = await books.user(**policy)
    for _ in range(99):
        await books.adjust(user, MOST, "credit")
    assert await books.figures(user) == (LIMIT, 0, 0)
    for month in (4, 5, 6):
        await books.connection.execute(
            "select set_config('vanilla_test.now', $1, false)", f"2026-{month:02}-02T00:00:00+00:00"
        )
        assert await books.reset() >= 1
        # the plan of the month before, and the new one
        assert await books.figures(user) == (99 * MOST + 2 * MOST, 0, 0)
