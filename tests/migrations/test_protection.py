"""003 run again repairs whatever was changed by hand, and takes no lock when nothing was."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.conftest import Cluster, migrated_database
from vanilla_saas.database.schema import migrations_directory

POLICIES = (migrations_directory() / "003_rls_policies.sql").read_text()
DRIFT = """
select c.relname || ': ' || d.object as part from pg_class c cross join lateral vanilla.protection_drift(c.oid) d
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') order by 1
"""
PROTECTION = """
select c.relname, f.object, f.definition from pg_class c cross join lateral vanilla.found_protection(c.oid) f
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') order by 1, 2, 3
"""
BY_HAND = {
    "a policy that lets all rows through": "alter policy app_select on users using (true)",
    "a check that lets all rows through": "alter policy app_insert on ai_models with check (true)",
    "a policy for another role": "alter policy app_select on users to public",
    "a dropped policy": "drop policy app_select on levels",
    "a policy under a known name for another command": (
        "drop policy app_delete on ai_models; create policy app_delete on ai_models for all to vanilla_app using (true)"
    ),
    "a policy made restrictive": (
        "drop policy definer on users; create policy definer on users as restrictive for all to vanilla_definer"
        " using (true) with check (true)"
    ),
    "one policy more": "create policy more on users for select to vanilla_app using (true)",
    "a secret column granted": "grant select (password_hash) on users to vanilla_app",
    "a whole table granted": "grant select on users to vanilla_app",
    "a table granted to everybody": "grant select on levels to public",
    "a right to grant": "grant select (name) on levels to vanilla_app with grant option",
    "truncate granted": "grant truncate on user_token_wallets to vanilla_operator",
    "the ledger made changeable": "grant update on user_token_ledger to vanilla_owner",
    "a column revoked": "revoke select (email) on users from vanilla_readonly",
    "a privilege of functions revoked": "revoke insert on audit_logs from vanilla_definer",
    "row-level security switched off": "alter table users disable row level security",
    "the owner let past": "alter table users no force row level security",
    "a partition granted": "grant select on audit_logs_default to vanilla_app",
    "a partition opened": "alter table audit_logs_default disable row level security",
    "a policy on a partition": "create policy more on audit_logs_default to vanilla_app using (true)",
    "a comment on a policy that says it is right": (
        "alter policy app_select on users using (true); comment on policy app_select on users is 'as it should be'"
    ),
    "another class declared": "update vanilla.table_ownership set ownership = 'tenant_shared' where relation = 'users'",
}


@pytest.fixture(scope="module")
async def connection(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """A superuser in a database of its own: what is made by hand here is committed."""
    async with migrated_database(cluster) as name:
        opened = await asyncpg.connect(cluster.url(database=name))
        yield opened
        await opened.close()


async def test_a_fresh_installation_is_as_declared(connection: asyncpg.Connection) -> None:
    assert await connection.fetch(DRIFT) == []
    # both sides of the comparison are there: of every table and partition its two switches at least
    expected = await connection.fetchval(
        "select count(*) from pg_class c cross join lateral vanilla.expected_protection(c.oid)"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')"
    )
    assert expected == len(await connection.fetch(PROTECTION)) > 500


@pytest.mark.parametrize("what", BY_HAND)
async def test_003_repairs_what_was_changed_by_hand(connection: asyncpg.Connection, what: str) -> None:
    before = await connection.fetch(PROTECTION)
    await connection.execute(BY_HAND[what])
    assert await connection.fetch(DRIFT) != []
    await connection.execute(POLICIES)
    assert await connection.fetch(DRIFT) == []
    assert await connection.fetch(PROTECTION) == before


async def test_003_waits_for_no_reader_when_nothing_changed(cluster: Cluster, connection: asyncpg.Connection) -> None:
    name = await connection.fetchval("select current_database()")
    reader = await asyncpg.connect(cluster.url(database=name))
    tables = await connection.fetch(
        "select oid::regclass::text as name from pg_class"
        " where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
    )
    try:
        async with reader.transaction():
            await reader.execute(f"lock table {', '.join(row['name'] for row in tables)} in access share mode")
            await connection.execute("set lock_timeout = '1s'")
            await connection.execute(POLICIES)
            # and it would have been noticed: a repair does wait
            with pytest.raises(asyncpg.LockNotAvailableError):
                await connection.execute("alter policy app_select on users using (true)")
    finally:
        await connection.execute("reset lock_timeout")
        await reader.close()
