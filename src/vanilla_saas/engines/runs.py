"""A run of an engine, whoever asks: waited for, told, and refused by the code of its failure."""

import asyncio
from typing import Any
from uuid import UUID

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import ERROR_CODES, VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.engines import store
from vanilla_saas.tenancy.identity import Caller
from vanilla_saas.workflows.execution_events import AGAIN, KEEP_ALIVE_S, POLL_S, SHARE, Identify, Streams

CODES = {code.name for code in ERROR_CODES}
SAME = {"input_invalid": "invalid_input"}
"""Reasons of executions that HTTP has another name for."""
SCOPE = "engine"


def key_of_engine(caller: Caller) -> UUID | None:
    """The id of a key that runs one engine and opens nothing else; None for everybody else."""
    return caller.key_id if caller.scopes is not None and SCOPE in caller.scopes else None


async def wait(
    database: Database, identity: Identity, execution_id: UUID, seconds: float, streams: Streams, identify: Identify
) -> None:
    """Returns when the run is over, when the time is, when the process stops or keeps no more streams.

    Between two looks no connection is held. Raises VanillaError when the key or session is not good any more.
    """
    if not seconds or streams.open >= streams.most:
        return
    clock = asyncio.get_running_loop().time
    until, told_at, looked_s = clock() + seconds, clock(), 0.0
    with streams.one():
        while not streams.stopping:
            began = clock()
            if began - told_at >= KEEP_ALIVE_S:
                identity, told_at = await identify(), began
            try:
                async with streams.looks, database.transaction(identity, read_only=True) as connection:
                    if await store.ended(connection, identity.tenant_id, execution_id):
                        return
            except VanillaError as error:
                if error.name not in AGAIN:
                    raise
            looked_s = clock() - began
            left = until - clock()
            if left <= 0:
                return
            await asyncio.sleep(min(max(POLL_S / 2, looked_s / SHARE), left))


def told(run: dict[str, Any], key_id: UUID | None) -> dict[str, Any]:
    """A row of a run with its estimate and where it is followed."""
    run = dict(run)
    path = f"/api/v1/workflow-executions/{run['execution_id']}"
    run["estimate"] = {
        "p50": run.pop("estimate_p50"), "p95": run.pop("estimate_p95"), "runs": run.pop("estimated_from"),
    }  # fmt: skip
    run["follow"] = path if key_id is None else f"/api/v1/engine-runs/{run['execution_id']}"
    return run | {"events": f"{path}/events" if key_id is None else None}


def refuse_failed(run: dict[str, Any]) -> None:
    """Raises VanillaError when it ended without output: named as its reason where HTTP has that, else `run_failed`."""
    if run["finished_at"] is None or run["status"] == "succeeded":
        return
    error, reason = run["error"] or {}, run["reason"] or run["status"]
    name = SAME.get(reason, reason if reason in CODES else "run_failed")
    raise VanillaError(
        name,
        error.get("message") or f"The run was {run['status']}.",
        {"reason": reason, "node": error.get("node"), "execution_id": str(run["execution_id"])},
    )
