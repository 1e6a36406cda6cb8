"""Engines of `vanilla_saas.client`: run, chosen, copied; for admins deployed, promoted, assigned, permitted."""

import builtins
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from vanilla_saas.client_http import ApiError, Connection, WorkflowFailed, path_of
from vanilla_saas.engines.comparison import Unfit, cases_of, compare, sides_of

Access = Literal["none", "read", "execute"]
Alias = Literal["stable", "canary"]
Target = Literal["user", "level", "tier", "tenant", "platform"]


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

    async def list(self, *, user_id: str | UUID | None = None) -> list[dict[str, Any]]:
        """Cards of the engines that the caller, or a user whom an admin names, may read or run."""
        return await self._client.rows("/engines", query={"user_id": user_id})

    async def start(
        self,
        ref: str | None = None,
        input: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        priority: int | None = None,
        user_id: str | UUID | None = None,
    ) -> Begun:
        """Begins a run; with a key it may be sent again after a failure and begins once. A key of an engine may too.

        `user_id` is who pays, admins only. Raises ApiError `invalid_input` with `problems` when the input does not fit,
        `not_found`, `forbidden`, `invalid_state`.
        """
        body = {
            "ref": ref, "input": dict(input or {}), "idempotency_key": idempotency_key, "priority": priority,
            "user_id": _text(user_id),
        }  # fmt: skip
        answer = await self._client.call("POST", "/engines/run", body)
        return Begun(**{one.name: answer[one.name] for one in fields(Begun)})

    async def preview(
        self,
        ref: str | None = None,
        input: Mapping[str, Any] | None = None,
        *,
        user_id: str | UUID | None = None,
    ) -> dict[str, Any]:
        """What a start of the same would begin, `estimate` (tokens: p50, p95 of so many runs) and `prices_changed`.

        Nothing is started. `user_id` is who would pay, admins only. Raises ApiError as `start` does.
        """
        body = {"ref": ref, "input": dict(input or {}), "user_id": _text(user_id)}
        return dict(await self._client.call("POST", "/engines/preview", body))

    async def get(self, execution_id: str | UUID, *, wait_s: float = 0) -> dict[str, Any]:
        """A run as it is now, or as soon as it is over, after `wait_s` at the latest."""
        path = path_of("engine-runs", execution_id)
        return dict(await self._client.call("GET", path, query={"wait_s": wait_s}))

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

    async def resolve(self, ref: str | None = None, *, user_id: str | UUID | None = None) -> dict[str, Any]:
        """Which engine and version a reference means for the caller, or for a user whom an admin names.

        `denied_reason` says why they may not run it.
        """
        query = {"ref": ref, "user_id": user_id}
        return dict(await self._client.call("GET", "/engine-choice", query=query))

    async def explain(
        self, ref: str | None = None, *, user_id: str | UUID | None = None
    ) -> builtins.list[dict[str, Any]]:
        """Everything that could choose an engine, in order: `chosen`, or the `reason` why it is not."""
        return await self._client.rows("/engine-choice/explanation", query={"ref": ref, "user_id": user_id})

    async def copies(self, *, user_id: str | UUID | None = None) -> builtins.list[dict[str, Any]]:
        """The caller's copies; an admin's are the tenant's, or those of a user."""
        return await self._client.rows("/engine-copies", query={"user_id": user_id})

    async def fork(
        self,
        ref: str,
        slug: str,
        overlay: Mapping[str, Any] | None = None,
        *,
        is_default: bool = False,
        user_id: str | UUID | None = None,
    ) -> dict[str, Any]:
        """Makes the copy `my/<slug>`, which stays on the version with values of its own, or changes it.

        With `is_default` it runs when no engine is named; `user_id` is whose it is to be, admins only. Raises ApiError
        `invalid_definition` with `problems` when a value does not fit.
        """
        body = {"ref": ref, "slug": slug, "overlay": dict(overlay or {}), "is_default": is_default}
        return dict(await self._client.call("POST", "/engine-copies", body | {"user_id": _text(user_id)}))

    async def delete_copy(self, copy_id: str | UUID) -> None:
        """Deletes a copy; what runs of it goes on."""
        await self._client.call("DELETE", path_of("engine-copies", copy_id))

    async def rebase(
        self,
        copy_id: str | UUID,
        to: int | Alias | None = None,
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
        return dict(await self._client.call("POST", path, body))

    async def rebase_all(
        self,
        engine: str | UUID,
        to: int | Alias | None = None,
        *,
        drop: bool = False,
        dry_run: bool = False,
    ) -> builtins.list[dict[str, Any]]:
        """Takes every copy of an engine there; those with `conflicts` stay as they are. Admins only."""
        path = path_of("engines", engine, "rebase")
        told: list[dict[str, Any]] = (await self._client.call("POST", path, _rebase(to, drop, dry_run)))["data"]
        return told

    async def create_key(
        self,
        ref: str,
        name: str,
        *,
        budget_tokens: int | None = None,
        expires_at: datetime | None = None,
        user_id: str | UUID | None = None,
    ) -> dict[str, Any]:
        """A key that runs one engine and opens nothing else: `key`, which is told once, and its `id`.

        `user_id` is whose it is and who pays, the caller without it. Needs the scope admin.
        """
        body = {
            "ref": ref, "name": name, "budget_tokens": budget_tokens, "user_id": _text(user_id),
            "expires_at": _moment(expires_at),
        }  # fmt: skip
        return dict(await self._client.call("POST", "/engine-keys", body))

    async def revoke_key(self, key_id: str | UUID, *, cancel_runs: bool = True) -> None:
        """Its next request is refused; what it began and has not ended is cancelled, unless that is not wanted."""
        await self._client.call("DELETE", path_of("keys", key_id), query={"cancel_runs": cancel_runs})

    async def catalog(self) -> builtins.list[dict[str, Any]]:
        """Every engine of the tenant with what its name means. Admins only, as all that follows."""
        return await self._client.rows("/engine-catalog")

    async def offered(self) -> builtins.list[dict[str, Any]]:
        """Engines that the platform offers, permitted to a level or not."""
        return await self._client.rows("/engine-offers")

    async def show(self, engine: str | UUID) -> dict[str, Any]:
        """An engine with its versions (`data`), its aliases and what each level may (`access`)."""
        return dict(await self._client.call("GET", path_of("engines", engine)))

    async def version(self, engine: str | UUID, version: int) -> dict[str, Any]:
        """A version with all that its hash is of."""
        return dict(await self._client.call("GET", path_of("engines", engine, "versions", version)))

    async def deploy(
        self,
        slug: str,
        workflow: str | UUID,
        *,
        workflow_version: int | None = None,
        name: str | None = None,
        description: str | None = None,
        mode: Literal["sequential", "parallel"] = "parallel",
        at_once: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        output: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Freezes a published workflow as the next version; `unchanged` when the latest one says the same.

        `parameters` are the properties of the input that a copy may set, `output` is a JSON Schema that cards show.
        Raises ApiError `invalid_definition` with `problems`.
        """
        body = {
            "slug": slug, "workflow": str(workflow), "workflow_version": workflow_version, "name": name,
            "description": description, "mode": mode, "at_once": at_once, "parameters": dict(parameters or {}),
            "output": None if output is None else dict(output),
        }  # fmt: skip
        return dict(await self._client.call("POST", "/engines", body))

    async def change(
        self,
        engine: str | UUID,
        *,
        name: str | None = None,
        description: str | None = None,
        default_access: Access | None = None,
        offered: bool | None = None,
    ) -> dict[str, Any]:
        """What is left out stays. `default_access` is what users may whose level says nothing, `offered` is of the
        platform: every tenant sees it.
        """
        body = {"name": name, "description": description, "default_access": default_access, "offered": offered}
        return dict(await self._client.call("PATCH", path_of("engines", engine), body))

    async def promote(
        self, engine: str | UUID, version: int, alias: Alias = "stable", *, weight: int | None = None
    ) -> dict[str, Any]:
        """Lets stable, or for `weight` of 100 users canary, mean a version from the next start on."""
        body = {"version": version, "alias": alias, "weight": weight}
        return dict(await self._client.call("POST", path_of("engines", engine, "promote"), body))

    async def rollback(self, engine: str | UUID, alias: Alias = "stable") -> dict[str, Any]:
        """Lets stable mean what it meant before, or ends the canary; what runs stays on its version.

        Raises ApiError `invalid_state` when there is nothing to go back to.
        """
        return dict(await self._client.call("POST", path_of("engines", engine, "rollback"), {"alias": alias}))

    async def retire(self, engine: str | UUID, version: int | None = None) -> dict[str, Any]:
        """Nothing starts on a version any more, of none on the engine until it is deployed again; what runs goes on."""
        return dict(await self._client.call("POST", path_of("engines", engine, "retire"), {"version": version}))

    async def permit(self, engine: str | UUID, level_id: str | UUID, access: Access | None) -> None:
        """What users of a level may with an engine, also one that the platform offers; None: its default."""
        await self._client.call("PUT", path_of("engines", engine, "levels", level_id), {"access": access})

    async def assignments(self, engine: str | UUID | None = None) -> builtins.list[dict[str, Any]]:
        """What chooses an engine for whom, what precedes first."""
        return await self._client.rows("/engine-assignments", query={"engine": engine})

    async def assign(
        self,
        engine: str | UUID,
        target: Target,
        target_id: str | UUID | None = None,
        *,
        tier: int | None = None,
        pin: int | Alias | None = None,
        priority: int = 0,
        valid_from: datetime | None = None,
        valid_to: datetime | None = None,
    ) -> dict[str, Any]:
        """Chooses an engine for those who name none: a user or level by id, a tier by number, all of the tenant.

        Again for the same target changes it. It permits nothing. `pin` is the version, of none what the name means.
        """
        body = {
            "engine": str(engine), "target": target, "target_id": _text(target_id), "tier": tier, "pin": _text(pin),
            "priority": priority, "valid_from": _moment(valid_from), "valid_to": _moment(valid_to),
        }  # fmt: skip
        return dict(await self._client.call("POST", "/engine-assignments", body))

    async def unassign(self, assignment_id: str | UUID) -> None:
        """Takes an assignment back."""
        await self._client.call("DELETE", path_of("engine-assignments", assignment_id))

    async def report(
        self, engine: str | UUID, *, begin: datetime | None = None, until: datetime | None = None
    ) -> builtins.list[dict[str, Any]]:
        """What the runs of a time came to, the last 30 days when none is named; a row for each version."""
        query = {"from": _moment(begin), "until": _moment(until)}
        return await self._client.rows(path_of("engines", engine, "report"), query=query)


class _Runs:
    """Runs of a comparison over HTTP."""

    def __init__(self, client: Connection, engines: Engines):
        self._client, self._engines = client, engines

    async def resolve(self, ref: str) -> dict[str, Any]:
        return await self._engines.resolve(ref)

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
    return {"to": _text(to), "drop": drop, "dry_run": dry_run}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _moment(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
