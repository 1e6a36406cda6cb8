"""A worker with all that its steps are computed with: in a process of its own, or beside the API."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

import structlog

from vanilla_saas.database.coalescer import Coalescer
from vanilla_saas.database.connection import Addresses, addresses
from vanilla_saas.database.context import ContextSigner, load_signer
from vanilla_saas.database.pool import Database
from vanilla_saas.logs import configure_logs
from vanilla_saas.orchestration.journal import Journal
from vanilla_saas.providers.adapters import UpstreamClient
from vanilla_saas.providers.sandbox import SandboxServer
from vanilla_saas.providers.secrets import SecretBox
from vanilla_saas.providers.step_metering import MeteredStepCalls
from vanilla_saas.settings import Settings
from vanilla_saas.tracing import configure_tracing
from vanilla_saas.workflows.execution.calls import WorkerCalls
from vanilla_saas.workflows.execution.http_client import HttpClient
from vanilla_saas.workflows.execution.mcp.servers import McpServers
from vanilla_saas.workflows.execution.tooling import Tooling
from vanilla_saas.workflows.execution.tools import ToolRegistry
from vanilla_saas.workflows.worker import DRAIN_S, Told, Worker, WorkerOptions

log = structlog.get_logger()
BESIDE_DRAIN_S = 5.0
"""How long a worker beside the API lets its steps run on: a server that is told to stop is waited for."""
THREADS = 64
"""Threads that wait for evaluators, tools and name servers; asyncio's own few would make steps wait for each other."""


def options_of(settings: Settings, **more: object) -> WorkerOptions:
    """What a worker of these settings says of itself; `more` overrides."""
    given: dict[str, object] = {
        "name": f"{socket.gethostname()}:{os.getpid()}",
        "pools": tuple(settings.worker_pools),
        "capacity": settings.worker_capacity,
        "release": version("vanilla-saas"),
    }
    return WorkerOptions(**given | {name: value for name, value in more.items() if value is not None})  # type: ignore[arg-type]


def tools_of(settings: Settings) -> ToolRegistry:
    """The tools of the modules that the setting names. Raises ImportError."""
    registry = ToolRegistry()
    for module in settings.worker_tools:
        registry.load(module)
    return registry


@asynccontextmanager
async def worker_beside(
    database: Database, calls: MeteredStepCalls, settings: Settings, told: Told | None = None, *, polls: bool = True
) -> AsyncIterator[Worker]:
    """Works while the block runs; at its end steps under way get five seconds, then they are handed back.

    One that does not poll works for those alone who wait in this process.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "wait"))
    tools = tools_of(settings)
    async with HttpClient(private=settings.workflows_to_private) as http, McpServers.of(settings) as mcp:

        def tooling(worker: str) -> Tooling:
            return Tooling(WorkerCalls(calls, worker), http, tools, mcp, Journal(database, calls, worker))

        made = Worker(database, options_of(settings, polls=polls), tooling, drain_s=BESIDE_DRAIN_S, told=told)
        async with working(made) as worker:
            yield worker


@asynccontextmanager
async def worker_when_wanted(
    database: Database,
    calls: MeteredStepCalls,
    settings: Settings,
    wanted: asyncio.Event,
    begun: Callable[[Worker], None],
) -> AsyncIterator[None]:
    """While the block runs: a worker for those who wait in this process, from when the first one does."""
    over = asyncio.Event()

    async def begin() -> None:
        await wanted.wait()
        if over.is_set():
            return
        async with worker_beside(database, calls, settings, polls=False) as worker:
            begun(worker)
            await over.wait()

    task = asyncio.create_task(begin())
    task.add_done_callback(_tell_why)
    try:
        yield
    finally:
        over.set()
        wanted.set()
        await asyncio.gather(task, return_exceptions=True)


async def work(settings: Settings, options: WorkerOptions) -> None:
    """Works until the process is told to stop (SIGTERM, SIGINT), then drains. Raises VanillaError, ImportError."""
    configure_logs(settings)
    configure_tracing(settings)
    signer = load_signer(settings)
    with addresses(settings, signer) as where:
        async with worker_alone(settings, options, where, signer) as worker:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, worker.stop)
            await worker.run()


@asynccontextmanager
async def worker_alone(
    settings: Settings, options: WorkerOptions, where: Addresses, signer: ContextSigner, *, drain_s: float = DRAIN_S
) -> AsyncIterator[Worker]:
    """A worker with connections and clients of its own, to be run in the block. Raises VanillaError, ImportError."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "wait"))
    tools = tools_of(settings)
    async with AsyncExitStack() as stack:
        database = await Database.configured(where, settings, signer)
        stack.push_async_callback(database.close)
        sandbox_url = settings.sandbox_url or (await stack.enter_async_context(SandboxServer())).url
        client = await stack.enter_async_context(UpstreamClient())
        http = await stack.enter_async_context(HttpClient(private=settings.workflows_to_private))
        mcp = await stack.enter_async_context(McpServers.of(settings))
        secrets = SecretBox.from_settings(settings)
        coalescer = Coalescer(database)
        stack.push_async_callback(coalescer.close)
        calls = MeteredStepCalls(database, coalescer, client, secrets, sandbox_url, settings.max_running_calls)
        stack.push_async_callback(calls.close)

        def tooling(worker: str) -> Tooling:
            return Tooling(WorkerCalls(calls, worker), http, tools, mcp, Journal(database, calls, worker))

        yield Worker(database, options, tooling, drain_s=drain_s)


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[Worker]:
    """Runs a worker while the block runs, then drains it."""
    task = asyncio.create_task(worker.run())
    task.add_done_callback(_tell_why)
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.gather(task, return_exceptions=True)


def _tell_why(task: asyncio.Task[None]) -> None:
    """A worker beside something else that ends by an error would be missed by nobody."""
    if not task.cancelled() and task.exception() is not None:
        log.error("worker_failed", exc_info=task.exception())
