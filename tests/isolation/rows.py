"""Two tenants with a row in every table, and a canary in every column of the second that can hold one."""

import json
import re
import time
import uuid
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

import asyncpg

from tests.isolation.agents import agents_worker, run_agents
from tests.isolation.canaries import CANARY, TEXT_TYPES, plant, words
from tests.isolation.catalog import PLATFORM, PUBLIC_FLAG, Closed, Column, Table, enumeration, read_closed, read_tables
from tests.isolation.executions import run_workflows, vote
from vanilla_saas.database.context import ContextSigner, Identity, Role


@dataclass
class Member:
    """A user of a seeded tenant, with the hashes of a key and of a session that are theirs."""

    id: str
    role: Role
    key_hash: bytes
    session_hash: bytes
    refresh_hash: bytes


@dataclass
class Tenant:
    id: str
    word: str
    user: Member
    other: Member
    admin: Member
    endpoint: bytes = b""
    """Names its payment account."""

    def token(self, signer: ContextSigner, member: Member, lifetime_s: int = 600) -> str:
        return signer.sign(Identity(uuid.UUID(self.id), uuid.UUID(member.id), member.role), lifetime_s)


@dataclass
class World:
    """Tenant a attacks, tenant b has the canaries."""

    tables: list[Table]
    closed: list[Closed]
    a: Tenant
    b: Tenant
    signer: ContextSigner
    ids_of_b: set[str] = field(default_factory=set)

    def table(self, name: str) -> Table:
        return next(t for t in self.tables if t.name == name)

    def leaks(self, told: str, given: str) -> set[str]:
        """What of B is in an answer that was not in the question."""
        found = words(told, self.ids_of_b)
        return found - words(given, self.ids_of_b) if found else found

    async def digest(
        self,
        connection: asyncpg.Connection,
        tables: list[str] | None = None,
        *,
        of_b: bool = False,
        but: str | None = None,
    ) -> str:
        """The sum of the hashes of all rows that are not A's, or not of the tenant `but`; or of B's alone."""
        names = tables or [t.name for t in self.tables if not t.parent]
        whose = f"tenant_id = '{self.b.id}'" if of_b else f"tenant_id is distinct from '{but or self.a.id}'"
        rows = " union all ".join(
            f"select hash_record_extended(x, {n}) as d from public.{name} x where {whose}"
            for n, name in enumerate(names)
        )
        return await connection.fetchval(f"select coalesce(sum(d), 0)::text from ({rows}) s")


COUNTED = "insert into system_metrics (tenant_id, created_at, name, value) values ($1, '2200-01-01', 'counted', 1)"
"""The job metrics has counted the last minute, so that it counts none of the world."""


async def populate(connection: asyncpg.Connection, signer: ContextSigner) -> World:
    """Makes both tenants as a superuser: by the product's functions first, the rest from the catalog."""
    tables = await read_tables(connection)
    a = await _make_tenant(connection, f"plain{uuid.uuid4().hex[:6]}")
    b = await _make_tenant(connection, CANARY)
    world = World(tables, await read_closed(connection), a, b, signer)
    worker = await connection.fetchval("select vanilla.register_worker('of the world', '{default}', 10)")
    await connection.fetchval("select vanilla.heartbeat_worker($1)", worker)
    # whatever buries meanwhile
    await connection.execute("update worker_registry set heartbeat_at = '2199-01-01' where id = $1", worker)
    for tenant in (a, b):
        await _route(connection, tenant)
    for tenant in (a, b):
        members = [tenant.user.id, tenant.other.id]
        await run_workflows(connection, worker, tenant.id, members, tenant.word)
        decides = {tenant.other.id: tenant.user, tenant.user.id: tenant.other}
        await vote(connection, {whose: tenant.token(signer, who) for whose, who in decides.items()}, tenant.word)
    agents = await agents_worker(connection)
    for tenant in (a, b):
        await _deploy(connection, tenant)
        await _allocate(connection, tenant)
        await _talk(connection, tenant)
        await run_agents(connection, agents, tenant.id, [tenant.user.id, tenant.other.id], tenant.word)
    for tenant in (a, b):
        for table in _referenced_first(tables):
            await _fill(connection, world, table, tenant)
    for tenant in (a.id, PLATFORM):
        for table, flag in PUBLIC_FLAG.items():
            for value in (True, False) if world.table(table).ownership == "platform_catalog" else ():
                await insert(connection, world, world.table(table), a, {"tenant_id": tenant, flag: value})
    await connection.execute(COUNTED, PLATFORM)
    for table in tables:
        if not table.parent:
            await plant(connection, table, b.id)
    # what b's members run is with a worker whom nobody is
    await connection.execute(
        "update workflow_queue set worker = gen_random_uuid() where tenant_id = $1 and worker is not null", b.id
    )
    for member in (b.user, b.other, b.admin):
        await _read_hashes(connection, b, member)
    world.ids_of_b = await _ids_of_b(connection, world)
    return world


async def _read_hashes(connection: asyncpg.Connection, tenant: Tenant, member: Member) -> None:
    """What opens the door to the member since canaries stand in every hash, so that they can still come by."""
    member.key_hash = await connection.fetchval(
        "select key_hash from api_keys where tenant_id = $1 and user_id = $2 order by id limit 1", tenant.id, member.id
    )
    member.session_hash, member.refresh_hash = await connection.fetchrow(
        "select token_hash, refresh_hash from sessions where tenant_id = $1 and user_id = $2 order by id limit 1",
        tenant.id,
        member.id,
    )


async def _ids_of_b(connection: asyncpg.Connection, world: World) -> set[str]:
    """B's own id, and every UUID in B's rows that is in nobody else's: the platform's models are everybody's."""
    columns = [(t.name, c.name) for t in world.tables for c in t.columns if c.type == "uuid" and not t.parent]

    async def ids(condition: str) -> set[str]:
        union = " union ".join(f"select {c}::text as v from {t} where tenant_id {condition}" for t, c in columns)
        return {r["v"] for r in await connection.fetch(union) if r["v"]}

    return {world.b.id} | await ids(f"= '{world.b.id}'") - await ids(f"<> '{world.b.id}'")


def _referenced_first(tables: list[Table]) -> list[Table]:
    by_name = {t.name: t for t in tables if not t.parent}
    edges = {t.name: {k.target for k in t.foreign_keys} - {t.name} for t in by_name.values()}
    return [by_name[name] for name in TopologicalSorter(edges).static_order()]


async def _make_tenant(connection: asyncpg.Connection, word: str) -> Tenant:
    tenant = str(await connection.fetchval("select create_tenant($1, $1)", word))
    members = [
        await _make_member(connection, tenant, word, name, role)
        for name, role in (("user", "user"), ("other", "user"), ("admin", "admin"))
    ]
    for member in members[:2]:
        await connection.fetchval(
            "select adjust_user_tokens($1, 1000000, 'credit', $2, p_idempotency_key => $2)", member.id, word
        )
        await connection.fetchval(
            "select adjust_user_tokens($1, 10, 'reserve', $2, p_reference_type => $2, p_reference_id => $3)",
            member.id,
            word,
            uuid.uuid4(),
        )
        for settled in (True, False):
            await _call_model(connection, member, word, settled)
        await connection.fetchval("select issue_one_time_token($1, sha256($2))", member.id, uuid.uuid4().bytes)
        await connection.fetchval("select consume_feature($1, 'document-analysis', 1, $2)", member.id, word)
    made = Tenant(tenant, word, *members, endpoint=uuid.uuid4().bytes)
    await _pay(connection, made)
    await _make_webhook(connection, tenant, members[0], word)
    await _restrict(connection, tenant, members, word)
    await _subscribe(connection, tenant, members, word)
    await _draw(connection, tenant, members, word)
    return made


async def _route(connection: asyncpg.Connection, tenant: Tenant) -> None:
    """A strategy of the tenant, and a decision by it that can be replayed."""
    set_ = "select set_routing_strategy($1, 'least_loaded', p_description => $1, p_tenant_id => $2)"
    await connection.fetchval(set_, tenant.word, uuid.UUID(tenant.id))
    candidates = json.dumps([{"id": tenant.word}])
    decide = "select route_decision($1, $2::jsonb, p_tenant_id => $3)"
    await connection.fetchval(decide, tenant.word, candidates, uuid.UUID(tenant.id))


async def _talk(connection: asyncpg.Connection, tenant: Tenant) -> None:
    """Agreements and channels of both members: with messages, a lease, a dead letter, a violation; one with a floor."""
    of = uuid.UUID(tenant.id)
    one = connection.fetchval
    acts = {"inform": {"schema": {"description": tenant.word, "type": "object"}}}
    for whose, other in ((tenant.user, tenant.other), (tenant.other, tenant.user)):
        parties = json.dumps({"first": whose.id, "second": other.id})
        propose = "select agreement_propose($1, $2, 'first', $3, $4, $5)"
        made = json.loads(await one(propose, tenant.word, parties, json.dumps({"acts": acts}), whose.id, of))
        agreement = made["agreement_id"]
        accept = "select agreement_respond($1, 'second', decode($2, 'hex'), 'accept', p_tenant_id => $3)"
        await one(accept, agreement, made["hash"], of)
        participants = [
            {"name": f"{tenant.word}-a", "user_id": whose.id, "party": "first"},
            {"name": f"{tenant.word}-b", "user_id": other.id, "party": "second"},
            {"name": f"{tenant.word}-c", "user_id": whose.id},
        ]
        open_ = "select channel_open($1, 'group', $2, $3, $4, $5, $6)"
        made = json.loads(await one(open_, tenant.word, json.dumps(participants), agreement, "{}", whose.id, of))
        channel, by_name = made["channel_id"], made["participants"]
        first, second, third = (by_name[f"{tenant.word}-{n}"] for n in "abc")
        send = "select channel_send($1, $2, 'inform', $3, $4, p_tenant_id => $5)"
        for n, sender in enumerate((second, first, second)):
            await one(send, channel, sender, json.dumps({"word": tenant.word}), f"{tenant.word}-{n}", of)
        await one(send, channel, third, "{}", "broken", of)
        receive = "select lease_token from channel_receive($1, $2, 1, '1 day', $3)"
        nack = "select channel_nack($1, $2, $3, 1, $4, p_tenant_id => $5)"
        await connection.execute("update communication_channels set max_attempts = 1 where id = $1", channel)
        token = await one(receive, channel, third, of)
        assert await one(nack, channel, third, token, tenant.word, of) == "dead"
        await connection.execute("update communication_channels set max_attempts = 5 where id = $1", channel)
        await one(receive, channel, first, of)
        with_floor = json.dumps([{"name": f"{tenant.word}-m", "manages": True}, {"name": f"{tenant.word}-n"}])
        await one(open_, f"{tenant.word}-floor", with_floor, None, json.dumps({"floor": "manager"}), whose.id, of)


async def _deploy(connection: asyncpg.Connection, tenant: Tenant) -> None:
    """An engine of two versions, the second a canary; who may run it, for whom it is chosen; copies of both members."""
    flow = await connection.fetchval("select id from ai_workflows where slug = $1", f"{tenant.word}-part-1")
    deploy = "select deploy_engine($1, $2, p_mode => $3, p_parameters => $4) ->> 'engine_id'"
    parameters = json.dumps({"tone": {"type": "string", "description": tenant.word}})
    for mode in ("parallel", "sequential"):
        engine = await connection.fetchval(deploy, tenant.word, flow, mode, parameters)
    of = uuid.UUID(tenant.id)
    await connection.fetchval("select promote_engine($1, 2, 'canary', 0, $2)", engine, of)
    level = "(select id from levels where tenant_id = $2 and is_default)"
    await connection.fetchval(f"select set_level_engine({level}, $1, 'execute', $2)", engine, of)
    assign = f"select assign_engine($1, 'level', {level}, p_pin => '1', p_tenant_id => $2)"
    await connection.fetchval(assign, engine, of)
    for member in (tenant.user, tenant.other):
        fork = "select fork_engine($1, $2, $3, p_user_id => $4, p_tenant_id => $5)"
        overlay = json.dumps({"tone": tenant.word})
        await connection.fetchval(fork, tenant.word, f"{tenant.word}-own", overlay, member.id, of)
        chosen = "select assign_engine($1, 'user', $2, p_priority => 1, p_tenant_id => $3)"
        await connection.fetchval(chosen, engine, member.id, of)


async def _allocate(connection: asyncpg.Connection, tenant: Tenant) -> None:
    """Of both members a budget with a child, in which one step is open and one settled; both budgets end in 20 days."""
    of = uuid.UUID(tenant.id)
    for member in (tenant.user, tenant.other):
        opened = (
            "select vanilla.allocation_open($1, $2, 1000, '{}', now() + interval '20 days', $1, $3) ->> 'allocation_id'"
        )
        root = await connection.fetchval(opened, of, uuid.UUID(member.id), f"{tenant.word}-budget")
        carved = "select vanilla.allocation_carve($1, $2, 400, '{}', null, $1, $3) ->> 'allocation_id'"
        child = await connection.fetchval(carved, of, uuid.UUID(root), tenant.word)
        for settled in (True, False):
            held = "select vanilla.allocation_hold($1, $2, $3, 10, '20 days', p_execution_id => $1) ->> 'hold_id'"
            step = await connection.fetchval(held, of, uuid.UUID(child), f"{tenant.word}{settled:d}")
            if settled:
                usage = json.dumps({"word": tenant.word})
                await connection.fetchval("select vanilla.allocation_settle($1, $2, 5, $3)", of, uuid.UUID(step), usage)


async def _draw(connection: asyncpg.Connection, tenant: str, members: list[Member], word: str) -> None:
    """Two workflows of each of two members, one of them shared, both published."""
    definition = json.dumps({"name": word, "nodes": [{"id": "one", "kind": "transform", "value": f"'{word}'"}]})
    save = "select save_workflow($1, $2, $3, p_user_id => $4, p_tenant_id => $5) ->> 'id'"
    for place, member in enumerate(members[:2]):
        for shared in (False, True):
            made = await connection.fetchval(save, f"{word}-{place}-{shared:d}", definition, shared, member.id, tenant)
            await connection.fetchval("select publish_workflow($1)", made)


PAID = """
with level as (select id from levels where tenant_id = $1 and is_default),
change as (
    insert into level_changes (tenant_id, user_id, to_level_id, timing, state, requested_at, effective_at, closed_at,
        terms, idempotency_key)
    select $1, $2, id, 'now', 'applied', '2026-01-02+00', '2026-01-02+00', '2026-01-02+00',
        jsonb_build_object('to', $3::text), $3 from level returning id),
line as (
    insert into level_invoice_lines (tenant_id, user_id, change_id, level_id, kind, cycle, currency, amount,
        period_start, period_end, payment_reference, created_at)
    select $1, $2, change.id, level.id, 'charge', 'monthly', 'USD', 900, '2026-01-02+00', '2026-02-02+00', $3,
        '2026-01-02+00' from change, level)
insert into user_subscriptions (tenant_id, user_id, level_id, cycle, currency, anchor_at, period_start, agreed,
    billed_by)
select $1, $2, id, 'monthly', 'USD', '2026-02-02+00', '2026-02-02+00', '{}', $3 from level
"""
"""What changes of level leave, beside wallets that stay as they are: on the default level, after a paid month."""


async def _subscribe(connection: asyncpg.Connection, tenant: str, members: list[Member], word: str) -> None:
    for member in members[:2]:
        await connection.execute(PAID, tenant, member.id, word)


async def _restrict(connection: asyncpg.Connection, tenant: str, members: list[Member], word: str) -> None:
    """Rules that let every call of the suite through, a call counted under them, and one of patterns for nobody."""
    restrict = "select set_level_restriction(id, $2, $3, $4, tenant_id) from levels where tenant_id = $1 and slug = $5"
    for kind in ("requests_per_minute", "tokens_per_minute"):
        await connection.fetchval(restrict, tenant, kind, 1_000_000_000, None, "free")
    await connection.fetchval(restrict, tenant, "denied_models", None, [word], "enterprise")
    for member in members[:2]:
        await _call_model(connection, member, word, settled=True)


async def _pay(connection: asyncpg.Connection, tenant: Tenant) -> None:
    """An account, prices, and of two members: a subscription, a pack that was paid and partly refunded, and a charge
    without the user that is in flight for good, so that no server takes it."""
    one, of = connection.fetchval, uuid.UUID(tenant.id)
    await one(
        "select set_payment_account($1, $2, sha256('x'), 'sk_test', sha256('x'), $3, p_tenant_id => $4)",
        uuid.uuid4(), tenant.endpoint, f"acct_{tenant.word}", of,
    )  # fmt: skip
    price = "select set_payment_price($1, $2, $3, 'USD', 900, $4, $5, p_tenant_id => $6)"
    pack = await one(price, f"price_pack_{tenant.word}", "pack", tenant.word, 1000, None, of)
    level = await one("select id from levels where tenant_id = $1 and slug = 'premium'", of)
    await one(price, f"price_level_{tenant.word}", "level", tenant.word, None, level, of)
    for member in (tenant.user, tenant.other):
        number = member.id[-6:]
        await connection.execute(
            "insert into payment_customers (tenant_id, user_id, account_tenant_id, customer_id, payment_method)"
            " values ($1, $2, $1, $3, 'pm_1')",
            of, uuid.UUID(member.id), f"cus_{tenant.word}{number}",
        )  # fmt: skip
        bought = await one(
            "insert into payments (tenant_id, user_id, account_tenant_id, cause, state, price_id, tokens, currency,"
            " amount) values ($1, $2, $1, 'checkout', 'open', $3, 1000, 'USD', 900) returning id",
            of, uuid.UUID(member.id), f"price_pack_{tenant.word}",
        )  # fmt: skip
        customer, intent = f"cus_{tenant.word}{number}", f"pi_{tenant.word}{number}"
        told: list[tuple[str, dict[str, object]]] = [
            ("customer.subscription.created", {
                "id": f"sub_{tenant.word}{number}", "customer": customer, "status": "incomplete",
                "items": {"data": [{"price": {"id": f"price_level_{tenant.word}"}}]}}),
            ("payment_intent.succeeded", {
                "id": intent, "customer": customer, "status": "succeeded", "currency": "usd", "amount_received": 900,
                "metadata": {"vanilla_payment": str(bought)}}),
            ("refund.created", {
                "id": f"re_{tenant.word}{number}", "payment_intent": intent, "amount": 90, "currency": "usd",
                "status": "succeeded"}),
        ]  # fmt: skip
        for kind, thing in told:
            event = {"id": f"evt_{uuid.uuid4().hex}", "type": kind, "created": int(time.time()), "livemode": False,
                     "data": {"object": thing}}  # fmt: skip
            applied = await one("select vanilla.apply_payment_event($1, $2::jsonb)", tenant.endpoint, json.dumps(event))
            assert '"applied"' in applied, applied
        top_up = "select set_auto_top_up($1, $2, 100000, true, $3)"
        await connection.execute(top_up, pack, 10**12, uuid.UUID(member.id))
        await one("select vanilla.claim_top_ups(20, '100 years')")
        await connection.execute(top_up, pack, 1, uuid.UUID(member.id))


async def _make_member(connection: asyncpg.Connection, tenant: str, word: str, name: str, role: Role) -> Member:
    email = f"{name}@{word}.test"
    password = f"$argon2id${word}"
    user = await connection.fetchval(
        "select create_user($1, $2, $3, $4, p_must_change_password => false, p_tenant_id => $5)",
        email,
        role,
        word,
        password,
        tenant,
    )
    member = Member(str(user), role, *(uuid.uuid4().bytes * 2 for _ in range(3)))
    await connection.fetchval(
        "select create_api_key($1, $1, $2, $3, p_user_id => $4)",
        word,
        member.key_hash,
        ["chat", "read", "admin"] if role == "admin" else ["chat", "read"],
        user,
    )
    await connection.fetchval(
        "select vanilla.finish_sign_in($1, $2, $3, $4, $1, $1)",
        word,
        email,
        member.session_hash,
        member.refresh_hash,
    )
    return member


async def _call_model(connection: asyncpg.Connection, member: Member, word: str, settled: bool) -> None:
    admitted = json.loads(
        await connection.fetchval(
            "select vanilla.admit_call($1, null, null, 'sandbox-small', 10, 10, 10, 1, $2, false, '2 days', null, $3)",
            member.key_hash,
            uuid.uuid4(),
            word,
        )
    )
    if settled:
        await connection.fetchval(
            "select vanilla.settle_call($1, $2, 'succeeded', 5, 5, 0, 0)", admitted["tenant_id"], admitted["hold_id"]
        )


async def _make_webhook(connection: asyncpg.Connection, tenant: str, member: Member, word: str) -> None:
    """An endpoint with a delivery that failed once and one that is in flight for good, so that no sender takes it."""
    await connection.fetchval(
        "select create_webhook_endpoint($1, $2, '{*}', sha256('x'), $3, p_tenant_id => $4)",
        uuid.uuid4(),
        f"https://{word}.test",
        word,
        tenant,
    )
    for _ in range(2):
        await connection.fetchval("select adjust_user_tokens($1, 1, 'credit', $2)", member.id, word)
    claimed = json.loads(await connection.fetchval("select vanilla.claim_webhook_deliveries(20, '100 years')"))
    first, lease = claimed[0]["delivery_id"], claimed[0]["lease_id"]
    failed = "select vanilla.finish_webhook_delivery($1, $2, $3, 500, $4, 1, '1 day')"
    await connection.fetchval(failed, tenant, first, lease, word)


async def _fill(connection: asyncpg.Connection, world: World, table: Table, tenant: Tenant) -> None:
    """A row of the tenant where there is none; of the user and of another member where rows have owners."""
    owners = [tenant.user.id, tenant.other.id] if table.owner and table.owner != "id" else [None]
    for owner in owners:
        condition = "tenant_id = $1" + (f" and {table.owner} = '{owner}'" if owner else "")
        if not await connection.fetchval(f"select exists (select from {table.name} where {condition})", tenant.id):
            now = {"created_at": await _month(connection, 0)} if table.partitioned else {}
            await insert(connection, world, table, tenant, now | ({table.owner: owner} if owner else {}))
    if table.partitioned:
        for month in range(4):
            await insert(connection, world, table, tenant, {"created_at": await _month(connection, month)})
        await insert(connection, world, table, tenant, {"created_at": "2200-01-01T00:00:00Z"})  # the default partition


async def _month(connection: asyncpg.Connection, ahead: int) -> str:
    """A time in this month or a later one; in this one it is now, which no job takes for old."""
    if not ahead:
        return await connection.fetchval("select to_jsonb(now()) #>> '{}'")
    return await connection.fetchval(
        "select to_char(date_trunc('month', now() at time zone 'UTC') + make_interval(months => $1), 'YYYY-MM')"
        " || '-15T00:00:00Z'",
        ahead,
    )


async def insert(
    connection: asyncpg.Connection, world: World, table: Table, tenant: Tenant, given: dict[str, object]
) -> None:
    """Inserts a generated row; tries other spellings of a text when a check refuses it."""
    spelling: dict[str, int] = {}
    while True:
        row = await generate(connection, world, table, tenant, spelling) | given
        names = ", ".join(row)
        try:
            async with connection.transaction():
                await connection.execute(
                    f"insert into public.{table.name} ({names}) select {names} from"
                    f" jsonb_populate_record(null::public.{table.name}, $1::jsonb)",
                    json.dumps(row),
                )
            return
        except asyncpg.CheckViolationError as error:
            blamed = [
                c.name
                for c in table.columns
                if c.type == "text" and re.search(rf"\b{c.name}\b", table.checks.get(error.constraint_name or "", ""))
            ]
            for name in blamed:
                spelling[name] = spelling.get(name, 0) + 1
            if not blamed or max(spelling.values()) >= len(_spellings("")):
                raise AssertionError(
                    f"{table.name}: no row satisfies {error.constraint_name}: make one by a function of the product"
                ) from error


def _spellings(word: str) -> list[str]:
    return [word, f"{word}@{word}.test", f"https://{word}.test", f"$argon2id${word}", f"{word} * * * *"]


async def generate(
    connection: asyncpg.Connection, world: World, table: Table, tenant: Tenant, spelling: dict[str, int]
) -> dict[str, object]:
    """Values for every column that needs one, consistent with checks and foreign keys of the catalog."""
    row: dict[str, object] = {}
    for key in table.foreign_keys:
        columns = ", ".join(key.target_columns)
        found = await connection.fetchrow(
            f"select {columns} from {key.target} where tenant_id = $1 order by {columns} limit 1", tenant.id
        )
        if found:
            row |= {column: str(value) for column, value in zip(key.columns, found.values(), strict=True)}
    for column in table.columns:
        if column.name in ("tenant_id", "account_tenant_id"):
            row[column.name] = tenant.id
        elif column.name in ("user_id", "actor_id"):
            row[column.name] = tenant.user.id
        elif column.name not in row and (not column.has_default or column.type in TEXT_TYPES):
            value = _value(table, column, f"{tenant.word}{uuid.uuid4().hex[:8]}", spelling.get(column.name, 0))
            if value is not None:
                row[column.name] = value
    return row


LITERALS: dict[tuple[str, str], object] = {
    ("resource_performance_metrics", "latency"): [1] + [0] * 11,
    ("resource_health", "measured_at"): "2199-01-01T00:00:00Z",  # which no job takes for old
}
"""What a column has whose type alone does not tell."""


def _value(table: Table, column: Column, word: str, spelling: int) -> object:
    if (table.name, column.name) in LITERALS:
        return LITERALS[table.name, column.name]
    options = enumeration(table, column.name)
    if options:
        return [options[0]] if column.type.endswith("[]") else options[0]
    if column.type == "text":
        return _spellings(word)[spelling]
    if column.type == "bytea":
        return f"\\x{uuid.uuid4().hex * 2}"
    if column.type == "uuid":
        return str(uuid.uuid4())
    if column.type == "text[]":
        return [word]
    if column.type == "jsonb":
        return {"word": word}
    if not column.not_null:
        return None
    if column.type.endswith("[]"):
        return []
    if column.type in ("bigint", "integer", "smallint", "numeric", "double precision", "real"):
        return 1
    if column.type == "interval":
        return "1 hour"
    if column.type == "date":
        return "2026-01-01"
    if column.type == "boolean":
        return False
    if column.type.startswith("timestamp"):
        return "2100-01-01T00:00:00Z" if column.name.endswith(("expires_at", "ends_at")) else "2026-01-01T00:00:00Z"
    raise AssertionError(f"{table.name}.{column.name}: no value of type {column.type}")
