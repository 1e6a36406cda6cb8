"""What SQL injected into a request of tenant A can do to everybody else: nothing."""

import uuid
from contextlib import nullcontext, suppress

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.isolation.canaries import CANARY
from tests.isolation.catalog import LOGINS
from tests.isolation.conftest import TENANTS_SEEN, identity
from tests.isolation.rows import World
from vanilla_saas.database.pool import Database

OUR_ROLES = ("vanilla_owner", "vanilla_definer", "vanilla_system", "vanilla_keyring", "vanilla_operator")


@pytest.mark.parametrize(
    "poison",
    [
        "select set_config('vanilla.context', current_setting('vanilla.context'), false)",
        "select set_config('search_path', 'pg_temp, pg_catalog', false)",
        "select set_config('row_security', 'off', false)",
        "select set_config('vanilla.request_id', 'poison', false)",
        "set session characteristics as transaction read only",
        "create temp table users as select 1",
        "prepare poison as select * from public.users",
        "declare poison cursor with hold for select * from public.users",
    ],
)
async def test_what_a_request_leaves_in_its_connection_shows_the_next_one_nothing(
    pool: Database, world: World, poison: str
) -> None:
    with suppress(asyncpg.PostgresError):
        async with pool.transaction(identity(world, "a")) as connection:
            await connection.execute(poison)
    for who, seen in ((None, None), (identity(world, "b"), [world.b.id]), (None, None)):
        # with row_security off a query is refused instead of answered
        with suppress(asyncpg.InsufficientPrivilegeError) if "row_security" in poison else nullcontext():
            async with pool.transaction(who) as connection:
                assert await connection.fetchval(TENANTS_SEEN) == seen


async def test_the_context_cannot_be_forged_by_setting_it(app: asyncpg.Connection, world: World) -> None:
    token = world.a.token(world.signer, world.a.admin)
    for forged in (
        token.replace(world.a.id, world.b.id),
        token.replace(world.a.admin.id, world.b.admin.id),
        token.replace(".admin.", ".superadmin."),
    ):
        await app.fetchval("select set_config('vanilla.context', $1, false)", forged)
        assert await app.fetch("select id from public.levels") == []
        with pytest.raises(asyncpg.PostgresError, match="context refused"):
            await app.fetchval("select vanilla.claim(3)")
    await app.execute("reset all")
    async with app.transaction():
        await app.fetchval("select vanilla.set_context($1)", token)
        for name in ("app.tenant_id", "vanilla.tenant_id", "request.jwt.claims", "vanilla.context_key"):
            await app.fetchval("select set_config($1, $2, true)", name, world.b.id)
        assert await app.fetchval(TENANTS_SEEN) == [world.a.id]


NOWHERE = "00000000-0000-7000-8000-00000000ffff"


@pytest.mark.parametrize("scans", ["on", "off"])
@pytest.mark.parametrize("kind", ["junk", "expired"])
async def test_a_bad_token_does_not_tell_which_rows_there_are(
    app: asyncpg.Connection, world: World, superuser: asyncpg.Connection, kind: str, scans: str
) -> None:
    """Leakproof conditions are tried on rows before policies are: a policy that fails says that there is a row."""
    token = world.a.token(world.signer, world.a.admin, lifetime_s=-1) if kind == "expired" else "v1.junk"
    slug = await superuser.fetchval("select slug from tenants where id = $1", uuid.UUID(world.b.id))
    user = world.b.user.id
    for query, there, nowhere in (
        ("select 1 from tenants where slug = '{}'", slug, "nowhere"),
        ("select 1 from users where id = '{}'", user, NOWHERE),
        ("select 1 from user_token_wallets where seq > {}", "0", "1000000"),
        ("select 1 from ai_executions where user_id = '{}'", user, NOWHERE),
        ("select 1 from tenants t, users u where u.tenant_id = t.id and u.id = '{}'", user, NOWHERE),
        ("select 1 from audit_logs where action = '{}'", "session.opened", "nothing"),
        ("delete from ai_models where tenant_id = '{}' returning 1", world.b.id, NOWHERE),
    ):
        for value in (there, nowhere):
            async with app.transaction():
                await app.execute(f"set local enable_indexscan = {scans}; set local enable_bitmapscan = {scans}")
                await app.fetchval("select set_config('vanilla.context', $1, true)", token)
                assert await app.fetch(query.format(value)) == []


@pytest.mark.parametrize("login", LOGINS)
async def test_no_login_becomes_another_role(cluster: Cluster, world_name: str, world: World, login: str) -> None:
    connection = await asyncpg.connect(cluster.url(login, world_name))
    for role in {*OUR_ROLES, *LOGINS, "postgres", "pg_read_all_data"} - {login}:
        for statement in (
            f"set role {role}",
            f"set local role {role}",
            f"set session authorization {role}",
            f"select set_config('role', '{role}', false)",
            f"grant {role} to {login}",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    for statement in ("reset role", "reset session authorization", "discard all", "reset all"):
        await connection.execute(statement)
    assert await connection.fetchval("select current_user") == login
    for statement in (
        f"alter role {login} bypassrls",
        "alter table public.users disable row level security",
        "create policy mine on public.users using (true)",
        "create schema mine",
        "create table public.mine ()",
        "create function public.mine() returns int language sql return 1",
        "create temp table mine ()",
        "create function pg_temp.mine() returns int language sql return 1",
        "create or replace function vanilla.clock() returns timestamptz language sql return now()",
        "security label on table public.users is 'x'",
        "copy public.users to program 'true'",
        "select pg_read_file('postgresql.conf')",
        "select lo_import('/etc/passwd')",
    ):
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(statement)
    await connection.close()


@pytest.mark.parametrize("login", LOGINS)
async def test_no_login_reads_anything_about_keys(cluster: Cluster, world_name: str, world: World, login: str) -> None:
    connection = await asyncpg.connect(cluster.url(login, world_name))
    for statement in (
        "select * from vanilla.context_keys",
        "select count(*) from vanilla.context_keys",
        "select key_id from vanilla.context_keys",
        "select pg_relation_size('vanilla.context_keys'), * from vanilla.context_keys",
        "copy (select * from vanilla.context_keys) to stdout",
        "table vanilla.schema_migrations",
        "insert into vanilla.context_keys select 'x', repeat('x', 64)::bytea, repeat('x', 64)::bytea",
        "select vanilla.install_context_key('x', repeat('x', 32)::bytea)",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    told = await connection.fetch("select s::text from pg_stats s where tablename = 'context_keys'")
    assert told == []
    await connection.close()


async def test_statistics_and_activity_tell_nothing_of_another_tenant(
    pool: Database, app: asyncpg.Connection, world: World, operator_of_world: asyncpg.Connection
) -> None:
    await operator_of_world.execute("analyze")
    async with pool.transaction(identity(world, "b")) as other, app.transaction():
        await other.fetchval(TENANTS_SEEN)
        await app.fetchval("select vanilla.set_context($1)", world.a.token(world.signer, world.a.admin))
        for source in (
            "pg_stats",
            "pg_stats_ext",
            "pg_stat_activity",
            "pg_settings",
            "pg_prepared_statements",
            "pg_locks",
        ):
            told = " ".join(r["t"] for r in await app.fetch(f"select x::text as t from {source} x"))
            assert CANARY not in told, source
            assert world.b.id not in told, source
            assert world.b.admin.id not in told, source
    assert await operator_of_world.fetchval(f"select count(*) from pg_stats s where s::text like '%{CANARY}%'") > 0


SHADOWS = """
    create function pg_temp.sha256(bytea) returns bytea language sql immutable return '\\x00'::bytea;
    create function pg_temp.current_setting(text, boolean) returns text language sql return 'x'::text;
    create function pg_temp.claim(integer, boolean) returns text language sql return '{b}'::text;
    create function pg_temp.current_tenant_id() returns pg_catalog.uuid language sql return '{b}'::pg_catalog.uuid;
    create type pg_temp.uuid as enum ('{a}', '{user}');
    create function pg_temp.evil(pg_temp.uuid) returns pg_catalog.uuid language sql return '{b}'::pg_catalog.uuid;
    create cast (pg_temp.uuid as pg_catalog.uuid) with function pg_temp.evil(pg_temp.uuid) as assignment;
    create temp table context_keys (key_id text, inner_key bytea, outer_key bytea, accept_until timestamptz);
    create temp table tenants as select 1 as x;
    create function pg_temp.yes(pg_catalog.uuid, pg_catalog.uuid) returns boolean language sql return true;
    create operator pg_temp.= (leftarg = pg_catalog.uuid, rightarg = pg_catalog.uuid, procedure = pg_temp.yes);
"""


@pytest.mark.parametrize("path", ["public", "pg_temp, pg_catalog", "pg_temp, public, vanilla, pg_catalog"])
async def test_temporary_objects_cannot_stand_before_ours_even_where_they_are_allowed(
    cluster: Cluster, world_name: str, world: World, superuser: asyncpg.Connection, path: str
) -> None:
    await superuser.execute(f'grant temporary on database "{world_name}" to vanilla_app')
    try:
        app = await asyncpg.connect(cluster.url("vanilla_app", world_name))
        await app.execute(SHADOWS.format(a=world.a.id, b=world.b.id, user=world.a.admin.id))
        async with app.transaction():
            await app.execute(f"set local search_path = {path}")
            await app.fetchval("select vanilla.set_context($1)", world.a.token(world.signer, world.a.admin))
            seen = await app.fetchval("select pg_catalog.array_agg(distinct tenant_id::text) from public.users")
            assert seen == [world.a.id]
            for function in ("vanilla.current_tenant_id()", "public.get_current_tenant_id()"):
                assert await app.fetchval(f"select {function}::text") == world.a.id
            for function in ("vanilla.current_user_id()", "public.get_current_user_id()"):
                assert await app.fetchval(f"select {function}::text") == world.a.admin.id
        await app.close()
    finally:
        await superuser.execute(f'revoke temporary on database "{world_name}" from vanilla_app')
