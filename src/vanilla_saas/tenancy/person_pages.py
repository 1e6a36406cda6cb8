"""Pages of one person: what would go and what would stay, the erasure itself, and the export of all that is kept."""

from typing import Annotated
from uuid import UUID

from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import page_router, redirect, render
from vanilla_saas.tenancy import page_store, store
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageAdmin, PageCaller
from vanilla_saas.tenancy.person_routes import export_answer

router = page_router()
Reason = Annotated[str, Form(max_length=500)]


@router.post("/users/{user_id}/erase/preview")
async def preview_erasure(request: Request, caller: PageAdmin, user_id: UUID, reason: Reason) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        name = await page_store.user_email(connection, tenant_id, user_id)
        erased = await page_store.preview_erasure(connection, tenant_id, user_id, reason.strip())
    return render(request, "tenancy/erase.html", user_id=user_id, name=name, erased=erased, reason=reason.strip())


@router.post("/users/{user_id}/erase")
async def erase_user(request: Request, caller: PageAdmin, user_id: UUID, reason: Reason) -> Response:
    async with acting(request, caller) as connection:
        await store.erase_user(connection, caller.identity.tenant_id, user_id, reason.strip())
    return redirect(request, "/users?notice=erased")


@router.get("/users/{user_id}/export")
async def export_user(request: Request, caller: PageCaller, user_id: UUID) -> Response:
    return await export_answer(request, caller, user_id)
