"""A tenant's own plan with the platform: users, tokens of a month, and how it is set."""

import asyncio
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.conftest import Cluster, People
from tests.levels.test_analytics import job
from tests.levels.test_history import subscribe
from tests.tokens.support import START, Books, User

ADMIT = "select vanilla.admit_call($1, null, null, 'sandbox-small', 10, 10, 10, 1, $2, false, '11 minutes')"
MAKE = "select create_user($1, p_tenant_id => $2)"
MAKE_PLAN = "select set_level($1, $1, p_tenant_id => $2, p_is_template => false)"
PLATFORM = UUID(int=0)


def name() -> str:
    return f"t{uuid4().hex[:9]}"


async def refused(work: Any, code: str = "VS429") -> dict[str, Any]:
    with pytest.raises(asyncpg.PostgresError) as error:
        await work
    assert error.value.sqlstate == code, error.value
    return json.loads(error.value.detail or "{}")


async def plan(books: Books, user: User) -> dict[str, Any]:
    return await books.connection.fetchval("select tenant_plan($1)", user.tenant_id)


async def test_so_many_users_as_the_plan_allows_and_who_is_erased_makes_room(books: Books) -> None:
    user = await books.user()
    await subscribe(books, user, name(), users_per_tenant=3)
    second = await books.connection.fetchval(MAKE, f"{name()}@x.test", user.tenant_id)
    await books.connection.fetchval(MAKE, f"{name()}@x.test", user.tenant_id)
    detail = await refused(books.connection.fetchval(MAKE, f"{name()}@x.test", user.tenant_id))
    assert detail == {"restriction": "users_per_tenant", "limit": 3, "used": 3, "resets_at": None}
    # who is disabled has their data still, who is erased has none
    await books.connection.fetchval("select set_user_status($1, 'disabled', $2)", second, user.tenant_id)
    await refused(books.connection.fetchval(MAKE, f"{name()}@x.test", user.tenant_id))
    await books.connection.fetchval("select erase_user($1, 'test', $2)", second, user.tenant_id)
    await books.connection.fetchval(MAKE, f"{name()}@x.test", user.tenant_id)
    assert (await plan(books, user))["users"] == {"used": 3, "limit": 3}
    # fewer than there are already: nobody goes, nobody comes
    await subscribe(books, user, name(), users_per_tenant=1)
    assert (await refused(books.connection.fetchval(MAKE, f"{name()}@x.test", user.tenant_id)))["limit"] == 1
    await books.connection.fetchval("select set_subscription_tier($1, null)", user.tenant_id)
    await books.connection.fetchval(MAKE, f"{name()}@x.test", user.tenant_id)


async def test_every_way_in_asks_the_plan(books: Books) -> None:
    user = await books.user(monthly_allocation=1000)
    slug = await books.connection.fetchval("select slug from tenants where id = $1", user.tenant_id)
    await books.connection.execute("update tenants set self_registration = true where id = $1", user.tenant_id)
    key = hashlib.sha256(user.id.bytes).digest()
    await books.connection.fetchval(
        "select create_api_key('k', 'k', $1, '{chat,act_as,act_as:create}', p_user_id => $2)", key, user.id
    )
    await subscribe(books, user, name(), users_per_tenant=1)
    register = "select vanilla.register_user($1, $2, '$argon2id$x', '')"
    await refused(books.connection.fetchval(register, slug, f"{name()}@x.test"))
    act_as = ADMIT.replace("null, null,", "null, 'somebody',")
    await refused(books.connection.fetchval(act_as, key, uuid4()))
    # a sign-up in Supabase Auth fires this function
    async with books.connection.transaction():
        await books.connection.execute(
            "create schema if not exists auth_of_test; create table auth_of_test.users (id uuid, email text,"
            " raw_app_meta_data jsonb); create trigger follow after insert on auth_of_test.users for each row"
            " execute function vanilla.follow_auth_user()"
        )
        sign_up = "insert into auth_of_test.users values ($1, $2, $3)"
        meta = {"tenant_id": str(user.tenant_id)}
        with pytest.raises(asyncpg.PostgresError) as error:
            async with books.connection.transaction():
                await books.connection.execute(sign_up, uuid4(), f"{name()}@x.test", meta)
        assert error.value.sqlstate == "VS429"
        await books.connection.fetchval("select set_subscription_tier($1, null)", user.tenant_id)
        await books.connection.execute(sign_up, uuid4(), f"{name()}@x.test", meta)
        await books.connection.execute("drop schema auth_of_test cascade")
    await books.connection.fetchval(register, slug, f"{name()}@x.test")
    await books.connection.fetchval(act_as, key, uuid4())
    assert (await plan(books, user))["users"] == {"used": 4, "limit": None}


async def test_20_sign_ups_at_once_on_a_limit_of_5_admit_exactly_5(
    cluster: Cluster, database_name: str, people: People
) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval(
        "update tenants set self_registration = true where id = $1 returning slug", tenant
    )
    tier = name()
    level = await people.operator.fetchval(MAKE_PLAN, tier, PLATFORM)
    await people.operator.fetchval("select set_level_restriction($1, 'users_per_tenant', 5, null, $2)", level, PLATFORM)
    await people.operator.fetchval("select set_subscription_tier($1, $2)", tenant, tier)
    crowd = await asyncio.gather(*(asyncpg.connect(cluster.url(database=database_name)) for _ in range(20)))
    register = "select vanilla.register_user($1, $2, '$argon2id$x', '')"
    try:
        made = await asyncio.gather(
            *(c.fetchval(register, slug, f"{n}@{slug}.test") for n, c in enumerate(crowd)), return_exceptions=True
        )
    finally:
        await asyncio.gather(*(connection.close() for connection in crowd))
    assert Counter(getattr(one, "sqlstate", "made") for one in made) == {"made": 5, "VS429": 15}
    assert await people.operator.fetchval("select count(*) from users where tenant_id = $1", tenant) == 5


async def test_tokens_of_a_month_stop_the_calls_of_all_users_until_the_next(books: Books) -> None:
    user = await books.user(balance=10_000, time_zone="Europe/Berlin")
    key = hashlib.sha256(user.id.bytes).digest()
    await books.connection.fetchval("select create_api_key('k', 'k', $1, '{chat}', p_user_id => $2)", key, user.id)
    await books.adjust(user, 400, "debit")  # before there was a plan: of this month too
    await subscribe(books, user, name(), tokens_per_tenant=1000)
    assert (await plan(books, user))["tokens"] == {
        "used": 400, "limit": 1000, "resets_at": "2026-03-31T22:00:00+00:00", "stopped": False,
    }  # fmt: skip
    await books.adjust(user, 599, "debit")
    await job(books, "tenant_tokens")
    await books.connection.fetchval(ADMIT, key, uuid4())
    await books.adjust(user, 1, "debit")
    await job(books, "tenant_tokens", 1)
    detail = await refused(books.connection.fetchval(ADMIT, key, uuid4()))
    assert (detail["restriction"], detail["limit"], detail["used"]) == ("tokens_per_tenant", 1000, 1000)
    assert detail["resets_at"] == "2026-03-31T22:00:00+00:00"
    assert detail["retry_after_s"] == (datetime(2026, 3, 31, 22, tzinfo=UTC) - START).total_seconds()
    # a larger plan lets them in at once, a smaller one stops them at once
    await subscribe(books, user, name(), tokens_per_tenant=1001)
    await books.connection.fetchval(ADMIT, key, uuid4())
    await subscribe(books, user, name(), tokens_per_tenant=1000)
    await refused(books.connection.fetchval(ADMIT, key, uuid4()))
    # the first instant of the next month, before any job has looked
    await books.at(datetime(2026, 3, 31, 22, tzinfo=UTC))
    await books.connection.fetchval(ADMIT, key, uuid4())
    await books.adjust(user, 20, "debit")
    await job(books, "tenant_tokens")
    assert (await plan(books, user))["tokens"]["used"] == 20
    months = "select month from tenant_token_months where tenant_id = $1"
    assert [str(r["month"]) for r in await books.connection.fetch(months, user.tenant_id)] == ["2026-04-01"]


async def test_a_plan_is_set_by_the_platform_and_no_level_that_is_one_is_deleted(books: Books) -> None:
    user = await books.user()
    tier = name()
    await subscribe(books, user, tier, users_per_tenant=9)
    found = await plan(books, user)
    assert (found["tier"], found["name"], found["history_days"]) == (tier, tier, None)
    level = await books.connection.fetchval("select id from levels where slug = $1 and tenant_id = $2", tier, PLATFORM)
    delete = "select delete_level($1, $2)"
    await refused(books.connection.fetchval(delete, level, PLATFORM), "VS409")
    put = "select set_subscription_tier($1, $2)"
    await refused(books.connection.fetchval(put, user.tenant_id, "no-such-plan"), "VS404")
    await refused(books.connection.fetchval(put, PLATFORM, tier), "VS409")
    await refused(books.connection.fetchval(put, uuid4(), tier), "VS404")
    await refused(books.connection.fetchval("select tenant_plan($1)", uuid4()), "VS404")
    assert (await plan(books, user))["tier"] == tier
    await books.connection.fetchval(put, user.tenant_id, None)
    await books.connection.fetchval(delete, level, PLATFORM)


async def test_a_new_tenant_has_copies_of_levels_policies_features_restrictions_prices_and_benefits(
    books: Books,
) -> None:
    """And is on the platform's default plan; what binds tenants is not copied to where it would bind people."""
    async with books.connection.transaction():
        for kind, amount in (("requests_per_minute", 7), ("users_per_tenant", 5), ("history_days", 9)):
            await books.connection.fetchval(
                "select set_level_restriction(id, $1, $2, null, tenant_id) from levels"
                " where tenant_id = $3 and is_default",
                kind,
                amount,
                PLATFORM,
            )
        await books.connection.fetchval(MAKE_PLAN, name(), PLATFORM)
        tenant = await books.connection.fetchval("select create_tenant($1, 'New')", name())
        copies = {
            "levels": "l.slug, l.name, l.description, l.tier, l.is_default",
            "level_token_policies": "base_allocation, monthly_allocation, rollover_percent, enforcement_mode",
            "level_features": "feature, x.name, category, enabled, usage_limit, period",
            "level_pricing": "cycle, currency, amount, trial_days, trial_credits",
            "level_benefits": "position, text, highlighted",
        }
        for table, columns in copies.items():
            rows = (
                f"select l.slug, {columns} from {table} x join levels l on l.tenant_id = x.tenant_id"
                f" and l.id = x.{'id' if table == 'levels' else 'level_id'} where x.tenant_id = $1 and l.is_template"
                f" order by l.slug, {columns}"
            )
            template, copied = [[tuple(r) for r in await books.connection.fetch(rows, of)] for of in (PLATFORM, tenant)]
            assert len(copied) >= 4, table
            assert copied == template, table
        slugs = "select array_agg(slug order by slug) from levels where tenant_id = $1"
        assert await books.connection.fetchval(slugs, tenant) == ["basic", "enterprise", "free", "premium"]
        rules = "select type, amount from level_restrictions where tenant_id = $1 order by type"
        found = [tuple(r) for r in await books.connection.fetch(rules, tenant)]
        assert found == [("history_days", 9), ("requests_per_minute", 7)]
        copied = "select restrictions from levels where tenant_id = $1 and is_default"
        assert await books.connection.fetchval(copied, tenant) == {"requests_per_minute": 7}
        assert await books.connection.fetchval("select subscription_tier from tenants where id = $1", tenant) == "free"
        for kind in ("requests_per_minute", "users_per_tenant", "history_days"):
            await books.connection.fetchval(
                "select delete_level_restriction(id, $1, tenant_id) from levels where tenant_id = $2 and is_default",
                kind,
                PLATFORM,
            )


async def test_a_month_that_was_not_looked_at_is_counted_from_the_ledger(books: Books) -> None:
    user = await books.user(balance=10_000)
    await books.adjust(user, 300, "debit")
    await books.at(START + timedelta(days=31))
    await books.adjust(user, 11, "debit")
    hold = await books.adjust(user, 100, "reserve")
    await books.settle(hold["hold_id"], 40)
    await books.adjust(user, 100, "reserve")
    await subscribe(books, user, name(), tokens_per_tenant=500)
    assert (await plan(books, user))["tokens"]["used"] == 51
    await books.adjust(user, 9, "debit")
    assert (await plan(books, user))["tokens"]["used"] == 60
