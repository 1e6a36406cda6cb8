"""The page Backups: what was made, what stood its rehearsal, and what is wrong, for super admins, in both themes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from playwright.async_api import expect
from pydantic import SecretStr

from tests.browser.conftest import Visitor
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
    for theme in ("light", "dark"):
        root = await visitor(1440)
        await root.theme(theme)
        await root.sign_in("platform", "admin@localhost", PASSWORD)
        if theme == "light":
            await root.visit("/backups")
            await expect(root.page.get_by_text("No backups here")).to_be_visible()
            assert await root.violations() == []
            await scheduled_backup(where, test_settings)
            sealed = test_settings.model_copy(update={"backup_passphrase": SecretStr("four short words here")})
            made = await scheduled_backup(where, sealed)
            await scheduled_rehearsal(where, sealed)
        await root.visit("/backups")
        await expect(root.page.get_by_label("Last rehearsal").get_by_text("stood")).to_be_visible()
        rows = root.page.get_by_role("region", name="Table of backups").locator("tbody tr")
        # the server has no passphrase: it says so of the encrypted one
        await expect(rows).to_have_count(2)
        await expect(rows.nth(0)).to_contain_text("backup_locked")
        await expect(rows.nth(1)).to_contain_text("not encrypted")
        await expect(root.page.get_by_role("alert")).to_have_count(0)
        assert await root.violations() == []
        assert await root.overflow() == 0
        await root.picture(f"backups-{theme}-1440")
        (folder / made.path.name / MANIFEST).rename(folder / made.path.name / "away")
        with pytest.raises(BackupError):
            await scheduled_rehearsal(where, sealed, name=made.path.name)
        await root.visit("/backups")
        await expect(root.page.get_by_label("Last rehearsal").get_by_text("failed")).to_be_visible()
        await expect(root.page.get_by_role("alert").first).to_contain_text("did not stand its rehearsal")
        assert await root.violations() == []
        await root.picture(f"backups-failed-{theme}-1440")
        narrow = await visitor(390)
        await narrow.theme(theme)
        await narrow.sign_in("platform", "admin@localhost", PASSWORD)
        await narrow.visit("/backups")
        assert await narrow.overflow() == 0
        assert await narrow.violations() == []
        await narrow.picture(f"backups-{theme}-390")
        (folder / made.path.name / "away").rename(folder / made.path.name / MANIFEST)
        if theme == "light":
            await scheduled_rehearsal(where, sealed)


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
