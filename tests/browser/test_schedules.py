"""The page Schedules in every state that a job can have, and its buttons, in both themes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from playwright.async_api import expect

from tests.browser.conftest import LOOKS, Visitor
from tests.conftest import Cluster, People, migrated_database, settings_for
from tests.console.console_support import PASSWORD, super_admin
from vanilla_saas.settings import Settings

Visit = Callable[..., Awaitable[Visitor]]
STATES = """
update schedules set last_run_at = vanilla.clock(), last_duration_ms = 12, last_result = '{"wallets": 3}',
    enabled = true, next_run_at = vanilla.clock() + interval '25 s', failures = 0, last_error = null, held_since = null,
    requested_at = null
where tenant_id = vanilla.platform();
update schedules set enabled = false where name = 'webhook_deliveries';
update schedules set failures = 3, last_error = 'canceling statement due to lock timeout' where name = 'partitions';
update schedules set held_since = vanilla.clock(), next_run_at = vanilla.clock() + interval '1 day'
where name = 'retention';
update schedules set started_at = vanilla.clock(), progress = '{"wallets": 1200}', next_run_at = vanilla.clock()
where name = 'monthly_reset';
update schedules set next_run_at = vanilla.clock() - interval '1 s' where name = 'sign_ins'
"""


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    """A database whose jobs nothing runs."""
    async with migrated_database(cluster) as name:
        yield name


@pytest.fixture
def test_settings(cluster: Cluster, database_name: str, tmp_path: Path) -> Settings:
    return settings_for(cluster, database_name, tmp_path, run_schedules=False)


@pytest.mark.parametrize(("width", "theme"), LOOKS)
async def test_every_state_is_shown_and_the_buttons_act(
    visitor: Visit, people: People, operator: asyncpg.Connection, theme: str, width: int
) -> None:
    await operator.execute(STATES)
    await super_admin(people)
    root = await visitor(width)
    await root.theme(theme)
    await root.sign_in("platform", "admin@localhost", PASSWORD)
    await root.visit("/schedules")
    pills = root.page.locator("tbody .pill")
    await expect(pills).to_have_text(
        # in the order of names; metrics and workers have a period of ten seconds
        [
            *["waiting"] * 13,
            "due",
            "running",
            "failing",
            "waiting",
            "held",
            "due",
            "waiting",
            "paused",
            "due",
            "waiting",
        ]
    )
    await expect(root.page.get_by_text("canceling statement due to lock timeout")).to_be_visible()
    await expect(root.page.get_by_text("now: wallets: 1200")).to_be_visible()
    assert await root.violations() == []
    assert await root.overflow() == 0
    await root.picture(f"schedules-{theme}-{width}")
    await root.page.get_by_role("button", name="Resume webhook_deliveries").click()
    await expect(root.page.get_by_text("The job is resumed.")).to_be_visible()
    await root.page.get_by_role("button", name="Run holds now").click()
    await expect(root.page.get_by_text("The job is asked for.")).to_be_visible()
    assert await operator.fetchval("select requested_at is not null from schedules where name = 'holds'")
