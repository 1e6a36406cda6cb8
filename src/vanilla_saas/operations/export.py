"""`vanilla-saas export`: the installation in the form that another tool reads."""

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.schema import migrations

app = typer.Typer(no_args_is_help=True, help="Write the installation in the form that another tool reads.")
EPOCH = 20260101000000
"""The Supabase CLI orders migrations by a timestamp: this one plus the file's number, the same at every export."""


@app.callback()
def _group() -> None:
    """A group, although it has one command yet."""


@app.command("supabase")
def supabase(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder; supabase/ is made in it.")],
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds something.")] = False,
) -> None:
    """Write the tree of the Supabase CLI: migrations in order, seed, tests, configuration."""
    for path in write_supabase_tree(directory, force):
        typer.echo(path)


def write_supabase_tree(directory: Path, force: bool = False) -> list[Path]:
    """Writes the tree and returns its files; raises VanillaError `invalid_state` when the folder holds something."""
    if directory.exists() and any(directory.iterdir()) and not force:
        raise VanillaError(
            "invalid_state",
            f"{directory} is not empty; nothing was written.",
            hint="Name a new folder, or overwrite what an earlier export wrote with --force.",
        )
    written = []
    for name, text in supabase_files():
        path = directory / "supabase" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    return written


def supabase_files() -> Iterator[tuple[str, str]]:
    """Every file of the tree: its path below supabase/ and its text."""
    for migration in migrations():
        number = int(migration.name.partition("_")[0])
        yield f"migrations/{EPOCH + number}_{migration.name}", migration.path.read_text(encoding="utf-8")
    yield from _templates(files("vanilla_saas.operations") / "supabase")


def _templates(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _templates(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry.read_text(encoding="utf-8")
