"""A storm of mixed tenants over five connections: whatever goes wrong in one transaction, no other sees of it."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass

import asyncpg
import pytest

from tests.conftest import LONG, Cluster, migrated_database
from tests.isolation.conftest import open_pools
from tests.pgbouncer import pgbouncer
from tests.processes import eventually
from vanilla_saas.database.context import ContextSigner, Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, token_hash

TRANSACTIONS = 100_000 if LONG else 2_000
CONNECTIONS, CLIENTS = 5, 40
SEEN = (
    "select array[vanilla.current_tenant_id()::text, vanilla.current_user_id()::text]"
    " || (select array_agg(email) from public.users) || (select array_agg(distinct tenant_id::text) from public.levels)"
    " || array[current_setting('search_path'), current_setting('transaction_read_only')]"
)
SESSION = ['"$user", public', "off"]
NOBODY = [None, None, *SESSION]
OURS = (
    "(select * from pg_stat_activity where usename in ('vanilla_app', 'vanilla_runtime')"
    " and datname = current_database()) as ours"
)
ACCIDENTS = (asyncpg.DivisionByZeroError, asyncpg.QueryCanceledError, asyncpg.CheckViolationError, TimeoutError)


@dataclass
class Member:
    """The only user of a tenant, and all that they may see."""

    identity: Identity
    canary: str
    key_hash: bytes

    @property
    def sees(self) -> list[str]:
        tenant = str(self.identity.tenant_id)
        return [tenant, str(self.identity.user_id), self.canary, tenant, *SESSION]


@dataclass
class Storm:
    """Transactions of random members with random accidents; counts what became of them."""

    database: Database
    members: list[Member]
    dice: random.Random
    outcomes: Counter[str]
    left: int = TRANSACTIONS

    async def client(self) -> None:
        while self.left > 0:
            self.left -= 1
            who = self.dice.choice([*self.members, None])
            accident = self.dice.choice(
                [self._fails, self._times_out, self._ends_early, self._poisons, *[self._works] * 4]
            )
            if who and self.dice.random() < 0.2:
                accident = self._calls
            limit = self.dice.random() * 0.01 if self.dice.random() < 0.15 else 60
            outcome = accident.__name__
            try:
                async with asyncio.timeout(limit):
                    await accident(who)
            except ACCIDENTS as error:
                outcome += f" {type(error).__name__}"
            except VanillaError as error:
                if error.name not in ("database_unavailable", "saturated"):  # the latter on a machine that stalls
                    raise
                outcome = error.name
                await asyncio.sleep(0.05)  # as who is told to come again
            self.outcomes[outcome] += 1

    async def _looks(self, connection: asyncpg.Connection, who: Member | None) -> None:
        assert await connection.fetchval(SEEN) == (who.sees if who else NOBODY)

    async def _works(self, who: Member | None) -> None:
        async with self.database.transaction(who.identity if who else None) as connection:
            await self._looks(connection, who)
            await asyncio.sleep(0)
            await self._looks(connection, who)

    async def _fails(self, who: Member | None) -> None:
        async with self.database.transaction(who.identity if who else None) as connection:
            await self._looks(connection, who)
            await connection.execute("select 1 / 0")

    async def _times_out(self, who: Member | None) -> None:
        async with self.database.transaction(who.identity if who else None) as connection:
            await connection.execute("set local statement_timeout = '5ms'")
            await connection.execute("select pg_sleep(60)")

    async def _ends_early(self, who: Member | None) -> None:
        async def rows() -> AsyncIterator[int]:
            async with self.database.transaction(who.identity if who else None) as connection:
                await self._looks(connection, who)
                async for row in connection.cursor("select generate_series(1, 1000)", prefetch=10):
                    yield row[0]

        async with aclosing(rows()) as some:
            async for _ in some:
                break

    async def _poisons(self, who: Member | None) -> None:
        async with self.database.transaction(who.identity if who else None) as connection:
            await connection.execute("set search_path = pg_temp; set default_transaction_read_only = on")

    async def _calls(self, who: Member | None) -> None:
        assert who is not None
        found = await self.database.call("select vanilla.key_identity($1)", who.key_hash)
        assert [found["tenant_id"], found["user_id"]] == who.sees[:2]

    async def killer(self, operator: asyncpg.Connection) -> None:
        """Ends a server process after every hundred transactions, whatever it is doing."""
        while self.left > 0:
            until = max(self.left - 100, 0)
            while self.left > until:
                await asyncio.sleep(0.002)
            killed = await operator.fetchval(f"select pg_terminate_backend(pid) from {OURS} order by random() limit 1")
            self.outcomes["killed"] += bool(killed)


@pytest.fixture(scope="module")
async def town(cluster: Cluster) -> AsyncIterator[tuple[str, list[Member]]]:
    """A database of four tenants with one member each."""
    async with migrated_database(cluster) as name:
        operator = await asyncpg.connect(cluster.url(database=name))
        yield name, [await _member(operator) for _ in range(4)]
        await operator.close()


async def _member(operator: asyncpg.Connection) -> Member:
    tenant = await operator.fetchval("select create_tenant($1, 'T')", f"t{uuid.uuid4().hex[:10]}")
    canary = f"canary-{uuid.uuid4().hex}@example.test"
    user = await operator.fetchval(
        "select create_user($1, 'user', p_must_change_password => false, p_tenant_id => $2)", canary, tenant
    )
    key = new_token(KEY_PREFIX)
    await operator.fetchval(
        "select create_api_key('k', $1, $2, '{read}', p_user_id => $3)", key[:12], token_hash(key), user
    )
    return Member(Identity(tenant, user, "user"), canary, token_hash(key))


@pytest.fixture(params=["directly", "through pgbouncer"])
def place(request: pytest.FixtureRequest, cluster: Cluster, signer: ContextSigner) -> AsyncIterator[Cluster]:
    if request.param == "directly":
        yield cluster
        return
    with pgbouncer(cluster, signer, default_pool_size=str(CONNECTIONS)) as running:
        yield running


async def test_a_storm_of_mixed_tenants_and_accidents_shows_nobody_anything_of_others(
    place: Cluster, cluster: Cluster, town: tuple[str, list[Member]], signer: ContextSigner
) -> None:
    name, members = town
    operator = await asyncpg.connect(cluster.url(database=name))
    database = await open_pools(place, name, signer, size=CONNECTIONS)
    try:
        await _weather(database, members, operator)
    finally:
        await database.close()
        await operator.close()


async def _weather(database: Database, members: list[Member], operator: asyncpg.Connection) -> None:
    storm = Storm(database, members, random.Random(11), Counter())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(storm.killer(operator))
        for _ in range(CLIENTS):
            tasks.create_task(storm.client())
    print(dict(sorted(storm.outcomes.items())))  # with -s: what became of them

    assert storm.outcomes["_works"] > TRANSACTIONS / 5, "most of it must have been served"
    for kind in ("killed", "database_unavailable", "_fails DivisionByZeroError", "_times_out QueryCanceledError"):
        assert storm.outcomes[kind], f"the storm had no {kind}"
    await _all_connections_serve(database, members)
    for pool in (database._app, database._runtime):
        assert pool.get_size() <= CONNECTIONS
        assert pool.get_idle_size() == pool.get_size(), "a connection was lost"
    await _nothing_is_left(operator)


async def _all_connections_serve(database: Database, members: list[Member]) -> None:
    """Five transactions open at once, and five again: each of another member than before on that connection."""
    together = asyncio.Barrier(CONNECTIONS)
    storm = Storm(database, members, random.Random(), Counter())

    async def hold(who: Member) -> None:
        for _ in range(3):  # connections that were killed while idle are noticed when they are used
            with suppress(VanillaError):
                await storm._works(who)
                break
        async with database.transaction(who.identity) as connection:
            await asyncio.wait_for(together.wait(), 30)
            await storm._looks(connection, who)

    for turn in range(2):
        await asyncio.gather(*(hold(members[(number + turn) % len(members)]) for number in range(CONNECTIONS)))
    async with database._app.acquire() as connection, connection.transaction():
        assert not await connection.fetchval("select current_setting('vanilla.context', true)")
        assert await connection.fetchval(SEEN) == NOBODY


async def _nothing_is_left(operator: asyncpg.Connection) -> None:
    """No server process of ours works or holds a lock, and there are no more of them than the pools have."""

    async def quiet() -> bool:
        row = await operator.fetchrow(
            "select count(*) filter (where state <> 'idle') as busy, count(*) as all,"
            " count(*) filter (where pid in (select pid from pg_locks where locktype = 'advisory')) as locks"
            f" from {OURS}"
        )
        return row["busy"] == 0 and row["locks"] == 0 and row["all"] <= 2 * CONNECTIONS

    await eventually(quiet, 30, lambda: "sessions of ours are still at work")
