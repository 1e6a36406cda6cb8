"""A backup that is cut off, changed, newer, another project's or locked; a full disk; a kill: nothing half-written."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import TEST_KEY, Cluster, create_database, migrated_database
from tests.operations.backup_support import SIGNER, copy_of, databases, files_of, fill
from tests.processes import Installation
from vanilla_saas.operations import backup as backing_up
from vanilla_saas.operations.backup import Made, make_backup
from vanilla_saas.operations.backup_crypto import CHUNK, BackupKey, FileWriter, read_file
from vanilla_saas.operations.backup_errors import BackupError
from vanilla_saas.operations.backup_manifest import ANCHOR, DUMP, MANIFEST, Manifest, find_backup, open_backup
from vanilla_saas.operations.backup_programs import started
from vanilla_saas.operations.restore import restore

PASSPHRASE = "four short words here"


@pytest.fixture(scope="module")
async def source(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster) as name:
        await fill(cluster.url(database=name))
        yield name


@pytest.fixture(scope="module")
async def made(cluster: Cluster, source: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return await make_backup(cluster.url(database=source), tmp_path_factory.mktemp("backups"))


@pytest.fixture(scope="module")
async def sealed(cluster: Cluster, source: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("sealed")
    return await make_backup(cluster.url(database=source), folder, passphrase=PASSPHRASE)


def _manifest(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Changes the manifest and leaves its seal as it was."""

    def spoil(folder: Path) -> None:
        body = json.loads((folder / MANIFEST).read_text())
        change(body)
        (folder / MANIFEST).write_text(json.dumps(body))

    return spoil


def _resealed(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Changes the manifest as another version or project would have written it."""

    def spoil(folder: Path) -> None:
        body = json.loads((folder / MANIFEST).read_text())
        body.pop("seal")
        change(body)
        (folder / MANIFEST).write_bytes(Manifest(**body).sealed(None))

    return spoil


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 100)


def _flip(folder: Path) -> None:
    content = bytearray((folder / DUMP).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / DUMP).write_bytes(content)


BAD: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a dump that is cut off": ("backup_damaged", _cut(DUMP)),
    "a dump with one bit changed": ("backup_damaged", _flip),
    "a dump that is gone": ("backup_damaged", lambda folder: (folder / DUMP).unlink()),
    "an anchor that is cut off": ("backup_damaged", _cut(ANCHOR)),
    "a manifest that is cut off": ("backup_damaged", _cut(MANIFEST)),
    "a manifest that was changed": ("backup_damaged", _manifest(lambda body: body["tables"][0].update(rows=7))),
    "a manifest without its seal": ("backup_damaged", _manifest(lambda body: body.pop("seal"))),
    "a manifest without a format": ("backup_damaged", _manifest(lambda body: body.pop("format"))),
    "a manifest that is gone": ("backup_damaged", lambda folder: (folder / MANIFEST).unlink()),
    "a newer format": ("backup_newer", _resealed(lambda body: body.update(format=2))),
    "a newer schema": (
        "backup_newer",
        _resealed(lambda body: body["schema"]["files"].update({"099_later.sql": "0" * 64})),
    ),
    "another version of the ten files": (
        "backup_other_schema",
        _resealed(lambda body: body["schema"]["files"].update({"001_initial_schema.sql": "0" * 64})),
    ),
    "another project's": ("backup_foreign", _resealed(lambda body: body.update(product="other"))),
    "a dump of something else": (
        "restore_differs",
        _resealed(lambda body: body["tables"].append({"name": "public.x", "columns": [], "rows": 1, "digest": "1"})),
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_backup_that_is_not_right_is_refused_by_name_and_the_database_stays_as_it_was(
    cluster: Cluster, made: Made, tmp_path: Path, what: str
) -> None:
    code, spoil = BAD[what]
    copy = copy_of(made, tmp_path)
    spoil(copy.path)
    async with create_database(cluster, f"test_bad_{os.urandom(4).hex()}") as name:
        url = cluster.url(database=name)
        with pytest.raises(BackupError) as refusal:
            await restore(copy.opened(), url, SIGNER)
        assert refusal.value.name == code, refusal.value.message
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("select to_regclass('public.users') is null")
        await connection.close()
    assert not any(found.startswith(name) for found in await databases(cluster))


def test_an_encrypted_backup_opens_with_its_passphrase_and_with_nothing_else(sealed: Made, tmp_path: Path) -> None:
    open_backup(sealed.path, PASSPHRASE).check_files()
    for secret in (None, "", "other words", PASSPHRASE + " "):
        with pytest.raises(BackupError) as refusal:
            open_backup(sealed.path, secret)
        assert refusal.value.name == "backup_locked"
    for name in sealed.manifest.files:
        assert b"example.test" not in (sealed.path / name).read_bytes()
        assert b"create role" not in (sealed.path / name).read_bytes()
    copy = copy_of(sealed, tmp_path)
    _manifest(lambda body: body["tables"][0].update(rows=7))(copy.path)
    with pytest.raises(BackupError):  # whoever lacks the key cannot seal what they changed
        open_backup(copy.path, PASSPHRASE)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_what_is_encrypted_comes_back_and_nothing_that_was_changed_does(tmp_path: Path, size: int) -> None:
    key, content, path = BackupKey.new(PASSPHRASE), os.urandom(size), tmp_path / "file"
    with FileWriter(path, key) as file:
        for start in range(0, size, 300_000):
            file.write(content[start : start + 300_000])
    assert b"".join(read_file(path, key)) == content
    whole = path.read_bytes()
    spoiled = [whole[:-1], whole[:-20], whole[:13], whole[: len(whole) // 2], whole + b"x", whole[:-1] + b"\x00"]
    if size > 2 * CHUNK:
        part = 4 + CHUNK + 16
        spoiled += [whole[:13] + whole[13 + part :], whole[: 13 + part], whole[:13] + whole[13 : 13 + part] * 2]
    for bad in spoiled:
        path.write_bytes(bad)
        with pytest.raises(BackupError):
            list(read_file(path, key))
    # the name is bound to the content, and another backup's key is another key
    path.write_bytes(whole)
    with pytest.raises(BackupError):
        list(read_file(path.rename(tmp_path / "other"), key))
    with pytest.raises(BackupError):
        list(read_file((tmp_path / "other").rename(path), BackupKey.new(PASSPHRASE)))


def test_what_is_no_backup_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "vanilla-saas-20200101T000000Z").mkdir()
    (tmp_path / "plain.sql").write_text("select 1")
    for path in (tmp_path, tmp_path / "vanilla-saas-20200101T000000Z", tmp_path / "plain.sql"):
        with pytest.raises(BackupError) as refusal:
            open_backup(path, None)
        assert refusal.value.name == "backup_foreign"


async def test_a_disk_that_fills_leaves_no_backup_and_says_so(
    cluster: Cluster, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real write that fails: the kernel refuses to let a file grow past the limit, as it does on a full disk."""
    await make_backup(cluster.url(database=source), tmp_path)
    before = files_of(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        with pytest.raises(BackupError) as refusal:
            await make_backup(cluster.url(database=source), tmp_path, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert refusal.value.name == "backup_disk_full"
    assert files_of(tmp_path) == before


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="there is no /dev/full")
async def test_a_device_without_space_is_a_full_disk(
    cluster: Cluster, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: object) -> FileWriter:
        writer = FileWriter(path, *arguments)  # type: ignore[arg-type]
        if path.name == DUMP:
            writer._file.close()
            writer._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        return writer

    monkeypatch.setattr(backing_up, "FileWriter", full)
    with pytest.raises(BackupError) as refusal:
        await make_backup(cluster.url(database=source), tmp_path)
    assert refusal.value.name == "backup_disk_full"
    assert files_of(tmp_path) == []


async def test_a_program_that_is_left_while_its_pipe_is_full_is_ended() -> None:
    async with asyncio.timeout(30):
        async with started(["yes"], "postgresql://u@127.0.0.1:1/d") as process:
            assert process.stdout is not None
            while not process.stdout._paused:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
    assert process.returncode == -signal.SIGKILL


async def test_a_second_backup_into_the_same_folder_is_refused_while_the_first_runs(
    cluster: Cluster, source: str, tmp_path: Path
) -> None:
    with backing_up._alone(tmp_path), pytest.raises(BackupError) as refusal:
        await make_backup(cluster.url(database=source), tmp_path)
    assert refusal.value.name == "backup_busy"
    await make_backup(cluster.url(database=source), tmp_path)


async def test_a_backup_that_is_killed_leaves_nothing_that_is_taken_for_one(
    cluster: Cluster, source: str, tmp_path: Path
) -> None:
    """Killed while pg_dump waits for a lock, in the middle of its work."""
    place = Installation(tmp_path, DATABASE_URL=cluster.url(database=source), VANILLA_SAAS_CONTEXT_KEY=TEST_KEY)
    folder = tmp_path / "backups"
    connection = await asyncpg.connect(cluster.url(database=source))
    async with connection.transaction():
        await connection.execute("lock table levels in access exclusive mode")
        running = place.start("backup")
        try:
            await _until(lambda: folder.exists() and any(p.name.startswith(".unfinished") for p in folder.iterdir()))
            running.send(signal.SIGKILL)
            running.process.wait()
        finally:
            await running.end()
    await connection.close()
    assert not any(name.startswith("vanilla-saas") for name in files_of(folder))
    with pytest.raises(BackupError) as refusal:
        find_backup(folder, "latest")
    assert refusal.value.name == "backup_not_found"
    done = await asyncio.to_thread(place.run, "backup", "--json")
    assert done.code == 0, done
    assert files_of(folder) == [Path(json.loads(done.out)["backup"]).name]


async def _until(ask: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_password_of_the_address_is_not_in_the_list_of_processes() -> None:
    """The program gets its connection through the environment."""
    script = (
        "import asyncio, pathlib\n"
        "from vanilla_saas.operations.backup_programs import started\n"
        "async def main():\n"
        "    async with started(['sh', '-c', 'cat /proc/$$/cmdline; echo $PGPASSWORD'],\n"
        "                       'postgresql://u:s3cret@127.0.0.1:1/d') as process:\n"
        "        print((await process.stdout.read()).decode().replace(chr(0), ' '))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    command, _, password = done.stdout.strip().rpartition(" ")
    assert (password.strip(), "s3cret" in command) == ("s3cret", False)
