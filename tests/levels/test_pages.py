"""Pages of levels: one's plan, the terms with their forms, the price page."""

import aiohttp

from tests.conftest import People
from tests.console.console_support import look, signed_in, submit
from vanilla_saas.levels.money import money


def test_amounts_have_the_decimals_of_their_currency() -> None:
    assert [money(2900, "USD"), money(2950, "USD"), money(5, "EUR")] == ["29 USD", "29.50 USD", "0.05 EUR"]
    assert [money(1500, "JPY"), money(1500, "KWD"), money(123456789, "USD")] == [
        "1,500 JPY", "1.500 KWD", "1,234,567.89 USD",
    ]  # fmt: skip


async def test_a_user_sees_what_the_plan_allows_and_what_is_used(api: str, people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    await people.operator.fetchval("select consume_feature($1, 'document-analysis', 5)", person.identity.user_id)
    async with signed_in(api, people, person) as http:
        _, page, _ = await look(http, "/plan")
    assert "of 5 a day" in page.text
    assert "the limit is reached" in page.text
    assert "Basic allows it" in page.text


async def test_an_admin_sets_features_and_prices_in_the_console(api: str, people: People) -> None:
    tenant = await people.tenant()
    admin = await people.user("admin", tenant)
    level = await people.operator.fetchval("select id from levels where tenant_id = $1 and is_default", tenant)
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    async with signed_in(api, people, admin) as http:
        form = {"feature": "scan", "name": "Scan", "limit": "7", "period": "weekly", "enabled": "true"}
        status, _, headers = await submit(http, f"/levels/{level}/feature", **form)
        assert (status, headers["location"]) == (303, "/levels?notice=feature")
        price = {"cycle": "monthly", "currency": "eur", "amount": "12.50", "trial_days": "3", "trial_credits": "9"}
        await submit(http, f"/levels/{level}/price", **price)
        _, page, _ = await look(http, "/levels?notice=price")
        assert "7 a week" in page.text
        assert "12.50 EUR a month" in page.text
        for wrong in ({"amount": "12.505"}, {"currency": "XXX"}, {"cycle": "daily"}):
            status, text, _ = await submit(http, f"/levels/{level}/price", {"hx-request": "true"}, **price | wrong)
            assert status == 400, text
        status, _, _ = await submit(http, f"/levels/{level}/feature", {"hx-request": "true"}, feature="A b")
        assert status == 400
        await submit(http, f"/levels/{level}/feature/remove", feature="scan")
        _, page, _ = await look(http, "/levels")
        assert "7 a week" not in page.text
    async with aiohttp.ClientSession(api) as guest:
        _, page, _ = await look(guest, f"/pricing?tenant={slug}")
        assert "12.50 EUR" in page.text
        assert "3 days free, with 9 tokens" in page.text
        status, _, _ = await look(guest, "/pricing?tenant=nobody-here")
        assert status == 404
