"""Pages of webhooks: the endpoints of a tenant, its events, and what became of every delivery."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.database.cursor import first_page, page_bounds, page_rows
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.operations import webhooks_store as store
from vanilla_saas.operations.webhooks import secret_box
from vanilla_saas.operations.webhooks_signing import new_secret
from vanilla_saas.settings import Settings
from vanilla_saas.targets import check_url
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageAdmin

PAGE = 25
router = page_router()
Text = Annotated[str, Form(max_length=2048)]
Concurrency = Annotated[int, Form(ge=1, le=32)]


@router.get("/webhooks")
async def webhooks(request: Request, caller: PageAdmin, notice: str = "") -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        endpoints = await store.endpoints(connection, tenant_id, first_page(PAGE))
        types = await store.event_types(connection)
    return render(request, "operations/webhooks.html", endpoints=endpoints, types=types, notice=notice)


@router.get("/webhooks/events")
async def events(request: Request, caller: PageAdmin, type: str = "", before: str = "") -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.events(connection, caller.identity.tenant_id, type or None, page_bounds(before, PAGE))
        types = await store.event_types(connection)
    return render(request, "operations/events.html", types=types, type=type, **page_rows(rows, PAGE))


@router.post("/webhooks")
async def create(
    request: Request,
    caller: PageAdmin,
    url: Text,
    event_types: Annotated[list[str] | None, Form()] = None,
    description: Text = "",
    concurrency: Concurrency = 4,
) -> Response:
    settings: Settings = request.app.state.settings
    secret, tenant_id = new_secret(), caller.identity.tenant_id
    checked = check_url(url, private=settings.webhooks_to_private)
    async with acting(request, caller) as connection:
        made = await store.new_id(connection)
        await store.create_endpoint(
            connection,
            tenant_id,
            made,
            url=checked,
            event_types=event_types or [],
            secret=secret_box(settings).encrypt(tenant_id, made, secret),
            description=description.strip(),
            concurrency=concurrency,
        )
    return render(request, "operations/webhook_secret.html", webhook_id=made, secret=secret, until=None)


@router.get("/webhooks/{webhook_id}")
async def webhook(
    request: Request, caller: PageAdmin, webhook_id: UUID, state: str = "", before: str = "", notice: str = ""
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        endpoint = await store.endpoint(connection, tenant_id, webhook_id)
        if endpoint is None:
            raise VanillaError("not_found", "There is no such webhook in this tenant.")
        rows = await store.deliveries(connection, tenant_id, webhook_id, state or None, page_bounds(before, PAGE))
    return render(
        request, "operations/webhook.html", endpoint=endpoint, state=state, notice=notice, **page_rows(rows, PAGE)
    )


@router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}")
async def delivery(request: Request, caller: PageAdmin, webhook_id: UUID, delivery_id: UUID) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        row = await store.delivery(connection, tenant_id, delivery_id)
        if row is None or row["endpoint_id"] != webhook_id:
            raise VanillaError("not_found", "There is no such delivery.")
        tries = await store.attempts(connection, tenant_id, delivery_id)
    payload = orjson.dumps(row["payload"], option=orjson.OPT_INDENT_2).decode()
    return render(request, "operations/delivery.html", row=row, tries=tries, payload=payload)


@router.post("/webhooks/{webhook_id}/test")
async def send_test(request: Request, caller: PageAdmin, webhook_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        made = await store.send_test(connection, caller.identity.tenant_id, webhook_id)
    return redirect(request, f"/webhooks/{webhook_id}/deliveries/{made}")


@router.post("/webhooks/{webhook_id}/status")
async def set_status(request: Request, caller: PageAdmin, webhook_id: UUID, status: Text) -> Response:
    async with acting(request, caller) as connection:
        await store.update_endpoint(connection, caller.identity.tenant_id, webhook_id, status=status)
    return redirect(request, f"/webhooks/{webhook_id}?notice=saved")


@router.post("/webhooks/{webhook_id}/rotate")
async def rotate(request: Request, caller: PageAdmin, webhook_id: UUID) -> Response:
    secret, tenant_id = new_secret(), caller.identity.tenant_id
    sealed = secret_box(request.app.state.settings).encrypt(tenant_id, webhook_id, secret)
    async with acting(request, caller) as connection:
        until = await store.rotate_secret(connection, tenant_id, webhook_id, sealed, timedelta(hours=24))
    return render(request, "operations/webhook_secret.html", webhook_id=webhook_id, secret=secret, until=until)


@router.post("/webhooks/{webhook_id}/delete")
async def delete(request: Request, caller: PageAdmin, webhook_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        await store.delete_endpoint(connection, caller.identity.tenant_id, webhook_id)
    return redirect(request, "/webhooks?notice=deleted")


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver")
async def redeliver(request: Request, caller: PageAdmin, webhook_id: UUID, delivery_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        made = await store.redeliver(connection, caller.identity.tenant_id, delivery_id)
    return redirect(request, f"/webhooks/{webhook_id}/deliveries/{made}")


ROOM = Room(
    "operations",
    "vanilla_saas.operations",
    router,
    (NavigationEntry("Access", "Webhooks", "/webhooks", "webhook", 23, "admin"),),
)
