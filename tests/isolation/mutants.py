"""Ways to break the isolation of a schema, generated from its catalog."""

import re

import asyncpg

from tests.isolation.catalog import HIDDEN, LOGINS, WRITABLE, Table
from tests.isolation.mutant import Mutant
from tests.isolation.mutants_of_functions import of_functions
from tests.isolation.rows import World

PRIVILEGES = ("select", "insert", "update", "delete", "truncate", "references", "trigger")
INNER_ROLES = ("vanilla_owner", "vanilla_definer", "vanilla_system", "vanilla_keyring", "vanilla_operator")
STRONG_ROLES = (
    *INNER_ROLES,
    "pg_read_all_data",
    "pg_write_all_data",
    "pg_read_server_files",
    "pg_execute_server_program",
)
ATTRIBUTES = ("superuser", "bypassrls", "createrole", "createdb", "replication")


async def mutants(connection: asyncpg.Connection, world: World) -> list[Mutant]:
    """All of them, in an order that does not depend on the run."""
    found: list[Mutant] = []
    for table in world.tables:
        found += _of_partition(table) if table.parent else _of_table(table)
    found += await _of_policies(connection)
    found += await of_functions(connection)
    found += await _of_constraints(connection)
    found += await _of_grants(connection)
    found += _of_roles()
    return sorted(found, key=str)


def _of_table(table: Table) -> list[Mutant]:
    name, only = table.name, (table.name,)
    readable = table.ownership != "platform_only"
    anyone = f"create policy extra on {name}"
    found = [
        Mutant("disable", f"alter table {name} disable row level security", only, visible=readable),
        Mutant("no force", f"alter table {name} no force row level security", only),
        Mutant("policy for all", f"{anyone} to public using (true) with check (true)", only, visible=readable),
        Mutant("policy for app", f"{anyone} for select to vanilla_app using (true)", only, visible=readable),
        Mutant(
            "null tenant",
            f"{anyone} for insert to vanilla_app with check (tenant_id is null)",
            only,
            visible=name in WRITABLE,
        ),
        Mutant("grant to all", f"grant select on {name} to public", only, visible=False),
        Mutant(
            "nullable tenant",
            f"alter table {name} drop constraint {name}_pkey cascade;"
            f" alter table {name} alter column tenant_id drop not null",
            only,
        ),
    ]
    for login in LOGINS:
        found += [
            Mutant("grant", f"grant {p} on {name} to {login}", only) for p in ("truncate", "trigger", "references")
        ]
    found.append(Mutant("grant", f"grant update (tenant_id) on {name} to vanilla_app", only))
    found.append(Mutant("grant", f"grant insert, update, delete on {name} to vanilla_runtime", only))
    found.append(Mutant("grant", f"grant update on {name} to vanilla_readonly", only))
    for column in HIDDEN.get(name, set()):
        found.append(Mutant("secret", f"grant select ({column}) on {name} to vanilla_app", only, visible=True))
        found.append(Mutant("secret", f"grant select ({column}) on {name} to vanilla_readonly", only, visible=True))
    return found


def _of_partition(table: Table) -> list[Mutant]:
    name, only = table.name, (table.name,)
    closed = f"alter table {name} no force row level security; alter table {name} disable row level security"
    return [
        Mutant("partition", f"grant select on {name} to vanilla_app", only),
        Mutant("partition", f"grant select (tenant_id) on {name} to vanilla_readonly", only),
        Mutant("partition", f"{closed}; grant select on {name} to vanilla_app", only, visible=True),
        Mutant("partition", f"grant insert on {name} to vanilla_runtime", only),
        Mutant("partition", f"alter table {name} disable row level security", only),
        Mutant("partition", f"alter table {name} no force row level security", only),
        Mutant("partition", f"create policy extra on {name} to vanilla_app using (true)", only),
    ]


async def _of_policies(connection: asyncpg.Connection) -> list[Mutant]:
    rows = await connection.fetch("""
        select c.relname as table, p.polname as name, p.polname like 'app%' as app, p.polqual is not null as using,
            p.polwithcheck is not null as check,
            array_to_string(array(select r::regrole::text from unnest(p.polroles) r), ', ') as roles,
            pg_get_expr(p.polqual, c.oid) as condition, p.polcmd::text as command
        from pg_policy p join pg_class c on c.oid = p.polrelid
        where c.relnamespace = 'public'::regnamespace and not c.relispartition""")
    found = []
    for row in rows:
        policy, only = f"{row['name']} on {row['table']}", (row["table"],)
        found.append(Mutant("drop", f"drop policy {policy}", only, visible=row["app"]))
        found.append(Mutant("to all", f"alter policy {policy} to public", only))
        found += [Mutant("to a login", f"alter policy {policy} to {r}, {row['roles']}", only)
                  for r in LOGINS if r not in row["roles"]]  # fmt: skip
        if row["using"] and row["condition"] != "true":
            found.append(Mutant("using", f"alter policy {policy} using (true)", only, visible=row["app"]))
            found.append(Mutant("using", f"alter policy {policy} using (false)", only, visible=row["app"]))
            own = "tenant_id = (select vanilla.current_tenant_id())"
            found += [_without_tenant(row, policy, only, number) for number in range(_mentions(row["condition"]))]
            if row["command"] == "r" and own not in row["condition"].lower().strip("()"):
                found.append(Mutant("own tenant", f"alter policy {policy} using ({own} or tenant_id is null)", only))
        if row["check"] and row["app"]:
            found.append(
                Mutant("check", f"alter policy {policy} with check (true)", only, visible=row["command"] == "a")
            )
            found.append(Mutant("check", f"alter policy {policy} with check (false)", only, visible=True))
    return found


async def _of_constraints(connection: asyncpg.Connection) -> list[Mutant]:
    rows = await connection.fetch("""
        select k.conrelid::regclass::text as table, k.conname as name, k.confrelid::regclass::text as target,
            array(select attname::text from unnest(k.conkey) with ordinality u(n, i)
                  join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.n order by i) as columns,
            array(select attname::text from unnest(k.confkey) with ordinality u(n, i)
                  join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.n order by i) as referenced
        from pg_constraint k
        where k.contype = 'f' and k.connamespace = 'public'::regnamespace and k.conparentid = 0""")
    found = []
    for row in rows:
        table, name, target = row["table"], row["name"], row["target"]
        columns, referenced = ", ".join(row["columns"][1:]), ", ".join(row["referenced"][1:])
        if columns != "tenant_id" and target != "user_token_wallets":
            found.append(
                Mutant(
                    "id-only key",
                    f"alter table {table} drop constraint {name};"
                    f" alter table {target} add constraint {target}_only_id_key unique ({referenced});"
                    f" alter table {table} add constraint {name}"
                    f" foreign key ({columns}) references {target} ({referenced})",
                    (table,),
                )
            )
        found.append(
            Mutant(
                "cascade",
                f"alter table {table} drop constraint {name}; alter table {table} add constraint {name}"
                f" foreign key ({', '.join(row['columns'])}) references {target} on delete cascade",
                (table,),
            )
        )
    indexes = await connection.fetch("""
        select i.indexrelid::regclass::text as name from pg_index i
        join pg_constraint k on k.conrelid = i.indrelid and k.contype = 'f' and k.conkey[1:] <@ (i.indkey::int2[])[0:]
        left join pg_constraint c on c.conindid = i.indexrelid and c.contype in ('p', 'u')
        where i.indnkeyatts <= 2 and c.oid is null and (i.indkey::int2[])[1] = k.conkey[2]
          and coalesce(pg_get_expr(i.indpred, i.indrelid), 'IS NOT NULL') like '%IS NOT NULL%'""")
    found += [Mutant("index", f"drop index {row['name']}") for row in indexes]
    found += await _dropped(connection)
    found.append(Mutant("pair", "alter table ai_models drop constraint ai_models_provider_check"))
    found.append(Mutant("object", "grant create on schema public to public"))
    found.append(
        Mutant(
            "object", "do $$ begin execute format('grant temp on database %I to public', current_database()); end $$"
        )
    )
    found.append(Mutant("keys", "grant select on vanilla.context_keys to vanilla_app"))
    found.append(Mutant("view", "create view leak as select * from users; grant select on leak to vanilla_app"))
    return found


TENANT = r"\(tenant_id = \( SELECT vanilla\.current_tenant_id\(\) AS current_tenant_id\)\)"


def _mentions(condition: str) -> int:
    return len(re.findall(TENANT, condition))


def _without_tenant(row: asyncpg.Record, policy: str, only: tuple[str, ...], number: int) -> Mutant:
    """The policy with one of its comparisons of tenants taken out."""
    at = list(re.finditer(TENANT, row["condition"]))[number]
    condition = row["condition"][: at.start()] + "true" + row["condition"][at.end() :]
    return Mutant("without tenant", f"alter policy {policy} using ({condition})", only)


async def _dropped(connection: asyncpg.Connection) -> list[Mutant]:
    """Each constraint and each unique index gone, each column nullable."""
    rows = await connection.fetch("""
        select c.relname as table, k.conname as name, k.contype::text as kind,
            (select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum = k.conkey[1]) as first
        from pg_constraint k join pg_class c on c.oid = k.conrelid
        where k.connamespace = 'public'::regnamespace and k.conparentid = 0 and not c.relispartition""")
    kinds = {"p": "primary key", "f": "foreign key", "u": "unique", "c": "check"}
    found = [
        Mutant(
            f"drop {kinds[r['kind']]}", f"alter table {r['table']} drop constraint {r['name']} cascade", (r["table"],)
        )
        for r in rows
        if r["kind"] in kinds
    ]
    columns = await connection.fetch("""
        select c.relname as table, a.attname as name from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
          and a.attnum > 0 and a.attnotnull and not exists (
            select from pg_index i where i.indrelid = c.oid and i.indisprimary and a.attnum = any (i.indkey))""")
    found += [
        Mutant("nullable", f"alter table {c['table']} alter column {c['name']} drop not null", (c["table"],))
        for c in columns
    ]
    indexes = await connection.fetch("""
        select c.relname as table, i.indexrelid::regclass::text as name
        from pg_index i join pg_class c on c.oid = i.indrelid
        where c.relnamespace = 'public'::regnamespace and i.indisunique and not c.relispartition
          and not exists (select from pg_constraint k where k.conindid = i.indexrelid)""")
    return found + [Mutant("drop unique", f"drop index {i['name']}", (i["table"],)) for i in indexes]


async def _of_grants(connection: asyncpg.Connection) -> list[Mutant]:
    """Each privilege on each table and column given to each login that has it not, and taken from each that has."""
    rows = await connection.fetch(
        """
        select c.relname as table, l as login, p as privilege, null as column, has_table_privilege(l, c.oid, p) as has
        from pg_class c, unnest($1::text[]) l, unnest($2::text[]) p
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        union all
        select c.relname, l, p, a.attname, has_column_privilege(l, c.oid, a.attnum, p)
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped,
            unnest($1::text[]) l, unnest(array['select', 'insert', 'update', 'references']) p
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition""",
        list(LOGINS),
        list(PRIVILEGES),
    )
    found = []
    for row in rows:
        what = f"{row['privilege']} ({row['column']})" if row["column"] else row["privilege"]
        verb, joint = ("revoke", "from") if row["has"] else ("grant", "to")
        kind = f"{verb} {'column' if row['column'] else 'table'}"
        found.append(Mutant(kind, f"{verb} {what} on {row['table']} {joint} {row['login']}", (row["table"],)))
    return found


def _of_roles() -> list[Mutant]:
    found = [
        Mutant("role", f"alter role {role} {attribute}") for role in (*LOGINS, *INNER_ROLES) for attribute in ATTRIBUTES
    ]
    found += [Mutant("role", f"alter role {role} login") for role in INNER_ROLES]
    members = [(role, login) for login in LOGINS for role in STRONG_ROLES]
    members += [(role, login) for login in LOGINS for role in LOGINS if role != login]
    members += [("vanilla_operator", "vanilla_definer"), ("vanilla_keyring", "vanilla_definer")]
    return found + [Mutant("membership", f"grant {role} to {member}") for role, member in members]
