"""Health: what `vanilla-saas doctor` finds, for super admins.

It asks as the login that migrates, which this process has for the embedded server and for `DATABASE_URL` alike. The
books, which read every ledger row, are left out unless asked for.
"""

import asyncio

from fastapi import Request
from fastapi.responses import Response

from vanilla_saas.checks import checks
from vanilla_saas.console import NavigationEntry, Room, page_router, render
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.operations import doctor, doctor_backups, doctor_settings
from vanilla_saas.tenancy.page_session import PlatformCaller

router = page_router()
_one_at_a_time = asyncio.Semaphore(1)
"""Each look connects anew and reads the whole catalog: a page that is reloaded in a hurry waits for itself."""


@router.get("/health")
async def health(request: Request, caller: PlatformCaller, books: bool = False) -> Response:
    state = request.app.state
    findings: list[doctor.Diagnosis] = []
    problem = None
    try:
        async with _one_at_a_time:
            findings = await doctor.diagnose(state.addresses, state.signer, state.settings, books=books)
    except VanillaError as error:
        problem = error.problem()
    of_database = checks() if books else doctor.ALL_BUT_BOOKS
    errors = sum(finding.severity == "error" for finding in findings)
    return render(
        request,
        "operations/health.html",
        problem=problem,
        findings=findings,
        errors=errors,
        warnings=len(findings) - errors,
        looked=len(of_database) + len(doctor.CHECKS) + len(doctor_settings.CHECKS) + len(doctor_backups.CHECKS),
        books=books,
    )


ROOM = Room(
    "operations",
    "vanilla_saas.operations",
    router,
    (NavigationEntry("Platform", "Health", "/health", "health", 32, "superadmin"),),
)
