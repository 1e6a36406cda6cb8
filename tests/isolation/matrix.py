"""The isolation matrix: every table and partition x login x context x attempt, as one transaction that is rolled back.

Foreign keys are off while it runs (session_replication_role), so that a blind delete of A's own rows can be counted;
checks, keys and not-null constraints stay on, and reaching one of them means that a policy let the row through.
"""

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from tests.isolation.catalog import ACTS_AS, HIDDEN, LOGINS, PLATFORM, Table
from tests.isolation.rows import World
from vanilla_saas.database.context import ContextSigner

OTHER_KEY = ContextSigner(b"\x07" * 32)
REFUSED = ("42501", "VS401")


@dataclass(frozen=True)
class Context:
    """A claim to be somebody: `member` is whom the database must take them for (user, admin, None: nobody).

    `claims` is what PostgREST sets in a session of `authenticator` instead of a token.
    """

    name: str
    token: str
    member: str | None
    user: str
    suspended: bool = False
    claims: str | None = None


def contexts(world: World) -> list[Context]:
    a, b = world.a, world.b
    expired = a.token(world.signer, a.admin, lifetime_s=-1)
    swapped = a.token(world.signer, b.user)
    return [
        Context("none", "", None, a.user.id),
        Context("user", a.token(world.signer, a.user), "user", a.user.id),
        Context("admin", a.token(world.signer, a.admin), "admin", a.admin.id),
        Context("expired", expired, None, a.admin.id),
        Context("forged", b.token(OTHER_KEY, b.admin), None, b.admin.id),
        Context("user of b in tenant a", swapped, "user", b.user.id),
        Context("suspended", a.token(world.signer, a.admin), None, a.admin.id, suspended=True),
    ]


@dataclass(frozen=True)
class Attempt:
    """A statement and the number of rows it must reach: 0 is satisfied by a refusal, anything else is not.

    `returns` is the answer that a query must give instead of a number of rows.
    """

    name: str
    statement: str
    rows: int = 0
    writes: bool = True
    returns: str | None = None


@asynccontextmanager
async def rolled_back(connection: asyncpg.Connection, name: str) -> AsyncIterator[None]:
    await connection.execute(f"savepoint {name}")
    try:
        yield
    finally:
        await connection.execute(f"rollback to savepoint {name}; release savepoint {name}")


async def run_matrix(
    connection: asyncpg.Connection,
    world: World,
    tables: Iterable[Table] | None = None,
    roles: Iterable[str] = LOGINS,
    only: set[str] | None = None,
    given: Iterable[Context] | None = None,
) -> list[str]:
    """Violations, one line each; runs inside the caller's transaction and leaves no change in it."""
    tables = list(tables or world.tables)
    found: list[str] = []
    async with rolled_back(connection, "matrix"):
        await connection.execute("set local session_replication_role = replica")
        digests = {t.name: await world.digest(connection, [t.parent or t.name]) for t in tables}
        for context in given or contexts(world):
            if only and context.name not in only:
                continue
            for role in roles:
                cells = [(t, await attempts(connection, world, t, role, context)) for t in tables]
                async with rolled_back(connection, "cell"):
                    if context.suspended:
                        await connection.execute(
                            "update public.tenants set status = 'suspended' where id = $1", world.a.id
                        )
                    await become(connection, role, context)
                    if not await enter(connection, role, context):
                        found.append(f"{role}, {context.name}: the context was accepted")
                    for table, cell in cells:
                        for attempt in cell:
                            problem = await _try(connection, world, table, attempt, digests[table.name])
                            if problem:
                                found.append(f"{table.name}, {role}, {context.name}, {attempt.name}: {problem}")
    return found


async def become(connection: asyncpg.Connection, role: str, context: Context) -> None:
    if context.claims is not None:
        await connection.execute("set local session authorization authenticator")
    await connection.execute(f"set local role {role}")


async def enter(connection: asyncpg.Connection, role: str, context: Context) -> bool:
    """Sets the context as injected SQL would, past set_context; a suspended tenant's must be refused by set_context."""
    if context.claims is not None:
        await connection.fetchval("select set_config('request.jwt.claims', $1, true)", context.claims)
    elif not context.suspended:
        await connection.fetchval("select set_config('vanilla.context', $1, true)", context.token)
    if not context.suspended:
        return True
    check = (
        "select vanilla.set_context($1)" if context.claims is None else "select vanilla.current_tenant_id(), $1::text"
    )
    try:
        async with connection.transaction():
            await connection.fetchval(check, context.token)
    except asyncpg.PostgresError as error:
        return error.sqlstate == "VS401" or ACTS_AS.get(role, role) == "vanilla_runtime"
    return False


async def _try(connection: asyncpg.Connection, world: World, table: Table, attempt: Attempt, digest: str) -> str | None:
    """What went wrong, or None. A write that was accepted is compared with the digest of everybody else's rows."""
    await connection.execute("savepoint attempt")
    try:
        if attempt.returns is not None:
            answer = await connection.fetchval(attempt.statement)
            return None if answer == attempt.returns else "other rows are visible than the ownership class says"
        reached = rows_of(await connection.execute(attempt.statement))
        if attempt.writes and reached:
            await connection.execute("set local session authorization default; set local role none")
            if await world.digest(connection, [table.parent or table.name]) != digest:
                return f"{reached} rows written, and rows of others changed"
        return None if reached == attempt.rows else f"{reached} rows instead of {attempt.rows}"
    except asyncpg.PostgresError as error:
        if error.sqlstate not in REFUSED:
            return f"not refused but stopped by {error.sqlstate} {error}"
        return None if attempt.rows == 0 and not attempt.returns else f"refused: {error}"
    finally:
        await connection.execute("rollback to savepoint attempt; release savepoint attempt")


def rows_of(status: str) -> int:
    """The rows of a command's status; a command that does not count them (TRUNCATE TABLE) has reached something."""
    count = status.rsplit(" ", 1)[-1]
    return int(count) if count.isdigit() else 1


async def attempts(
    connection: asyncpg.Connection, world: World, table: Table, role: str, context: Context
) -> list[Attempt]:
    """Every attempt on a table; counted and read by the superuser under the promise of the design."""
    name = f"public.{table.name}"
    like = ACTS_AS.get(role, role)
    visible = table.visible(context.member, world.a.id, context.user) if like != "vanilla_runtime" else None
    if visible and visible != "false":
        keys = f"concat_ws('|', {', '.join(table.primary_key)})"
        seen = f"select coalesce(md5(string_agg({keys}, ',' order by {keys})), 'nothing') from {name}"
        read = Attempt("own rows", seen, returns=await connection.fetchval(f"{seen} where {visible}"))
    else:
        read = Attempt("no rows", f"select 1 from {name}", writes=False)
    changeable = table.changeable(like, context.member, world.a.id, context.user)
    own = await connection.fetchval(f"select count(*) from {name} where {changeable}") if changeable else 0
    privileges = await _privileges(connection, table, role)
    row_a, row_b = await template(connection, table, world.a.id), await template(connection, table, world.b.id)
    return [read, *_reads(table, world), *_writes(table, world, privileges, row_a, row_b, own)]


async def template(connection: asyncpg.Connection, table: Table, tenant: str) -> dict[str, object]:
    """A row of the tenant as JSON."""
    return json.loads(
        await connection.fetchval(
            f"select to_jsonb(x) from public.{table.name} x where tenant_id = $1 order by x::text limit 1", tenant
        )
    )


async def _privileges(connection: asyncpg.Connection, table: Table, role: str) -> asyncpg.Record:
    return await connection.fetchrow(
        """
        select array(select attname::text from pg_attribute where attrelid = $1::regclass and attnum > 0
                     and not attisdropped and has_column_privilege($2, attrelid, attnum, 'insert')) as insert,
               array(select attname::text from pg_attribute where attrelid = $1::regclass and attnum > 0
                     and not attisdropped and has_column_privilege($2, attrelid, attnum, 'update')) as update""",
        f"public.{table.name}",
        role,
    )


def _reads(table: Table, world: World) -> Iterator[Attempt]:
    name, b = f"public.{table.name}", world.b.id
    foreign = f"from {name} where tenant_id is distinct from '{world.a.id}' and tenant_id <> '{PLATFORM}'"
    yield Attempt("select of others", f"select 1 {foreign}", writes=False)
    yield Attempt("select of b", f"select 1 from {name} where tenant_id = '{b}'", writes=False)
    yield Attempt("lock of others", f"select 1 {foreign} for update", writes=False)
    for column in sorted(HIDDEN.get(table.name, set())):
        yield Attempt(f"select of {column}", f"select {column} from {name}", writes=False)
        yield Attempt(f"row with {column}", f"select to_jsonb(x) from {name} x", writes=False)
        yield Attempt(f"order by {column}", f"select 1 from {name} order by {column}", writes=False)


def _writes(
    table: Table,
    world: World,
    privileges: asyncpg.Record,
    row_a: dict[str, object],
    row_b: dict[str, object],
    own: int,
) -> Iterator[Attempt]:
    b, name = world.b.id, f"public.{table.name}"
    # only columns that are granted: else the column grant would refuse before any policy is asked
    columns = list(privileges["insert"]) or [c.name for c in table.columns]
    # a column that no key holds, so that setting it to one value for all rows offends nothing but a policy
    settable = next((c for c in privileges["update"] if c not in table.unique_columns), table.columns[-1].name)
    value = f"(jsonb_populate_record(null::{name}, {literal(row_a)})).{settable}"

    def insert(**given: object) -> str:
        return insertion(table, columns, fresh(table, row_a) | given)

    yield Attempt("blind update", f"update {name} set {settable} = {value}", rows=own)
    yield Attempt("blind delete", f"delete from {name}", rows=own)
    yield Attempt("update of b", f"update {name} set {settable} = {value} where tenant_id = '{b}'")
    yield Attempt("delete of b", f"delete from {name} where tenant_id = '{b}'")
    yield Attempt("move to b", f"update {name} set tenant_id = '{b}'")
    yield Attempt("insert for own tenant", insert(), rows=1 if own else 0)
    yield Attempt("insert for b", insertion(table, columns, fresh(table, row_b)))
    yield Attempt("insert for b with a's values", insert(tenant_id=b))
    yield Attempt("insert for the platform", insert(tenant_id=PLATFORM))
    yield Attempt("insert for no tenant", insert(tenant_id=None))
    over_b = insertion(table, columns, row_b)
    keys = ", ".join(table.primary_key)
    yield Attempt("insert over b", f"{over_b} on conflict do nothing")
    yield Attempt("upsert over b", f"{over_b} on conflict ({keys}) do update set {settable} = excluded.{settable}")
    merge = f"merge into {name} t using (select 1) s on t.tenant_id = '{b}'"
    yield Attempt("merge over b", f"{merge} when matched then update set {settable} = {value}")
    yield Attempt("truncate", f"truncate {name} cascade")
    if table.owner and table.owner != "id":
        yield Attempt("insert with b's user", insert(**{table.owner: world.b.user.id}))
        yield Attempt("insert for another member", insert(**{table.owner: world.a.other.id}))
        yield Attempt("insert for b with own user", insert(tenant_id=b, **{table.owner: world.a.user.id}))
    if table.parent:
        yield Attempt("detach", f"alter table public.{table.parent} detach partition {name}")


def fresh(table: Table, row: dict[str, object]) -> dict[str, object]:
    """The row under keys that nobody has."""
    referencing = {column for key in table.foreign_keys for column in key.columns}
    made = dict(row)
    for name in table.unique_columns - referencing - {"tenant_id", "user_id"}:
        column = table.column(name)
        if column.type == "uuid":
            made[name] = "ffffffff-0000-7000-8000-000000000001"
        elif column.type == "text" and made[name] is not None:
            made[name] = f"{made[name]}.fresh" if name == "key" else f"fresh{str(made[name])[5:]}"
        elif column.type == "bytea":
            made[name] = "\\x" + "ab" * 32
        elif column.type == "bigint":
            made[name] = 10**12
    return made


def insertion(table: Table, columns: list[str], row: dict[str, object]) -> str:
    names = ", ".join(columns)
    record = f"jsonb_populate_record(null::public.{table.name}, {literal(row)})"
    return f"insert into public.{table.name} ({names}) select {names} from {record}"


def literal(row: dict[str, object]) -> str:
    return "'" + json.dumps(row).replace("'", "''") + "'"
