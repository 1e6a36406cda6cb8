"""`vanilla-saas webhooks`: the operator's way to the functions that the API calls."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.cursor import first_page
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.operations import webhooks_store as store
from vanilla_saas.operations.webhooks import secret_box
from vanilla_saas.operations.webhooks_signing import new_secret
from vanilla_saas.settings import Settings
from vanilla_saas.targets import check_url

webhooks = typer.Typer(no_args_is_help=True, help="Webhooks of a tenant: where its events are sent.")
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Most rows to list, newest first.")]
Id = Annotated[UUID, typer.Argument(metavar="WEBHOOK", help="Id of the webhook.")]


@webhooks.command("list")
def list_webhooks(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Webhooks of a tenant."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        return await store.endpoints(connection, await tenant_id(connection, tenant), first_page(1000))

    show(as_operator(run), as_json)


@webhooks.command("create")
def create(
    url: str,
    event: Annotated[
        list[str] | None, typer.Option(help="A type, a group such as token.*, or *; may be repeated.")
    ] = None,
    description: Annotated[str, typer.Option(help="What people read.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, max=32, help="Deliveries in flight at once.")] = 4,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a webhook. Its secret is printed once."""
    settings, secret = Settings(), new_secret()
    checked = check_url(url, private=settings.webhooks_to_private)

    async def run(connection: asyncpg.Connection) -> UUID:
        owner, made = await tenant_id(connection, tenant), await store.new_id(connection)
        await store.create_endpoint(
            connection,
            owner,
            made,
            url=checked,
            event_types=event or ["*"],
            secret=secret_box(settings).encrypt(owner, made, secret),
            description=description,
            concurrency=concurrency,
        )
        return made

    made = as_operator(run)
    tell(
        f"Webhook {made} is made.\nSecret, shown once: {secret}",
        {"id": made, "url": checked, "secret": secret},
        as_json,
    )


@webhooks.command("enable")
def enable(webhook: Id, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Send to a disabled webhook again; what was given up meanwhile is not sent by itself."""
    _set_status(webhook, "active", tenant, as_json)


@webhooks.command("disable")
def disable(webhook: Id, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Stop sending to a webhook and give up what waits for it."""
    _set_status(webhook, "disabled", tenant, as_json)


def _set_status(webhook: UUID, status: str, tenant: str, as_json: bool) -> None:
    async def run(connection: asyncpg.Connection) -> None:
        await store.update_endpoint(connection, await tenant_id(connection, tenant), webhook, status=status)

    as_operator(run)
    tell(f"Webhook {webhook} is {status}.", {"id": webhook, "status": status}, as_json)


@webhooks.command("rotate-secret")
def rotate_secret(
    webhook: Id,
    keep_hours: Annotated[float, typer.Option(min=0, max=720, help="How long the former secret signs too.")] = 24,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Give a webhook a new secret, printed once."""
    settings, secret = Settings(), new_secret()

    async def run(connection: asyncpg.Connection) -> object:
        owner = await tenant_id(connection, tenant)
        sealed = secret_box(settings).encrypt(owner, webhook, secret)
        return await store.rotate_secret(connection, owner, webhook, sealed, timedelta(hours=keep_hours))

    until = as_operator(run)
    tell(
        f"New secret, shown once: {secret}\nThe former one signs too until {until}.",
        {"id": webhook, "secret": secret, "previous_secret_until": until},
        as_json,
    )


@webhooks.command("delete")
def delete(webhook: Id, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Delete a webhook and the log of its deliveries."""

    async def run(connection: asyncpg.Connection) -> None:
        await store.delete_endpoint(connection, await tenant_id(connection, tenant), webhook)

    as_operator(run)
    tell(f"Webhook {webhook} is deleted.", {"id": webhook, "status": "deleted"}, as_json)


@webhooks.command("test")
def send_test(webhook: Id, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Send an event webhook.test to a webhook; a running server delivers it."""

    async def run(connection: asyncpg.Connection) -> UUID:
        return await store.send_test(connection, await tenant_id(connection, tenant), webhook)

    made = as_operator(run)
    tell(f"Delivery {made} is queued.", {"delivery_id": made}, as_json)


@webhooks.command("deliveries")
def deliveries(webhook: Id, tenant: TenantSlug = "default", limit: Limit = 50, as_json: AsJson = False) -> None:
    """The log of a webhook's deliveries."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        owner = await tenant_id(connection, tenant)
        if await store.endpoint(connection, owner, webhook) is None:
            raise VanillaError(
                "not_found", f"There is no webhook {webhook} in {tenant}.", hint="vanilla-saas webhooks list"
            )
        return await store.deliveries(connection, owner, webhook, None, first_page(limit))

    show(as_operator(run), as_json)


@webhooks.command("redeliver")
def redeliver(
    delivery: Annotated[UUID, typer.Argument(metavar="DELIVERY", help="Id of the delivery.")],
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Send an event again, under the same webhook-id."""

    async def run(connection: asyncpg.Connection) -> UUID:
        return await store.redeliver(connection, await tenant_id(connection, tenant), delivery)

    made = as_operator(run)
    tell(f"Delivery {made} is queued.", {"delivery_id": made}, as_json)


@webhooks.command("events")
def events(
    type: Annotated[str | None, typer.Option(help="Only events of this type.")] = None,
    tenant: TenantSlug = "default",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """What happened in a tenant, newest first."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        return await store.events(connection, await tenant_id(connection, tenant), type, first_page(limit))

    show(as_operator(run), as_json)
