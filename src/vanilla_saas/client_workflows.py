"""Workflows of `vanilla_saas.client`: published, started, followed, decided."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal
from uuid import UUID

from vanilla_saas.client_http import Connection, Progress, WorkflowFailed, path_of

ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Started:
    """An execution that was started, or with the same idempotency key before (`replayed`)."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    replayed: bool


class Workflows:
    """`client.workflows`. Ids are texts or UUIDs; a workflow is named by slug or id."""

    def __init__(self, client: Connection):
        self._client = client

    async def publish(self, slug: str, definition: Mapping[str, Any]) -> int:
        """Saves a definition as the draft of a workflow, which is made when it is not there, and publishes it.

        The version, which is the latest one when nothing has changed. Raises ApiError `invalid_definition`.
        """
        path = path_of("workflows", slug)
        await self._client.call("PUT", path, {"definition": dict(definition)})
        version: int = (await self._client.call("POST", f"{path}/publish", {}))["version"]
        return version

    async def start(
        self,
        workflow: str | UUID,
        input: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        version: int | None = None,
        priority: int | None = None,
        user_id: str | UUID | None = None,
    ) -> Started:
        """Starts a published workflow; with a key it may be sent again after a failure and starts once.

        Raises ApiError `invalid_input` when the input does not fit.
        """
        body: dict[str, Any] = {"input": dict(input or {}), "version": version, "priority": priority}
        if user_id is not None:
            body["user_id"] = str(user_id)
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        path = path_of("workflows", workflow, "executions")
        answer = await self._client.call("POST", path, body, headers=headers)
        return Started(**{one.name: answer[one.name] for one in fields(Started)})

    async def get(self, execution_id: str | UUID) -> Progress:
        """An execution as it is now."""
        found: Progress = await self._client.call("GET", _path(execution_id))
        return found

    async def step(self, execution_id: str | UUID, node: str) -> dict[str, Any]:
        """A step with output and error; of a map the first items in `data`."""
        found: dict[str, Any] = await self._client.call("GET", _path(execution_id, "steps", node))
        return found

    async def follow(self, execution_id: str | UUID) -> AsyncIterator[Progress]:
        """The execution now, whenever something of it changes, and as it ended. A stream that breaks off goes on.

        Raises ApiError when it is refused.
        """
        async for progress in self._client.follow(_path(execution_id, "events")):
            yield progress

    async def result(self, execution_id: str | UUID) -> Any:
        """Waits for the end and gives the output. Raises WorkflowFailed with the code, ApiError."""
        async for progress in self.follow(execution_id):
            if progress["status"] in ENDED and progress["finished_at"]:
                break
        if progress["status"] != "succeeded":
            raise WorkflowFailed(progress)
        return progress["output"]

    async def cancel(self, execution_id: str | UUID, reason: str | None = None) -> None:
        """Ends it with its children."""
        await self._client.call("POST", _path(execution_id, "cancel"), {"reason": reason})

    async def pause(self, execution_id: str | UUID) -> None:
        """What runs ends, nothing further is started."""
        await self._client.call("POST", _path(execution_id, "pause"))

    async def resume(self, execution_id: str | UUID) -> None:
        """Goes on with one that is paused, or that ended for want of tokens."""
        await self._client.call("POST", _path(execution_id, "resume"))

    async def restart(self, execution_id: str | UUID, node: str | None = None, *, version: int | None = None) -> None:
        """Runs an ended one again from where it failed, or from a node; on a newer version when one is named."""
        await self._client.call("POST", _path(execution_id, "restart"), {"node": node, "version": version})

    async def signal(self, execution_id: str | UUID, name: str, payload: object = None) -> int:
        """Sends a signal; how many steps waited for it."""
        body = {"name": name, "payload": payload}
        steps: int = (await self._client.call("POST", _path(execution_id, "signals"), body))["steps"]
        return steps

    async def schedules(self, workflow: str | UUID) -> list[dict[str, Any]]:
        """When a workflow starts by itself, each with its `next_times` and what the last one came to."""
        path = path_of("workflows", workflow, "schedules")
        return await self._client.rows(path)

    async def set_schedule(
        self,
        workflow: str | UUID,
        name: str,
        cron: str,
        *,
        time_zone: str | None = None,
        input: Mapping[str, Any] | None = None,
        catch_up: Literal["none", "one", "all"] = "one",
        enabled: bool = True,
    ) -> dict[str, Any]:
        """Makes or changes the schedule of a name; cron are five fields as "30 2 * * 1-5", in the tenant's time zone
        when none is named. Raises ApiError `invalid_request`, `invalid_input`.
        """
        body = {"cron": cron, "time_zone": time_zone, "input": dict(input or {}), "catch_up": catch_up}
        path = path_of("workflows", workflow, "schedules", name)
        made: dict[str, Any] = await self._client.call("PUT", path, body | {"enabled": enabled})
        return made

    async def delete_schedule(self, workflow: str | UUID, name: str) -> None:
        """Ends it; what it started stays."""
        path = path_of("workflows", workflow, "schedules", name)
        await self._client.call("DELETE", path)

    async def approvals(self) -> list[dict[str, Any]]:
        """What the caller may decide and has not."""
        return await self._client.rows("/approvals")

    async def decide(
        self,
        approval_id: str | UUID,
        decision: Literal["approved", "rejected"],
        *,
        comment: str | None = None,
        value: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Approves or rejects; `value` is what was shown, changed where `edit` allows it."""
        body = {"decision": decision, "comment": comment, "value": None if value is None else dict(value)}
        path = path_of("approvals", approval_id, "decision")
        decided: dict[str, Any] = await self._client.call("POST", path, body)
        return decided


def _path(execution_id: str | UUID, *then: str) -> str:
    return path_of("workflow-executions", execution_id, *then)
