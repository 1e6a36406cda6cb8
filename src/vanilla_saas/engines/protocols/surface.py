"""`/mcp` and `/a2a`: who asks is known first, and a library is imported when somebody asks for what it speaks."""

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines.protocols import calls
from vanilla_saas.tenancy.identity import caller_of
from vanilla_saas.web import base_of

if TYPE_CHECKING:
    from vanilla_saas.engines.protocols.mcp_server import McpServer

_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


async def imported(module: str, extra: str) -> Any:
    """A module of this folder. Raises VanillaError `not_found` where its extra is not installed."""
    try:
        return await asyncio.to_thread(import_module, f"vanilla_saas.engines.protocols.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vanilla_saas"):
            raise
        raise VanillaError(
            "not_found",
            f"This server does not speak {extra.upper()}.",
            {"extra": extra},
            f"The operator installs the extra: vanilla-saas[{extra}].",
        ) from None


def refused(request: Request, error: VanillaError) -> Response:
    """A refusal before the protocol begins; 401 says what to send."""
    headers = {"www-authenticate": 'Bearer realm="vanilla-saas"'} if error.status == 401 else None
    problem = error.problem(getattr(request.state, "request_id", None))
    return JSONResponse(problem, error.status, headers, "application/problem+json")


def refuse_elsewhere(request: Request) -> None:
    """A page may ask when it is of this installation's public address or of this machine (MCP, Transports).

    Not when it is of the address that the request names: that may be any that came to mean this machine.
    Raises VanillaError `forbidden`.
    """
    origin, public = request.headers.get("origin"), request.app.state.settings.public_url
    if origin is None or (public and origin == "{0.scheme}://{0.netloc}".format(urlsplit(public))):
        return
    try:
        host = urlsplit(origin).hostname
    except ValueError:
        host = None
    if host not in _THIS_MACHINE:
        raise VanillaError(
            "forbidden",
            "A page of another address may not ask.",
            {"param": "Origin"},
            "The operator says this installation's own address: VANILLA_SAAS_PUBLIC_URL.",
        )


class Mcp:
    """The address of the MCP server."""

    path = "/mcp"

    def __init__(self) -> None:
        self._server: McpServer | None = None
        self._beginning = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        # white space around a value is none of it (RFC 9110, 5.5), and the server's parser leaves what follows one
        scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        request = Request(scope, receive)
        try:
            refuse_elsewhere(request)
            caller = await caller_of(request)
            server = await self._begun(request)
        except VanillaError as error:
            await refused(request, error)(scope, receive, send)
            return
        if request.method not in ("POST", "DELETE"):
            # nothing is told but in the answer to a call
            await Response(status_code=405, headers={"allow": "POST, DELETE"})(scope, receive, send)
            return
        request.state.caller = caller
        await server.answer(caller, scope, receive, send)

    async def _begun(self, request: Request) -> "McpServer":
        async with self._beginning:
            if self._server is None:
                module = await imported("mcp_server", "mcp")
                self._server = module.McpServer(request.app.state.settings.max_body_bytes)
            return self._server

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.close()


A2A = "/a2a/{name}"
A2A_CARD = f"{A2A}/.well-known/agent-card.json"


async def a2a(request: Request) -> Response:
    """One of the A2A agents, which are the engines and agents that the caller may run: its card, or a call of it.

    Two tenants may have engines of one name, so who asks says whose it is, and there is no card without.
    """
    asks_card = request.url.path.endswith(".json")
    request.scope["route"] = Route(A2A_CARD if asks_card else A2A, a2a)
    try:
        caller = await caller_of(request)
        server, name = await imported("a2a_server", "a2a"), request.path_params["name"]
        offer = await calls.offered(request, caller, name)
    except VanillaError as error:
        return refused(request, error)
    if asks_card:
        answer: Response = server.card(offer, f"{base_of(request)}/a2a/{name}")
    else:
        answer = await server.answer(request, caller, offer)
    return answer
