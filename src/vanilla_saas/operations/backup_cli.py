"""`vanilla-saas backup` and `vanilla-saas restore`."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from vanilla_saas.database.connection import Addresses, addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.operator import AsJson, show, tell
from vanilla_saas.formats import size as in_bytes
from vanilla_saas.operations import rehearsal
from vanilla_saas.operations.backup import Progress, roles_sql
from vanilla_saas.operations.backup_manifest import LATEST, find_backup, open_backup
from vanilla_saas.operations.restore import Proof, Restored
from vanilla_saas.operations.restore import restore as run_restore
from vanilla_saas.settings import Settings

T = TypeVar("T")
backup = typer.Typer(help="Make, list and prove backups; alone: make one.", invoke_without_command=True)
To = Annotated[Path | None, typer.Option("--to", help="Folder of backups [VANILLA_SAAS_BACKUP_DIR].")]
From = Annotated[Path | None, typer.Option("--from", help="Folder of backups [VANILLA_SAAS_BACKUP_DIR].")]
Jobs = Annotated[int, typer.Option(min=1, max=64, help="Connections that work at once.")]
Name = Annotated[str, typer.Argument(help="Name in the folder of backups, path, or latest.")]
ScratchCluster = Annotated[
    bool,
    typer.Option("--scratch-cluster", help="Into an embedded server of its own, not a scratch database beside yours."),
]


@backup.callback()
def make(
    context: typer.Context,
    to: To = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Backups to keep, 0: all [VANILLA_SAAS_BACKUP_KEEP, 7].")
    ] = None,
    jobs: Jobs = 2,
    as_json: AsJson = False,
) -> None:
    """Make a backup while everything goes on working: dump, roles, digests of all rows, ends of all ledger chains."""
    if context.invoked_subcommand is not None:
        return
    made = _run(
        lambda place, say: rehearsal.scheduled_backup(
            place.where, place.settings, directory=to, keep=keep, jobs=jobs, progress=say
        )
    )
    facts = {
        "backup": str(made.path),
        "rows": made.manifest.rows,
        "bytes": made.manifest.size,
        "seconds": made.manifest.seconds,
        "encrypted": made.manifest.encryption is not None,
        "removed": [path.name for path in made.removed],
    }
    removed = f"; {len(made.removed)} older removed" if made.removed else ""
    tell(
        f"{made.path}\n{made.manifest.rows} rows, {in_bytes(made.manifest.size)}"
        f"{', encrypted' if made.manifest.encryption else ''}, in {made.manifest.seconds:.1f} s{removed}.",
        facts,
        as_json,
    )


@backup.command("list")
def list_(directory: From = None, as_json: AsJson = False) -> None:
    """The backups of the folder, the newest first."""
    settings = Settings()
    show(rehearsal.list_backups(directory or settings.backup_directory(), rehearsal.passphrase(settings)), as_json)


@backup.command("check")
def check(name: Name = LATEST, directory: From = None, as_json: AsJson = False) -> None:
    """Look whether a backup's files are whole and open; needs no database. `restore --verify` proves more."""
    settings = Settings()
    path = find_backup(directory or settings.backup_directory(), name)
    found = open_backup(path, rehearsal.passphrase(settings))
    with _spinner() as say:
        say("Reading the files")
        found.check_files()
    facts = {"backup": path.name, "files": len(found.manifest.files), "bytes": found.manifest.size}
    tell(f"{path.name} is whole: {len(found.manifest.files)} files, {in_bytes(found.manifest.size)}.", facts, as_json)


@backup.command("rehearse")
def rehearse(
    name: Name = LATEST,
    directory: From = None,
    scratch_cluster: ScratchCluster = False,
    jobs: Jobs = 2,
    as_json: AsJson = False,
) -> None:
    """Restore a backup for trial, prove it, throw the copy away and keep the result for doctor and console."""
    _show_proof(_rehearse(name, directory, scratch_cluster, jobs), as_json)


@backup.command("roles")
def roles() -> None:
    """Print the SQL that makes the roles a plain dump needs in an empty cluster."""
    typer.echo(roles_sql(), nl=False)


def restore(
    name: Name,
    directory: From = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Into a scratch database, compared in every way, then dropped.")
    ] = False,
    scratch_cluster: ScratchCluster = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="The database may hold something; it is kept under another name.")
    ] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="The backup is of another version of the ten files: bring its rows here.")
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(help="With --reload: a table or column that may be lost, as public.users.nickname."),
    ] = None,
    key: Annotated[
        str, typer.Option(help="When the copy has the original's context key: keep it, or make a new one.")
    ] = "",
    jobs: Jobs = 2,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the place of the configured database: at once and whole, or not at all."""
    if key not in ("", "keep", "new"):
        raise typer.BadParameter("keep or new", param_hint="--key")
    if verify:
        _show_proof(_rehearse(name, directory, scratch_cluster, jobs), as_json)
        return

    async def run(place: "_Place", say: Progress) -> Restored:
        settings = place.settings
        path = find_backup(directory or settings.backup_directory(), name)
        return await run_restore(
            open_backup(path, rehearsal.passphrase(settings)),
            place.where.admin,
            load_signer(settings),
            replace=replace,
            reload=reload,
            forget=tuple(forget or ()),
            key=key,
            jobs=jobs,
            pg_bin=rehearsal.programs_folder(place.where, settings),
            progress=say,
        )

    done = _run(run)
    facts = {"database": done.database, "kept": done.kept, "new_key": done.new_key, **_proof_facts(done.proof)}
    kept = f"\nWhat was there is the database {done.kept} now; drop it when you miss nothing." if done.kept else ""
    new = "\nThe context key is a new one: give it to every server." if done.new_key else ""
    tell(f"{done.database} is restored: {_sentence(done.proof)}{kept}{new}", facts, as_json)
    if not as_json:
        _show_findings(done.proof)


def _rehearse(name: str, directory: Path | None, scratch_cluster: bool, jobs: int) -> Proof:
    return _run(
        lambda place, say: rehearsal.scheduled_rehearsal(
            place.where,
            place.settings,
            directory=directory,
            name=name,
            scratch_cluster=scratch_cluster or None,
            jobs=jobs,
            progress=say,
        )
    )


def _show_proof(proof: Proof, as_json: bool) -> None:
    verdict = "cannot" if proof.errors else "can"
    tell(
        f"The backup {verdict} be relied on: {_sentence(proof)}",
        _proof_facts(proof) | {"ok": not proof.errors},
        as_json,
    )
    if not as_json:
        for line in proof.differences:
            typer.echo(f"error {line}")
        _show_findings(proof)
    if proof.errors:
        raise typer.Exit(1)


def _show_findings(proof: Proof) -> None:
    for one in proof.findings:
        typer.echo(f"{one.check.severity} {one}")


def _sentence(proof: Proof) -> str:
    parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in proof.seconds.items())
    return f"{proof.rows} rows and {proof.chains} ledger chains in {proof.total_s:.1f} s ({parts})."


def _proof_facts(proof: Proof) -> dict[str, Any]:
    return {
        "rows": proof.rows,
        "chains": proof.chains,
        "seconds": round(proof.total_s, 3),
        "phases": proof.seconds,
        "differences": proof.differences,
        "findings": [
            {"check": one.check.name, "severity": one.check.severity, "row": one.figures} for one in proof.findings
        ],
    }


@dataclass(frozen=True, slots=True)
class _Place:
    where: Addresses
    settings: Settings


def _run(work: Callable[[_Place, Progress], Coroutine[Any, Any, T]]) -> T:
    settings = Settings()
    with addresses(settings, load_signer(settings)) as where, _spinner() as say:
        return asyncio.run(work(_Place(where, settings), say))


@contextmanager
def _spinner() -> Iterator[Progress]:
    """What is being done, on a terminal; the result alone goes to standard output."""
    with Console(stderr=True, highlight=False).status("Connecting") as status:
        yield lambda text: status.update(text)
