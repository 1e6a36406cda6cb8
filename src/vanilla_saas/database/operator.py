"""What the commands of every room share: a connection as the operator, the tenant a command means, and output.

    def list_things(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
        async def run(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            return await store.things(connection, await tenant_id(connection, tenant))

        show(as_operator(run), as_json)

Refusals are VanillaErrors and pass through: the root command prints them and exits with 1.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import asyncpg
import orjson
import typer
from rich.console import Console
from rich.table import Table

from vanilla_saas.database.connection import Addresses, addresses, connect_admin
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import _prepare, translated_errors
from vanilla_saas.settings import Settings

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
TenantSlug = Annotated[str, typer.Option("--tenant", help="Slug of the tenant.")]


def as_operator(run: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """The result of `run` in one transaction on the administering login, without a context.

    Starts or shares the embedded server when no other is configured. Raises VanillaError.
    """
    settings = Settings()
    with addresses(settings, load_signer(settings)) as where:
        return asyncio.run(_run(where.admin, run))


def in_parts(run: Callable[[asyncpg.Connection, Addresses], Awaitable[T]]) -> T:
    """The same without a transaction around it: what `run` has done stays done when it is stopped."""
    settings = Settings()
    with addresses(settings, load_signer(settings)) as where:
        return asyncio.run(_run_in_parts(where, run))


async def _run(url: str, run: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    async with _connected(url) as connection, connection.transaction():
        return await run(connection)


async def _run_in_parts(where: Addresses, run: Callable[[asyncpg.Connection, Addresses], Awaitable[T]]) -> T:
    async with _connected(where.admin) as connection:
        return await run(connection, where)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect_admin(url)
    try:
        async with translated_errors():
            if await connection.fetchval("select to_regclass('public.tenants') is null"):
                raise VanillaError(
                    "invalid_state", "This database has no schema yet.", hint="Run vanilla-saas migrate first."
                )
            await _prepare(connection)
            yield connection
    finally:
        await connection.close()


async def tenant_id(connection: asyncpg.Connection, slug: str) -> UUID:
    """The id of the tenant with this slug. Raises VanillaError `not_found`."""
    found: UUID | None = await connection.fetchval("select id from tenants where slug = lower($1)", slug)
    if found is None:
        raise VanillaError("not_found", f"There is no tenant {slug}.", hint="vanilla-saas tenants list")
    return found


def show(rows: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    """Rows as a table, or as a JSON array."""
    found = [dict(row) for row in rows]
    if as_json:
        typer.echo(orjson.dumps(found, default=str).decode())
        return
    if not found:
        typer.echo("None.")
        return
    table = Table(*found[0], box=None, header_style="dim")
    for row in found:
        table.add_row(*(_cell(value) for value in row.values()))
    # a pipe gets whole lines: only a terminal has a width to keep
    Console(markup=False, width=None if sys.stdout.isatty() else 1000).print(table)


def tell(sentence: str, facts: Mapping[str, Any], as_json: bool) -> None:
    """What a command did: a sentence, or its facts as a JSON object."""
    typer.echo(orjson.dumps(dict(facts), default=str).decode() if as_json else sentence)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = ",".join(map(str, value))
    text = value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else str(value)
    return printable(text)


def printable(text: str) -> str:
    """Names and answers are others' texts: none of them sends escape sequences to an operator's terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
