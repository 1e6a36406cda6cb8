"""Runs of engines over HTTP: begun by people and by keys of an engine, waited for when asked, and told."""

from typing import Annotated
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import runs, starts, store
from vanilla_saas.engines.models import MOST_WAIT_S, KeyBody, Preview, PreviewBody, Run, RunBody, Started
from vanilla_saas.tenancy import store as tenancy_store
from vanilla_saas.tenancy.identity import (
    Caller,
    CurrentCaller,
    acting,
    again,
    client_ip,
)
from vanilla_saas.tenancy.models import NewKey
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, prefix_of, token_hash
from vanilla_saas.web import event_stream, tell_replay
from vanilla_saas.workflows import execution_events
from vanilla_saas.workflows.execution_routes import Key, require_spender

router = APIRouter(prefix="/api/v1", tags=["engines"])


@router.post("/engines/run", status_code=202, responses={200: {"model": Started}})
async def run(
    request: Request, response: Response, caller: CurrentCaller, body: RunBody, header_key: Key = None
) -> Started:
    """Runs an engine by name, or the one that is chosen for the caller: 202 and where to follow it.

    With `wait_s` 200 and the output when it is over by then; a run that failed is answered as an error with its reason.
    A key of an engine runs that one. The same idempotency key and input answer with the first run. An input that does
    not fit the engine's schema is refused (422) by field, and nothing is written.
    """
    if None not in (body.idempotency_key, header_key) and body.idempotency_key != header_key:
        raise VanillaError("invalid_request", "two idempotency keys were sent", {"param": "idempotency_key"})
    key_id, key = runs.key_of_engine(caller), body.idempotency_key or header_key
    if key_id is None:
        await require_spender(request, caller)
        started = await starts.start(
            lambda: acting(request, caller), caller.identity.tenant_id, body.ref, body.input, key=key,
            priority=body.priority, user_id=body.user_id,
        )  # fmt: skip
    else:
        started = await _by_key(request, caller, body, key)
    execution_id = UUID(started["execution_id"])
    found = await _told(request, caller, execution_id, body.wait_s)
    if body.wait_s:
        runs.refuse_failed(found)
    tell_replay(response, started["replayed"])
    response.headers["Location"] = found["follow"]
    response.status_code = 200 if body.wait_s and found["finished_at"] else 202
    return Started(**found, replayed=started["replayed"])


@router.post("/engines/preview")
async def preview(request: Request, caller: CurrentCaller, body: PreviewBody) -> Preview:
    """What a run with the same reference and input would begin, and what those before it cost; nothing is started.

    Refused as the run would be. `estimate` has the median and the 95 % of the last 50 runs of the version.
    """
    await require_spender(request, caller)
    found = await starts.preview(
        lambda: acting(request, caller), caller.identity.tenant_id, body.ref, body.input, user_id=body.user_id
    )
    return Preview(**{name: found[name] for name in Preview.model_fields})


async def _by_key(request: Request, caller: Caller, body: RunBody, key: str | None) -> store.Answer:
    for name in ("priority", "user_id"):
        if getattr(body, name) is not None:
            raise VanillaError("forbidden", f"A key of an engine says no {name}.", {"param": name, "need": "chat"})
    return await starts.start_by_key(
        request.app.state.database,
        token_hash(caller.token),
        body.ref,
        body.input,
        key,
        getattr(request.state, "request_id", ""),
        client_ip(request),
    )


async def _told(request: Request, caller: Caller, execution_id: UUID, wait_s: float) -> store.Answer:
    key_id = runs.key_of_engine(caller)
    await runs.wait(request.app.state.ends, caller, execution_id, wait_s, again(request, caller))
    async with acting(request, caller, read_only=True) as connection:
        found = await store.run(connection, caller.identity.tenant_id, execution_id, key_id)
    return runs.told(found, key_id)


@router.get("/engine-runs/{execution_id}")
async def engine_run(
    request: Request,
    caller: CurrentCaller,
    execution_id: UUID,
    wait_s: Annotated[float, Query(ge=0, le=MOST_WAIT_S, description="seconds to wait for its end")] = 0,
) -> Run:
    """A run of an engine with its output; a key of an engine sees those that it began."""
    if runs.key_of_engine(caller) is None:
        caller.require_scope("read")
    if wait_s:
        async with acting(request, caller, read_only=True) as connection:
            await store.run(connection, caller.identity.tenant_id, execution_id, runs.key_of_engine(caller))
    return Run(**await _told(request, caller, execution_id, wait_s))


@router.get("/engine-runs/{execution_id}/events", response_class=StreamingResponse)
async def events(request: Request, caller: CurrentCaller, execution_id: UUID) -> StreamingResponse:
    """Server-sent events of a run: `progress` with all of it, then with what changed, `end` with the output.

    A key of an engine follows those that it began. `error` is a problem, after which nothing follows.
    """
    key_id = runs.key_of_engine(caller)
    if key_id is None:
        caller.require_scope("read")
    database, streams = request.app.state.database, request.app.state.streams
    streams.refuse_when_full()

    async def look(connection: asyncpg.Connection) -> store.Answer:
        found = await store.run(connection, caller.identity.tenant_id, execution_id, key_id)
        return Run(**runs.told(found, key_id)).model_dump(mode="json")

    async with acting(request, caller, read_only=True) as connection:
        first = await look(connection)
    return event_stream(
        execution_events.events(database, caller.identity, first, streams, again(request, caller), look)
    )


@router.post("/engine-keys", status_code=201)
async def create_key(request: Request, caller: CurrentCaller, body: KeyBody) -> NewKey:
    """A key that runs one engine and opens nothing else, shown once; DELETE /api/v1/keys/{id} revokes it."""
    caller.require_scope("admin")
    key, tenant_id = new_token(KEY_PREFIX), caller.identity.tenant_id
    async with acting(request, caller) as connection:
        key_id = await store.create_key(
            connection,
            tenant_id,
            body.ref,
            name=body.name,
            prefix=prefix_of(key),
            key_hash=token_hash(key),
            expires_at=body.expires_at,
            budget_tokens=body.budget_tokens,
            user_id=body.user_id,
        )
        row = await tenancy_store.key(connection, tenant_id, key_id)
    return NewKey.of(dict(row) | {"key": key})
