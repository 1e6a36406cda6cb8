"""An admin looks after a user's wallet in the browser: grants, holds, exceptions, a statement."""

import csv
from collections.abc import Awaitable, Callable
from pathlib import Path

from playwright.async_api import expect

from tests.browser.conftest import Visitor
from tests.conftest import People, Person
from tests.console.console_support import PASSWORD, set_password

Visit = Callable[..., Awaitable[Visitor]]


async def _admin_of(visitor: Visit, people: People, balance: int) -> tuple[Visitor, Person]:
    admin, person = await people.user("admin"), await people.user(balance=balance)
    await set_password(people, admin)
    one = await visitor()
    await one.sign_in("default", admin.email, PASSWORD)
    await one.visit(f"/wallet/{person.identity.user_id}")
    return one, person


async def test_a_grant_is_given_and_voided_without_a_mouse(visitor: Visit, people: People) -> None:
    one, person = await _admin_of(visitor, people, balance=0)
    page = one.page
    await page.get_by_role("link", name="Grants").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator(".tabs [aria-current]")).to_have_text("Grants")
    await page.locator("#amount").focus()
    await page.keyboard.type("250")
    await page.keyboard.press("Tab")
    await page.keyboard.type("Trial")
    await page.keyboard.press("Tab")
    await page.keyboard.type("for a conference")
    await page.keyboard.press("Enter")
    await expect(page.locator("main [role=status]").first).to_contain_text("The grant is given.")
    assert (await people.wallet(person))["available_tokens"] == 250
    row = page.locator("tr", has_text="for a conference")
    await expect(row).to_contain_text("trial")
    await row.locator("summary").focus()
    await page.keyboard.press("Enter")
    assert await one.violations() == []
    await page.keyboard.press("Tab")
    await page.keyboard.type("cancelled")
    await page.keyboard.press("Enter")
    await expect(page.locator("main [role=status]").first).to_contain_text("The grant is voided.")
    await expect(page.locator("tr", has_text="voided: cancelled")).to_have_count(1)
    assert (await people.wallet(person))["available_tokens"] == 0


async def test_a_grant_that_ends_before_it_begins_is_refused_in_words(visitor: Visit, people: People) -> None:
    one, person = await _admin_of(visitor, people, balance=0)
    page = one.page
    await one.visit(f"/wallet/{person.identity.user_id}/grants")
    await page.fill("#amount", "5")
    await page.fill("#reason", "x")
    await page.click("text=Times and priority")
    await page.fill("#begins", "2090-01-02T00:00")
    await page.fill("#ends", "2090-01-01T00:00")
    await page.click("button:text-is('Give')")
    await expect(page.locator("#alerts [role=alert]")).to_contain_text("before the grant begins")
    assert await one.violations() == []
    await page.fill("#ends", "2090-01-03T00:00")
    await page.click("button:text-is('Give')")
    await expect(page.locator("tr .pill", has_text="scheduled")).to_have_count(1)


async def test_a_hold_is_extended_and_released(visitor: Visit, people: People) -> None:
    one, person = await _admin_of(visitor, people, balance=100)
    page = one.page
    entry = await people.operator.fetchval("select adjust_user_tokens($1, 60, 'reserve')", person.identity.user_id)
    before = await people.operator.fetchval(
        "select expires_at from user_token_holds where id::text = $1", entry["hold_id"]
    )
    await page.click(".tabs >> text=Holds")
    await page.click("td summary")
    assert await one.violations() == []
    await one.picture("holds-changing")
    await page.fill("[name=hours]", "48")
    await page.click("text=Extend")
    await expect(page.locator("main [role=status]").first).to_contain_text("lasts longer")
    after = await people.operator.fetchval(
        "select expires_at from user_token_holds where id::text = $1", entry["hold_id"]
    )
    assert 46 <= (after - before).total_seconds() / 3600 <= 48
    await page.click("td summary")
    await page.fill("td [name=reason]", "stuck")
    await page.click("text=Release 60 tokens")
    await expect(page.locator("main [role=status]").first).to_contain_text("released")
    assert (await people.wallet(person))["available_tokens"] == 100
    await page.select_option("[name=state]", "released")
    await page.click("button:text-is('Show')")
    await expect(page.locator("td .pill")).to_have_text(["released"])


async def test_exceptions_are_set_and_taken_back(visitor: Visit, people: People) -> None:
    one, person = await _admin_of(visitor, people, balance=0)
    page = one.page
    await page.click(".tabs >> text=Policy")
    await page.fill("#monthly_allocation", "777")
    await page.select_option("#enforcement_mode", "warn")
    await page.click("text=Save exceptions")
    await expect(page.locator("main [role=status]").first).to_contain_text("The exceptions are saved.")
    await expect(page.locator(".facts .pill")).to_have_count(2)
    await expect(page.locator(".facts")).to_contain_text("777")
    assert (await people.wallet(person))["enforcement_mode"] == "warn"
    await page.fill("#monthly_allocation", "")
    await page.select_option("#enforcement_mode", "")
    await page.click("text=Save exceptions")
    await expect(page.locator(".facts .pill")).to_have_count(0)
    assert (await people.wallet(person))["enforcement_mode"] == "hard"


async def test_a_statement_is_shown_for_a_period_and_downloaded(visitor: Visit, people: People, tmp_path: Path) -> None:
    one, _ = await _admin_of(visitor, people, balance=4_321)
    page = one.page
    await page.click(".tabs >> text=Statement")
    await expect(page.locator(".figure .big").last).to_have_text("4,321")
    async with page.expect_download() as started:
        await page.click("text=Download CSV")
    download = await started.value
    assert download.suggested_filename.startswith("statement-")
    await download.save_as(tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert rows[-1]["available_tokens"] == "4321"
    assert len(rows) == await page.locator("tbody tr").count()
    await page.fill("#since", "2020-01-01")
    await page.fill("#until", "2020-01-31")
    await page.click("button:text-is('Show')")
    await expect(page.locator(".empty")).to_contain_text("No entries in this period")
    assert await one.violations() == []


async def test_a_user_sees_the_own_wallet_and_may_change_nothing(visitor: Visit, people: People) -> None:
    person, other = await people.user(balance=10), await people.user(balance=99)
    await set_password(people, person)
    one = await visitor()
    await one.sign_in("default", person.email, PASSWORD)
    for part in ("grants", "holds", "policy", "statement"):
        await one.visit(f"/wallet/{person.identity.user_id}/{part}")
        await expect(one.page.locator("main form[method=post]")).to_have_count(0)
        assert await one.violations() == []
        await one.visit(f"/wallet/{other.identity.user_id}/{part}")
        await expect(one.page.locator("main")).to_contain_text("There is no such wallet in this tenant.")
