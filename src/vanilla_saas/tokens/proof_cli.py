"""`vanilla-saas wallets statement, balance, anchor, verify, reconcile`: what happened, and that it did."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Any

import asyncpg
import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vanilla_saas.database.operator import AsJson, as_operator, tell
from vanilla_saas.database.operator import TenantSlug as Tenant
from vanilla_saas.database.operator import show as print_rows
from vanilla_saas.tokens import anchor_file, store, wallet_store
from vanilla_saas.tokens import statement as statements
from vanilla_saas.tokens.wallet_cli import User, moment

Output = Annotated[
    Path | None, typer.Option("-o", "--output", dir_okay=False, help="A file instead; it appears whole or not at all.")
]
_TIME: dict[str, Any] = {"parser": moment, "metavar": "TIME"}


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that only its owner reads, and that stands under its name when all of it is on disk."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _sink(path: Path | None) -> Iterator[Callable[[bytes], Any]]:
    if path is None:
        yield sys.stdout.buffer.write
        sys.stdout.flush()
        return
    with whole_file(path) as file:
        yield file.write


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal's error output; nothing where there is none."""
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def statement(
    user: User,
    since: Annotated[datetime | None, typer.Option("--from", help="Included; a month before --until.", **_TIME)] = None,
    until: Annotated[datetime | None, typer.Option(help="Not included; now.", **_TIME)] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead.")] = False,
    output: Output = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Print the ledger of a period with the balances around it; a file is CSV unless --json."""
    form: statements.Format | None = "json" if as_json else "csv" if as_csv or output else None

    async def work(connection: asyncpg.Connection) -> statements.Statement:
        _, user_id = await store.find_user(connection, tenant, user)
        end = until or await wallet_store.now(connection)
        begin = since or statements.usual_start(end)
        frame = await wallet_store.statement_frame(connection, user_id, begin, end)
        document = statements.Statement(user_id, begin, end, **dict(frame))

        async def read(after_seq: int, limit: int) -> list[asyncpg.Record]:
            rows = await wallet_store.statement_part(connection, user_id, begin, end, after_seq, limit)
            advance(len(rows))
            return rows

        with _progress("entries", document.last_seq - document.after_seq) as advance:
            if form is None:
                await _print(document, read)
            else:
                with _sink(output) as sink:
                    async for part in statements.write(document, form, read):
                        sink(part)
        return document

    document = as_operator(work)
    if output:
        typer.echo(f"{document.last_seq - document.after_seq} entries in {output}")


async def _print(document: statements.Statement, read: statements.ReadPart) -> None:
    columns = ("seq", "created_at", "direction", "amount", "available_tokens", "borrowed_tokens", "reason")
    typer.echo(f"balance {document.opening_balance} at {document.since.isoformat(sep=' ', timespec='seconds')}")
    async for rows in statements.parts(document, read):
        print_rows([{column: row[column] for column in columns} for row in rows], False)
    typer.echo(f"balance {document.closing_balance} at {document.until.isoformat(sep=' ', timespec='seconds')}")


def balance(
    user: User,
    at: Annotated[datetime | None, typer.Option(help="A time; now.", **_TIME)] = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Print what a wallet had (available less debt) at a time."""

    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        _, user_id = await store.find_user(connection, tenant, user)
        when = at or await wallet_store.now(connection)
        return {"user_id": user_id, "at": when, "balance": await wallet_store.balance_at(connection, user_id, when)}

    found = as_operator(work)
    tell(str(found["balance"]), found, as_json)


def anchor(output: Output = None, as_json: AsJson = False) -> None:
    """Write the end of every chain as JSON lines, sealed by the last one; keep it where nobody can change it."""

    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        last = b""
        with _progress("chains") as advance, _sink(output) as sink:
            async for part in anchor_file.lines(connection, advance):
                sink(part)
                last = part
        seal: dict[str, Any] = orjson.loads(last)
        return seal

    seal = as_operator(work)
    if output:
        tell(f"{seal['count']} chains in {output}, sealed {seal['sha256']}", {"file": output} | seal, as_json)


def verify(
    user: Annotated[str | None, typer.Argument(help="Email, external id or UUID; all wallets when left out.")] = None,
    anchor: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Also compare with an anchor kept from before.")
    ] = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Recompute the ledger's hash chains; exit with 1 when a row was changed, removed or reordered."""
    told = ["Every chain is whole."]

    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        tenant_id, user_id = await store.find_user(connection, tenant, user) if user else (None, None)
        rows: list[dict[str, Any]] = []
        if anchor:
            with anchor.open("rb") as file, _progress("chains") as advance:
                given = iter(lambda: file.readline(anchor_file.LONGEST_LINE), b"")
                found = await anchor_file.check(
                    connection, given, tenant_id=tenant_id, user_id=user_id, progress=advance
                )
            rows += [dict(row) for row in found.problems]
            told.append(f"{found.checked} of {found.seal.count} chains continue the anchor of {found.seal.at}.")
        with _progress("recomputing"):
            rows += [dict(row) for row in await store.broken_chains(connection, user_id)]
        return rows

    _report(as_operator(work), " ".join(told), as_json)


def reconcile(as_json: AsJson = False) -> None:
    """Compare wallets with ledger, holds and grants; exit with 1 when they differ."""

    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        with _progress("comparing"):
            return await store.differences(connection)

    _report(as_operator(work), "The books are right.", as_json)


def _report(rows: list[dict[str, Any]], all_well: str, as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(rows, default=str).decode())
    elif rows:
        print_rows(rows, False)
    else:
        typer.echo(all_well)
    if rows:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds the commands to the group."""
    for command in (statement, balance, anchor, verify, reconcile):
        app.command()(command)
