"""An admin adds a webhook in the browser and sees what arrives."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.browser.conftest import Visitor
from tests.conftest import Cluster, People, settings_for
from tests.console.console_support import PASSWORD, set_password, tenant_slug
from tests.operations.webhook_support import Hooks, Receiver, receiving
from tests.processes import eventually
from vanilla_saas.settings import Settings


@pytest.fixture
def test_settings(cluster: Cluster, database_name: str, tmp_path: Path) -> Settings:
    return settings_for(cluster, database_name, tmp_path, webhooks_to_private=True)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started


async def test_a_webhook_is_added_tested_rotated_disabled_and_deleted_by_hand(
    visitor: Callable[..., Awaitable[Visitor]], people: People, receiver: Receiver
) -> None:
    person = await people.user("admin", await people.tenant())
    await set_password(people, person)
    admin = await visitor()
    page = admin.page
    await admin.sign_in(await tenant_slug(people, person), person.email, PASSWORD)
    await page.click("nav[aria-label=Main] a[href='/webhooks']")
    await page.fill("#url", receiver.url)
    await page.uncheck("input[value='*']")
    await page.check("input[value='token.granted']")
    await page.click("text=Add webhook >> nth=-1")
    secret = await page.input_value("#signing-secret")
    await admin.picture("webhook-secret")
    await page.click("text=I have it")
    await page.click("text=Send test event")
    await page.wait_for_selector("text=webhook.test")
    await eventually(lambda: _seen(receiver, 1))
    receiver.requests[0].verify(secret)

    async def delivered() -> bool:
        await page.reload()
        return await page.locator(".actions .pill.delivered").count() == 1

    await eventually(delivered)
    await page.click("text=Send again")
    await eventually(lambda: _seen(receiver, 2))
    assert receiver.requests[0].id == receiver.requests[1].id
    await page.click("p.crumb >> text=Webhook >> nth=-1")
    await page.click("text=New secret")
    fresh = await page.input_value("#signing-secret")
    assert fresh != secret
    page.on("dialog", lambda dialog: dialog.accept())
    await page.click("button:text-is('Disable')")
    await page.wait_for_selector("text=This webhook is disabled: by an admin.")
    await page.click("button:text-is('Activate')")
    await page.wait_for_selector("text=Send test event")
    await page.click("button:text-is('Delete')")
    await page.wait_for_selector("text=The webhook is deleted.")
    hooks = Hooks(people.operator)
    assert (
        await hooks.operator.fetchval(
            "select count(*) from webhook_endpoints where tenant_id = $1", person.identity.tenant_id
        )
        == 0
    )


async def _seen(receiver: Receiver, count: int) -> bool:
    return len(receiver.requests) == count
