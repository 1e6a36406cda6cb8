"""What must hold in the catalog itself: each check returns one line for every violation."""

import re
from collections.abc import Awaitable, Callable

import asyncpg

from tests.isolation.catalog import HIDDEN, LOGINS, OWNER_COLUMN, PLATFORM, PUBLIC_FLAG, WRITABLE

Check = Callable[[asyncpg.Connection], Awaitable[list[str]]]
CHECKS: dict[str, Check] = {}

GLOBAL_KEYS = {
    "tenants_slug_key": "a tenant is found by its slug before anybody is signed in",
    "api_keys_key_hash_key": "256 random bits: finds the tenant, tells nothing",
    "sessions_token_hash_key": "256 random bits",
    "sessions_refresh_hash_key": "256 random bits",
    "one_time_tokens_token_hash_key": "256 random bits",
    "payment_accounts_endpoint_key": "128 random bits in the address that Stripe calls; its signature is what opens",
    "payment_customers_customer_key": "Stripe's id, unique in the account that takes the payment",
    "payment_subscriptions_subscription_key": "the same",
    "payments_intent_key": "the same",
}
"""Unique keys that are not led by tenant_id, and why each may be."""

UNPINNED = {"vanilla.uuid7()", "vanilla.clock()"}
"""Functions kept as text without a search_path, to inline or be replaced: every name in them is qualified."""

CHAIN_HASHES = {
    ("user_token_wallets", "head"),
    ("user_token_ledger", "hash"),
    ("user_token_ledger", "request_hash"),
    ("user_token_grants", "request_hash"),
    ("payment_accounts", "endpoint"),
    ("level_changes", "request_hash"),
    ("workflow_versions", "hash"),
    ("engine_versions", "hash"),
    ("engine_versions", "price_hash"),
    ("agreement_versions", "hash"),
    ("agreement_acceptances", "hash"),
    ("engine_executions", "config_hash"),
    ("engine_executions", "price_hash"),
    ("workflow_executions", "request_hash"),
    ("resource_allocations", "request_hash"),
    ("agent_versions", "hash"),
    ("agent_run_steps", "arguments_hash"),
}
"""Columns of bytes that hide nothing."""

LED_BY_LESS = {
    "workflow_executions_version_fkey": "a version goes with its workflow, which workflow_executions_workflow_idx tells"
    " to have no execution",
}
"""Foreign keys whose index has not all of their columns, and why that is enough."""

_MINE = "(tenant_id = (SELECT vanilla.current_tenant_id() AS current_tenant_id))"
_ADMIN = "((SELECT vanilla.current_user_role() AS current_user_role) = ANY (ARRAY['admin'::text, 'superadmin'::text]))"


def _owned(column: str) -> str:
    return f"({column} = (SELECT vanilla.current_user_id() AS current_user_id))"


def expected_policies(table: str, ownership: str) -> set[tuple[str, str, str, str | None, str | None]]:
    """(name, command, roles, using, check) of every policy of a table, from its ownership class alone."""
    owned = _owned(OWNER_COLUMN.get(table, "user_id"))
    everything = {
        ("definer", "*", "vanilla_definer", "true", "true"),
        ("system", "*", "vanilla_system", "true", "true"),
        ("operator_select", "r", "vanilla_operator", "true", None),
    }
    if table in (
        "audit_logs",
        "events",
        "user_level_changes",
        "worker_event_logs",
        "routing_decisions",
        "engine_executions",
        "usage_events",
    ):
        everything.add(
            ("operator_delete", "d", "vanilla_operator", "(created_at < (now() - '1 year'::interval))", None)
        )
    elif table != "user_token_ledger":
        everything.add(("operator_delete", "d", "vanilla_operator", "true", None))
    platform = f"((SELECT vanilla.current_tenant_id() AS current_tenant_id) = '{PLATFORM}'::uuid)"
    reads: dict[str, str | None] = {
        "tenant_shared": _MINE,
        "user_owned": f"({_MINE} AND ({owned} OR {_ADMIN}))",
        "user_read": f"({_MINE} AND ({owned} OR {_ADMIN}))",
        "admin_only": f"({_MINE} AND {_ADMIN})",
        "platform_catalog": f"({_MINE} OR ((tenant_id = '{PLATFORM}'::uuid) AND"
        " ((SELECT vanilla.current_tenant_id() AS current_tenant_id) IS NOT NULL)))",
        "tenant_registry": f"({_MINE} OR (((SELECT vanilla.current_user_role() AS current_user_role)"
        f" = 'superadmin'::text) AND {platform}))",
        "platform_only": None,
    }
    if table in PUBLIC_FLAG and ownership == "user_owned":
        reads[ownership] = f"({_MINE} AND ({owned} OR {_ADMIN} OR {PUBLIC_FLAG[table]}))"
    elif table in PUBLIC_FLAG:
        reads[ownership] = f"(({reads[ownership]} AND {PUBLIC_FLAG[table]}) OR ({_MINE} AND {_ADMIN}))"
    if reads[ownership]:
        everything.add(("app_select", "r", "vanilla_app, vanilla_readonly", reads[ownership], None))
    if table in WRITABLE:
        write = f"({_MINE} AND {owned if ownership == 'user_owned' else _ADMIN})"
        everything.add(("app_insert", "a", "vanilla_app", None, write))
        everything.add(("app_update", "w", "vanilla_app", write, write))
        everything.add(("app_delete", "d", "vanilla_app", write, None))
    return everything


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def query(name: str, statement: str) -> None:
    """A check whose rows are its violations."""

    async def run(connection: asyncpg.Connection) -> list[str]:
        return [" ".join(str(v) for v in row.values()) for row in await connection.fetch(statement)]

    CHECKS[name] = run


@check
async def policies_are_those_of_the_ownership_class(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("""
        select c.relname as table, o.ownership, p.polname as name, p.polcmd::text as command,
            p.polpermissive as permissive,
            array_to_string(array(select case r when 0 then 'PUBLIC' else pg_get_userbyid(r) end
                                  from unnest(p.polroles) r order by 1), ', ') as roles,
            pg_get_expr(p.polqual, c.oid) as using, pg_get_expr(p.polwithcheck, c.oid) as check
        from pg_class c
        join vanilla.table_ownership o on o.relation = c.relname
        left join pg_policy p on p.polrelid = c.oid
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition""")
    found: dict[str, set[tuple[str, str, str, str | None, str | None]]] = {}
    for row in rows:
        policies = found.setdefault(row["table"], set())
        if row["name"]:
            command = row["command"] if row["permissive"] else f"restrictive {row['command']}"
            policies.add((row["name"], command, row["roles"], _flat(row["using"]), _flat(row["check"])))
    ownership = {row["table"]: row["ownership"] for row in rows}
    return [
        f"{table}: {'unexpected' if policy in policies else 'missing'} policy {policy}"
        for table, policies in found.items()
        for policy in policies ^ expected_policies(table, ownership[table])
    ]


def _flat(expression: str | None) -> str | None:
    return re.sub(r"\( SELECT", "(SELECT", expression) if expression else None


query(
    "row_level_security_is_enabled_and_forced_on_every_table_and_partition",
    """
    select c.relname, 'enabled', c.relrowsecurity, 'forced', c.relforcerowsecurity from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
      and not (c.relrowsecurity and c.relforcerowsecurity)""",
)
query(
    "policies_name_their_roles_and_writes_have_a_check",
    """
    select polrelid::regclass, polname from pg_policy
    where 0 = any (polroles)
       or (polcmd in ('a', 'w', '*') and polwithcheck is null) or (polcmd in ('w', 'd', 'r', '*') and polqual is null)
       or pg_get_expr(coalesce(polqual, polwithcheck), polrelid) like '% IS NULL%'""",
)
query(
    "partitions_are_closed",
    """
    select c.relname, 'grants', c.relacl::text, '' from pg_class c
    where c.relispartition and c.relkind = 'r' and exists (
        select from aclexplode(c.relacl) a where a.grantee <> c.relowner
            -- pg_dump reads partitions one by one
            and not (a.grantee = 'vanilla_operator'::regrole and a.privilege_type = 'SELECT'))
    union all
    select c.relname, 'column grants', a.attname, '' from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relispartition and a.attacl is not null
    union all
    select c.relname, 'policy', p.polname, '' from pg_policy p join pg_class c on c.oid = p.polrelid
    where c.relispartition
      and not (p.polname = 'owner' and p.polroles = array['vanilla_owner'::regrole::oid])
      and not (p.polname = 'operator_select' and p.polcmd = 'r'
               and p.polroles = array['vanilla_operator'::regrole::oid])""",
)
query(
    "tenant_id_is_a_required_uuid_in_every_table",
    """
    select c.relname from pg_class c
    left join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
      and (a.attname is null or not a.attnotnull or a.atttypid <> 'uuid'::regtype)""",
)
query(
    "tenant_id_leads_every_primary_key_unique_index_and_foreign_key",
    f"""
    select c.relname, x.relname from pg_index i
    join pg_class c on c.oid = i.indrelid and c.relnamespace = 'public'::regnamespace and not c.relispartition
    join pg_class x on x.oid = i.indexrelid
    left join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0] and a.attname = 'tenant_id'
    where i.indisunique and a.attname is null and x.relname <> all (array{list(GLOBAL_KEYS)})
    union all
    select c.relname, 'no primary key' from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
      and not exists (select from pg_constraint k where k.conrelid = c.oid and k.contype = 'p')
    union all
    select k.conrelid::regclass::text, k.conname from pg_constraint k
    join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
    join pg_attribute t on t.attrelid = k.confrelid and t.attnum = k.confkey[1]
    where k.contype = 'f' and k.connamespace = 'public'::regnamespace
      and (t.attname <> 'tenant_id' or (a.attname <> 'tenant_id' and not exists (
        -- a reference to a catalogue row: its tenant is the own one or the platform, by a check
        select from pg_constraint c where c.conrelid = k.conrelid and c.contype = 'c' and c.convalidated
          and pg_get_constraintdef(c.oid) like format('%%%s = tenant_id%%', a.attname)
          and pg_get_constraintdef(c.oid) like format('%%%s = ''{PLATFORM}''::uuid%%', a.attname))))""",
)
query(
    "every_foreign_key_has_an_index_led_by_its_columns_and_never_cascades",
    f"""
    select k.conrelid::regclass, k.conname from pg_constraint k
    where k.contype = 'f' and k.connamespace = 'public'::regnamespace and k.conparentid = 0
      and (k.confdeltype not in ('a', 'r') or not k.convalidated or k.conname <> all (array{list(LED_BY_LESS)})
           and not exists (
        select from pg_index i where i.indrelid = k.conrelid
          and (i.indpred is null or exists (      -- whoever looks for a value of the key looks for one that is not null
            select from pg_attribute a where a.attrelid = k.conrelid and a.attnum = any (k.conkey)
              and pg_get_expr(i.indpred, i.indrelid) = format('(%I IS NOT NULL)', a.attname)))
          and (select array_agg(distinct n) from unnest(k.conkey) n)
            = (select array_agg(distinct n) from unnest((i.indkey::int2[])[0:(
                select count(distinct n) from unnest(k.conkey) n)::int - 1]) n)))""",
)
query(
    "indexes_of_what_every_turn_reads_are_for_their_column_alone",
    """
    select i.indrelid::regclass, i.indexrelid::regclass from pg_index i
    where i.indrelid::regclass::text in
        ('agent_runs', 'agent_run_steps', 'resource_allocations', 'allocation_holds', 'channel_messages')
      and not i.indisunique and i.indpred is null""",
)
query(
    "no_index_repeats_another",
    """
    select a.indrelid::regclass, a.indexrelid::regclass, b.indexrelid::regclass from pg_index a
    join pg_index b on a.indrelid = b.indrelid and a.indexrelid <> b.indexrelid
        and (a.indkey::text = b.indkey::text
             or (b.indkey::text || ' ' like a.indkey::text || ' %' and not a.indisunique))
        and a.indclass[0] = b.indclass[0]
        and coalesce(pg_get_expr(a.indpred, a.indrelid), '') = coalesce(pg_get_expr(b.indpred, b.indrelid), '')
        and coalesce(pg_get_expr(a.indexprs, a.indrelid), '') = coalesce(pg_get_expr(b.indexprs, b.indrelid), '')
    join pg_class c on c.oid = a.indrelid and c.relnamespace = 'public'::regnamespace and not c.relispartition
    join pg_class x on x.oid = a.indexrelid join pg_class y on y.oid = b.indexrelid and x.relam = y.relam""",
)
query(
    "logins_have_no_privilege_beyond_those_declared",
    f"""
    select c.relname, a.grantee::regrole, a.privilege_type from pg_class c, aclexplode(c.relacl) a
    where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm', 'S')
      and (a.grantee = 0 or a.grantee::regrole::text = any (array{list(LOGINS)}))
      -- columns are granted one by one; only rows are deleted as a whole
      and not (a.privilege_type = 'DELETE' and a.grantee = 'vanilla_app'::regrole
               and c.relname = any (array{sorted(WRITABLE)}))
    union all
    select c.relname, a.grantee::regrole, a.privilege_type || ' ' || t.attname
    from pg_attribute t join pg_class c on c.oid = t.attrelid, aclexplode(t.attacl) a
    where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
      and (a.grantee = 0 or a.grantee::regrole::text = any (array{list(LOGINS)}))
      and not (a.privilege_type = 'SELECT' and a.grantee <> 'vanilla_runtime'::regrole)
      and not (a.privilege_type in ('INSERT', 'UPDATE') and a.grantee = 'vanilla_app'::regrole
               and c.relname = any (array{sorted(WRITABLE)}))""",
)
query(
    "nobody_holds_truncate_references_trigger_or_maintain_and_the_ledger_is_append_only",
    """
    select c.relname, a.grantee::regrole, a.privilege_type from pg_class c, aclexplode(c.relacl) a
    where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and a.grantee <> c.relowner
      and (a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN') or a.is_grantable
           or (c.relname = 'user_token_ledger' and a.privilege_type not in ('SELECT', 'INSERT'))
           or (c.relname in ('audit_logs', 'events') and a.privilege_type = 'UPDATE'))""",
)
query(
    "tenant_and_id_are_never_updatable",
    f"""
    select t.attrelid::regclass, t.attname from pg_attribute t, aclexplode(t.attacl) a
    where a.privilege_type = 'UPDATE' and a.grantee::regrole::text = any (array{list(LOGINS)})
      and t.attname in ('tenant_id', 'id', 'user_id')""",
)


query(
    "functions_mean_the_same_under_every_setting_of_a_session",
    # a body is parsed once in a session, perhaps under what injected SQL has set, and no reset parses it again:
    # no literal may depend on standard_conforming_strings or DateStyle, nor anything on setseed
    r"""
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
      and (strpos(regexp_replace(p.prosrc, '\mE''[^'']*''', '', 'gi'), '\') > 0
           or p.prosrc ~ '\mrandom\s*\('
           or p.prosrc ~ '\m(timestamptz|timestamp|date|time)\s+''[^'']*\d'
           or p.prosrc ~ '''[^'']*\d[^'']*''\s*::\s*(timestamp|date|time)')""",
)


@check
async def secret_columns_have_no_column_grant(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch(
        """
        select c.relname as table, a.attname as column, format_type(a.atttypid, null) as type from pg_attribute a
        join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
          and a.attnum > 0 and not a.attisdropped
          and exists (select from unnest($1::text[]) l where has_column_privilege(l, c.oid, a.attnum, 'select'))""",
        list(LOGINS),
    )
    return [
        f"{row['table']}.{row['column']} can be read"
        for row in rows
        if row["column"] in HIDDEN.get(row["table"], set())
        or (
            (row["type"] == "bytea" or re.search(r"secret$|password_hash|_hash$|token", row["column"]))
            and row["type"] not in ("bigint", "integer")
            and (row["table"], row["column"]) not in CHAIN_HASHES
        )
    ]


query(
    "functions_are_for_named_roles_only",
    """
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
      and (p.proacl is null or exists (select from aclexplode(p.proacl) a where a.grantee = 0 or a.is_grantable))""",
)
query(
    "definer_functions_pin_their_search_path_and_belong_to_a_role_that_nobody_logs_in_as",
    """
    select p.oid::regprocedure, p.proconfig from pg_proc p join pg_roles r on r.oid = p.proowner
    where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and p.prosecdef
      and (not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
           or r.rolcanlogin or r.rolsuper or r.rolname not like 'vanilla\\_%')""",
)
query(
    "no_function_resolves_a_name_in_its_callers_search_path",
    f"""
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
      and p.prokind <> 'a' and p.prosqlbody is null
      and not exists (select from unnest(p.proconfig) s where s like 'search_path=%')
      and p.pronamespace::regnamespace || '.' || p.proname || '()' <> all (array{sorted(UNPINNED)})""",
)
query(
    "every_table_and_function_has_a_comment",
    """
    select p.oid::regprocedure::text from pg_proc p
    where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
      and obj_description(p.oid, 'pg_proc') is null
    union all
    select c.oid::regclass::text from pg_class c
    where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm')
      and not c.relispartition and obj_description(c.oid, 'pg_class') is null""",
)
query(
    "no_role_of_ours_stands_above_row_level_security",
    """
    select rolname from pg_roles
    where rolname like 'vanilla\\_%'
      and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)""",
)
query(
    "logins_are_members_of_nothing",
    f"""
    select m.member::regrole, m.roleid::regrole from pg_auth_members m
    where m.member::regrole::text = any (array{list(LOGINS)})""",
)
query(
    "logins_make_no_objects",
    f"""
    select l, p from unnest(array{list(LOGINS)}) l, unnest(array['TEMP', 'CREATE']) p
    where has_database_privilege(l, current_database(), p)
    union all
    select l, n.nspname from pg_namespace n,
        unnest(array{[*LOGINS, "vanilla_definer", "vanilla_system", "vanilla_keyring"]}) l
    where n.nspname in ('public', 'vanilla') and has_schema_privilege(l, n.oid, 'CREATE')""",
)
query(
    "views_run_as_their_caller",
    """
    select c.relname from pg_class c
    where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and c.relkind in ('v', 'm')
      and (c.relkind = 'm' or not coalesce('security_invoker=true' = any (c.reloptions), false))""",
)
query(
    "constraints_are_named_by_table_and_kind",
    """
    select k.conrelid::regclass, k.conname from pg_constraint k
    join pg_class c on c.oid = k.conrelid and not c.relispartition
    where k.connamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
      and k.conname !~ ('^' || c.relname || case k.contype
        when 'p' then '_pkey$' when 'u' then '_[a-z_]+_key$' when 'f' then '_[a-z_]+_fkey$'
        when 'c' then '_[a-z_]+_check$' when 'n' then '_[a-z0-9_]+_not_null$' else '_[a-z_]+_excl$' end)""",
)
query(
    "context_keys_are_for_the_keyring_alone",
    """
    select a.grantee::regrole, a.privilege_type
    from pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
    where c.oid = 'vanilla.context_keys'::regclass and a.grantee <> 'vanilla_keyring'::regrole
    union all
    select c.relowner::regrole, 'owns' from pg_class c
    where c.oid = 'vanilla.context_keys'::regclass and c.relowner <> 'vanilla_keyring'::regrole""",
)
