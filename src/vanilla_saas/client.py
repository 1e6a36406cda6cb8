"""A client of workflows, engines, agents, channels and agreements over HTTP, for asyncio:

    async with Client("http://127.0.0.1:8000", "vsk_...") as client:
        await client.workflows.publish("summarise", definition)
        run = await client.workflows.start("summarise", input={"text": "A long story."})
        async for progress in client.workflows.follow(run.execution_id):
            print(progress["status"])
        print(await client.workflows.result(run.execution_id))
        print(await client.engines.run("summarise", {"text": "A long story."}))

For models any OpenAI client is one: `/v1` of the same address.
"""

import asyncio
import builtins
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, Self
from urllib.parse import quote
from uuid import UUID

import aiohttp
import orjson

from vanilla_saas.engines.comparison import Unfit, cases_of, compare, sides_of
from vanilla_saas.providers.sse import EventSplitter, data_of

Progress = dict[str, Any]
"""An execution with its steps, as GET /api/v1/workflow-executions/{id} answers it."""
SILENT_S = 60.0
"""After so long without a sign of life a stream is asked for again; the server gives one each 15 s."""
AGAIN_S = 1.0
RETRIED = {429, 502, 503, 504}
ENDED = ("succeeded", "failed", "cancelled")
LOOK_S = 30.0
"""How long a request waits for the end of a run."""


class ApiError(Exception):
    """A refusal: `code` is stable, `status` HTTP's, `problem` the whole answer (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any]):
        self.status, self.problem = status, problem
        self.code = str(problem.get("code", "unknown"))
        super().__init__(f"{self.code}: {problem.get('detail', 'no explanation')}")


class WorkflowFailed(Exception):
    """An execution did not succeed: `code` says why, `node` where, `execution` is all of it."""

    def __init__(self, execution: Progress):
        error = execution["error"] or {}
        self.execution, self.status = execution, str(execution["status"])
        self.code, self.node = str(execution["reason"] or execution["status"]), error.get("node")
        where = f" in {self.node}" if self.node else ""
        super().__init__(f"{self.code}{where}: {error.get('message') or self.status}")


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


@dataclass(frozen=True, slots=True)
class Started:
    """An execution that was started, or with the same idempotency key before (`replayed`)."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    replayed: bool


class Client:
    """One address and one key or session; `async with` opens and closes its connections."""

    def __init__(self, base_url: str, key: str, *, timeout_s: float = 60):
        self._base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"}
        self.timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self.workflows = Workflows(self)
        self.engines = Engines(self)
        self.agents = Agents(self)
        self.channels = Channels(self)
        self.agreements = Agreements(self)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=self.timeout_s)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        method: Literal["GET", "POST", "PUT", "DELETE"],
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer of `/api/v1` at a path. Raises ApiError; aiohttp.ClientError when there is none."""
        address = f"{self._base_url}/api/v1{path}"
        async with self._open().request(method, address, json=body, params=query, headers=headers) as answer:
            await _refuse(answer)
            return orjson.loads(await answer.read() or b"null")

    async def stream(self, path: str) -> AsyncIterator[tuple[str, Any]]:
        """Name and data of each server-sent event. Raises ApiError; aiohttp.ClientError when it breaks off."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout_s, sock_read=SILENT_S)
        async with self._open().get(f"{self._base_url}/api/v1{path}", timeout=timeout) as answer:
            await _refuse(answer)
            splitter = EventSplitter()
            async for chunk in answer.content.iter_any():
                for event in splitter.feed(chunk):
                    name = next((line[6:].strip() for line in event.split(b"\n") if line.startswith(b"event:")), b"")
                    if data := data_of(event):
                        yield name.decode(), orjson.loads(data)

    async def follow(self, path: str) -> AsyncIterator[Progress]:
        """What a stream of events tells, put together: now, at each change, at the end. One that breaks off goes on.

        Raises ApiError when it is refused.
        """
        progress: Progress | None = None
        while True:
            try:
                async for name, data in self.stream(path):
                    if name == "error":
                        raise ApiError(data.get("status", 500), data)
                    progress = _merged(progress, data)
                    yield progress
                    if name == "end":
                        return
            except ApiError as error:
                if error.status not in RETRIED:
                    raise
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(AGAIN_S)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Open the client first: async with Client(...) as client.")
        return self._session


class Workflows:
    """`client.workflows`. Ids are texts or UUIDs; a workflow is named by slug or id."""

    def __init__(self, client: Client):
        self._client = client

    async def publish(self, slug: str, definition: Mapping[str, Any]) -> int:
        """Saves a definition as the draft of a workflow, which is made when it is not there, and publishes it.

        The version, which is the latest one when nothing has changed. Raises ApiError `invalid_definition`.
        """
        path = f"/workflows/{quote(slug, safe='')}"
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
        path = f"/workflows/{quote(str(workflow), safe='')}/executions"
        answer = await self._client.call("POST", path, body, headers=headers)
        return Started(**{one.name: answer[one.name] for one in fields(Started)})

    async def get(self, execution_id: str | UUID) -> Progress:
        """An execution as it is now."""
        found: Progress = await self._client.call("GET", _path(execution_id))
        return found

    async def step(self, execution_id: str | UUID, node: str) -> dict[str, Any]:
        """A step with output and error; of a map the first items in `data`."""
        found: dict[str, Any] = await self._client.call("GET", f"{_path(execution_id)}/steps/{quote(node, safe='')}")
        return found

    async def follow(self, execution_id: str | UUID) -> AsyncIterator[Progress]:
        """The execution now, whenever something of it changes, and as it ended. A stream that breaks off goes on.

        Raises ApiError when it is refused.
        """
        async for progress in self._client.follow(f"{_path(execution_id)}/events"):
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
        await self._client.call("POST", f"{_path(execution_id)}/cancel", {"reason": reason})

    async def pause(self, execution_id: str | UUID) -> None:
        """What runs ends, nothing further is started."""
        await self._client.call("POST", f"{_path(execution_id)}/pause")

    async def resume(self, execution_id: str | UUID) -> None:
        """Goes on with one that is paused, or that ended for want of tokens."""
        await self._client.call("POST", f"{_path(execution_id)}/resume")

    async def restart(self, execution_id: str | UUID, node: str | None = None, *, version: int | None = None) -> None:
        """Runs an ended one again from where it failed, or from a node; on a newer version when one is named."""
        await self._client.call("POST", f"{_path(execution_id)}/restart", {"node": node, "version": version})

    async def signal(self, execution_id: str | UUID, name: str, payload: object = None) -> int:
        """Sends a signal; how many steps waited for it."""
        body = {"name": name, "payload": payload}
        steps: int = (await self._client.call("POST", f"{_path(execution_id)}/signals", body))["steps"]
        return steps

    async def schedules(self, workflow: str | UUID) -> list[dict[str, Any]]:
        """When a workflow starts by itself, each with its `next_times` and what the last one came to."""
        path = f"/workflows/{quote(str(workflow), safe='')}/schedules"
        found: list[dict[str, Any]] = (await self._client.call("GET", path))["data"]
        return found

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
        path = f"/workflows/{quote(str(workflow), safe='')}/schedules/{quote(name, safe='')}"
        made: dict[str, Any] = await self._client.call("PUT", path, body | {"enabled": enabled})
        return made

    async def delete_schedule(self, workflow: str | UUID, name: str) -> None:
        """Ends it; what it started stays."""
        path = f"/workflows/{quote(str(workflow), safe='')}/schedules/{quote(name, safe='')}"
        await self._client.call("DELETE", path)

    async def approvals(self) -> list[dict[str, Any]]:
        """What the caller may decide and has not."""
        found: list[dict[str, Any]] = (await self._client.call("GET", "/approvals"))["data"]
        return found

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
        path = f"/approvals/{quote(str(approval_id), safe='')}/decision"
        decided: dict[str, Any] = await self._client.call("POST", path, body)
        return decided


class Engines:
    """`client.engines`. A reference is `slug`, `slug@3`, `slug@canary` or `my/slug`; None is the one that is chosen."""

    def __init__(self, client: Client):
        self._client = client

    async def list(self) -> list[dict[str, Any]]:
        """Cards of the engines that the caller may read or run."""
        found: list[dict[str, Any]] = (await self._client.call("GET", "/engines"))["data"]
        return found

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
        found: dict[str, Any] = await self._client.call("GET", _run(execution_id), query={"wait_s": str(wait_s)})
        return found

    async def follow(self, execution_id: str | UUID) -> AsyncIterator[dict[str, Any]]:
        """The run now, whenever it changes, and as it ended; with a key of an engine too, of runs that it began.

        Raises ApiError when it is refused.
        """
        async for run in self._client.follow(f"{_run(execution_id)}/events"):
            yield run

    async def result(self, execution_id: str | UUID) -> Any:
        """Waits for the end and gives the output. Raises WorkflowFailed with the code, ApiError."""
        run = await self.ended(execution_id)
        if run["status"] != "succeeded":
            raise WorkflowFailed(run)
        return run["output"]

    async def ended(self, execution_id: str | UUID) -> dict[str, Any]:
        """Waits for the end, whatever it is, and gives the run. Raises ApiError."""
        while True:
            try:
                run = await self.get(execution_id, wait_s=min(LOOK_S, self._client.timeout_s / 2))
                if run["finished_at"]:
                    return run
            except ApiError as error:
                if error.status not in RETRIED:
                    raise
                await asyncio.sleep(AGAIN_S)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(AGAIN_S)

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
        runs, found = _Runs(self._client), cases_of(cases)
        return await compare(runs, await sides_of(runs, (a, b), found), found, at_once, name)

    async def copies(self) -> builtins.list[dict[str, Any]]:
        """The caller's copies; an admin's are the tenant's."""
        found: list[dict[str, Any]] = (await self._client.call("GET", "/engine-copies"))["data"]
        return found

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
        path = f"/engine-copies/{quote(str(copy_id), safe='')}/rebase"
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
        path = f"/engines/{quote(str(engine), safe='')}/rebase"
        told: list[dict[str, Any]] = (await self._client.call("POST", path, _rebase(to, drop, dry_run)))["data"]
        return told

    async def offered(self) -> builtins.list[dict[str, Any]]:
        """Engines that the platform offers, permitted to a level or not. Admins only."""
        found: list[dict[str, Any]] = (await self._client.call("GET", "/engine-offers"))["data"]
        return found

    async def report(self, engine: str | UUID) -> builtins.list[dict[str, Any]]:
        """What the runs of the last 30 days came to, a row for each version. Admins only."""
        path = f"/engines/{quote(str(engine), safe='')}/report"
        found: list[dict[str, Any]] = (await self._client.call("GET", path))["data"]
        return found


class _Runs:
    """Runs of a comparison over HTTP."""

    def __init__(self, client: Client):
        self._client = client

    async def resolve(self, ref: str) -> dict[str, Any]:
        told: dict[str, Any] = await self._client.call("GET", "/engine-choice", query={"ref": ref})
        return told

    async def overlay(self, copy_id: str) -> dict[str, Any]:
        rows = (await self._client.call("GET", "/engine-copies"))["data"]
        return next((row["overlay"] for row in rows if row["id"] == copy_id), {})

    async def start(self, ref: str, given: dict[str, Any], key: str | None) -> str:
        try:
            return (await self._client.engines.start(ref, given, idempotency_key=key)).execution_id
        except ApiError as error:
            if error.code != "invalid_input":
                raise
            raise Unfit(str(error)) from None

    async def ended(self, execution_id: str) -> dict[str, Any]:
        run = await self._client.engines.ended(execution_id)
        gates = (await self._client.call("GET", f"{_path(execution_id)}/gates"))["data"]
        began, ended = (datetime.fromisoformat(run[name]) for name in ("started_at", "finished_at"))
        told = {name: run[name] for name in ("status", "reason", "error", "output", "charged_tokens", "cost_micros")}
        return told | {
            "ms": round((ended - began).total_seconds() * 1000),
            "gates": len(gates),
            "gates_passed": sum(gate["passed"] for gate in gates),
        }


def _rebase(to: object, drop: bool, dry_run: bool) -> dict[str, Any]:
    return {"to": None if to is None else str(to), "drop": drop, "dry_run": dry_run}


class Agents:
    """`client.agents`. A reference is `slug` or `slug@3`."""

    def __init__(self, client: Client):
        self._client = client

    async def list(self) -> list[dict[str, Any]]:
        """Own ones and those that are shared."""
        found: list[dict[str, Any]] = (await self._client.call("GET", "/agents"))["data"]
        return found

    async def save(self, slug: str, definition: Mapping[str, Any], *, shared: bool | None = None) -> int:
        """The version, the latest one when nothing has changed. Raises ApiError `invalid_definition`."""
        body = {"definition": dict(definition), "shared": shared}
        version: int = (await self._client.call("PUT", f"/agents/{quote(slug, safe='')}", body))["version"]
        return version

    async def start(
        self,
        ref: str,
        input: Mapping[str, Any] | None = None,
        *,
        tokens: int | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Begins a run within a budget of tokens and gives its id; with a key it may be sent again and begins once.

        Raises ApiError `not_found`, `invalid_state`, `insufficient_tokens`.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        body = {"input": dict(input or {}), "tokens": tokens}
        path = f"/agents/{quote(ref, safe='@')}/runs"
        run_id: str = (await self._client.call("POST", path, body, headers=headers))["run_id"]
        return run_id

    async def get(self, run_id: str | UUID, *, wait_s: float = 0) -> dict[str, Any]:
        """The tree of a run as it is now, or as soon as it is over, after `wait_s` at the latest."""
        path = f"/agent-runs/{quote(str(run_id), safe='')}"
        found: dict[str, Any] = await self._client.call("GET", path, query={"wait_s": str(wait_s)})
        return found

    async def result(self, run_id: str | UUID) -> dict[str, Any]:
        """Waits for the end and gives the tree, whose `state`, `stop_reason` and `output` say what came of it."""
        while True:
            try:
                found = await self.get(run_id, wait_s=min(LOOK_S, self._client.timeout_s / 2))
                if found["finished_at"]:
                    return found
            except ApiError as error:
                if error.status not in RETRIED:
                    raise
                await asyncio.sleep(AGAIN_S)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(AGAIN_S)

    async def cancel(self, run_id: str | UUID, reason: str | None = None) -> None:
        """Ends it with all that it started."""
        await self._client.call("POST", f"/agent-runs/{quote(str(run_id), safe='')}/cancel", {"reason": reason})


class Channels:
    """`client.channels`. Participants are named by their ids, which `open` and `get` tell."""

    def __init__(self, client: Client):
        self._client = client

    async def open(
        self,
        name: str,
        participants: Sequence[Mapping[str, Any]],
        *,
        kind: str = "group",
        agreement_id: str | UUID | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """`channel_id`, and the participants' ids by name."""
        body = {
            "name": name, "kind": kind, "participants": [dict(one) for one in participants],
            "agreement_id": str(agreement_id) if agreement_id else None, "limits": dict(limits or {}),
        }  # fmt: skip
        made: dict[str, Any] = await self._client.call("POST", "/channels", body)
        return made

    async def list(self) -> builtins.list[dict[str, Any]]:
        """Own ones and those that the caller takes part in."""
        found: list[dict[str, Any]] = (await self._client.call("GET", "/channels"))["data"]
        return found

    async def get(self, channel_id: str | UUID) -> dict[str, Any]:
        found: dict[str, Any] = await self._client.call("GET", _of("channels", channel_id))
        return found

    async def history(
        self, channel_id: str | UUID, *, after: int = 0, limit: int = 100
    ) -> builtins.list[dict[str, Any]]:
        """Messages in their order, behind a seq."""
        query = {"after": str(after), "limit": str(limit)}
        path = _of("channels", channel_id, "messages")
        found: list[dict[str, Any]] = (await self._client.call("GET", path, query=query))["data"]
        return found

    async def send(
        self,
        channel_id: str | UUID,
        participant_id: str | UUID,
        body: Any,
        *,
        performative: str = "inform",
        message_id: str | None = None,
        in_reply_to: int | None = None,
    ) -> int:
        """The message's seq; with a `message_id` it may be sent again and is said once.

        Raises ApiError `agreement_violated`, `invalid_state`, `idempotency_key_reused`.
        """
        message = {
            "participant_id": str(participant_id), "performative": performative, "body": body,
            "message_id": message_id, "in_reply_to": in_reply_to,
        }  # fmt: skip
        seq: int = (await self._client.call("POST", _of("channels", channel_id, "messages"), message))["seq"]
        return seq

    async def receive(
        self, channel_id: str | UUID, participant_id: str | UUID, *, limit: int = 50, lease_s: float = 60
    ) -> dict[str, Any]:
        """`lease_token` (None: nothing is there, or another worker has it) and `data`, the messages."""
        body = {"participant_id": str(participant_id), "limit": limit, "lease_s": lease_s}
        found: dict[str, Any] = await self._client.call("POST", _of("channels", channel_id, "receive"), body)
        return found

    async def ack(self, channel_id: str | UUID, participant_id: str | UUID, lease_token: str, seq: int) -> bool:
        """Raises ApiError `invalid_state` when the lease has ended."""
        body = {"participant_id": str(participant_id), "lease_token": lease_token, "seq": seq}
        told: dict[str, Any] = await self._client.call("POST", _of("channels", channel_id, "ack"), body)
        return bool(told["acknowledged"])

    async def nack(
        self,
        channel_id: str | UUID,
        participant_id: str | UUID,
        lease_token: str,
        seq: int,
        error: str = "",
        *,
        retry_after_s: float = 0,
    ) -> str:
        """`retry` or `dead`."""
        body = {
            "participant_id": str(participant_id), "lease_token": lease_token, "seq": seq, "error": error,
            "retry_after_s": retry_after_s,
        }  # fmt: skip
        told: dict[str, str] = await self._client.call("POST", _of("channels", channel_id, "nack"), body)
        return told["outcome"]

    async def floor(
        self,
        channel_id: str | UUID,
        participant_id: str | UUID,
        action: str = "read",
        *,
        to: str | UUID | None = None,
        bid: float | None = None,
    ) -> dict[str, Any]:
        body = {"participant_id": str(participant_id), "action": action, "to": str(to) if to else None, "bid": bid}
        told: dict[str, Any] = await self._client.call("POST", _of("channels", channel_id, "floor"), body)
        return told

    async def close(self, channel_id: str | UUID, reason: str = "") -> None:
        await self._client.call("POST", _of("channels", channel_id, "close"), {"reason": reason})

    async def follow(self, channel_id: str | UUID, *, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Every message behind a seq, once and in order, until the channel is closed. What breaks off goes on.

        Raises ApiError when it is refused.
        """
        while True:
            try:
                async for name, data in self._client.stream(_of("channels", channel_id, f"events?after={after}")):
                    if name == "error":
                        raise ApiError(data.get("status", 500), data)
                    if name == "message":
                        after = data["seq"]
                        yield data
                    if name == "end":
                        return
            except ApiError as error:
                if error.status not in RETRIED:
                    raise
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(AGAIN_S)


class Agreements:
    """`client.agreements`. A party accepts a hash, which `propose` and `get` tell."""

    def __init__(self, client: Client):
        self._client = client

    async def propose(
        self, name: str, parties: Mapping[str, str | UUID], party: str, content: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Between roles, each with the user who answers for it; `party` proposes.

        Raises ApiError `invalid_definition`.
        """
        whose = {role: str(user_id) for role, user_id in parties.items()}
        body = {"name": name, "parties": whose, "party": party, "content": dict(content)}
        made: dict[str, Any] = await self._client.call("POST", "/agreements", body)
        return made

    async def list(self) -> builtins.list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._client.call("GET", "/agreements"))["data"]
        return found

    async def get(self, agreement_id: str | UUID) -> dict[str, Any]:
        """With its versions and the last violations."""
        found: dict[str, Any] = await self._client.call("GET", _of("agreements", agreement_id))
        return found

    async def respond(
        self,
        agreement_id: str | UUID,
        party: str,
        hash: str,
        decision: Literal["accept", "counter", "reject"],
        content: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Raises ApiError `invalid_state` when something else is proposed by now."""
        answer = {"party": party, "hash": hash, "decision": decision, "content": dict(content) if content else None}
        return await self._do(agreement_id, "respond", answer)

    async def amend(self, agreement_id: str | UUID, party: str, content: Mapping[str, Any]) -> dict[str, Any]:
        return await self._do(agreement_id, "amend", {"party": party, "content": dict(content)})

    async def withdraw(self, agreement_id: str | UUID, party: str) -> dict[str, Any]:
        return await self._do(agreement_id, "withdraw", {"party": party})

    async def suspend(self, agreement_id: str | UUID, party: str | None = None, reason: str = "") -> dict[str, Any]:
        return await self._do(agreement_id, "suspend", {"party": party, "reason": reason})

    async def resume(self, agreement_id: str | UUID, party: str | None = None) -> dict[str, Any]:
        return await self._do(agreement_id, "resume", {"party": party})

    async def terminate(self, agreement_id: str | UUID, party: str | None = None, reason: str = "") -> dict[str, Any]:
        return await self._do(agreement_id, "terminate", {"party": party, "reason": reason})

    async def _do(self, agreement_id: str | UUID, what: str, body: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = await self._client.call("POST", _of("agreements", agreement_id, what), body)
        return told


def _of(what: str, id: str | UUID, *then: str) -> str:
    return "/".join(["", what, quote(str(id), safe=""), *then])


def _path(execution_id: str | UUID) -> str:
    return f"/workflow-executions/{quote(str(execution_id), safe='')}"


def _run(execution_id: str | UUID) -> str:
    return f"/engine-runs/{quote(str(execution_id), safe='')}"


def _merged(before: Progress | None, told: Progress) -> Progress:
    """`told` is the whole when it has an input, else what changed of it."""
    if before is None or "input" in told:
        return told
    if "steps" not in before:
        return before | told
    changed = {step["node"]: step for step in told.get("steps", ())}
    return before | told | {"steps": [changed.get(step["node"], step) for step in before["steps"]]}


async def _refuse(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 400:
        return
    try:
        problem = orjson.loads(await answer.read())
    except orjson.JSONDecodeError:
        problem = {}
    raise ApiError(answer.status, problem if isinstance(problem, dict) else {})
