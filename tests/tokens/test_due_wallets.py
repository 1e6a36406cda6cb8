"""Whoever looks at a wallet sees what its next operation would find, also when nobody has touched it since."""

import asyncio

import aiohttp
import asyncpg
import pytest

from tests.concurrency.test_operations import END_PERIOD
from tests.conftest import Cluster, People, Person
from tests.console.console_support import look, signed_in
from tests.tokens.test_routes import admin_of, get
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database

LAPSE = """
with lapsed as (update user_token_grants set expires_at = clock_timestamp() where user_id = $1 and kind = 'promo'
    returning expires_at)
update user_token_wallets set next_event_at = (select min(expires_at) from lapsed) where user_id = $1
"""


@pytest.fixture
async def person(people: People) -> Person:
    """15,000 given by the level, 100 by a promotion, 14,000 spent: the period and the promotion end now, unnoticed."""
    made = await people.user()
    user = made.identity.user_id
    await people.operator.fetchval("select grant_user_tokens($1, 100, 'promo', p_priority => 99)", user)
    await people.operator.fetchval("select adjust_user_tokens($1, 14000, 'debit')", user)
    await people.operator.execute(END_PERIOD, user)
    return made


async def test_the_wallet_over_http_shows_the_period_that_has_just_begun(
    http: aiohttp.ClientSession, people: People, person: Person
) -> None:
    before = await people.wallet(person)
    assert before["available_tokens"] == 1100
    shown = await get(http, person, "/wallet")
    assert (shown["available"], shown["spent"]) == (11_100, 14_000)
    assert {grant["kind"]: grant["remaining"] for grant in shown["grants"]} == {
        "plan": 10_000,
        "base": 1000,
        "promo": 100,
    }
    assert shown["next_reset_at"] > before["next_reset_at"].isoformat()
    # and it is what an operation finds, not a picture of it
    entry = await people.operator.fetchval("select adjust_user_tokens($1, 1, 'debit')", person.identity.user_id)
    assert entry["available_tokens"] == 11_099


async def test_an_admin_sees_the_lapse_of_a_grant_in_the_wallet_and_in_the_list_of_grants(
    http: aiohttp.ClientSession, people: People, person: Person
) -> None:
    admin, user = await admin_of(people, person), person.identity.user_id
    assert (await get(http, admin, f"/wallets/{user}"))["available"] == 11_100
    await people.operator.execute(LAPSE, user)
    listed = await get(http, admin, "/grants", user_id=str(user), kind="promo")
    assert [(grant["state"], grant["remaining"]) for grant in listed["items"]] == [("expired", 0)]
    assert (await get(http, admin, f"/wallets/{user}"))["available"] == 11_000


async def test_the_page_of_the_wallet_shows_the_new_period(api: str, people: People, person: Person) -> None:
    async with signed_in(api, people, person) as browser:
        _, page, _ = await look(browser, "/wallet")
    assert "11,100" in page.text


async def test_looking_waits_for_nobody_and_plays_nothing_twice(
    http: aiohttp.ClientSession, cluster: Cluster, database_name: str, people: People, person: Person
) -> None:
    user = person.identity.user_id
    other = await asyncpg.connect(cluster.url(database=database_name))
    try:
        async with other.transaction():
            await other.execute("select from user_token_wallets where user_id = $1 for update", user)
            async with asyncio.timeout(30):
                assert (await get(http, person, "/wallet"))["available"] == 1100
    finally:
        await other.close()
    shown = await asyncio.gather(*(get(http, person, "/wallet") for _ in range(8)))
    assert {wallet["available"] for wallet in shown} <= {1100, 11_100}
    assert (await get(http, person, "/wallet"))["available"] == 11_100
    plans = await people.operator.fetchval(
        "select count(*) from user_token_ledger where user_id = $1 and reason = 'period allocation'", user
    )
    assert plans == 2


async def test_a_user_refreshes_no_other_wallet(database: Database, people: People, person: Person) -> None:
    other = await people.user()
    for owner in (person, await people.user(tenant_id=await people.tenant())):
        with pytest.raises(VanillaError) as refused:
            async with database.transaction(other.identity) as connection:
                await connection.fetchval("select refresh_token_wallet($1)", owner.identity.user_id)
        assert refused.value.name == "forbidden"
    assert (await people.wallet(person))["available_tokens"] == 1100
