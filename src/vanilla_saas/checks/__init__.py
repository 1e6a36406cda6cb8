"""Invariants of the database as queries that must return no row: doctor, tests and restore run the same files.

A file is one SELECT under a comment: what a row means, `Severity: warning` when it may be meant so, and after `Mend:`
what to do. A column `mend` is the statement that mends this row. It runs as the operator.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import asyncpg

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Check:
    """`name` is the file's name; `meaning` says what a row means, `mend` what to do about it."""

    name: str
    sql: str
    meaning: str
    mend: str
    severity: Severity = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that should not be: of which check, and its columns."""

    check: Check
    row: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.check.name}: {self.figures}"

    @property
    def figures(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.row.items() if name != "mend")

    @property
    def statement(self) -> str | None:
        """The SQL that mends this row, where one does."""
        return self.row.get("mend")


BOOKS = (
    "wallets_reconcile",
    "allocations_reconcile",
    "ledger_verify",
    "ledger_without_wallet",
    "executions_charged_twice",
    "executions_against_ledger",
    "executions_charged",
)
"""The checks of money, which hold after every test, crash and restore."""


def checks() -> list[Check]:
    """Every check of this folder, by name."""
    found = sorted(entry.name for entry in files(__name__).iterdir() if entry.name.endswith(".sql"))
    return [_read(name) for name in found]


async def run_checks(connection: asyncpg.Connection, names: tuple[str, ...] | None = None) -> list[Finding]:
    """What the checks find (all, or those named), over a connection that acts as the operator."""
    return [
        Finding(check, dict(row))
        for check in checks()
        if names is None or check.name in names
        for row in await connection.fetch(check.sql)
    ]


def _read(file: str) -> Check:
    sql = (files(__name__) / file).read_text()
    comment = " ".join(line.removeprefix("--").strip() for line in sql.splitlines() if line.startswith("--"))
    meaning, _, mend = comment.partition(" Mend: ")
    meaning, warns, _ = meaning.partition(" Severity: warning")
    return Check(file.removesuffix(".sql"), sql, meaning, mend, "warning" if warns else "error")
