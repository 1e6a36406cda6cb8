"""Levels over HTTP: who checks, counts and sets what, and the price list that caches keep."""

import uuid
from typing import Any

import aiohttp

from tests.conftest import People, Person
from tests.tokens.test_routes import get, post
from tests.tokens.test_wallet_routes import put


async def someone(people: People) -> tuple[Person, Person, str]:
    """A user of a new tenant, its admin, and the id of their level."""
    tenant = await people.tenant()
    person = await people.user(tenant_id=tenant)
    admin = await people.user("admin", tenant, scopes=["admin"])
    level = await people.operator.fetchval("select id from levels where tenant_id = $1 and is_default", tenant)
    return person, admin, str(level)


async def delete(http: aiohttp.ClientSession, person: Person, path: str, status: int) -> Any:
    async with http.delete(f"/api/v1{path}", headers=person.headers) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json() if status >= 400 else None


async def test_uses_are_counted_once_for_each_key_up_to_the_limit(http: aiohttp.ClientSession, people: People) -> None:
    person, admin, level = await someone(people)
    path = f"/levels/{level}/features/scan"
    await put(http, admin, path, {"limit": 2, "period": "daily", "category": "ai", "name": "Scan"})
    state = await get(http, person, "/features/scan")
    assert (state["allowed"], state["limit"], state["remaining"]) == (True, 2, 2)
    first, headers = await post(http, person, "/features/scan/consume", {}, key="k")
    assert "idempotency-replayed" not in headers
    again, headers = await post(http, person, "/features/scan/consume", {}, key="k")
    assert (again, headers["idempotency-replayed"]) == (first | {"replayed": True}, "true")
    problem, _ = await post(http, person, "/features/scan/consume", {"amount": 2}, status=429)
    assert (problem["code"], problem["used"], problem["limit"], problem["needed"]) == ("limit_reached", 1, 2, 2)
    assert problem["resets_at"]
    await post(http, admin, "/features/scan/consume", {"user_id": str(person.identity.user_id)})
    names = [state["feature"] for state in (await get(http, person, "/features"))["data"]]
    assert names == ["document-analysis", "priority-support", "report-export", "scan"]
    await delete(http, admin, path, 204)
    problem, _ = await post(http, person, "/features/scan/consume", {}, status=403)
    assert problem["reason"] == "not_in_level"


async def test_members_read_terms_and_admins_set_them(http: aiohttp.ClientSession, people: People) -> None:
    person, admin, level = await someone(people)
    stranger = await people.user("admin", await people.tenant(), scopes=["admin"])
    price = {"cycle": "monthly", "currency": "chf", "amount": 1250, "trial_days": 7, "trial_credits": 100}
    made, _ = await post(http, admin, f"/levels/{level}/prices", price)
    problem, _ = await post(http, admin, f"/levels/{level}/prices", price, status=409)
    assert problem["price_id"] == made["id"]
    benefits = {"benefits": [{"text": "Much", "highlighted": True}, {"text": "More"}]}
    async with http.put(f"/api/v1/levels/{level}/benefits", headers=admin.headers, json=benefits) as answer:
        assert answer.status == 204
    terms = await get(http, person, f"/levels/{level}/terms")
    assert [b["text"] for b in terms["benefits"]] == ["Much", "More"]
    assert {p["currency"]: p["amount"] for p in terms["prices"]} == {"CHF": 1250, "EUR": 0, "USD": 0}
    assert terms["users"] is None
    assert (await get(http, admin, f"/levels/{level}/terms"))["users"] == 2
    for who, status in ((person, 403), (stranger, 404)):
        await post(http, who, f"/levels/{level}/prices", price | {"cycle": "yearly"}, status=status)
        await put(http, who, f"/levels/{level}/features/x", {}, status=status)
        await delete(http, who, f"/prices/{made['id']}", status)
        await delete(http, who, f"/levels/{level}", status)
    await get(http, stranger, f"/levels/{level}/terms", status=404)
    await delete(http, admin, f"/prices/{made['id']}", 204)
    await delete(http, admin, f"/prices/{made['id']}", 409)
    await delete(http, admin, f"/levels/{level}", 409)
    level_made, _ = await post(http, admin, "/levels", {"slug": "pro", "name": "Pro", "tier": 7})
    await delete(http, admin, f"/levels/{level_made['id']}", 204)


async def test_a_body_that_means_nothing_is_refused_by_name(http: aiohttp.ClientSession, people: People) -> None:
    person, admin, level = await someone(people)
    for body, word in (({"limit": 1}, "period"), ({"limit": -1, "period": "daily"}, "limit"),
                       ({"limit": 1, "period": "hourly"}, "period"), ({"category": "A B"}, "category")):  # fmt: skip
        problem = await put(http, admin, f"/levels/{level}/features/x", body, status=400)
        assert problem["code"] == "invalid_request"
        assert word in problem["detail"] + problem.get("param", "")
    await put(http, admin, f"/levels/{level}/features/A%20b", {}, status=400)
    for change in ({"currency": "XXX"}, {"cycle": "daily"}, {"amount": -1}, {"valid_until": "2020-01-01T00:00:00Z"}):
        body = {"cycle": "monthly", "currency": "CHF", "amount": 1} | change
        await post(http, admin, f"/levels/{level}/prices", body, status=400)
    for amount in (0, -1, "x", 10**13):
        await post(http, person, "/features/document-analysis/consume", {"amount": amount}, status=400)


async def test_anybody_reads_the_price_list_and_caches_ask_whether_it_changed(
    http: aiohttp.ClientSession, people: People
) -> None:
    _, admin, level = await someone(people)
    slug = await people.operator.fetchval("select slug from tenants where id = $1", admin.identity.tenant_id)
    path = f"/api/v1/pricing?tenant={slug}"
    async with http.get(path) as answer:
        found, tag = await answer.json(), answer.headers["etag"]
        assert answer.headers["cache-control"] == "public, max-age=60"
        assert answer.headers["access-control-allow-origin"] == "*"
    assert [one["slug"] for one in found["levels"]] == ["free", "basic", "premium", "enterprise"]
    async with http.get(path, headers={"if-none-match": f'"x", {tag}'}) as answer:
        assert (answer.status, await answer.read(), answer.headers["etag"]) == (304, b"", tag)
    await post(http, admin, f"/levels/{level}/prices", {"cycle": "yearly", "currency": "CHF", "amount": 5})
    async with http.get(path, headers={"if-none-match": tag}) as answer:
        assert answer.status == 200
        assert answer.headers["etag"] != tag
        assert '"amount":5' in await answer.text()
    for nobody in (uuid.uuid4().hex, "%00", "x" * 63):
        async with http.get(f"/api/v1/pricing?tenant={nobody}") as answer:
            assert answer.status in (400, 404)


async def test_a_user_changes_where_the_path_is_theirs_and_an_admin_for_anybody(
    http: aiohttp.ClientSession, people: People
) -> None:
    person, admin, free = await someone(people)
    stranger = await people.user("admin", await people.tenant(), scopes=["admin"])
    tenant = person.identity.tenant_id
    rows = await people.operator.fetch("select slug, id::text from levels where tenant_id = $1", tenant)
    slugs = {row["slug"]: row["id"] for row in rows}
    path = f"/levels/{free}/upgrade-paths/{slugs['basic']}"
    for who, status in ((person, 403), (stranger, 404)):
        await put(http, who, path, {"self_service": True}, status=status)
        await delete(http, who, path, status)
    ask = {"level_id": slugs["basic"], "currency": "USD", "trial": False}
    looked, _ = await post(http, person, "/level-changes/preview", ask)
    assert (looked["state"], looked["due"], looked["self_service"]) == ("preview", 900, False)
    await post(http, person, "/level-changes", ask, key="a", status=403)
    await put(http, admin, path, {"self_service": True, "discount_percent": 10, "timing": "now"})
    problem, _ = await post(http, person, "/level-changes", ask, status=400)
    assert problem["param"] == "Idempotency-Key"
    await post(http, person, "/level-changes", ask | {"payment_reference": "mine"}, key="b", status=403)
    done, headers = await post(http, person, "/level-changes", ask, key="c")
    assert (done["state"], done["due"], done["replayed"]) == ("applied", 810, False)
    again, headers = await post(http, person, "/level-changes", ask, key="c")
    assert (again, headers["idempotency-replayed"]) == (done | {"replayed": True}, "true")
    await post(http, person, "/level-changes", ask | {"level_id": slugs["premium"]}, key="c", status=409)
    later = {"level_id": free, "when": "period_end"}
    await post(http, person, "/level-changes", later, key="d")
    held = await get(http, person, "/subscription")
    assert (held["level"], held["amount"], held["scheduled"]["to"]) == ("basic", 900, "free")
    assert [(line["kind"], line["amount"]) for line in held["lines"]] == [("charge", 810)]
    assert [row["email"] for row in (await get(http, admin, "/level-changes/scheduled"))["data"]] == [person.email]
    assert (await get(http, stranger, "/level-changes/scheduled"))["data"] == []
    of = f"?user_id={person.identity.user_id}"
    await get(http, stranger, f"/subscription{of}", status=404)
    assert (await get(http, admin, f"/subscription{of}"))["level"] == "basic"
    await delete(http, stranger, f"/level-changes/scheduled{of}", 404)
    async with http.delete(f"/api/v1/level-changes/scheduled{of}", headers=admin.headers) as answer:
        assert (answer.status, (await answer.json())["state"]) == (200, "undone")
    await delete(http, person, "/level-changes/scheduled", 409)
    other = {"level_id": slugs["premium"], "user_id": str(person.identity.user_id)}
    await post(http, stranger, "/level-changes", other, key="e", status=404)
    moved, _ = await post(http, admin, "/level-changes", other, key="f")
    assert moved["from"] == "basic"
    # what an admin scheduled an admin undoes
    await post(http, admin, "/level-changes", other | {"level_id": free, "when": "period_end"}, key="g")
    await delete(http, person, "/level-changes/scheduled", 403)
    assert len((await get(http, person, "/upgrade-paths"))["data"]) == 12


async def test_a_change_that_means_nothing_is_refused_by_name(http: aiohttp.ClientSession, people: People) -> None:
    _, admin, level = await someone(people)
    for body, param in (({"when": "soon"}, "when"), ({"cycle": "weekly"}, "cycle"), ({"currency": "EURO"}, "currency"),
                        ({"billed_amount": 10**16}, "billed_amount"), ({"level_id": "x"}, "level_id")):  # fmt: skip
        problem, _ = await post(http, admin, "/level-changes", {"level_id": level} | body, key="k", status=400)
        assert param in str(problem), problem
