"""Composition root of the API and the console: rooms, error answers, request ids, background ticks."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import asyncpg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from vanilla_saas import console
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.providers import pages as providers_pages
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy import pages as tenancy_pages
from vanilla_saas.tokens import pages as tokens_pages

log = structlog.get_logger()
TICK_SECONDS = 30.0


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API over the configured database; opens pools at start-up and closes them at shutdown."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        signer = load_signer(settings)
        with addresses(settings, signer) as where:
            app.state.database = await Database.open(
                where.app, where.runtime, signer, size=settings.pool_size, allow_superuser=settings.allow_superuser
            )
            ticker = asyncio.create_task(_tick(app.state.database))
            try:
                yield
            finally:
                ticker.cancel()
                with suppress(asyncio.CancelledError):
                    await ticker
                await app.state.database.close()

    app = FastAPI(title="Vanilla SaaS", version="0.1.0", lifespan=lifespan, redirect_slashes=False)
    app.state.settings = settings
    app.add_middleware(RequestIds)
    app.add_exception_handler(VanillaError, _refusal)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Exception, _failure)
    console.install(app, tokens_pages.ROOM, providers_pages.ROOM, tenancy_pages.ROOM)
    return app


async def _tick(database: Database) -> None:
    """Expired holds, due periods and partitions; the database lets one ticker run at a time."""
    while True:
        try:
            await database.call("select vanilla.run_maintenance()")
        except (VanillaError, asyncpg.PostgresError, OSError) as error:
            log.warning("maintenance_failed", error=str(error))
        await asyncio.sleep(TICK_SECONDS)


class RequestIds:
    """Gives every request an id (the caller's, when it is plain) and answers with it in X-Request-Id."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]  # type: ignore[misc]
            await send(message)

        await self.app(scope, receive, send_with_id)  # type: ignore[arg-type]


def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, VanillaError)
    headers = {"retry-after": str(error.detail["retry_after_s"])} if error.detail.get("retry_after_s") else None
    return JSONResponse(
        error.problem(getattr(request.state, "request_id", None)),
        error.status,
        headers=headers,
        media_type="application/problem+json",
    )


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return _refusal(request, VanillaError("invalid_request", f"{where}: {first['msg']}", {"param": where}))


def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    name = {404: "not_found", 401: "authentication_failed", 403: "forbidden"}.get(error.status_code, "invalid_request")
    refusal = VanillaError(name, str(error.detail))
    body = refusal.problem(getattr(request.state, "request_id", None)) | {"status": error.status_code}
    return JSONResponse(body, error.status_code, headers=error.headers, media_type="application/problem+json")


def _failure(request: Request, error: Exception) -> Response:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return _refusal(request, VanillaError("internal_error", "Something failed on our side."))
