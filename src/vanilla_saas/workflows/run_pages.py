"""Pages of runs: the list, one run as it goes on, its steps, and what a person may do with it."""

from functools import partial
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import Form, Query, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.database.context import PLATFORM
from vanilla_saas.database.cursor import decode_cursor, encode_cursor
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.workflows import execution_store, executions, forms, run_store, run_view, store
from vanilla_saas.workflows.execution_events import fingerprint

router = page_router()
STATUSES = ("running", "paused", "succeeded", "failed", "cancelled")
Place = Annotated[int, Query(ge=-1, le=10_000)]
"""Of an item in its map."""
Reason = Annotated[str, Form(max_length=1000)]


@router.get("/runs")
async def runs(
    request: Request, caller: PageCaller, status: str = "", workflow: str = "", before: str = ""
) -> Response:
    tenant_id = caller.identity.tenant_id
    place: UUID | None = decode_cursor(before, [UUID])[0] if before else None
    async with acting(request, caller, read_only=True) as connection:
        rows = await run_store.runs(connection, tenant_id, status=status, workflow=workflow, before=place)
        workflows = await store.workflows(connection, tenant_id)
        page = rows[: run_store.PAGE]
        engines = await run_store.engines(connection, tenant_id, [row["id"] for row in page], named=_member(caller))
    older = encode_cursor([page[-1]["id"]]) if len(rows) > run_store.PAGE else None
    return render(
        request, "workflows/runs.html", rows=page, older=older, workflows=workflows, statuses=STATUSES,
        wanted=status, workflow=workflow, took=run_view.took, engines=engines,
    )  # fmt: skip


def _member(caller: Caller) -> bool:
    """Whether they are of the tenant: a super admin who has opened one is not."""
    return caller.identity.role != "superadmin" or caller.identity.tenant_id == PLATFORM


@router.post("/workflows/{slug}/start")
async def start(request: Request, caller: PageCaller, slug: str) -> Response:
    """Starts the version whose form was filled in."""
    tenant_id, form = caller.identity.tenant_id, await request.form()
    version, key = form.get("version"), form.get("key")
    if not isinstance(version, str) or not version.isdecimal() or len(version) > 9 or not isinstance(key, str):
        raise VanillaError("invalid_request", "the form names no version", {"param": "version"})
    number = int(version)
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, tenant_id, slug)
        definition = (await store.version(connection, tenant_id, found["id"], number))["definition"]
    values = forms.read(forms.fields_of(definition.get("input")), form)
    transaction = partial(acting, request, caller)
    started = await executions.start(
        transaction, tenant_id, slug, values, version=number, key=key, caller_id=caller.identity.user_id
    )
    return redirect(request, f"/runs/{started['execution_id']}")


@router.get("/runs/{run_id}")
async def run(request: Request, caller: PageCaller, run_id: UUID, notice: str = "") -> Response:
    found = await _shown(request, caller, run_id)
    async with acting(request, caller, read_only=True) as connection:
        engines = await run_store.engines(connection, caller.identity.tenant_id, [run_id], named=_member(caller))
    return render(
        request, "workflows/run.html", notice=notice, engine=engines.get(run_id), sources=run_view.SOURCES, **found
    )


@router.get("/runs/{run_id}/live")
async def live(request: Request, caller: PageCaller, run_id: UUID, seen: str = "", status: str = "") -> Response:
    """What of a run's page changes while it runs; 204 while that is what the page has `seen`."""
    found = await _shown(request, caller, run_id)
    if found["seen"] == seen:
        return Response(status_code=204)
    return render(request, "workflows/run_live.html", changed=found["run"]["status"] != status, **found)


async def _shown(request: Request, caller: Caller, run_id: UUID) -> dict[str, Any]:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        progress = await execution_store.progress(connection, tenant_id, run_id)
        about = await run_store.about(connection, tenant_id, run_id)
        beside = await run_store.beside(connection, tenant_id, run_id)
    definition = about.pop("definition")
    graph = run_view.drawing(definition)
    steps = run_view.steps_of(progress, definition)
    return {
        "run": progress,
        "run_id": run_id,
        "about": about,
        "steps": steps,
        "by_node": {step["node"]: step for step in steps},
        "graph": graph,
        "lines": run_view.lines_of(graph, progress["steps"]) if graph else [],
        "nodes": {node["id"]: node for node in (definition or {}).get("nodes") or []},
        "acts": run_view.acts(progress, definition),
        "took": run_view.took(progress["started_at"], progress["finished_at"]),
        "input": run_view.shown(progress["input"]),
        "output": run_view.shown(progress["output"]) if progress["output"] is not None else None,
        "seen": fingerprint([progress, {name: list(map(dict, rows)) for name, rows in beside.items()}]),
        **beside,
    }


@router.get("/runs/{run_id}/steps/{node}")
async def step(
    request: Request, caller: PageCaller, run_id: UUID, node: str, item: Place = -1, after: Place = -1
) -> Response:
    """What a step gave, or an item of it; of a map, its items behind `after`."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        progress = await execution_store.progress(connection, tenant_id, run_id)
        names = [step["node"] for step in progress["steps"]]
        # nodes are numbered in the order in which they are told; the runner's own first one is number 0
        number = names.index(node) + (0 if names[0] == "$start" else 1) if node in names else None
        row = await run_store.step(connection, tenant_id, run_id, number, item) if number is not None else None
        if row is None or number is None:
            raise VanillaError("not_found", "no such step", {"node": node})
        kind = progress["steps"][names.index(node)]["kind"]
        items = (
            await run_store.items(connection, tenant_id, run_id, number, after) if kind == "map" and item < 0 else []
        )
    return render(
        request, "workflows/step.html", run_id=run_id, node=node, item=item, row=row, took=run_view.took,
        items=items[: run_store.PAGE], more=items[run_store.PAGE - 1]["item"] if len(items) > run_store.PAGE else None,
        most=run_store.MOST_TEXT, shown=run_view.shown,
    )  # fmt: skip


@router.post("/runs/{run_id}/cancel")
async def cancel(request: Request, caller: PageCaller, run_id: UUID, reason: Reason = "") -> Response:
    async with acting(request, caller) as connection:
        await execution_store.cancel(connection, caller.identity.tenant_id, run_id, reason.strip() or None)
    return redirect(request, f"/runs/{run_id}?notice=cancelled")


@router.post("/runs/{run_id}/pause")
async def pause(request: Request, caller: PageCaller, run_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        await execution_store.pause(connection, caller.identity.tenant_id, run_id)
    return redirect(request, f"/runs/{run_id}?notice=paused")


@router.post("/runs/{run_id}/resume")
async def resume(request: Request, caller: PageCaller, run_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        await execution_store.resume(connection, caller.identity.tenant_id, run_id)
    return redirect(request, f"/runs/{run_id}?notice=resumed")


@router.post("/runs/{run_id}/restart")
async def restart(
    request: Request,
    caller: PageCaller,
    run_id: UUID,
    node: Annotated[str, Form(max_length=63)] = "",
    version: Annotated[int | None, Form(ge=1, le=2**31 - 1)] = None,
) -> Response:
    transaction = partial(acting, request, caller)
    await executions.restart(transaction, caller.identity.tenant_id, run_id, node or None, version)
    return redirect(request, f"/runs/{run_id}?notice=restarted")


@router.post("/runs/{run_id}/signal")
async def signal(
    request: Request,
    caller: PageCaller,
    run_id: UUID,
    name: Annotated[str, Form(max_length=63)],
    payload: Annotated[str, Form(max_length=1_048_576)] = "",
) -> Response:
    try:
        value = orjson.loads(payload) if payload.strip() else None
    except ValueError:
        raise VanillaError(
            "invalid_request", "the payload is no JSON", {"param": "payload"}, 'Texts stand in quotes: "yes".'
        ) from None
    await executions.signal(partial(acting, request, caller), caller.identity.tenant_id, run_id, name, value)
    return redirect(request, f"/runs/{run_id}?notice=signalled")


ROOM = Room(
    "workflows",
    "vanilla_saas.workflows",
    router,
    (NavigationEntry("Build", "Runs", "/runs", "run", 31),),
)
