"""What the clients of workflows, engines and agents have in common: requests, streams that go on, and refusals."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
import orjson

from vanilla_saas.providers.sse import EventSplitter, data_of

Progress = dict[str, Any]
"""An execution with its steps, as GET /api/v1/workflow-executions/{id} answers it."""
SILENT_S = 60.0
"""After so long without a sign of life a stream is asked for again; the server gives one each 15 s."""
AGAIN_S = 1.0
RETRIED = {429, 502, 503, 504}
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


class Connection:
    """One address and one key or session; `async with` opens and closes its connections."""

    def __init__(self, base_url: str, key: str, *, timeout_s: float = 60):
        self._base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"}
        self.timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

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
        method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer of `/api/v1` at a path; what is None in a query is left out.

        Raises ApiError; aiohttp.ClientError when there is none.
        """
        address = f"{self._base_url}/api/v1{path}"
        asked = {name: str(value) for name, value in (query or {}).items() if value is not None}
        async with self._open().request(method, address, json=body, params=asked, headers=headers) as answer:
            await _refuse(answer)
            return orjson.loads(await answer.read() or b"null")

    async def rows(self, path: str, *, query: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """The `data` of a list. Raises as `call` does."""
        found: list[dict[str, Any]] = (await self.call("GET", path, query=query))["data"]
        return found

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

    async def events(self, path: Callable[[], str]) -> AsyncIterator[tuple[str, Any]]:
        """As `stream`, up to the event `end`: one that breaks off is asked for again, at what its path is then.

        Raises ApiError when it is refused.
        """
        while True:
            try:
                async for name, data in self.stream(path()):
                    if name == "error":
                        raise ApiError(data.get("status", 500), data)
                    yield name, data
                    if name == "end":
                        return
            except ApiError as error:
                if error.status not in RETRIED:
                    raise
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(AGAIN_S)

    async def follow(self, path: str) -> AsyncIterator[Progress]:
        """What a stream of events tells, put together: now, at each change, at the end. One that breaks off goes on.

        Raises ApiError when it is refused.
        """
        progress: Progress | None = None
        async for _, data in self.events(lambda: path):
            progress = _merged(progress, data)
            yield progress

    async def ended(self, path: str) -> dict[str, Any]:
        """What a path answers as soon as that has a `finished_at`. Raises ApiError."""
        query = {"wait_s": min(LOOK_S, self.timeout_s / 2)}
        while True:
            try:
                found: dict[str, Any] = await self.call("GET", path, query=query)
                if found["finished_at"]:
                    return found
            except ApiError as error:
                if error.status not in RETRIED:
                    raise
                await asyncio.sleep(AGAIN_S)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(AGAIN_S)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Open the client first: async with Client(...) as client.")
        return self._session


def path_of(*parts: object) -> str:
    """A path of the API: `path_of("channels", id, "messages")`."""
    return "/".join(["", *(quote(str(part), safe="@") for part in parts)])


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
