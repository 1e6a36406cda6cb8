"""No login reaches a row of another tenant, by any command in any context; own rows are seen as their class says."""

import re
import uuid

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.isolation.catalog import LOGINS, ForeignKey, Table
from tests.isolation.matrix import (
    Attempt,
    attempts,
    contexts,
    enter,
    fresh,
    insertion,
    rolled_back,
    rows_of,
    run_matrix,
    template,
)
from tests.isolation.rows import CANARY, World


async def test_no_login_reaches_a_row_of_another_tenant(world: World, superuser: asyncpg.Connection) -> None:
    before = await world.digest(superuser)
    transaction = superuser.transaction()
    await transaction.start()
    violations = await run_matrix(superuser, world)
    after = await world.digest(superuser)
    await transaction.rollback()
    assert violations == []
    assert after == before


@pytest.mark.parametrize("login", LOGINS)
async def test_real_logins_are_refused_the_same_and_nothing_is_left_behind(
    world: World, superuser: asyncpg.Connection, cluster: Cluster, world_name: str, login: str
) -> None:
    """Every attempt that must reach nothing, committed, over a connection of the login itself."""
    connection = await asyncpg.connect(cluster.url(login, world_name))
    own = await superuser.fetchval("select md5(string_agg(x::text, ',' order by x::text)) from ai_models x")
    problems = []
    for context in contexts(world):
        if context.name not in ("none", "admin"):
            continue
        for table in world.tables:
            for attempt in await attempts(superuser, world, table, login, context):
                if attempt.rows == 0:
                    problem = await _commit(connection, login, context, attempt)
                    problems += [f"{table.name}, {context.name}, {attempt.name}: {problem}"] if problem else []
    await connection.close()
    assert problems == []
    assert own == await superuser.fetchval("select md5(string_agg(x::text, ',' order by x::text)) from ai_models x")


async def _commit(connection: asyncpg.Connection, login: str, context: object, attempt: Attempt) -> str | None:
    try:
        async with connection.transaction():
            await enter(connection, login, context)
            if attempt.returns is not None:
                answer = await connection.fetchval(attempt.statement)
                return None if answer == attempt.returns else "other rows are visible"
            reached = rows_of(await connection.execute(attempt.statement))
            return f"{reached} rows" if reached else None
    except asyncpg.PostgresError as error:
        if CANARY in str(error.as_dict()) and CANARY not in attempt.statement:
            return f"the error tells: {error}"
        return None if error.sqlstate in ("42501", "VS401") else f"not refused but stopped by {error.sqlstate} {error}"


async def test_no_foreign_key_reaches_a_row_of_another_tenant(world: World, superuser: asyncpg.Connection) -> None:
    """Also for the roles that policies let through: a reference to B's row fails like one to a row that is nowhere."""
    problems = []
    tried = 0
    for table in world.tables:
        if table.parent:
            continue
        for key in table.foreign_keys:
            for columns in _variable_columns(key):
                tried += 1
                problems += await _vary(superuser, world, table, key, columns)
    assert problems == []
    assert tried > 10


def _variable_columns(key: ForeignKey) -> list[dict[str, str]]:
    """Which columns of the key take the other tenant's values: all but tenant_id, and of a pair each alone."""
    others = [c for c in key.columns if c != "tenant_id"]
    choices = [set(others)] + [{c} for c in others if len(others) > 1]
    return [
        {c: t for c, t in zip(key.columns, key.target_columns, strict=True) if c in choice}
        for choice in choices
        if choice
    ]


async def _vary(
    connection: asyncpg.Connection, world: World, table: Table, key: ForeignKey, columns: dict[str, str]
) -> list[str]:
    row = fresh(table, await template(connection, table, world.a.id))
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
    if (answers["vanilla_definer", "null"] == "inserted") != nullable:
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
