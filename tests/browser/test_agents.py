"""An agent is made, run and followed in a browser: its tree grows by itself, an admin agrees, it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from playwright.async_api import expect

from tests.browser.conftest import LOOKS, Visitor
from tests.conftest import Cluster, Person
from tests.console.console_support import PASSWORD, set_password, tenant_slug
from tests.orchestration.studio import Studio, agent, calls, says, studio

Visit = Callable[..., Awaitable[Visitor]]
HOSTILE = "</pre><script>document.title='taken'</script><img src=x onerror=alert(1)>"
ASKED = {"tool": "refund", "approval": {"approvers": ["role:admin"], "title": "Pay money back?"}}


@pytest.fixture(scope="module")
async def desk(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Studio]:
    async with studio(cluster, tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture
def api(desk: Studio) -> str:
    return desk.address


async def enter(visitor: Visit, desk: Studio, person: Person, width: int = 1440) -> Visitor:
    people = desk.shop.room.people
    await set_password(people, person)
    one = await visitor(width)
    await one.sign_in(await tenant_slug(people, person), person.email, PASSWORD)
    return one


async def look(one: Visitor, name: str) -> None:
    """A picture in each theme, wide and narrow, in which nothing may be inaccessible."""
    await one.page.wait_for_load_state("load")
    for width, theme in LOOKS:
        await one.page.set_viewport_size({"width": width, "height": 900})
        await one.page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        assert await one.violations() == []
        assert await one.overflow() <= 0
        await one.picture(f"{name}-{theme}-{width}")
    await one.page.set_viewport_size({"width": 1440, "height": 900})


async def test_an_agent_is_made_and_its_run_is_followed_to_its_end(visitor: Visit, desk: Studio) -> None:
    person = await desk.shop.person()
    await desk.save(
        agent(
            calls(("state_write", {"key": "plan", "value": ["look", HOSTILE], "version": 0})),
            calls(("artifact_save", {"name": "note.md", "media_type": "text/markdown", "content": HOSTILE})),
            says("Order 1001 arrived broken."),
            tools=["artifact_save", "state_write"],
            description="Writes down what happened.",
        ),
        "clerk",
    )
    await desk.save(
        agent(
            calls(("delegate_to_clerk", {"message": "What happened?"}), ("look_up", {"name": "Ada"})),
            calls(("refund", {"amount": 7})),
            says(f"7 dollars are on their way. {HOSTILE}"),
            delegates=["clerk"], tools=["look_up", ASKED], description="Pays money back.",
        ),
        "cashier",
    )  # fmt: skip
    user = await enter(visitor, desk, person)
    page = user.page
    await user.visit("/agents")
    await page.click("summary:has-text('Make an agent')")
    await page.fill("#slug", "mine")
    await page.fill("#definition", "instructions: You help.\nlimits: {turns: 0}\n")
    await page.click("button:has-text('Make agent')")
    await expect(page.locator("#alerts")).to_contain_text("limits.turns")
    await page.fill("#definition", "instructions: You help.\nmodel: sandbox-small\nhandoffs: [cashier]\n")
    async with page.expect_navigation(url="**/agents/mine*"):
        await page.click("button:has-text('Make agent')")
    await expect(page.locator("main")).to_contain_text("The agent is saved.")

    await user.visit("/agents/cashier")
    await look(user, "agent")
    await page.fill("#message", f"Order 1001 arrived broken {HOSTILE}")
    await page.fill("#tokens", "20000")
    async with page.expect_navigation(url="**/agent-runs/*"):
        await page.click("button:has-text('Run')")
    await page.evaluate("window.kept = true")
    state = page.locator("#live .figure .big").first
    await expect(state).to_have_text("Input required", timeout=20_000)
    await expect(page.locator("#live")).to_contain_text("note.md")
    await expect(page.locator("#shared-title")).to_be_visible()
    await look(user, "agent-run-waits")

    boss = await enter(visitor, desk, desk.shop.admin)
    await boss.visit("/approvals")
    await boss.page.click("button.primary")
    await expect(boss.page.locator("main")).to_contain_text("It is approved.")

    await expect(state).to_have_text("Completed", timeout=20_000)
    assert await page.evaluate("window.kept") is True
    await expect(page.locator("#acts button")).to_have_count(0)
    assert await page.locator("[data-events]").count() == 0
    await expect(page.locator("#live")).to_contain_text("7 dollars are on their way. </pre><script>")
    assert await page.locator(".tree .tree .node").count() == 1
    await look(user, "agent-run-ended")
    await user.visit("/agent-runs?state=completed")
    await expect(page.locator("main tbody tr")).to_have_count(1)
    await user.visit("/agents")
    await expect(page.locator("main tbody tr")).to_have_count(3)
    assert "taken" not in await page.title()


async def test_a_run_under_way_is_cancelled(visitor: Visit, desk: Studio) -> None:
    person = await desk.shop.person()
    slow = await desk.save(agent(says("Too late.", latency_ms=60_000)))
    run = await desk.start(person, slow)
    user = await enter(visitor, desk, person, 390)
    await user.visit(f"/agent-runs/{run}")
    await expect(user.page.locator("#live .figure .big").first).to_have_text("Working", timeout=20_000)
    user.page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await user.page.click("text=Cancel run")
    await user.page.wait_for_selector("text=The run is cancelled.")
    await expect(user.page.locator("#live .figure .big").first).to_have_text("Canceled", timeout=20_000)
    assert await user.violations() == []
