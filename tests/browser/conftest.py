"""A real browser against the running console; whatever it complains about fails the test."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright

from tests.conftest import LONG

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
PICTURES = os.environ.get("VANILLA_SAAS_PICTURES")
"""A folder in which the tests leave a picture of every page."""
LOOKS = [(1440, "light"), (390, "dark")]
"""Widths and themes in which every page is looked at; with VANILLA_SAAS_LONG=1 each width in each theme."""
if LONG:
    LOOKS += [(1440, "dark"), (390, "light")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not CHROMIUM.exists():
        for item in items:
            if "/browser/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=f"{CHROMIUM} is not installed"))


@dataclass
class Visitor:
    """A browser context and everything it complained about."""

    context: BrowserContext
    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)

    async def visit(self, path: str) -> None:
        answer = await self.page.goto(self.address + path, wait_until="load")
        assert answer is None or answer.status < 500, f"{path} failed with {answer.status}"

    async def sign_in(self, tenant: str, email: str, password: str) -> None:
        await self.visit("/sign-in")
        await self.page.fill("#tenant", tenant)
        await self.page.fill("#email", email)
        await self.page.fill("#password", password)
        async with self.page.expect_navigation(wait_until="load"):
            await self.page.click("main button.primary")

    async def theme(self, name: str) -> None:
        await self.context.add_cookies([{"name": "vs_theme", "value": name, "url": self.address}])

    async def violations(self) -> list[str]:
        """What axe-core finds on the page, one line for each rule and place."""
        # a form that waits for its answer is dimmed
        await self.page.wait_for_selector(".htmx-request", state="detached")
        # evaluated, not added as a script: the page's policy stays in force
        await self.page.evaluate(AXE)
        found: dict[str, Any] = await self.page.evaluate("axe.run({resultTypes: ['violations'], selectors: false})")
        return [
            f"{rule['id']}: {node['html'][:120]} {(node['any'] or node['all'] or [{}])[0].get('message', '')}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    async def picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)

    async def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        wider: int = await self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return wider


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        await started.close()


@pytest.fixture
async def visitor(browser: Browser, api: str) -> AsyncIterator[Callable[..., Awaitable[Visitor]]]:
    """Makes visitors; at the end none of them may have seen a console error or a policy violation."""
    made: list[Visitor] = []
    async with AsyncExitStack() as stack:

        async def make(width: int = 1440, height: int = 900, **options: Any) -> Visitor:
            context = await browser.new_context(viewport={"width": width, "height": height}, **options)
            stack.push_async_callback(context.close)
            one = Visitor(context, await context.new_page(), api)

            def heard(message: ConsoleMessage) -> None:
                # a refused form is an answer like others, but the browser writes a line about its status
                if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                    one.complaints.append(f"{one.page.url}: {message.text}")

            def lost(request: Request) -> None:
                if request.failure and "ERR_ABORTED" not in request.failure:
                    one.complaints.append(f"{request.url}: {request.failure}")

            one.page.on("console", heard)
            one.page.on("pageerror", lambda error: one.complaints.append(f"{one.page.url}: {error}"))
            one.page.on("requestfailed", lost)
            made.append(one)
            return one

        yield make
    assert [line for one in made for line in one.complaints] == []
