"""Erasing a person: what goes, what stays, who may, and that the books stay right."""

import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import People, Person
from vanilla_saas.checks import BOOKS, run_checks
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy import store

WORDLESS = {
    "user_token_wallets",
    "user_token_policies",
    "one_time_tokens",
    "user_rate_windows",
    "workflow_timers",
    "engine_assignments",
    "engine_executions",
    "agreement_parties",
    "agreement_versions",
    "agreement_acceptances",
}
"""Tables of a person that hold no text of theirs."""
STAYS = {
    # in the hash chain, which verifies only as it was written
    "user_token_ledger": {"reason", "source", "reference_type", "metadata", "idempotency_key"},
    # insert-only until their retention
    "audit_logs": {"details", "ip", "request_id"},
    "events": {"payload"},
    # what was called and what a step was held for, not by whom
    "ai_executions": {"provider", "model", "error_code", "request_id"},
    "user_token_holds": {"reference_type", "call"},
    "allocation_holds": {"step"},
    # why a super admin entered a tenant, which is the tenant's to know
    "tenant_openings": {"reason"},
    # the first characters of a random key
    "api_keys": {"prefix"},
    # slugs of levels, which are no person's
    "user_level_changes": {"from_level", "to_level"},
    # what was paid, and who that was at Stripe, which a refund names: there the person is deleted by hand
    "payment_customers": {"customer_id"},
    "payment_subscriptions": {"subscription_id", "price_id", "currency"},
    "payments": {"price_id", "currency", "intent_id", "error"},
    # as which party, and which act it was: words of the agreement, which the others have too
    "agreement_violations": {"party", "performative"},
    "channel_participants": {"party"},
    # what was agreed and paid, in levels and amounts
    "level_changes": {"terms"},
    "level_invoice_lines": {"currency", "payment_reference"},
}
"""Columns that an erasure leaves as they are: docs/design/tenancy.md, "Erasing a person"."""
FIXED = {
    ("users", "role"),
    ("users", "status"),
    ("user_token_policies", "enforcement_mode"),
    ("user_token_wallets", "enforcement_mode"),
    ("user_token_wallets", "status"),
    ("user_token_grants", "kind"),
    ("user_token_grants", "state"),
    ("user_token_holds", "state"),
    ("ai_executions", "status"),
    ("one_time_tokens", "purpose"),
    ("user_level_changes", "kind"),
    ("payment_subscriptions", "state"),
    ("user_subscriptions", "cycle"),
    ("level_changes", "timing"),
    ("level_changes", "state"),
    ("level_invoice_lines", "kind"),
    ("level_invoice_lines", "cycle"),
    ("payments", "cause"),
    ("payments", "state"),
    ("ai_workflows", "status"),
    ("ai_workflows", "slug"),
    ("workflow_schedules", "cron"),
    ("workflow_schedules", "name"),
    ("workflow_schedules", "catch_up"),
    ("workflow_executions", "status"),
    ("workflow_steps", "status"),
    ("workflow_timers", "kind"),
    ("workflow_signals", "name"),
    ("workflow_approvals", "status"),
    ("workflow_approvals", "on_deadline"),
    ("workflow_approval_votes", "decision"),
    ("api_keys", "engine_ref"),
    ("engine_assignments", "target"),
    ("engine_assignments", "pin_alias"),
    ("engine_executions", "source"),
    ("engine_executions", "alias"),
    ("user_engines", "slug"),
    ("agents", "slug"),
    ("agents", "status"),
    ("agent_runs", "state"),
    ("agent_runs", "stop_reason"),
    ("agent_run_steps", "kind"),
    ("agent_run_steps", "status"),
    ("run_artifacts", "media_type"),
    ("contract_calls", "rule"),
    ("contract_calls", "state"),
    ("contract_bids", "state"),
    ("resource_allocations", "state"),
    ("allocation_holds", "state"),
    ("protocol_agreements", "status"),
    ("protocol_agreements", "suspended_by"),
    ("agreement_parties", "party"),
    ("agreement_violations", "rule"),
    ("communication_channels", "kind"),
    ("communication_channels", "status"),
    ("communication_channels", "floor_policy"),
    ("channel_participants", "kind"),
    ("channel_messages", "performative"),
}
"""Texts of persons' tables that can only be one of a few words, and a slug, which has the canary from its beginning."""
WRITTEN_BY_FUNCTIONS = (
    "user_token_ledger",
    "audit_logs",
    "events",
    "workflow_versions",
    "agreement_versions",
    "agreement_acceptances",
    "agent_versions",
)


async def wallet(operator: asyncpg.Connection, person: Person) -> asyncpg.Record:
    return await operator.fetchrow("select * from user_token_wallets where user_id = $1", person.identity.user_id)


async def erase(operator: asyncpg.Connection, person: Person) -> dict[str, Any]:
    erased: dict[str, Any] = await operator.fetchval("select erase_user($1, 'asked for')", person.identity.user_id)
    return erased


async def refused(statement: Any) -> str:
    """The SQLSTATE with which a call is refused."""
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await statement
    return str(refusal.value.sqlstate)


async def entries(operator: asyncpg.Connection, person: Person) -> list[tuple[Any, ...]]:
    rows = await operator.fetch(
        "select direction, amount, reserved_amount from user_token_ledger where user_id = $1 order by seq",
        person.identity.user_id,
    )
    return [tuple(row) for row in rows]


async def plant(operator: asyncpg.Connection, person: Person) -> tuple[str, set[tuple[str, str]]]:
    """Rows of the person in every table of theirs, a canary in every text; it, and the columns that take none."""
    user_id, tenant_id, canary = person.identity.user_id, person.identity.tenant_id, f"canary-{uuid.uuid4().hex}"
    await operator.execute("select set_config('vanilla.request_id', $1, false)", f"{canary}-request")
    await operator.fetchval(
        "select adjust_user_tokens($1, 500, 'credit', $2::text, $2::text, $2::text, null, null,"
        " jsonb_build_object('k', $2::text), $2::text)",
        user_id,
        canary,
    )
    await operator.fetchval(
        "select grant_user_tokens($1, 70, 'promo', now() + interval '1 year', p_reason => $2::text,"
        " p_metadata => jsonb_build_object('k', $2::text), p_idempotency_key => $2::text)",
        user_id,
        canary,
    )
    grant = await operator.fetchval("select grant_user_tokens($1, 30, p_reason => $2) ->> 'id'", user_id, canary)
    await operator.fetchval(
        "select void_token_grant($1, $2, p_idempotency_key => $3)", uuid.UUID(grant), canary, f"{canary}-v"
    )
    await operator.fetchval("select set_user_token_policy($1, 10)", user_id)
    hold = await operator.fetchval("select adjust_user_tokens($1, 10, 'reserve', $2) ->> 'hold_id'", user_id, canary)
    await operator.fetchval("select settle_user_tokens($1, 4)", uuid.UUID(hold))
    await operator.fetchval("select issue_one_time_token($1, sha256($2))", user_id, uuid.uuid4().bytes)
    await operator.fetchval(
        "select vanilla.finish_sign_in(t.slug, $1, sha256($2), sha256($3), $4, $4) from tenants t where t.id = $5",
        person.email,
        uuid.uuid4().bytes,
        uuid.uuid4().bytes,
        canary,
        tenant_id,
    )
    drawn = await operator.fetchval(
        "select save_workflow($1, jsonb_build_object('name', $1::text, 'nodes', array[jsonb_build_object("
        "'id', 'a', 'kind', 'llm', 'prompt', $1::text)]), p_user_id => $2) ->> 'id'",
        canary,
        user_id,
    )
    await operator.fetchval("select publish_workflow($1)", uuid.UUID(drawn))
    await operator.fetchval("select set_workflow_schedule($1, 'nightly', '0 2 * * *')", uuid.UUID(drawn))
    await operator.execute(
        "with run as (insert into workflow_executions (tenant_id, id, user_id, workflow_id, version, input, priority,"
        "   started_at) values ($1, vanilla.uuid7(), $2, $3, 1, '{}', 5, now()) returning *),"
        " step as (insert into workflow_steps (tenant_id, execution_id, node, item, user_id, status)"
        "   select tenant_id, id, 1, -1, user_id, 'pending' from run),"
        " signal as (insert into workflow_signals (tenant_id, execution_id, name, user_id, sent_at)"
        "   select tenant_id, id, 'go', user_id, now() from run),"
        " queued as (insert into workflow_queue (tenant_id, execution_id, node, item, workflow_id, version, "
        "user_id, pool,"
        "   priority, rank) select tenant_id, id, 1, -1, workflow_id, 1, user_id, 'default', 5, 0 from run),"
        " timed as (insert into workflow_timers (tenant_id, execution_id, node, item, user_id, kind, due_at)"
        "   select tenant_id, id, 1, -1, user_id, 'wait', '2199-01-01' from run),"
        " gate as (insert into quality_gate_results (tenant_id, id, user_id, workflow_id, version, execution_id, gate,"
        "   round, passed, score, threshold, created_at)"
        "   select tenant_id, id, user_id, workflow_id, 1, id, 'g', 0, true, 1, 0, now() from run),"
        " approval as (insert into workflow_approvals (tenant_id, id, execution_id, node, user_id, title, approvers,"
        "   quorum, created_at) select tenant_id, id, id, 1, user_id, 't', '{}', 1, now() from run)"
        " insert into workflow_approval_votes (tenant_id, approval_id, user_id, decision, voted_at)"
        " select tenant_id, id, user_id, 'approved', now() from run",
        tenant_id,
        user_id,
        uuid.UUID(drawn),
    )
    budget = await operator.fetchval(
        "select vanilla.allocation_open($1, $2, 5, p_idempotency_key => 'budget') ->> 'allocation_id'",
        tenant_id,
        user_id,
    )
    await operator.fetchval("select vanilla.allocation_hold($1, $2, 'a', 1)", tenant_id, uuid.UUID(budget))
    await operator.fetchval("select vanilla.allocation_end($1, $2)", tenant_id, uuid.UUID(budget))
    await operator.execute(
        "insert into ai_executions (tenant_id, user_id, provider, model, status)"
        " values ($1, $2, 'p', 'm', 'succeeded')",
        tenant_id,
        user_id,
    )
    await _choose_engine(operator, tenant_id, user_id)
    await _run_agent(operator, tenant_id, user_id, canary)
    await operator.execute(
        "insert into tenant_openings (tenant_id, user_id, reason, expires_at) values ($1, $2, 'r', now())",
        tenant_id,
        user_id,
    )
    await operator.fetchval(
        "select count(set_level_feature(level_id, 'drawings', 9, 'daily', p_tenant_id => tenant_id))"
        " from user_token_wallets where user_id = $1",
        user_id,
    )
    await operator.fetchval("select consume_feature($1, 'drawings', 1, $2)", user_id, canary)
    await operator.execute(
        "insert into user_rate_windows values ($1, $2, now(), 1, 1, now(), 1)",
        tenant_id,
        user_id,
    )
    await operator.execute(
        "with price as (insert into payment_prices (tenant_id, price_id, kind, name, tokens, currency, amount)"
        " values ($1, 'price_1', 'pack', 'Pack', 1, 'USD', 1) returning id),"
        " top_up as (insert into payment_top_ups (tenant_id, user_id, price_id, threshold, monthly_ceiling)"
        "   select $1, $2, id, 1, 1 from price),"
        " customer as (insert into payment_customers (tenant_id, user_id, account_tenant_id) values ($1, $2, $1)),"
        " subscription as (insert into payment_subscriptions"
        "   (tenant_id, user_id, account_tenant_id, subscription_id, state, event_at, event_rank)"
        "   values ($1, $2, $1, gen_random_uuid(), 'canceled', now(), 0))"
        " insert into payments"
        " (tenant_id, user_id, account_tenant_id, cause, state, price_id, tokens, currency, amount)"
        " values ($1, $2, $1, 'checkout', 'open', 'price_1', 1, 'USD', 1)",
        tenant_id,
        user_id,
    )
    await operator.execute(
        "with subscription as (insert into user_subscriptions (tenant_id, user_id, level_id, cycle, currency,"
        "   anchor_at, period_start) select tenant_id, user_id, level_id, 'monthly', 'USD', now(), now()"
        "   from user_token_wallets where user_id = $2),"
        " change as (insert into level_changes (tenant_id, user_id, to_level_id, timing, state, requested_at,"
        "   effective_at, terms, idempotency_key)"
        "   select tenant_id, user_id, level_id, 'now', 'scheduled', now(), now() + interval '1 day', '{}', 'k'"
        "   from user_token_wallets where user_id = $2)"
        " insert into level_invoice_lines (tenant_id, user_id, level_id, kind, cycle, currency, amount, period_start,"
        "   period_end, created_at)"
        " select $1, $2, level_id, 'charge', 'monthly', 'USD', 1, now(), now(), now()"
        " from user_token_wallets where user_id = $2",
        tenant_id,
        user_id,
    )
    await _talk(operator, tenant_id, user_id)
    await operator.execute("select set_config('vanilla.request_id', '', false)")
    columns = await operator.fetch(
        "select t.relation, a.attname as name, t.owners[1] as owner, a.atttypid::regtype::text as type"
        " from vanilla.person_tables() t join pg_attribute a on a.attrelid = ('public.' || t.relation)::regclass"
        " where a.attnum > 0 and not a.attisdropped and a.atttypid in ('text'::regtype, 'jsonb'::regtype)"
        " and t.relation <> all ($1)",
        WRITTEN_BY_FUNCTIONS,
    )
    fixed = set()
    for column in columns:
        email = column["name"] == "email"
        text = f"{canary}@example.test" if email else canary
        # texts of several rows differ: some are unique
        value = "$2::text" if email else "$2::text || ctid::text"
        if column["type"] == "jsonb":
            value = "jsonb_build_object('k', $2::text)"
        try:
            done = await operator.execute(
                f"update {column['relation']} set {column['name']} = {value} where {column['owner']} = $1",
                user_id,
                text,
            )
            assert done != "UPDATE 0", f"the person has no row in {column['relation']}"
        except asyncpg.PostgresError as error:
            if error.sqlstate not in ("23514", "VS409"):  # a check, or a state that is not drawn
                raise
            fixed.add((column["relation"], column["name"]))
    return canary, fixed


async def _talk(operator: asyncpg.Connection, tenant_id: uuid.UUID, user_id: uuid.UUID) -> None:
    """An agreement with somebody else, and a channel with both on which the person spoke, failed and broke a rule."""
    peer = await operator.fetchval(
        "select create_user('peer@example.test', p_must_change_password => false, p_tenant_id => $1)", tenant_id
    )
    agreement = await operator.fetchval(
        "select agreement_propose('Deal', jsonb_build_object('a', $1::uuid, 'b', $2::uuid), 'a',"
        " '{\"acts\": {\"inform\": {}}}', p_user_id => $1) ->> 'agreement_id'",
        user_id,
        peer,
    )
    channel = await operator.fetchval(
        "select channel_open('Talk', 'group', jsonb_build_array(jsonb_build_object('name', 'a'),"
        " jsonb_build_object('name', 'b', 'user_id', $2::uuid)), p_user_id => $1) ->> 'channel_id'",
        user_id,
        peer,
    )
    me = "(select id from channel_participants where channel_id = $2 and user_id = $1)"
    await operator.fetchval(
        f"select channel_send($2, {me}, 'inform', '{{}}', 'x')",
        user_id,
        uuid.UUID(channel),
    )
    await operator.execute(
        f"insert into channel_dead_letters select $3, $2, {me}, 1, $1, 1, 'x', now()",
        user_id,
        uuid.UUID(channel),
        tenant_id,
    )
    await operator.execute(
        "insert into agreement_violations (tenant_id, agreement_id, version, channel_id, participant_id, user_id,"
        f" performative, rule, message, created_at) select $3, $4, 1, $2, {me}, $1, 'inform', 'schema', 'x', now()",
        user_id,
        uuid.UUID(channel),
        tenant_id,
        uuid.UUID(agreement),
    )


async def _choose_engine(operator: asyncpg.Connection, tenant_id: uuid.UUID, user_id: uuid.UUID) -> None:
    """An engine of somebody else's flow, chosen for the person, copied and run by them."""
    author = await operator.fetchval(
        "select create_user('author@example.test', p_must_change_password => false, p_tenant_id => $1)", tenant_id
    )
    drawn = await operator.fetchval(
        'select save_workflow(\'flow\', \'{"name": "Flow", "nodes": [{"id": "a", "kind": "transform"}]}\','
        " p_user_id => $1) ->> 'id'",
        author,
    )
    await operator.fetchval("select publish_workflow($1)", uuid.UUID(drawn))
    engine = uuid.UUID(await operator.fetchval("select deploy_engine('e', $1) ->> 'engine_id'", uuid.UUID(drawn)))
    await operator.fetchval("select set_engine($1, p_default_access => 'execute')", engine)
    await operator.fetchval("select assign_engine($1, 'user', $2)", engine, user_id)
    await operator.fetchval("select fork_engine('e', 'mine', p_user_id => $1)", user_id)
    await operator.execute(
        "insert into engine_executions (tenant_id, id, user_id, engine_tenant_id, engine_id, version, source,"
        " config_hash, price_hash, estimated_from) values ($1, $2, $2, $1, $3, 1, 'user', '', '', 0)",
        tenant_id,
        user_id,
        engine,
    )


async def _run_agent(operator: asyncpg.Connection, tenant_id: uuid.UUID, user_id: uuid.UUID, canary: str) -> None:
    """An agent of the person, and its run with a call in the journal, one that its budget holds, state and a text."""
    definition = {"name": canary, "description": canary, "instructions": canary, "model": "sandbox-small"}
    await operator.fetchval("select save_agent($1, $2, p_user_id => $3)", canary, definition, user_id)
    started = await operator.fetchval("select start_agent($1, $2, 20, p_user_id => $3)", canary, {"k": canary}, user_id)
    await operator.execute(
        "with step as (insert into agent_run_steps (tenant_id, run_id, n, user_id, turn, kind, agent_id, created_at)"
        " select tenant_id, id, 1, user_id, 1, 'tool', agent_id, now() from agent_runs where id = $2),"
        " state as (insert into agent_run_state (tenant_id, root_run_id, key, user_id, version, run_id, updated_at)"
        " select tenant_id, id, $3, user_id, 1, id, now() from agent_runs where id = $2),"
        " made as (insert into run_artifacts (tenant_id, run_id, user_id, name, media_type, content, created_at)"
        " select tenant_id, id, user_id, $3, 'text/plain', $3, now() from agent_runs where id = $2)"
        " select vanilla.allocation_hold($1, allocation_id, $3, 1, '1 hour', p_execution_id => id) from agent_runs"
        " where id = $2",
        tenant_id,
        uuid.UUID(started["run_id"]),
        canary,
    )
    await operator.execute(
        "with call as (insert into contract_calls (tenant_id, user_id, run_id, n, task, rule, deadline_at, created_at)"
        " select tenant_id, user_id, id, 1, '{}', 'lowest', now(), now() from agent_runs where id = $1 returning *)"
        " insert into contract_bids (tenant_id, call_id, user_id, agent_id, version)"
        " select c.tenant_id, c.id, c.user_id, r.agent_id, r.version from call c join agent_runs r on r.id = c.run_id",
        uuid.UUID(started["run_id"]),
    )
    await operator.fetchval("select cancel_execution($1)", uuid.UUID(started["execution_id"]))


async def where_it_is(operator: asyncpg.Connection, canary: str) -> dict[str, set[str]]:
    """Tables and columns of the whole database in which a canary is found."""
    found: dict[str, set[str]] = {}
    tables = await operator.fetch(
        "select c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname in ('public', 'vanilla') and c.relkind in ('r', 'p') and not c.relispartition"
    )
    for table in tables:
        rows = await operator.fetch(
            f"select distinct e.key from {table['name']} t, jsonb_each_text(to_jsonb(t)) e where e.value like $1",
            f"%{canary}%",
        )
        if rows:
            found[table["name"]] = {row["key"] for row in rows}
    return found


async def test_no_text_of_an_erased_person_is_left_but_where_the_design_says(
    operator: asyncpg.Connection, people: People
) -> None:
    person = await people.user(tenant_id=await people.tenant())
    canary, fixed = await plant(operator, person)
    assert fixed == FIXED
    # the throttle of a refused sign-in knows the address by its hash
    slug = await operator.fetchval("select slug from tenants where id = $1", person.identity.tenant_id)
    await operator.fetchrow("select * from vanilla.begin_sign_in($1, $2, 'here')", slug, f"{canary}@example.test")
    before = await where_it_is(operator, canary)
    tables = {row[0] for row in await operator.fetch("select relation from vanilla.person_tables()")}
    assert set(before) == tables - WORDLESS
    hashed = (
        "select count(*) from sign_in_throttles where subject_hash = sha256(convert_to($1, 'UTF8'))",
        f"email:{slug}:{canary}@example.test",
    )
    assert await operator.fetchval(*hashed) == 1
    await erase(operator, person)
    assert await where_it_is(operator, canary) == STAYS
    assert await operator.fetchval(*hashed) == 0
    left = dict(await operator.fetchrow("select * from users where id = $1", person.identity.user_id))
    assert (left.pop("status"), left.pop("role"), left.pop("display_name")) == ("deleted", "user", "")
    assert left.pop("must_change_password") is False
    assert {name for name, value in left.items() if value is not None} == {"tenant_id", "id", "created_at"}
    live = await operator.fetchval(
        "select (select count(*) from sessions where user_id = $1 and revoked_at is null)"
        " + (select count(*) from one_time_tokens where user_id = $1 and used_at is null)"
        " + (select count(*) from api_keys where user_id = $1 and revoked_at is null)"
        " + (select count(*) from user_token_policies where user_id = $1)"
        " + (select count(*) from user_rate_windows where user_id = $1)",
        person.identity.user_id,
    )
    assert live == 0
    assert await run_checks(operator, BOOKS) == []


async def test_a_wallet_without_open_holds_is_closed_with_one_entry_and_no_period_touches_it_again(
    operator: asyncpg.Connection, people: People
) -> None:
    person = await people.user(balance=700)
    await operator.fetchval("select grant_user_tokens($1, 50, 'promo')", person.identity.user_id)
    await operator.fetchval(
        "select grant_user_tokens($1, 90, 'trial', now() + interval '3 days')", person.identity.user_id
    )
    await operator.fetchval("select adjust_user_tokens($1, 20, 'debit')", person.identity.user_id)
    before = await entries(operator, person)
    erased = await erase(operator, person)
    assert (erased["wallet"], erased["voided_tokens"], erased["open_holds"], erased["debt"]) == ("closed", 730, 0, 0)
    assert await entries(operator, person) == [*before, ("void", -730, 0)]
    closed = await wallet(operator, person)
    assert (closed["available_tokens"], closed["burn"], closed["spent_tokens"]) == (0, 0, 20)
    assert closed["next_reset_at"] is None
    states = await operator.fetch(
        "select distinct state, remaining, void_reason from user_token_grants where user_id = $1",
        person.identity.user_id,
    )
    assert [tuple(row) for row in states] == [("voided", 0, "erased")]
    months = operator.transaction()
    await months.start()
    try:
        await operator.execute(
            "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe"
            " as $$ select clock_timestamp() + interval '70 days' $$"
        )
        await operator.fetchval("select reset_monthly_tokens()")
        await operator.fetchval("select vanilla.fold_due_wallets(null)")
        assert await entries(operator, person) == [*before, ("void", -730, 0)]
        assert (await wallet(operator, person))["status"] == "closed"
    finally:
        await months.rollback()
    assert await run_checks(operator, BOOKS) == []


async def test_an_empty_wallet_is_closed_without_an_entry_and_a_debt_stays(
    operator: asyncpg.Connection, people: People
) -> None:
    person = await people.user(balance=0)
    await operator.fetchval(
        "select set_user_token_policy($1, p_enforcement_mode => 'monitor')", person.identity.user_id
    )
    await operator.fetchval("select adjust_user_tokens($1, 40, 'debit')", person.identity.user_id)
    before = await entries(operator, person)
    erased = await erase(operator, person)
    assert (erased["wallet"], erased["voided_tokens"], erased["debt"]) == ("closed", 0, 40)
    assert await entries(operator, person) == before
    assert (await wallet(operator, person))["borrowed_tokens"] == 40
    assert await run_checks(operator, BOOKS) == []


async def test_what_is_held_is_charged_and_the_job_closes_the_wallet_then(
    operator: asyncpg.Connection, people: People
) -> None:
    person = await people.user(balance=500)
    user_id = person.identity.user_id
    hold = uuid.UUID(await operator.fetchval("select adjust_user_tokens($1, 100, 'reserve') ->> 'hold_id'", user_id))
    erased = await erase(operator, person)
    assert (erased["wallet"], erased["open_holds"], erased["voided_tokens"]) == ("suspended", 1, 0)
    await operator.fetchval("select vanilla.job_closings(20)")
    assert (await wallet(operator, person))["status"] == "suspended", "a wallet with an open hold was closed"
    assert await refused(operator.fetchval("select adjust_user_tokens($1, 1, 'debit')", user_id)) == "VS404"
    assert await refused(operator.fetchval("select set_wallet_status($1, 'active', 'x')", user_id)) == "VS404"
    await operator.fetchval("select settle_user_tokens($1, 60)", hold)
    assert (await wallet(operator, person))["spent_tokens"] == 60
    done = await operator.fetchval("select vanilla.job_closings(20)")
    assert done["wallets"] == 1
    closed = await wallet(operator, person)
    assert (closed["status"], closed["available_tokens"], closed["reserved_tokens"]) == ("closed", 0, 0)
    assert (await entries(operator, person))[-2:] == [("settle", 40, -100), ("void", -440, 0)]
    assert (await operator.fetchval("select vanilla.job_closings(20)"))["wallets"] == 0
    assert await run_checks(operator, BOOKS) == []


async def test_a_call_whose_hold_had_run_out_before_is_still_charged_as_debt(
    operator: asyncpg.Connection, people: People
) -> None:
    person = await people.user(balance=500)
    user_id = person.identity.user_id
    hold = uuid.UUID(await operator.fetchval("select adjust_user_tokens($1, 100, 'reserve') ->> 'hold_id'", user_id))
    await operator.execute("update user_token_holds set expires_at = now() - interval '1 s' where id = $1", hold)
    await operator.fetchval("select vanilla.reap_holds()")
    assert (await erase(operator, person))["wallet"] == "closed"
    await operator.fetchval(
        "select (vanilla.settle_tokens($1, $2, 60, true, 'model call', null)).seq", person.identity.tenant_id, hold
    )
    assert (await wallet(operator, person))["borrowed_tokens"] == 60
    assert await run_checks(operator, BOOKS) == []


async def test_an_admin_erases_people_of_the_tenant_and_nobody_else(
    operator: asyncpg.Connection, people: People, database: Database
) -> None:
    tenant, other = await people.tenant(), await people.tenant()
    admin, second, user = [await people.user(role, tenant) for role in ("admin", "admin", "user")]  # type: ignore[arg-type]
    stranger = await people.user(tenant_id=other)

    async def attempt(actor: Person, victim: Person, reason: str = "left") -> str:
        try:
            async with database.transaction(actor.identity) as connection:
                await store.erase_user(connection, actor.identity.tenant_id, victim.identity.user_id, reason)
        except VanillaError as error:
            return error.name
        return "erased"

    assert await attempt(user, user) == "forbidden"
    assert await attempt(user, second) == "forbidden"
    assert await attempt(admin, admin) == "invalid_state"
    assert await attempt(admin, stranger) == "not_found"
    assert await attempt(admin, user, " ") == "invalid_request"
    assert await attempt(admin, user) == "erased"
    assert await attempt(admin, user) == "not_found"
    assert await attempt(admin, second) == "erased"
    assert await attempt(second, admin) == "context_invalid", "somebody erased still acts"
    # the operator may also erase the last one
    assert (await erase(operator, admin))["wallet"] == "closed"
    assert await refused(erase(operator, admin)) == "VS404"
    audit = await operator.fetch(
        "select actor_id, target_id, details ->> 'reason' as reason from audit_logs"
        " where tenant_id = $1 and action = 'user.erased' order by id",
        tenant,
    )
    assert [tuple(row) for row in audit] == [
        (admin.identity.user_id, user.identity.user_id, "left"),
        (admin.identity.user_id, second.identity.user_id, "left"),
        (None, admin.identity.user_id, "asked for"),
    ]
    assert await operator.fetchval("select status from users where id = $1", stranger.identity.user_id) == "active"
