"""A query without a context sees nothing, and nobody reaches a connection without one by mistake."""

import ast
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.isolation.conftest import TENANTS_SEEN, identity
from tests.isolation.rows import World
from vanilla_saas.database.pool import Database

SOURCE = Path(__file__).parents[2] / "src" / "vanilla_saas"
OPENERS = {"connect", "create_pool", "acquire", "connect_admin", "Connection", "Pool"}
OPERATORS_TOOLS = {
    "database/connection.py": {"asyncpg.connect"},
    "database/pool.py": {"asyncpg.create_pool", "pool.acquire", "app.acquire"},
    "tenancy/passwords.py": {"_room.acquire"},  # a semaphore
    # what an operator runs, as the login that administers: no request comes this way
    "database/migrator.py": {"connect_admin"},
    "database/operator.py": {"connect_admin"},
    "database/rotation.py": {"connect_admin"},
    "operations/doctor.py": {"connect_admin"},
    "operations/first_run.py": {"connect_admin"},
    "operations/serving.py": {"connect_admin"},
    "operations/demo.py": {"connect_admin"},
    "operations/backup.py": {"store.connect"},
    "operations/backup_store.py": {"connect_admin"},
    "operations/log_export.py": {"connect_admin"},
    "operations/schedules.py": {"connect_admin"},
    "operations/sessions.py": {"connect_admin"},
    "payments/top_ups.py": {"connect_admin"},  # the job
}
"""Every file that opens or takes a connection, and how; requests have `Database.transaction` and `Database.call`."""
RUNNERS = {
    "execute",
    "executemany",
    "fetch",
    "fetchrow",
    "fetchval",
    "fetchmany",
    "cursor",
    "prepare",
    "call",
    "call_row",
}

OWN_STATEMENTS = {
    "checks/__init__.py": "files of the program",
    "database/migrator.py": "files of the program, and a password of hexadecimal digits",
    "database/pool.py": "passes on what `call` is given, which is looked at where it is given",
    "database/session.py": "names of savepoints, counted by the driver, and commands of the program",
    "database/coalescer.py": "passes on one of a closed list of constants",
    "tokens/wallet_store.py": "how many rows a cursor gives at once",
    "operations/backup.py": "the name of a snapshot, as the server gave it",
    "operations/backup_store.py": "names that the server quoted, and statements of the program",
    "operations/demo_isolation.py": "attacks of the program, as the operator",
    "operations/demo_wallet.py": "statements of the program, as the operator",
    "orchestration/loop.py": "tools, no statements",
    "orchestration/pydantic_loop.py": "tools, no statements",
    "orchestration/tools.py": "tools, no statements",
    "workflows/execution/outside.py": "requests to others and tools, no statements",
}
"""Files whose statements are not constants, and what they are made of."""


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def _files() -> Iterator[tuple[str, Path]]:
    return ((str(path.relative_to(SOURCE)), path) for path in sorted(SOURCE.rglob("*.py")))


def test_only_the_database_room_and_the_operators_tools_open_connections() -> None:
    found: dict[str, set[str]] = {}
    for name, path in _files():
        for call in _calls(path):
            text = ast.unparse(call.func)
            if text.rpartition(".")[2] in OPENERS:
                found.setdefault(name, set()).add(text)
    assert found == OPERATORS_TOOLS


def test_nothing_but_the_pool_itself_touches_the_pools() -> None:
    for name, path in _files():
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        if name != "database/pool.py":
            assert not names & {"_app", "_runtime"}, name


async def test_a_query_without_a_context_sees_nothing(pool: Database, world: World) -> None:
    async with pool.transaction(None) as connection:
        assert await connection.fetchval(TENANTS_SEEN) is None
    for owned in (pool._app, pool._runtime):
        async with owned.acquire() as connection:
            try:
                assert await connection.fetchval(TENANTS_SEEN) is None
            except asyncpg.InsufficientPrivilegeError:
                assert owned is pool._runtime


async def test_a_connection_is_of_no_use_after_its_transaction(pool: Database, world: World) -> None:
    async with pool.transaction(identity(world, "a")) as connection:
        assert await connection.fetchval(TENANTS_SEEN) == [world.a.id]
    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
        await connection.fetchval(TENANTS_SEEN)


def test_every_statement_is_a_constant_of_the_program() -> None:
    """What a request sends is a parameter of it, never a part of its text."""
    composed = [
        f"{name}: {ast.unparse(call.args[0])}"
        for name, path in _files()
        if name not in OWN_STATEMENTS
        for call in _calls(path)
        if isinstance(call.func, ast.Attribute) and call.func.attr in RUNNERS and call.args
        if not _is_constant(call.args[0])
    ]
    assert composed == []


def _is_constant(text: ast.expr) -> bool:
    match text:
        case ast.Constant():
            return True
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="store"), attr=name):
            return name.isupper()
        case ast.JoinedStr(values=parts):
            return all(_is_constant(part.value if isinstance(part, ast.FormattedValue) else part) for part in parts)
        case ast.IfExp(body=one, orelse=other):
            return _is_constant(one) and _is_constant(other)
    return False
