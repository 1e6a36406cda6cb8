"""The files run with psql and with migrate, in any mixture and any number of times, to the same database."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Cluster, create_database
from tests.migrations.tools import FILES, Shell
from vanilla_saas.database import schema
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.schema import migrations_directory

NewDatabase = Callable[[], Awaitable[Shell]]


@pytest.fixture(scope="session")
async def major(cluster: Cluster) -> int:
    connection = await asyncpg.connect(cluster.url())
    number = int(await connection.fetchval("show server_version_num")) // 10000
    await connection.close()
    return number


@pytest.fixture
async def new_database(cluster: Cluster, major: int) -> AsyncIterator[NewDatabase]:
    """Makes empty databases that are dropped after the test."""
    async with AsyncExitStack() as stack:

        async def make() -> Shell:
            name = await stack.enter_async_context(create_database(cluster, f"isolation_m{uuid.uuid4().hex[:10]}"))
            return Shell(cluster, major, name)

        yield make


async def test_three_runs_with_psql_give_the_same_dump(new_database: NewDatabase) -> None:
    shell = await new_database()
    dumps = []
    for _ in range(3):
        shell.sequence()
        dumps.append(shell.dump())
    assert dumps[0] == dumps[1] == dumps[2]
    assert "user_token_ledger" in dumps[0]


async def test_migrate_adopts_what_psql_made_and_then_has_nothing_to_do(
    new_database: NewDatabase, signer: ContextSigner
) -> None:
    shell = await new_database()
    shell.sequence()
    made = shell.dump()
    assert await migrate(shell.url, signer) == FILES
    assert shell.dump() == made
    assert await migrate(shell.url, signer) == []
    assert shell.dump() == made


async def test_psql_changes_nothing_in_what_migrate_made(new_database: NewDatabase, signer: ContextSigner) -> None:
    by_psql, shell = await new_database(), await new_database()
    by_psql.sequence()
    assert await migrate(shell.url, signer) == FILES
    made = shell.dump()
    assert made == by_psql.dump()
    shell.sequence()
    assert shell.dump() == made


async def test_psql_and_migrate_take_turns(new_database: NewDatabase, signer: ContextSigner) -> None:
    by_psql, shell = await new_database(), await new_database()
    by_psql.sequence()
    shell.sequence(FILES[:2])
    assert await migrate(shell.url, signer) == FILES
    shell.sequence(FILES[2:])
    shell.sequence(FILES[:1])
    assert await migrate(shell.url, signer) == []
    assert shell.dump() == by_psql.dump()


@pytest.mark.parametrize("last", range(1, len(FILES)))
async def test_each_file_runs_again_while_later_ones_are_absent(new_database: NewDatabase, last: int) -> None:
    shell = await new_database()
    shell.sequence(FILES[:last])
    made = shell.dump()
    shell.sequence(FILES[:last])
    assert shell.dump() == made


@pytest.mark.parametrize("changed", FILES)
async def test_a_database_of_another_version_is_left_as_it_is(
    new_database: NewDatabase, signer: ContextSigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    shell = await new_database()
    await migrate(shell.url, signer)
    made = shell.dump()
    copy = tmp_path / "migrations"
    shutil.copytree(migrations_directory(), copy)
    with (copy / changed).open("a") as file:
        file.write("\nbegin; create table public.later (); commit;\n")
    monkeypatch.setattr(schema, "migrations_directory", lambda: copy)
    with pytest.raises(VanillaError, match=changed) as refusal:
        await migrate(shell.url, signer)
    assert refusal.value.name == "invalid_state"
    assert shell.dump() == made


async def test_a_file_that_fails_leaves_nothing_and_the_next_run_goes_on(
    new_database: NewDatabase, signer: ContextSigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_psql, shell = await new_database(), await new_database()
    by_psql.sequence()
    copy = tmp_path / "migrations"
    shutil.copytree(migrations_directory(), copy)
    third = copy / FILES[2]
    whole = third.read_text()
    third.write_text(whole.replace("commit;", "select 1 / 0;\ncommit;"))
    monkeypatch.setattr(schema, "migrations_directory", lambda: copy)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(shell.url, signer)
    third.write_text(whole)
    assert await migrate(shell.url, signer) == FILES[2:]
    assert shell.dump() == by_psql.dump()


async def test_two_migrators_at_once_make_one_database(new_database: NewDatabase, signer: ContextSigner) -> None:
    one, other, by_psql = await new_database(), await new_database(), await new_database()
    by_psql.sequence()
    await asyncio.gather(*(migrate(shell.url, signer) for shell in (one, one, other, other)))
    assert one.dump() == by_psql.dump()
    assert other.dump() == by_psql.dump()
