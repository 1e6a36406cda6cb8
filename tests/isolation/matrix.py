"""The isolation matrix: every relation x login x context x command, in a transaction that is rolled back.

Foreign keys are off while it runs (session_replication_role), so that a blind delete of A's own rows can be counted;
checks, keys and not-null constraints stay on, and reaching one of them means that a policy let the row through. The
attempts that vary references run with the foreign keys on.
"""

import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import asyncpg

from tests.isolation.canaries import alike
from tests.isolation.catalog import ACTS_AS, LOGINS, Closed, Table, read_relations
from tests.isolation.commands import COMMANDS, Attempt, Place, closed_attempts, commands_of, keys_of
from tests.isolation.contexts import Context, become, contexts, enter
from tests.isolation.rows import World

FOREIGN_KEYS_ON = {"references"}
UNDO = "rollback to savepoint attempt;"
"""Sent before an attempt, in the same message where that can be: undoes the one before, its role and its error."""


BENCH = """
    create schema bench;
    create function bench.run(p_statements text[], p_rows boolean[], out state text, out reached bigint, out told text)
    returns setof record language plpgsql as $f$
    declare
        v_row record;
    begin
        for i in 1 .. cardinality(p_statements) loop
            state := '';
            reached := 0;
            told := '';
            begin
                if p_rows[i] then
                    for v_row in execute p_statements[i] loop
                        reached := reached + 1;
                        told := told || v_row::text;
                    end loop;
                else
                    execute p_statements[i];
                    get diagnostics reached = row_count;
                end if;
                raise exception using errcode = 'VSUND';
            exception when sqlstate 'VSUND' then null; when others then
                declare
                    v_detail text; v_hint text; v_column text; v_constraint text; v_table text;
                begin
                    get stacked diagnostics v_detail = pg_exception_detail, v_hint = pg_exception_hint,
                        v_column = column_name, v_constraint = constraint_name, v_table = table_name;
                    state := sqlstate;
                    reached := 0;
                    told := concat_ws(' ', sqlerrm, v_detail, v_hint, v_column, v_constraint, v_table);
                end;
            end;
            return next;
        end loop;
    end
    $f$;
    grant usage on schema bench to public;
"""
"""Runs statements as its caller, each undone, and returns what each was answered: one round trip for a table."""


@dataclass(frozen=True)
class Cell:
    relation: str
    login: str
    context: str
    command: str


@dataclass
class Report:
    """What was tried and what went wrong, one line each."""

    cells: Counter[Cell] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """The SQLSTATE (empty: accepted), the rows reached, and everything that was told: rows, errors, notices."""

    state: str
    rows: int
    told: str


@asynccontextmanager
async def rolled_back(connection: asyncpg.Connection, name: str) -> AsyncIterator[None]:
    await connection.execute(f"savepoint {name}")
    try:
        yield
    finally:
        await connection.execute(f"rollback to savepoint {name}; release savepoint {name}")


@asynccontextmanager
async def undone(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """A transaction that leaves nothing."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


class Notices:
    """What the server says beside its answers, down to DEBUG1."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        said = message.as_dict()
        # how many entries a session's catalog cache holds is its own business
        if said.get("server_source_filename") != "catcache.c":
            self.said.append(str(said))

    def take(self) -> str:
        said, self.said = "".join(self.said), []
        return said


@asynccontextmanager
async def listening(connection: asyncpg.Connection) -> AsyncIterator[Notices]:
    """Within a transaction: collects the notices of a connection."""
    notices = Notices()
    connection.add_log_listener(notices)
    await connection.execute("set local client_min_messages = debug1")
    try:
        yield notices
    finally:
        connection.remove_log_listener(notices)


async def run_matrix(
    connection: asyncpg.Connection,
    world: World,
    tables: Iterable[Table] | None = None,
    roles: Iterable[str] = LOGINS,
    only: set[str] | None = None,
    commands: set[str] | None = None,
    given: Iterable[Context] | None = None,
) -> Report:
    """Runs inside the caller's transaction and leaves no change in it. Tables named: only they, else all relations."""
    run = _Run(connection, world, commands or set(COMMANDS))
    chosen = list(tables or world.tables)
    closed = [] if tables else world.closed
    async with rolled_back(connection, "matrix"), listening(connection) as run.notices:
        await connection.execute(BENCH)
        for context in given or contexts(world):
            if only and context.name not in only:
                continue
            for role in roles:
                await run.cells_of(context, role, chosen, closed)
    return run.report


class _Run:
    def __init__(self, connection: asyncpg.Connection, world: World, commands: set[str]) -> None:
        self.connection, self.world, self.commands = connection, world, commands
        self.report = Report()
        self.notices = Notices()
        self.facts = Facts(connection)

    async def cells_of(self, context: Context, role: str, tables: list[Table], closed: list[Closed]) -> None:
        places = [await place(self.facts, self.world, table, role, context) for table in tables]
        shown = [await self._shown(p) for p in places]
        for replication, commands in (
            ("replica", self.commands - FOREIGN_KEYS_ON),
            ("origin", self.commands & FOREIGN_KEYS_ON),
        ):
            async with self._entered(context, role, replication):
                for p, visible in zip(places, shown, strict=True):
                    cells = [
                        (Cell(p.name, role, context.name, command), attempt)
                        for command, attempts in COMMANDS.items()
                        if command in commands
                        for attempt in attempts(p)
                    ]
                    await self._try_all(cells, p, visible)
                for relation in closed if replication == "replica" else []:
                    await self._try_all(
                        [(Cell(relation.name, role, context.name, c), a) for c, a in closed_attempts(relation)]
                    )

    @asynccontextmanager
    async def _entered(self, context: Context, role: str, replication: str) -> AsyncIterator[None]:
        async with rolled_back(self.connection, "cell"):
            await self.connection.execute(f"{context.given}; set local session_replication_role = {replication}")
            await become(self.connection, role, context)
            if problem := await enter(self.connection, role, context):
                self.report.violations.append(f"{role}, {context.name}: {problem}")
            await self.connection.execute("savepoint attempt")
            yield

    async def _try_all(self, cells: list[tuple[Cell, Attempt]], p: Place | None = None, shown: str = "") -> None:
        """The attempts at one relation, those that are statements in one round trip, each with its twin after it."""
        here = [attempt for _, attempt in cells if not attempt.how.startswith("copy")]
        twins = [replace(attempt, statement=attempt.twin, twin=None) for attempt in here if attempt.twin]
        self.notices.take()
        told = await self._run_all([*here, *twins])
        answers, others = iter(told), iter(told[len(here) :])
        said = self.notices.take()
        if leaked := self.world.leaks(said, shown + "".join(a.statement for a in [*here, *twins])):
            self.report.violations.append(
                f"{', '.join(astuple(cells[0][0])[:3])}, a notice: tells {sorted(leaked)[:3]}"
            )
        for cell, attempt in cells:
            self.report.cells[cell] += 1
            if attempt.how.startswith("copy"):
                outcome = await perform(self.connection, attempt, self.notices, UNDO)
            else:
                outcome = next(answers)
            given = attempt.statement + attempt.data.decode() + shown
            problem = problem_of(attempt, outcome, self.world.leaks(outcome.told, given))
            if not problem and p and attempt.writes and not outcome.state and outcome.rows:
                problem = await self._touched(attempt, p)
            if attempt.twin and not alike_outcomes(outcome, other := next(others)):
                problem = problem or f"is told from an id that nobody has: {outcome} {other}"
            if problem:
                label = f"{cell.relation}, {cell.login}, {cell.context}, {cell.command} {attempt.name}"
                self.report.violations.append(f"{label}: {problem}")

    async def _run_all(self, attempts: list[Attempt]) -> list[Outcome]:
        if not attempts:
            return []
        await self.connection.execute(UNDO)
        rows = await self.connection.fetch(
            "select * from bench.run($1, $2)",
            [attempt.statement for attempt in attempts],
            [attempt.how in ("rows", "plan") for attempt in attempts],
        )
        return [Outcome(row["state"], row["reached"], row["told"]) for row in rows]

    async def _shown(self, p: Place) -> str:
        """The rows that the caller may see: what is in them is no leak."""
        condition = p.table.visible(p.caller) if p.seen_keys is not None else None
        if not condition:
            return ""
        return await self.facts(f"select string_agg(x::text, ' ') from {p.name} x where {condition}") or ""

    async def _touched(self, attempt: Attempt, p: Place) -> str | None:
        """Makes an accepted write again, and looks whether it changed a row of somebody else."""
        table, tenant = p.table.parent or p.table.name, p.caller.tenant
        digests = []
        for statement in ("select 1", attempt.statement):
            await self.connection.execute(f"{UNDO} {statement}")
            await self.connection.execute("set local session authorization default; set local role none")
            digests.append(await self.world.digest(self.connection, [table], but=tenant))
        await self.connection.execute(UNDO)
        return None if digests[0] == digests[1] else "another tenant's rows changed"


def alike_outcomes(one: Outcome, other: Outcome) -> bool:
    return (one.state, one.rows, alike(one.told)) == (other.state, other.rows, alike(other.told))


class Facts:
    """What a superuser finds in the world, asked once: nothing that the matrix does stays."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.known: dict[str, Any] = {}

    async def __call__(self, query: str) -> Any:
        if query not in self.known:
            self.known[query] = await self.connection.fetchval(query)
        return self.known[query]


async def perform(
    connection: asyncpg.Connection, attempt: Attempt, notices: Notices | None = None, undo: str = ""
) -> Outcome:
    """Sends the statement, after undoing what was before it; the caller undoes this one."""
    state, rows, told = "", 0, ""
    if undo and attempt.how != "status":
        await connection.execute(undo)
    try:
        if attempt.how == "status":
            rows = rows_of(await connection.execute(undo + attempt.statement))
        elif attempt.how == "copy out":
            rows, told = await _copy_out(connection, attempt)
        elif attempt.how == "copy in":
            done = await connection.copy_to_table(
                attempt.statement.rpartition(".")[2],
                schema_name=attempt.statement.rpartition(".")[0] or "public",
                source=io.BytesIO(attempt.data),
                columns=attempt.columns or None,
                format="csv",
            )
            rows = rows_of(done)
        else:
            records = await connection.fetch(attempt.statement)
            rows, told = len(records), str([tuple(r.values()) for r in records])
    except asyncpg.PostgresError as error:
        state, told = error.sqlstate, str(error.as_dict())
    return Outcome(state, rows, told + (notices.take() if notices else ""))


async def _copy_out(connection: asyncpg.Connection, attempt: Attempt) -> tuple[int, str]:
    buffer = io.BytesIO()
    if attempt.columns:
        done = await connection.copy_from_table(
            attempt.statement, schema_name="public", columns=attempt.columns, output=buffer
        )
    else:
        done = await connection.copy_from_query(attempt.statement, output=buffer)
    return rows_of(done), buffer.getvalue().decode()


def problem_of(attempt: Attempt, outcome: Outcome, leaked: set[str]) -> str | None:
    """What went wrong, or None."""
    if leaked:
        return f"tells {sorted(leaked)[:3]}"
    if outcome.state:
        if outcome.state not in attempt.refusals:
            return f"not refused but stopped by {outcome.state} {outcome.told[:300]}"
        return f"refused: {outcome.told[:300]}" if attempt.rows else None
    if attempt.must_refuse:
        return "accepted"
    if attempt.answer is not None and attempt.answer not in outcome.told:
        return "other rows are visible than the ownership class says"
    if attempt.rows is not None and outcome.rows != attempt.rows:
        return f"{outcome.rows} rows instead of {attempt.rows}"
    return None


def rows_of(status: str) -> int:
    """Rows of a command tag; DDL has none and counts as one, for it must not happen at all."""
    return int(status.split()[-1]) if status.split()[-1].isdigit() else 1


async def place(facts: Facts, world: World, table: Table, role: str, context: Context) -> Place:
    """What a login must find in a table: a superuser's figures."""
    name, caller, like = f"public.{table.name}", context.caller, ACTS_AS.get(role, role)
    visible = table.visible(caller) if like != "vanilla_runtime" else None
    changeable, seen = table.changeable(like, caller) or "false", visible or "false"
    own, b = f"({seen}) and tenant_id = '{caller.tenant}'", f"({seen}) and tenant_id = '{world.b.id}'"
    figures = ", ".join(f"count(*) filter (where {condition})" for condition in (changeable, seen, own, b))
    counts = await facts(f"select array[{figures}] from {name}")
    return Place(
        world=world,
        table=table,
        role=like,
        caller=caller,
        version=facts.connection.get_server_version().major,
        insertable=await _columns(facts, table, role, "insert"),
        updatable=await _columns(facts, table, role, "update"),
        row=await _own_row(facts, world, table, context, changeable),
        row_b=await template(facts, table, f"tenant_id = '{world.b.id}'"),
        changeable=counts[0],
        seen=counts[1],
        seen_of_own=counts[2],
        seen_of_b=counts[3],
        seen_keys=await facts(f"{keys_of(table)} from {name} where {visible}") if visible else None,
    )


async def _own_row(facts: Facts, world: World, table: Table, context: Context, changeable: str) -> dict[str, object]:
    """A row that the caller may change, else one of their tenant, else one of a made theirs."""
    tenant = context.caller.tenant
    for condition in (changeable, f"tenant_id = '{tenant}'"):
        if row := await template(facts, table, condition):
            return row
    return await template(facts, table, f"tenant_id = '{world.a.id}'") | {"tenant_id": tenant}


async def template(facts: Facts, table: Table, condition: str) -> dict[str, object]:
    """A row as JSON, the same in every run; empty when there is none."""
    row = await facts(f"select to_jsonb(x) from public.{table.name} x where {condition} order by x::text limit 1")
    return json.loads(row) if row else {}


async def _columns(facts: Facts, table: Table, role: str, privilege: str) -> list[str]:
    return await facts(
        f"select array(select attname::text from pg_attribute where attrelid = 'public.{table.name}'::regclass"
        " and attnum > 0 and not attisdropped"
        f" and has_column_privilege('{role}', attrelid, attnum, '{privilege}') order by attnum)"
    )


async def expected_cells(connection: asyncpg.Connection, world: World) -> set[Cell]:
    """What the catalog says must have been tried, read apart from what the matrix went through."""
    relations = await read_relations(connection)
    return set(_product(relations, [c.name for c in contexts(world)]))


def _product(relations: dict[str, str], names: list[str]) -> Iterator[Cell]:
    for relation, kind in relations.items():
        for command in commands_of(kind, relation.startswith("public.")):
            for login in LOGINS:
                for context in names:
                    yield Cell(relation, login, context, command)
