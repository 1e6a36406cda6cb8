"""Composition root of the API and the console: rooms, error answers, request ids, work in the background."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from vanilla_saas import console
from vanilla_saas.database.coalescer import Coalescer
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.pool import Database
from vanilla_saas.engines import pages as engines_pages
from vanilla_saas.engines.chat import ChatEngines
from vanilla_saas.engines.routes import router as engines_router
from vanilla_saas.engines.run_routes import router as engine_runs_router
from vanilla_saas.engines.waiting import Ends
from vanilla_saas.levels import pages as levels_pages
from vanilla_saas.levels.change_routes import router as level_changes_router
from vanilla_saas.levels.routes import router as levels_router
from vanilla_saas.logs import configure_logs
from vanilla_saas.operations import backups_pages, schedules_pages, webhooks_pages
from vanilla_saas.operations import pages as operations_pages
from vanilla_saas.operations.routes import router as operations_router
from vanilla_saas.operations.schedules import JobContext, Scheduler
from vanilla_saas.operations.schedules_jobs import JOBS
from vanilla_saas.operations.schedules_routes import router as schedules_router
from vanilla_saas.operations.webhooks import WebhookSender
from vanilla_saas.operations.webhooks_routes import router as webhooks_router
from vanilla_saas.orchestration import channel_pages
from vanilla_saas.orchestration.agreement_routes import router as agreements_router
from vanilla_saas.orchestration.channel_routes import router as channels_router
from vanilla_saas.orchestration.routes import router as agents_router
from vanilla_saas.payments import pages as payments_pages
from vanilla_saas.payments.routes import router as payments_router
from vanilla_saas.providers import pages as providers_pages
from vanilla_saas.providers.adapters import UpstreamClient
from vanilla_saas.providers.gateway import Gateway
from vanilla_saas.providers.sandbox import SandboxServer
from vanilla_saas.providers.secrets import SecretBox
from vanilla_saas.providers.step_metering import MeteredStepCalls
from vanilla_saas.routing import pages as routing_pages
from vanilla_saas.routing.routes import router as routing_router
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy import pages as tenancy_pages
from vanilla_saas.tenancy.person_routes import router as person_router
from vanilla_saas.tenancy.routes import router as tenancy_router
from vanilla_saas.tokens import pages as tokens_pages
from vanilla_saas.tokens.proof_routes import router as proof_router
from vanilla_saas.tokens.routes import router as tokens_router
from vanilla_saas.tokens.wallet_routes import router as wallet_router
from vanilla_saas.tracing import configure_tracing
from vanilla_saas.web import BodyLimit, Observed, RequestIds, install_problems
from vanilla_saas.workflows import approval_pages, run_pages, schedule_pages
from vanilla_saas.workflows import pages as workflows_pages
from vanilla_saas.workflows.execution_events import Streams, ended_by_signals
from vanilla_saas.workflows.execution_routes import router as executions_router
from vanilla_saas.workflows.routes import router as workflows_router
from vanilla_saas.workflows.schedule_routes import router as workflow_schedules_router
from vanilla_saas.workflows.working import worker_beside, worker_when_wanted


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API over the configured database; opens pools at start-up and closes them at shutdown."""
    settings = settings or Settings()
    configure_logs(settings)
    configure_tracing(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        signer = load_signer(settings)
        with addresses(settings, signer) as where:
            database = await Database.configured(where, settings, signer)
            async with _sandbox(settings) as sandbox_url, UpstreamClient() as client:
                secrets = SecretBox.from_settings(settings)
                coalescer = Coalescer(database)
                calls = MeteredStepCalls(database, coalescer, client, secrets, sandbox_url, settings.max_running_calls)
                app.state.database, app.state.secrets, app.state.calls = database, secrets, calls
                app.state.coalescer = coalescer
                app.state.addresses, app.state.signer = where, signer
                ends = app.state.ends = Ends(database, app.state.streams)
                app.state.gateway = Gateway(calls, settings.max_body_bytes, ChatEngines(database, ends))
                app.state.webhooks = WebhookSender.from_settings(database, settings)
                if settings.send_webhooks:
                    app.state.webhooks.start()
                app.state.scheduler = Scheduler(database, JobContext(where, settings), JOBS)
                if settings.run_schedules:
                    app.state.scheduler.start()
                try:
                    async with AsyncExitStack() as working:
                        if settings.run_worker:
                            beside = worker_beside(database, calls, settings, ends.look)
                            ends.work_with(await working.enter_async_context(beside))
                        else:
                            alone = worker_when_wanted(database, calls, settings, ends.wanted, ends.work_with)
                            await working.enter_async_context(alone)
                        working.enter_context(ended_by_signals(app.state.streams))
                        yield
                finally:
                    await app.state.scheduler.close()
                    await app.state.webhooks.close()
                    await calls.close()
                    await coalescer.close()
                    await database.close()

    app = FastAPI(
        title="Vanilla SaaS", version="0.1.0", lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None
    )
    app.state.settings = settings
    app.state.streams = Streams(settings.max_streams, max(settings.pool_size // 4, 1))
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    app.add_middleware(OpenAISurface, state=app.state)
    app.add_middleware(Observed, log_requests=settings.log_requests)
    app.add_middleware(RequestIds)
    install_problems(app)
    rooms = (
        operations_router, person_router, tenancy_router, tokens_router, wallet_router, proof_router, levels_router,
        level_changes_router, payments_router, webhooks_router, schedules_router, workflows_router,
        routing_router,
        executions_router, workflow_schedules_router, engine_runs_router, engines_router,
        agents_router, channels_router, agreements_router,
    )  # fmt: skip
    for router in rooms:
        app.include_router(router)
    pages = (
        tokens_pages, levels_pages, payments_pages, providers_pages, tenancy_pages, webhooks_pages, schedules_pages,
        operations_pages, backups_pages, workflows_pages, engines_pages, run_pages, schedule_pages, approval_pages,
        routing_pages, channel_pages,
    )  # fmt: skip
    console.install(app, *(page.ROOM for page in pages))
    return app


@asynccontextmanager
async def _sandbox(settings: Settings) -> AsyncIterator[str]:
    """Address of the sandbox provider: the configured one, else a server of this process on loopback."""
    if settings.sandbox_url:
        yield settings.sandbox_url
        return
    async with SandboxServer() as server:
        yield server.url


class OpenAISurface:
    """Sends `/v1` to the gateway, past the framework."""

    def __init__(self, app: ASGIApp, state: State):
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        to_gateway = scope["type"] == "http" and scope["path"].startswith("/v1/")
        await (self.state.gateway if to_gateway else self.app)(scope, receive, send)
