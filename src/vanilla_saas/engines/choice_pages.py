"""The page that says which engine somebody runs: every candidate in order, and why it is or is not the one."""

from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi import Query, Request
from fastapi.responses import Response

from vanilla_saas.console import page_router, render
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import store
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.tokens.store import find_user

router = page_router()
SOURCES = {
    "reference": "the reference", "copy": "the default copy", "user": "the user", "level": "the level",
    "tier": "the tier", "tenant": "the tenant", "platform": "everybody",
}  # fmt: skip
REASONS = {
    "preceded": "another comes before it",
    "not_yet_valid": "the assignment does not hold yet",
    "expired": "the assignment is over",
    "not_offered": "the platform does not offer it any more",
    "not_entitled": "the level may neither read nor run it",
    "engine_retired": "the engine is retired",
    "no_version": "there is no such version",
    "version_retired": "the version is retired",
    "read_only": "the level may read it, not run it",
}


@router.get("/engine-choice")
async def choice(
    request: Request,
    caller: PageCaller,
    user: Annotated[str, Query(max_length=320)] = "",
    ref: Annotated[str, Query(max_length=80)] = "",
) -> Response:
    """Of oneself, or by an admin of any user of the tenant."""
    user, ref, problem = user.strip(), ref.strip(), None
    rows: list[dict[str, Any]] = []
    try:
        async with acting(request, caller, read_only=True) as connection:
            rows = await _candidates(connection, caller, user, ref)
    except VanillaError as error:
        if error.name not in ("not_found", "invalid_request"):
            raise
        problem = error.problem() | {"param": error.detail.get("param", "user")}
    return render(
        request, "engines/choice.html", status=problem["status"] if problem else 200, rows=rows, problem=problem,
        user=user, ref=ref, sources=SOURCES, reasons=REASONS, manages=caller.identity.role != "user",
        asked=problem is None and (bool(user) or not caller.outside), path="/engines/choice",
    )  # fmt: skip


async def _candidates(connection: asyncpg.Connection, caller: Caller, user: str, ref: str) -> list[dict[str, Any]]:
    tenant_id = caller.identity.tenant_id
    user_id: UUID = caller.identity.user_id
    if user:
        user_id = (await find_user(connection, caller.tenant, user))[1]
    elif caller.outside:
        return []
    rows = await store.explain(connection, tenant_id, user_id, ref or None)
    named = {str(copy["id"]): copy["ref"] for copy in await store.copies(connection, tenant_id, user_id)}
    named |= {
        str(row["id"]): row["target_name"] or (f"tier {row['tier']}" if row["target"] == "tier" else "")
        for row in await store.assignments(connection, tenant_id)
    }
    return [row | {"by": named.get(row["source_id"] or "", "")} for row in rows]
