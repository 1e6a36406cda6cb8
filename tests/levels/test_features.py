"""Features of a level: limits hold in their period, keys count once, refusals say what would help."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster, People
from tests.tokens.support import START, Books, User

FEATURE = "test-feature"


async def allow(books: Books, user: User, level: str = "free", **terms: Any) -> None:
    named = "".join(f", p_{name} => ${n}" for n, name in enumerate(terms, 4))
    await books.connection.execute(
        f"select set_level_feature($1, $2, p_tenant_id => $3{named})",
        user.levels[level],
        FEATURE,
        user.tenant_id,
        *terms.values(),
    )


async def check(books: Books, user: User) -> dict[str, Any]:
    return await books.connection.fetchval("select check_feature($1, $2)", user.id, FEATURE)


async def consume(books: Books, user: User, amount: int | None = 1, key: str | None = None) -> dict[str, Any]:
    return await books.connection.fetchval("select consume_feature($1, $2, $3, $4)", user.id, FEATURE, amount, key)


async def refused(books: Books, user: User, amount: int | None = 1, key: str | None = None) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as error:
        await consume(books, user, amount, key)
    return error.value


async def test_a_limit_admits_so_many_uses_and_says_what_is_left(books: Books) -> None:
    user = await books.user()
    await allow(books, user, usage_limit=3, period="monthly", category="ai", name="Test")
    assert (await check(books, user)) == {
        "feature": FEATURE, "user_id": str(user.id), "name": "Test", "category": "ai", "level": "free",
        "allowed": True, "reason": None, "used": 0, "limit": 3, "remaining": 3, "period": "monthly",
        "resets_at": "2026-04-01T00:00:00+00:00", "allowed_by": None,
    }  # fmt: skip
    counted = await consume(books, user, 2)
    assert (counted["used"], counted["remaining"], counted["replayed"]) == (2, 1, False)
    # all or none: two do not fit into one
    assert (await refused(books, user, 2)).sqlstate == "VS429"
    assert (await consume(books, user))["remaining"] == 0
    state = await check(books, user)
    assert (state["allowed"], state["reason"], state["used"]) == (False, "limit", 3)
    assert (await refused(books, user)).sqlstate == "VS429"


@pytest.mark.parametrize(
    ("period", "last", "first"),
    [
        # 12:00 UTC on Sunday 1 March 2026 is 13:00 in Berlin; the clocks go forward on 29 March
        ("daily", "2026-03-01T22:59:59", "2026-03-01T23:00:00"),
        ("weekly", "2026-03-01T22:59:59", "2026-03-01T23:00:00"),
        ("monthly", "2026-03-31T21:59:59", "2026-03-31T22:00:00"),
        ("yearly", "2026-12-31T22:59:59", "2026-12-31T23:00:00"),
    ],
)
async def test_a_period_ends_at_midnight_in_the_tenants_zone_and_not_a_second_before(
    books: Books, period: str, last: str, first: str
) -> None:
    user = await books.user(time_zone="Europe/Berlin")
    await allow(books, user, usage_limit=1, period=period)
    await consume(books, user)
    end = datetime.fromisoformat(first).replace(tzinfo=UTC)
    assert datetime.fromisoformat((await check(books, user))["resets_at"]) == end
    await books.at(datetime.fromisoformat(last).replace(tzinfo=UTC))
    assert (await refused(books, user)).sqlstate == "VS429"
    await books.at(end)
    assert (await consume(books, user))["used"] == 1


async def test_a_lifetime_does_not_end_and_without_a_limit_any_number_is_counted(books: Books) -> None:
    user = await books.user()
    await allow(books, user, usage_limit=2, period="lifetime")
    await consume(books, user, 2)
    await books.at(START + timedelta(days=9000))
    assert (await check(books, user))["resets_at"] is None
    assert (await refused(books, user)).sqlstate == "VS429"
    await allow(books, user)
    counted = await consume(books, user, 10**12)
    assert (counted["limit"], counted["remaining"], counted["period"], counted["used"]) == (None, None, None, 10**12)


async def test_a_new_time_zone_does_not_begin_the_period_again(books: Books) -> None:
    user = await books.user(time_zone="UTC")
    await allow(books, user, usage_limit=1, period="monthly")
    await consume(books, user)
    await books.connection.execute("update tenants set time_zone = 'Asia/Tokyo' where id = $1", user.tenant_id)
    assert (await refused(books, user)).sqlstate == "VS429"


async def test_a_refusal_names_the_lowest_level_that_would_allow_it(books: Books) -> None:
    user = await books.user()
    error = await refused(books, user)
    assert error.sqlstate == "VS403"
    assert "No level" in error.hint
    await allow(books, user, enabled=False)
    await allow(books, user, "premium")
    await allow(books, user, "basic", usage_limit=1, period="daily")
    state = await check(books, user)
    assert (state["reason"], state["allowed_by"]["slug"]) == ("off", "basic")
    assert "Basic" in (await refused(books, user)).hint
    # what was used counts there too: basic would not allow two
    await allow(books, user, usage_limit=1, period="daily")
    await consume(books, user)
    state = await check(books, user)
    assert (state["reason"], state["allowed_by"]["slug"]) == ("limit", "premium")
    assert "Premium" in (await refused(books, user)).hint
    await books.connection.execute("update levels set status = 'retired' where slug = 'premium' and tenant_id = $1",
                                   user.tenant_id)  # fmt: skip
    assert (await check(books, user))["allowed_by"] is None


async def test_a_lower_limit_refuses_what_is_above_and_keeps_what_was_counted(books: Books) -> None:
    user = await books.user()
    await allow(books, user, usage_limit=10, period="daily")
    await consume(books, user, 5)
    await allow(books, user, usage_limit=3, period="daily")
    state = await check(books, user)
    assert (state["used"], state["limit"], state["remaining"]) == (5, 3, 0)
    assert (await refused(books, user)).sqlstate == "VS429"
    await allow(books, user, usage_limit=6, period="daily")
    assert (await consume(books, user))["used"] == 6


async def test_a_key_counts_once_and_answers_the_same_again(books: Books) -> None:
    user = await books.user()
    await allow(books, user, usage_limit=3, period="daily")
    first = await consume(books, user, 2, "k")
    await consume(books, user)
    assert await consume(books, user, 2, "k") == first | {"replayed": True}
    assert (await refused(books, user, 1, "k")).sqlstate == "VS410"
    assert (await check(books, user))["used"] == 3
    # a refusal keeps no key: when there is room again the same request is counted
    assert (await refused(books, user, 1, "later")).sqlstate == "VS429"
    await books.at(START + timedelta(days=1))
    assert (await consume(books, user, 1, "later"))["replayed"] is False


@pytest.mark.parametrize("amount", [0, -1, 10**12 + 1, None])
async def test_an_amount_that_is_none_is_refused(books: Books, amount: int | None) -> None:
    user = await books.user()
    await allow(books, user)
    assert (await refused(books, user, amount)).sqlstate == "VS400"
    assert await books.connection.fetchval("select count(*) from level_feature_usage where user_id = $1", user.id) == 0


@pytest.mark.parametrize(
    "terms",
    [
        {"usage_limit": 5},
        {"period": "daily"},
        {"usage_limit": 5, "period": "hourly"},
        {"usage_limit": -1, "period": "daily"},
        {"usage_limit": 10**15 + 1, "period": "daily"},
        {"category": "Not A Word"},
        {"name": "x" * 201},
        {"enabled": None},
    ],
)
async def test_terms_that_mean_nothing_are_refused_and_nothing_is_written(books: Books, terms: dict[str, Any]) -> None:
    user = await books.user()
    with pytest.raises(asyncpg.PostgresError) as error:
        await allow(books, user, **terms)
    assert error.value.sqlstate == "VS400"
    found = "select count(*) from level_features where tenant_id = $1 and feature = $2"
    assert await books.connection.fetchval(found, user.tenant_id, FEATURE) == 0


async def test_a_new_tenant_has_the_platforms_terms(books: Books) -> None:
    user = await books.user()
    for table, columns in (
        ("level_features", "feature, category, enabled, usage_limit, period, level_features.name"),
        ("level_pricing", "cycle, currency, amount, trial_days, trial_credits, valid_from, valid_until"),
        ("level_benefits", "position, text, highlighted"),
    ):
        statement = (
            f"select l.slug, {columns} from {table} join levels l using (tenant_id)"
            f" where l.id = {table}.level_id and tenant_id = $1 order by 1, 2, 3"
        )
        ours = await books.connection.fetch(statement, user.tenant_id)
        theirs = await books.connection.fetch(statement, "00000000-0000-0000-0000-000000000000")
        assert [tuple(r) for r in ours] == [tuple(r) for r in theirs] != []


async def test_what_is_past_retention_is_forgotten_and_lifetime_is_not(books: Books) -> None:
    user = await books.user()
    await allow(books, user, usage_limit=1, period="lifetime")
    await consume(books, user, key="life")
    await allow(books, user, usage_limit=2, period="daily")
    await consume(books, user, key="day")
    for days, left in ((29, (2, 2)), (31, (0, 2)), (402, (0, 1))):
        await books.at(START + timedelta(days=days))
        while (await books.connection.fetchval("select vanilla.job_feature_usage(1)"))["more"]:
            pass
        counts = await books.connection.fetchrow(
            "select (select count(*) from level_feature_keys where user_id = $1) as keys,"
            " (select count(*) from level_feature_usage where user_id = $1) as periods",
            user.id,
        )
        assert tuple(counts) == left
    await allow(books, user, usage_limit=1, period="lifetime")
    assert (await refused(books, user)).sqlstate == "VS429"


async def test_32_connections_on_a_limit_of_100_admit_exactly_100(
    cluster: Cluster, database_name: str, people: People
) -> None:
    person = await people.user(tenant_id=await people.tenant())
    tenant_id, user_id = person.identity.tenant_id, person.identity.user_id
    await people.operator.execute(
        "select set_level_feature(id, 'raced', 100, 'monthly', p_tenant_id => $1) from levels"
        " where tenant_id = $1 and is_default",
        tenant_id,
    )
    crowd = await asyncio.gather(*(asyncpg.connect(cluster.url(database=database_name)) for _ in range(32)))

    async def hammer(connection: asyncpg.Connection) -> int:
        admitted = 0
        for _ in range(8):
            try:
                await connection.fetchval("select consume_feature($1, 'raced')", user_id)
                admitted += 1
            except asyncpg.PostgresError as error:
                assert error.sqlstate == "VS429", error  # noqa: PT017
        return admitted

    async def repeat(connection: asyncpg.Connection) -> str:
        return await connection.fetchval("select consume_feature($1, 'raced', 1, 'once') ->> 'replayed'", user_id)

    try:
        assert sum(await asyncio.gather(*map(hammer, crowd))) == 100
        await people.operator.execute(
            "select set_level_feature(id, 'raced', 200, 'monthly', p_tenant_id => $1) from levels"
            " where tenant_id = $1 and is_default",
            tenant_id,
        )
        # of 32 who send one key at once, one counts and the others have its answer
        assert sorted(await asyncio.gather(*map(repeat, crowd))) == ["false", *["true"] * 31]
    finally:
        await asyncio.gather(*(connection.close() for connection in crowd))
    used = "select used from level_feature_usage where user_id = $1 and feature = 'raced'"
    assert await people.operator.fetchval(used, user_id) == 101
