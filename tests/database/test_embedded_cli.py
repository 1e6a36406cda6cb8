"""`psql` and `env`, and the test run's own server."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.database.test_embedded import FAST, query, until
from tests.postgres import create_database, remove_home, session_server
from vanilla_saas.database import embedded, embedded_upgrade, postmaster
from vanilla_saas.database.cli import app, url_environment
from vanilla_saas.database.embedded import EmbeddedServer, EmbeddedServerError, attach
from vanilla_saas.database.embedded_upgrade import upgrade
from vanilla_saas.settings import Settings


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """A running server that the commands find by VANILLA_SAAS_HOME."""
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", f"cli {os.getpid()}")
    for name in ("DATABASE_URL", "PGHOST"):
        monkeypatch.delenv(name, raising=False)
    with session_server() as server:
        monkeypatch.setenv("VANILLA_SAAS_HOME", str(server.home))
        yield server


async def test_each_worker_of_a_test_run_gets_its_own_database_on_one_server(server: EmbeddedServer) -> None:
    with session_server() as other:
        assert (other.started, other.socket_dir) == (False, server.socket_dir)
        dsn = create_database(other, "gw7")
        assert await query(dsn, "create table t ()", "select current_database()") == "gw7"
        assert await query(create_database(other, "gw7"), "select to_regclass('t')") is None
    assert server.home.exists()
    server.close()
    remove_home(server)
    assert not server.home.exists()


def test_psql_and_env_reach_the_embedded_server(server: EmbeddedServer, tmp_path: Path) -> None:
    script = tmp_path / "one.sql"
    script.write_text("select 'from ' || current_database();\n")
    program = "from vanilla_saas.database.cli import app; app()"
    command = [sys.executable, "-c", program]
    done = subprocess.run([*command, "psql", "-XAtf", script], capture_output=True, text=True, check=True)
    assert done.stdout == "from vanilla_saas\n"
    failed = subprocess.run([*command, "psql", "-c", "selec"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    shell = f'eval "$({shlex.join(command)} env)" && psql -U postgres -d vanilla_saas -XAtf {script}'
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, check=True, start_new_session=True)
    assert done.stdout == "from vanilla_saas\n"


def test_env_keeps_the_server_up_for_the_session_that_asked() -> None:
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    folder.chmod(0o755)
    program = f'{shlex.quote(sys.executable)} -c "from vanilla_saas.database.cli import app; app()"'
    environment = {**os.environ, "VANILLA_SAAS_HOME": str(folder / "home")}
    for name in ("DATABASE_URL", "PGHOST"):
        environment.pop(name, None)
    with subprocess.Popen(
        ["/bin/sh", "-c", f"{program} env --json; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as session:
        assert session.stdout
        variables = json.loads(session.stdout.readline())
        data = Path(variables["PGHOST"]).parent / "data"
        with pytest.raises(AssertionError):
            until(lambda: not postmaster.postmaster_pid(data), seconds=0.3)
        command = ["psql", "-XAtqc", "select 1"]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"
        session.kill()
    until(lambda: not embedded._keeper_lives(folder / "home"))
    shutil.rmtree(folder)


async def test_data_moves_to_the_next_major_version_when_nobody_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    folder.chmod(0o755)
    home = folder / "home"
    monkeypatch.setattr(embedded_upgrade, "STOPPING_SECONDS", 1.0)
    with attach(Settings(home=home, pg_version=16), FAST) as old:
        await query(old.dsn(), "create table kept as select 42 as n", "select 1")
        with pytest.raises(EmbeddedServerError) as caught:
            upgrade(Settings(home=home))
        assert caught.value.code == "embedded_busy"
    kept = upgrade(Settings(home=home))
    assert kept
    assert (kept / "PG_VERSION").read_text() == "16\n"
    assert upgrade(Settings(home=home)) is None
    with attach(Settings(home=home), FAST) as new:
        assert new.started
        assert await query(new.dsn(), "select n from kept") == 42
        assert (await query(new.dsn(), "show server_version")).startswith("18.")
    until(lambda: not embedded._keeper_lives(home))
    shutil.rmtree(new.data_dir)
    with pytest.raises(EmbeddedServerError) as caught:
        attach(Settings(home=home))
    assert caught.value.code == "embedded_data_damaged"
    shutil.rmtree(folder)


def test_env_prints_a_configured_database_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://ada:p%27w@db.example:6543/prod?sslmode=require")
    done = CliRunner().invoke(app, ["env"])
    assert done.exit_code == 0
    variables = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
    assert {name: shlex.split(value)[0] for name, value in variables.items()} == {
        "PGHOST": "db.example",
        "PGPORT": "6543",
        "PGUSER": "ada",
        "PGPASSWORD": "p'w",
        "PGDATABASE": "prod",
        "PGSSLMODE": "require",
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql:///db?host=/run/pg&port=5433", {"PGHOST": "/run/pg", "PGPORT": "5433", "PGDATABASE": "db"}),
        ("postgresql://u@[::1]:5432/db", {"PGHOST": "::1", "PGPORT": "5432", "PGUSER": "u", "PGDATABASE": "db"}),
        ("postgresql://%2Frun%2Fpg/db", {"PGHOST": "/run/pg", "PGDATABASE": "db"}),
        ("postgres://u@a:1,b:2/db", {"PGHOST": "a,b", "PGPORT": "1,2", "PGUSER": "u", "PGDATABASE": "db"}),
        ("postgresql://h/db?statement_cache_size=0", {"PGHOST": "h", "PGDATABASE": "db"}),
    ],
)  # fmt: skip
def test_a_connection_url_becomes_libpqs_variables(url: str, expected: dict[str, str]) -> None:
    assert url_environment(url) == expected


def test_a_refusal_is_printed_with_its_code_and_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("DATABASE_URL", "PGHOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VANILLA_SAAS_PG_BIN", str(tmp_path))
    monkeypatch.setenv("VANILLA_SAAS_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, ["psql"])
    assert done.exit_code == 1
    assert done.stderr.startswith("embedded_binaries_missing: VANILLA_SAAS_PG_BIN is")
    assert isinstance(done.exception, SystemExit)
