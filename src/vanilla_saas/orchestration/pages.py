"""Pages of agents: what there is and what it costs, one with its versions, and forms to write and run it."""

import asyncio
import secrets
from typing import Annotated, Any

from fastapi import Form, Query, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.orchestration import drafts, page_store, run_pages, store
from vanilla_saas.orchestration.models import Slug
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.workflows.run_view import took

router = page_router()
router.include_router(run_pages.router)
Text = Annotated[str, Form(max_length=1_048_576)]
LAST_RUNS = 5
"""Runs that the page of an agent shows."""
FIRST = """\
name: Helper
description: Answers questions.
instructions: |
  You help people with their questions. Say so when you do not know.
model: sandbox-small
limits:
  turns: 10
  tokens: 20000
"""
"""What the form of a new agent begins with."""


@router.get("/agents")
async def agents(request: Request, caller: PageCaller) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.agents(connection, tenant_id)
        costs = await page_store.costs(connection, tenant_id)
    return render(
        request, "orchestration/agents.html", rows=rows, costs=costs, days=page_store.COST_DAYS,
        own=caller.identity.user_id, first=FIRST, may_own=not caller.outside,
    )  # fmt: skip


@router.post("/agents")
async def make(request: Request, caller: PageCaller, slug: Annotated[Slug, Form()], definition: Text) -> Response:
    """A new agent, or the next version of one's own of that name."""
    return await _saved(request, caller, slug, definition, None)


@router.get("/agents/{name}")
async def agent(
    request: Request,
    caller: PageCaller,
    name: str,
    version: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    notice: str = "",
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, tenant_id, name)
        number = version or found["latest_version"]
        definition = await store.definition(connection, tenant_id, found["id"], number)
        versions = await store.versions(connection, tenant_id, found["id"])
        known = {row["slug"] for row in await store.agents(connection, tenant_id)}
        costs = await page_store.costs(connection, tenant_id)
        runs = await page_store.roots(connection, tenant_id, agent=found["slug"], limit=LAST_RUNS)
    return render(
        request, "orchestration/agent.html", row=found, number=number, versions=versions, definition=definition,
        text=await asyncio.to_thread(drafts.as_text, definition), turns_to=drafts.turns_to(definition), known=known,
        cost=costs.get(found["id"]), days=page_store.COST_DAYS, runs=runs, took=took, key=secrets.token_urlsafe(16),
        mine=caller.identity.role != "user" or found["user_id"] == caller.identity.user_id,
        runnable=found["status"] == "active" and not caller.outside, notice=notice,
    )  # fmt: skip


@router.post("/agents/{slug}/save")
async def save(
    request: Request, caller: PageCaller, slug: str, definition: Text, shared: Annotated[bool, Form()] = False
) -> Response:
    """The next version; the same text makes none."""
    return await _saved(request, caller, slug, definition, shared)


async def _saved(request: Request, caller: Caller, slug: str, text: str, shared: bool | None) -> Response:
    given: dict[str, Any] = await asyncio.to_thread(drafts.read, text, "yaml")
    document = drafts.document(given)
    async with acting(request, caller) as connection:
        saved = await store.save(connection, caller.identity.tenant_id, slug, document, shared=shared)
    return redirect(request, f"/agents/{slug}?notice={'unchanged' if saved['unchanged'] else 'saved'}")


@router.post("/agents/{slug}/retire")
async def retire(request: Request, caller: PageCaller, slug: str) -> Response:
    async with acting(request, caller) as connection:
        found = await store.find(connection, caller.identity.tenant_id, slug)
        await store.retire(connection, caller.identity.tenant_id, found["id"])
    return redirect(request, f"/agents/{slug}?notice=retired")


@router.post("/agents/{slug}/run")
async def run(
    request: Request,
    caller: PageCaller,
    slug: str,
    message: Annotated[str, Form(max_length=1_048_576)],
    key: Annotated[str, Form(max_length=255)],
    version: Annotated[int, Form(ge=1, le=2**31 - 1)],
    tokens: Annotated[int | None, Form(ge=1, le=10**12)] = None,
) -> Response:
    """The version whose page it is; sent twice, it starts one run."""
    async with acting(request, caller) as connection:
        started = await store.start(
            connection, caller.identity.tenant_id, f"{slug}@{version}", {"message": message}, tokens=tokens, key=key
        )
    return redirect(request, f"/agent-runs/{started['run_id']}")


ROOM = Room(
    "orchestration",
    "vanilla_saas.orchestration",
    router,
    (
        NavigationEntry("Build", "Agents", "/agents", "agent", 31),
        NavigationEntry("Build", "Agent runs", "/agent-runs", "run", 31),
    ),
)
