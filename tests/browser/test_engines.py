"""An admin deploys a workflow and lets users run it, promotes the next version, and a user runs it in the browser."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial

from tests.browser.conftest import Visitor
from tests.conftest import People
from tests.console.console_support import PASSWORD, set_password, tenant_slug
from vanilla_saas.workflows import drafts, store

FLOW = {
    "name": "Greet",
    "description": "Says hello to somebody.",
    "input": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "title": "Whom", "minLength": 1},
            "tone": {"type": "string", "enum": ["kind", "short"], "default": "kind"},
        },
        "required": ["name"],
    },
    "nodes": [{"id": "greet", "kind": "transform", "value": "'Hello ' + input.name"}],
    "output": "steps.greet.output",
}


async def test_an_engine_is_deployed_permitted_promoted_and_run(
    visitor: Callable[..., Awaitable[Visitor]], people: People
) -> None:
    tenant = await people.tenant()
    admin, user = await people.user("admin", tenant), await people.user(tenant_id=tenant)
    for one in (admin, user):
        await set_password(people, one)
    await store.save(people.operator, tenant, "greet", FLOW, user_id=admin.identity.user_id)
    await drafts.publish(partial(nullcontext, people.operator), tenant, "greet")
    boss = await visitor()
    page = boss.page
    await boss.sign_in(await tenant_slug(people, admin), admin.email, PASSWORD)
    await page.click("nav[aria-label=Main] a[href='/engines']")
    await page.wait_for_selector("text=No engines yet")
    await boss.picture("engines-empty")
    await page.fill("#slug", "greet")
    await page.click("text=Deploy >> nth=-1")
    await page.wait_for_selector("text=The version is deployed.")
    await page.select_option("#default-access", "execute")
    await page.click("section[aria-labelledby=access-title] form button >> nth=0")
    await page.wait_for_selector("text=It is set who may run it.")
    await store.save(people.operator, tenant, "greet", FLOW | {"description": "Says it."})
    await drafts.publish(partial(nullcontext, people.operator), tenant, "greet")
    await page.click("text=All engines")
    await page.click("summary:has-text('Deploy a workflow')")
    await page.fill("#slug", "greet")
    await page.click("button:has-text('Deploy')")
    await page.wait_for_selector("text=The version is deployed.")
    await page.select_option("#promote-alias", "canary")
    await page.fill("#promote-weight", "100")
    await page.click("button:has-text('Promote')")
    await page.wait_for_selector("text=canary 100 %")
    await page.select_option("#target", "user")
    await page.fill("#who", user.email)
    await page.click("button:has-text('Choose')")
    await page.wait_for_selector("text=The engine is chosen.")
    await boss.picture("engine-admin")

    runner = await visitor()
    await runner.sign_in(await tenant_slug(people, user), user.email, PASSWORD)
    await runner.page.click("nav[aria-label=Main] a[href='/engines']")
    await runner.picture("engines-user")
    await runner.page.click("main a[href='/engines/greet']")
    await runner.page.fill("#run-1-field-name", "Ada")
    await runner.picture("engine-user")
    assert await runner.page.locator("text=Who may run it").count() == 0
    assert await runner.violations() == []
    await runner.page.click("button:has-text('Run')")
    await runner.page.wait_for_url("**/runs/*")

    await page.click("button:has-text('End the canary')")
    await page.wait_for_selector("text=The canary is over.")
    await page.wait_for_selector("section[aria-labelledby=report-title] td")
    assert await boss.violations() == []
