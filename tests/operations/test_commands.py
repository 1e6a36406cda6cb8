"""The list of commands, which is shown without importing them."""

import subprocess
import sys

import pytest
import typer
from rich.text import Text

from tests.docs.reference import commands
from vanilla_saas.cli import Commands, app

HEAVY = ("fastapi", "asyncpg", "aiohttp", "pydantic")


def loaded_by(statements: str, *arguments: str) -> set[str]:
    """The heavy packages that a program imported."""
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded', *[name for name in {HEAVY} if name in sys.modules]))\n{statements}"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_list_of_commands_imports_none_of_them() -> None:
    assert loaded_by("from vanilla_saas.cli import main; main()", "--help") == set()


def test_no_command_waits_for_the_framework_of_a_server() -> None:
    modules = {command.target.partition(":")[0] for command in Commands.lazy.values()}
    assert "asyncpg" in (loaded := loaded_by(f"import {', '.join(sorted(modules))}"))
    assert "fastapi" not in loaded
    assert "fastapi" in loaded_by("import vanilla_saas.app")


@pytest.mark.parametrize("name", Commands.lazy)
def test_every_command_that_is_listed_is_there(name: str) -> None:
    root = typer.main.get_group(app)
    command = root.get_command(typer.Context(root), name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_no_word_of_the_help_is_read_as_markup() -> None:
    told = [
        f"{path} {one.name}: {text}"
        for path, command in commands()
        for one, text in [(command, command.help), *((p, getattr(p, "help", None)) for p in command.params)]
        if text and Text.from_markup(text).plain != text
    ]
    assert told == []


def test_a_command_that_is_not_listed_is_not_there() -> None:
    root = typer.main.get_group(app)
    assert root.get_command(typer.Context(root), "nonsense") is None
