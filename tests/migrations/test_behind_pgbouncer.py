"""DATABASE_URL should stay direct; whoever points it at PgBouncer gets the same database and not half of one."""

import asyncio

from tests.migrations.tools import FILES, Shell, throwaway_server
from tests.pgbouncer import pgbouncer, through
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate


async def test_migrators_behind_pgbouncer_make_the_database_that_a_direct_one_makes(signer: ContextSigner) -> None:
    with throwaway_server(18) as cluster, pgbouncer(cluster, signer, default_pool_size="4") as bouncer:
        admin = Shell(cluster, 18, "postgres")
        admin.statement("create role plain login nosuperuser createrole")
        for name in ("direct", "pooled"):
            admin.statement(f"create database {name} owner plain")
        direct, pooled = Shell(cluster, 18, "direct", "plain"), Shell(cluster, 18, "pooled", "plain")
        await migrate(direct.url, signer)
        ran = await asyncio.gather(*(migrate(through(bouncer, "plain", "pooled", signer), signer) for _ in range(2)))
        assert sorted(ran, key=len) == [[], FILES]
        assert pooled.dump() == direct.dump()
