"""An admin erases a person in the browser, after a look at what goes and what stays; a super admin closes a tenant."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest
from playwright.async_api import expect

from tests.browser.conftest import Visitor
from tests.conftest import People
from tests.console.console_support import PASSWORD, set_password, super_admin, tenant_slug

Visit = Callable[..., Awaitable[Visitor]]


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_a_person_is_exported_and_erased_by_hand(visitor: Visit, people: People, theme: str) -> None:
    tenant = await people.tenant()
    admin, person = await people.user("admin", tenant), await people.user(tenant_id=tenant, balance=1_234)
    await set_password(people, admin)
    one = await visitor()
    page = one.page
    await one.theme(theme)
    await one.sign_in(await tenant_slug(people, admin), admin.email, PASSWORD)
    await one.visit("/users")
    row = page.locator("tr", has_text=person.email)
    await row.locator("summary").click()
    async with page.expect_download() as started:
        await row.get_by_role("link", name="Export").click()
    document = orjson.loads(Path(await (await started.value).path()).read_bytes())
    assert document["user"]["email"] == person.email
    await row.get_by_label("Why this person is erased").fill("asked for")
    await row.get_by_role("button", name="Erase").click()
    await expect(page.locator("form.confirm")).to_contain_text("closed, 1,234 tokens voided")
    assert await one.violations() == []
    assert await one.overflow() <= 0
    await one.picture(f"users-erase-{theme}")
    await page.get_by_role("button", name="Erase for good").click()
    await expect(page.get_by_text("The person is erased.")).to_be_visible()
    await expect(page.get_by_text(person.email)).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_a_closed_tenant_shows_the_date_of_its_end(visitor: Visit, people: People, theme: str) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    await super_admin(people)
    one = await visitor()
    page = one.page
    await one.theme(theme)
    await one.sign_in("platform", "admin@localhost", PASSWORD)
    await one.visit(f"/tenants?q={slug}")
    await page.click("td summary")
    await page.get_by_label("Why you enter or close it").fill("they left")
    await page.get_by_label("Days until it is erased, once closed").fill("10")
    assert await one.violations() == []
    await one.picture(f"tenants-closing-{theme}")
    await page.get_by_role("button", name="Close", exact=True).click()
    await expect(page.get_by_text("The tenant is closed")).to_be_visible()
    await one.visit(f"/tenants?q={slug}")
    await expect(page.locator("td").filter(has_text="will be erased on")).to_be_visible()
    assert await one.violations() == []
    assert await one.overflow() <= 0
    await one.picture(f"tenants-closed-{theme}")
