"""A user begins a workflow from a template, breaks it, mends it and publishes it in the browser."""

from collections.abc import Awaitable, Callable

from tests.browser.conftest import Visitor
from tests.conftest import People
from tests.console.console_support import PASSWORD, set_password, tenant_slug


async def test_a_workflow_is_begun_edited_published_and_shared(
    visitor: Callable[..., Awaitable[Visitor]], people: People
) -> None:
    tenant = await people.tenant()
    person, other = await people.user(tenant_id=tenant), await people.user(tenant_id=tenant)
    for one in (person, other):
        await set_password(people, one)
    user = await visitor()
    page = user.page
    await user.sign_in(await tenant_slug(people, person), person.email, PASSWORD)
    await page.click("nav[aria-label=Main] a[href='/workflows']")
    await user.picture("workflows-empty")
    await page.select_option("#template", "summarise_and_check")
    await page.fill("#slug", "digest")
    await page.click("text=Make workflow")
    await page.wait_for_selector("svg.graph .node")
    assert await page.locator("svg.graph .node").count() >= 2
    text = await page.input_value("#definition")

    await page.fill("#definition", text.replace("kind: llm", "kind: magic", 1))
    await page.click("text=Save draft")
    await page.wait_for_selector("text=What is to be done before it can be published")
    await user.picture("workflow-problems")
    await page.click("text=Publish the saved draft")
    await page.wait_for_selector("text=The workflow does not validate")

    await page.fill("#definition", text)
    await page.click("text=Save draft")
    await page.wait_for_selector("svg.graph .node")
    await page.click("text=Publish the saved draft")
    await page.wait_for_selector("text=the same as version 1")
    await page.click("text=Share with the tenant")
    await page.wait_for_selector("text=Make private")
    await user.picture("workflow")

    await page.click("text=Add a schedule")
    await page.fill("#schedule-new-name", "nightly")
    await page.fill("#schedule-new-cron", "99 2 * * *")
    await page.fill("#schedule-new-input", '{"text": "A long story."}')
    await page.click("text=Add schedule")
    await page.wait_for_selector(".problem >> text=is not a schedule")
    await page.fill("#schedule-new-cron", "30 2 * * *")
    await page.click("text=Add schedule")
    await page.wait_for_selector("text=The schedule is set.")
    assert await page.locator("#schedules-title").count() == 1
    await page.click("text=Change nightly")
    await user.picture("workflow-schedules")
    assert await page.input_value("#schedule-1-cron") == "30 2 * * *"

    reader = await visitor()
    await reader.sign_in(await tenant_slug(people, other), other.email, PASSWORD)
    await reader.page.goto(page.url.partition("?")[0])
    await reader.page.wait_for_selector("svg.graph .node")
    assert await reader.page.locator("#definition").count() == 0
    assert await reader.page.locator("text=Retire").count() == 0
