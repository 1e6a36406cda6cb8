"""Engines of `vanilla_saas.client`."""

import builtins
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from vanilla_saas.client_http import ApiError, Connection, WorkflowFailed, path_of
from vanilla_saas.engines.comparison import Unfit, cases_of, compare, sides_of


@dataclass(frozen=True, slots=True)
class Begun:
    """A run of an engine that was begun, or with the same idempotency key before (`replayed`)."""

    execution_id: str
    engine_id: str
    version: int
    source: str
    estimate: Mapping[str, int | None]
    status: str
    replayed: bool


class Engines:
    """`client.engines`. A reference is `slug`, `slug@3`, `slug@canary` or `my/slug`; None is the one that is chosen."""

    def __init__(self, client: Connection):
        self._client = client

    async def list(self) -> list[dict[str, Any]]:
        """Cards of the engines that the caller may read or run."""
        return await self._client.rows("/engines")

    async def start(
        self,
        ref: str | None = None,
        input: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        priority: int | None = None,
    ) -> Begun:
        """Begins a run; with a key it may be sent again after a failure and begins once. A key of an engine may too.

        Raises ApiError `invalid_input` with `problems` when the input does not fit, `not_found`, `forbidden`,
        `invalid_state`.
        """
        body = {"ref": ref, "input": dict(input or {}), "idempotency_key": idempotency_key, "priority": priority}
        answer = await self._client.call("POST", "/engines/run", body)
        return Begun(**{one.name: answer[one.name] for one in fields(Begun)})

    async def get(self, execution_id: str | UUID, *, wait_s: float = 0) -> dict[str, Any]:
        """A run as it is now, or as soon as it is over, after `wait_s` at the latest."""
        path = path_of("engine-runs", execution_id)
        found: dict[str, Any] = await self._client.call("GET", path, query={"wait_s": str(wait_s)})
        return found

    async def follow(self, execution_id: str | UUID) -> AsyncIterator[dict[str, Any]]:
        """The run now, whenever it changes, and as it ended; with a key of an engine too, of runs that it began.

        Raises ApiError when it is refused.
        """
        async for run in self._client.follow(path_of("engine-runs", execution_id, "events")):
            yield run

    async def result(self, execution_id: str | UUID) -> Any:
        """Waits for the end and gives the output. Raises WorkflowFailed with the code, ApiError."""
        run = await self.ended(execution_id)
        if run["status"] != "succeeded":
            raise WorkflowFailed(run)
        return run["output"]

    async def ended(self, execution_id: str | UUID) -> dict[str, Any]:
        """Waits for the end, whatever it is, and gives the run. Raises ApiError."""
        return await self._client.ended(path_of("engine-runs", execution_id))

    async def run(
        self,
        ref: str | None = None,
        input: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        priority: int | None = None,
    ) -> Any:
        """Begins a run, waits for its end and gives the output. Raises as `start` and `result` do."""
        begun = await self.start(ref, input, idempotency_key=idempotency_key, priority=priority)
        return await self.result(begun.execution_id)

    async def compare(
        self, a: str, b: str, cases: Iterable[Mapping[str, Any]], *, at_once: int = 4, name: str = ""
    ) -> dict[str, Any]:
        """Runs both references on each input, and says what that came to: `vanilla-saas engines compare --json`.

        Sent again it takes up what was begun before; another `name` runs everything anew. Raises CaseError (ValueError)
        for inputs that are no objects and references that mean the same, ApiError.
        """
        runs, found = _Runs(self._client, self), cases_of(cases)
        return await compare(runs, await sides_of(runs, (a, b), found), found, at_once, name)

    async def copies(self) -> builtins.list[dict[str, Any]]:
        """The caller's copies; an admin's are the tenant's."""
        return await self._client.rows("/engine-copies")

    async def rebase(
        self,
        copy_id: str | UUID,
        to: int | Literal["stable", "canary"] | None = None,
        *,
        overlay: Mapping[str, Any] | None = None,
        drop: bool = False,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Takes a copy to another version, of none to what the name means. `overlay` sets values, None takes one away,
        `drop` takes away those that do not fit.

        Raises ApiError `invalid_definition` with `problems` when it does not fit; a dry run has them in `conflicts`.
        """
        body = _rebase(to, drop, dry_run) | {"overlay": dict(overlay or {})}
        path = path_of("engine-copies", copy_id, "rebase")
        told: dict[str, Any] = await self._client.call("POST", path, body)
        return told

    async def rebase_all(
        self,
        engine: str | UUID,
        to: int | Literal["stable", "canary"] | None = None,
        *,
        drop: bool = False,
        dry_run: bool = False,
    ) -> builtins.list[dict[str, Any]]:
        """Takes every copy of an engine there; those with `conflicts` stay as they are. Admins only."""
        path = path_of("engines", engine, "rebase")
        told: list[dict[str, Any]] = (await self._client.call("POST", path, _rebase(to, drop, dry_run)))["data"]
        return told

    async def offered(self) -> builtins.list[dict[str, Any]]:
        """Engines that the platform offers, permitted to a level or not. Admins only."""
        return await self._client.rows("/engine-offers")

    async def report(self, engine: str | UUID) -> builtins.list[dict[str, Any]]:
        """What the runs of the last 30 days came to, a row for each version. Admins only."""
        return await self._client.rows(path_of("engines", engine, "report"))


class _Runs:
    """Runs of a comparison over HTTP."""

    def __init__(self, client: Connection, engines: Engines):
        self._client, self._engines = client, engines

    async def resolve(self, ref: str) -> dict[str, Any]:
        told: dict[str, Any] = await self._client.call("GET", "/engine-choice", query={"ref": ref})
        return told

    async def overlay(self, copy_id: str) -> dict[str, Any]:
        rows = await self._engines.copies()
        return next((row["overlay"] for row in rows if row["id"] == copy_id), {})

    async def start(self, ref: str, given: dict[str, Any], key: str | None) -> str:
        try:
            return (await self._engines.start(ref, given, idempotency_key=key)).execution_id
        except ApiError as error:
            if error.code != "invalid_input":
                raise
            raise Unfit(str(error)) from None

    async def ended(self, execution_id: str) -> dict[str, Any]:
        run = await self._engines.ended(execution_id)
        gates = await self._client.rows(path_of("workflow-executions", execution_id, "gates"))
        began, ended = (datetime.fromisoformat(run[name]) for name in ("started_at", "finished_at"))
        told = {name: run[name] for name in ("status", "reason", "error", "output", "charged_tokens", "cost_micros")}
        return told | {
            "ms": round((ended - began).total_seconds() * 1000),
            "gates": len(gates),
            "gates_passed": sum(gate["passed"] for gate in gates),
        }


def _rebase(to: object, drop: bool, dry_run: bool) -> dict[str, Any]:
    return {"to": None if to is None else str(to), "drop": drop, "dry_run": dry_run}
