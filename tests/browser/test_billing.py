"""An admin puts packs on sale, a user buys, subscribes and sets an auto top-up in the browser."""

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Route

from tests.browser.conftest import LOOKS, Visitor
from tests.conftest import Cluster, People, settings_for
from tests.console.console_support import PASSWORD, set_password, tenant_slug
from tests.payments.support import API_KEY, WEBHOOK_SECRET, StripeServer, encoded, event, intent, signed, subscription
from vanilla_saas.settings import Settings


@pytest.fixture
async def stripe() -> AsyncIterator[StripeServer]:
    server = StripeServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def test_settings(cluster: Cluster, database_name: str, tmp_path: Path, stripe: StripeServer) -> Settings:
    return settings_for(cluster, database_name, tmp_path, stripe_api_base=stripe.address)


async def test_packs_are_put_on_sale_bought_and_topped_up_by_hand(
    visitor: Callable[..., Awaitable[Visitor]], people: People, stripe: StripeServer
) -> None:
    tenant = await people.tenant()
    seller, buyer = await people.user("admin", tenant), await people.user(tenant_id=tenant)
    for person in (seller, buyer):
        await set_password(people, person)
    slug = await tenant_slug(people, seller)
    admin = await visitor()
    page = admin.page
    await admin.sign_in(slug, seller.email, PASSWORD)
    await page.click("nav[aria-label=Main] a[href='/payments']")
    await page.fill("#key", API_KEY)
    await page.fill("#webhook_secret", WEBHOOK_SECRET)
    await page.click("text=Save account")
    await page.wait_for_selector("text=The account is saved")
    endpoint = await page.input_value("#webhook-address")
    for kind, name, amount in (("pack", "Small pack", "9"), ("level", "Premium", "29")):
        if not await page.is_visible("#price_id"):
            await page.click("text=Say what a price is worth")
        await page.fill("#price_id", f"price_{kind}")
        await page.fill("#name", name)
        await page.fill("#amount", amount)
        await page.select_option("#kind", kind)
        if kind == "pack":
            await page.fill("#tokens", "1000")
        else:
            await page.select_option("#level_id", label="Premium")
        await page.click("text=Save price")
        await page.wait_for_selector(f"td >> text={name}")

    user = await visitor()
    page = user.page
    await user.sign_in(slug, buyer.email, PASSWORD)
    await page.click("nav[aria-label=Main] a[href='/billing']")
    reached: list[str] = []

    async def at_stripe(route: Route) -> None:
        reached.append(route.request.url)
        await route.fulfill(body="<title>Stripe</title>", content_type="text/html")

    await user.context.route("https://checkout.stripe.test/**", at_stripe)
    await page.check("input[name=keep]")
    await page.click("text=Pay at Stripe")
    await page.wait_for_url("https://checkout.stripe.test/**")
    form = stripe.sent("checkout/sessions")[-1]
    paid = intent(
        form["customer"],
        form["metadata[vanilla_payment]"],
        f"pi_{uuid.uuid4().hex}",
        setup_future_usage="off_session",
    )
    begun = subscription(form["customer"], "price_level", subscription_id=f"sub_{uuid.uuid4().hex}")
    for told in (
        event("payment_intent.succeeded", paid, at=time.time()),
        event("customer.subscription.created", begun, at=time.time()),
    ):
        body = encoded(told)
        answer = await page.request.post(endpoint, data=body, headers={"stripe-signature": signed(body)})
        assert answer.status == 200, await answer.text()
    await user.visit("/billing?notice=paid")
    await page.fill("#threshold", "500")
    await page.fill("#ceiling", "20")
    await page.check("input[name=enabled]")
    await page.click("text=Save auto top-up")
    await page.wait_for_selector("text=0 USD of 20 USD this month")
    for one, path in ((user, "/billing"), (admin, "/payments")):
        for width, theme in LOOKS:
            await one.theme(theme)
            await one.page.set_viewport_size({"width": width, "height": 900})
            await one.visit(path)
            assert await one.violations() == []
            assert await one.overflow() == 0
            await one.picture(f"{path[1:]}-{width}-{theme}")
    # a price that is wrong is refused where it was typed
    page = admin.page
    await page.click("text=Say what a price is worth")
    await page.fill("#price_id", "price_more")
    await page.fill("#name", "No tokens")
    await page.fill("#amount", "9")
    await page.click("text=Save price")
    await page.wait_for_selector("#alerts >> text=A pack has tokens")


async def test_without_scripts_a_page_leads_to_stripe(
    visitor: Callable[..., Awaitable[Visitor]], people: People, stripe: StripeServer
) -> None:
    tenant = await people.tenant()
    buyer = await people.user("admin", tenant)
    await set_password(people, buyer)
    user = await visitor(java_script_enabled=False)
    page = user.page
    await user.sign_in(await tenant_slug(people, buyer), buyer.email, PASSWORD)
    await user.visit("/payments")
    await page.fill("#key", API_KEY)
    await page.click("text=Save account")
    await user.visit("/billing")
    await page.click("text=Cards, invoices, subscription")
    assert (await page.get_attribute("text=Go on to Stripe", "href") or "").startswith("https://checkout.stripe.test/")
