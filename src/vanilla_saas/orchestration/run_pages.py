"""Pages of runs of agents: the list, and one as a tree that goes on while somebody looks."""

from typing import Annotated, Any, get_args
from uuid import UUID

from fastapi import Form, Header, Request
from fastapi.responses import Response, StreamingResponse

from vanilla_saas.console import page_router, redirect, render
from vanilla_saas.database.context import Identity
from vanilla_saas.database.cursor import decode_cursor, encode_cursor
from vanilla_saas.orchestration import page_store, page_view, run_events, store
from vanilla_saas.orchestration.models import State
from vanilla_saas.tenancy.identity import Caller, acting, identify
from vanilla_saas.tenancy.page_session import PageCaller, opened_tenant, session_token
from vanilla_saas.web import event_stream
from vanilla_saas.workflows.execution_events import fingerprint
from vanilla_saas.workflows.run_view import shown, took

router = page_router()


@router.get("/agent-runs")
async def runs(request: Request, caller: PageCaller, state: str = "", agent: str = "", before: str = "") -> Response:
    tenant_id = caller.identity.tenant_id
    place: UUID | None = decode_cursor(before, [UUID])[0] if before else None
    async with acting(request, caller, read_only=True) as connection:
        rows = await page_store.roots(connection, tenant_id, state=state, agent=agent, before=place)
        agents = await store.agents(connection, tenant_id)
    page = rows[: page_store.PAGE]
    return render(
        request, "orchestration/runs.html", rows=page, agents=agents, states=get_args(State), wanted=state,
        agent=agent, older=encode_cursor([page[-1]["id"]]) if len(rows) > page_store.PAGE else None, took=took,
    )  # fmt: skip


@router.get("/agent-runs/{run_id}")
async def run(request: Request, caller: PageCaller, run_id: UUID, notice: str = "") -> Response:
    return render(request, "orchestration/run.html", notice=notice, **await _shown(request, caller, run_id))


@router.get("/agent-runs/{run_id}/live")
async def live(request: Request, caller: PageCaller, run_id: UUID, seen: str = "") -> Response:
    """What of the page changes while the tree grows; 204 while that is what the page has `seen`."""
    found = await _shown(request, caller, run_id)
    if found["seen"] == seen:
        return Response(status_code=204)
    return render(request, "orchestration/run_live.html", **found)


@router.get("/agent-runs/{run_id}/events", response_class=StreamingResponse)
async def events(
    request: Request,
    caller: PageCaller,
    run_id: UUID,
    last_seen: Annotated[str | None, Header(alias="Last-Event-ID", max_length=100)] = None,
) -> StreamingResponse:
    """The API's events of the tree, for who has a page and no key: they tell the page when to look."""
    database, streams = request.app.state.database, request.app.state.streams
    streams.refuse_when_full()
    first = await run_events.whole(database, caller.identity, run_id)

    async def again() -> Identity:
        return (await identify(database, session_token(request), opened_tenant(request))).identity

    return event_stream(run_events.events(database, caller.identity, first, last_seen, streams, again))


async def _shown(request: Request, caller: Caller, run_id: UUID) -> dict[str, Any]:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        tree = run_events.told(await store.tree(connection, tenant_id, run_id), run_id)
        root = tree["runs"][0]
        made = await page_store.made(connection, tenant_id, root["root_run_id"])
        payer = await page_store.payer(connection, tenant_id, root["user_id"])
    asked = next(run for run in tree["runs"] if run["id"] == run_id)
    output = tree["output"] or {}
    value = output.get("json")
    return {
        "tree": tree,
        "run_id": run_id,
        "asked": asked,
        "words": page_view.words(asked),
        "took": took(asked["started_at"], asked["finished_at"]),
        "nodes": page_view.nodes(tree["runs"], run_id),
        "agents": {run["id"]: run["agent"] for run in tree["runs"]},
        "answer": (output.get("text") or "")[: page_store.MOST_TEXT] if value is None else None,
        "value": None if value is None else shown(value),
        "payer": payer,
        "given": shown(asked["input"]),
        "width": page_view.BAR,
        "most": page_store.MOST_TEXT,
        "seen": fingerprint([tree, made]),
        **made,
    }


@router.post("/agent-runs/{run_id}/cancel")
async def cancel(
    request: Request, caller: PageCaller, run_id: UUID, reason: Annotated[str, Form(max_length=1000)] = ""
) -> Response:
    async with acting(request, caller) as connection:
        await store.cancel(connection, caller.identity.tenant_id, run_id, reason.strip() or None)
    return redirect(request, f"/agent-runs/{run_id}?notice=cancelled")
