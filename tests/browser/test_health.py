"""The page Health: green when all is well, else every finding with the command that mends it, in both themes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from playwright.async_api import expect
from pydantic import SecretStr

from tests.browser.conftest import LOOKS, Visitor
from tests.conftest import Cluster, People, migrated_database, settings_for
from tests.console.console_support import PASSWORD, super_admin
from vanilla_saas.settings import Settings

SECONDS = 60
"""A look compares passwords and reads the whole catalog; a busy machine takes its time."""
Visit = Callable[..., Awaitable[Visitor]]


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    """A database that only these tests spoil, owned by a login that is no superuser: nothing to find at first."""
    async with migrated_database(cluster) as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await connection.execute(f"create role {name} login nosuperuser")
        await connection.execute(f"grant vanilla_operator, vanilla_owner to {name}")
        await connection.close()
        yield name
        connection = await asyncpg.connect(cluster.url())
        await connection.execute(f"drop role {name}")
        await connection.close()


@pytest.fixture
def test_settings(cluster: Cluster, database_name: str, tmp_path: Path) -> Settings:
    settings = settings_for(cluster, database_name, tmp_path)
    return settings.model_copy(update={"database_url": SecretStr(cluster.url(database_name, database_name))})


@pytest.mark.parametrize(("width", "theme"), LOOKS)
async def test_health_shows_what_is_broken_and_is_green_when_it_is_mended(
    visitor: Visit, people: People, operator: asyncpg.Connection, theme: str, width: int
) -> None:
    await super_admin(people)
    root = await visitor(width)
    await root.theme(theme)
    await root.sign_in("platform", "admin@localhost", PASSWORD)
    await root.visit("/health")
    await expect(root.page.get_by_text("All is well.")).to_be_visible()
    assert await root.violations() == []
    assert await root.overflow() == 0
    await root.picture(f"health-green-{theme}-{width}")

    await operator.execute("grant execute on function reset_monthly_tokens(integer) to public")
    await operator.execute("alter policy app_select on users using (true)")
    await operator.execute("create publication leak for table levels")
    try:
        await root.page.get_by_role("link", name="Verify the books too").click()
        await expect(root.page.locator(".findings > li")).to_have_count(3, timeout=SECONDS * 1000)
        await expect(root.page.locator(".findings strong")).to_have_text(
            ["execute_to_public", "protection_drift", "publications"]
        )
        await expect(root.page.get_by_role("textbox", name="Mend").nth(1)).to_have_value(
            "vanilla-saas migrate --repair"
        )
        await expect(root.page.get_by_label("Errors").locator(".big")).to_have_text("2")
        await expect(root.page.get_by_label("Warnings").locator(".big")).to_have_text("1")
        assert await root.violations() == []
        assert await root.overflow() == 0
        await root.picture(f"health-broken-{theme}-{width}")
    finally:
        await operator.execute("drop publication leak")
        await operator.execute("revoke execute on function reset_monthly_tokens(integer) from public")
        await operator.execute("set role vanilla_owner; select vanilla.repair_protection('users'); reset role")
    await root.page.get_by_role("link", name="Look again").click()
    await expect(root.page.get_by_text("All is well.")).to_be_visible(timeout=SECONDS * 1000)
