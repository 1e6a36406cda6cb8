"""What is published: a wheel and a source distribution with everything in them, installed where there is nothing."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from tests.processes import Running, new_home

ROOT = Path(__file__).parents[2]
UV = os.environ.get("UV") or shutil.which("uv")


def uv(*arguments: str | Path) -> None:
    if UV is None:
        pytest.skip("uv is not on PATH")
    done = subprocess.run([UV, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, the wheel made from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", folder, ROOT)
    return folder


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return set(listed.stdout.split())


def test_the_wheel_holds_every_file_of_the_package_and_the_migrations(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {name.removeprefix("src/") for name in tracked("src")}
    beside = tracked("migrations", "examples/engines", "examples/support_desk")
    assert names == package | {f"vanilla_saas/{name}" for name in beside}
    assert sum(name.startswith("vanilla_saas/examples/engines/") for name in names) == 3


def test_the_source_distribution_holds_what_the_tests_and_containers_need(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("src", "migrations", "tests", "benchmarks", "docs", "deploy", "*.yaml", "*.json", "uv.lock") <= names


async def test_the_wheel_in_an_empty_place_is_up_and_healthy(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    environment = tmp_path / "environment"
    uv("venv", "--quiet", "--python", sys.executable, environment)
    uv("pip", "install", "--quiet", "--python", environment, wheel)
    command = environment / "bin" / "vanilla-saas"
    async with new_home() as home:
        empty = Path(tempfile.mkdtemp(prefix="vs-"))
        given = {"HOME": str(empty), "PATH": "/usr/bin:/bin", "VANILLA_SAAS_HOME": str(home)}
        running = Running(["up"], given | {"VANILLA_SAAS_PORT": "0"}, empty, command=[str(command)])
        try:
            await running.ready()
            assert re.search(r"Demo key\s+vsk_", running.out), running.out
            doctor = subprocess.run(
                [command, "doctor"], env=given, cwd=empty, capture_output=True, text=True, check=False
            )
            # a warning says that the first password is still in use
            assert doctor.returncode == 0, doctor.stdout + doctor.stderr
            assert doctor.stdout.splitlines()[-1] == "0 errors, 1 warnings."
            assert await running.stop() == 0
        finally:
            await running.end()
            shutil.rmtree(empty)
