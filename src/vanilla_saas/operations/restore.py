"""Restore: always into a new database, which is compared with the manifest and takes the name only when it is equal.

So a restore that fails, is killed or fills the disk has changed nothing. `verify` is the same without the last step.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import asyncpg
import orjson

from vanilla_saas.checks import Finding, run_checks
from vanilla_saas.database.context import ContextSigner, parse_keys, replace_key_file
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.schema import FIRST_UPGRADE
from vanilla_saas.operations import backup_store as store
from vanilla_saas.operations.backup import Progress, connected, digests
from vanilla_saas.operations.backup_crypto import read_file, read_lines
from vanilla_saas.operations.backup_errors import BackupError
from vanilla_saas.operations.backup_manifest import ANCHOR, CATALOG, DUMP, ROLES, Backup, Manifest, our_schema
from vanilla_saas.operations.backup_programs import client_programs, fed, finish, run_sql, started
from vanilla_saas.operations.reload import reload_into
from vanilla_saas.tokens import anchor_file

OF_THE_TICK = (
    "holds_overdue",
    "webhooks_overdue",
    "partitions_ahead",
    "default_partitions_empty",
    "schedules_failing",
)
"""Checks of what time passed since the backup makes overdue; the next tick of a server does it."""
LEAVING_S = 5.0
"""How long sessions that are about to end are waited for: as long as PostgreSQL does before it refuses to rename."""


@dataclass(slots=True)
class Proof:
    """What a restored copy was found to be. `differences` make it no copy, `findings` were in the original."""

    seconds: dict[str, float] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    chains: int = 0
    rows: int = 0

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def errors(self) -> list[str]:
        """Why the backup is not one to rely on; empty when it is."""
        return self.differences + [
            str(one) for one in self.findings if one.check.severity == "error" and one.check.name not in OF_THE_TICK
        ]

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.monotonic() - began, 3)


@dataclass(frozen=True, slots=True)
class Restored:
    """`kept` is the database that had the name before, under its new one."""

    database: str
    proof: Proof
    kept: str | None
    new_key: bool


def refuse_other_schema(manifest: Manifest, *, reload: bool) -> None:
    """Raises BackupError `backup_newer`, or `backup_other_schema` unless the data is to be reloaded."""
    ours, theirs = our_schema()["files"], manifest.schema["files"]
    if unknown := sorted(set(theirs) - set(ours)):
        raise BackupError(
            "backup_newer",
            f"The backup was made by version {manifest.version}: {', '.join(unknown)} is not known here.",
            "Restore it with the version that made it, or a newer one.",
        )
    changed = [name for name in sorted(theirs) if theirs[name] != ours[name]]
    if changed and not reload:
        raise BackupError(
            "backup_other_schema",
            f"The backup was made by another version of {', '.join(changed)}.",
            "Restore it with that version, or add --reload, which brings its rows into this version's tables.",
        )


def at_database(url: str, name: str) -> str:
    """The same server and login, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(name, safe='')}"))


def database_of(url: str) -> str:
    parts = urlsplit(url)
    return unquote(parts.path.lstrip("/")) or unquote(parts.username or "postgres")


@asynccontextmanager
async def maintenance(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection beside the database that is restored. Raises BackupError `restore_forbidden`."""
    async with connected(at_database(url, "postgres")) as connection:
        if not await store.is_superuser(connection):
            raise BackupError(
                "restore_forbidden",
                "A restore makes databases, roles and objects of several owners: this login is no superuser.",
                "Let DATABASE_URL name a superuser for this one command; to try a backup, `--verify --scratch-cluster`"
                " needs no rights at all.",
            )
        yield connection


async def verify(
    backup: Backup, url: str, *, jobs: int = 2, pg_bin: Path | None = None, progress: Progress = lambda _: None
) -> Proof:
    """Restores into a scratch database of the server at `url`, proves it and drops it.

    Raises BackupError, also for what cannot be restored; what is restored and not equal is in the proof.
    """
    refuse_other_schema(backup.manifest, reload=False)
    proof = Proof()
    await _check_files(backup, proof, progress)
    async with maintenance(url) as server, _scratch(server, f"{database_of(url)[:40]}_verifying", None) as name:
        await _fill(backup, url, name, server, proof, jobs, pg_bin, progress)
        # a key of its own, so that the original's tokens are nothing here, and the cluster's logins are left alone
        scratch_key = ContextSigner(os.urandom(32))
        await _prove(backup, at_database(url, name), scratch_key, proof, progress, logins=False)
    return proof


async def restore(
    backup: Backup,
    url: str,
    signer: ContextSigner,
    *,
    replace: bool = False,
    reload: bool = False,
    forget: tuple[str, ...] = (),
    key: str = "",
    jobs: int = 2,
    pg_bin: Path | None = None,
    progress: Progress = lambda _: None,
) -> Restored:
    """Puts the backup in the place of the database at `url`; what was there is renamed, not dropped.

    `replace`: it may hold something. `reload`: the rows of another version into this version's tables, without those
    named in `forget`. `key`: `keep` the context key although the original has it, or `new` for another one in its file.
    Raises BackupError with the database as it was.
    """
    refuse_other_schema(backup.manifest, reload=reload)
    target, proof = database_of(url), Proof()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(maintenance(url))
        like = await store.database(server, target)
        empty = await _refuse_occupied(server, url, target, like, replace)
        new_key = await _wants_new_key(server, backup.manifest, signer, key)
        await _check_files(backup, proof, progress)
        made = await stack.enter_async_context(_scratch(server, f"{target[:40]}_restoring", like))
        await _fill(backup, url, made, server, proof, jobs, pg_bin, progress)
        if reload and not proof.differences:
            old, made = made, await stack.enter_async_context(_scratch(server, f"{target[:40]}_reloading", like))
            with proof.timed("reload"):
                await reload_into(at_database(url, old), at_database(url, made), signer, forget, progress)
        if proof.differences:
            raise _not_equal(proof)
        if new_key is not None:
            replace_key_file(new_key, [os.urandom(32)])
            signer = ContextSigner(*parse_keys(new_key.read_text()), path=new_key)
        await _prove(backup, at_database(url, made), signer, proof, progress, logins=True)
        if proof.differences:
            raise _not_equal(proof)
        kept = f"{target[:40]}_before_{datetime.now(UTC):%Y%m%d%H%M%S}" if like else None
        await _take_place(server, made, target, kept)
        if kept and empty:
            await store.drop_database(server, kept)
            kept = None
    await _record(url, backup, proof)
    return Restored(target, proof, kept, new_key is not None)


@asynccontextmanager
async def _scratch(server: asyncpg.Connection, what: str, like: asyncpg.Record | None) -> AsyncIterator[str]:
    """A database for the time of the block; one that took another name meanwhile stays."""
    name = f"{what}_{secrets.token_hex(4)}"
    await store.create_database(server, name, like)
    try:
        yield name
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await store.drop_database(server, name)


async def _refuse_occupied(
    server: asyncpg.Connection, url: str, target: str, like: asyncpg.Record | None, replace: bool
) -> bool:
    """Whether the database is absent or empty. Raises BackupError `restore_not_empty`, `restore_in_use`."""
    if like is None:
        return True
    async with connected(url) as connection:
        empty = await store.is_empty(connection)
    if not empty and not replace:
        raise BackupError(
            "restore_not_empty",
            f"The database {target} holds something; nothing was changed.",
            "Say --replace to put the backup in its place; what is there is kept under another name.",
        )
    until = time.monotonic() + LEAVING_S
    while sessions := await store.sessions(server, target):
        if time.monotonic() > until:
            raise _in_use(target, sessions)
        await asyncio.sleep(0.1)
    return empty


def _in_use(target: str, sessions: int | None = None) -> BackupError:
    many = "somebody is" if sessions is None else f"{sessions} {'session is' if sessions == 1 else 'sessions are'}"
    return BackupError(
        "restore_in_use",
        f"Nothing was changed: {many} connected to {target}.",
        "Stop servers and workers, which would write what is then put aside, and try again.",
    )


async def _wants_new_key(
    server: asyncpg.Connection, manifest: Manifest, signer: ContextSigner, key: str
) -> Path | None:
    """The key file to replace, or None. In the original's cluster, which is one trust domain, the key stays.

    Raises BackupError `restore_key_shared`.
    """
    here = (await store.identity(server))["cluster"]
    if key == "new":
        if signer.path is None:
            raise _shared_key("VANILLA_SAAS_CONTEXT_KEY is set, which no command can change.")
        return signer.path
    if here != manifest.database["cluster"] and signer.key_id in manifest.context_keys and key != "keep":
        raise _shared_key("It has this installation's context key.")
    return None


def _shared_key(why: str) -> BackupError:
    return BackupError(
        "restore_key_shared",
        f"The copy would accept the tokens of the database the backup was made of. {why} Nothing was changed.",
        "For a copy beside the original set another VANILLA_SAAS_HOME, or VANILLA_SAAS_CONTEXT_KEY to a new"
        " `openssl rand -hex 32`, or say --key new when no server of the original uses this home. To take its place:"
        " --key keep.",
    )


async def _check_files(backup: Backup, proof: Proof, progress: Progress) -> None:
    """Before anything is made: the whole of every file. Raises BackupError `backup_damaged`, `backup_locked`."""
    with proof.timed("files"):
        progress("Reading the files")
        await asyncio.to_thread(backup.check_files)


async def _fill(
    backup: Backup,
    url: str,
    name: str,
    server: asyncpg.Connection,
    proof: Proof,
    jobs: int,
    pg_bin: Path | None,
    progress: Progress,
) -> None:
    """pg_restore into the empty database `name`, then the comparison with the manifest.

    Raises BackupError `backup_programs_missing`, `backup_disk_full`, `restore_failed`.
    """
    here = await store.identity(server)
    programs = await asyncio.to_thread(client_programs, here["postgresql"], pg_bin)
    target = at_database(url, name)
    with proof.timed("restore"):
        progress("Restoring")
        await run_sql(programs, target, backup.read(ROLES).decode())
        await _pg_restore(programs, target, backup, jobs)
    with proof.timed("rows"):
        progress("Counting rows")
        found = await digests(target, "", jobs)
        proof.differences += compare_tables(backup.manifest.tables, found)
        proof.rows = sum(table["rows"] for table in found)
    with proof.timed("catalog"):
        async with connected(target) as connection:
            catalog = await store.catalog(connection)
        # definitions are printed anew by each major version
        texts = here["postgresql"] == backup.manifest.database["postgresql"]
        proof.differences += compare_catalogs(orjson.loads(backup.read(CATALOG)), catalog, texts)


async def _pg_restore(programs: Path, url: str, backup: Backup, jobs: int) -> None:
    """Several connections at once, but from an encrypted file one, as it streams: its clear text never is on a disk."""
    command: list[str | Path] = [
        programs / "pg_restore",
        "--no-password",
        "--exit-on-error",
        f"--dbname={database_of(url)}",
    ]
    if backup.key is None:
        command += [f"--jobs={max(1, jobs)}", backup.path / DUMP]
    async with started(command, url, feed=backup.key is not None) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        feeding = fed(process, read_file(backup.path / DUMP, backup.key)) if backup.key else asyncio.sleep(0)
        _, said, _ = await asyncio.gather(process.stdout.read(), process.stderr.read(), feeding)
        await finish(process, "restore_failed", "pg_restore", said)


async def _prove(
    backup: Backup, url: str, signer: ContextSigner, proof: Proof, progress: Progress, *, logins: bool
) -> None:
    """Gives the copy its key, then runs every check and compares the ledger with the backup's anchor."""
    with proof.timed("migrate"):
        progress("Running the files")
        await migrate(url, signer, repair=not await _upgraded(url), logins=logins)
    async with connected(url) as connection:
        with proof.timed("checks"):
            progress("Running the checks")
            await connection.execute("set search_path = public, pg_catalog")
            proof.findings += await run_checks(connection)
        with proof.timed("chains"):
            progress("Comparing the ledger's chains")
            if backup.manifest.ledger["anchored"]:
                checked = await anchor_file.check(connection, read_lines(backup.path / ANCHOR, backup.key))
                proof.chains = checked.checked
                proof.differences += [f"chain of user {row['user_id']}: {row['problem']}" for row in checked.problems]


async def _upgraded(url: str) -> bool:
    """Whether files after the base were applied: those are never undone by running the base again."""
    async with connected(url) as connection:
        return any(name >= FIRST_UPGRADE for name in await store.applied_files(connection))


async def _take_place(server: asyncpg.Connection, made: str, target: str, kept: str | None) -> None:
    try:
        await store.swap(server, made, target, kept)
    except asyncpg.ObjectInUseError:
        raise _in_use(target) from None


async def _record(url: str, backup: Backup, proof: Proof) -> None:
    async with connected(url) as connection:
        await store.record(
            connection,
            "backup.restored",
            {"backup": backup.path.name, "made_at": backup.manifest.made_at, "seconds": round(proof.total_s, 3)},
            "The last restore into this database.",
        )


def compare_tables(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[str]:
    """In words, where rows or their digest differ."""
    before, after = ({table["name"]: table for table in tables} for tables in (expected, found))
    said = [f"table {name} is {'missing' if name in before else 'not in the backup'}" for name in before.keys() ^ after]
    for name in before.keys() & after:
        if before[name]["rows"] != after[name]["rows"]:
            said.append(f"table {name} has {after[name]['rows']} rows instead of {before[name]['rows']}")
        elif before[name]["digest"] != after[name]["digest"]:
            said.append(f"table {name} has other rows")
    return sorted(said)


def compare_catalogs(expected: dict[str, str], found: dict[str, str], texts: bool = True) -> list[str]:
    """In words, which objects differ; with `texts` also by their definition."""
    said = [f"{name} is {'missing' if name in expected else 'not in the backup'}" for name in expected.keys() ^ found]
    if texts:
        said += [f"{name} is defined otherwise" for name in expected.keys() & found if expected[name] != found[name]]
    return sorted(said)


def _not_equal(proof: Proof) -> BackupError:
    shown = "\n".join(f"  {line}" for line in proof.differences[:20])
    return BackupError(
        "restore_differs",
        f"What was restored is not what was backed up; the database is as it was.\n{shown}",
        "Take another backup: `vanilla-saas backup list`.",
    )
