"""Backups: the last one, the last rehearsal, and what lies in the folder of this server; for super admins.

Making and restoring stay on the command line: both need rights that a request has not, and should not get.
"""

import asyncio
from typing import Any

import asyncpg
from fastapi import Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, render
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.operations import backup_store as store
from vanilla_saas.operations import rehearsal
from vanilla_saas.operations.backup import connected
from vanilla_saas.operations.doctor_backups import backup_findings
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy.page_session import PlatformCaller

router = page_router()
LISTED = 50


@router.get("/backups")
async def backups(request: Request, caller: PlatformCaller) -> Response:
    settings: Settings = request.app.state.settings
    problem, findings, kept = None, [], dict[str, dict[str, Any]]()
    try:
        async with connected(request.app.state.addresses.admin) as connection:
            kept = await store.recorded(connection)
            findings = await backup_findings(connection, settings)
    except VanillaError as error:
        problem = error.problem()
    except asyncpg.InsufficientPrivilegeError:
        problem = VanillaError("forbidden", "DATABASE_URL's login may not read the results.").problem()
    folder = settings.backup_directory()
    try:
        rows = (await asyncio.to_thread(rehearsal.list_backups, folder, rehearsal.passphrase(settings)))[:LISTED]
    except OSError as error:
        rows, problem = [], VanillaError("invalid_state", f"{folder}: {error.strerror}.").problem()
    return render(
        request,
        "operations/backups.html",
        problem=problem,
        findings=[dict(zip(("check", "found", "mend", "severity"), one, strict=True)) for one in findings],
        made=kept.get(rehearsal.MADE),
        rehearsed=kept.get(rehearsal.REHEARSED),
        restored=kept.get(rehearsal.RESTORED),
        rows=rows,
        folder=str(folder),
        keep=settings.backup_keep,
        encrypted=settings.backup_passphrase is not None,
    )


ROOM = Room(
    "operations",
    "vanilla_saas.operations",
    router,
    (NavigationEntry("Platform", "Backups", "/backups", "backup", 33, "superadmin"),),
)
