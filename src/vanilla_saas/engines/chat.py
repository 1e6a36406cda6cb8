"""What runs engines for the gateway (`providers.engine_chat.Engines`): starts them as the caller and waits for the end.

The gateway reserves and charges nothing: the steps of the run do. A run is durable, so nothing here ends one: neither a
client that leaves, nor a wait that is over, nor a process that stops.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any
from uuid import UUID

import structlog

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.engines import chat_store as store
from vanilla_saas.providers.engine_chat import PREFIX, EngineEnd, EngineRun, input_of
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.tenancy.identity import Caller, identify, token_hash
from vanilla_saas.workflows.execution_events import AGAIN, POLL_S, SHARE, SLOWEST_S, Streams
from vanilla_saas.workflows.executions import refuse_budget

log = structlog.get_logger()
WAIT_S = 600.0
"""How long a call waits for the end of its run: as long as a model call may take."""
FIRST_S = 0.05
"""When a run is looked at first, unless a worker of this process tells of it; the pauses grow by half from there."""
KNOWN_S = 1.0
"""How long a caller who waits is believed to have their key or session still."""
KEY_SCOPES = frozenset(("engine",))


class ChatEngines:
    """The engines of one process' gateway; who waits has a place among the streams of events."""

    def __init__(self, database: Database, streams: Streams):
        self._database = database
        self._streams = streams
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def look(self, execution_id: str) -> None:
        """A step of this run has ended: who waits for the run looks now."""
        for news in self._waiting.get(execution_id, ()):
            news.set()

    def place(self) -> AbstractContextManager[None]:
        return self._streams.one()

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
        identity, started = caller.identity, None
        acting = self._database.transaction(identity, request_id=request_id or "", client_ip=client_ip)
        async with acting as connection:
            row = await connection.fetchrow(store.RESOLVE, ref, identity.tenant_id, caller.key_id)
            found = row["found"]
            given = _input(body, ref, found)
            if row["engine_ref"] is None:
                if row["budget_tokens"] is not None:
                    await refuse_budget(connection, identity.tenant_id, caller.key_id)
                started = await connection.fetchval(store.EXECUTE, ref, given or {}, idempotency_key)
                _require_meant(given, started)
        if started is None:
            asked = (token_hash(token), ref, given or {}, idempotency_key, request_id, client_ip)
            started = await self._database.call(store.EXECUTE_BY_KEY, *asked)
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
        name, news = str(run.execution_id), asyncio.Event()
        self._waiting.setdefault(name, set()).add(news)
        left = asyncio.create_task(_pass_on(gone, news))
        try:
            return await self._end(run, gone, news)
        finally:
            left.cancel()
            self._waiting[name].discard(news)
            if not self._waiting[name]:
                del self._waiting[name]

    async def _end(self, run: EngineRun, gone: asyncio.Event, news: asyncio.Event) -> EngineEnd | None:
        clock = asyncio.get_running_loop().time
        known_at, pause, rest = clock(), FIRST_S, 0.0
        give_up = known_at + WAIT_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause, max(give_up - clock(), 0))):
                    await asyncio.sleep(rest)  # a worker may tell of a thousand steps a second
                    await news.wait()
            news.clear()
            if gone.is_set():
                return None
            if self._streams.stopping:
                raise _still_running(run, "This process stops")
            looked = clock()
            try:
                if looked - known_at >= KNOWN_S:
                    await identify(self._database, run.caller.token)
                    known_at = looked
                found = await self._look(run)
            except VanillaError as error:
                if error.name not in AGAIN:
                    detail = error.detail | {"execution_id": str(run.execution_id)}
                    raise VanillaError(error.name, error.message, detail, error.hint) from None
                log.info("execution_not_seen", execution_id=str(run.execution_id), error=error.name)
                found = None
            if found is not None:
                return found
            if clock() >= give_up:
                raise _still_running(run, f"It did not end within {WAIT_S:g} s")
            rest = min((clock() - looked) / SHARE, SLOWEST_S)
            pause = max(min(pause * 1.5, POLL_S), rest)

    async def _look(self, run: EngineRun) -> EngineEnd | None:
        identity = run.caller.identity
        async with self._streams.looks, self._database.transaction(identity, read_only=True) as connection:
            row = await connection.fetchrow(store.END, identity.tenant_id, run.execution_id)
        return EngineEnd(**row) if row else None

    async def models(self, token: str) -> tuple[list[dict[str, Any]], bool]:
        caller = await identify(self._database, token)
        identity = caller.identity
        async with self._database.transaction(identity, read_only=True) as connection:
            if caller.scopes == KEY_SCOPES:
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


async def _pass_on(gone: asyncio.Event, news: asyncio.Event) -> None:
    await gone.wait()
    news.set()


def _require_runner(caller: Caller) -> None:
    """Raises VanillaError `forbidden`; whether the engine may be run is the database's to say."""
    if caller.must_change_password:
        raise VanillaError("forbidden", "The password must be changed first.", {"need": "password_change"})
    if caller.scopes != KEY_SCOPES:
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
