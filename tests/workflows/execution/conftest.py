from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from tests.workflows.execution.support import WORKER, Admissions, plan, step
from vanilla_saas.providers.adapters import UpstreamClient
from vanilla_saas.providers.sandbox import SandboxServer
from vanilla_saas.providers.secrets import SecretBox
from vanilla_saas.providers.step_metering import MeteredStepCalls
from vanilla_saas.workflows.execution.calls import WorkerCalls
from vanilla_saas.workflows.execution.http_client import HttpClient
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.steps import Outcome
from vanilla_saas.workflows.execution.tooling import Tooling
from vanilla_saas.workflows.execution.tools import ToolRegistry

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
async def sandbox() -> AsyncIterator[SandboxServer]:
    async with SandboxServer() as server:
        yield server


@pytest.fixture
def admissions() -> Admissions:
    return Admissions()


@pytest.fixture(scope="session")
async def upstream_client() -> AsyncIterator[UpstreamClient]:
    async with UpstreamClient() as client:
        yield client


@pytest.fixture
async def tooling(
    sandbox: SandboxServer, admissions: Admissions, upstream_client: UpstreamClient
) -> AsyncIterator[Tooling]:
    """Model calls go through the metering to a real sandbox, http to our own network."""
    nowhere: Any = None
    box = SecretBox([bytes(32)])
    metered = MeteredStepCalls(admissions, nowhere, upstream_client, box, sandbox.url, 8)  # type: ignore[arg-type]
    async with HttpClient(private=True) as http:
        yield Tooling(WorkerCalls(metered, WORKER), http, ToolRegistry(), now=lambda: NOW)


Compute = Callable[..., Awaitable[Outcome]]


@pytest.fixture
def compute(tooling: Tooling) -> Compute:
    """The outcome of one node; `node` are its fields, the rest those of the step."""

    async def compute(node: dict[str, Any], /, **fields: Any) -> Outcome:
        return await execute(step(**fields), plan({"id": "a", **node}), tooling)

    return compute


@dataclass
class Receiver:
    """A server of the outside; `answer` says with what."""

    url: str
    requests: list[tuple[str, str, dict[str, str], bytes]]
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async def plain(_: web.Request) -> web.StreamResponse:
        return web.json_response({"ok": True})

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        found.requests.append((request.method, request.path_qs, dict(request.headers), body))
        return await found.answer(request)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    found = Receiver(f"http://127.0.0.1:{port}", [], plain)
    try:
        yield found
    finally:
        await runner.cleanup()
