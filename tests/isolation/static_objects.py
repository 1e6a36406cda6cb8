"""What there is in the database at all, whose it is, and what comes with it: the rest of the catalog's promises."""

import asyncpg

from tests.isolation.catalog import LOGINS
from tests.isolation.static import CHECKS, check, query

OURS = "('public'::regnamespace, 'vanilla'::regnamespace)"

TRIGGERS = {
    "workflow_versions.workflow_versions_immutable",
    "engine_versions.engine_versions_immutable",
    "agreement_versions.agreement_versions_immutable",
    "protocol_agreements.protocol_agreements_states",
    "agent_versions.agent_versions_immutable",
}
"""`table.trigger` of each trigger that is not a foreign key's: rules of the product are constraints and functions."""

NO_TABLE_OWNER = {"vanilla.context_keys": "vanilla_keyring"}
"""Relations that do not belong to vanilla_owner."""

FUNCTION_OWNERS = {
    "vanilla.claim": "vanilla_keyring",
    "vanilla.context_key_states": "vanilla_keyring",
    "vanilla.expire_context_key": "vanilla_keyring",
    "vanilla.install_context_key": "vanilla_keyring",
    "vanilla.begin_upgrade": "vanilla_owner",
    "vanilla.keep_workflow_version": "vanilla_owner",
    "vanilla.keep_engine_version": "vanilla_owner",
    "vanilla.keep_agreement": "vanilla_owner",
    "vanilla.keep_agreement_version": "vanilla_owner",
    "vanilla.keep_agent_version": "vanilla_owner",
    "vanilla.clock": "vanilla_owner",
    "vanilla.current_tenant_id": "vanilla_owner",
    "vanilla.current_user_id": "vanilla_owner",
    "vanilla.current_user_role": "vanilla_owner",
    "vanilla.delete_log_rows": "vanilla_owner",
    "vanilla.drop_log_month": "vanilla_owner",
    "vanilla.ensure_partitions": "vanilla_owner",
    "vanilla.expected_grants": "vanilla_owner",
    "vanilla.expected_policies": "vanilla_owner",
    "vanilla.expected_protection": "vanilla_owner",
    "vanilla.found_protection": "vanilla_owner",
    "vanilla.log_months": "vanilla_owner",
    "vanilla.map_supabase_roles": "vanilla_owner",
    "vanilla.person_query": "vanilla_owner",
    "vanilla.person_tables": "vanilla_owner",
    "vanilla.platform": "vanilla_owner",
    "vanilla.protect_table": "vanilla_owner",
    "vanilla.protection_drift": "vanilla_owner",
    "vanilla.repair_protection": "vanilla_owner",
    "vanilla.row_conditions": "vanilla_owner",
    "vanilla.refuse": "vanilla_owner",
    "vanilla.refuse_after_upgrade": "vanilla_owner",
    "vanilla.schema_files": "vanilla_owner",
    "vanilla.uuid7": "vanilla_owner",
    "public.get_current_tenant_id": "vanilla_owner",
    "public.get_current_user_id": "vanilla_owner",
}
"""Functions that do not belong to vanilla_definer, which may change every tenant's rows: all others are its."""

OWNER_DEFINERS = {
    "vanilla.delete_log_rows",
    "vanilla.drop_log_month",
    "vanilla.ensure_partitions",
    "vanilla.person_tables",
    "vanilla.schema_files",
}
"""SECURITY DEFINER functions of the owner of the tables: they make and drop months of logs, or tell which files made
the tables and which of them say whose a row is, and do nothing else."""

SETTINGS = {
    "search_path=pg_catalog, pg_temp",
    "enable_seqscan=off",
    "enable_bitmapscan=off",
    "enable_sort=off",
    "enable_hashjoin=off",
    "enable_mergejoin=off",
    "plan_cache_mode=force_generic_plan",
    "jit=off",
    "cursor_tuple_fraction=1",
    "lock_timeout=250ms",
    "lock_timeout=2s",
}
"""What a function may set: never role, row_security or session_replication_role."""

DEFAULT_PRIVILEGES = {
    (role, "f", f"{{{role}=X/{role}}}") for role in ("vanilla_owner", "vanilla_definer", "vanilla_keyring")
}
"""(role, kind, privileges) of what will be made: functions are for nobody but their owner."""

MEMBERSHIPS = {(role, "vanilla_owner") for role in ("vanilla_definer", "vanilla_system", "vanilla_keyring")}
"""(role, member) among our roles: only the owner may become the others, by SET ROLE."""

SCHEMA_PRIVILEGES = {
    "public": {"vanilla_owner": "CU", "pg_database_owner": "CU", "": "U"},
    "vanilla": {"vanilla_owner": "CU", "vanilla_keyring": "U"},
}
"""C: create, U: usage, '': everybody; every other role of ours has usage, nobody else has anything."""

SUPABASE = {"postgres", "anon", "authenticated", "service_role"}
"""Roles to which Supabase opens schema public, where nothing is granted to them."""

_BEFORE = set(CHECKS)


query(
    "there_are_no_rules_event_triggers_foreign_tables_publications_or_materialised_views",
    f"""
    select 'rule', r.rulename::text, r.ev_class::regclass::text from pg_rewrite r join pg_class c on c.oid = r.ev_class
    where c.relnamespace in {OURS} and r.rulename <> '_RETURN'
    union all select 'event trigger', evtname, '' from pg_event_trigger
    union all select 'foreign server', srvname, '' from pg_foreign_server
    union all select 'foreign data wrapper', fdwname, '' from pg_foreign_data_wrapper
    union all select 'publication', pubname, '' from pg_publication
    union all select 'subscription', subname, '' from pg_subscription
        where subdbid = (select oid from pg_database where datname = current_database())
    union all select 'large object', oid::text, '' from pg_largeobject_metadata
    union all select 'relation kind ' || relkind::text, relname, '' from pg_class
        where relnamespace in {OURS} and relkind not in ('r', 'p', 'v', 'i', 'I', 'S', 'c')""",
)
query(
    "there_are_no_triggers_but_those_declared",
    f"""
    select t.tgrelid::regclass, t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
    where not t.tgisinternal and c.relnamespace in {OURS}
      and c.relname || '.' || t.tgname <> all (array{sorted(TRIGGERS)}::text[])""",
)
query(
    "no_extension_is_needed_or_ours",
    """
    select e.extname, e.extowner::regrole from pg_extension e
    where e.extname <> 'plpgsql' or e.extowner::regrole::text like 'vanilla\\_%'""",
)
query(
    "tables_inherit_from_nothing_but_partitioned_tables",
    """
    select i.inhrelid::regclass, i.inhparent::regclass from pg_inherits i join pg_class p on p.oid = i.inhparent
    where p.relkind not in ('p', 'I')""",
)
query(
    "schemas_hold_no_types_operators_casts_or_procedures_that_could_stand_before_others",
    f"""
    select 'type', typname::text from pg_type where typnamespace in {OURS} and typtype not in ('c', 'b')
    union all select 'type', typname from pg_type where typnamespace in {OURS} and typtype = 'b' and typelem = 0
    union all select 'operator', oprname from pg_operator where oprnamespace in {OURS}
    union all select 'operator class', opcname from pg_opclass where opcnamespace in {OURS}
    union all select 'collation', collname from pg_collation where collnamespace in {OURS}
    union all select 'cast', c.castsource::regtype || ' to ' || c.casttarget::regtype from pg_cast c
        where c.oid >= 16384
    union all select 'procedure or aggregate', proname from pg_proc where pronamespace in {OURS} and prokind <> 'f'
        and proname <> 'ledger_chain'      -- of vanilla, called by its full name
    union all select 'leakproof', proname from pg_proc where pronamespace in {OURS} and proleakproof
    union all select 'language', proname from pg_proc p join pg_language l on l.oid = p.prolang
        where pronamespace in {OURS} and prokind = 'f' and l.lanname not in ('sql', 'plpgsql')""",
)
query(
    "functions_set_nothing_but_their_search_path_and_a_planner_setting",
    f"""
    select p.oid::regprocedure, s from pg_proc p, unnest(p.proconfig) s
    where p.pronamespace in {OURS} and s <> all (array{sorted(SETTINGS)})""",
)
query(
    "nothing_may_be_granted_on",
    f"""
    select 'relation', c.relname::text, a.grantee::regrole::text from pg_class c, aclexplode(c.relacl) a
        where a.is_grantable and c.relnamespace in {OURS}
    union all select 'column', t.attrelid::regclass || '.' || t.attname, a.grantee::regrole::text
        from pg_attribute t, aclexplode(t.attacl) a where a.is_grantable
    union all select 'function', p.oid::regprocedure::text, a.grantee::regrole::text
        from pg_proc p, aclexplode(p.proacl) a where a.is_grantable and p.pronamespace in {OURS}
    union all select 'schema', n.nspname, a.grantee::regrole::text from pg_namespace n, aclexplode(n.nspacl) a
        where a.is_grantable and n.nspname in ('public', 'vanilla')
    union all select 'type', t.typname, a.grantee::regrole::text from pg_type t, aclexplode(t.typacl) a
        where a.is_grantable
    union all select 'database', d.datname, a.grantee::regrole::text from pg_database d, aclexplode(d.datacl) a
        where a.is_grantable and d.datname = current_database()
    union all select 'default', d.defaclrole::regrole::text, a.grantee::regrole::text
        from pg_default_acl d, aclexplode(d.defaclacl) a where a.is_grantable
    union all select 'membership', m.member::regrole::text, m.roleid::regrole::text from pg_auth_members m
        where m.admin_option and m.member::regrole::text like 'vanilla\\_%'""",
)


@check
async def every_object_belongs_to_its_declared_owner(connection: asyncpg.Connection) -> list[str]:
    relations = await connection.fetch(f"""
        select relnamespace::regnamespace || '.' || relname as name, relowner::regrole::text as owner from pg_class
        where relnamespace in {OURS} and relkind not in ('i', 'I', 'c')""")
    functions = await connection.fetch(f"""
        select pronamespace::regnamespace || '.' || proname as name, proowner::regrole::text as owner, prosecdef
        from pg_proc where pronamespace in {OURS}""")
    found = [
        f"{r['name']} belongs to {r['owner']}"
        for r in relations
        if r["owner"] != NO_TABLE_OWNER.get(r["name"], "vanilla_owner")
    ]
    for f in functions:
        if f["owner"] != FUNCTION_OWNERS.get(f["name"], "vanilla_definer"):
            found.append(f"{f['name']} belongs to {f['owner']}")
        if f["prosecdef"] and f["owner"] == "vanilla_owner" and f["name"] not in OWNER_DEFINERS:
            found.append(f"{f['name']} acts as the owner of the tables")
    owner = await connection.fetchval("select nspowner::regrole::text from pg_namespace where nspname = 'vanilla'")
    return found + ([] if owner == "vanilla_owner" else [f"schema vanilla belongs to {owner}"])


@check
async def default_privileges_are_those_declared(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("""
        select defaclrole::regrole::text as role, defaclobjtype::text as kind, defaclacl::text as acl,
            defaclnamespace::bigint as schema from pg_default_acl
        where defaclrole::regrole::text like 'vanilla\\_%' or defaclnamespace = 'vanilla'::regnamespace""")
    found = {(r["role"], r["kind"], r["acl"]) for r in rows if not r["schema"]}
    return [f"{privilege}" for privilege in found ^ DEFAULT_PRIVILEGES] + [
        f"in schema {r['schema']}: {r['acl']}" for r in rows if r["schema"]
    ]


@check
async def our_roles_are_members_as_declared_and_inherit_nothing(connection: asyncpg.Connection) -> list[str]:
    inherits = "m.inherit_option" if connection.get_server_version().major >= 16 else "r.rolinherit"
    rows = await connection.fetch(f"""
        select m.roleid::regrole::text as role, m.member::regrole::text as member, {inherits} as inherits
        from pg_auth_members m join pg_roles r on r.oid = m.member where r.rolname like 'vanilla\\_%'""")
    found = {(r["role"], r["member"]) for r in rows}
    return [f"{pair}" for pair in found ^ MEMBERSHIPS] + [f"{r['member']} inherits" for r in rows if r["inherits"]]


@check
async def schemas_are_open_as_declared(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("""
        select n.nspname as schema, case when a.grantee = 0 then '' else a.grantee::regrole::text end as role,
            string_agg(left(a.privilege_type, 1), '' order by a.privilege_type) as privileges
        from pg_namespace n, aclexplode(n.nspacl) a where n.nspname in ('public', 'vanilla') group by 1, 2""")
    usage = {"vanilla_definer", "vanilla_system", "vanilla_operator", *LOGINS}
    found = {(r["schema"], r["role"], r["privileges"]) for r in rows if r["role"] not in SUPABASE}
    declared = {
        (schema, role, privileges)
        for schema, roles in SCHEMA_PRIVILEGES.items()
        for role, privileges in (roles | dict.fromkeys(usage, "U")).items()
    }
    return [f"{entry}" for entry in found ^ declared]


query(
    "no_row_of_the_catalog_names_a_login_as_owner",
    f"""
    select d.classid::regclass, d.objid from pg_shdepend d
    where d.deptype = 'o' and d.dbid = (select oid from pg_database where datname = current_database())
      and d.refclassid = 'pg_authid'::regclass
      and d.refobjid::regrole::text = any (array{list(LOGINS)})""",
)

OBJECT_CHECKS = set(CHECKS) - _BEFORE
