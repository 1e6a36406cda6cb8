"""A person is erased while something else is done with them: whoever is first, the other is refused or done before."""

import asyncio
import random
import uuid

import asyncpg
import pytest

from tests.concurrency.test_tenancy_races import done_or_waiting, first_then, pair
from tests.concurrency.test_wallet import connections
from tests.conftest import Cluster, People, Person
from vanilla_saas.checks import BOOKS, run_checks

ERASE = "select erase_user($1, 'left')"
COMING: dict[str, tuple[str, str]] = {
    "debit": ("select adjust_user_tokens($1, 5, 'debit')", "VS404"),
    "credit": ("select adjust_user_tokens($1, 5, 'credit')", "VS415"),
    "reserve": ("select adjust_user_tokens($1, 5, 'reserve')", "VS404"),
    "grant for later": ("select grant_user_tokens($1, 5, p_effective_at => now() + interval '1 day')", "VS415"),
    "policy": ("select set_user_token_policy($1, 5)", "VS404"),
    "wallet status": ("select set_wallet_status($1, 'active', 'x')", "VS404"),
    "level": (
        "select auto_allocate_tokens_for_level($1, (select l.id from levels l join users u on u.tenant_id = l.tenant_id"
        " where u.id = $1 and l.slug = 'basic'))",
        "VS415",
    ),
    "role": ("select set_user_role($1, 'admin')", "VS404"),
    "status": ("select set_user_status($1, 'disabled')", "VS404"),
    "password": ("select set_user_password($1, '$argon2id$x')", "VS404"),
    "link": ("select issue_one_time_token($1, sha256(uuid_send(vanilla.uuid7())))", "VS404"),
    "key": (
        "select create_api_key('a name', 'p', sha256(uuid_send(vanilla.uuid7())), p_user_id => $1)",
        "VS404",
    ),
    "erase": (ERASE, "VS404"),
}
"""What somebody else begins while the erasure has not committed, and with what it is refused afterwards."""


@pytest.mark.parametrize("what", COMING)
async def test_what_comes_while_a_person_is_erased_is_refused_and_leaves_nothing(
    what: str, cluster: Cluster, database_name: str, people: People
) -> None:
    person = await people.user(tenant_id=await people.tenant(), balance=100)
    user_id = person.identity.user_id
    statement, refusal = COMING[what]
    async with pair(cluster, database_name) as (erasing, coming):
        erase = erasing.fetchval(ERASE, user_id)
        outcome = await first_then(people.operator, erasing, erase, coming, coming.fetchval(statement, user_id))
    assert isinstance(outcome, asyncpg.PostgresError), f"{what} went through: {outcome}"
    assert outcome.sqlstate == refusal
    await require_erased(people, person)


@pytest.mark.parametrize("what", [name for name in COMING if name != "erase"])
async def test_what_was_begun_before_a_person_is_erased_is_done_and_then_ended(
    what: str, cluster: Cluster, database_name: str, people: People
) -> None:
    person = await people.user(tenant_id=await people.tenant(), balance=100)
    user_id = person.identity.user_id
    async with pair(cluster, database_name) as (coming, erasing):
        come = coming.fetchval(COMING[what][0], user_id)
        erased = await first_then(people.operator, coming, come, erasing, erasing.fetchval(ERASE, user_id))
    assert not isinstance(erased, BaseException), erased
    if what == "reserve":
        hold = await people.operator.fetchval("select id from user_token_holds where user_id = $1", user_id)
        await people.operator.fetchval("select settle_user_tokens($1, 3)", hold)
        await people.operator.fetchval("select vanilla.job_closings(100)")
    await require_erased(people, person)


AGENT = '{"instructions": "x", "model": "m"}'
FLOW = '{"name": "n", "nodes": [{"id": "a", "kind": "transform", "value": "1"}]}'
BACK = {
    "workflows": (
        f"select save_workflow($1::text, '{FLOW}', p_user_id => $2) ->> 'id'",
        "select retire_workflow($1)",
        "select publish_workflow($1) where $2::text is not null and $3::uuid is not null",
        "select from ai_workflows where id = $1 for update nowait",
    ),
    "agents": (
        f"select save_agent($1::text, '{AGENT}', p_user_id => $2) ->> 'agent_id'",
        "select retire_agent($1)",
        f"select save_agent($2, '{AGENT}', p_user_id => $3) where $1::uuid is not null",
        "select from agents where id = $1 for update nowait",
    ),
}
"""How one is made, retired and brought back, and a look that fails while anybody holds it."""


@pytest.mark.parametrize("what", BACK)
async def test_who_brings_back_what_was_retired_holds_its_owner_before_it_as_an_erasure_does(
    what: str, cluster: Cluster, database_name: str, people: People
) -> None:
    person, slug = await people.user(tenant_id=await people.tenant()), f"s{uuid.uuid4().hex[:10]}"
    make, retire, bring, look = BACK[what]
    made = await people.operator.fetchval(make, slug, person.identity.user_id)
    await people.operator.fetchval(retire, made)
    async with pair(cluster, database_name) as (erasing, coming):
        transaction = erasing.transaction()
        await transaction.start()
        await erasing.execute("select from users where id = $1 for no key update", person.identity.user_id)
        task = asyncio.ensure_future(coming.fetchval(bring, made, slug, person.identity.user_id))
        assert await done_or_waiting(people.operator, coming.get_server_pid(), task)
        await erasing.execute(look, made)
        await transaction.commit()
        async with asyncio.timeout(30):
            await task


async def test_a_hold_that_is_settled_while_its_owner_is_erased_is_charged(
    cluster: Cluster, database_name: str, people: People
) -> None:
    for settles_first in (True, False):
        person = await people.user(tenant_id=await people.tenant(), balance=100)
        user_id = person.identity.user_id
        made = await people.operator.fetchval("select adjust_user_tokens($1, 50, 'reserve') ->> 'hold_id'", user_id)
        async with pair(cluster, database_name) as (one, two):
            settling, erasing = (one, two) if settles_first else (two, one)
            settle = settling.fetchval("select settle_user_tokens($1, 30)", uuid.UUID(made))
            erase = erasing.fetchval(ERASE, user_id)
            first, then = (settle, erase) if settles_first else (erase, settle)
            outcome = await first_then(people.operator, one, first, two, then)
        assert not isinstance(outcome, BaseException), outcome
        await people.operator.fetchval("select vanilla.job_closings(100)")
        spent = await people.operator.fetchval(
            "select spent_tokens from user_token_wallets where user_id = $1", user_id
        )
        assert spent == 30
        await require_erased(people, person)


async def test_a_sign_in_during_the_erasure_opens_nothing(cluster: Cluster, database_name: str, people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    slug = await people.operator.fetchval("select slug from tenants where id = $1", person.identity.tenant_id)
    sign_in = "select vanilla.finish_sign_in($1, $2, sha256($3), sha256($4), 'an address', 'a browser')"
    secrets = [uuid.uuid4().bytes for _ in range(2)]
    async with pair(cluster, database_name) as (erasing, coming):
        outcome = await first_then(
            people.operator,
            erasing,
            erasing.fetchval(ERASE, person.identity.user_id),
            coming,
            coming.fetchval(sign_in, slug, person.email, *secrets),
        )
    assert isinstance(outcome, asyncpg.PostgresError), "somebody erased signed in"
    assert outcome.sqlstate == "VS411"
    await require_erased(people, person)


async def test_a_storm_of_calls_around_an_erasure_has_no_deadlock_and_right_books(
    cluster: Cluster, database_name: str, people: People
) -> None:
    tenant = await people.tenant()
    persons = [await people.user(tenant_id=tenant, balance=1_000) for _ in range(6)]
    unexpected: list[str] = []

    async def busy(connection: asyncpg.Connection, seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(25):
            user_id = chosen.choice(persons).identity.user_id
            statement = COMING[chosen.choice([name for name in COMING if name not in ("erase", "role", "status")])][0]
            try:
                answer = await connection.fetchval(statement, user_id)
                if "'reserve'" in statement:
                    await connection.fetchval("select settle_user_tokens($1, 3)", uuid.UUID(answer["hold_id"]))
            except asyncpg.PostgresError as error:
                if not str(error.sqlstate).startswith("VS"):
                    unexpected.append(f"{error.sqlstate} {error}")

    async def erase(connection: asyncpg.Connection) -> None:
        for person in persons:
            await connection.fetchval(ERASE, person.identity.user_id)
            await asyncio.sleep(0)

    async with connections(cluster, database_name, 5) as crowd:
        await asyncio.gather(erase(crowd[0]), *(busy(one, seed) for seed, one in enumerate(crowd[1:])))
    assert unexpected == []
    await people.operator.fetchval("select vanilla.job_closings(100)")
    for person in persons:
        await require_erased(people, person)


async def require_erased(people: People, person: Person) -> None:
    """Nothing personal, nothing alive, the wallet closed and the books right."""
    row = await people.operator.fetchrow(
        "select u.status, u.email, u.external_id, u.display_name, u.password_hash, w.status as wallet,"
        " w.available_tokens, w.next_event_at = 'infinity' as still,"
        " (select count(*) from sessions s where s.user_id = u.id and (s.revoked_at is null or s.ip is not null))"
        " as sessions,"
        " (select count(*) from api_keys k where k.user_id = u.id and (k.revoked_at is null or k.name <> 'erased'))"
        " as keys,"
        " (select count(*) from user_token_policies p where p.user_id = u.id) as policies"
        " from users u join user_token_wallets w on w.tenant_id = u.tenant_id and w.user_id = u.id where u.id = $1",
        person.identity.user_id,
    )
    assert tuple(row) == ("deleted", None, None, "", None, "closed", 0, True, 0, 0, 0)
    assert await run_checks(people.operator, BOOKS) == []
