"""A world of the attackers' own: what they commit must not reach the other tests."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from tests.conftest import Cluster, migrated_database
from tests.isolation.attacker.watch import Secrets, read_secrets
from tests.isolation.rows import World, populate
from vanilla_saas.database.context import ContextSigner

PLATFORM_ROWS = """
select md5(string_agg(d, ',' order by d)) from (
    select x::text as d from vanilla.context_keys x
    union all select x::text from public.ai_providers x where tenant_id = vanilla.platform()
    union all select x::text from public.ai_models x where tenant_id = vanilla.platform()
    union all select x::text from public.system_configurations x where tenant_id = vanilla.platform()
    union all select x::text from public.users x where tenant_id = vanilla.platform()
    union all select x::text from public.tenants x where tenant_id = vanilla.platform()
    union all select rolname || rolsuper || rolbypassrls || rolinherit from pg_roles where rolname like 'vanilla%'
    union all select oid::text || relacl::text || relrowsecurity || relforcerowsecurity from pg_class
        where relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and relkind <> 't'
    union all select oid::text || proacl::text || prosrc from pg_proc
        where pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)) s
"""
"""Secrets and rules of the platform: keys, its rows, roles, grants, functions."""


@dataclass
class Prey:
    """A populated database to attack, what it must not tell, and what must not change."""

    cluster: Cluster
    name: str
    world: World
    secrets: Secrets
    superuser: asyncpg.Connection
    digest: str = ""
    platform: str = ""

    async def intact(self) -> bool:
        """Whether B's rows, the platform's secrets and the rules are as they were."""
        now = await self.world.digest(self.superuser, of_b=True), await self.superuser.fetchval(PLATFORM_ROWS)
        before = self.digest, self.platform
        self.digest, self.platform = now
        return before == ("", "") or now == before

    async def revive(self) -> None:
        """A's people can sign in again, whatever they did to themselves."""
        a = self.world.a
        await self.superuser.execute(
            f"update users set status = 'active', role = case id when '{a.admin.id}' then 'admin' else 'user' end,"
            # an admin may erase people, and who is erased has no address left
            f" email = coalesce(email, id || '@revived.test') where tenant_id = '{a.id}'"
        )


@pytest.fixture(scope="session")
async def prey(cluster: Cluster, signer: ContextSigner) -> AsyncIterator[Prey]:
    async with migrated_database(cluster, "attacked") as name:
        superuser = await asyncpg.connect(cluster.url(database=name))
        world = await populate(superuser, signer)
        await superuser.execute(
            "update public.ai_providers set secret = sha256('the platform''s') where tenant_id = vanilla.platform()"
        )
        # vanilla_runtime may make partitions: with all of them there, it makes none that would look like an edit
        await superuser.execute("select vanilla.ensure_partitions(24)")
        # what runs out is given back by whoever calls maintenance, the gateway's login among them: that is no attack
        await superuser.execute("update public.user_token_holds set expires_at = 'infinity' where state = 'open'")
        await superuser.execute("analyze")  # so that there are statistics to be read
        made = Prey(cluster, name, world, await read_secrets(superuser, world), superuser)
        assert await made.intact()
        yield made
        await superuser.close()
