"""The list of commands, which is shown without importing them."""

import subprocess
import sys

import pytest
import typer

from vanilla_saas.cli import Commands, app

HEAVY = ("fastapi", "asyncpg", "aiohttp", "pydantic")


def loaded_by(*arguments: str) -> set[str]:
    """The heavy packages that a command line imported."""
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded', *[name for name in {HEAVY} if name in sys.modules]))\n"
        "from vanilla_saas.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_list_of_commands_imports_none_of_them() -> None:
    assert loaded_by("--help") == set()
    assert "fastapi" not in loaded_by("env", "--help")
    assert "fastapi" in loaded_by("serve", "--help")


@pytest.mark.parametrize("name", Commands.lazy)
def test_every_command_that_is_listed_is_there(name: str) -> None:
    root = typer.main.get_group(app)
    command = root.get_command(typer.Context(root), name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_a_command_that_is_not_listed_is_not_there() -> None:
    root = typer.main.get_group(app)
    assert root.get_command(typer.Context(root), "nonsense") is None
