"""What a person does with executions, whoever asks: start one, send it a signal, decide what it asks.

Whether a value fits a schema is looked at here, before anything is written; all other rules are the database's.
"""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.workflows import execution_store as store
from vanilla_saas.workflows.drafts import Transaction
from vanilla_saas.workflows.schemas import SchemaError, unfit
from vanilla_saas.workflows.store import find


async def start(
    transaction: Transaction,
    tenant_id: UUID,
    name: str,
    given: dict[str, Any],
    *,
    version: int | None = None,
    key: str | None = None,
    priority: int | None = None,
    user_id: UUID | None = None,
    caller_id: UUID | None = None,
) -> dict[str, Any]:
    """Starts a workflow by slug or id. `user_id` is who pays when it is not the caller, nor the owner for an operator.

    Raises VanillaError `invalid_input` naming fields, `not_found`, `invalid_state`, `idempotency_key_reused`.
    """
    async with transaction() as connection:
        found = await find(connection, tenant_id, name)
        schema = await store.input_schema(connection, tenant_id, found["id"], version)
        payer = user_id or caller_id or found["user_id"]
        # what was started before is answered again, whatever a version since then asks for
        before = key is not None and await store.started_before(connection, tenant_id, payer, key)
    if not before:
        await require_fit([schema], given, "input")
    async with transaction() as connection:
        return await store.start(
            connection, tenant_id, found["id"], given, version=version, key=key, priority=priority, user_id=user_id
        )


async def restart(
    transaction: Transaction, tenant_id: UUID, execution_id: UUID, node: str | None, version: int | None
) -> dict[str, Any]:
    """Runs an ended one again, on a newer version when one is named, whose schema the input must fit.

    Raises VanillaError `invalid_input` naming fields, `not_found`, `invalid_state`.
    """
    if version is not None:
        async with transaction() as connection:
            found = await store.progress(connection, tenant_id, execution_id)
            schema = await store.input_schema(connection, tenant_id, UUID(found["workflow_id"]), version)
        await require_fit([schema], found["input"], "input")
    async with transaction() as connection:
        return await store.restart(connection, tenant_id, execution_id, node, version)


async def signal(
    transaction: Transaction, tenant_id: UUID, execution_id: UUID, name: str, payload: object
) -> dict[str, Any]:
    """Sends a signal, which every node of its name must accept: all that wait for it get the one that came first.

    Raises VanillaError `invalid_input`, `not_found` for a signal that no node waits for, `invalid_state`.
    """
    async with transaction() as connection:
        nodes = await store.signals(connection, tenant_id, execution_id)
    # of a workflow that the caller may not read the worker looks at the payload
    if nodes is not None:
        wanted = [node["schema"] for node in nodes if node["name"] == name]
        if not wanted:
            names = sorted({node["name"] for node in nodes})
            raise VanillaError(
                "not_found",
                f"No node of the workflow waits for the signal {name}.",
                {"signal": name, "signals": names},
                f"It waits for {', '.join(names)}." if names else "It has no node of the kind signal.",
            )
        await require_fit(wanted, payload, "payload")
    async with transaction() as connection:
        return await store.signal(connection, tenant_id, execution_id, name, payload)


async def decide(
    transaction: Transaction, approval_id: UUID, decision: str, comment: str | None, value: dict[str, Any] | None
) -> dict[str, Any]:
    """Approves or rejects. What may be changed of the value fits `edit`, and the rest is as it was shown.

    Raises VanillaError `invalid_input`, `not_found`, `forbidden`, `invalid_state`.
    """
    if value is not None and decision == "approved":
        async with transaction() as connection:
            asked = await store.approvals(connection, approval_id)
        edit = asked[0]["edit"] if asked else None
        if edit is not None:
            fields = edit.get("properties", {}) if isinstance(edit, dict) else {}
            await require_fit([edit], {name: value[name] for name in value if name in fields}, "value")
        elif not asked:
            async with transaction() as connection:
                await store.decide(connection, approval_id, decision, comment, value)  # says why it is not theirs
                raise VanillaError("invalid_state", "The approval has changed meanwhile.", hint="Look at it again.")
    async with transaction() as connection:
        return await store.decide(connection, approval_id, decision, comment, value)


async def refuse_budget(connection: asyncpg.Connection, tenant_id: UUID, key_id: UUID | None) -> None:
    """A key with a budget pays model calls of its own only: what an execution spends is not counted on it.

    Raises VanillaError `forbidden`.
    """
    if key_id is not None and await store.key_has_budget(connection, tenant_id, key_id):
        raise VanillaError(
            "forbidden",
            "A key with a budget starts no executions: what they spend is not counted on it.",
            {"need": "key_without_budget"},
            "Use a session, or a key without a budget.",
        )


async def require_fit(schemas: Iterable[object], value: object, what: str) -> None:
    """Raises VanillaError `invalid_input` with what is wrong by field."""
    found: list[dict[str, str]] = []
    for schema in schemas:
        if schema is None:
            continue
        try:
            wrong = await unfit(schema, value)
        except SchemaError as error:
            raise VanillaError("invalid_input", f"The {what} could not be checked: {error.message}") from error
        found += [
            {"field": ".".join(filter(None, (what, one.path))), "pointer": one.pointer, "message": one.message}
            for one in wrong
        ]
    if found:
        raise VanillaError(
            "invalid_input",
            f"The {what} does not fit its schema: {found[0]['field']}: {found[0]['message']}",
            {"param": found[0]["field"], "problems": found},
        )
