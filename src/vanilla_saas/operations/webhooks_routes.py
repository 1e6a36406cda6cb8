"""`/api/v1/events` and `/api/v1/webhooks`: for admins of the tenant."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Query, Request, Response

from vanilla_saas.database.cursor import Page
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.paging import Paging
from vanilla_saas.operations import webhooks_store as store
from vanilla_saas.operations.webhooks import secret_box
from vanilla_saas.operations.webhooks_models import (
    Attempt,
    Delivery,
    DeliveryState,
    DeliveryWithAttempts,
    Event,
    EventType,
    EventTypeList,
    NewWebhook,
    Queued,
    RotateBody,
    RotatedSecret,
    Webhook,
    WebhookBody,
    WebhookPatch,
)
from vanilla_saas.operations.webhooks_signing import new_secret
from vanilla_saas.settings import Settings
from vanilla_saas.targets import check_url
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting

router = APIRouter(prefix="/api/v1", tags=["webhooks"])


def _admin(caller: CurrentCaller) -> Caller:
    caller.require_admin()
    return caller


Admin = Annotated[Caller, Depends(_admin)]


@router.get("/events")
async def events(
    request: Request,
    caller: Admin,
    paging: Paging,
    type: Annotated[str | None, Query(max_length=100, description="Only this type.")] = None,
) -> Page[Event]:
    """What happened in the tenant, newest first, whether or not a webhook asked for it."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.events(connection, caller.identity.tenant_id, type, paging.bounds)
    return paging.page(rows, Event.of)


@router.get("/events/types")
async def event_types(request: Request, caller: Admin) -> EventTypeList:
    """Every type of event and when it is written."""
    async with acting(request, caller, read_only=True) as connection:
        return EventTypeList(data=[EventType(**row) for row in await store.event_types(connection)])


@router.get("/webhooks")
async def webhooks(request: Request, caller: Admin, paging: Paging) -> Page[Webhook]:
    """The tenant's webhooks."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.endpoints(connection, caller.identity.tenant_id, paging.bounds)
    return paging.page(rows, Webhook.of)


@router.post("/webhooks", status_code=201)
async def create_webhook(request: Request, caller: Admin, body: WebhookBody) -> NewWebhook:
    """A new webhook; its secret is shown in this answer only."""
    settings: Settings = request.app.state.settings
    secret, tenant_id = new_secret(), caller.identity.tenant_id
    url = check_url(body.url, private=settings.webhooks_to_private)
    async with acting(request, caller) as connection:
        endpoint_id = await store.new_id(connection)
        await store.create_endpoint(
            connection,
            tenant_id,
            endpoint_id,
            url=url,
            event_types=body.event_types,
            secret=secret_box(settings).encrypt(tenant_id, endpoint_id, secret),
            description=body.description,
            concurrency=body.concurrency,
        )
        made = await _webhook(connection, tenant_id, endpoint_id)
    return NewWebhook(**made.model_dump(), secret=secret)


@router.get("/webhooks/{webhook_id}")
async def webhook(request: Request, caller: Admin, webhook_id: UUID) -> Webhook:
    """One webhook."""
    async with acting(request, caller, read_only=True) as connection:
        return await _webhook(connection, caller.identity.tenant_id, webhook_id)


@router.patch("/webhooks/{webhook_id}")
async def change_webhook(request: Request, caller: Admin, webhook_id: UUID, body: WebhookPatch) -> Webhook:
    """Change address, events or status. Activating one that was disabled forgets its failures."""
    change = body.model_dump(exclude_none=True)
    if not change:
        raise VanillaError("invalid_request", "Nothing is to be changed.", {"param": "body"})
    if body.url is not None:
        change["url"] = check_url(body.url, private=request.app.state.settings.webhooks_to_private)
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        await store.update_endpoint(connection, tenant_id, webhook_id, **change)
        return await _webhook(connection, tenant_id, webhook_id)


@router.delete("/webhooks/{webhook_id}", status_code=204)
async def delete_webhook(request: Request, caller: Admin, webhook_id: UUID) -> Response:
    """Delete a webhook and the log of its deliveries; the events stay."""
    async with acting(request, caller) as connection:
        await store.delete_endpoint(connection, caller.identity.tenant_id, webhook_id)
    return Response(status_code=204)


@router.post("/webhooks/{webhook_id}/rotate-secret")
async def rotate_secret(request: Request, caller: Admin, webhook_id: UUID, body: RotateBody) -> RotatedSecret:
    """A new secret, shown once. For `keep_hours` every delivery carries a signature of each."""
    secret, tenant_id = new_secret(), caller.identity.tenant_id
    sealed = secret_box(request.app.state.settings).encrypt(tenant_id, webhook_id, secret)
    async with acting(request, caller) as connection:
        until = await store.rotate_secret(connection, tenant_id, webhook_id, sealed, timedelta(hours=body.keep_hours))
    return RotatedSecret(secret=secret, previous_secret_until=until)


@router.post("/webhooks/{webhook_id}/test", status_code=202)
async def send_test(request: Request, caller: Admin, webhook_id: UUID) -> Queued:
    """Send an event `webhook.test` to this webhook alone."""
    async with acting(request, caller) as connection:
        return Queued(delivery_id=await store.send_test(connection, caller.identity.tenant_id, webhook_id))


@router.get("/webhooks/{webhook_id}/deliveries")
async def deliveries(
    request: Request, caller: Admin, webhook_id: UUID, paging: Paging, state: DeliveryState | None = None
) -> Page[Delivery]:
    """Deliveries of a webhook, newest first."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        await _webhook(connection, tenant_id, webhook_id)
        rows = await store.deliveries(connection, tenant_id, webhook_id, state, paging.bounds)
    return paging.page(rows, Delivery.of)


@router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}")
async def delivery(request: Request, caller: Admin, webhook_id: UUID, delivery_id: UUID) -> DeliveryWithAttempts:
    """One delivery with its event and what every try came to."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        row = await _delivery(connection, tenant_id, webhook_id, delivery_id)
        tries = [Attempt(**one) for one in await store.attempts(connection, tenant_id, delivery_id)]
    event = dict(row) | {"id": row["event_id"], "type": row["event_type"], "created_at": row["event_created_at"]}
    return DeliveryWithAttempts(**dict(row), event=Event.of(event) if row["event_type"] else None, tries=tries)


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202)
async def redeliver(request: Request, caller: Admin, webhook_id: UUID, delivery_id: UUID) -> Queued:
    """Send it again, under the same webhook-id: one that waits is tried at once, a closed one as a new delivery."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        await _delivery(connection, tenant_id, webhook_id, delivery_id)
        return Queued(delivery_id=await store.redeliver(connection, tenant_id, delivery_id))


async def _webhook(connection: asyncpg.Connection, tenant_id: UUID, webhook_id: UUID) -> Webhook:
    row = await store.endpoint(connection, tenant_id, webhook_id)
    if row is None:
        raise VanillaError("not_found", "no such webhook", {"webhook_id": str(webhook_id)})
    return Webhook.of(row)


async def _delivery(
    connection: asyncpg.Connection, tenant_id: UUID, webhook_id: UUID, delivery_id: UUID
) -> asyncpg.Record:
    row = await store.delivery(connection, tenant_id, delivery_id)
    if row is None or row["endpoint_id"] != webhook_id:
        raise VanillaError("not_found", "no such delivery", {"delivery_id": str(delivery_id)})
    return row
