"""A run of an engine, whoever asks: waited for, told, and refused by the code of its failure."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import ERROR_CODES, VanillaError
from vanilla_saas.engines import store
from vanilla_saas.engines.waiting import Ends
from vanilla_saas.providers.engine_chat import SAME
from vanilla_saas.tenancy.identity import Caller
from vanilla_saas.workflows.execution_events import Identify

CODES = {code.name for code in ERROR_CODES}
SCOPE = "engine"


def key_of_engine(caller: Caller) -> UUID | None:
    """The id of a key that runs one engine and opens nothing else; None for everybody else."""
    return caller.key_id if caller.scopes is not None and SCOPE in caller.scopes else None


async def wait(ends: Ends, caller: Caller, execution_id: UUID, seconds: float, identify: Identify) -> None:
    """Returns when the run is over, when the time is, when the process stops or keeps nobody more who waits.

    This process works for the run meanwhile.
    Raises VanillaError when the key or session is not good any more.
    """
    if not seconds or ends.full:
        return
    async with aclosing(looks(ends, caller, execution_id, seconds, identify)) as looking:
        async for _ in looking:
            pass


async def looks(
    ends: Ends, caller: Caller, execution_id: UUID, seconds: float, identify: Identify
) -> AsyncGenerator[bool | None]:
    """As `wait`, for who watches: after each look at the run whether it is over.

    Whoever comes when this process keeps nobody more who waits is not worked for.
    """

    async def find(connection: asyncpg.Connection) -> bool | None:
        return await store.ended(connection, caller.identity.tenant_id, execution_id) or None

    full = ends.full
    with nullcontext() if full else ends.place():
        attended = None if full else await ends.attend(caller.identity.tenant_id, execution_id)
        try:
            looking = ends.looks(execution_id, caller.identity, seconds, identify, find, attended=attended)
            async with aclosing(looking) as found:
                async for over in found:
                    yield over
        finally:
            ends.leave(attended)


def told(run: dict[str, Any], key_id: UUID | None) -> dict[str, Any]:
    """A row of a run with its estimate and where it is followed."""
    run = dict(run)
    execution, own = (f"/api/v1/{path}/{run['execution_id']}" for path in ("workflow-executions", "engine-runs"))
    run["estimate"] = {
        "p50": run.pop("estimate_p50"), "p95": run.pop("estimate_p95"), "runs": run.pop("estimated_from"),
    }  # fmt: skip
    run["follow"] = execution if key_id is None else own
    return run | {"events": f"{run['follow']}/events"}


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
