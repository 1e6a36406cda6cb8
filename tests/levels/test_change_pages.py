"""Pages of changes: a plan is previewed and changed by its owner, paths and other users' changes by admins."""

import re
from typing import Any

from tests.conftest import People, Person
from tests.console.console_support import look, signed_in, submit
from vanilla_saas.levels.money import money


async def levels_of(people: People, tenant: Any) -> dict[str, str]:
    rows = await people.operator.fetch("select slug, id from levels where tenant_id = $1", tenant)
    return {row["slug"]: str(row["id"]) for row in rows}


def hidden(text: str) -> dict[str, str]:
    """The hidden fields of the form that confirms a change."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text.partition('/change"')[2]))


def test_what_comes_back_has_its_sign() -> None:
    assert [money(-1050, "USD"), money(-5, "USD"), money(-1500, "JPY")] == ["-10.50 USD", "-0.05 USD", "-1,500 JPY"]


async def test_a_user_previews_a_plan_changes_to_it_and_undoes_what_is_scheduled(api: str, people: People) -> None:
    tenant = await people.tenant()
    person, slugs = await people.user(tenant_id=tenant), await levels_of(people, tenant)
    await people.operator.fetchval(
        "select set_upgrade_path($1, $2, 0, 'any', true, $3)", slugs["free"], slugs["basic"], tenant
    )
    async with signed_in(api, people, person) as http:
        _, page, _ = await look(http, "/plan")
        assert "9 USD a month" in page.text
        ask = f"/plan/change?level={slugs['basic']}&when=now&price=monthly+USD"
        _, page, _ = await look(http, ask)
        assert "with 20,000 tokens; then 9 USD a month" in page.text
        assert await state_of(people, person) == "free"
        form = hidden(page.text)
        for _ in range(2):  # sent twice, changed once
            status, _, headers = await submit(http, "/plan/change", **form)
            assert (status, headers["location"]) == (303, "/plan?notice=applied")
        _, page, _ = await look(http, f"/plan/change?level={slugs['free']}&when=period_end")
        await submit(http, "/plan/change", **hidden(page.text))
        _, page, _ = await look(http, "/plan?notice=scheduled")
        assert "Changes to <strong>free</strong>" in page.text
        status, _, headers = await submit(http, "/plan/undo")
        assert (status, headers["location"]) == (303, "/plan?notice=undone")
        status, text, _ = await submit(http, "/plan/undo", {"hx-request": "true"})
        assert (status, "No change is scheduled" in text) == (409, True)
        # not their own: the figures are shown, the change is refused
        _, page, _ = await look(http, f"/plan/change?level={slugs['premium']}&when=now&price=monthly+USD")
        assert "Only an admin makes this change" in page.text
        status, _, _ = await submit(
            http, "/plan/change", {"hx-request": "true"}, **form | {"level": slugs["premium"], "key": "0" * 32}
        )
        assert status == 403
        assert (await look(http, "/levels/paths"))[0] == 403
        for wrong in ("price=weekly+USD", "when=soon", "price=x"):
            assert (await look(http, f"/plan/change?level={slugs['premium']}&{wrong}"))[0] in (400, 422)
    assert await state_of(people, person) == "basic"


async def state_of(people: People, person: Person) -> str:
    slug: str = await people.operator.fetchval(
        "select l.slug from user_token_wallets w join levels l on l.id = w.level_id and l.tenant_id = w.tenant_id"
        " where w.user_id = $1",
        person.identity.user_id,
    )
    return slug


async def test_an_admin_edits_paths_and_changes_and_undoes_for_a_user(api: str, people: People) -> None:
    tenant = await people.tenant()
    admin, person = await people.user("admin", tenant), await people.user(tenant_id=tenant)
    slugs = await levels_of(people, tenant)
    async with signed_in(api, people, admin) as http:
        path = {"start": slugs["free"], "end": slugs["premium"], "discount_percent": "25", "timing": "now"}
        status, _, headers = await submit(http, "/levels/paths", **path, self_service="true")
        assert (status, headers["location"]) == (303, "/levels/paths?notice=path")
        _, page, _ = await look(http, "/levels/paths")
        assert "25 % less" in page.text
        circle = {"start": slugs["premium"], "end": slugs["free"], "timing": "any"}
        status, text, _ = await submit(http, "/levels/paths", {"hx-request": "true"}, **circle)
        assert (status, "would pay the user" in text) == (409, True)
        query = f"user={person.email}&level={slugs['premium']}&when=now&price=monthly+USD"
        _, page, _ = await look(http, f"/levels/paths/change?{query}")
        await submit(http, "/levels/paths/change", **hidden(page.text))
        _, page, _ = await look(
            http, f"/levels/paths/change?user={person.identity.user_id}&level={slugs['free']}&when=period_end"
        )
        await submit(http, "/levels/paths/change", **hidden(page.text))
        _, page, _ = await look(http, "/levels/paths")
        assert person.email in page.text
        await submit(http, "/levels/paths/undo", user_id=str(person.identity.user_id))
        _, page, _ = await look(http, "/levels/paths")
        assert "Nothing is scheduled" in page.text
        await submit(http, "/levels/paths/remove", start=slugs["free"], end=slugs["premium"])
        status, _, _ = await submit(http, "/levels/paths/remove", start=slugs["free"], end=slugs["premium"])
        assert status == 404
        assert (await look(http, f"/levels/paths/change?{query.replace(person.email, 'nobody')}"))[0] == 404
    assert await state_of(people, person) == "premium"
