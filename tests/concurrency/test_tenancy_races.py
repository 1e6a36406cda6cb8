"""Two who decide at the same moment: a policy and who joins it, two admins, a closed tenant and who comes in."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.concurrency.test_wallet import connections
from tests.conftest import Cluster, People, Person
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.tenancy.secret_tokens import token_hash


@asynccontextmanager
async def pair(
    cluster: Cluster, name: str, login: str = "postgres"
) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection]]:
    opened = [await asyncpg.connect(cluster.url(login, name)) for _ in range(2)]
    try:
        yield opened[0], opened[1]
    finally:
        for connection in opened:
            await connection.close()


async def done_or_waiting(operator: asyncpg.Connection, pid: int, task: asyncio.Task[Any]) -> bool:
    """Whether the task has to wait for a lock; it is over or waits when this returns."""
    async with asyncio.timeout(30):
        while not task.done():
            if await operator.fetchval("select cardinality(pg_blocking_pids($1)) > 0", pid):
                return True
            await asyncio.sleep(0.005)
    return False


async def first_then(
    operator: asyncpg.Connection,
    first: asyncpg.Connection,
    one: Awaitable[Any],
    second: asyncpg.Connection,
    other: Awaitable[Any],
) -> Any:
    """`one` in a transaction that commits when `other`, begun meanwhile, is over or waits; what `other` came to."""
    transaction = first.transaction()
    await transaction.start()
    await one
    task = asyncio.ensure_future(other)
    await done_or_waiting(operator, second.get_server_pid(), task)
    await transaction.commit()
    async with asyncio.timeout(30):
        return (await asyncio.gather(task, return_exceptions=True))[0]


@pytest.mark.parametrize("joins_first", [True, False], ids=["joined before", "joins after"])
async def test_who_joins_a_level_while_its_policy_changes_has_the_new_enforcement(
    joins_first: bool, cluster: Cluster, database_name: str, people: People
) -> None:
    tenant = await people.tenant()
    level = await people.operator.fetchval("select id from levels where tenant_id = $1 and slug = 'basic'", tenant)
    users = [(await people.user(tenant_id=tenant)).identity.user_id for _ in range(2)]
    # one is on the level already: the two lock it from both sides
    await people.operator.fetchval("select auto_allocate_tokens_for_level($1, $2)", users[1], level)
    async with pair(cluster, database_name) as (joining, setting):
        join = joining.fetchval("select auto_allocate_tokens_for_level($1, $2)", users[0], level)
        change = setting.fetchval(
            "select set_level_token_policy($1, 0, 1000, 'monitor', p_warning_percent => 50, p_tenant_id => $2)",
            level,
            tenant,
        )
        ways = (joining, join, setting, change) if joins_first else (setting, change, joining, join)
        outcome = await first_then(people.operator, *ways)
    assert not isinstance(outcome, BaseException), outcome
    rows = await people.operator.fetch(
        "select enforcement_mode, warn_below from user_token_wallets where user_id = any ($1)", users
    )
    assert [tuple(row) for row in rows] == [("monitor", 500)] * 2


async def test_users_who_are_made_while_the_default_level_changes_have_the_new_enforcement(
    cluster: Cluster, database_name: str, people: People
) -> None:
    """Twenty sign-ups from ten connections, ten changes from two: no wallet disagrees with its level afterwards."""
    tenant = await people.tenant()
    level = await people.operator.fetchval("select id from levels where tenant_id = $1 and is_default", tenant)

    async def sign_up(connection: asyncpg.Connection) -> None:
        for _ in range(2):
            await connection.fetchval(
                "select create_user($1, p_tenant_id => $2)", f"{uuid.uuid4().hex}@example.test", tenant
            )

    async def change(connection: asyncpg.Connection, modes: tuple[str, ...]) -> None:
        for mode in modes * 3:
            await connection.fetchval(
                "select set_level_token_policy($1, 0, 1000, $3, p_tenant_id => $2)", level, tenant, mode
            )

    async with connections(cluster, database_name, 12) as crowd:
        await asyncio.gather(
            *(sign_up(connection) for connection in crowd[:10]),
            change(crowd[10], ("monitor", "hard")),
            change(crowd[11], ("warn", "monitor")),
        )
    wrong = await people.operator.fetchval(
        "select count(*) from user_token_wallets w join level_token_policies p"
        " on p.tenant_id = w.tenant_id and p.level_id = w.level_id"
        " where w.tenant_id = $1 and w.enforcement_mode <> p.enforcement_mode",
        tenant,
    )
    assert wrong == 0


@pytest.mark.parametrize(
    "deed", ["set_user_role($1, 'user')", "set_user_status($1, 'disabled')", "erase_user($1, 'left')"]
)
async def test_two_admins_who_remove_each_other_at_once_leave_one(
    deed: str, cluster: Cluster, database_name: str, people: People, signer: ContextSigner
) -> None:
    tenant = await people.tenant()
    admins = [await people.user("admin", tenant) for _ in range(2)]

    async def remove(connection: asyncpg.Connection, actor: Person, victim: Person) -> None:
        await connection.fetchval("select vanilla.set_context($1)", signer.sign(actor.identity))
        await connection.fetchval(f"select {deed}", victim.identity.user_id)

    async def afterwards() -> None:
        async with second.transaction():
            await remove(second, admins[1], admins[0])

    async with pair(cluster, database_name, "vanilla_app") as (first, second):
        one = remove(first, admins[0], admins[1])
        outcome = await first_then(people.operator, first, one, second, afterwards())
    assert isinstance(outcome, asyncpg.PostgresError), "both are gone"
    assert outcome.sqlstate == "VS409"
    left = await people.operator.fetch(
        "select id from users where tenant_id = $1 and role = 'admin' and status = 'active'", tenant
    )
    assert [row["id"] for row in left] == [admins[0].identity.user_id]


SIGN_IN = "select vanilla.finish_sign_in($1, $2, $3, $4, '', '')"
LINK = "select issue_one_time_token($1, $2)"
KEY = "select create_api_key('late', 'late', $2, p_user_id => $1)"


@pytest.mark.parametrize(("what", "refusal"), [("sign-in", "VS411"), ("link", "VS409"), ("key", "VS409")])
async def test_nothing_that_lets_somebody_in_slips_past_the_closing_of_the_tenant(
    what: str, refusal: str, cluster: Cluster, database_name: str, people: People
) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    person = await people.user(tenant_id=tenant)
    secrets = token_hash(uuid.uuid4().hex), token_hash(uuid.uuid4().hex)
    async with pair(cluster, database_name) as (closing, coming):
        close = closing.fetchval("select close_tenant($1, 'unpaid')", tenant)
        come = {
            "sign-in": lambda: coming.fetchval(SIGN_IN, slug, person.email, *secrets),
            "link": lambda: coming.fetchval(LINK, person.identity.user_id, secrets[0]),
            "key": lambda: coming.fetchval(KEY, person.identity.user_id, secrets[0]),
        }[what]()
        outcome = await first_then(people.operator, closing, close, coming, come)
    assert isinstance(outcome, asyncpg.PostgresError), f"{what} went through: {outcome}"
    assert outcome.sqlstate == refusal
    # activated again, nothing is alive that nobody made since
    await people.operator.fetchval("select set_tenant_status($1, 'active')", tenant)
    alive = await people.operator.fetchval(
        "select (select count(*) from sessions where tenant_id = $1 and revoked_at is null)"
        " + (select count(*) from one_time_tokens where tenant_id = $1 and used_at is null)"
        " + (select count(*) from api_keys where tenant_id = $1 and revoked_at is null)",
        tenant,
    )
    assert alive == 0


async def test_two_who_save_the_last_agent_of_a_level_wait_in_a_row_and_not_in_a_ring(
    cluster: Cluster, database_name: str, people: People
) -> None:
    person = await people.user(tenant_id=await people.tenant())
    await people.operator.execute(
        """update levels set restrictions = '{"agents": 1}' where tenant_id = $1 and is_default""",
        person.identity.tenant_id,
    )
    save = """select save_agent($1, '{"instructions": "Help.", "model": "m"}', p_user_id => $2)"""
    async with pair(cluster, database_name) as two:
        async with people.operator.transaction():  # whoever else looks after the user lets both come as far as they can
            await people.operator.execute("select from users where id = $1 for share", person.identity.user_id)
            saving = []
            for connection, slug in zip(two, ("one", "two"), strict=True):
                saving.append(asyncio.ensure_future(connection.fetchval(save, slug, person.identity.user_id)))
                assert await done_or_waiting(people.operator, connection.get_server_pid(), saving[-1])
        async with asyncio.timeout(30):
            made = await asyncio.gather(*saving, return_exceptions=True)
    (refused,) = [found for found in made if isinstance(found, asyncpg.PostgresError)]
    assert refused.sqlstate == "VS429", refused
