"""From a wish to a page of Stripe's: the database says what is to be paid, then Stripe is asked, in no transaction."""

from typing import Any
from uuid import UUID

from fastapi import Request

from vanilla_saas.database.pool import Database
from vanilla_saas.payments import store
from vanilla_saas.payments.accounts import api_key
from vanilla_saas.payments.stripe_api import Stripe, connected, require_stripe
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.web import base_of

PAGE = "/billing"


def _back(request: Request) -> str:
    """The page to return to: as people reach it, else where this request came to, which the payer chose themselves."""
    return base_of(request) + PAGE


async def _customer(database: Database, stripe: Stripe, begun: dict[str, Any]) -> str:
    if begun["customer_id"]:
        return str(begun["customer_id"])
    made = await stripe.make_customer(begun["customer_key"], begun["tenant_id"], begun["user_id"], begun["email"])
    return await store.bind_customer(database, bytes.fromhex(begun["endpoint"]), UUID(begun["customer_key"]), made)


async def checkout(request: Request, caller: Caller, price_id: UUID, *, keep_method: bool) -> tuple[str, UUID | None]:
    """The address where the caller pays for a pack or a level, and the payment's id. Raises VanillaError."""
    require_stripe()
    settings, database = request.app.state.settings, request.app.state.database
    async with acting(request, caller) as connection:
        begun = await store.begin_checkout(connection, price_id)
    key = api_key(settings, await store.account(database, bytes.fromhex(begun["endpoint"])))
    async with connected(settings, key) as stripe:
        customer = await _customer(database, stripe, begun)
        url = await stripe.checkout(begun, customer, _back(request), keep_method=keep_method)
    return url, UUID(begun["payment_id"]) if begun["payment_id"] else None


async def portal(request: Request, caller: Caller) -> str:
    """The address where the caller changes cards, subscriptions and sees invoices. Raises VanillaError."""
    require_stripe()
    settings, database = request.app.state.settings, request.app.state.database
    async with acting(request, caller) as connection:
        begun = await store.begin_portal(connection)
    key = api_key(settings, await store.account(database, bytes.fromhex(begun["endpoint"])))
    async with connected(settings, key) as stripe:
        return await stripe.portal(await _customer(database, stripe, begun), _back(request))
