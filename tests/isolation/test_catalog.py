"""The suite covers every table: one without a row, a canary or an ownership class fails here."""

import asyncpg

from tests.isolation.canaries import CANARY, free_text, holds
from tests.isolation.catalog import HIDDEN, WRITABLE, enumeration
from tests.isolation.rows import World

CLASSES = {
    "tenant_shared",
    "user_owned",
    "user_read",
    "admin_only",
    "platform_catalog",
    "tenant_registry",
    "platform_only",
}


def test_every_table_declares_its_ownership_and_every_partition_none(world: World) -> None:
    assert {t.name for t in world.tables if not t.parent and t.ownership not in CLASSES} == set()
    assert {t.name for t in world.tables if t.parent and t.ownership} == set()


async def test_every_ownership_is_of_a_table_that_exists(world: World, superuser: asyncpg.Connection) -> None:
    declared = await superuser.fetch("select relation::text from vanilla.table_ownership")
    assert {r["relation"] for r in declared} == {t.name for t in world.tables if not t.parent}


async def test_every_table_and_partition_has_a_row_of_each_tenant(world: World, superuser: asyncpg.Connection) -> None:
    for table in world.tables:
        for tenant in (world.a, world.b):
            count = await superuser.fetchval(f"select count(*) from {table.name} where tenant_id = $1", tenant.id)
            assert count > 0, f"{table.name} has no row of a tenant: the generator must learn it"


async def test_every_owned_table_has_rows_of_two_owners(world: World, superuser: asyncpg.Connection) -> None:
    for table in world.tables:
        if table.owner:
            owners = await superuser.fetchval(
                f"select count(distinct {table.owner}) from {table.name} where tenant_id = $1", world.a.id
            )
            assert owners > 1, table.name


async def test_every_text_json_and_bytea_of_b_holds_a_canary(world: World, superuser: asyncpg.Connection) -> None:
    for table in world.tables:
        for column in free_text(table):
            plain = await superuser.fetchval(
                f"select count(*) from {table.name} where tenant_id = $1 and {holds(column)} is not true",
                world.b.id,
            )
            assert plain == 0, f"{table.name}.{column.name}"


async def test_only_b_and_the_log_of_its_making_hold_a_canary(world: World, superuser: asyncpg.Connection) -> None:
    for table in world.tables:
        if not table.parent:
            found = await superuser.fetchval(
                f"select count(*) from {table.name} x where tenant_id <> $1 and x::text like '%{CANARY}%'", world.b.id
            )
            assert found == (1 if table.name == "audit_logs" else 0), table.name


def test_the_declarations_of_the_suite_name_columns_that_exist(world: World) -> None:
    for name, columns in HIDDEN.items():
        assert columns <= {c.name for c in world.table(name).columns}
    assert {t.name for t in world.tables} >= WRITABLE
    assert enumeration(world.table("users"), "role") == ["user", "admin", "superadmin"]
    assert "chat" in enumeration(world.table("api_keys"), "scopes")
    assert "debit" in enumeration(world.table("user_token_ledger"), "direction")
