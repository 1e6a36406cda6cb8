"""Runs the numbered files with a checksum table; psql may run the same files before, after or in between."""

import asyncio
import base64
import hashlib
import hmac
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import asyncpg

from vanilla_saas.database.connection import connect_admin
from vanilla_saas.database.context import ContextKey, ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import translated_errors
from vanilla_saas.database.schema import FIRST_UPGRADE, Migration, migrations, refuse_changed_files

T = TypeVar("T")
WAIT_SECONDS = 120
"""How long a process waits for another that migrates the same database."""


async def migrate(dsn: str, signer: ContextSigner, *, repair: bool = False, logins: bool = True) -> list[str]:
    """Applies what is missing and makes the run-time logins; returns the names of the files it ran.

    A database that psql migrated is adopted: the files run once more, which changes nothing. With `repair` the base
    runs again, which restores functions, policies, grants and partitions that were changed by hand. Without `logins`
    their passwords stay: they are the whole cluster's, and a copy beside is not to lock the original out.
    Raises VanillaError `invalid_state` when an applied file has changed, a newer version has migrated, or another
    process migrates for too long; `forbidden`, `database_unavailable`.
    """
    connection = await connect_admin(dsn)
    try:
        async with alone(dsn), translated_errors():
            applied = await _applied(connection)
            files = migrations()
            _refuse_other_version(files, applied, repair)
            upgraded = any(name >= FIRST_UPGRADE for name in applied)
            ran: list[str] = []
            for file in files:
                if applied.get(file.name) == file.checksum and not (repair and file.name < FIRST_UPGRADE):
                    continue
                # psql has run it: an upgrade records itself, and the base is not run over one
                if applied.get(file.name) == "" or (upgraded and file.name < FIRST_UPGRADE):
                    await _record(connection, file)
                    continue
                await _apply(connection, file)
                ran.append(file.name)
            await retried(lambda: _install_logins(connection, signer, logins))
            return ran
    except asyncpg.InsufficientPrivilegeError as error:
        raise VanillaError(
            "forbidden",
            f"This login may not migrate: {error.message}.",
            {"need": "CREATEROLE"},
            "Let DATABASE_URL name a login that owns the database and has CREATEROLE.",
        ) from None
    finally:
        await connection.close()


@asynccontextmanager
async def alone(dsn: str) -> AsyncIterator[None]:
    """One process migrates a database at a time.

    The lock is a transaction's, on a connection beside the one that works: a pooler keeps both together until the end.
    """
    connection = await connect_admin(dsn)
    try:
        async with connection.transaction():
            await connection.execute(f"set local lock_timeout = '{WAIT_SECONDS}s'")
            try:
                await connection.execute("select pg_advisory_xact_lock(hashtext('vanilla_saas.migrating'))")
            except asyncpg.LockNotAvailableError:
                raise VanillaError(
                    "invalid_state",
                    f"Another process has been migrating this database for {WAIT_SECONDS} s.",
                    hint="Wait for it to end and try again.",
                ) from None
            yield
    finally:
        await connection.close()


async def _apply(connection: asyncpg.Connection, file: Migration) -> None:
    text = file.path.read_text()

    async def step() -> None:
        try:
            await connection.execute(text)
        finally:
            if connection.is_in_transaction():  # the file's own begin, after an error
                await connection.execute("rollback")

    await retried(step)
    await _record(connection, file)


async def retried(step: Callable[[], Awaitable[T]], attempts: int = 20) -> T:
    """Runs a transaction again when a migrator of another database changed the same role meanwhile.

    Roles are cluster-wide, and PostgreSQL answers `tuple concurrently updated` instead of waiting.
    """
    for attempt in range(1, attempts):
        try:
            return await step()
        except (asyncpg.InternalServerError, asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError):
            await asyncio.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311
    return await step()


async def _applied(connection: asyncpg.Connection) -> dict[str, str]:
    if await connection.fetchval("select to_regclass('vanilla.schema_migrations') is null"):
        return {}
    async with connection.transaction():
        await connection.execute("set local role vanilla_owner")
        return {r["name"]: r["checksum"] for r in await connection.fetch("select * from vanilla.schema_migrations")}


def _refuse_other_version(files: list[Migration], applied: dict[str, str], repair: bool) -> None:
    known = {file.name for file in files}
    if unknown := sorted(name for name in applied if name not in known):
        raise VanillaError(
            "invalid_state",
            f"A newer version has migrated this database: {', '.join(unknown)} is not known here; nothing was changed.",
            hint="Run that version, or a newer one.",
        )
    refuse_changed_files(applied)
    if repair and (later := sorted(name for name in applied if name >= FIRST_UPGRADE)):
        raise VanillaError(
            "invalid_state",
            f"{', '.join(later)} came after the base, which would undo it; nothing was changed.",
            hint="vanilla-saas doctor names a mend for each finding.",
        )


async def _record(connection: asyncpg.Connection, file: Migration) -> None:
    async with connection.transaction():
        await connection.execute("set local role vanilla_owner")
        await connection.execute(
            "insert into vanilla.schema_migrations (name, checksum) values ($1, $2)"
            " on conflict (name) do update set checksum = excluded.checksum where schema_migrations.checksum = ''",
            file.name,
            file.checksum,
        )


async def _install_logins(connection: asyncpg.Connection, signer: ContextSigner, passwords: bool) -> None:
    """The signing key, and a password for each run-time login, derived from a key and never stored in clear."""
    async with connection.transaction():
        await connection.execute("set local role vanilla_owner")
        await connection.fetchval("select vanilla.install_context_key($1, $2)", signer.key_id, signer.key)
        states = await connection.fetch(
            "select key_id from vanilla.context_key_states() where accept_until = 'infinity'"
        )
        await connection.execute("reset role")
        if not passwords:
            return
        lasting = {row["key_id"] for row in states}
        # of "new,former" the former: servers that have only that one are restarted later, and the others try both
        await set_login_passwords(connection, [key for key in signer.listed if key.key_id in lasting][-1])


async def set_login_passwords(connection: asyncpg.Connection, key: ContextKey) -> None:
    """Lets the run-time logins in with the passwords of this key and no other."""
    for role in ("vanilla_app", "vanilla_runtime", "vanilla_readonly"):
        # utility statements take no parameters; as a verifier the password is in nobody's log of statements
        await connection.execute(f"alter role {role} login password '{_verifier(key.login_password(role))}'")


def _verifier(password: str) -> str:
    """What PostgreSQL keeps of an ASCII password (RFC 5803): salt and keys, from which it cannot be had."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = [base64.b64encode(part).decode() for part in (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))]
    return f"SCRAM-SHA-256$4096:{parts[0]}${parts[1]}:{parts[2]}"
