"""Scheduled backups and rehearsals: what they came to is kept, and doctor and console tell of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from tests.conftest import TEST_KEY, Cluster, migrated_database
from tests.migrations.tools import Shell, throwaway_server
from tests.operations.backup_support import SIGNER, fill
from tests.processes import Installation
from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations import doctor_backups, rehearsal
from vanilla_saas.operations.backup_errors import BackupError
from vanilla_saas.operations.backup_manifest import DUMP
from vanilla_saas.operations.rehearsal import scheduled_backup, scheduled_rehearsal
from vanilla_saas.settings import Settings


@pytest.fixture(scope="module")
async def source(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster) as name:
        await fill(cluster.url(database=name))
        yield name


@pytest.fixture
async def connection(cluster: Cluster, source: str) -> AsyncIterator[asyncpg.Connection]:
    """What was kept is forgotten before and after."""
    opened = await rehearsal.store.connect(cluster.url(database=source))
    forget = "delete from public.system_configurations where key like 'backup.%'"
    await opened.execute(forget)
    yield opened
    await opened.execute(forget)
    await opened.execute("set role vanilla_owner")
    await opened.execute(CLOCK.format("0 days"))
    await opened.close()


CLOCK = """
create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe
    as 'select pg_catalog.clock_timestamp() + interval ''{}'''
"""


def _where(cluster: Cluster, name: str) -> Addresses:
    return Addresses(cluster.url(database=name), "", "")


def _settings(home: Path, **more: Any) -> Settings:
    return Settings(_env_file=None, home=home, context_key=SecretStr(TEST_KEY), **more)


async def _found(connection: asyncpg.Connection, settings: Settings) -> dict[str, str]:
    return {one[0]: one[1] for one in await doctor_backups.backup_findings(connection, settings)}


async def _later(connection: asyncpg.Connection, interval: str) -> None:
    await connection.execute("set role vanilla_owner")
    await connection.execute(CLOCK.format(interval))
    await connection.execute("reset role")


async def test_a_backup_and_its_rehearsal_are_kept_and_grow_old(
    cluster: Cluster, source: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    where, settings = _where(cluster, source), _settings(tmp_path)
    assert await _found(connection, settings) == {}  # a new installation has time
    made = await scheduled_backup(where, settings)
    proof = await scheduled_rehearsal(where, settings)
    assert proof.errors == []
    kept = await rehearsal.store.recorded(connection)
    assert kept[rehearsal.MADE]["backup"] == kept[rehearsal.REHEARSED]["backup"] == made.path.name
    assert kept[rehearsal.REHEARSED]["ok"] is True
    assert kept[rehearsal.REHEARSED]["phases"].keys() >= {"restore", "rows", "checks", "chains"}
    logged = await connection.fetch("select action from public.audit_logs where target_type = 'backup' order by 1")
    assert [row["action"] for row in logged] == [rehearsal.MADE, rehearsal.REHEARSED]
    assert await _found(connection, settings) == {}
    await _later(connection, "9 days")
    assert set(await _found(connection, settings)) == {"backup_old"}
    await _later(connection, "41 days")
    assert set(await _found(connection, settings)) == {"backup_old", "rehearsal_old"}
    assert await _found(connection, _settings(tmp_path, backup_max_age_days=0, rehearsal_max_age_days=0)) == {}


async def test_an_installation_that_was_never_backed_up_is_told_so_after_a_week(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    await _later(connection, "9 days")
    found = await _found(connection, _settings(tmp_path))
    assert set(found) == {"backup_old"}
    assert "the installation is 9 days old" in found["backup_old"]


async def test_a_backup_that_fails_is_an_error_until_one_is_made(
    cluster: Cluster, source: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    where, settings = _where(cluster, source), _settings(tmp_path)
    (tmp_path / "backups").write_text("no folder")
    with pytest.raises(BackupError):
        await scheduled_backup(where, settings)
    found = await _found(connection, settings)
    assert set(found) == {"backup_failed"}
    assert "backup_failed" in found["backup_failed"]
    (tmp_path / "backups").unlink()
    await scheduled_backup(where, settings)
    assert await _found(connection, settings) == {}


async def test_a_backup_that_does_not_stand_its_rehearsal_is_an_error(
    cluster: Cluster, source: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    where, settings = _where(cluster, source), _settings(tmp_path)
    made = await scheduled_backup(where, settings)
    whole = (made.path / DUMP).read_bytes()
    (made.path / DUMP).write_bytes(whole[:-10])
    with pytest.raises(BackupError) as refusal:
        await scheduled_rehearsal(where, settings)
    assert refusal.value.name == "backup_damaged"
    found = await _found(connection, settings)
    assert made.path.name in found["rehearsal_failed"]
    assert "backup_damaged" in found["rehearsal_failed"]
    (made.path / DUMP).write_bytes(whole)
    await scheduled_rehearsal(where, settings)
    assert await _found(connection, settings) == {}


async def test_books_that_were_wrong_in_the_original_fail_the_rehearsal(
    cluster: Cluster, source: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    where, settings = _where(cluster, source), _settings(tmp_path)
    wrong = "update public.user_token_wallets set available_tokens = available_tokens {} 1"
    await connection.execute(wrong.format("+"))
    try:
        await scheduled_backup(where, settings)
        proof = await scheduled_rehearsal(where, settings)
    finally:
        await connection.execute(wrong.format("-"))
    assert proof.differences == []
    assert any(line.startswith("wallets_reconcile") for line in proof.errors)
    assert "wallets_reconcile" in (await _found(connection, settings))["rehearsal_failed"]


async def test_a_plain_owner_rehearses_in_a_cluster_apart_which_is_gone_afterwards(tmp_path: Path) -> None:
    """As the command, with the settings of a deployment: DATABASE_URL is no superuser, a second login reads."""
    with throwaway_server(18) as server:
        admin = Shell(server, 18, "postgres")
        admin.statement("create role plain login nosuperuser createrole")
        admin.statement("create database owned owner plain")
        plain = Shell(server, 18, "owned", "plain")
        plain.sequence()
        await migrate(plain.url, SIGNER)
        plain.as_superuser(
            "create role vanilla_backup login bypassrls inherit; grant vanilla_operator to vanilla_backup"
        )
        place = Installation(
            tmp_path,
            DATABASE_URL=plain.url,
            VANILLA_SAAS_CONTEXT_KEY=TEST_KEY,
            VANILLA_SAAS_BACKUP_URL=server.url("vanilla_backup", "owned"),
            VANILLA_SAAS_BACKUP_PASSPHRASE="four short words here",
        )
        for command in (("backup",), ("backup", "rehearse", "--json")):
            done = await asyncio.to_thread(place.run, *command)
            assert done.code == 0, done
        facts = json.loads(done.out)
        assert (facts["ok"], facts["differences"]) == (True, [])
        assert (
            plain.statement("select value ->> 'ok' from system_configurations where key = 'backup.rehearsed'") == "true"
        )
        assert admin.statement("select count(*) from pg_database where datname like 'owned_%'") == "0"


def test_every_check_of_backups_has_a_breaking_case() -> None:
    here = Path(__file__).read_text()
    assert [name for name in doctor_backups.CHECKS if f'"{name}"' not in here] == []
