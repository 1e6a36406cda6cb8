"""A root command that imports the module of a command when that is asked for: most need a part of the product only."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer._click import Command, Context, HelpFormatter  # typer has a click of its own
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is, `module:name` of a function or a Typer, and the line that says what it does in the list."""

    target: str
    help: str
    settings: dict[str, Any] = field(default_factory=dict)

    def load(self, name: str) -> Command:
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(module), attribute)
        parent = typer.Typer(add_completion=False)
        if isinstance(found, typer.Typer):
            parent.add_typer(found, name=name)
        else:
            parent.command(name, **self.settings)(found)
            parent.callback()(lambda: None)
        group = typer.main.get_group(parent)
        return group.commands[name]


class LazyGroup(TyperGroup):
    """Set `lazy` in a subclass; the list of commands is shown without importing any of them."""

    lazy: ClassVar[dict[str, LazyCommand]]
    _listed = False

    def list_commands(self, ctx: Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        if cmd_name not in self.lazy:
            return None
        if self._listed:
            return TyperCommand(cmd_name, help=self.lazy[cmd_name].help)
        return self.lazy[cmd_name].load(cmd_name)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        self._listed = True
        super().format_help(ctx, formatter)
        self._listed = False
