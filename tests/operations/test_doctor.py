"""`vanilla-saas doctor`: each thing that can be wrong beside the checks of the database is named with its mend."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from tests.conftest import TEST_KEY, Cluster, create_database, migrated_database
from tests.migrations.tools import binaries, throwaway_server
from tests.processes import Installation
from vanilla_saas.checks import run_checks
from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations import doctor, doctor_settings
from vanilla_saas.operations.doctor import Diagnosis, diagnose
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy.passwords import HASHER

OTHER_KEY = "6e" * 32
FOREVER = "select vanilla.install_context_key($1, $2)"


@pytest.fixture
async def healthy(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """An installation as it is after the first password was changed; the test may spoil it."""
    async with migrated_database(cluster) as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await _password(connection, "four short words here")
        yield connection
        await connection.close()


async def _password(connection: asyncpg.Connection, password: str) -> None:
    await connection.execute(
        "update users set password_hash = $1, must_change_password = false where role = 'superadmin'",
        HASHER.hash(password),
    )


def _settings(home: Path, **more: Any) -> Settings:
    return Settings(_env_file=None, home=home, context_key=SecretStr(TEST_KEY), secret_key=SecretStr("c3" * 32), **more)


async def found(
    cluster: Cluster,
    connection: asyncpg.Connection,
    home: Path,
    key: str = TEST_KEY,
    now: Callable[[], float] = time.time,
    **settings: Any,
) -> dict[str, Diagnosis]:
    """Findings by check; the tests' administering login is a superuser, which is said each time."""
    name = await connection.fetchval("select current_database()")
    where = Addresses(
        cluster.url(database=name), cluster.url("vanilla_app", name), cluster.url("vanilla_runtime", name)
    )
    every = await diagnose(where, ContextSigner(bytes.fromhex(key)), _settings(home, **settings), now=now)
    severities = [finding.severity for finding in every]
    assert severities == sorted(severities)  # errors first
    return {finding.check: finding for finding in every}


async def test_a_healthy_installation_has_only_the_tests_superuser(
    cluster: Cluster, healthy: asyncpg.Connection, tmp_path: Path
) -> None:
    assert set(await found(cluster, healthy, tmp_path)) == {"superuser_login"}


async def test_logs_that_are_exported_by_one_setting_and_not_by_the_other_are_told_of(
    cluster: Cluster, healthy: asyncpg.Connection, tmp_path: Path
) -> None:
    off = (await found(cluster, healthy, tmp_path, export_to=str(tmp_path)))["export_place"]
    assert "dropped without being exported" in off.found
    await healthy.execute(
        "insert into system_configurations (tenant_id, key, value)"
        " values (vanilla.platform(), 'retention.export', 'true')"
        " on conflict (tenant_id, key) do update set value = excluded.value"
    )
    assert "export_place" not in await found(cluster, healthy, tmp_path, export_to=str(tmp_path))
    on = (await found(cluster, healthy, tmp_path))["export_place"]
    assert on.found.startswith("retention.export is on, but VANILLA_SAAS_EXPORT_TO is not set")
    await healthy.execute("update system_configurations set value = 'false' where key = 'retention.export'")
    assert "export_place" not in await found(cluster, healthy, tmp_path)


async def test_an_empty_database_is_not_migrated(cluster: Cluster, tmp_path: Path) -> None:
    async with create_database(cluster, f"test_{os.urandom(6).hex()}") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        diagnosis = (await found(cluster, connection, tmp_path))["schema_missing"]
        assert (diagnosis.mend, diagnosis.severity) == ("vanilla-saas migrate", "error")
        await migrate(cluster.url(database=name), ContextSigner(bytes.fromhex(TEST_KEY)))
        assert "schema_missing" not in await found(cluster, connection, tmp_path)
        await connection.close()


async def test_a_file_that_was_not_applied_is_named_and_one_of_another_version_too(
    cluster: Cluster, healthy: asyncpg.Connection, tmp_path: Path
) -> None:
    await healthy.execute("delete from vanilla.schema_migrations where name like '003%'")
    missing = (await found(cluster, healthy, tmp_path))["schema_version"]
    assert missing.found == "003_rls_policies.sql is not recorded as applied."
    assert missing.mend == "vanilla-saas migrate"
    name = await healthy.fetchval("select current_database()")
    await migrate(cluster.url(database=name), ContextSigner(bytes.fromhex(TEST_KEY)))
    assert "schema_version" not in await found(cluster, healthy, tmp_path)
    await healthy.execute("update vanilla.schema_migrations set checksum = 'other' where name like '001%'")
    changed = (await found(cluster, healthy, tmp_path))["schema_version"]
    assert changed.found == "001_initial_schema.sql was applied in another version."


async def test_a_context_key_that_the_database_does_not_know_or_has_retired_is_named(
    cluster: Cluster, healthy: asyncpg.Connection, tmp_path: Path
) -> None:
    other = ContextSigner(bytes.fromhex(OTHER_KEY))
    unknown = await found(cluster, healthy, tmp_path, key=OTHER_KEY)
    assert unknown["context_key"].mend == "vanilla-saas migrate"
    assert unknown["runtime_login"].severity == "error"
    await healthy.execute("set role vanilla_owner")
    await healthy.fetchval(FOREVER, other.key_id, other.key)
    left = (await found(cluster, healthy, tmp_path))["context_key_left"]
    assert (left.mend, left.severity) == (f"vanilla-saas context-key expire {other.key_id}", "warning")
    await healthy.fetchval("select vanilla.expire_context_key($1, now())", other.key_id)
    assert "context_key_left" not in await found(cluster, healthy, tmp_path)
    retired = (await found(cluster, healthy, tmp_path, key=OTHER_KEY))["context_key"]
    assert "was retired" in retired.found


@pytest.mark.parametrize(("ahead", "severity"), [(70, "error"), (-70, "error"), (8, "warning"), (-8, "warning")])
async def test_two_clocks_that_differ_are_named_with_the_figure(
    cluster: Cluster, healthy: asyncpg.Connection, tmp_path: Path, ahead: int, severity: str
) -> None:
    skew = (await found(cluster, healthy, tmp_path, now=lambda: time.time() - ahead))["clock_skew"]
    assert skew.severity == severity
    figure = float(skew.found.split("clock is ")[1].split(" s ")[0])
    assert abs(figure - abs(ahead)) < 3
    assert ("ahead of" if ahead > 0 else "behind") in skew.found


async def test_a_password_that_everybody_knows_is_named(
    cluster: Cluster, healthy: asyncpg.Connection, tmp_path: Path
) -> None:
    await _password(healthy, "admin123")
    known = (await found(cluster, healthy, tmp_path))["default_password"]
    assert known.mend == "vanilla-saas users set-password admin@localhost --tenant platform --generate"
    assert known.severity == "error"


UNSAFE: dict[str, tuple[dict[str, Any], str]] = {
    "public_address": ({"host": "0.0.0.0"}, "warning"),
    "public_url_without_tls": ({"public_url": "http://ai.example.com"}, "error"),
    "superuser_allowed": ({"allow_superuser": True}, "warning"),
    "debug_logs": ({"log_level": "debug"}, "warning"),
    "database_without_tls": ({"DATABASE_URL": SecretStr("postgresql://o@db.example.com/x?sslmode=prefer")}, "warning"),
}
SAFE: list[dict[str, Any]] = [
    {},
    {"host": "0.0.0.0", "public_url": "https://ai.example.com"},
    {"public_url": "http://localhost:8000"},
    {"host": "::1"},
    {"DATABASE_URL": SecretStr("postgresql://o@db.example.com/x?sslmode=verify-full")},
    {"DATABASE_URL": SecretStr("postgresql://o@/x?host=/run/postgresql")},
]


@pytest.mark.parametrize("check", UNSAFE)
def test_an_unsafe_setting_is_named(tmp_path: Path, check: str) -> None:
    setting, severity = UNSAFE[check]
    (one,) = doctor_settings.settings_findings(_settings(tmp_path, **setting))
    assert (one[0], one[3]) == (check, severity)


@pytest.mark.parametrize("setting", SAFE)
def test_a_safe_setting_is_not(tmp_path: Path, setting: dict[str, Any]) -> None:
    assert doctor_settings.settings_findings(_settings(tmp_path, **setting)) == []


def test_every_check_of_files_and_settings_has_a_breaking_case() -> None:
    assert set(doctor_settings.CHECKS) == {*UNSAFE, "key_file_mode"}
    here = Path(__file__).read_text()
    assert [name for name in doctor.CHECKS if f'"{name}"' not in here.partition("UNSAFE:")[0]] == []


@pytest.fixture
async def place(cluster: Cluster, healthy: asyncpg.Connection, tmp_path: Path) -> Installation:
    """The command over the healthy database; its keys are files of the home."""
    name = await healthy.fetchval("select current_database()")
    for file, text in (("context.key", TEST_KEY), ("secret.key", "c3" * 32)):
        (tmp_path / file).write_text(text + "\n")
        (tmp_path / file).chmod(0o600)
    return Installation(
        tmp_path,
        DATABASE_URL=cluster.url(database=name),
        VANILLA_SAAS_APP_URL=cluster.url("vanilla_app", name),
        VANILLA_SAAS_RUNTIME_URL=cluster.url("vanilla_runtime", name),
    )


async def test_the_command_names_what_is_broken_and_its_own_mends_mend_it(
    place: Installation, healthy: asyncpg.Connection
) -> None:
    clean = await asyncio.to_thread(place.run, "doctor")
    assert (clean.code, clean.out.splitlines()[-1]) == (0, "0 errors, 1 warnings."), clean
    await healthy.execute("drop policy app_select on users; grant truncate on levels to vanilla_app")
    await healthy.execute(
        "create or replace function vanilla.clock() returns timestamptz language sql as 'select now()'"
    )
    await healthy.execute("grant execute on function reset_monthly_tokens(integer) to public")
    (place.home / "context.key").chmod(0o644)
    done = await asyncio.to_thread(place.run, "doctor", "--json")
    assert done.code == 1, done
    errors = [one for one in json.loads(done.out) if one["severity"] == "error"]
    assert sorted(one["check"] for one in errors) == [
        "clock_replaced",
        "execute_to_public",
        "key_file_mode",
        "protection_drift",
        "protection_drift",
    ]
    assert {"check", "found", "mend", "severity"} == set(errors[0])
    for mend in {one["mend"] for one in errors}:
        path = f"{Path(sys.executable).parent}:{binaries(18)}:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_shell(mend, env=place._environment({"PATH": path}), cwd=place.home)
        assert await process.wait() == 0, mend
    mended = await asyncio.to_thread(place.run, "doctor")
    assert (mended.code, mended.out.splitlines()[-1]) == (0, "0 errors, 1 warnings."), mended


async def test_the_command_that_cannot_look_exits_with_2(place: Installation, cluster: Cluster) -> None:
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    done = await asyncio.to_thread(lambda: place.run("doctor", **nowhere))
    assert (done.code, done.out, done.err.partition(":")[0]) == (2, "", "error database_unavailable"), done
    # a login that may not look
    poor = {"DATABASE_URL": place.environment["VANILLA_SAAS_APP_URL"]}
    done = await asyncio.to_thread(lambda: place.run("doctor", **poor))
    assert (done.code, done.err.partition(":")[0]) == (2, "error forbidden"), done
    assert "Traceback" not in done.err


async def test_a_mode_that_lets_others_read_a_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "context.key").write_text(TEST_KEY)
    (tmp_path / "context.key").chmod(0o640)
    (one,) = doctor_settings.settings_findings(Settings(_env_file=None, home=tmp_path))
    assert (one[0], one[2], one[3]) == ("key_file_mode", f"chmod 600 {tmp_path}/context.key", "error")


async def test_a_logical_slot_is_named_and_dropped_by_its_mend() -> None:
    with throwaway_server(18, "wal_level=logical") as server:
        await migrate(server.url(), ContextSigner(bytes.fromhex(TEST_KEY)))
        connection = await asyncpg.connect(server.url())
        await connection.fetchval("select pg_create_logical_replication_slot('spy', 'pgoutput')")
        (finding,) = await run_checks(connection, ("logical_slots",))
        assert finding.statement
        await connection.execute(finding.statement)
        assert await run_checks(connection, ("logical_slots",)) == []
        await connection.close()


async def test_a_database_without_the_operators_rights_is_refused_in_words(
    cluster: Cluster, healthy: asyncpg.Connection, tmp_path: Path
) -> None:
    name = await healthy.fetchval("select current_database()")
    app = cluster.url("vanilla_app", name)
    with pytest.raises(VanillaError, match="may not look") as refusal:
        await diagnose(
            Addresses(app, app, app), ContextSigner(bytes.fromhex(TEST_KEY)), _settings(tmp_path), books=False
        )
    assert refusal.value.name == "forbidden"
