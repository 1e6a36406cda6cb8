"""Analytics and a tenant's own plan over HTTP, on the command line and in the console."""

from datetime import timedelta
from uuid import UUID, uuid4

import aiohttp

from tests.conftest import People
from tests.console.console_support import look, signed_in
from tests.tokens.test_cli import Cli, vs
from tests.tokens.test_wallet_routes import put

__all__ = ["vs"]


async def test_admins_read_and_compute_days_and_users_do_not(http: aiohttp.ClientSession, people: People) -> None:
    tenant = await people.tenant()
    person = await people.user(tenant_id=tenant, balance=100, scopes=["read"])
    admin = await people.user("admin", tenant, scopes=["read", "admin"])
    await people.operator.fetchval("select adjust_user_tokens($1, 7, 'debit')", person.identity.user_id)
    today = await people.operator.fetchval("select (vanilla.clock() at time zone 'UTC')::date")
    path, days = "/api/v1/levels/analytics", {"from": str(today), "to": str(today)}
    async with http.get(path, headers=person.headers) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "forbidden")
    async with http.post(path, json=days, headers=person.headers) as answer:
        assert answer.status == 403
    async with http.get(path, headers=admin.headers) as answer:
        assert (answer.status, await answer.json()) == (200, {"data": []})
    async with http.post(path, json=days, headers=admin.headers) as answer:
        assert (answer.status, await answer.json()) == (200, {"rows": 4})
    async with http.get(path, headers=admin.headers) as answer:
        free, *others = (await answer.json())["data"]
    assert [free["level"], *(row["level"] for row in others)] == ["free", "basic", "premium", "enterprise"]
    assert (free["users"], free["new_users"], free["active_users"], free["tokens_spent"]) == (2, 2, 1, 7)
    assert (free["day"], free["is_final"], free["trials_ended"]) == (str(today), False, 0)
    wrong = {"from": str(today), "to": str(today - timedelta(days=1))}
    async with http.post(path, json=wrong, headers=admin.headers) as answer:
        assert (answer.status, (await answer.json())["code"]) == (400, "invalid_request")
    # another tenant's admin reads none of it
    stranger = await people.user("admin", await people.tenant(), scopes=["read", "admin"])
    async with http.get(path, headers=stranger.headers) as answer:
        assert (await answer.json()) == {"data": []}


async def test_a_super_admin_sets_a_plan_and_the_tenants_admin_sees_it(
    http: aiohttp.ClientSession, people: People
) -> None:
    tenant = await people.tenant()
    admin = await people.user("admin", tenant, scopes=["read", "admin"])
    level = await people.operator.fetchval(
        "select set_level('small', 'Small', p_tenant_id => $1, p_is_template => false)", UUID(int=0)
    )
    limit = "select set_level_restriction($1, 'users_per_tenant', 1, null, $2)"
    await people.operator.fetchval(limit, level, UUID(int=0))
    await put(http, admin, f"/tenants/{tenant}/subscription-tier", {"tier": "small"}, status=403)
    await people.operator.fetchval("select set_subscription_tier($1, 'small')", tenant)
    async with http.get("/api/v1/tenant-plan", headers=admin.headers) as answer:
        plan = await answer.json()
    assert (plan["tier"], plan["name"], plan["users"]) == ("small", "Small", {"used": 1, "limit": 1})
    async with http.post("/api/v1/users", json={"email": "one@more.test"}, headers=admin.headers) as answer:
        problem = await answer.json()
    assert (answer.status, problem["code"], problem["restriction"]) == (429, "limit_reached", "users_per_tenant")


async def test_the_commands_show_days_and_plans(vs: Cli, people: People) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    await people.user(tenant_id=tenant)
    at = ("--tenant", slug)
    rows = await vs.json("levels", "analytics", "--roll-up", *at)
    assert [(row["level"], row["users"]) for row in rows][:2] == [("free", 1), ("basic", 0)]
    day = rows[0]["day"]
    assert await vs.json("levels", "analytics", "--from", day, "--to", day, *at) == rows
    assert "so far" in (await vs("levels", "analytics", *at)).stdout
    refused = await vs.refused("levels", "analytics", "--roll-up", "--from", "2026-01-02", "--to", "2026-01-01", *at)
    assert refused.name == "invalid_request"
    tier = f"t{uuid4().hex[:8]}"
    await vs("levels", "set", tier, "--name", "Tier", "--no-template", "--tenant", "platform")
    await vs("levels", "restrict", tier, "users_per_tenant", "9", "--tenant", "platform")
    assert (await vs.refused("levels", "restrict", "free", "users_per_tenant", "9", *at)).name == "invalid_request"
    await vs("levels", "subscribe", tier, *at)
    shown = (await vs("levels", "plan", *at)).stdout
    assert f"{slug} is on the plan {tier}" in shown
    assert "users: 1 of 9" in shown
    assert (await vs.refused("levels", "subscribe", "nothing-like-it", *at)).name == "not_found"
    assert (await vs.refused("levels", "delete", tier, "--tenant", "platform")).name == "invalid_state"
    assert "no plan" in (await vs("levels", "subscribe", *at)).stdout
    assert (await vs.json("levels", "plan", *at))["tier"] is None


async def test_an_admin_sees_thirty_days_in_charts_and_a_user_no_page(api: str, people: People) -> None:
    tenant = await people.tenant()
    admin, person = await people.user("admin", tenant), await people.user(tenant_id=tenant)
    async with signed_in(api, people, admin) as http:
        _, page, _ = await look(http, "/levels/analytics")
        assert "No day was counted yet" in page.text
        await people.operator.fetchval(
            "select roll_up_level_analytics((vanilla.clock() at time zone 'UTC')::date - 1,"
            " (vanilla.clock() at time zone 'UTC')::date, $1)",
            tenant,
        )
        _, page, _ = await look(http, "/levels/analytics")
    assert "Tokens spent" in page.text
    assert "2 now" in page.text
    assert "which is not over" in page.text
    async with signed_in(api, people, person) as http:
        status, _, _ = await look(http, "/levels/analytics")
    assert status == 403
