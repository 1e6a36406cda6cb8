"""A person is erased and exported, and a tenant closed with a grace, in the console."""

import re

from tests.conftest import People
from tests.console.console_support import look, signed_in, submit, super_admin

FRAGMENT = {"hx-request": "true"}


async def test_an_admin_is_shown_what_goes_and_what_stays_before_a_person_is_erased(api: str, people: People) -> None:
    tenant = await people.tenant()
    admin, person = await people.user("admin", tenant), await people.user(tenant_id=tenant, balance=1_234)
    busy = await people.user(tenant_id=tenant, balance=100)
    await people.operator.fetchval("select adjust_user_tokens($1, 10, 'reserve')", busy.identity.user_id)
    path = f"/users/{person.identity.user_id}/erase"
    async with signed_in(api, people, admin) as http:
        _, page, _ = await look(http, "/users")
        forms = [form.get("action") for form in page.all("form")]
        assert f"{path}/preview" in forms
        assert f"/users/{admin.identity.user_id}/erase/preview" not in forms, "nobody erases themselves"
        status, text, _ = await submit(http, f"{path}/preview", FRAGMENT, reason="asked for")
        assert status == 200
        for words in (
            person.email,
            "closed, 1,234 tokens voided",
            "1 API key",
            "0 sign-ins",
            "ledger with its reasons",
        ):
            assert words in text
        _, text, _ = await submit(http, f"/users/{busy.identity.user_id}/erase/preview", reason="asked for")
        assert "pays for the 1 call under way" in text
        # shown, not done
        assert (await people.wallet(person))["available_tokens"] == 1_234
        assert await people.operator.fetchval("select status from users where email = $1", person.email) == "active"
        status, text, _ = await submit(http, f"{path}/preview", FRAGMENT, reason=" ")
        assert (status, "a reason is needed" in text.lower()) == (400, True)
        status, _, headers = await submit(http, path, FRAGMENT, reason="asked for")
        assert (status, headers["hx-redirect"]) == (200, "/users?notice=erased")
        _, page, _ = await look(http, "/users?notice=erased")
        assert "The person is erased" in page.text
        assert person.email not in page.text
        assert (await submit(http, path, FRAGMENT, reason="again"))[0] == 404
    async with signed_in(api, people, busy) as http:
        assert (await submit(http, f"/users/{admin.identity.user_id}/erase", reason="x"))[0] == 403


async def test_people_download_their_own_data_and_admins_anyones(api: str, people: People) -> None:
    tenant = await people.tenant()
    admin, person = await people.user("admin", tenant), await people.user(tenant_id=tenant)
    own = f"/users/{person.identity.user_id}/export"
    for visitor, start in ((person, "/wallet"), (admin, "/users")):
        async with signed_in(api, people, visitor) as http:
            _, page, _ = await look(http, start)
            assert own in [link.get("href") for link in page.all("a")]
            async with http.get(own) as answer:
                assert answer.headers["content-disposition"].startswith("attachment;")
                assert (await answer.json())["user"]["email"] == person.email
    async with signed_in(api, people, person) as http:
        assert (await look(http, f"/users/{admin.identity.user_id}/export"))[0] == 403


async def test_the_page_of_tenants_says_when_a_closed_one_is_erased(api: str, people: People) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    async with signed_in(api, people, await super_admin(people)) as http:
        _, page, _ = await look(http, f"/tenants?q={slug}")
        assert 'name="grace_days"' in page.text
        close = f"/tenants/{tenant}/close"
        for wrong in ("soon", "40000", "-1"):
            assert (await submit(http, close, FRAGMENT, reason="x", grace_days=wrong))[0] == 400
        assert (await submit(http, close, FRAGMENT, reason="x", grace_days="3"))[0] == 200
        _, page, _ = await look(http, f"/tenants?q={slug}")
        assert re.search(r"will be erased on", page.text)
        assert f"/tenants/{tenant}/status" in page.text
        await people.operator.execute("update tenants set erase_at = now() where id = $1", tenant)
        _, page, _ = await look(http, f"/tenants?q={slug}")
        assert "is being erased" in page.text
        assert f"/tenants/{tenant}/status" not in page.text, "nobody is offered what is refused"
        await people.operator.execute("update tenants set erased_at = now() where id = $1", tenant)
        _, page, _ = await look(http, f"/tenants?q={slug}")
        assert '<span class="pill closed">erased</span>' in page.text
