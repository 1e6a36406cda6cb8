"""Pages of channels and agreements: what there is, one channel as it goes on, an agreement with what broke it."""

from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import Form, Query, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.orchestration import agreement_store, channel_store
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.workflows.execution_events import fingerprint

router = page_router()
SHOWN = 100
"""Messages of a page."""
MOST_TEXT = 4000
"""Characters of a message that a page shows."""
After = Annotated[int | None, Query(ge=0, le=2**63 - 1)]

WORDS = (
    ("price", "max_tokens_per_task", "Price", "a bid asks for {} tokens at most"),
    ("sla", "max_latency_ms", "Latency", "an answer after {} ms is delivered, and a violation"),
    ("sla", "max_attempts", "Attempts", "{} until a message is a dead letter"),
    ("limits", "max_messages", "Messages", "{} at most in a channel"),
    ("limits", "max_open_conversations", "Conversations", "{} open at most in a channel"),
    ("limits", "max_violations", "Suspended", "after {} violations"),
    ("data", "retention_days", "Kept", "{} days, once all have read"),
)
"""Figures of the terms: the part and its key, what it is called, what it says."""


@router.get("/channels")
async def channels(request: Request, caller: PageCaller) -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows = await channel_store.channels(connection, caller.identity.tenant_id)
    return render(request, "orchestration/channels.html", rows=rows)


@router.get("/channels/{channel_id}")
async def channel(
    request: Request, caller: PageCaller, channel_id: UUID, after: After = None, notice: str = ""
) -> Response:
    """The latest messages as they come, or those behind `after`, which stay as they are."""
    found = await _shown(request, caller, channel_id, after)
    return render(request, "orchestration/channel.html", notice=notice, **found)


@router.get("/channels/{channel_id}/live")
async def live(request: Request, caller: PageCaller, channel_id: UUID, seen: str = "") -> Response:
    """What of a channel's page changes while it is open; 204 while that is what the page has `seen`."""
    found = await _shown(request, caller, channel_id, None)
    if found["seen"] == seen:
        return Response(status_code=204)
    return render(request, "orchestration/channel_live.html", **found)


@router.post("/channels/{channel_id}/close")
async def close(
    request: Request, caller: PageCaller, channel_id: UUID, reason: Annotated[str, Form(max_length=500)] = ""
) -> Response:
    async with acting(request, caller) as connection:
        await channel_store.close(connection, caller.identity.tenant_id, channel_id, reason.strip())
    return redirect(request, f"/channels/{channel_id}?notice=closed")


async def _shown(request: Request, caller: Caller, channel_id: UUID, after: int | None) -> dict[str, Any]:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        found = await channel_store.read(connection, tenant_id, channel_id)
        begin = max(found["last_seq"] - SHOWN, 0) if after is None else after
        messages = await channel_store.history(connection, tenant_id, channel_id, begin, SHOWN)
    last = messages[-1]["seq"] if messages else begin
    return {
        "channel": found,
        "channel_id": channel_id,
        "messages": [message | {"text": text_of(message["body"])} for message in messages],
        "names": {one["id"]: one["name"] for one in found["participants"]},
        "mine": caller.identity.role != "user" or found["user_id"] == str(caller.identity.user_id),
        "earlier": max(begin - SHOWN, 0) if begin else None,
        "later": last if after is not None and last < found["last_seq"] else None,
        "live": after is None and found["status"] == "open",
        "seen": fingerprint([found, messages]),
    }


def text_of(body: Any) -> str:
    """What a message says: its text when it has no more than that, else JSON."""
    if isinstance(body, dict) and body.keys() == {"text"} and isinstance(body["text"], str):
        said: str = body["text"]
    elif isinstance(body, str):
        said = body
    else:
        said = orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()
    return said if len(said) <= MOST_TEXT else said[:MOST_TEXT] + "…"


@router.get("/agreements")
async def agreements(request: Request, caller: PageCaller) -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows = await agreement_store.agreements(connection, caller.identity.tenant_id)
    return render(request, "orchestration/agreements.html", rows=rows)


@router.get("/agreements/{agreement_id}")
async def agreement(request: Request, caller: PageCaller, agreement_id: UUID) -> Response:
    async with acting(request, caller, read_only=True) as connection:
        found = await agreement_store.read(connection, caller.identity.tenant_id, agreement_id)
    terms = [orjson.dumps(one["terms"], option=orjson.OPT_INDENT_2).decode() for one in found["versions"]]
    return render(
        request,
        "orchestration/agreement.html",
        row=found,
        terms=terms,
        said=[in_words(one["terms"]) for one in found["versions"]],
    )


def in_words(terms: dict[str, Any]) -> list[tuple[str, str]]:
    """What the parts of an agreement beside its acts say, as pairs of a name and a sentence."""
    figures = {part: terms.get(part) or {} for part in ("price", "sla", "limits", "data")}
    said = [
        (name, sentence.format(f"{figures[part][key]:,}"))
        for part, key, name, sentence in WORDS
        if key in figures[part]
    ]
    if redact := figures["data"].get("redact"):
        said.append(("Redacted", f"{', '.join(redact)}, once all have read and it is over"))
    gate = terms.get("gate")
    if isinstance(gate, dict):
        acts = ", ".join(gate["acts"])
        if gate["kind"] == "schema":
            said.append(("Gate", f"the body of {acts} fits its schema"))
        else:
            where = f"the field {gate['field']}" if "field" in gate else "the text"
            said.append(("Gate", f"{where} of {acts} matches {gate['pattern']}"))
    elif gate:
        said.append(("Gate", f"{gate}, which nothing enforces"))
    return said


ROOM = Room(
    "orchestration",
    "vanilla_saas.orchestration",
    router,
    (
        NavigationEntry("Build", "Channels", "/channels", "chat", 33),
        NavigationEntry("Build", "Agreements", "/agreements", "audit", 34),
    ),
)
