"""Every file in checks/ is silent on a healthy database, speaks when it is broken, and what it says mends it."""

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.conftest import Cluster, People, migrated_database
from vanilla_saas.checks import BOOKS, Finding, checks, run_checks
from vanilla_saas.database.schema import migrations

EXECUTION = (
    "with made as (insert into workflow_executions (tenant_id, id, user_id, workflow_id, version, status, input,"
    " priority, started_at, finished_at, charged_tokens)"
    " select u.tenant_id, gen_random_uuid(), u.id, u.id, 1, {}, jsonb_build_object(), 5, now(), {}"
    " from users u where u.id = $1 returning *) "
)
RUNNING, ENDED = EXECUTION.format("'running'", "null, 0"), EXECUTION.format("'succeeded'", "now(), 5")
STEP = RUNNING + (
    "insert into workflow_steps (tenant_id, execution_id, node, item, user_id, status, waits_for)"
    " select tenant_id, id, 1, -1, user_id, {} from made"
)
CHARGED = (
    "{}insert into workflow_steps (tenant_id, execution_id, node, item, user_id, status, charged_tokens, cost_micros)"
    " select tenant_id, id, 1, -1, user_id, 'succeeded', {} from made"
)
QUEUED = (
    "insert into workflow_queue (tenant_id, execution_id, node, item, workflow_id, version, user_id, pool, priority,"
    " rank)"
    " select tenant_id, {0}, 1, -1, {0}, 1, {1}, 'default', 5, 0 from {2}"
)

BOOKS_BROKEN = {
    "allocations_reconcile": [
        "insert into resource_allocations (tenant_id, id, user_id, root_id, hold_id, budget_tokens, expires_at,"
        f" {column}) select tenant_id, id, id, id, id, 10, now() + interval '1 day', 5 from users where id = $1"
        for column in ("carved_tokens", "held_tokens", "spent_tokens", "overrun_tokens")
    ]
    + [
        "insert into resource_allocations (tenant_id, id, user_id, root_id, hold_id, budget_tokens, expires_at)"
        " select tenant_id, id, user_id, id, id, amount + 1, expires_at from user_token_holds"
        " where user_id = $1 and state = 'open'",
        "insert into resource_allocations (tenant_id, id, user_id, root_id, parent_id, depth, hold_id, budget_tokens,"
        " expires_at, state, closed_at) select tenant_id, md5(n::text)::uuid, id, md5('1')::uuid, case n when 2 then"
        " md5('1')::uuid end, n - 1, case n when 1 then id end, 10, now() + interval '1 day', case n when 1 then"
        " 'closed' else 'open' end, case n when 1 then now() end from users, generate_series(1, 2) n where id = $1",
        "with step as (insert into allocation_holds (tenant_id, allocation_id, user_id, step, amount, state, settled,"
        " overrun, expires_at, closed_at) select tenant_id, id, id, 'x', 1, 'settled', 5, 0, now(), now() from users"
        " where id = $1) insert into resource_allocations (tenant_id, id, user_id, root_id, hold_id, budget_tokens,"
        " spent_tokens, expires_at) select tenant_id, id, id, id, id, 10, 5, now() + interval '1 day' from users"
        " where id = $1",
    ],
    "engine_flows_changed": [
        "with flow as (insert into workflow_versions (tenant_id, workflow_id, version, user_id, shared, definition,"
        " hash, published_at) select tenant_id, id, 1, id, false, '{{}}', sha256('{{}}'), now() from users"
        " where id = $1 returning *), made as (select tenant_id, workflow_id, jsonb_build_object('flow',"
        " jsonb_build_object('workflow_id', workflow_id, 'version', 1, 'hash', '00'), 'prices', jsonb_build_object(),"
        " 'mode', 'parallel', 'at_once', null) as config from flow) insert into engine_versions (tenant_id, engine_id,"
        " version, workflow_id, workflow_version, mode, config, hash, price_hash, deployed_at) select tenant_id,"
        " workflow_id, 1, workflow_id, 1, 'parallel', config, sha256(convert_to(config::text, 'UTF8')),"
        " sha256('{{}}'), now() from made"
    ],
    "steps_beyond_limit": [
        EXECUTION.replace("charged_tokens)", "charged_tokens, at_once)").format("'running'", "null, 0, 1")
        + QUEUED.format("id", "user_id", "made, generate_series(1, 2) n").replace(" 1, -1,", " n, -1,")
    ],
    "executions_charged": [
        f"{ENDED} select from made",
        CHARGED.format(RUNNING, "5, 0"),
        CHARGED.format(EXECUTION.format("'succeeded'", "now(), 0"), "0, 7"),
    ],
    "executions_stuck": [
        f"{RUNNING} select from made",
        STEP.format("'ready', null"),
        *[STEP.format(f"'waiting', '{what}'") for what in ("approval", "items", "retry", "execution", "slot")],
    ],
    "webhooks_overdue": [
        """
        with made as (
            insert into webhook_endpoints (tenant_id, id, url, event_types, secret)
            select tenant_id, gen_random_uuid(), 'https://example.com', array['*'], 'x'
            from users where role = 'superadmin'
            returning *)
        insert into webhook_deliveries (tenant_id, endpoint_id, event_created_at, event_id, next_attempt_at)
        select tenant_id, id, now(), gen_random_uuid(), now() - interval '2 hours' from made""",
    ],
    "wallets_reconcile": ["update user_token_wallets set available_tokens = available_tokens + 1 where user_id = $1"],
    "ledger_verify": ["update user_token_ledger set reason = reason || '.' where user_id = $1"],
    "ledger_without_wallet": [
        "insert into user_token_ledger"
        " select (jsonb_populate_record(l, jsonb_build_object('user_id', gen_random_uuid()))).*"
        " from user_token_ledger l where user_id = $1 limit 1"
    ],
    "users_without_wallet": [
        "insert into users (tenant_id, external_id) select tenant_id, 'x' from users where id = $1"
    ],
    "executions_charged_twice": [
        "insert into ai_executions (tenant_id, user_id, hold_id, provider, model, status, charged_tokens)"
        " select tenant_id, user_id, id, 'p', 'm', 'succeeded', 5 from user_token_holds, generate_series(1, 2)"
        " where user_id = $1"
    ],
    "executions_against_ledger": [
        "insert into ai_executions (tenant_id, user_id, hold_id, provider, model, status, charged_tokens)"
        " select tenant_id, user_id, id, 'p', 'm', 'succeeded', 5 from user_token_holds where user_id = $1"
    ],
    "grants_of_another_tenant": [
        "update user_token_grants set tenant_id = '00000000-0000-0000-0000-000000000000' where user_id = $1"
    ],
    "super_admin_password": [
        "update users set must_change_password = true, password_hash = 'x' where role = 'superadmin'"
    ],
    "super_admin_missing": ["update users set password_hash = null where role = 'superadmin'"],
    "schedules_overdue": [
        "update schedules set last_run_at = now() - interval '1 hour', next_run_at = now() - interval '16 minutes'"
        " where name = 'holds'",
        "update schedules set last_run_at = now(), next_run_at = case name when 'retention'"
        " then now() - interval '49 hours' else now() end",
    ],
    "restrictions_copied": [
        "update levels set restrictions = jsonb_build_object('requests_per_minute', 1) where slug = 'free'",
        "insert into level_restrictions (tenant_id, level_id, type, amount)"
        " select tenant_id, id, 'api_keys', 1 from levels where slug = 'free'",
    ],
    "invoice_lines_negative": [
        "insert into level_invoice_lines (tenant_id, user_id, level_id, kind, cycle, currency, amount, period_start,"
        " period_end, created_at) select u.tenant_id, u.id, u.id, 'credit', 'monthly', 'EUR', -1, now(),"
        " now() + interval '1 day', now() from users u limit 1"
    ],
    "prices_overlap": [
        "insert into level_pricing (tenant_id, level_id, cycle, currency, amount, valid_from)"
        " select tenant_id, level_id, cycle, currency, 1, now() from level_pricing limit 1"
    ],
    "schedules_failing": ["update schedules set failures = 2, last_error = 'x' where name = 'holds'"],
}
"""Breaks that need judgement, or a command with a secret: their mend is told, not run."""

BREAK = {
    "steps_without_execution": [
        "insert into workflow_steps (tenant_id, execution_id, node, item, user_id, status)"
        " select tenant_id, gen_random_uuid(), n, -1, id, 'succeeded' from users, generate_series(1, 2) n where id = $1"
    ],
    "queue_without_execution": [
        QUEUED.format("gen_random_uuid()", "id", "users where id = $1"),
        ENDED + QUEUED.format("id", "user_id", "made"),
    ],
    "retention_settings": [
        *[
            f"delete from system_configurations where key = 'retention.{log}_days'"
            for log in ("events", "usage_events", "resource_performance_metrics", "system_metrics")
        ],
        "alter table system_configurations drop constraint system_configurations_retention_check;"
        " update system_configurations set value = '30' where key = 'retention.audit_logs_days'",
        "alter table system_configurations drop constraint system_configurations_retention_check;"
        " update system_configurations set value = '\"on\"' where key = 'retention.export'",
    ],
    "allocations_overdue": [
        "with hold as (insert into user_token_holds (tenant_id, id, user_id, amount, requested, epoch, expires_at)"
        " select tenant_id, id, id, 0, 0, 1, now() + interval '1 day' from users where id = $1)"
        " insert into resource_allocations (tenant_id, id, user_id, root_id, hold_id, budget_tokens, expires_at)"
        " select tenant_id, id, id, id, id, 10, now() - interval '2 hours' from users where id = $1",
        "with hold as (insert into user_token_holds (tenant_id, id, user_id, amount, requested, state, epoch,"
        " expires_at, closed_at) select tenant_id, id, id, 0, 0, 'released', 1, now(), now() - interval '2 hours'"
        " from users where id = $1) insert into resource_allocations (tenant_id, id, user_id, root_id, hold_id,"
        " budget_tokens, expires_at) select tenant_id, id, id, id, id, 10, now() + interval '1 day' from users"
        " where id = $1",
        "with step as (insert into allocation_holds (tenant_id, allocation_id, user_id, step, amount, expires_at)"
        " select tenant_id, id, id, 'x', 5, now() - interval '2 hours' from users where id = $1)"
        " insert into resource_allocations (tenant_id, id, user_id, root_id, hold_id, budget_tokens, held_tokens,"
        " open_holds, expires_at) select tenant_id, id, id, id, id, 10, 5, 1, now() + interval '1 day' from users"
        " where id = $1",
    ],
    "holds_overdue": ["update user_token_holds set expires_at = now() - interval '2 hours' where user_id = $1"],
    "partitions_ahead": [
        "drop table public.ai_executions_{next_month}",
        "drop table public.audit_logs_{month_after}",
    ],
    "default_partitions_empty": [
        "insert into ai_executions (tenant_id, user_id, created_at, provider, model, status)"
        " select tenant_id, id, '2001-01-01', 'p', 'm', 'failed' from users where id = $1"
    ],
    "tables_without_ownership": ["delete from vanilla.table_ownership where relation = 'users'"],
    "protection_drift": [
        "alter table users no force row level security",
        "alter policy app_select on users using (true)",
        "create policy more on levels for select to vanilla_app using (true)",
        "grant select (password_hash) on users to vanilla_readonly",
        "grant select (id) on public.ai_executions_{this_month} to vanilla_app",
        "alter table public.audit_logs_default disable row level security",
        "revoke insert on user_token_ledger from vanilla_system",
    ],
    "definers_pinned": [
        "alter function public.reset_monthly_tokens(integer) reset search_path",
        "alter function public.reset_monthly_tokens(integer) set search_path = public",
    ],
    "definers_owned": [
        "alter function public.reset_monthly_tokens(integer) owner to postgres",
        "alter function vanilla.claim(integer, boolean) owner to postgres",
    ],
    "execute_to_public": ["grant execute on function public.reset_monthly_tokens(integer) to public"],
    "clock_replaced": [
        "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe"
        " as 'select now()'"
    ],
    "roles_unbound": [
        "alter role vanilla_app createrole",
        "alter role vanilla_runtime bypassrls",
        "alter role vanilla_readonly superuser",
        "alter role vanilla_owner login",
    ],
    "role_memberships": ["grant vanilla_operator to vanilla_app", "grant pg_read_all_data to vanilla_definer"],
    "role_settings": [
        "alter role vanilla_app set row_security = off",
        "alter database {database} set row_security = off",
        "alter role vanilla_runtime in database {database} set search_path = public",
        "alter role vanilla_readonly set session_replication_role = replica",
    ],
    "logins_create": [
        "grant create on schema public to public",
        "grant create on schema vanilla to vanilla_app",
        "grant temporary on database {database} to vanilla_runtime",
    ],
    "logins_own": [
        "create function public.mine() returns integer return 1; alter function public.mine() owner to vanilla_app",
        "create view public.mine as select 1 as x; alter view public.mine owner to vanilla_runtime",
    ],
    "views_see_as_their_owner": [
        "create view public.leak as select * from users",
        "create view public.leak with (security_invoker = false) as select * from users",
        "create materialized view public.leak as select * from users",
    ],
    "event_triggers": [
        "create function public.spy() returns event_trigger language plpgsql as 'begin end';"
        " create event trigger spy on ddl_command_end execute function public.spy()"
    ],
    "triggers_of_others": [
        "create function public.spy() returns trigger language plpgsql as 'begin return new; end';"
        " create trigger spy before insert on users for each row execute function public.spy()",
        "create rule spy as on insert to levels do also notify spied",
    ],
    "strangers_in_vanilla": [
        "create table vanilla.mine ()",
        "create table vanilla.mine (); alter table vanilla.mine owner to vanilla_owner",
        "create function vanilla.mine() returns integer return 1",
    ],
    "extensions_in_public": ["create extension vector schema public"],
    "publications": ["create publication leak for table users", "create publication leak for all tables"],
    "statements_logged": [
        "alter role vanilla_app set log_statement = 'all'",
        "alter role vanilla_runtime in database {database} set log_min_duration_statement = 0",
    ],
}
"""Breaks whose mend is a statement or a repair, which the test then runs."""

ELSEWHERE = {"logical_slots"}
"""Broken in a test of its own: it needs a server that decodes."""


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    """Healthy to begin with: other tests move the clock of theirs."""
    async with migrated_database(cluster) as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        # as after the first start, and after its password was changed
        await connection.execute(
            "update users set password_hash = 'x', must_change_password = false where role = 'superadmin'"
        )
        await connection.close()
        yield name


async def test_a_healthy_database_passes_every_check(operator: asyncpg.Connection, people: People) -> None:
    await used_wallet(people)
    assert [str(finding) for finding in await run_checks(operator)] == []


async def test_the_operator_may_run_every_check(operator: asyncpg.Connection) -> None:
    await operator.execute("set role vanilla_operator")
    assert [str(finding) for finding in await run_checks(operator)] == []


def test_every_check_says_what_it_means_and_how_to_mend_it_and_has_a_breaking_case() -> None:
    found = checks()
    assert {check.name for check in found} == {*BREAK, *BOOKS_BROKEN, *ELSEWHERE}
    assert set(BOOKS) < set(BOOKS_BROKEN)
    for check in found:
        assert check.meaning.endswith("."), check.name
        assert check.mend, check.name
        assert "--" not in check.meaning, check.name
        assert "Severity" not in check.meaning + check.mend, check.name
    assert {check.name for check in found if check.severity == "warning"} == {
        "super_admin_password",
        "super_admin_missing",
        "event_triggers",
        "extensions_in_public",
        "publications",
        "logical_slots",
        "schedules_overdue",
        "statements_logged",
    }


@asynccontextmanager
async def broken(operator: asyncpg.Connection, people: People, statement: str) -> AsyncIterator[None]:
    """The statement is in force inside the block, for this connection alone."""
    user_id = await used_wallet(people)
    names = await operator.fetchrow(
        "select current_database() as database, to_char(m, 'YYYYMM') as this_month,"
        " to_char(m + interval '1 month', 'YYYYMM') as next_month,"
        " to_char(m + interval '2 months', 'YYYYMM') as month_after"
        " from (select date_trunc('month', now() at time zone 'UTC') as m) s"
    )
    transaction = operator.transaction()
    await transaction.start()
    try:
        await operator.execute("set local session_replication_role = replica")  # past the foreign keys
        await operator.execute(statement.format(**names), *([user_id] if "$1" in statement else []))
        await operator.execute("set local session_replication_role = origin")
        yield
    finally:
        await transaction.rollback()


async def found_by_operator(connection: asyncpg.Connection, name: str) -> list[Finding]:
    """What the role that doctor needs finds; a superuser would also see where it is refused."""
    await connection.execute("set local role vanilla_operator")
    found = [finding for finding in await run_checks(connection) if finding.check.name == name]
    await connection.execute("reset role")
    return found


async def repair(operator: asyncpg.Connection) -> None:
    """What migrate --repair runs, inside the transaction of the test."""
    for file in migrations():
        text = file.path.read_text()
        await operator.execute(re.sub(r"(?m)^(begin|commit);$", "", text))
        await operator.execute("reset role")


@pytest.mark.parametrize(("name", "statement"), [(name, one) for name, every in BOOKS_BROKEN.items() for one in every])
async def test_what_needs_judgement_is_found(
    operator: asyncpg.Connection, people: People, name: str, statement: str
) -> None:
    async with broken(operator, people, statement):
        found = await found_by_operator(operator, name)
        assert found
        assert all(finding.statement is None for finding in found)


@pytest.mark.parametrize(("name", "statement"), [(name, one) for name, every in BREAK.items() for one in every])
async def test_a_broken_database_is_found_and_its_mend_mends_it(
    operator: asyncpg.Connection, people: People, name: str, statement: str
) -> None:
    wanted = re.match("create extension (\\w+)", statement)
    if wanted and not await operator.fetchval("select 1 from pg_available_extensions where name = $1", wanted[1]):
        pytest.skip(f"this server has no {wanted[1]}")
    async with broken(operator, people, statement):
        found = await found_by_operator(operator, name)
        assert found
        for finding in found:
            if finding.statement is not None:
                await operator.execute(finding.statement)
                await operator.execute("reset role")
            else:
                assert finding.check.mend.endswith("vanilla-saas migrate --repair")
                await repair(operator)
        assert [str(finding) for finding in await found_by_operator(operator, name)] == []


@pytest.mark.parametrize(
    "setting", ["log_statement = 'all'", "log_min_duration_statement = 0", "log_parameter_max_length_on_error = -1"]
)
async def test_a_server_that_logs_parameters_is_found(operator: asyncpg.Connection, setting: str) -> None:
    async with operator.transaction():
        await operator.execute(f"set local {setting}")
        (finding,) = await run_checks(operator, ("statements_logged",))
    assert finding.statement
    assert finding.statement.startswith("alter system set log_parameter_max_length")


async def used_wallet(people: People) -> uuid.UUID:
    """A user whose wallet has a grant, a hold and entries."""
    person = await people.user(balance=100)
    user_id = person.identity.user_id
    await people.operator.fetchval("select adjust_user_tokens($1, 10, 'reserve')", user_id)
    return user_id
