"""A run of an engine is begun, whoever asks: what it is given fits the schema of its input, or nothing is written."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from vanilla_saas.database.pool import Database
from vanilla_saas.engines import store
from vanilla_saas.workflows.drafts import Transaction
from vanilla_saas.workflows.executions import require_fit


def defaults_of(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the parameters of an engine are when nobody says them."""
    return {name: one["default"] for name, one in (parameters or {}).items() if "default" in one}


async def start(
    transaction: Transaction,
    tenant_id: UUID,
    ref: str | None,
    given: dict[str, Any],
    *,
    key: str | None = None,
    priority: int | None = None,
    user_id: UUID | None = None,
) -> store.Answer:
    """Runs what `ref` means to the caller, or to the user whom an admin or the operator names.

    Raises VanillaError `invalid_input` naming fields, and before it what the engine is refused for.
    """
    await preview(transaction, tenant_id, ref, given, key=key, priority=priority, user_id=user_id)
    async with transaction() as connection:
        return await store.start(connection, tenant_id, ref, given, key=key, priority=priority, user_id=user_id)


async def preview(
    transaction: Transaction,
    tenant_id: UUID,
    ref: str | None,
    given: dict[str, Any],
    *,
    key: str | None = None,
    priority: int | None = None,
    user_id: UUID | None = None,
) -> store.Answer:
    """What `start` would begin, with what those before it cost; raises what it would."""
    async with transaction() as connection:
        found = await store.preview(connection, tenant_id, ref, given, key=key, priority=priority, user_id=user_id)
    await _require_fit(found)
    return found


async def start_by_key(
    database: Database,
    key_hash: bytes,
    ref: str | None,
    given: dict[str, Any],
    key: str | None,
    request_id: str,
    client_ip: str,
) -> store.Answer:
    """The same by a key of an engine. Raises VanillaError `authentication_failed`, `limit_reached`, `invalid_input`."""
    await _require_fit(await store.preview_by_key(database, key_hash, ref, given, key))
    return await store.start_by_key(database, key_hash, ref, given, key, request_id, client_ip)


async def _require_fit(found: store.Answer) -> None:
    if not found["replayed"]:
        await require_fit([found["schema"]], found["input"], "input")
