"""A database of another version of the ten files: nothing is changed, and the printed command brings it over."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, TEST_KEY, Cluster, create_database
from tests.migrations.tools import FILES, Shell, binaries
from tests.operations.backup_support import SIGNER, drop, fill, rows_of
from tests.processes import Installation
from vanilla_saas.database import schema
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.schema import RELOAD, migrations_directory
from vanilla_saas.operations.backup import make_backup
from vanilla_saas.operations.backup_errors import BackupError
from vanilla_saas.operations.backup_manifest import open_backup
from vanilla_saas.operations.restore import restore

SAME = (
    "user_token_ledger",
    "user_token_wallets",
    "user_token_grants",
    "ai_executions",
    "level_restrictions",
    "audit_logs",
)
"""Tables that both versions have in the same form."""


def _older(folder: Path) -> Path:
    """Files of an older version: a column less, a column more, a table and a function that are gone, other seeds."""
    copy = Path(shutil.copytree(migrations_directory(), folder / "older"))
    first = copy / FILES[0]
    text = first.read_text()
    # unused by any function that the seed or fill() calls
    text = text.replace("    user_agent text,\n", "    user_agent text,\n    device text,\n", 1)
    text = text.replace("    description text not null default '',\n    updated_at", "    updated_at", 1)
    text = text.replace(
        "-- 4. log partitions",
        "create table public.notes (tenant_id uuid not null, body text);\n-- 4. log partitions",
        1,
    )
    text = text.replace(
        "create or replace function vanilla.schema_files()", "create or replace function vanilla.gone()", 1
    )
    text = re.sub(
        r"(comment on function|grant execute on function) vanilla\.schema_files\(\)", r"\1 vanilla.gone()", text
    )
    first.write_text(text)
    for name in FILES[3:]:
        seeds = copy / name
        seeds.write_text(_without_descriptions(seeds.read_text()))
    third = copy / FILES[2]
    third.write_text(
        third.read_text().replace(
            "{tenant_id,key,value,is_public,description,updated_at}", "{tenant_id,key,value,is_public,updated_at}"
        )
    )
    return copy


def _without_descriptions(text: str) -> str:
    """No configuration rows: the older table has no description."""
    return re.sub(r"insert into public\.system_configurations.*?;\n", "", text, flags=re.DOTALL)


@pytest.fixture
async def older(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, Path]]:
    """A used database of the older version: its name, and the folder of its files."""
    files = _older(tmp_path)
    async with create_database(cluster, f"test_older_{os.urandom(4).hex()}") as name:
        with monkeypatch.context() as before:
            before.setattr(schema, "migrations_directory", lambda: files)
            assert await migrate(cluster.url(database=name), SIGNER) == FILES
        url = cluster.url(database=name)
        await fill(url)
        connection = await asyncpg.connect(url)
        # what the seed made was changed since, and one of its rows deleted
        await connection.execute("update tenants set name = 'Renamed' where id = $1", DEFAULT_TENANT)
        # the older version copied the restrictions of a level as they were given
        restrict = "select set_level_restriction(id, 'denied_models', null, '{x-*}', tenant_id) from levels"
        await connection.execute(f"{restrict} where tenant_id = $1 and is_default", DEFAULT_TENANT)
        copied = "update levels set restrictions = jsonb_build_object('denied_models', array['x-*'])"
        await connection.execute(f"{copied} where tenant_id = $1 and is_default", DEFAULT_TENANT)
        await connection.close()
        yield name, files


async def test_up_and_migrate_change_nothing_and_the_command_they_print_loses_nothing(
    cluster: Cluster, older: tuple[str, Path], tmp_path: Path
) -> None:
    name, _ = older
    url = cluster.url(database=name)
    place = Installation(tmp_path, DATABASE_URL=url, VANILLA_SAAS_CONTEXT_KEY=TEST_KEY, VANILLA_SAAS_PORT="0")
    shell = Shell(cluster, 18, name)
    made = shell.dump()
    refusals = [
        await asyncio.to_thread(place.run, "migrate"),
        await asyncio.to_thread(lambda: place.run("up", "--allow-superuser")),
    ]
    for refusal in refusals:
        assert (refusal.code, refusal.err.partition(":")[0]) == (1, "error invalid_state"), refusal
        assert refusal.err.rstrip().endswith(RELOAD), refusal
    assert shell.dump() == made
    before = await rows_of(url, *SAME)
    users = await rows_of(url, "(select id, email, display_name from users)")

    environment = place._environment({"PATH": f"{Path(sys.executable).parent}:{binaries(18)}:{os.environ['PATH']}"})
    process = await asyncio.create_subprocess_shell(
        refusals[0].err.rstrip().rpartition(": ")[2],
        env=environment,
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    kept = re.search(r"is the database (\w+) now", said)
    try:
        assert process.returncode == 0, said
        after = await rows_of(url, *SAME)
        # the restore itself is one line of the audit log more
        assert {*before["audit_logs"]} < {*after.pop("audit_logs")}
        assert after == {table: rows for table, rows in before.items() if table != "audit_logs"}
        assert await rows_of(url, "(select id, email, display_name from users)") == users
        assert await migrate(url, SIGNER) == []
        assert shell.statement("select name from tenants where slug = 'default'") == "Renamed"
        # what this version seeds and the older had not is there now
        assert int(shell.statement("select count(*) from system_configurations where key not like 'backup.%'")) > 0
        assert shell.statement("select count(*) from verify_token_ledger()") == "0"
        assert shell.statement("select count(*) from reconcile_token_wallets()") == "0"
        assert shell.statement("select count(*) from ai_executions_default") == "0"
        done = await asyncio.to_thread(place.run, "doctor")
        assert done.code == 0, done
    finally:
        await drop(cluster, kept[1] if kept else None)


async def test_what_has_no_place_in_the_new_schema_is_named_and_left_behind_only_when_that_is_said(
    cluster: Cluster, older: tuple[str, Path], tmp_path: Path
) -> None:
    name, _ = older
    url = cluster.url(database=name)
    connection = await asyncpg.connect(url)
    await connection.execute("insert into notes values ($1, 'keep me')", DEFAULT_TENANT)
    user = await connection.fetchval("select id from users where tenant_id = $1 limit 1", DEFAULT_TENANT)
    await connection.execute(
        "insert into sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at,"
        " device) values ($1, $2, $2, 'a', 'b', now(), now(), 'phone')",
        DEFAULT_TENANT,
        user,
    )
    await connection.close()
    backup = open_backup((await make_backup(url, tmp_path)).path, None)
    with pytest.raises(BackupError) as refusal:
        await restore(backup, url, SIGNER, replace=True)
    assert refusal.value.name == "backup_other_schema"
    with pytest.raises(BackupError) as refusal:
        await restore(backup, url, SIGNER, replace=True, reload=True)
    assert refusal.value.name == "restore_loses"
    assert "public.notes (1 rows)" in refusal.value.message
    assert "public.sessions.device (1 values)" in refusal.value.message
    forget = re.findall(r"--forget (\S+)", str(refusal.value.hint))
    assert sorted(forget) == ["public.notes", "public.sessions.device"]
    assert len((await rows_of(url, "notes"))["notes"]) == 1
    done = await restore(backup, url, SIGNER, replace=True, reload=True, forget=tuple(forget))
    try:
        assert (await rows_of(url, "sessions"))["sessions"]
        assert len((await rows_of(cluster.url(database=str(done.kept)), "notes"))["notes"]) == 1
    finally:
        await drop(cluster, done.kept)


async def test_rows_that_do_not_fit_the_new_tables_stop_the_reload_with_nothing_changed(
    cluster: Cluster, older: tuple[str, Path], tmp_path: Path
) -> None:
    name, _ = older
    url = cluster.url(database=name)
    connection = await asyncpg.connect(url)
    await connection.execute("alter table tenants drop constraint tenants_status_check")
    await connection.execute("update tenants set status = 'dormant' where id = $1", DEFAULT_TENANT)
    await connection.close()
    backup = open_backup((await make_backup(url, tmp_path)).path, None)
    with pytest.raises(BackupError, match="tenants_status_check") as refusal:
        await restore(backup, url, SIGNER, replace=True, reload=True)
    assert refusal.value.name == "restore_failed"
    assert Shell(cluster, 18, name).statement("select status from tenants where slug = 'default'") == "dormant"
