"""What the files put into a new database, and how the log tables get their months."""

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, SUPER_ADMIN
from vanilla_saas.database.context import PLATFORM

LOGS = (
    "ai_executions",
    "audit_logs",
    "events",
    "worker_event_logs",
    "routing_metrics",
    "routing_decisions",
    "engine_executions",
)
AHEAD = "date_trunc('month', now() at time zone 'UTC') + make_interval(months => $1)"


@pytest.mark.parametrize("tenant", [PLATFORM, DEFAULT_TENANT])
async def test_four_levels_with_policies_are_there(operator: asyncpg.Connection, tenant: object) -> None:
    rows = await operator.fetch(
        """
        select l.slug, l.tier, l.is_default, p.monthly_allocation, p.enforcement_mode from levels l
        join level_token_policies p on p.tenant_id = l.tenant_id and p.level_id = l.id
        where l.tenant_id = $1 and l.slug in ('free', 'basic', 'premium', 'enterprise') order by l.tier""",
        tenant,
    )
    assert [tuple(r) for r in rows] == [
        ("free", 0, True, 10_000, "hard"),
        ("basic", 1, False, 200_000, "hard"),
        ("premium", 2, False, 2_000_000, "hard"),
        ("enterprise", 3, False, 20_000_000, "warn"),
    ]


async def test_the_super_admin_has_no_password_until_one_is_set(operator: asyncpg.Connection) -> None:
    user = await operator.fetchrow("select * from users where id = $1", SUPER_ADMIN)
    assert (user["tenant_id"], user["role"], user["status"]) == (PLATFORM, "superadmin", "active")
    assert user["password_hash"] is None
    assert user["must_change_password"]
    assert await operator.fetchval("select count(*) from users where role = 'superadmin'") == 1
    assert await operator.fetchval("select count(*) from user_token_wallets where user_id = $1", SUPER_ADMIN) == 1


async def test_providers_have_no_secret_and_the_sandbox_has_priced_models(operator: asyncpg.Connection) -> None:
    providers = await operator.fetch("select slug, secret from ai_providers where tenant_id = $1", PLATFORM)
    assert {r["slug"] for r in providers} >= {"openai", "anthropic", "google", "sandbox"}
    assert {r["secret"] for r in providers} == {None}
    models = await operator.fetch(
        "select slug, kind, input_price, output_price from ai_models where tenant_id = $1 and price_source = 'sandbox'",
        PLATFORM,
    )
    kinds = {"sandbox-small": "chat", "sandbox-large": "chat", "sandbox-embed": "embedding"}
    assert {r["slug"]: r["kind"] for r in models} == kinds
    assert all(r["input_price"] > 0 and (r["output_price"] > 0) == (r["kind"] == "chat") for r in models)


@pytest.mark.parametrize("log", LOGS)
async def test_this_month_and_the_next_three_have_a_partition_and_the_rest_a_default(
    operator: asyncpg.Connection, log: str
) -> None:
    names = {
        r["name"]
        for r in await operator.fetch(
            "select inhrelid::regclass::text as name from pg_inherits where inhparent = $1::text::regclass", log
        )
    }
    months = [await operator.fetchval(f"select to_char({AHEAD}, 'YYYYMM')", ahead) for ahead in range(4)]
    assert names >= {f"{log}_{month}" for month in months} | {f"{log}_default"}


@pytest.mark.parametrize("log", LOGS)
async def test_rows_that_came_before_their_month_move_into_its_partition(
    operator: asyncpg.Connection, log: str
) -> None:
    transaction = operator.transaction()
    await transaction.start()
    columns, values = {
        "ai_executions": ("user_id, provider, model, status", "vanilla.uuid7(), 'p', 'early', 'succeeded'"),
        "audit_logs": ("actor_role, action", "'operator', 'early'"),
        "events": ("type", "'token.early'"),
        "worker_event_logs": (
            "worker_id, worker, event, to_status, reason, health_score",
            "vanilla.uuid7(), 'w', 'registered', 'registered', 'early', 100",
        ),
        "routing_metrics": ("worker_id", "vanilla.uuid7()"),
        "routing_decisions": (
            "strategy, kind, target, config, candidates, context, seed, result",
            "'early', 'sticky', 'worker', '{}', '[]', '{}', 1, '{}'",
        ),
        "engine_executions": (
            "id, user_id, engine_tenant_id, engine_id, version, source, config_hash, price_hash, estimated_from",
            "vanilla.uuid7(), vanilla.uuid7(), vanilla.platform(), vanilla.uuid7(), 1, 'reference', '', '', 0",
        ),
    }[log]
    for day in ("1 second", "14 days", "27 days 23 hours"):
        await operator.execute(
            f"insert into {log} (tenant_id, created_at, {columns}) select $2,"
            f" (({AHEAD}) at time zone 'UTC') + interval '{day}', {values}",
            9,
            DEFAULT_TENANT,
        )
    partition = f"{log}_" + await operator.fetchval(f"select to_char({AHEAD}, 'YYYYMM')", 9)
    rows = (
        f"select x::text from {log} x where tenant_id = '{DEFAULT_TENANT}' and created_at > now() + interval '7 months'"
        " order by 1"
    )
    before = await operator.fetch(rows)
    assert len(before) == await operator.fetchval(f"select count(*) from {log}_default") == 3
    made = await operator.fetchval("select vanilla.ensure_partitions(9)")
    assert made >= 6 * len(LOGS)
    assert await operator.fetchval(f"select count(*) from {log}_default") == 0
    assert await operator.fetchval(f"select count(*) from {partition}") == 3
    assert await operator.fetch(rows) == before
    assert await operator.fetchval("select vanilla.ensure_partitions(9)") == 0
    closed = """
        select relrowsecurity and relforcerowsecurity and array(
            select a.grantee::regrole || ' ' || a.privilege_type from aclexplode(relacl) a where a.grantee <> relowner)
        = '{vanilla_operator SELECT}' from pg_class where relname = $1"""
    assert await operator.fetchval(closed, partition)
    await transaction.rollback()


@pytest.mark.parametrize("months", [-1, 25])
async def test_a_wild_number_of_months_is_refused(operator: asyncpg.Connection, months: int) -> None:
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await operator.fetchval("select vanilla.ensure_partitions($1)", months)
    assert refusal.value.sqlstate == "VS400"


async def test_partitions_begin_and_end_at_midnight_utc_whatever_the_sessions_time_zone(
    operator: asyncpg.Connection,
) -> None:
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute("set local time zone 'Pacific/Auckland'")
    await operator.fetchval("select vanilla.ensure_partitions(5)")
    await operator.execute("set local time zone 'UTC'")
    bounds = await operator.fetch("""
        select pg_get_expr(c.relpartbound, c.oid) as b from pg_class c
        where c.relispartition and c.relkind = 'r' and c.relname not like '%default'""")
    assert bounds
    assert all(r["b"].count("-01 00:00:00+00'") == 2 for r in bounds)
    await transaction.rollback()
