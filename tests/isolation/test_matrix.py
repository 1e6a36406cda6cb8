"""No login reaches a row of another tenant, by any command in any context; own rows are seen as their class says."""

import re
import uuid
from dataclasses import replace

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.isolation.canaries import CANARY
from tests.isolation.catalog import LOGINS, ForeignKey, Table, read_closed, read_tables
from tests.isolation.commands import COMMANDS, Attempt, fresh, insertion
from tests.isolation.contexts import Context, contexts, enter, entering
from tests.isolation.matrix import (
    Facts,
    Report,
    expected_cells,
    perform,
    place,
    problem_of,
    rolled_back,
    run_matrix,
    template,
    undone,
)
from tests.isolation.rows import World


@pytest.fixture(scope="session")
async def report(cluster: Cluster, world_name: str, world: World) -> Report:
    """The whole matrix, once for the tests that read it."""
    connection = await asyncpg.connect(cluster.url(database=world_name))
    before = await world.digest(connection)
    async with undone(connection):
        report = await run_matrix(connection, world)
        assert await world.digest(connection) == before
    await connection.close()
    return report


def test_no_login_reaches_a_row_of_another_tenant(report: Report) -> None:
    assert report.violations == []


async def test_every_relation_login_context_and_command_is_tried(
    report: Report, world: World, superuser: asyncpg.Connection
) -> None:
    assert set(report.cells) == await expected_cells(superuser, world)
    tried = f"{len(report.cells)} cells, {report.cells.total()} attempts"
    print(tried)
    # 30 relations x 3 logins x 16 contexts x 15 commands, and no cell is empty
    assert len(report.cells) >= 22_000, tried
    assert report.cells.total() >= 85_000, tried


async def test_a_relation_that_nobody_declared_fails_the_suite(world: World, superuser: asyncpg.Connection) -> None:
    """A table, a view and a sequence without cells are missed; a table without an ownership class is named."""
    async with undone(superuser):
        await superuser.execute(
            "create table public.stray (tenant_id uuid, id uuid); create view public.strays as table public.stray;"
            " create sequence vanilla.stray_numbers"
        )
        grown = replace(world, tables=await read_tables(superuser), closed=await read_closed(superuser))
        missed = {cell.relation for cell in await expected_cells(superuser, grown)}
        assert missed - {f"public.{t.name}" for t in world.tables} - {c.name for c in world.closed} == {
            "public.stray",
            "public.strays",
            "vanilla.stray_numbers",
        }
        assert grown.table("stray").ownership is None


TALKING = """
    create function public.talk(text) returns boolean language plpgsql cost 0.0001 as
        $$ begin raise {level} 'row %', $1; return false; end $$;
    create policy talking on public.levels for select to vanilla_app using (public.talk(name));
"""


@pytest.mark.parametrize("level", ["notice", "debug"])
async def test_what_is_told_in_a_notice_is_seen(world: World, superuser: asyncpg.Connection, level: str) -> None:
    """A policy that says every row it looks at, and lets none of another tenant through."""
    only = {"tables": [world.table("levels")], "roles": ["vanilla_app"], "only": {"user"}, "commands": {"select"}}
    async with undone(superuser):
        assert (await run_matrix(superuser, world, **only)).violations == []
        await superuser.execute(TALKING.format(level=level))
        told = (await run_matrix(superuser, world, **only)).violations
    assert told
    assert all("tells" in line and CANARY in line for line in told)


async def test_a_plan_tells_how_many_rows_were_held_back_and_not_which(
    world: World, superuser: asyncpg.Connection
) -> None:
    """EXPLAIN ANALYZE counts the rows of other tenants that a scan met; so nobody may send a tenant's SQL."""
    async with undone(superuser):
        await superuser.execute("set local enable_indexscan = off; set local enable_bitmapscan = off")
        theirs = await superuser.fetchval("select count(*) from levels where tenant_id <> $1", world.a.id)
        user = next(c for c in contexts(world) if c.name == "user")
        await superuser.execute("set local role vanilla_app")
        await enter(superuser, "vanilla_app", user)
        plan = "\n".join(r[0] for r in await superuser.fetch("explain (analyze, verbose) select name from levels"))
    assert f"Rows Removed by Filter: {theirs}" in plan
    assert world.leaks(plan, "") == set()


@pytest.mark.parametrize("login", LOGINS)
async def test_real_logins_are_refused_the_same_and_nothing_is_left_behind(
    world: World, superuser: asyncpg.Connection, cluster: Cluster, world_name: str, login: str
) -> None:
    """Every attempt that must reach nothing, committed, over a connection of the login itself."""
    connection = await asyncpg.connect(cluster.url(login, world_name))
    own = await superuser.fetchval("select md5(string_agg(x::text, ',' order by x::text)) from ai_models x")
    problems: list[str] = []
    facts = Facts(superuser)
    for context in contexts(world):
        if context.name not in ("none", "admin"):
            continue
        for table in world.tables:
            here = await place(facts, world, table, login, context)
            problems += [
                f"{table.name}, {context.name}, {command} {attempt.name}: {problem}"
                for command, attempts in COMMANDS.items()
                for attempt in attempts(here)
                if attempt.rows == 0 and (problem := await _commit(connection, world, login, context, attempt))
            ]
    await connection.close()
    assert problems == []
    assert own == await superuser.fetchval("select md5(string_agg(x::text, ',' order by x::text)) from ai_models x")


async def _commit(
    connection: asyncpg.Connection, world: World, login: str, context: Context, attempt: Attempt
) -> str | None:
    await connection.execute(f"begin; {entering(login, context)}")
    outcome = await perform(connection, attempt)
    await connection.execute("rollback" if outcome.state else "commit")
    leaked = world.leaks(outcome.told, attempt.statement + attempt.data.decode())
    return problem_of(attempt, outcome, leaked)


async def test_no_foreign_key_reaches_a_row_of_another_tenant(world: World, superuser: asyncpg.Connection) -> None:
    """Also for the roles that policies let through: a reference to B's row fails like one to a row that is nowhere."""
    problems = []
    tried = 0
    for table in world.tables:
        if table.parent:
            continue
        for key in table.foreign_keys:
            for columns in _variable_columns(table, key):
                tried += 1
                problems += await _vary(superuser, world, table, key, columns)
    assert problems == [], "\n".join(problems)
    assert tried > 10


def _variable_columns(table: Table, key: ForeignKey) -> list[dict[str, str]]:
    """Which columns of the key take the other tenant's values: all ids but tenant_id, and of a pair each alone."""
    others = [c for c in key.columns if c != "tenant_id" and table.column(c).type == "uuid"]
    choices = [set(others)] + [{c} for c in others if len(others) > 1]
    return [
        {c: t for c, t in zip(key.columns, key.target_columns, strict=True) if c in choice}
        for choice in choices
        if choice
    ]


async def _vary(
    connection: asyncpg.Connection, world: World, table: Table, key: ForeignKey, columns: dict[str, str]
) -> list[str]:
    row = fresh(table, await template(Facts(connection), table, f"tenant_id = '{world.a.id}'"))
    # the top of a tree names itself
    within = {c for k in table.foreign_keys if k.target == table.name for c in k.columns} - {"tenant_id"}
    row |= {c: row["id"] for c in within if row[c]}
    foreign = await connection.fetchrow(
        f"select {', '.join(columns.values())} from {key.target} where tenant_id = $1 limit 1", world.b.id
    )
    theirs = {c: str(v) for c, v in zip(columns, foreign.values(), strict=True)}
    nowhere = {c: str(uuid.uuid4()) for c in columns}
    names = [c.name for c in table.columns]
    answers = {}
    async with connection.transaction():
        for role in ("vanilla_definer", "vanilla_app"):
            for kind, values in (
                ("own", {}),
                ("theirs", theirs),
                ("nowhere", nowhere),
                ("null", dict.fromkeys(columns)),
            ):
                async with rolled_back(connection, "key"):
                    # the tenant's other rows make way, so that no unique key answers before the foreign key
                    await connection.execute(
                        f"set local session_replication_role = replica; delete from {table.name}"
                        f" where tenant_id = '{world.a.id}'; set local session_replication_role = origin"
                    )
                    await connection.execute(f"set local role {role}")
                    await connection.fetchval(
                        "select set_config('vanilla.context', $1, true)", world.a.token(world.signer, world.a.admin)
                    )
                    answers[role, kind] = await _answer(connection, insertion(table, names, row | values), values)
    problems = []
    label = f"{table.name}, {key.name}, {', '.join(columns)}"
    if answers["vanilla_definer", "own"] != "inserted":
        problems.append(f"{label}: own row is refused, so nothing is proven: {answers['vanilla_definer', 'own']}")
    for role in ("vanilla_definer", "vanilla_app"):
        if not answers[role, "theirs"].startswith(("23503", "23514", "42501")):
            problems.append(f"{label}, {role}: b's row is accepted: {answers[role, 'theirs']}")
        if answers[role, "theirs"] != answers[role, "nowhere"]:
            problems.append(f"{label}, {role}: {answers[role, 'theirs']} is told from {answers[role, 'nowhere']}")
    nullable = not any(table.column(c).not_null for c in columns)
    # a check may tie it to others: null goes with them
    if (answers["vanilla_definer", "null"].startswith(("inserted", "23514"))) != nullable:
        problems.append(f"{label}: null gives {answers['vanilla_definer', 'null']}")
    return problems


async def _answer(connection: asyncpg.Connection, statement: str, values: dict[str, str | None]) -> str:
    """The outcome, without the values that were sent and the row that they were sent in."""
    try:
        async with connection.transaction():
            await connection.execute(statement)
    except asyncpg.PostgresError as error:
        told = f"{error.sqlstate} {error} {'' if error.sqlstate == '23514' else error.detail}"
        for value in filter(None, values.values()):
            told = told.replace(value, "<id>")
        return re.sub(r"\s+", " ", told)
    return "inserted"
