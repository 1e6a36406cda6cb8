"""The matrix of tests/isolation with Supabase's API roles, by claims and by signed token, and the catalog's rules."""

import json
import time

import asyncpg
import pytest

from tests.isolation.catalog import Caller
from tests.isolation.contexts import Context
from tests.isolation.matrix import run_matrix
from tests.isolation.rows import World, populate
from tests.isolation.static import CHECKS
from tests.supabase.project import ADMIN, Project, claims, make_project
from vanilla_saas.database.context import ContextSigner

API_ROLES = ("authenticated", "anon")


@pytest.fixture(scope="session")
def crowded(project: Project) -> Project:
    """A project of its own, for two tenants with a row in every table."""
    made = make_project(project.cluster, project.major)
    made.shell().sequence()
    return made


@pytest.fixture(scope="session")
async def world(crowded: Project, signer: ContextSigner) -> World:
    connection = await crowded.connect(ADMIN)
    await connection.fetchval("select vanilla.install_context_key($1, $2)", signer.key_id, signer.key)
    made = await populate(connection, signer)
    await connection.close()
    return made


@pytest.fixture
async def superuser(crowded: Project, world: World) -> asyncpg.Connection:
    connection = await crowded.connect(ADMIN)
    yield connection
    await connection.close()


def claim_contexts(world: World) -> list[Context]:
    a, b = world.a, world.b

    def context(name: str, member: str | None, user: str, given: dict[str, object] | None, before: str = "") -> Context:
        said = json.dumps(given) if given else ""
        return Context(name, "", Caller(member, a.id, user), "injected", before, claims=said)

    return [
        context("no claims", None, a.user.id, None),
        context("user", "user", a.user.id, claims(a.user.id, a.id)),
        context("admin", "admin", a.admin.id, claims(a.admin.id, a.id)),
        context("expired", None, a.admin.id, claims(a.admin.id, a.id, exp=int(time.time()) - 1)),
        context("b claimed by a's admin", None, a.admin.id, claims(a.admin.id, b.id)),
        context("a claimed by b's admin", None, b.admin.id, claims(b.admin.id, a.id)),
        context("b in user_metadata", "user", a.user.id, claims(a.user.id, a.id, user_metadata={"tenant_id": b.id})),
        context(
            "suspended",
            None,
            a.admin.id,
            claims(a.admin.id, a.id),
            f"update public.tenants set status = 'suspended' where id = '{a.id}'",
        ),
    ]


# who has a token is the matrix's of tests/isolation too, without Supabase's roles
@pytest.mark.parametrize("by", ["claims", pytest.param("token", marks=pytest.mark.long)])
async def test_no_api_role_reaches_a_row_of_another_tenant(
    world: World, superuser: asyncpg.Connection, by: str
) -> None:
    before = await world.digest(superuser)
    async with superuser.transaction():
        given = claim_contexts(world) if by == "claims" else None
        report = await run_matrix(superuser, world, roles=API_ROLES, given=given)
        assert await world.digest(superuser) == before
    assert report.violations == []
    assert report.cells.total() > 10_000


@pytest.mark.parametrize("name", sorted(CHECKS))
async def test_the_catalog_obeys_on_supabase_too(name: str, superuser: asyncpg.Connection) -> None:
    assert await CHECKS[name](superuser) == []


async def test_anon_reads_no_table_and_executes_no_function(superuser: asyncpg.Connection) -> None:
    held = await superuser.fetch("""
        select c.oid::regclass::text from pg_class c
        where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm')
          and (has_table_privilege('anon', c.oid, 'select, insert, update, delete, truncate, references, trigger')
               or has_any_column_privilege('anon', c.oid, 'select, insert, update, references'))
        union all
        select p.oid::regprocedure::text from pg_proc p
        where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
          and has_function_privilege('anon', p.oid, 'execute')""")
    assert held == []


async def test_authenticated_may_do_what_vanilla_app_may_and_nothing_else(superuser: asyncpg.Connection) -> None:
    differences = await superuser.fetch("""
        with ours as (select c.oid from pg_class c
            where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and c.relkind in ('r', 'p')),
        held as (
            select l, c.oid::regclass || '.' || a.attname || ' ' || p as what
            from unnest(array['authenticated', 'vanilla_app']) l, unnest(array['select', 'insert', 'update']) p,
                ours c join pg_attribute a on a.attrelid = c.oid
            where has_column_privilege(l, c.oid, a.attnum, p)
            union all
            select l, c.oid::regclass || ' ' || p
            from unnest(array['authenticated', 'vanilla_app']) l, ours c,
                unnest(array['delete', 'truncate', 'trigger', 'references']) p
            where has_table_privilege(l, c.oid, p)
            union all
            select l, p.oid::regprocedure::text from unnest(array['authenticated', 'vanilla_app']) l, pg_proc p
            where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
              and has_function_privilege(l, p.oid, 'execute'))
        select what, array_agg(l) as who from held group by what having count(*) <> 2""")
    assert differences == []
    assert await superuser.fetchval("select has_column_privilege('authenticated', 'users', 'email', 'select')")
    for member in ("authenticated", "anon", "service_role"):
        groups = await superuser.fetchval(
            "select array_agg(roleid::regrole::text) from pg_auth_members where member = $1::text::regrole"
            " and roleid::regrole::text like 'vanilla%'",
            member,
        )
        assert groups == {"authenticated": ["vanilla_app"], "service_role": ["vanilla_readonly"]}.get(member)
