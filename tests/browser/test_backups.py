"""The page Backups: what was made, what stood its rehearsal, and what is wrong, for super admins, in both themes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from playwright.async_api import Page, expect
from pydantic import SecretStr

from tests.browser.conftest import LOOKS, Visitor
from tests.conftest import Cluster, People, migrated_database, settings_for
from tests.console.console_support import PASSWORD, super_admin
from vanilla_saas.database.connection import Addresses
from vanilla_saas.operations.backup_errors import BackupError
from vanilla_saas.operations.backup_manifest import MANIFEST
from vanilla_saas.operations.rehearsal import scheduled_backup, scheduled_rehearsal
from vanilla_saas.settings import Settings

Visit = Callable[..., Awaitable[Visitor]]


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster) as name:
        yield name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def test_settings(cluster: Cluster, database_name: str, home: Path) -> Settings:
    settings = settings_for(cluster, database_name, home)
    return settings.model_copy(update={"database_url": SecretStr(cluster.url(database=database_name))})


async def test_backups_are_shown_with_their_rehearsal_and_what_is_wrong(
    visitor: Visit,
    people: People,
    operator: asyncpg.Connection,
    cluster: Cluster,
    database_name: str,
    test_settings: Settings,
) -> None:
    await super_admin(people)
    where = Addresses(cluster.url(database=database_name), "", "")
    folder = test_settings.backup_directory()
    viewers = {}
    for width, theme in LOOKS:
        viewers[f"{theme}-{width}"] = viewer = await visitor(width)
        await viewer.theme(theme)
        await viewer.sign_in("platform", "admin@localhost", PASSWORD)

    async def look(state: str, check: Callable[[Page], Awaitable[None]]) -> None:
        for name, viewer in viewers.items():
            await viewer.visit("/backups")
            await check(viewer.page)
            assert await viewer.violations() == []
            assert await viewer.overflow() == 0
            await viewer.picture(f"backups-{state}-{name}")

    async def none_yet(page: Page) -> None:
        await expect(page.get_by_text("No backups here")).to_be_visible()

    async def stood(page: Page) -> None:
        await expect(page.get_by_label("Last rehearsal").get_by_text("stood")).to_be_visible()
        rows = page.get_by_role("region", name="Table of backups").locator("tbody tr")
        # the server has no passphrase: it says so of the encrypted one
        await expect(rows).to_have_count(2)
        await expect(rows.nth(0)).to_contain_text("backup_locked")
        await expect(rows.nth(1)).to_contain_text("not encrypted")
        await expect(page.get_by_role("alert")).to_have_count(0)

    async def failed(page: Page) -> None:
        await expect(page.get_by_label("Last rehearsal").get_by_text("failed")).to_be_visible()
        await expect(page.get_by_role("alert").first).to_contain_text("did not stand its rehearsal")

    await look("none", none_yet)
    await scheduled_backup(where, test_settings)
    sealed = test_settings.model_copy(update={"backup_passphrase": SecretStr("four short words here")})
    made = await scheduled_backup(where, sealed)
    await scheduled_rehearsal(where, sealed)
    await look("stood", stood)
    (folder / made.path.name / MANIFEST).unlink()
    with pytest.raises(BackupError):
        await scheduled_rehearsal(where, sealed, name=made.path.name)
    await look("failed", failed)


async def test_an_admin_of_a_tenant_does_not_see_backups(visitor: Visit, people: People) -> None:
    from vanilla_saas.tenancy.passwords import HASHER

    admin = await people.user("admin")
    await people.operator.execute(
        "update users set password_hash = $1 where id = $2", HASHER.hash(PASSWORD), admin.identity.user_id
    )
    page = await visitor(1440)
    await page.sign_in("default", admin.email, PASSWORD)
    await page.visit("/backups")
    await expect(page.page.get_by_text("for super admins")).to_be_visible()
    await expect(page.page.get_by_role("link", name="Backups")).to_have_count(0)
