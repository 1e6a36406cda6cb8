"""Rotation of the context key while servers run: no request is refused, no server is restarted for a key file.

A server that signs with the former key is accepted until `accept_until`; one that connects with the former password
tries the other. So the steps only have to come in this order: the database knows a key before anybody signs with it,
and the file has a key before its password is in force. Killed after any step, the next run goes on.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

from vanilla_saas.database.connection import connect_admin
from vanilla_saas.database.context import ContextKey, ContextSigner, replace_key_file
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import alone, retried, set_login_passwords
from vanilla_saas.database.pool import translated_errors


@dataclass(frozen=True, slots=True)
class Rotation:
    """`signing` is the new key; `accept_until` when the former ends, None while it is for the operator to say."""

    signing: ContextKey
    former: ContextKey
    accept_until: datetime | None


async def rotate(admin_url: str, signer: ContextSigner, accept_for: timedelta) -> Rotation:
    """Installs a new context key. From a file it is in use when this returns; an environment is the operator's to set.

    Raises VanillaError `invalid_state` when the signing key is not installed or retired, OSError for the file.
    """
    new, former = ContextKey.of(os.urandom(32)), signer.listed[0]
    connection = await connect_admin(admin_url)
    try:
        async with alone(admin_url), translated_errors():
            await _require_current(connection, former)
            await _install(connection, new)
            if signer.path is None:
                return Rotation(new, former, None)
            replace_key_file(signer.path, [new.secret, *(key.secret for key in signer.listed)])
            until = await _retire(connection, new, former, accept_for)
            replace_key_file(signer.path, [new.secret])
            return Rotation(new, former, until)
    finally:
        await connection.close()


async def expire(admin_url: str, signer: ContextSigner, key_id: str, accept_for: timedelta) -> datetime:
    """Ends a former key and puts the signing key's login passwords in force; returns until when it is accepted.

    Raises VanillaError `not_found`, `invalid_state` for the key that signs or the last one.
    """
    signing = signer.listed[0]
    if key_id == signing.key_id:
        raise VanillaError(
            "invalid_state",
            f"{key_id} is the key that signs.",
            hint="vanilla-saas context-key rotate puts another in its place.",
        )
    connection = await connect_admin(admin_url)
    try:
        async with alone(admin_url), translated_errors():
            await _require_current(connection, signing)
            return await _retire(connection, signing, key_id, accept_for)
    finally:
        await connection.close()


async def key_states(connection: asyncpg.Connection) -> dict[str, datetime | None]:
    """Until when each installed key is accepted, by its id; None: without an end."""
    rows = await connection.fetch(
        "select key_id, nullif(accept_until, 'infinity') as until from vanilla.context_key_states()"
    )
    return {row["key_id"]: row["until"] for row in rows}


async def _require_current(connection: asyncpg.Connection, key: ContextKey) -> None:
    if await connection.fetchval("select to_regprocedure('vanilla.context_key_states()') is null"):
        raise VanillaError("invalid_state", "The database is not migrated.", hint="Run vanilla-saas migrate.")
    async with connection.transaction():
        await connection.execute("set local role vanilla_owner")
        states = await key_states(connection)
    if states.get(key.key_id, datetime.min.replace(tzinfo=UTC)) is not None:
        raise VanillaError(
            "invalid_state",
            f"The database does not take {key.key_id}, the key of this installation, as its lasting one.",
            hint="Use the key that the servers use; vanilla-saas doctor tells more.",
        )


async def _install(connection: asyncpg.Connection, key: ContextKey) -> None:
    async with connection.transaction():
        await connection.execute("set local role vanilla_owner")
        await connection.fetchval("select vanilla.install_context_key($1, $2)", key.key_id, key.secret)
        await _audit(connection, "context_key.installed", key.key_id)


async def _retire(
    connection: asyncpg.Connection, signing: ContextKey, former: ContextKey | str, accept_for: timedelta
) -> datetime:
    key_id = former if isinstance(former, str) else former.key_id

    async def step() -> datetime:
        async with connection.transaction():
            await connection.execute("set local role vanilla_owner")
            until: datetime = await connection.fetchval(
                "select vanilla.expire_context_key($1, clock_timestamp() + $2::interval)", key_id, accept_for
            )
            await _audit(connection, "context_key.expired", key_id)
            await connection.execute("reset role")
            await set_login_passwords(connection, signing)
            return until

    return await retried(step)


async def _audit(connection: asyncpg.Connection, action: str, key_id: str) -> None:
    """In the platform's log; the role that owns the audit function writes it and is left again."""
    await connection.execute("set local role vanilla_definer")
    await connection.fetchval(
        "select vanilla.audit(vanilla.platform(), $1, 'context_key', null, jsonb_build_object('key_id', $2::text))",
        action,
        key_id,
    )
