"""A tenant is closed with a grace, opened again within it, erased after it in parts that survive a kill."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster, People, Person
from tests.operations.schedule_support import Time, own_time
from tests.processes import eventually
from vanilla_saas.checks import BOOKS, run_checks

TENANT = "select status, name, slug, erase_at, erased_at, self_registration from tenants where id = $1"
LEFT = "select count(*) from users where tenant_id = $1 and status <> 'deleted'"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
async def database(cluster: Cluster) -> AsyncIterator[Time]:
    async with own_time(cluster) as made:
        yield made


@pytest.fixture
async def time(database: Time) -> AsyncIterator[Time]:
    await database.move(timedelta())
    yield database
    assert await run_checks(database.connection, BOOKS) == []
    # what this test left is no other's
    await database.connection.execute("update tenants set erase_at = null where erased_at is null")
    await database.set("tenants.grace_days", 30)


@pytest.fixture
def crowd(time: Time) -> People:
    return People(time.connection)


async def close(time: Time, tenant: Any, **more: timedelta) -> asyncpg.Record:
    await time.connection.fetchval("select close_tenant($1, 'unpaid', $2)", tenant, more.get("grace"))
    return await time.connection.fetchrow(TENANT, tenant)


async def run(time: Time) -> dict[str, Any]:
    """The job to its end, as an operator asks for it."""
    await time.connection.fetchval("select request_schedule('closings')")
    return await time.run("closings")


async def refusal(statement: Any) -> str:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await statement
    return str(refused.value.sqlstate)


async def test_a_closed_tenant_is_opened_again_within_its_grace_and_nobody_in_it_was_erased(
    time: Time, crowd: People
) -> None:
    tenant = await crowd.tenant()
    await crowd.user("admin", tenant)
    closed = await close(time, tenant)
    assert closed["status"] == "closed"
    assert closed["erase_at"] - await time.connection.fetchval("select now()") > 29 * DAY
    await time.move(29 * DAY)
    assert "tenants" not in await run(time)
    await time.connection.fetchval("select set_tenant_status($1, 'active')", tenant)
    opened = await time.connection.fetchrow(TENANT, tenant)
    assert (opened["status"], opened["erase_at"]) == ("active", None)
    await time.move(40 * DAY)
    await run(time)
    assert await time.connection.fetchval(LEFT, tenant) == 1


async def test_how_long_the_grace_is_says_the_call_or_else_the_setting(time: Time, crowd: People) -> None:
    tenant = await crowd.tenant()
    await time.set("tenants.grace_days", 7)
    now = await time.connection.fetchval("select now()")
    week = (await close(time, tenant))["erase_at"] - now
    assert 6 * DAY < week < 8 * DAY
    # closed already: nothing is changed, the date included
    await close(time, tenant, grace=timedelta())
    assert (await time.connection.fetchrow(TENANT, tenant))["erase_at"] - now == week
    assert await refusal(close(time, tenant, grace=-DAY)) == "VS400"
    assert await refusal(close(time, tenant, grace=40_000 * DAY)) == "VS400"
    for value in (-1, 1.5, "many", 36_501):
        assert await refusal(time.set("tenants.grace_days", value)) == "23514"
    add = "insert into system_configurations (tenant_id, key, value) values ($1, $2, '3')"
    assert await refusal(time.connection.execute(add, tenant, "tenants.grace_days")) == "23514"
    assert await refusal(time.connection.execute(add, tenant, "tenants.grace")) == "23514"
    # without the setting a month
    other = await crowd.tenant()
    async with time.connection.transaction():
        await time.connection.execute("delete from system_configurations where key = 'tenants.grace_days'")
        assert (await close(time, other))["erase_at"] - now > 29 * DAY
        await time.connection.execute(
            "insert into system_configurations (tenant_id, key, value) values (vanilla.platform(), $1, '30')",
            "tenants.grace_days",
        )


async def furnished(time: Time, crowd: People, persons: int) -> tuple[Any, list[Person]]:
    """A tenant with an admin, users, a provider's secret, a webhook with a delivery, a setting."""
    tenant = await crowd.tenant()
    people = [await crowd.user("admin" if not n else "user", tenant) for n in range(persons)]
    await time.connection.execute(
        "insert into ai_providers (tenant_id, slug, name, kind, base_url, secret, secret_hint)"
        " values ($1, 'own', 'Own', 'openai', 'https://example.test', '\\x01', '..1')",
        tenant,
    )
    await time.connection.execute(
        "insert into system_configurations (tenant_id, key, value) values ($1, 'gateway.min_output_tokens', '8')",
        tenant,
    )
    await time.connection.fetchval(
        "select create_webhook_endpoint(vanilla.uuid7(), 'https://example.test/h', '{*}', '\\x02', p_tenant_id => $1)",
        tenant,
    )
    return tenant, people


async def test_after_the_grace_persons_secrets_and_settings_go_and_amounts_stay(time: Time, crowd: People) -> None:
    tenant, people = await furnished(time, crowd, 4)
    hold = await time.connection.fetchval(
        "select adjust_user_tokens($1, 70, 'reserve') ->> 'hold_id'", people[1].identity.user_id
    )
    neighbour, _ = await furnished(time, crowd, 2)
    slug = (await close(time, tenant, grace=2 * DAY))["slug"]
    entries = "select count(*) from user_token_ledger where tenant_id = $1"
    before = await time.connection.fetchval(entries, tenant)
    await time.move(3 * DAY)
    for status in ("active", "suspended"):
        again = time.connection.fetchval("select set_tenant_status($1, $2)", tenant, status)
        assert await refusal(again) == "VS409", "opened after its grace, before the job"
    result = await run(time)
    assert (result["tenants"], result["persons"]) == (1, 4)
    erased = await time.connection.fetchrow(TENANT, tenant)
    assert (erased["status"], erased["name"], erased["slug"], erased["self_registration"]) == (
        "closed",
        slug,
        slug,
        False,
    )
    assert erased["erased_at"] is not None
    assert await time.connection.fetchval(LEFT, tenant) == 0
    assert await time.connection.fetchval(entries, tenant) >= before + 3
    gone = "select (select count(*) from {} where tenant_id = $1 {})"
    for table, which in {
        "webhook_endpoints": "",
        "webhook_deliveries": "",
        "system_configurations": "",
        "ai_providers": "and (secret is not null or secret_hint is not null)",
    }.items():
        assert await time.connection.fetchval(gone.format(table, which), tenant) == 0, table
    assert await time.connection.fetchval(LEFT, neighbour) == 2
    assert await time.connection.fetchval(gone.format("webhook_endpoints", ""), neighbour) == 1
    # in both logs; opened no more; its name is not taken over
    logs = await time.connection.fetch(
        "select tenant_id, actor_role from audit_logs where action = 'tenant.erased' and target_id = $1", tenant
    )
    assert {row["tenant_id"] for row in logs} == {tenant, await time.connection.fetchval("select vanilla.platform()")}
    assert {row["actor_role"] for row in logs} == {"system"}
    again = time.connection.fetchval("select set_tenant_status($1, 'active')", tenant)
    assert await refusal(again) == "VS409"
    assert await refusal(time.connection.fetchval("select create_tenant($1, 'Other')", slug)) == "VS409"
    # the call that was under way is charged, and its wallet closed then
    await time.connection.fetchval("select settle_user_tokens($1::text::uuid, 30)", hold)
    assert (await run(time))["wallets"] == 1
    wallets = await time.connection.fetch(
        "select distinct status, available_tokens, reserved_tokens from user_token_wallets where tenant_id = $1", tenant
    )
    assert [tuple(row) for row in wallets] == [("closed", 0, 0)]
    # once is enough
    assert "tenants" not in await run(time)


async def test_without_a_grace_a_closed_tenant_is_erased_at_once(time: Time, crowd: People) -> None:
    tenant, _ = await furnished(time, crowd, 1)
    await close(time, tenant, grace=timedelta())
    assert await refusal(time.connection.fetchval("select set_tenant_status($1, 'active')", tenant)) == "VS409"
    await run(time)
    assert await time.connection.fetchval(LEFT, tenant) == 0


async def test_a_clock_that_leaps_ahead_erases_nobody_for_a_day(time: Time, crowd: People) -> None:
    tenant = await crowd.tenant()
    await crowd.user("admin", tenant)
    await run(time)
    await close(time, tenant, grace=10 * DAY)
    await time.move(11 * DAY)
    assert await time.part("closings") == {"ran": False, "more": False}
    assert (await time.job("closings"))["state"] == "held"
    assert await time.connection.fetchval(LEFT, tenant) == 1
    await time.move(12 * DAY + timedelta(minutes=1))
    await time.run("closings")
    assert await time.connection.fetchval(LEFT, tenant) == 0


async def test_a_job_that_is_killed_loses_one_part_and_the_next_goes_on(time: Time, crowd: People) -> None:
    tenant, people = await furnished(time, crowd, 6)
    await close(time, tenant, grace=timedelta())
    await time.connection.execute("update schedules set part_size = 2 where name = 'closings'")
    await time.connection.fetchval("select request_schedule('closings')")
    first = await time.part("closings")
    assert (first["more"], first["figures"]["persons"]) == (True, 2)
    # the next part waits for the wallet of its last person, with the others done, and its session is killed
    blocker = await asyncpg.connect(time.url)
    victim = await asyncpg.connect(time.url)
    try:
        await blocker.execute("begin")
        await blocker.fetch(
            "select from user_token_wallets where tenant_id = $1 and user_id = $2 for update",
            tenant,
            max(person.identity.user_id for person in people),
        )
        part = asyncio.ensure_future(victim.fetchval("select vanilla.job_closings(10)"))

        async def waits() -> bool:
            return await time.connection.fetchval(
                "select cardinality(pg_blocking_pids($1)) > 0", victim.get_server_pid()
            )

        await eventually(waits)
        await time.connection.fetchval("select pg_terminate_backend($1)", victim.get_server_pid())
        with pytest.raises((asyncpg.PostgresError, ConnectionError)):
            await part
        assert await time.connection.fetchval(LEFT, tenant) == 4, "a part that was killed is there in parts"
    finally:
        await blocker.close()
        victim.terminate()
    while (await time.part("closings"))["more"]:
        pass
    assert await time.connection.fetchval(LEFT, tenant) == 0
    audit = await time.connection.fetchval(
        "select count(*) from audit_logs where tenant_id = $1 and action = 'user.erased'", tenant
    )
    assert audit == len(people), "somebody was erased twice, or without a word"
    assert (await time.connection.fetchrow(TENANT, tenant))["erased_at"] is not None
