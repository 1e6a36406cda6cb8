"""What runs engines for the gateway (`providers.engine_chat.Engines`): starts them as the caller and waits for the end.

The gateway reserves and charges nothing: the steps of the run do. A run is durable, so nothing here ends one: neither a
client that leaves, nor a wait that is over, nor a process that stops.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.engines import chat_store as store
from vanilla_saas.engines import starts
from vanilla_saas.engines.runs import key_of_engine
from vanilla_saas.engines.waiting import Ends
from vanilla_saas.providers.engine_chat import PREFIX, EngineEnd, EngineRun, input_of
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.tenancy.identity import Caller, identify, token_hash
from vanilla_saas.workflows.executions import refuse_budget

WAIT_S = 600.0
"""How long a call waits for the end of its run: as long as a model call may take."""


class ChatEngines:
    """The engines of one process' gateway."""

    def __init__(self, database: Database, ends: Ends):
        self._database = database
        self._ends = ends

    def place(self) -> AbstractContextManager[None]:
        return self._ends.place()

    async def start(
        self,
        token: str,
        ref: str | None,
        body: Mapping[str, Any],
        *,
        idempotency_key: str | None,
        request_id: str | None,
        client_ip: str,
    ) -> EngineRun:
        caller = await identify(self._database, token)
        _require_runner(caller)
        identity = caller.identity
        acting = partial(self._database.transaction, identity, request_id=request_id or "", client_ip=client_ip)
        async with acting() as connection:
            row = await connection.fetchrow(store.RESOLVE, ref, identity.tenant_id, caller.key_id)
            found = row["found"]
            given = _input(body, ref, found)
            if row["engine_ref"] is None and row["budget_tokens"] is not None:
                await refuse_budget(connection, identity.tenant_id, caller.key_id)
        if row["engine_ref"] is None:
            started = await starts.start(acting, identity.tenant_id, ref, given or {}, key=idempotency_key)
        else:
            started = await starts.start_by_key(
                self._database, token_hash(token), ref, given or {}, idempotency_key, request_id or "", client_ip
            )
        _require_meant(given, started)
        return EngineRun(
            UUID(started["execution_id"]),
            found.get("engine") or ref or "",
            started["version"],
            started["alias"],
            started["source"],
            body["model"],
            int(time.time()),
            caller,
        )

    async def end(self, run: EngineRun, gone: asyncio.Event) -> EngineEnd | None:
        caller = run.caller
        tenant_id = caller.identity.tenant_id

        async def again() -> Identity:
            return (await identify(self._database, caller.token)).identity

        async def find(connection: asyncpg.Connection) -> EngineEnd | None:
            row = await connection.fetchrow(store.END, tenant_id, run.execution_id)
            return EngineEnd(**row) if row else None

        try:
            found = await self._ends.wait(run.execution_id, caller.identity, WAIT_S, again, find, gone)
        except VanillaError as error:
            detail = error.detail | {"execution_id": str(run.execution_id)}
            raise VanillaError(error.name, error.message, detail, error.hint) from None
        if found is None and not gone.is_set():
            why = "This process stops" if self._ends.stopping else f"It did not end within {WAIT_S:g} s"
            raise _still_running(run, why)
        return found

    async def models(self, token: str) -> tuple[list[dict[str, Any]], bool]:
        caller = await identify(self._database, token)
        identity = caller.identity
        async with self._database.transaction(identity, read_only=True) as connection:
            if key_of_engine(caller) is not None:
                row = await connection.fetchrow(store.RESOLVE, None, identity.tenant_id, caller.key_id)
                found = row["found"]
                return ([] if found["denied_reason"] else [_row(row["engine_ref"], found["engine_id"], caller)]), True
            try:
                caller.require_scope("chat")
                await refuse_budget(connection, identity.tenant_id, caller.key_id)
            except VanillaError:
                return [], False
            rows = await connection.fetch(store.RUNNABLE)
        return [_row(row["slug"], row["engine_id"], caller, platform=row["platform"]) for row in rows], False


def _require_runner(caller: Caller) -> None:
    """Raises VanillaError `forbidden`; whether the engine may be run is the database's to say."""
    if caller.must_change_password:
        raise VanillaError("forbidden", "The password must be changed first.", {"need": "password_change"})
    if key_of_engine(caller) is None:
        caller.require_scope("chat")


def _input(body: Mapping[str, Any], ref: str | None, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """None: there is none, and the database will say why the engine is not run."""
    try:
        return input_of(body, found.get("engine") or ref or "", found.get("input"), found.get("parameters"))
    except InvalidRequest:
        if found["denied_reason"] is None:
            raise
        return None


def _require_meant(given: dict[str, Any] | None, started: Mapping[str, Any]) -> None:
    if given is None and not started["replayed"]:
        raise VanillaError("invalid_state", "The engine has changed meanwhile.", hint="Try again.")


def _still_running(run: EngineRun, why: str) -> VanillaError:
    return VanillaError(
        "still_running",
        f"{why}; the run of the engine {run.engine} goes on.",
        {"execution_id": str(run.execution_id), "engine": run.engine, "version": run.version},
        f"Follow it at /api/v1/workflow-executions/{run.execution_id}, or call again with the same Idempotency-Key.",
    )


def _row(ref: str, engine_id: object, caller: Caller, *, platform: bool = False) -> dict[str, Any]:
    """`created` is in the id, which is a UUID of version 7."""
    return {
        "object": "model",
        "id": PREFIX + ref,
        "created": (UUID(str(engine_id)).int >> 80) // 1000,
        "owned_by": "platform" if platform else caller.tenant,
        "kind": "engine",
    }
