"""Every invariant in checks/ is silent on a healthy database and speaks when it is broken."""

import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.conftest import Cluster, People, migrated_database
from vanilla_saas.checks import BOOKS, checks, run_checks

BREAK = {
    "wallets_reconcile": "update user_token_wallets set available_tokens = available_tokens + 1 where user_id = $1",
    "ledger_verify": "update user_token_ledger set reason = reason || '.' where user_id = $1",
    "ledger_without_wallet": """
        insert into user_token_ledger
        select (jsonb_populate_record(l, jsonb_build_object('user_id', gen_random_uuid()))).*
        from user_token_ledger l where user_id = $1 limit 1""",
    "users_without_wallet": "insert into users (tenant_id, external_id) select tenant_id, 'x' from users where id = $1",
    "holds_overdue": "update user_token_holds set expires_at = now() - interval '2 hours' where user_id = $1",
    "executions_charged_twice": """
        insert into ai_executions (tenant_id, user_id, hold_id, provider, model, status, charged_tokens)
        select tenant_id, user_id, id, 'p', 'm', 'succeeded', 5 from user_token_holds, generate_series(1, 2)
        where user_id = $1""",
    "executions_against_ledger": """
        insert into ai_executions (tenant_id, user_id, hold_id, provider, model, status, charged_tokens)
        select tenant_id, user_id, id, 'p', 'm', 'succeeded', 5 from user_token_holds where user_id = $1""",
    "grants_of_another_tenant": """
        update user_token_grants set tenant_id = '00000000-0000-0000-0000-000000000000' where user_id = $1""",
    "partitions_ahead": "drop table public.ai_executions_{next_month}",
    "default_partitions_empty": """
        insert into ai_executions (tenant_id, user_id, created_at, provider, model, status)
        select tenant_id, id, '2001-01-01', 'p', 'm', 'failed' from users where id = $1""",
    "tables_without_ownership": "delete from vanilla.table_ownership where relation = 'users'",
    "row_security_forced": "alter table users no force row level security",
    "definers_pinned": "alter function public.reset_monthly_tokens(integer) reset search_path",
    "execute_to_public": "grant execute on function public.reset_monthly_tokens(integer) to public",
    "partition_grants": "grant select (id) on public.ai_executions_{this_month} to vanilla_app",
    "webhooks_overdue": """
        with made as (
            insert into webhook_endpoints (tenant_id, id, url, event_types, secret)
            select tenant_id, gen_random_uuid(), 'https://example.com', array['*'], 'x' from users where id = $1
            returning *)
        insert into webhook_deliveries (tenant_id, endpoint_id, event_created_at, event_id, next_attempt_at)
        select tenant_id, id, now(), gen_random_uuid(), now() - interval '2 hours' from made""",
    "clock_replaced": """
        create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe
        as 'select now()'""",
}


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    """Healthy to begin with: other tests move the clock of theirs."""
    async with migrated_database(cluster) as name:
        yield name


async def test_a_healthy_database_passes_every_check(operator: asyncpg.Connection, people: People) -> None:
    await used_wallet(people)
    assert [str(finding) for finding in await run_checks(operator)] == []


async def test_the_operator_may_run_every_check(operator: asyncpg.Connection) -> None:
    await operator.execute("set role vanilla_operator")
    assert [str(finding) for finding in await run_checks(operator)] == []


def test_every_check_says_what_it_means_and_how_to_mend_it() -> None:
    found = checks()
    assert {check.name for check in found} == set(BREAK)
    assert set(BOOKS) < set(BREAK)
    for check in found:
        assert check.meaning.endswith(".")
        assert check.mend
        assert "--" not in check.meaning + check.mend


@pytest.mark.parametrize("name", BREAK)
async def test_a_broken_database_is_found(operator: asyncpg.Connection, people: People, name: str) -> None:
    user_id = await used_wallet(people)
    months = await operator.fetchrow(
        "select to_char(now() at time zone 'UTC', 'YYYYMM') as this_month,"
        " to_char(now() at time zone 'UTC' + interval '1 month', 'YYYYMM') as next_month"
    )
    transaction = operator.transaction()
    await transaction.start()
    try:
        await operator.execute("set local session_replication_role = replica")  # past the foreign keys
        statement = BREAK[name].format(**months)
        await operator.execute(statement, *([user_id] if "$1" in statement else []))
        assert {finding.check.name for finding in await run_checks(operator)} >= {name}
    finally:
        await transaction.rollback()


async def used_wallet(people: People) -> uuid.UUID:
    """A user whose wallet has a grant, a hold and entries."""
    person = await people.user(balance=100)
    user_id = person.identity.user_id
    await people.operator.fetchval("select adjust_user_tokens($1, 10, 'reserve')", user_id)
    return user_id
