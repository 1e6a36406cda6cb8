"""A tree of runs as it goes, as server-sent events, each with an id from which a stream that broke off goes on."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.orchestration import store
from vanilla_saas.workflows.execution_events import KEEP_ALIVE, Identify, Seen, Streams, event, fingerprint, looks

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
            async for told in _events(database, identity, first, seen, streams, identify):
                yield told
        except VanillaError as error:
            yield event("error", error.problem())


async def _events(
    database: Database, identity: Identity, first: Answer, seen: str | None, streams: Streams, identify: Identify
) -> AsyncIterator[bytes]:
    async def look(identity: Identity) -> Seen[Answer]:
        return _seen(await whole(database, identity, first["run_id"], known))

    known = first
    yield b"retry: 1000\n\n"
    if seen != fingerprint(first):
        yield event("progress", first, fingerprint(first))
    async for one in looks(streams, identity, identify, look, _seen(first)):
        if one is None:
            yield KEEP_ALIVE
        elif one.over:
            yield event("end", one.found, fingerprint(one.found))
        elif one.found != known:
            yield event("progress", changes(known, one.found), fingerprint(one.found))
            known = one.found


def _seen(tree: Answer) -> Seen[Answer]:
    return Seen(tree, over=tree["finished_at"] is not None)


def changes(before: Answer, after: Answer) -> Answer:
    """`after` with only those of its runs that are new or differ, each of them whole."""
    was = {run["id"]: run for run in before["runs"]}
    return after | {"runs": [run for run in after["runs"] if was.get(run["id"]) != run]}
