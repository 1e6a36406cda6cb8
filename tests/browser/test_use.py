"""The console as a person uses it: keyboard, theme, menu, and the parts that change in place."""

from collections.abc import Awaitable, Callable

from playwright.async_api import expect

from tests.browser.conftest import Visitor
from tests.conftest import People
from tests.console.console_support import PASSWORD, set_password, super_admin

Visit = Callable[..., Awaitable[Visitor]]


async def _entered(
    visitor: Visit, people: People, role: str = "user", balance: int = 20_000, **options: int
) -> Visitor:
    person = await people.user(role, balance=balance)  # type: ignore[arg-type]
    await set_password(people, person)
    one = await visitor(**options)
    await one.sign_in("default", person.email, PASSWORD)
    return one


async def test_signing_in_needs_no_mouse(visitor: Visit, people: People) -> None:
    person = await people.user(balance=4_567)
    await set_password(people, person)
    one = await visitor()
    await one.visit("/wallet")
    await expect(one.page.locator("#email")).to_be_focused()
    await one.page.keyboard.type(person.email)
    await one.page.keyboard.press("Tab")
    await one.page.keyboard.type(PASSWORD)
    await one.page.keyboard.press("Enter")
    await expect(one.page.locator("h1")).to_have_text("Wallet")
    await expect(one.page.locator(".figure .big").first).to_have_text("4,567")
    await one.page.keyboard.press("Tab")
    await expect(one.page.locator(".skip")).to_be_focused()
    await one.page.keyboard.press("Enter")
    await expect(one.page.locator("#main")).to_be_focused()


async def test_a_given_password_is_changed_first(visitor: Visit, people: People) -> None:
    person = await people.user()
    await set_password(people, person, must_change=True)
    one = await visitor()
    await one.sign_in("default", person.email, PASSWORD)
    await expect(one.page.locator("h1")).to_have_text("Choose a new password")
    assert await one.violations() == []
    await one.picture("password-forced")
    await one.page.fill("#current", PASSWORD)
    await one.page.fill("#password", "another long password")
    await one.page.fill("#again", "another long password")
    await one.page.click("main button.primary")
    await expect(one.page.locator("h1")).to_have_text("Wallet")


async def test_a_wrong_password_is_said_accessibly(visitor: Visit, people: People) -> None:
    one = await visitor()
    await one.sign_in("default", "nobody@example.test", "wrong")
    await expect(one.page.get_by_role("alert")).to_contain_text("Tenant, email or password is wrong.")
    assert await one.violations() == []
    await one.picture("sign-in-refused")


async def test_the_theme_changes_at_once_and_stays(visitor: Visit, people: People) -> None:
    one = await _entered(visitor, people)
    background = "getComputedStyle(document.body).backgroundColor"
    await one.page.click(".side [value=light]")
    light = await one.page.evaluate(background)
    await one.page.click(".side [value=dark]")
    dark = await one.page.evaluate(background)
    assert light != dark
    await one.visit("/keys")
    assert await one.page.evaluate(background) == dark
    assert await one.page.get_attribute("html", "data-theme") == "dark"
    await one.page.click(".side [value=auto]")
    await one.page.emulate_media(color_scheme="light")
    assert await one.page.evaluate(background) == light
    await one.page.emulate_media(color_scheme="dark")
    assert await one.page.evaluate(background) == dark


async def test_a_narrow_window_has_its_navigation_in_a_menu(visitor: Visit, people: People) -> None:
    one = await _entered(visitor, people, width=390, height=844)
    await expect(one.page.locator(".side")).to_be_hidden()
    await one.page.click(".menu summary")
    await one.picture("menu")
    assert await one.violations() == []
    await one.page.keyboard.press("Escape")
    await expect(one.page.locator(".sheet")).to_be_hidden()
    await expect(one.page.locator(".menu summary")).to_be_focused()
    await one.page.click(".menu summary")
    await one.page.click(".sheet >> text=API keys")
    await expect(one.page.locator("h1")).to_have_text("API keys")


async def test_an_answer_streams_and_shows_what_it_cost(visitor: Visit, people: People) -> None:
    one = await _entered(visitor, people, balance=20_000)
    page = one.page
    await one.visit("/playground")
    await page.fill("#prompt", "Tell me about vanilla.")
    await page.fill("#max_tokens", "300")
    await expect(page.locator("#quote")).to_contain_text("up to 300")
    quoted = await page.inner_text("#quote strong")
    await page.click("#send")
    await expect(page.locator("#state")).to_have_text("succeeded")
    await expect(page.locator("#answer")).to_contain_text("vanilla")
    await expect(page.locator("#r-reserved")).to_have_text(quoted)
    charged = int((await page.inner_text("#r-charged_tokens")).replace(",", ""))
    await expect(page.locator("#balance")).to_have_text(f"{20_000 - charged:,}")
    assert await one.violations() == []
    await one.picture("playground-answered")
    await page.fill("#max_tokens", "8192")
    await page.fill("#prompt", "x" * 60_000)
    await page.click("#send")
    await expect(page.locator("#refusal")).to_contain_text("available")
    await one.picture("playground-refused")


async def test_an_adjustment_is_seen_before_it_is_made(visitor: Visit, people: People) -> None:
    one = await _entered(visitor, people, "admin", balance=20_000)
    page = one.page
    await page.fill("#amount", "30000")
    await page.select_option("#direction", "debit")
    await page.fill("#reason", "too much")
    await page.click("text=See before and after")
    await expect(page.locator("#adjust-preview [role=alert]")).to_contain_text("30,000 needed, 20,000 available")
    await page.fill("#amount", "1500")
    await page.click("text=See before and after")
    await expect(page.locator("#adjust-preview .name")).to_have_text("18,500")
    assert await one.violations() == []
    await one.picture("wallet-adjusting")
    await page.click("#adjust-preview button.primary")
    await expect(page.locator("main [role=status]").first).to_contain_text("The adjustment is in the ledger.")
    await expect(page.locator(".figure .big").first).to_have_text("18,500")
    await page.click("text=Verify chain")
    await expect(page.locator("#chain")).to_contain_text("verified: 4 entries")
    await one.picture("wallet-verified")


async def test_a_made_key_is_shown_once_with_a_button_to_copy(visitor: Visit, people: People) -> None:
    one = await _entered(visitor, people)
    page = one.page
    await one.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await one.visit("/keys")
    await page.click("text=Create a key")
    await page.fill("#name", "my program")
    await page.click("text=Create key")
    await expect(page.locator("#made-key")).to_be_visible()
    key = await page.input_value("#made-key")
    await page.click("[data-copy]")
    await expect(page.locator("[data-copy]")).to_contain_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == key
    assert await one.violations() == []
    await one.picture("keys-made")
    page.on("dialog", lambda dialog: dialog.accept())
    await one.visit("/keys")
    await page.locator("tr", has_text="my program").get_by_role("button").click()
    await expect(page.locator("main [role=status]")).to_contain_text("revoked")


async def test_a_super_admin_opens_a_tenant_and_leaves_it(visitor: Visit, people: People) -> None:
    tenant_id = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant_id)
    await super_admin(people)
    one = await visitor()
    page = one.page
    await one.sign_in("platform", "admin@localhost", PASSWORD)
    await one.visit(f"/tenants?q={slug}")
    await page.click("td summary")
    assert await one.violations() == []
    await one.picture("tenants-opening")
    await page.fill("td input", "ticket 42")
    await page.click("td button.primary")
    await expect(page.locator(".opened")).to_contain_text(slug.upper())
    await page.click("text=Add a user")
    await page.fill("#email", "first@example.test")
    await page.click("text=Add user")
    await expect(page.locator("#one-time-link")).to_be_visible()
    assert await one.violations() == []
    await one.picture("users-opened")
    await page.click("text=Leave tenant")
    await expect(page.locator("h1")).to_have_text("Tenants")
    await expect(page.locator(".opened")).to_have_count(0)
