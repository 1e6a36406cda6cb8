"""Channels over HTTP: opened, spoken on, read under leases, watched, closed by who may."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from vanilla_saas.orchestration import channel_events
from vanilla_saas.orchestration import channel_store as store
from vanilla_saas.orchestration.channel_models import (
    AckBody,
    Acknowledged,
    ChannelBody,
    ChannelDetail,
    Channels,
    ChannelSummary,
    CloseBody,
    ClosedChannel,
    Failed,
    Floor,
    FloorBody,
    Message,
    MessageBody,
    Messages,
    NackBody,
    OpenedChannel,
    ReceiveBody,
    Received,
    SentMessage,
    SpokenMessage,
)
from vanilla_saas.orchestration.routes import LastSeen
from vanilla_saas.tenancy.identity import CurrentCaller, acting, again
from vanilla_saas.web import event_stream, tell_replay
from vanilla_saas.workflows.execution_routes import Key

router = APIRouter(prefix="/api/v1", tags=["channels"])
After = Annotated[int, Query(ge=0, le=2**63 - 1, description="only messages behind this seq")]


@router.get("/channels")
async def channels(request: Request, caller: CurrentCaller) -> Channels:
    """The newest 1,000 that the caller owns or takes part in; of an admin, all of the tenant."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.channels(connection, caller.identity.tenant_id)
    return Channels(data=[ChannelSummary(**row) for row in rows])


@router.post("/channels", status_code=201)
async def open_channel(request: Request, caller: CurrentCaller, body: ChannelBody) -> OpenedChannel:
    """Opens a channel between participants; with an agreement every message is held to it."""
    caller.require_scope("chat")
    participants = [one.model_dump(mode="json", exclude_none=True) for one in body.participants]
    async with acting(request, caller) as connection:
        made = await store.open_channel(
            connection, caller.identity.tenant_id, body.name, body.kind, participants,
            agreement_id=body.agreement_id, limits=body.limits.model_dump(exclude_none=True), user_id=body.user_id,
        )  # fmt: skip
    return OpenedChannel(**made)


@router.get("/channels/{channel_id}")
async def channel(request: Request, caller: CurrentCaller, channel_id: UUID) -> ChannelDetail:
    """A channel with its participants, how far each has read and what it could not handle."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return ChannelDetail(**await store.read(connection, caller.identity.tenant_id, channel_id))


@router.get("/channels/{channel_id}/messages")
async def history(
    request: Request,
    caller: CurrentCaller,
    channel_id: UUID,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="rows of a page")] = 100,
) -> Messages:
    """Messages in their order, without a lease: it moves no cursor. The next page is `after` the last seq."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.history(connection, caller.identity.tenant_id, channel_id, after, limit)
    return Messages(data=[SpokenMessage(**row) for row in rows])


@router.post("/channels/{channel_id}/messages", status_code=201, responses={200: {"model": SentMessage}})
async def send(
    request: Request, response: Response, caller: CurrentCaller, channel_id: UUID, body: MessageBody, key: Key = None
) -> SentMessage:
    """Says something: 201, or 200 when the same `message_id` of the same participant was sent before.

    What breaks the channel's agreement is not sent (422 `agreement_violated` with `rule` and `path`), and written down.
    An answer later than `sla.max_latency_ms` is sent and written down: `violated`.
    """
    caller.require_scope("chat")
    message_id = body.message_id or key or str(uuid4())
    async with acting(request, caller) as connection:
        sent = await store.send(
            connection, caller.identity.tenant_id, channel_id, body.participant_id, body.performative, body.body,
            message_id, in_reply_to=body.in_reply_to, run_id=body.run_id,
        )  # fmt: skip
    store.refuse_breach(sent)
    tell_replay(response, sent["replayed"])
    response.status_code = 200 if sent["replayed"] else 201
    return SentMessage(message_id=message_id, **sent)


@router.post("/channels/{channel_id}/receive")
async def receive(request: Request, caller: CurrentCaller, channel_id: UUID, body: ReceiveBody) -> Received:
    """The next messages of others for a participant, under a lease that one worker at a time has."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        rows = await store.receive(
            connection, caller.identity.tenant_id, channel_id, body.participant_id, body.limit,
            timedelta(seconds=body.lease_s),
        )  # fmt: skip
    first = rows[0] if rows else dict.fromkeys(("lease_token", "lease_until", "attempt"))
    return Received(
        lease_token=first["lease_token"], lease_until=first["lease_until"], attempt=first["attempt"],
        data=[Message(**row) for row in rows],
    )  # fmt: skip


@router.post("/channels/{channel_id}/ack")
async def ack(request: Request, caller: CurrentCaller, channel_id: UUID, body: AckBody) -> Acknowledged:
    """All up to a seq are done with; 409 when the lease has ended, and they are given out again."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        done = await store.ack(
            connection, caller.identity.tenant_id, channel_id, body.participant_id, body.lease_token, body.seq,
            body.run_id,
        )  # fmt: skip
    return Acknowledged(acknowledged=done)


@router.post("/channels/{channel_id}/nack")
async def nack(request: Request, caller: CurrentCaller, channel_id: UUID, body: NackBody) -> Failed:
    """The first that is not acknowledged failed: it is tried again, or a dead letter after `max_attempts`."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        outcome = await store.nack(
            connection, caller.identity.tenant_id, channel_id, body.participant_id, body.lease_token, body.seq,
            body.error, timedelta(seconds=body.retry_after_s),
        )  # fmt: skip
    return Failed.model_validate({"outcome": outcome})


@router.post("/channels/{channel_id}/floor")
async def floor(request: Request, caller: CurrentCaller, channel_id: UUID, body: FloorBody) -> Floor:
    """Who may speak in a group: read, passed on, given or taken by the manager, bid for."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        told = await store.floor(
            connection, caller.identity.tenant_id, channel_id, body.participant_id, body.action, to=body.to,
            bid=body.bid,
        )  # fmt: skip
    return Floor(**told)


@router.post("/channels/{channel_id}/close")
async def close(
    request: Request, caller: CurrentCaller, channel_id: UUID, body: CloseBody | None = None
) -> ClosedChannel:
    """It takes no message any more; what it has can be read and acknowledged. Its owner or an admin."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        done = await store.close(connection, caller.identity.tenant_id, channel_id, body.reason if body else "")
    return ClosedChannel(channel_id=channel_id, closed=done)


@router.get("/channels/{channel_id}/events", response_class=StreamingResponse)
async def events(
    request: Request, caller: CurrentCaller, channel_id: UUID, after: After = 0, last_seen: LastSeen = None
) -> StreamingResponse:
    """Server-sent events: `message` in the one order, its seq as id; `channel` when the floor changes; `end`.

    A stream that breaks off goes on behind the header Last-Event-ID, or `after`. `error` is a problem, after which
    nothing follows.
    """
    caller.require_scope("read")
    database, streams = request.app.state.database, request.app.state.streams
    place = channel_events.begin_after(after, last_seen)
    streams.refuse_when_full()
    first = await channel_events.look(database, caller.identity, channel_id, place)
    return event_stream(channel_events.events(database, caller.identity, first, place, streams, again(request, caller)))
