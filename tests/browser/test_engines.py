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


PARAMETERS = "tone: {type: string, enum: [kind, short], default: kind}"


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
    # what is refused stands at its field, which has the focus and is told to screen readers
    await page.fill("#parameters", "tone: {type: string, default: 5}\nodd: {type: integer}")
    await page.click("button:has-text('Deploy')")
    told = await page.text_content("#parameters-problem")
    assert told == (
        "odd: It is no property of the flow's input. tone: Its default does not fit. It is of the type string."
    )
    field = page.locator("#parameters:focus")
    assert await field.get_attribute("aria-invalid") == "true"
    assert await field.get_attribute("aria-describedby") == "parameters-hint parameters-problem"
    assert await page.text_content("#alerts") == ""
    assert await boss.violations() == []
    await boss.picture("engine-field")
    await page.fill("#parameters", PARAMETERS)
    await page.fill("#at-once", "1")
    await page.click("button:has-text('Deploy')")
    await page.wait_for_selector("#at-once-problem")
    assert await page.locator("#parameters-problem").count() == 0
    assert await page.locator("#parameters").get_attribute("aria-describedby") == "parameters-hint"
    await page.fill("#at-once", "4")
    await page.click("button:has-text('Deploy')")
    await page.wait_for_selector("text=The version is deployed.")
    await page.select_option("#default-access", "execute")
    await page.click("section[aria-labelledby=access-title] form button >> nth=0")
    await page.wait_for_selector("text=It is set who may run it.")
    await store.save(people.operator, tenant, "greet", FLOW | {"description": "Says it."})
    await drafts.publish(partial(nullcontext, people.operator), tenant, "greet")
    await page.reload()
    await page.click("summary:has-text('Deploy a further version')")
    assert await page.input_value("#at-once") == "4"
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
    await _copy_and_key(runner)
    await runner.page.click("nav[aria-label=Main] a[href='/engines']")
    await runner.page.click("main a[href='/engines/greet'] >> nth=0")
    await runner.page.fill("#run-1-field-name", "Ada")
    await runner.page.click("button:text-is('Run')")
    await runner.page.wait_for_url("**/runs/*")
    await runner.page.wait_for_selector("section[aria-labelledby=engine-title] >> text=canary")
    await runner.picture("engine-run")
    assert await runner.violations() == []

    await page.click("button:has-text('End the canary')")
    await page.wait_for_selector("text=The canary is over.")
    await page.wait_for_selector("section[aria-labelledby=report-title] td")
    assert await boss.violations() == []
    await page.click("text=What it says >> nth=0")
    await page.wait_for_selector("#version h2")
    await page.click("text=Which version, and why")
    await page.fill("#user", user.email)
    await page.click("button:has-text('Explain')")
    await page.wait_for_selector(f"text={user.email} runs greet, version 1")
    await boss.picture("engine-choice")
    assert await boss.violations() == []


async def _copy_and_key(runner: Visitor) -> None:
    """With the keyboard alone."""
    page = runner.page
    await page.focus("summary:has-text('Make a copy')")
    await page.keyboard.press("Enter")
    await page.focus("#copy")
    await page.keyboard.type("brief")
    await page.keyboard.press("Tab")
    await page.keyboard.type("short")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Space")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("text=The copy is made.")
    assert await page.input_value("[name='field.tone'] >> nth=0") == "short"
    await runner.picture("engine-copy")
    assert await runner.violations() == []
    await page.click("a[href='/engines/greet']")
    await page.wait_for_selector("section[aria-labelledby=copies-title] >> text=default")
    await page.click("summary:has-text('Make a key')")
    await page.fill("#key-name", "the site")
    await page.select_option("#key-ref", "my/brief")
    await page.click("button:has-text('Make key')")
    assert (await page.input_value("#made-key")).startswith("vsk_")
    assert await runner.violations() == []
    await page.click("text=I have it")
    await page.wait_for_selector("section[aria-labelledby=keys-title] td >> text=my/brief")
