"""compose.yaml as far as it goes without a container engine: its commands, environments and scripts, as processes."""

import asyncio
import configparser
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import yaml

from tests.conftest import TEST_KEY, Cluster
from tests.migrations.tools import Shell, binaries, throwaway_server
from tests.pgbouncer import BINARY, PAGE
from tests.processes import Installation, assert_books_are_clean, eventually

ROOT = Path(__file__).parents[2]
SECRETS = {
    "POSTGRES_PASSWORD": "of the superuser",
    "VANILLA_SAAS_OWNER_PASSWORD": "0b" * 32,
    "VANILLA_SAAS_CONTEXT_KEY": TEST_KEY,
    "VANILLA_SAAS_SECRET_KEY": "c3" * 32,
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The container `database` after its first start."""
    with throwaway_server(18) as running:
        script = ROOT / "deploy" / "database.sh"
        made = subprocess.run(
            ["sh", script],
            env=os.environ | SECRETS | {"PGHOST": running.host, "PATH": f"{binaries(18)}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        yield running


def environment(service: dict[str, Any], hosts: dict[str, str]) -> dict[str, str]:
    """What compose would set: secrets filled in, and our places for the names of its network."""
    found = {}
    for name, value in service["environment"].items():
        filled = re.sub(r"\$\{(\w+):\?\}", lambda match: SECRETS[match[1]], value)
        for host, place in hosts.items():
            filled = filled.replace(host, place)
        found[name] = filled
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def pooler(service: dict[str, Any], cluster: Cluster, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The container `pooler`: its script, as a user that is not root."""
    if BINARY is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="vs-pooler-"))
    script = Path(shutil.copy(ROOT / "deploy" / "pooler.sh", folder))
    given = environment(service, {}) | {"DATABASE_HOST": cluster.host, "DATABASE_PORT": str(cluster.port)}
    given |= {"LISTEN_ADDRESS": "127.0.0.1", "LISTEN_PORT": str(port), "TMPDIR": str(folder)}
    as_nobody: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_nobody = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody")
    process = subprocess.Popen([script], env={"PATH": f"{os.environ['PATH']}:/usr/sbin"} | given, cwd="/", **as_nobody)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


async def test_the_services_of_the_composition_serve_a_call(
    compose: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    port, services = free_port(), compose["services"]
    hosts = {"@database:5432/vanilla_saas": f"@/vanilla_saas?host={cluster.host}", "@pooler:6432": f"@127.0.0.1:{port}"}

    def installed(name: str) -> Installation:
        (tmp_path / name).mkdir()
        return Installation(tmp_path / name, **environment(services[name], hosts))

    migrated = await asyncio.to_thread(installed("migrate").run, *services["migrate"]["command"])
    assert migrated.code == 0, migrated
    with pooler(services["pooler"], cluster, port):
        await eventually(lambda: _listens(port))
        api, worker = installed("api"), installed("worker")
        async with api.serving(*services["api"]["command"]) as running, worker.serving(*services["worker"]["command"]):
            operator = await asyncpg.connect(cluster.url(database="vanilla_saas"))
            tenant = await operator.fetchval("select id from tenants where slug = 'default'")
            await operator.fetchval("select create_user('one@example.test', p_tenant_id => $1)", tenant)
            made = await asyncio.to_thread(api.run, "keys", "create", "--user", "one@example.test", "--json")
            assert made.code == 0, made
            key = max(re.findall(r"vsk_[\w-]+", made.out), key=len)  # its prefix is shown too
            body = {"model": "sandbox-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
            async with (
                aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http,
                http.post(f"{running.url}/v1/chat/completions", json=body) as answer,
            ):
                assert answer.status == 200, await answer.text()
            await assert_books_are_clean(operator)
            await operator.close()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def test_the_login_that_migrates_is_no_superuser(cluster: Cluster) -> None:
    rights = "select rolsuper, rolcreaterole, rolbypassrls from pg_roles where rolname = 'vanilla'"
    assert Shell(cluster, 18, "postgres").statement(rights) == "f|t|f"


def test_the_pooler_has_the_settings_of_its_page() -> None:
    documented, scripted = configparser.ConfigParser(), configparser.ConfigParser()
    documented.read_string(re.search(r"```ini\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])  # type: ignore[index]
    text = re.search(r"<<INI\n(.*?)INI\n", (ROOT / "deploy" / "pooler.sh").read_text(), re.DOTALL)
    scripted.read_string(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text[1]))  # type: ignore[index]
    own = {"listen_addr", "auth_file", "unix_socket_dir"}
    pages, scripts = dict(documented["pgbouncer"]), dict(scripted["pgbouncer"])
    assert {k: v for k, v in pages.items() if k not in own} == {k: v for k, v in scripts.items() if k not in own}


def test_every_service_names_files_and_services_that_exist(compose: dict[str, Any]) -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    for name, service in compose["services"].items():
        assert set(service.get("depends_on", ())) <= set(compose["services"]), name
        if "build" in service:
            assert service["build"]["target"] in stages
            assert (ROOT / service["build"]["dockerfile"]).exists()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]


def test_the_context_of_the_image_holds_all_that_it_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    for path in " ".join(copied).split():
        assert path.split("/")[0] in allowed
        assert (ROOT / path).exists()
