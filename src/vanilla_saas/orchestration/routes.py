"""Agents over HTTP: saved and retired by their owners, run, watched and cancelled by whoever may."""

from typing import Annotated
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from vanilla_saas.database.cursor import decode_cursor, encode_cursor
from vanilla_saas.orchestration import drafts, run_events, store
from vanilla_saas.orchestration.definition import AgentRef
from vanilla_saas.orchestration.models import (
    MOST_WAIT_S,
    AgentBody,
    AgentDetail,
    AgentRunBody,
    AgentRuns,
    AgentRunSummary,
    AgentRunTree,
    Agents,
    AgentSummary,
    AgentVersion,
    CancelledRun,
    CancelRunBody,
    RetiredAgent,
    SavedAgent,
    Slug,
    StartedAgentRun,
    State,
)
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting, again
from vanilla_saas.web import OfUser, SlugOrId, event_stream, tell_replay
from vanilla_saas.workflows.execution_routes import Cursor, Key, Limit, require_spender

router = APIRouter(prefix="/api/v1", tags=["agents"])
Ref = Annotated[AgentRef, Path(description="slug, or slug@version")]
LastSeen = Annotated[str | None, Header(alias="Last-Event-ID", max_length=100)]


@router.get("/agents")
async def agents(request: Request, caller: CurrentCaller) -> Agents:
    """Own ones and those that are shared, by slug; of an admin all of the tenant's."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.agents(connection, caller.identity.tenant_id)
    return Agents(data=[AgentSummary(**row) for row in rows])


@router.put("/agents/{slug}")
async def save(request: Request, caller: CurrentCaller, slug: Slug, body: AgentBody) -> SavedAgent:
    """Makes an agent or its next version; 422 with every problem (`path`, `code`, `message`) when it is not valid."""
    caller.require_scope("chat")
    document = drafts.document(body.definition)
    async with acting(request, caller) as connection:
        saved = await store.save(
            connection, caller.identity.tenant_id, slug, document, shared=body.shared, user_id=body.user_id
        )
    return SavedAgent(**saved)


@router.get("/agents/{agent}")
async def agent(
    request: Request,
    caller: CurrentCaller,
    agent: SlugOrId,
    version: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="left out: the latest")] = None,
) -> AgentDetail:
    """An agent with its versions and a definition."""
    caller.require_scope("read")
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, tenant_id, agent)
        rows = await store.versions(connection, tenant_id, found["id"])
        definition = await store.definition(connection, tenant_id, found["id"], version or found["latest_version"])
    return AgentDetail(**found, definition=definition, data=[AgentVersion(**row) for row in rows])


@router.post("/agents/{agent}/retire")
async def retire(request: Request, caller: CurrentCaller, agent: SlugOrId) -> RetiredAgent:
    """Nothing starts it any more until it is saved again; runs that have begun go on."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        found = await store.find(connection, caller.identity.tenant_id, agent)
        return RetiredAgent(**await store.retire(connection, caller.identity.tenant_id, found["id"]))


@router.post("/agents/{ref}/runs", status_code=202, responses={200: {"model": StartedAgentRun}})
async def start(
    request: Request, response: Response, caller: CurrentCaller, ref: Ref, body: AgentRunBody, key: Key = None
) -> StartedAgentRun:
    """Starts an agent within a budget of tokens: 202 and where to follow it, with `wait_s` 200 when it is over by then.

    The same Idempotency-Key and body answer with the first run.
    """
    await require_spender(request, caller)
    async with acting(request, caller) as connection:
        started = await store.start(
            connection, caller.identity.tenant_id, ref, body.input, tokens=body.tokens, key=key,
            priority=body.priority, user_id=body.user_id,
        )  # fmt: skip
    found = await _told(request, caller, UUID(started["run_id"]), body.wait_s)
    tell_replay(response, started["replayed"])
    response.headers["Location"] = f"/api/v1/agent-runs/{started['run_id']}"
    response.status_code = 200 if body.wait_s and found["finished_at"] else 202
    return StartedAgentRun(**found, replayed=started["replayed"])


@router.get("/agent-runs")
async def runs(
    request: Request,
    caller: CurrentCaller,
    state: State | None = None,
    root: Annotated[UUID | None, Query(description="only the tree of this run")] = None,
    user_id: OfUser = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> AgentRuns:
    """Newest first: own ones; for an admin the tenant's, or those of `user_id`."""
    caller.require_scope("read")
    before = decode_cursor(cursor, [UUID])[0] if cursor else None
    owner = user_id if user_id or caller.identity.role != "user" else caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.runs(
            connection, caller.identity.tenant_id, user_id=owner, state=state, root=root, before=before, limit=limit + 1
        )
    page = [AgentRunSummary(**row) for row in rows[:limit]]
    return AgentRuns(data=page, next_cursor=encode_cursor([page[-1].id]) if len(rows) > limit else None)


@router.get("/agent-runs/{run_id}")
async def run(
    request: Request,
    caller: CurrentCaller,
    run_id: UUID,
    wait_s: Annotated[float, Query(ge=0, le=MOST_WAIT_S, description="seconds to wait for its end")] = 0,
) -> AgentRunTree:
    """The tree that a run is in: runs with budgets and stop reasons, turns and tools with what they cost."""
    caller.require_scope("read")
    return AgentRunTree(**await _told(request, caller, run_id, wait_s))


@router.post("/agent-runs/{run_id}/cancel")
async def cancel(
    request: Request, caller: CurrentCaller, run_id: UUID, body: CancelRunBody | None = None
) -> CancelledRun:
    """Ends it with all that it started; what is left of its budget goes back, what was settled stays."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        told = await store.cancel(connection, caller.identity.tenant_id, run_id, body.reason if body else None)
    return CancelledRun(**told)


@router.get("/agent-runs/{run_id}/events", response_class=StreamingResponse)
async def events(
    request: Request, caller: CurrentCaller, run_id: UUID, last_seen: LastSeen = None
) -> StreamingResponse:
    """Server-sent events: `progress` with the whole tree, then with the runs of it that changed, `end` with all of it.

    A stream that breaks off goes on with the header Last-Event-ID: the whole comes again only when it has changed.
    `error` is a problem, after which nothing follows.
    """
    caller.require_scope("read")
    database, streams = request.app.state.database, request.app.state.streams
    streams.refuse_when_full()
    first = await run_events.whole(database, caller.identity, run_id)
    return event_stream(run_events.events(database, caller.identity, first, last_seen, streams, again(request, caller)))


async def _told(request: Request, caller: Caller, run_id: UUID, wait_s: float) -> store.Answer:
    """The tree, when the run is over or the time is."""
    database, ends, tenant_id = request.app.state.database, request.app.state.ends, caller.identity.tenant_id
    found = await run_events.whole(database, caller.identity, run_id)
    if not wait_s or found["finished_at"] or ends.full:
        return found
    asked = next(run for run in found["runs"] if run["id"] == run_id)

    async def find(connection: asyncpg.Connection) -> bool | None:
        return await store.finished(connection, tenant_id, run_id) or None

    with ends.place():
        await ends.wait(asked["execution_id"], caller.identity, wait_s, again(request, caller), find)
    return await run_events.whole(database, caller.identity, run_id)
