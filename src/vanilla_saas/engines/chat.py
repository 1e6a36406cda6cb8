"""What runs engines for the gateway (`providers.engine_chat.Engines`): starts them as the caller and waits for the end.

The gateway reserves and charges nothing: the steps of the run do. A run is durable, so nothing here ends one: neither a
client that leaves, nor a wait that is over, nor a process that stops.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.engines import chat_store as store
from vanilla_saas.engines import starts
from vanilla_saas.engines.runs import key_of_engine
from vanilla_saas.engines.waiting import Ends
from vanilla_saas.providers.engine_chat import PREFIX, EngineEnd, EngineRun, Words, input_of
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.providers.step_metering import Admitted
from vanilla_saas.tenancy.identity import Caller, identify
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, token_hash
from vanilla_saas.workflows.attending import Attended
from vanilla_saas.workflows.executions import refuse_budget, require_fit

K = TypeVar("K")
V = TypeVar("V")
KNOWN = 10_000
"""Of so many callers and references it is kept what they meant."""
VERSIONS = 200
"""Of so many versions of engines it is kept what they take, which may be large."""
WAIT_S = 600.0
"""How long a call waits for the end of its run: as long as a model call may take."""


class ChatEngines:
    """The engines of one process' gateway."""

    def __init__(self, database: Database, ends: Ends):
        self._database = database
        self._ends = ends
        self._known: dict[tuple[bytes, str | None], _Known] = {}
        self._takes: dict[tuple[str, int], _Takes] = {}

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
        words: Words | None = None,
    ) -> EngineRun:
        if (begun := await self._begin(token, ref, body, idempotency_key, words)) is not None:
            return begun
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
        with self._ends.about_to_attend() if words else nullcontext():
            if row["engine_ref"] is None:
                started = await starts.start(acting, identity.tenant_id, ref, given or {}, key=idempotency_key)
                if row["budget_tokens"] is None and found["denied_reason"] is None:
                    self._keep(token_hash(token), ref, caller, found)
            else:
                started = await starts.start_by_key(
                    self._database, token_hash(token), ref, given or {}, idempotency_key, request_id or "", client_ip
                )
            _require_meant(given, started)
            attended = await self._attend(caller, started, words)
        return _run(started, found.get("engine") or ref or "", body, caller, attended)

    async def _begin(
        self, token: str, ref: str | None, body: Mapping[str, Any], idempotency_key: str | None, words: Words | None
    ) -> EngineRun | None:
        """One statement starts the run, when the reference means what it did the last time; None: it did not."""
        hashed, is_key = token_hash(token), token.startswith(KEY_PREFIX)
        known, worker = self._known.get((hashed, ref)), self._ends.worker
        takes = self._takes.get(known.version) if known else None
        if known is None or takes is None or worker is None or not worker.ready:
            return None
        try:
            given = input_of(body, known.engine, takes.input, takes.parameters)
            opening = worker.opening(*known.workflow, takes.whole(given)) if known.workflow else None
            if opening is None and not await takes.fits(given):
                return None
            heard = words is not None and opening is not None and opening.speaks
            admitted = opening and opening.body and Admitted.of(opening.body, streamed=heard)
        except InvalidRequest:
            return None  # the engine may take something else by now, and its step says what is wrong
        try:
            answer = await self._database.call(
                store.BEGIN,
                hashed if is_key else None,
                None if is_key else hashed,
                ref,
                given,
                idempotency_key,
                known.meant | {"checked": opening is not None},
                worker.id,
                worker.room(),
                admitted.asked() | {"node": opening.node} if admitted and opening else None,
            )
        except VanillaError as error:
            if "worker_id" in error.detail:
                return None  # it was declared dead, and begins again
            raise
        if answer is None:
            self._known.pop((hashed, ref), None)
            return None
        started, steps = answer["run"], answer["steps"]
        if steps:
            known.workflow = (answer["tenant_id"], steps[0]["workflow_id"], steps[0]["version"])
        attended = await self._attend(known.caller, started, words)
        if attended is not None:
            attended.alone = bool(steps) and not answer["elsewhere"]
        if admitted:
            admitted.answer = answer["call"]
        worker.take(steps, admitted or None)
        return _run(started, known.engine, body, known.caller, attended)

    def _keep(self, hashed: bytes, ref: str | None, caller: Caller, found: Mapping[str, Any]) -> None:
        """Nothing of a copy, which has values of its own."""
        if found["source"] == "copy" or (ref or "").startswith("my/"):
            return
        meant = {name: found[name] for name in ("engine_id", "version", "source_id")}
        known = _Known(caller, found["engine"], meant)
        _put(self._known, (hashed, ref), known, KNOWN)
        _put(self._takes, known.version, _Takes(found["input"], found["parameters"]), VERSIONS)

    async def _attend(self, caller: Caller, started: Mapping[str, Any], words: Words | None) -> Attended | None:
        execution_id = UUID(started["execution_id"])
        return await self._ends.attend(caller.identity.tenant_id, execution_id, words.open if words else None)

    async def end(self, run: EngineRun, gone: asyncio.Event) -> EngineEnd | None:
        caller = run.caller
        tenant_id = caller.identity.tenant_id

        async def again() -> Identity:
            return (await identify(self._database, caller.token)).identity

        async def find(connection: asyncpg.Connection) -> EngineEnd | None:
            row = await connection.fetchrow(store.END, tenant_id, run.execution_id)
            return EngineEnd(**row) if row else None

        try:
            found = await self._ends.wait(
                run.execution_id, caller.identity, WAIT_S, again, find, gone, run.attended, _end_of
            )
        except VanillaError as error:
            detail = error.detail | {"execution_id": str(run.execution_id)}
            raise VanillaError(error.name, error.message, detail, error.hint) from None
        if found is None and not gone.is_set():
            why = "This process stops" if self._ends.stopping else f"It did not end within {WAIT_S:g} s"
            raise _still_running(run, why)
        return found

    def leave(self, run: EngineRun) -> None:
        self._ends.leave(run.attended)

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


@dataclass(slots=True)
class _Known:
    """What a reference meant to a caller the last time; whether it still does, and who they are, SQL sees each time."""

    caller: Caller
    engine: str
    meant: dict[str, Any]
    workflow: tuple[str, str, int] | None = None
    """Tenant, id and version, as soon as a step of it was seen."""

    @property
    def version(self) -> tuple[str, int]:
        return self.meant["engine_id"], self.meant["version"]


@dataclass(frozen=True, slots=True)
class _Takes:
    """What a version of an engine takes, whoever calls it."""

    input: Any
    parameters: Mapping[str, Any] | None

    def whole(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return starts.defaults_of(self.parameters) | dict(given)

    async def fits(self, given: Mapping[str, Any]) -> bool:
        try:
            await require_fit([self.input], self.whole(given), "input")
        except VanillaError:
            return False
        return True


def _put(kept: dict[K, V], key: K, value: V, most: int) -> None:
    """What was put first goes when there are so many."""
    kept.pop(key, None)
    if len(kept) >= most:
        kept.pop(next(iter(kept)))
    kept[key] = value


def _run(
    started: Mapping[str, Any], engine: str, body: Mapping[str, Any], caller: Caller, attended: Attended | None
) -> EngineRun:
    return EngineRun(
        UUID(started["execution_id"]),
        engine,
        started["version"],
        started["alias"],
        started["source"],
        body["model"],
        int(time.time()),
        caller,
        attended,
    )


def _end_of(attended: Attended) -> EngineEnd | None:
    """None when others have computed some of the run: then the database is asked what its calls used."""
    if not attended.alone or attended.end is None:
        return None
    return EngineEnd(**attended.end | {f"{name}_tokens": tokens for name, tokens in attended.used.items()})


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
