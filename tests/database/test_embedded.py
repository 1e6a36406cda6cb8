"""The embedded server: shared by processes, brought back when killed, stopped with its last user."""

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from vanilla_saas.database import embedded, embedded_data, postmaster
from vanilla_saas.database.embedded import EmbeddedServer, EmbeddedServerError, attach
from vanilla_saas.settings import Settings

FAST = {"fsync": "off"}

USER_PROCESS = """
import json, sys
from pathlib import Path
from vanilla_saas.settings import Settings
from vanilla_saas.database.embedded import attach
server = attach(Settings(home=Path(sys.argv[1])), {"fsync": "off"})
print(json.dumps({"started": server.started, "dsn": server.dsn(), "data": str(server.data_dir)}), flush=True)
sys.stdin.read()
server.close()
"""


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """The condition's value as soon as it is true; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
    return value


def keeper_pid(home: Path) -> int:
    """Pid of the keeper, from the kernel's list of locks."""
    inode = (home / "keeper.lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return 0


@pytest.fixture
def new_home() -> Iterator[Path]:
    """A short path that the server's user can reach; every process on it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    folder.chmod(0o755)
    home = folder / "home"
    yield home
    if (home / "keeper.lock").exists():
        until(lambda: not embedded._keeper_lives(home))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """Made once: initdb takes longer than most tests."""
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    folder.chmod(0o755)
    home = folder / "home"
    attach(Settings(home=home), FAST).close()
    until(lambda: not embedded._keeper_lives(home))
    yield home
    shutil.rmtree(folder)


@pytest.fixture
def home(stopped: Path) -> Iterator[Path]:
    """A home whose server has been used before and does not run, before as after."""
    (stopped / "server.log").unlink()
    yield stopped
    until(lambda: not embedded._keeper_lives(stopped))


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """One durable server for the tests that only look at it."""
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    folder.chmod(0o755)
    with attach(Settings(home=folder / "home")) as server:
        yield server
    until(lambda: not embedded._keeper_lives(server.home))
    shutil.rmtree(folder)


def look_into(process: Path) -> Path:
    """The process's folder in /proc, if we may read it: a container's root often may not."""
    try:
        (process / "environ").read_bytes()
    except PermissionError:
        pytest.skip("processes of other users cannot be looked into here (no CAP_SYS_PTRACE)")
    return process


@contextlib.contextmanager
def user_process(home: Path, **popen: Any) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """Another process that attached and uses the server until its input ends."""
    process = subprocess.Popen(
        [popen.pop("python", sys.executable), "-c", USER_PROCESS, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **popen,
    )
    with process:
        assert process.stdout
        line = process.stdout.readline()
        assert line, "the process could not attach"
        yield process, json.loads(line)


@contextlib.contextmanager
def stranger(**popen: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A living process that has nothing to do with PostgreSQL."""
    with subprocess.Popen(["sleep", "600"], **popen) as process:
        try:
            yield process
        finally:
            process.kill()


async def query(dsn: str, *statements: str, seconds: float = 15.0) -> Any:
    """Value of the last statement; connects again while the server is coming back."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = await asyncpg.connect(dsn)
            break
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            assert time.monotonic() < deadline, "the server did not come back in time"
            await asyncio.sleep(0.01)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


def server_pid(server: EmbeddedServer) -> int:
    return postmaster.postmaster_pid(server.data_dir)


# Sharing


async def test_several_processes_share_one_server(home: Path) -> None:
    with (
        user_process(home) as (_, first),
        user_process(home) as (_, second),
        attach(Settings(home=home)) as mine,
    ):
        assert (first["started"], second["started"], mine.started) == (True, False, False)
        assert first["dsn"] == second["dsn"] == mine.dsn()
        assert await query(mine.dsn(), "select current_database()") == "vanilla_saas"


def test_processes_that_start_together_start_one_server(new_home: Path) -> None:
    with contextlib.ExitStack() as users:
        processes = [
            users.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", USER_PROCESS, str(new_home)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        answers = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
        assert sorted(answer["started"] for answer in answers) == [False, False, False, True]


def test_the_server_stops_when_its_last_user_leaves(home: Path) -> None:
    with attach(Settings(home=home), FAST) as first:
        second = attach(Settings(home=home))
        pid = server_pid(first)
    # one share is left: a keeper that does not count would stop within this time
    with pytest.raises(AssertionError):
        until(lambda: not server_pid(second), seconds=0.3)
    second.close()
    second.close()
    until(lambda: not server_pid(second))
    until(lambda: not postmaster.exists(pid))
    assert "database system is shut down" in (home / "server.log").read_text()


def test_the_server_stops_when_its_last_user_is_killed(home: Path) -> None:
    with user_process(home) as (process, user):
        data = Path(user["data"])
        assert postmaster.postmaster_pid(data)
        process.kill()
        process.wait()
        until(lambda: not postmaster.postmaster_pid(data))
    assert "database system is shut down" in (home / "server.log").read_text()


def test_a_held_share_outlives_the_process_that_asked_for_it(home: Path) -> None:
    with stranger() as shell:
        with attach(Settings(home=home), FAST) as server:
            server.hold_for(shell.pid)
        with pytest.raises(AssertionError):
            until(lambda: not server_pid(server), seconds=0.3)
        shell.kill()
        shell.wait()
        until(lambda: not server_pid(server))


# Coming back


async def test_a_killed_server_comes_back_for_running_processes_with_its_data(home: Path) -> None:
    with attach(Settings(home=home)) as server:
        await query(
            server.dsn(),
            "drop table if exists kept",
            "create table kept (n int)",
            "insert into kept values (42) returning n",
        )
        for _ in range(3):
            before = server_pid(server)
            os.kill(before, signal.SIGKILL)
            until(lambda before=before: server_pid(server) not in (0, before))
            assert await query(server.dsn(), "select n from kept") == 42
    assert "starting again" in (home / "server.log").read_text()


async def test_a_server_whose_old_backend_still_works_comes_back_when_that_ends(home: Path) -> None:
    busy = "do $$ begin while clock_timestamp() < statement_timestamp() + interval '1.5 s' loop end loop; end $$"
    with attach(Settings(home=home), FAST) as server:
        connection = await asyncpg.connect(server.dsn())
        work = asyncio.create_task(connection.execute(busy))
        await asyncio.to_thread(until, lambda: "active" in _activity(server))
        os.kill(keeper_pid(home), signal.SIGKILL)
        os.kill(server_pid(server), signal.SIGKILL)
        until(lambda: not embedded._keeper_lives(home))
        again = await asyncio.to_thread(attach, Settings(home=home), FAST)
        with again:
            assert again.started
            assert await query(again.dsn(), "select 1") == 1
        assert "shared memory block" in (home / "server.log").read_text()
        # the connection fails or ends with the old backend; either is right
        await asyncio.gather(work, return_exceptions=True)
        connection.terminate()


def _activity(server: EmbeddedServer) -> str:
    statement = "select string_agg(state, ' ') from pg_stat_activity where query like 'do $$%'"
    command = [server.bin_dir / "psql", "-XAtqc", statement]
    return subprocess.run(command, env=server.pg_environment(), capture_output=True, text=True, check=True).stdout


def test_a_server_whose_keeper_was_killed_gets_a_new_keeper(home: Path) -> None:
    with attach(Settings(home=home), FAST) as first:
        pid = server_pid(first)
        os.kill(until(lambda: keeper_pid(home)), signal.SIGKILL)
        until(lambda: not embedded._keeper_lives(home))
        with attach(Settings(home=home)) as second:
            assert (second.started, server_pid(second)) == (False, pid)
    until(lambda: not server_pid(first))


async def test_an_adopted_server_that_is_killed_comes_back(home: Path) -> None:
    with attach(Settings(home=home), FAST) as first:
        os.kill(until(lambda: keeper_pid(home)), signal.SIGKILL)
        until(lambda: not embedded._keeper_lives(home))
        with attach(Settings(home=home), FAST) as second:
            os.kill(server_pid(first), signal.SIGKILL)
            assert await query(second.dsn(), "select 1") == 1


def test_a_terminated_keeper_stops_its_server_first(home: Path) -> None:
    with attach(Settings(home=home), FAST) as server:
        os.kill(until(lambda: keeper_pid(home)), signal.SIGTERM)
        until(lambda: not embedded._keeper_lives(home))
        assert not server_pid(server)
        with attach(Settings(home=home), FAST) as again:
            assert again.started


# Stale files


def _stop(server: EmbeddedServer) -> None:
    server.close()
    until(lambda: not embedded._keeper_lives(server.home))


def test_the_pid_file_of_a_dead_process_does_not_stop_a_start(home: Path) -> None:
    server = attach(Settings(home=home), FAST)
    _stop(server)
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    _write_pid_files(server, dead.pid)
    with attach(Settings(home=home), FAST) as again:
        assert again.started


def test_the_pid_file_of_a_living_stranger_does_not_stop_a_start(home: Path) -> None:
    server = attach(Settings(home=home), FAST)
    _stop(server)
    owner = server.data_dir.stat()
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with stranger(**as_owner) as process:
        _write_pid_files(server, process.pid)
        with attach(Settings(home=home), FAST) as again:
            assert again.started
        assert process.poll() is None
    assert "removed the stale postmaster.pid" in (home / "server.log").read_text()


def _write_pid_files(server: EmbeddedServer, pid: int) -> None:
    pid_lines = f"{pid}\n{server.data_dir}\n{int(time.time())}\n5432\n{server.socket_dir}\n\n1 1\nready   \n"
    for path in (server.data_dir / "postmaster.pid", server.socket_dir / ".s.PGSQL.5432.lock"):
        path.write_text(pid_lines)
        owner = server.data_dir.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def test_a_half_made_data_directory_is_made_again(new_home: Path) -> None:
    new_home.mkdir(mode=0o711)
    left = new_home / "postgresql" / "data.new-left"
    left.mkdir(parents=True)
    (left / "PG_VERSION").write_text("18\n")
    with attach(Settings(home=new_home), FAST):
        assert not left.exists()


def test_a_large_log_is_moved_aside_at_a_start(home: Path) -> None:
    with (home / "server.log").open("wb") as log:
        log.truncate(postmaster.LOG_BYTES + 1)
    with attach(Settings(home=home), FAST):
        assert (home / "server.log.1").stat().st_size == postmaster.LOG_BYTES + 1
        assert 0 < (home / "server.log").stat().st_size < 100_000


# Who may come in


def test_only_the_servers_user_may_enter_its_folders(server: EmbeddedServer) -> None:
    for folder in (server.data_dir, server.socket_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.home / "server.log").stat().st_mode) == 0o600
    owner = server.data_dir.stat().st_uid
    assert owner != 0
    assert Path(f"/proc/{server_pid(server)}").stat().st_uid == owner


async def test_nothing_listens_on_tcp(server: EmbeddedServer) -> None:
    assert await query(server.dsn(), "show listen_addresses") == ""
    sockets = {
        link.removeprefix("socket:[").rstrip("]")
        for entry in (look_into(Path(f"/proc/{server_pid(server)}")) / "fd").iterdir()
        if (link := os.readlink(entry)).startswith("socket:")
    }
    assert sockets
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6"), Path("/proc/net/udp")]
    listening = {line.split()[9] for table in tables if table.exists() for line in table.read_text().splitlines()[1:]}
    assert not sockets & listening


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a moment")
def test_another_user_is_refused_even_when_the_folders_stand_open(server: EmbeddedServer) -> None:
    command = [str(server.bin_dir / "psql"), "-XAtqc", "select 1"]
    nobody = pwd.getpwnam("nobody")

    def as_nobody() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            env=server.pg_environment(),
            user=nobody.pw_uid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    assert "Permission denied" in as_nobody().stderr
    try:
        server.socket_dir.chmod(0o755)
        (server.socket_dir / ".s.PGSQL.5432").chmod(0o777)
        assert "Peer authentication failed" in as_nobody().stderr
    finally:
        server.socket_dir.chmod(0o700)


def test_the_server_does_not_see_its_starters_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_API_KEY", "not-for-the-server")
    with attach(Settings(home=home), FAST) as server:
        for pid in (server_pid(server), keeper_pid(home)):
            assert b"not-for-the-server" not in (look_into(Path(f"/proc/{pid}")) / "environ").read_bytes()


async def test_every_role_may_be_taken_without_a_password(server: EmbeddedServer) -> None:
    await query(server.dsn(), "create role vanilla_app login", "select 1")
    assert await query(server.dsn("vanilla_app"), "select session_user::text") == "vanilla_app"
    rules = await query(server.dsn(), "select string_agg(type || ' ' || auth_method, ',') from pg_hba_file_rules")
    assert rules == "local peer,local peer"


def _interpreter_for_others() -> str | None:
    """An interpreter of our version outside root's folders."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        done = subprocess.run(
            ["/bin/sh", "-c", f'"{python}" -c ""'],
            user="nobody",
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            return python
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests ran as an ordinary user")
async def test_an_ordinary_user_runs_the_server_itself() -> None:
    python = _interpreter_for_others()
    if python is None:
        pytest.skip("no interpreter of this version can be run by another user")
    nobody = pwd.getpwnam("nobody")
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    paths = [str(Path(embedded.__file__).parents[2]), *(path for path in sys.path if "-packages" in path)]
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths)}
    home = folder / "home"
    with user_process(
        home,
        python=python,
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        cwd="/",
        env=environment,
    ) as (process, user):
        data = Path(user["data"])
        assert user["started"]
        assert data.is_relative_to(home)
        pid = postmaster.postmaster_pid(data)
        assert {data.stat().st_uid, Path(f"/proc/{pid}").stat().st_uid} == {nobody.pw_uid}
        # root shares it, as that user's guest
        with attach(Settings(home=home)) as mine:
            assert not mine.started
            assert await query(mine.dsn(), "select current_user::text") == "postgres"
        process.kill()
        process.wait()
    until(lambda: not postmaster.postmaster_pid(data))
    until(lambda: not embedded._keeper_lives(home))
    shutil.rmtree(folder)


# Versions and settings


async def test_the_version_can_be_chosen(new_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VANILLA_SAAS_PG_VERSION", "16")
    with attach(Settings(home=new_home), FAST) as server:
        assert server.version == 16
        assert (await query(server.dsn(), "show server_version")).startswith("16.")
        assert await query(server.dsn(), "select upper('é') || current_setting('server_encoding')") == "ÉUTF8"


async def test_a_new_server_has_the_settings_of_an_embedded_one(server: EmbeddedServer) -> None:
    names = ("TimeZone", "max_connections", "shared_buffers", "data_checksums", "fsync")
    found = [await query(server.dsn(), f"show {name}") for name in names]
    assert found == ["UTC", "100", "128MB", "on", "on"]
    assert await query(server.dsn(), "select upper('é')") == "É"


async def test_options_are_given_to_the_start_that_names_them(home: Path) -> None:
    with attach(Settings(home=home), {"work_mem": "7MB", **FAST}) as server:
        assert await query(server.dsn(), "show work_mem") == "7MB"
        os.kill(server_pid(server), signal.SIGKILL)
        assert await query(server.dsn(), "show work_mem") == "7MB"
    with pytest.raises(ValueError, match="not the name"):
        attach(Settings(home=home), {"work_mem=1 -c fsync": "off"})


def test_the_environment_lets_psql_of_the_seed_find_the_server(server: EmbeddedServer) -> None:
    command = ["psql", "-U", "postgres", "-d", "vanilla_saas", "-XAtqc", "select current_database()"]
    environment = os.environ | server.pg_environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "vanilla_saas\n"
    assert shutil.which("psql", path=environment["PATH"]) == str(server.bin_dir / "psql")


async def test_defaults_are_written_where_an_owner_can_change_them(
    new_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one that initdb does not choose by itself
    monkeypatch.setitem(embedded_data.DEFAULTS, "work_mem", "5MB")
    with attach(Settings(home=new_home), FAST) as server:
        assert await query(server.dsn(), "show work_mem") == "5MB"
        await query(server.dsn(), "alter system set work_mem = '6MB'", "select pg_reload_conf()")
        assert await query(server.dsn(), "show work_mem") == "6MB"


def test_an_attach_that_fails_leaves_no_server_and_no_lock(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_ensure_database", lambda server: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attach(Settings(home=home), FAST)
    until(lambda: not embedded._keeper_lives(home))
    monkeypatch.undo()
    with attach(Settings(home=home), FAST) as server:
        assert server.started


def test_errors_have_a_code_and_a_way_out() -> None:
    error = EmbeddedServerError("embedded_busy", "It is busy.", "Wait.")
    assert (error.code, str(error)) == ("embedded_busy", "It is busy. Wait.")
