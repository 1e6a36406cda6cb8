"""Ways to break the isolation of a schema, generated from its catalog."""

from dataclasses import dataclass

import asyncpg

from tests.isolation.catalog import HIDDEN, LOGINS, WRITABLE, Table
from tests.isolation.rows import World


@dataclass(frozen=True)
class Mutant:
    """`tables` are those whose cells are run; `visible` says that a row must leak, so the matrix alone must see it."""

    kind: str
    statement: str
    tables: tuple[str, ...] = ()
    visible: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.statement}"


async def mutants(connection: asyncpg.Connection, world: World) -> list[Mutant]:
    """All of them, in an order that does not depend on the run."""
    found: list[Mutant] = []
    for table in world.tables:
        found += _of_partition(table) if table.parent else _of_table(table)
    found += await _of_policies(connection)
    found += await _of_functions(connection)
    found += await _of_constraints(connection)
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
        Mutant("partition", f"grant select (id) on {name} to vanilla_readonly", only),
        Mutant("partition", f"{closed}; grant select on {name} to vanilla_app", only, visible=True),
        Mutant("partition", f"grant insert on {name} to vanilla_runtime", only),
        Mutant("partition", f"alter table {name} disable row level security", only),
        Mutant("partition", f"alter table {name} no force row level security", only),
        Mutant("partition", f"create policy extra on {name} to vanilla_app using (true)", only),
    ]


async def _of_policies(connection: asyncpg.Connection) -> list[Mutant]:
    rows = await connection.fetch("""
        select c.relname as table, p.polname as name, p.polname like 'app%' as app, p.polqual is not null as using,
            p.polwithcheck is not null as check, pg_get_expr(p.polqual, c.oid) as condition, p.polcmd::text as command
        from pg_policy p join pg_class c on c.oid = p.polrelid
        where c.relnamespace = 'public'::regnamespace and not c.relispartition""")
    found = []
    for row in rows:
        policy, only = f"{row['name']} on {row['table']}", (row["table"],)
        found.append(Mutant("drop", f"drop policy {policy}", only, visible=row["app"]))
        found.append(Mutant("to all", f"alter policy {policy} to public", only))
        if row["using"] and row["condition"] != "true":
            found.append(Mutant("using", f"alter policy {policy} using (true)", only, visible=row["app"]))
            found.append(Mutant("using", f"alter policy {policy} using (false)", only, visible=row["app"]))
            own = "tenant_id = (select vanilla.current_tenant_id())"
            if row["command"] == "r" and own not in row["condition"].lower().strip("()"):
                found.append(Mutant("own tenant", f"alter policy {policy} using ({own} or tenant_id is null)", only))
        if row["check"] and row["app"]:
            found.append(
                Mutant("check", f"alter policy {policy} with check (true)", only, visible=row["command"] == "a")
            )
            found.append(Mutant("check", f"alter policy {policy} with check (false)", only, visible=True))
    return found


async def _of_functions(connection: asyncpg.Connection) -> list[Mutant]:
    rows = await connection.fetch("""
        select p.oid::regprocedure::text as name, p.prosecdef as definer from pg_proc p
        where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)""")
    found = []
    for row in rows:
        found.append(Mutant("function", f"grant execute on function {row['name']} to public"))
        if row["definer"]:
            found.append(Mutant("function", f"alter function {row['name']} reset search_path"))
            found.append(Mutant("function", f"alter function {row['name']} set search_path = pg_temp, pg_catalog"))
            found.append(Mutant("function", f"alter function {row['name']} owner to postgres"))
    return found


async def _of_constraints(connection: asyncpg.Connection) -> list[Mutant]:
    rows = await connection.fetch("""
        select k.conrelid::regclass::text as table, k.conname as name, k.confrelid::regclass::text as target,
            array(select attname::text from unnest(k.conkey) with ordinality u(n, i)
                  join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.n order by i) as columns
        from pg_constraint k
        where k.contype = 'f' and k.connamespace = 'public'::regnamespace and k.conparentid = 0""")
    found = []
    for row in rows:
        table, name, target, column = row["table"], row["name"], row["target"], row["columns"][-1]
        if column != "tenant_id" and target != "user_token_wallets":
            found.append(
                Mutant(
                    "id-only key",
                    f"alter table {table} drop constraint {name};"
                    f" alter table {target} add constraint {target}_only_id_key unique (id);"
                    f" alter table {table} add constraint {name} foreign key ({column}) references {target} (id)",
                )
            )
        found.append(
            Mutant(
                "cascade",
                f"alter table {table} drop constraint {name}; alter table {table} add constraint {name}"
                f" foreign key ({', '.join(row['columns'])}) references {target} on delete cascade",
            )
        )
    indexes = await connection.fetch("""
        select i.indexrelid::regclass::text as name from pg_index i
        join pg_constraint k on k.conrelid = i.indrelid and k.contype = 'f' and k.conkey[1:] <@ (i.indkey::int2[])[0:]
        left join pg_constraint c on c.conindid = i.indexrelid and c.contype in ('p', 'u')
        where i.indnkeyatts <= 2 and i.indpred is null and c.oid is null and (i.indkey::int2[])[1] = k.conkey[2]""")
    found += [Mutant("index", f"drop index {row['name']}") for row in indexes]
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
