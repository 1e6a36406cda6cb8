"""Pages of workflows: what there is, each as a graph with its draft and versions, and templates to begin from."""

import asyncio
import secrets
from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.workflows import drafts, forms, run_store, run_view, schedule_store, schedules, store
from vanilla_saas.workflows.gate_chart import charts
from vanilla_saas.workflows.models import Slug

router = page_router()
Text = Annotated[str, Form(max_length=1_048_576)]
LAST_RUNS = 5
"""Runs that the page of a workflow shows."""


@router.get("/workflows")
async def workflows(request: Request, caller: PageCaller, notice: str = "") -> Response:
    identity = caller.identity
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.workflows(connection, identity.tenant_id)
        templates = await store.templates(connection, identity.tenant_id)
    return render(
        request, "workflows/workflows.html", rows=rows, templates=templates, notice=notice, own=identity.user_id
    )


@router.post("/workflows")
async def begin(
    request: Request, caller: PageCaller, slug: Annotated[Slug, Form()], template: Annotated[str, Form(max_length=63)]
) -> Response:
    """A new workflow of a template, with its defaults."""
    await drafts.begin(lambda: acting(request, caller), caller.identity.tenant_id, template, slug, {})
    return redirect(request, f"/workflows/{slug}?notice=begun")


@router.get("/workflows/{name}")
async def workflow(request: Request, caller: PageCaller, name: str, notice: str = "") -> Response:
    identity = caller.identity
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, identity.tenant_id, name)
        graph = await store.graph_problems(connection, found["draft"])
        versions = await store.versions(connection, identity.tenant_id, found["id"])
        latest = found["latest_version"]
        published = await store.version(connection, identity.tenant_id, found["id"], latest) if latest else None
        runs = await run_store.runs(connection, identity.tenant_id, workflow=found["slug"], limit=LAST_RUNS)
        judged = await run_store.statistics(connection, identity.tenant_id, found["id"])
        today = await run_store.today(connection)
        planned = await schedules.schedules(connection, identity.tenant_id, found["id"])
        clock = await schedule_store.clock_of(connection, identity.tenant_id)
    problems = await drafts.every_problem(graph, found["draft"])
    changed = None
    if published and not problems:
        changed = drafts.compare(published["definition"], found["draft"]).text()
    text = await asyncio.to_thread(drafts.as_text, found["draft"])
    drawing = None if graph else run_view.drawing(found["draft"])
    return render(
        request, "workflows/workflow.html", row=found, problems=problems, versions=versions, drawing=drawing,
        nodes={node["id"]: node for node in found["draft"].get("nodes") or []} if drawing else {}, changed=changed,
        text=text, runs=runs[:LAST_RUNS], took=run_view.took, judged=judged[::-1],
        gates=charts(judged, today, run_store.GATE_DAYS),
        days=run_store.GATE_DAYS, key=secrets.token_urlsafe(16),
        fields=forms.fields_of(published["definition"].get("input")) if published else [],
        schedules=planned, time_zone=clock["time_zone"], shown=run_view.shown,
        mine=identity.role != "user" or found["user_id"] == identity.user_id, notice=notice,
    )  # fmt: skip


@router.post("/workflows/{slug}/draft")
async def save(
    request: Request, caller: PageCaller, slug: str, definition: Text, revision: Annotated[int, Form(ge=1)]
) -> Response:
    document = await asyncio.to_thread(drafts.read_definition, definition, "yaml")
    async with acting(request, caller) as connection:
        await store.save(connection, caller.identity.tenant_id, slug, document, expected_revision=revision)
    return redirect(request, f"/workflows/{slug}?notice=saved")


@router.post("/workflows/{slug}/publish")
async def publish(request: Request, caller: PageCaller, slug: str, revision: Annotated[int, Form(ge=1)]) -> Response:
    await drafts.publish(lambda: acting(request, caller), caller.identity.tenant_id, slug, revision)
    return redirect(request, f"/workflows/{slug}?notice=published")


@router.post("/workflows/{slug}/share")
async def share(request: Request, caller: PageCaller, slug: str, shared: Annotated[bool, Form()] = False) -> Response:
    async with acting(request, caller) as connection:
        found = await store.find(connection, caller.identity.tenant_id, slug)
        await store.save(
            connection, caller.identity.tenant_id, slug, found["draft"], shared=shared,
            expected_revision=found["revision"],
        )  # fmt: skip
    return redirect(request, f"/workflows/{slug}?notice=shared")


@router.post("/workflows/{slug}/retire")
async def retire(
    request: Request, caller: PageCaller, slug: str, version: Annotated[int | None, Form(ge=1)] = None
) -> Response:
    async with acting(request, caller) as connection:
        found = await store.find(connection, caller.identity.tenant_id, slug)
        await store.retire(connection, caller.identity.tenant_id, found["id"], version)
    return redirect(request, f"/workflows/{slug}?notice=retired")


@router.post("/workflows/{slug}/delete")
async def delete(request: Request, caller: PageCaller, slug: str) -> Response:
    async with acting(request, caller) as connection:
        found = await store.find(connection, caller.identity.tenant_id, slug)
        await store.delete(connection, caller.identity.tenant_id, found["id"])
    return redirect(request, "/workflows?notice=deleted")


ROOM = Room(
    "workflows",
    "vanilla_saas.workflows",
    router,
    (NavigationEntry("Build", "Workflows", "/workflows", "workflows", 30),),
)
