"""People start workflows, watch them end, decide what they are asked and stop them; a worker runs beside the pages."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from playwright.async_api import expect

from tests.browser.conftest import LOOKS, Visitor
from tests.conftest import People, Person, serve, settings_for
from tests.console.console_support import PASSWORD, set_password, tenant_slug
from tests.workflows.conftest import desk
from tests.workflows.hands import Room, workflow
from vanilla_saas.app import create_app
from vanilla_saas.workflows import drafts

__all__ = ["desk"]

Visit = Callable[..., Awaitable[Visitor]]
HOSTILE = "</pre><script>document.title='taken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
async def api(desk: Room, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A console with a worker beside it."""
    home = tmp_path_factory.mktemp("home")
    async with serve(create_app(settings_for(desk.cluster, desk.name, home, run_worker=True))) as address:
        yield address


@pytest.fixture
def people(desk: Room) -> People:
    return desk.people


async def enter(visitor: Visit, people: People, person: Person, width: int = 1440) -> Visitor:
    await set_password(people, person)
    one = await visitor(width)
    await one.sign_in(await tenant_slug(people, person), person.email, PASSWORD)
    return one


async def begin(people: People, person: Person, template: str, slug: str, **parameters: Any) -> None:
    """A workflow of a template, published."""
    one, tenant = partial(nullcontext, people.operator), person.identity.tenant_id
    await drafts.begin(one, tenant, template, slug, parameters, user_id=person.identity.user_id)
    await drafts.publish(one, tenant, slug)


async def look(one: Visitor, name: str) -> None:
    """A picture in each theme, in which nothing may be inaccessible."""
    await one.page.wait_for_load_state("load")  # axe reads style sheets
    for _, theme in LOOKS[:2]:
        await one.page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        assert await one.violations() == []
        assert await one.overflow() <= 0
        await one.picture(f"{name}-{theme}")


async def ended(one: Visitor, status: str) -> None:
    await expect(one.page.locator("#live .figure .big").first).to_have_text(status, timeout=20_000)


async def test_a_template_is_started_from_its_form_and_seen_to_its_end(visitor: Visit, people: People) -> None:
    person = await people.user(balance=100_000)
    await begin(people, person, "map_and_merge", "ask", at_once=1)
    user = await enter(visitor, people, person)
    page = user.page
    await user.visit("/workflows/ask")
    await page.click("#start-title")
    await page.fill("textarea[name='field.question']", HOSTILE)
    await page.fill("textarea[name='field.texts']", "not JSON")
    await look(user, "workflow-start")
    await page.click("form[action$='/start'] button")
    await page.wait_for_selector(".problem >> text=Texts is not JSON")
    await page.fill("textarea[name='field.texts']", '["one", "two", "three"]')
    async with page.expect_navigation(url="**/runs/*"):
        await page.click("form[action$='/start'] button")
    await page.evaluate("window.kept = true")
    await ended(user, "Succeeded")
    assert await page.evaluate("window.kept") is True
    assert await page.locator("svg .node.is-succeeded").count() == 2
    await expect(page.locator("svg .badge").first).to_have_text("3/3")
    assert await page.locator("#poll").count() == 0
    await expect(page.locator("#more-acts")).to_contain_text("Run again from a node")
    await expect(page.locator("#acts button")).to_have_count(0)
    await page.click("#row-each a.button")
    await expect(page.locator("#step tbody tr")).to_have_count(3)
    await look(user, "run-of-a-map")
    await page.click("#step tbody a >> nth=1")
    await expect(page.locator("#step h2")).to_have_text("each, item 2")
    await page.click("nav[aria-label=Main] a[href='/runs']")
    await expect(page.locator("main tbody tr")).to_have_count(1)
    await look(user, "runs")
    await user.visit("/runs?status=failed")
    await expect(page.locator("main")).to_contain_text("No run is like that")
    assert "taken" not in await page.title()


async def test_a_draft_is_edited_and_approved_and_its_run_goes_on(visitor: Visit, people: People) -> None:
    person, admin = await people.user(balance=100_000), await people.user("admin")
    await begin(people, person, "draft_with_approval", "letter")
    user = await enter(visitor, people, person)
    await user.visit("/workflows/letter")
    await user.page.click("#start-title")
    await user.page.fill("textarea[name='field.task']", "A letter to <b>Ada</b>")
    async with user.page.expect_navigation(url="**/runs/*"):
        await user.page.click("form[action$='/start'] button")
    await user.page.wait_for_selector("svg .node.is-waiting")
    await look(user, "run-waits")
    assert await user.page.locator(".side .badge-count").count() == 0

    boss = await enter(visitor, people, admin)
    page = boss.page
    await expect(page.locator(".side .badge-count")).to_have_text("1 open")
    await page.click("nav[aria-label=Main] a[href='/approvals']")
    await expect(page.locator("main h2")).to_have_text("Draft: A letter to <b>Ada</b>")
    text = page.locator("textarea[name='field.text']")
    await text.fill("")
    await page.fill("textarea[name='comment']", "Shorter.")
    await text.evaluate("field => field.required = false")
    await page.click("button.primary")
    await page.wait_for_selector(".problem")
    await text.fill("Dear Ada,\n\nthank you.")
    await look(boss, "approvals")
    await page.click("button.primary")
    await expect(page.locator("main")).to_contain_text("It is approved.")
    await expect(page.locator("main")).to_contain_text("Nothing waits for you")

    await ended(user, "Succeeded")
    await expect(user.page.locator("#live")).to_contain_text("Dear Ada,\\n\\nthank you.")
    await expect(user.page.locator("#live")).to_contain_text("Shorter.")
    await look(user, "run-approved")


async def test_a_run_is_paused_resumed_told_a_signal_and_cancelled(visitor: Visit, people: People, desk: Room) -> None:
    person = await people.user()
    shape = workflow(
        "go=signal rest=wait after", "go>rest:received rest>after",
        go={"signal": "go.on", "schema": {"type": "object"}}, rest={"seconds": 3600},
    )  # fmt: skip
    run = await desk.start(await desk.publish(shape, person), person=person)
    user = await enter(visitor, people, person)
    page = user.page
    await user.visit(f"/runs/{run}")
    await page.wait_for_selector("svg .node.is-waiting")
    await page.click("text=Pause")
    await ended(user, "Paused")
    await look(user, "run-paused")
    await page.click("text=Resume")
    await ended(user, "Running")
    assert await page.input_value("#signal-name") == "go.on"
    await page.fill("#signal-payload", "{")
    await page.click("button:has-text('Send signal')")
    await page.wait_for_selector(".problem >> text=no JSON")
    await page.fill("#signal-payload", '{"who": "Ada"}')
    await page.click("button:has-text('Send signal')")
    await page.wait_for_selector("text=The signal is sent")
    await expect(page.locator("#row-go .pill")).to_have_text("succeeded", timeout=10_000)
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await page.click("text=Cancel run")
    await page.wait_for_selector("text=The run is cancelled.")
    await ended(user, "Cancelled")
    await expect(page.locator("#row-rest .pill")).to_have_text("stopped")
    await look(user, "run-cancelled")


async def test_a_gate_that_refuses_says_why_in_each_round(visitor: Visit, people: People, desk: Room) -> None:
    person = await people.user()
    shape = workflow(
        "write check=gate", "write>check", write={"value": f'"{HOSTILE}"'},
        check={"of": "steps.write.output", "check": "length", "unit": "words", "max": 1, "on_fail": "retry",
               "retry": {"node": "write", "times": 1}},
    )  # fmt: skip
    made = await desk.publish(shape, person)
    run = await desk.start(made, person=person)
    user = await enter(visitor, people, person)
    page = user.page
    await user.visit(f"/runs/{run}")
    await ended(user, "Failed")
    await expect(page.locator("#gates-title ~ *").first).to_be_visible()
    assert await page.locator(".findings .pill.bad").count() == 2
    assert await page.locator("svg .node.is-failed").count() == 1
    await page.click("#row-write a.button")
    await expect(page.locator("#step pre").first).to_contain_text("<script>")
    await look(user, "run-failed")
    await page.click("text=Restart")
    await page.wait_for_selector("text=The run goes on from there.")
    await ended(user, "Failed")
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", made)
    await user.visit(f"/workflows/{slug}")
    assert await page.locator("svg.bars rect.refused").count() == 1
    await look(user, "workflow-with-runs")
    assert await page.title() != "taken"


async def test_pages_of_runs_fit_a_telephone(visitor: Visit, people: People) -> None:
    person = await people.user(balance=100_000)
    await begin(people, person, "moderated_reply", "reply")
    user = await enter(visitor, people, person, 390)
    await user.visit("/workflows/reply")
    await user.page.click("#start-title")
    await user.page.fill("textarea[name='field.message']", "Hello there.")
    async with user.page.expect_navigation(url="**/runs/*"):
        await user.page.click("form[action$='/start'] button")
    await ended(user, "Succeeded")
    assert await user.page.locator("svg .node.is-skipped").count() == 1
    await look(user, "run-narrow")
    for path in ("/runs", "/approvals"):
        await user.visit(path)
        await look(user, f"{path[1:]}-narrow")
