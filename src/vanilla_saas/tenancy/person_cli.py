"""`vanilla-saas users export` and `users erase`."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, in_parts, tell, tenant_id
from vanilla_saas.tenancy import person_export, store

Who = Annotated[str, typer.Argument(metavar="USER", help="Email or id.")]


async def user_id_of(connection: asyncpg.Connection, within: UUID, who: str) -> UUID:
    """The id of a user named by email or id. Raises VanillaError `not_found`."""
    try:
        return UUID(who)
    except ValueError:
        row = await store.user_by_email(connection, within, who)
    if row is None:
        raise VanillaError("not_found", f"There is no user {who} in this tenant.", hint="vanilla-saas users list")
    found: UUID = row["id"]
    return found


def export_user(
    user: Who,
    to: Annotated[Path, typer.Option(help="The file to write; it must not be there yet.")],
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Write all that is kept of a person to a JSON file. The audit log says that it was done."""
    if to.exists():
        raise VanillaError("invalid_state", f"{to} exists already.", hint="Name another file.")

    async def run(connection: asyncpg.Connection, _: Addresses) -> int:
        async with connection.transaction():
            within = await tenant_id(connection, tenant)
            begun = await store.start_person_export(connection, within, await user_id_of(connection, within, user))
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await _write(to, begun, connection)

    size = in_parts(run)
    tell(f"{user} is written to {to}, {size} bytes.", {"file": to, "bytes": size}, as_json)


async def _write(to: Path, begun: dict[str, Any], connection: asyncpg.Connection) -> int:
    """Under another name first: a file of the name asked for is whole. Returns its bytes.

    Raises VanillaError `invalid_state` when the file cannot be written.
    """

    async def connect() -> asyncpg.Connection:
        return connection

    beside = to.with_name(f".{to.name}.{secrets.token_hex(8)}")
    with _naming(to):
        file = os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    try:
        async for part in person_export.document(begun, connect):
            with _naming(to):
                file.write(part)
        with _naming(to):
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
            os.link(beside, to)  # and never over a file that came meanwhile
    finally:
        with suppress(OSError):  # of bytes that could not be written
            file.close()
        beside.unlink(missing_ok=True)
    return size


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error of the file, not of the connection, which is the database's."""
    try:
        yield
    except OSError as error:
        raise VanillaError("invalid_state", f"{path} cannot be written: {error.strerror}.") from error


def erase_user(
    user: Who,
    reason: Annotated[str, typer.Option(help="Why; written to the audit log, where it stays. No personal data.")],
    tenant: TenantSlug = "default",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a person: name, address, sign-ins, keys. The ledger keeps its amounts; nothing brings the rest back."""
    if not yes:
        typer.confirm(f"Erase {user} of tenant {tenant} for good?", abort=True)

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        within = await tenant_id(connection, tenant)
        return await store.erase_user(connection, within, await user_id_of(connection, within, user), reason)

    erased = as_operator(run)
    sentence = f"{erased['user_id']} is erased: {erased['sessions']} sign-ins and {erased['keys']} keys ended"
    if erased.get("wallet") == "suspended":
        sentence += f", the wallet is closed when its {erased['open_holds']} open holds are settled."
    else:
        sentence += f", the wallet is closed, {erased.get('voided_tokens', 0)} tokens voided."
    tell(sentence, erased, as_json)


def register(users: typer.Typer) -> None:
    """Adds the commands to the group."""
    users.command("export")(export_user)
    users.command("erase")(erase_user)
