"""Executions over HTTP: started, watched, paused, cancelled, restarted; signals and approvals that they wait for."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from vanilla_saas.database.cursor import decode_cursor, encode_cursor
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting, again
from vanilla_saas.web import OfUser, SlugOrId, event_stream, tell_replay
from vanilla_saas.workflows import execution_events, execution_store, executions
from vanilla_saas.workflows import store as workflow_store
from vanilla_saas.workflows.execution_models import (
    Approval,
    Approvals,
    CancelBody,
    Decided,
    DecisionBody,
    Execution,
    Executions,
    ExecutionSummary,
    GateDay,
    GateResult,
    GateResults,
    Gates,
    ReplayBody,
    Replayed,
    RestartBody,
    SignalBody,
    Signalled,
    StartBody,
    Started,
    Status,
    Step,
    StepItem,
    Told,
)

router = APIRouter(prefix="/api/v1", tags=["executions"])
Node = Annotated[str, Path(max_length=63)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)]
Limit = Annotated[int, Query(ge=1, le=200, description="rows of a page")]
Cursor = Annotated[str | None, Query(max_length=500, description="next_cursor of the page before")]


@router.post("/workflows/{workflow}/executions", status_code=201, responses={200: {"model": Started}})
async def start(
    request: Request, response: Response, caller: CurrentCaller, workflow: SlugOrId, body: StartBody, key: Key = None
) -> Started:
    """Starts a published workflow: 201, or 200 with the first answer when the Idempotency-Key is sent again.

    An input that does not fit the definition's schema is refused (422) by field, and nothing is written.
    """
    await require_spender(request, caller)
    started = await executions.start(
        lambda: acting(request, caller),
        caller.identity.tenant_id,
        workflow,
        body.input,
        version=body.version,
        key=key,
        priority=body.priority,
        user_id=body.user_id,
        caller_id=caller.identity.user_id,
    )
    tell_replay(response, started["replayed"])
    response.status_code = 200 if started["replayed"] else 201
    return Started(**started)


@router.get("/workflow-executions")
async def list_executions(
    request: Request,
    caller: CurrentCaller,
    status: Status | None = None,
    workflow: Annotated[str | None, Query(max_length=63, description="slug or id")] = None,
    user_id: OfUser = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Executions:
    """Newest first: own ones; for an admin the tenant's, or those of `user_id`. `status=failed`: the dead letters."""
    caller.require_scope("read")
    tenant_id, before = caller.identity.tenant_id, decode_cursor(cursor, [UUID])[0] if cursor else None
    owner = user_id if user_id or caller.identity.role != "user" else caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        found = await workflow_store.find(connection, tenant_id, workflow) if workflow else None
        rows = await execution_store.executions(
            connection,
            tenant_id,
            user_id=owner,
            workflow_id=found["id"] if found else None,
            status=status,
            before=before,
            limit=limit + 1,
        )
    page = [ExecutionSummary(**row) for row in rows[:limit]]
    return Executions(data=page, next_cursor=encode_cursor([page[-1].id]) if len(rows) > limit else None)


@router.post("/workflow-executions/replay")
async def replay(request: Request, caller: CurrentCaller, body: ReplayBody) -> Replayed:
    """Restarts failed executions from where they failed, the oldest first: own ones, or the tenant's by an admin."""
    await require_spender(request, caller)
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        found = await workflow_store.find(connection, tenant_id, body.workflow) if body.workflow else None
        told = await execution_store.replay(
            connection, tenant_id, found["id"] if found else None, body.reason, body.limit
        )
    return Replayed(**told)


@router.get("/workflow-executions/{execution_id}")
async def execution(request: Request, caller: CurrentCaller, execution_id: UUID) -> Execution:
    """An execution with input, output and every step."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return Execution(**await execution_store.progress(connection, caller.identity.tenant_id, execution_id))


@router.get("/workflow-executions/{execution_id}/steps/{node}")
async def step(
    request: Request,
    caller: CurrentCaller,
    execution_id: UUID,
    node: Node,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Step:
    """A step with output, error and feedback; of a map a page of its items, in order."""
    caller.require_scope("read")
    after = decode_cursor(cursor, [int])[0] if cursor else -1
    async with acting(request, caller, read_only=True) as connection:
        found = await execution_store.step(
            connection, caller.identity.tenant_id, execution_id, node, after=after, limit=limit
        )
    items = [StepItem(**item) for item in found.pop("items")]
    return Step(**found, data=items, next_cursor=encode_cursor([items[-1].item]) if found["more"] else None)


@router.get("/workflow-executions/{execution_id}/gates")
async def gate_results(request: Request, caller: CurrentCaller, execution_id: UUID) -> GateResults:
    """Every judgement of its quality gates, the oldest first."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        await execution_store.progress(connection, caller.identity.tenant_id, execution_id)
        rows = await execution_store.gate_results(connection, caller.identity.tenant_id, execution_id)
    return GateResults(data=[GateResult(**row) for row in rows])


@router.get("/workflow-executions/{execution_id}/events", response_class=StreamingResponse)
async def events(request: Request, caller: CurrentCaller, execution_id: UUID) -> StreamingResponse:
    """Server-sent events: `progress` with the whole execution, then with what changed of it, `end` with the output.

    Steps that changed are in `steps` by their `node`. `error` is a problem, after which nothing follows. A stream that
    breaks off is asked for again and begins with the whole.
    """
    caller.require_scope("read")
    database, streams = request.app.state.database, request.app.state.streams
    streams.refuse_when_full()
    first = await execution_events.whole(database, caller.identity, execution_id)
    return event_stream(execution_events.events(database, caller.identity, first, streams, again(request, caller)))


@router.post("/workflow-executions/{execution_id}/cancel")
async def cancel(request: Request, caller: CurrentCaller, execution_id: UUID, body: CancelBody | None = None) -> Told:
    """Ends it with its children; what runs is given up and not charged, what was settled stays."""
    caller.require_scope("chat")
    reason = body.reason if body else None
    async with acting(request, caller) as connection:
        return Told(**await execution_store.cancel(connection, caller.identity.tenant_id, execution_id, reason))


@router.post("/workflow-executions/{execution_id}/pause")
async def pause(request: Request, caller: CurrentCaller, execution_id: UUID) -> Told:
    """What runs ends, nothing further is started. Deadlines go on."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        return Told(**await execution_store.pause(connection, caller.identity.tenant_id, execution_id))


@router.post("/workflow-executions/{execution_id}/resume")
async def resume(request: Request, caller: CurrentCaller, execution_id: UUID) -> Told:
    """Goes on with one that is paused, or that ended for want of tokens."""
    await require_spender(request, caller)
    async with acting(request, caller) as connection:
        return Told(**await execution_store.resume(connection, caller.identity.tenant_id, execution_id))


@router.post("/workflow-executions/{execution_id}/restart")
async def restart(request: Request, caller: CurrentCaller, execution_id: UUID, body: RestartBody | None = None) -> Told:
    """Runs an ended one again from where it failed, or from a node and all that depends on it.

    With `version` on a newer one, in which all that does not run again is as it was: else 409 names the first node
    that is not, and an input that does not fit its schema is refused (422) by field.
    """
    await require_spender(request, caller)
    wanted = body or RestartBody()
    told = await executions.restart(
        lambda: acting(request, caller), caller.identity.tenant_id, execution_id, wanted.node, wanted.version
    )
    return Told(**told)


@router.post("/workflow-executions/{execution_id}/signals")
async def send_signal(request: Request, caller: CurrentCaller, execution_id: UUID, body: SignalBody) -> Signalled:
    """Sends a signal, which may come before the node that waits for it; the first of a name counts."""
    caller.require_scope("chat")
    told = await executions.signal(
        lambda: acting(request, caller), caller.identity.tenant_id, execution_id, body.name, body.payload
    )
    return Signalled(**told)


@router.get("/approvals")
async def approvals(request: Request, caller: CurrentCaller) -> Approvals:
    """The first 200 that the caller may decide and has not."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await execution_store.approvals(connection)
    return Approvals(data=[Approval(**row) for row in rows])


@router.post("/approvals/{approval_id}/decision")
async def decide(request: Request, caller: CurrentCaller, approval_id: UUID, body: DecisionBody) -> Decided:
    """Approves or rejects, with a comment and, where the node allows it, a changed value."""
    caller.require_scope("chat")
    told = await executions.decide(
        lambda: acting(request, caller), approval_id, body.decision, body.comment, body.value
    )
    return Decided(**told)


@router.get("/workflows/{workflow}/gates")
async def gates(
    request: Request,
    caller: CurrentCaller,
    workflow: SlugOrId,
    begin: Annotated[datetime | None, Query(alias="from", description="left out: 30 days before the end")] = None,
    until: Annotated[datetime | None, Query(description="left out: now")] = None,
) -> Gates:
    """What a workflow's gates found by gate and day (UTC): in own executions, or all of the tenant's for an admin."""
    caller.require_scope("read")
    first, end = period(begin, until)
    async with acting(request, caller, read_only=True) as connection:
        found = await workflow_store.find(connection, caller.identity.tenant_id, workflow)
        rows = await execution_store.gates(connection, caller.identity.tenant_id, found["id"], first, end)
    return Gates(data=[GateDay(**row) for row in rows])


def period(begin: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    """The last 30 days, or what of a period was said; a time without a zone is UTC."""
    end = _in_utc(until) if until else datetime.now(UTC)
    if begin:
        return _in_utc(begin), end
    try:
        return end - timedelta(days=30), end
    except OverflowError:
        return end, end


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def require_spender(request: Request, caller: Caller) -> None:
    """Raises VanillaError `forbidden` for a key that lacks the scope chat, or has a budget."""
    caller.require_scope("chat")
    if caller.key_id is not None:
        async with acting(request, caller, read_only=True) as connection:
            await executions.refuse_budget(connection, caller.identity.tenant_id, caller.key_id)
