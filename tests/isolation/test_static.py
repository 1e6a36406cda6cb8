"""The catalog itself: policies, grants, keys, indexes, functions and roles are as the design says."""

import asyncpg
import pytest

from tests.isolation.matrix import undone
from tests.isolation.static import CHECKS, GLOBAL_KEYS, UNPINNED
from tests.isolation.static_objects import FUNCTION_OWNERS, NO_TABLE_OWNER, OBJECT_CHECKS, OWNER_DEFINERS

FUNCTION = "create function public.f{} returns {} language {} set search_path = pg_catalog, pg_temp"
BREAKS = {
    "there_are_no_rules_event_triggers_foreign_tables_publications_or_materialised_views": [
        "create rule r as on insert to levels do also nothing",
        FUNCTION.format("()", "event_trigger", "plpgsql")
        + " as 'begin end'; create event trigger e on ddl_command_end execute function public.f()",
        "create foreign data wrapper w",
        "create foreign data wrapper w; create server s foreign data wrapper w",
        "create foreign data wrapper w; create server s foreign data wrapper w; create foreign table t () server s",
        "create publication p for all tables",
        "select lo_create(0)",
        "create materialized view v as select 1 as x",
    ],
    "there_are_no_triggers_but_those_declared": [
        FUNCTION.format("()", "trigger", "plpgsql")
        + " as 'begin end'; create trigger t after insert on levels execute function public.f()",
    ],
    "no_extension_is_needed_or_ours": [
        "set local allow_system_table_mods = on; update pg_extension set extowner = 'vanilla_owner'::regrole",
    ],
    "tables_inherit_from_nothing_but_partitioned_tables": ["create table t () inherits (levels)"],
    "schemas_hold_no_types_operators_casts_or_procedures_that_could_stand_before_others": [
        "create type vanilla.t as enum ('x')",
        "create domain public.d as text",
        "create type public.t",
        "create operator public.=== (leftarg = uuid, rightarg = uuid, procedure = uuid_eq)",
        "create cast (uuid as bytea) with function uuid_send(uuid)",
        "create procedure public.p() language sql as ''",
        "create aggregate public.a(int) (sfunc = int4pl, stype = int)",
        "alter function vanilla.current_tenant_id() leakproof",
        "create function public.f() returns void language internal as 'pg_notify'",
        'create collation public.c from "C"',
    ],
    "functions_set_nothing_but_their_search_path_and_a_planner_setting": [
        "alter function public.create_tenant set row_security = off",
        "alter function public.create_tenant set session_replication_role = replica",
    ],
    "nothing_may_be_granted_on": [
        "grant select on levels to vanilla_operator with grant option",
        "grant select (name) on levels to vanilla_operator with grant option",
        "grant execute on function public.create_tenant to vanilla_operator with grant option",
        "grant usage on schema vanilla to vanilla_app with grant option",
        "do $$ begin execute format('grant connect on database %I to vanilla_app with grant option',"
        " current_database()); end $$",
        "alter default privileges grant select on tables to vanilla_app with grant option",
        "grant usage on type levels to vanilla_app with grant option",
        "grant vanilla_operator to vanilla_system with admin option",
    ],
    "every_object_belongs_to_its_declared_owner": [
        "alter table levels owner to vanilla_definer",
        "alter table vanilla.context_keys owner to vanilla_owner",
        "alter function vanilla.claim owner to vanilla_definer",
        "alter function public.create_tenant owner to vanilla_owner",
        "alter function vanilla.platform security definer",
        "alter schema vanilla owner to vanilla_definer",
    ],
    "default_privileges_are_those_declared": [
        "alter default privileges for role vanilla_owner grant select on tables to vanilla_app",
        "alter default privileges for role vanilla_definer grant execute on functions to public",
        "alter default privileges in schema vanilla grant select on tables to vanilla_app",
    ],
    "our_roles_are_members_as_declared_and_inherit_nothing": [
        "grant vanilla_definer to vanilla_system",
        "grant pg_read_all_data to vanilla_operator",
        "revoke vanilla_keyring from vanilla_owner",
    ],
    "schemas_are_open_as_declared": [
        "grant usage on schema vanilla to public",
        "grant create on schema vanilla to vanilla_definer",
        "revoke usage on schema vanilla from vanilla_operator",
    ],
    "no_row_of_the_catalog_names_a_login_as_owner": ["alter table levels owner to vanilla_app"],
}
"""What each check of static_objects is for, done once."""


def test_every_check_of_objects_is_broken_once() -> None:
    assert set(BREAKS) == OBJECT_CHECKS


@pytest.mark.parametrize(("name", "statement"), [(name, s) for name, each in BREAKS.items() for s in each])
async def test_a_check_sees_what_it_is_for(name: str, statement: str, superuser: asyncpg.Connection) -> None:
    async with undone(superuser):
        await superuser.execute(statement)
        assert await CHECKS[name](superuser) != []


@pytest.mark.parametrize("name", sorted(CHECKS))
async def test_the_catalog_obeys(name: str, superuser: asyncpg.Connection) -> None:
    assert await CHECKS[name](superuser) == []


async def test_every_exception_is_still_needed(superuser: asyncpg.Connection) -> None:
    indexes = {r["relname"] for r in await superuser.fetch("select relname from pg_class where relkind = 'i'")}
    assert set(GLOBAL_KEYS) <= indexes
    for function in UNPINNED:
        source = await superuser.fetchval("select prosrc from pg_proc where oid = $1::text::regprocedure", function)
        assert "pg_catalog." in source
    functions = {
        r["name"]
        for r in await superuser.fetch("select pronamespace::regnamespace || '.' || proname as name from pg_proc")
    }
    assert OWNER_DEFINERS | set(FUNCTION_OWNERS) <= functions
    for relation in NO_TABLE_OWNER:
        assert await superuser.fetchval("select to_regclass($1)", relation)
