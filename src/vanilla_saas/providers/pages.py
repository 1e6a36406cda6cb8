"""Pages of providers: the playground, one model call in detail, and for super admins the providers' keys."""

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.database.context import PLATFORM
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.providers import page_store as store
from vanilla_saas.providers.estimate import (
    InvalidRequest,
    estimate_prompt_tokens,
    prompt_upper_bound,
    requested_output_limit,
)
from vanilla_saas.providers.playground import metered_chat
from vanilla_saas.providers.secrets import SecretBox
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageCaller, PlatformCaller
from vanilla_saas.tenancy.secret_tokens import token_hash
from vanilla_saas.tokens import page_store as wallet_store
from vanilla_saas.web import event_stream

HINT_LENGTH = 4
"""How many of a provider key's last characters stay readable, to recognise it by."""

router = page_router()
Prompt = Annotated[str, Form(max_length=200_000)]
Text = Annotated[str, Form(max_length=1024)]


def chat_body(model: str, system: str, prompt: str, max_tokens: str) -> dict[str, Any]:
    """The chat request that the form describes."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    body: dict[str, Any] = {"model": model, "messages": [*messages, {"role": "user", "content": prompt}]}
    if max_tokens.strip():
        if not max_tokens.strip().isdecimal():
            raise VanillaError("invalid_request", "Max tokens is not a whole number.", {"param": "max_tokens"})
        body["max_tokens"] = int(max_tokens)
    return body


@router.get("/playground")
async def playground(request: Request, caller: PageCaller) -> Response:
    models = await store.models(request.app.state.database, token_hash(caller.token))
    async with acting(request, caller, read_only=True) as connection:
        available = await store.balance(connection, caller.identity.tenant_id, caller.identity.user_id)
    return render(request, "providers/playground.html", models=models, available=available)


@router.post("/playground/estimate")
async def estimate(
    request: Request,
    caller: PageCaller,
    model: Text,
    prompt: Prompt = "",
    system: Prompt = "",
    max_tokens: Text = "",
) -> Response:
    body = chat_body(model, system, prompt, max_tokens)
    try:
        quote = await store.quote(
            request.app.state.database,
            token_hash(caller.token),
            model,
            prompt_upper_bound(body),
            estimate_prompt_tokens("sandbox", body),
            requested_output_limit(body),
        )
    except InvalidRequest as error:
        raise VanillaError("invalid_request", error.message) from None
    return render(request, "providers/quote.html", quote=quote)


@router.post("/playground/call")
async def call(
    request: Request,
    caller: PageCaller,
    model: Text,
    prompt: Prompt,
    system: Prompt = "",
    max_tokens: Text = "",
) -> Response:
    """Server-sent events: reserved, delta ..., settled; or refused."""
    body = chat_body(model, system, prompt, max_tokens)

    async def events() -> AsyncIterator[bytes]:
        async for name, data in metered_chat(request.app.state, session_token=caller.token, body=body):
            yield b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))

    return event_stream(events())


@router.get("/executions/{execution_id}")
async def execution(request: Request, caller: PageCaller, execution_id: UUID) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        row = await store.execution(connection, tenant_id, execution_id)
        entries = await wallet_store.execution_entries(connection, tenant_id, execution_id)
    if row is None and not entries:
        raise VanillaError("not_found", "There is no such call.")
    return render(request, "providers/execution.html", row=row, entries=entries, execution_id=execution_id)


@router.get("/providers")
async def providers(request: Request, caller: PlatformCaller, notice: str = "") -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.providers(connection)
    return render(request, "providers/providers.html", rows=rows, notice=notice)


@router.post("/providers/{provider_id}/key")
async def set_key(request: Request, caller: PlatformCaller, provider_id: UUID, key: Text) -> Response:
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise VanillaError("invalid_request", "A key is printable ASCII without spaces.", {"param": "key"})
    secret = SecretBox.from_settings(request.app.state.settings).encrypt(PLATFORM, provider_id, key)
    async with acting(request, caller) as connection:
        await store.set_secret(connection, provider_id, secret, key[-HINT_LENGTH:] if len(key) > 16 else "")
    return redirect(request, "/providers?notice=set")


@router.post("/providers/{provider_id}/forget-key")
async def forget_key(request: Request, caller: PlatformCaller, provider_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        await store.set_secret(connection, provider_id, None, None)
    return redirect(request, "/providers?notice=forgotten")


ROOM = Room(
    "providers",
    "vanilla_saas.providers",
    router,
    (
        NavigationEntry("Tokens", "Playground", "/playground", "chat", 11),
        NavigationEntry("Platform", "Providers", "/providers", "providers", 31, "superadmin"),
    ),
)
