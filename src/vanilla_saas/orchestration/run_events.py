"""A tree of runs as it goes, as server-sent events, each with an id from which a stream that broke off goes on."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import orjson
import structlog

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.orchestration import store
from vanilla_saas.workflows.execution_events import (
    AGAIN,
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    POLL_S,
    SHARE,
    SLOWEST_S,
    Identify,
    Streams,
)

log = structlog.get_logger()
Answer = dict[str, Any]


def told(runs: list[Answer], run_id: UUID) -> Answer:
    """The tree with what the run that was asked for came to, and what all of it cost."""
    asked = next(run for run in runs if run["id"] == run_id)
    return {
        "run_id": run_id,
        **{name: asked[name] for name in ("state", "stop_reason", "output", "finished_at")},
        "charged_tokens": sum(run["charged_tokens"] for run in runs),
        "cost_micros": sum(run["cost_micros"] for run in runs),
        "runs": runs,
        "events": f"/api/v1/agent-runs/{run_id}/events",
    }


async def whole(database: Database, identity: Identity, run_id: UUID, known: Answer | None = None) -> Answer:
    """The tree as it is now; of one that is `known` only what is new is read. Raises VanillaError `not_found`."""
    async with database.transaction(identity, read_only=True) as connection:
        return told(await store.tree(connection, identity.tenant_id, run_id, known["runs"] if known else ()), run_id)


async def events(
    database: Database, identity: Identity, first: Answer, seen: str | None, streams: Streams, identify: Identify
) -> AsyncIterator[bytes]:
    """`progress` is the whole tree at first, unless `seen` is its id, then the runs that changed; `end` the whole.

    `error` is a problem, after which nothing follows.
    """
    with streams.one():
        try:
            async for event in _events(database, identity, first, seen, streams, identify):
                yield event
        except VanillaError as error:
            yield _event("error", error.problem(), "")


async def _events(
    database: Database, identity: Identity, first: Answer, seen: str | None, streams: Streams, identify: Identify
) -> AsyncIterator[bytes]:
    known, clock = first, asyncio.get_running_loop().time
    yield b"retry: 1000\n\n"
    if seen != id_of(first):
        yield _event("progress", first, id_of(first))
    looked_s, told_at = 0.0, clock()
    while known["finished_at"] is None:
        await asyncio.sleep(max(POLL_S, min(looked_s / SHARE, SLOWEST_S)))
        if streams.stopping:
            return
        began = clock()
        if began - told_at >= KEEP_ALIVE_S:
            identity, told_at = await identify(), clock()
            yield KEEP_ALIVE
        try:
            async with streams.looks:
                found = await whole(database, identity, first["run_id"], known)
        except VanillaError as error:
            if error.name not in AGAIN:
                raise
            log.info("run_not_seen", run_id=str(first["run_id"]), error=error.name)
            continue
        looked_s = clock() - began
        if found != known and found["finished_at"] is None:
            yield _event("progress", changes(known, found), id_of(found))
        known = found
    yield _event("end", known, id_of(known))


def changes(before: Answer, after: Answer) -> Answer:
    """`after` with only those of its runs that are new or differ, each of them whole."""
    was = {run["id"]: run for run in before["runs"]}
    return after | {"runs": [run for run in after["runs"] if was.get(run["id"]) != run]}


def id_of(tree: Answer) -> str:
    return hashlib.sha256(orjson.dumps(tree, default=str)).hexdigest()[:20]


def _event(name: str, data: Answer, id: str) -> bytes:
    identified = b"id: " + id.encode() + b"\n" if id else b""
    return identified + b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data, default=str) + b"\n\n"
