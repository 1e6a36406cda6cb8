"""Files from 011 on: applied once, a fresh database and an upgraded one are the same, and the base never undoes one."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, Cluster, create_database
from tests.migrations.tools import FILES, Shell
from vanilla_saas.database import schema
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import Database
from vanilla_saas.database.schema import migrations_directory

SAMPLE = Path(__file__).with_name("upgrades") / "011_sample.sql"
NewDatabase = Callable[[], Awaitable[Shell]]


@pytest.fixture
async def new_database(cluster: Cluster) -> AsyncIterator[NewDatabase]:
    async with AsyncExitStack() as stack:

        async def make() -> Shell:
            name = await stack.enter_async_context(create_database(cluster, f"test_up_{uuid.uuid4().hex[:10]}"))
            return Shell(cluster, 18, name)

        yield make


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the next release: the base as it is, and an upgrade."""
    folder = Path(shutil.copytree(migrations_directory(), tmp_path / "migrations"))
    shutil.copy(SAMPLE, folder)
    monkeypatch.setattr(schema, "migrations_directory", lambda: folder)
    return folder


async def made_by_the_base(shell: Shell, signer: ContextSigner, monkeypatch: pytest.MonkeyPatch, release: Path) -> None:
    """A database of the release before, which has been used."""
    with monkeypatch.context() as before:
        before.setattr(schema, "migrations_directory", lambda: Path(__file__).parents[2] / "migrations")
        assert await migrate(shell.url, signer) == FILES
    shell.statement(f"select create_user('one@example.test', p_tenant_id => '{DEFAULT_TENANT}')")


def dump(shell: Shell) -> str:
    """The schema: the rows are those of the use."""
    return shell.dump("--schema-only")


async def test_a_fresh_database_and_an_upgraded_one_are_the_same(
    new_database: NewDatabase, signer: ContextSigner, monkeypatch: pytest.MonkeyPatch, release: Path
) -> None:
    fresh, upgraded = await new_database(), await new_database()
    assert await migrate(fresh.url, signer) == [*FILES, SAMPLE.name]
    await made_by_the_base(upgraded, signer, monkeypatch, release)
    before = dump(upgraded)
    assert await migrate(upgraded.url, signer) == [SAMPLE.name]
    assert dump(upgraded) == dump(fresh) != before
    # the upgrade's own statements on rows have seen the rows that were there
    assert upgraded.statement("select count(*) from tenants where region = 'eu'") == "1"
    assert upgraded.statement("select count(*) from users where email = 'one@example.test'") == "1"


async def test_an_upgrade_is_applied_once_whoever_runs_it(
    new_database: NewDatabase, signer: ContextSigner, monkeypatch: pytest.MonkeyPatch, release: Path
) -> None:
    by_migrate, by_psql = await new_database(), await new_database()
    await made_by_the_base(by_migrate, signer, monkeypatch, release)
    await made_by_the_base(by_psql, signer, monkeypatch, release)
    ran = await asyncio.gather(*(migrate(by_migrate.url, signer) for _ in range(3)))
    assert [name for names in ran for name in names] == [SAMPLE.name]
    by_migrate.statement("update tenants set region = 'us'")
    for done in (by_migrate.file(SAMPLE), by_migrate.file(SAMPLE)):
        assert "011_sample.sql or a later upgrade was applied; nothing was changed" in done.stderr
    assert by_migrate.statement("select distinct region from tenants") == "us"
    # psql first, then migrate adopts it
    assert by_psql.file(SAMPLE).stderr == ""
    assert await migrate(by_psql.url, signer) == []
    assert await migrate(by_psql.url, signer) == []
    assert dump(by_psql) == dump(by_migrate)
    checksums = "select string_agg(checksum, ' ' order by name) from vanilla.schema_migrations"
    assert by_psql.statement(checksums) == by_migrate.statement(checksums)


async def test_the_base_never_undoes_an_upgrade(
    new_database: NewDatabase, signer: ContextSigner, release: Path
) -> None:
    shell = await new_database()
    await migrate(shell.url, signer)
    made = dump(shell)
    for name in FILES:
        done = shell.file(release / name)
        assert "this database was upgraded after 010" in done.stderr, name
        assert dump(shell) == made, name
    with pytest.raises(VanillaError, match="came after the base") as refusal:
        await migrate(shell.url, signer, repair=True)
    assert refusal.value.name == "invalid_state"
    assert await migrate(shell.url, signer) == []
    assert dump(shell) == made
    # a base that psql ran is adopted without being run again
    shell.statement("delete from vanilla.schema_migrations where name < '011'")
    assert await migrate(shell.url, signer) == []
    assert dump(shell) == made
    assert shell.statement("select count(*) from vanilla.schema_migrations where checksum <> ''") == str(len(FILES) + 1)


async def test_an_upgrade_that_fails_leaves_nothing(
    new_database: NewDatabase, signer: ContextSigner, monkeypatch: pytest.MonkeyPatch, release: Path
) -> None:
    shell = await new_database()
    await made_by_the_base(shell, signer, monkeypatch, release)
    before, whole = dump(shell), (release / SAMPLE.name).read_text()
    (release / SAMPLE.name).write_text(whole.replace("commit;", "select 1 / 0;\ncommit;"))
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(shell.url, signer)
    assert dump(shell) == before
    (release / SAMPLE.name).write_text(whole)
    assert await migrate(shell.url, signer) == [SAMPLE.name]


async def test_an_applied_upgrade_that_was_edited_is_refused(
    new_database: NewDatabase, signer: ContextSigner, release: Path
) -> None:
    shell = await new_database()
    await migrate(shell.url, signer)
    made = dump(shell)
    with (release / SAMPLE.name).open("a") as file:
        file.write("-- edited\n")
    with pytest.raises(VanillaError, match=r"another version of 011_sample\.sql"):
        await migrate(shell.url, signer)
    assert dump(shell) == made


async def test_the_release_before_serves_over_the_new_schema_and_does_not_migrate_it(
    cluster: Cluster, new_database: NewDatabase, signer: ContextSigner, monkeypatch: pytest.MonkeyPatch, release: Path
) -> None:
    shell = await new_database()
    await made_by_the_base(shell, signer, monkeypatch, release)
    name = shell.statement("select current_database()")
    logins = cluster.url("vanilla_app", name), cluster.url("vanilla_runtime", name)
    monkeypatch.undo()  # this process is the release before from here on
    running = await Database.open(*logins, signer, size=2)
    user = shell.statement("select id from users where email = 'one@example.test'")
    assert shell.file(SAMPLE).stderr == ""
    assert await running.call("select vanilla.run_maintenance() is not null")
    await running.close()
    again = await Database.open(*logins, signer, size=1)
    assert await again.call("select vanilla.run_maintenance() is not null")
    await again.close()
    shell.statement(f"select adjust_user_tokens('{user}', 3, 'debit', 'test')")
    with pytest.raises(VanillaError, match=r"A newer version has migrated this database: 011_sample\.sql"):
        await migrate(shell.url, signer)
    assert shell.statement("select count(*) from verify_token_ledger()") == "0"


async def test_a_process_whose_database_was_made_by_another_base_is_refused_at_its_next_connection(
    cluster: Cluster, new_database: NewDatabase, signer: ContextSigner
) -> None:
    """What a worker of the previous release meets after a reload: nothing runs, so nothing is lost or charged."""
    shell = await new_database()
    await migrate(shell.url, signer)
    name = shell.statement("select current_database()")
    logins = cluster.url("vanilla_app", name), cluster.url("vanilla_runtime", name)
    running = await Database.open(*logins, signer, size=2)
    assert await running.call("select vanilla.run_maintenance() is not null")
    shell.statement(
        "update vanilla.schema_migrations set checksum = 'other' where name = '002_token_management_functions.sql'"
    )
    # the reload has ended every session of the database that it replaced
    shell.statement(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    ledger = shell.statement("select count(*) from user_token_ledger")
    names = set()
    for _ in range(3):
        with pytest.raises(VanillaError) as refusal:
            await running.call("select vanilla.run_maintenance()")
        names.add(refusal.value.name)
    assert names <= {"invalid_state", "database_unavailable"}
    assert "invalid_state" in names
    with pytest.raises(VanillaError, match=r"another version of 002_token_management_functions\.sql"):
        await Database.open(*logins, signer, size=1)
    assert shell.statement("select count(*) from user_token_ledger") == ledger
    await running.close()
