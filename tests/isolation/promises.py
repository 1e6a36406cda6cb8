"""What the functions of 001 and 002 promise about tenants, roles, states, times and money: one call, one outcome.

Written from docs/design, not from the functions, whose checks are taken out one at a time by test_mutation.py.
"""

import hashlib
import hmac
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from tests.conftest import SUPER_ADMIN
from tests.isolation.contexts import OTHER_KEY
from tests.isolation.executions import NODES
from tests.isolation.matrix import rolled_back
from tests.isolation.rows import CANARY, World
from tests.isolation.twin import TWIN, WORD, plant
from vanilla_saas.database.context import PLATFORM, Identity

OK = "ok"
LOCK = (
    "case when x.xmax <> 0 and pg_xact_status(x.xmax::text::xid8) is not distinct from 'in progress'"
    " then x.xmax::text else '' end"
)
"""Who has locked a row `x`: that of a case that was undone does not count."""


def unlocked(table: str, where: str) -> str:
    """That no row of these has been locked and left as it is."""
    return f"not exists (select from {table} x where {where} and {LOCK} <> '')"


@dataclass(frozen=True)
class Case:
    """`who` calls `statement`; `expect` is `ok`, a SQLSTATE, or `= <the answer as text>`.

    `given` is done before and `then` must be true after, both as superuser. `audit` is an action that must be logged.
    Braces name what `Stage.names` holds.
    """

    who: str
    statement: str
    expect: str = OK
    given: str = ""
    then: str = ""
    audit: str = ""

    def __str__(self) -> str:
        return f"{self.who}: {self.statement}" + (f" given {self.given}" if self.given else "")


class Stage:
    """The world with the twin, and the names that cases use."""

    def __init__(self, world: World, names: dict[str, str], digest: str):
        self.world = world
        self.names = names
        self.digest = digest

    def fill(self, text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda m: self.names.get(m[1], m[0]), text)

    def token(self, who: str) -> str:
        """The context of a caller of vanilla_app; empty for nobody."""
        a, sign = self.world.a, self.world.signer.sign
        if who in ("user", "other", "admin"):
            return a.token(self.world.signer, getattr(a, who))
        if who == "service":
            return sign(Identity(uuid.UUID(a.id), uuid.UUID(a.admin.id), "service"), 600)
        if who == "super":
            return sign(Identity(PLATFORM, SUPER_ADMIN, "superadmin"), 600)
        if who == "operator with a context":
            return a.token(self.world.signer, a.admin)
        if who == "platform service":
            return sign(Identity(PLATFORM, SUPER_ADMIN, "service"), 600)
        if who == "platform user":
            return sign(Identity(PLATFORM, SUPER_ADMIN, "user"), 600)
        if who == "opened":
            return sign(Identity(uuid.UUID(a.id), SUPER_ADMIN, "superadmin"), 600)
        return ""


ROLES = {
    "runtime": "vanilla_runtime",
    "operator": "vanilla_operator",
    "operator with a context": "vanilla_operator",
    "system": "vanilla_system",
    "definer": "vanilla_app",
    "owner": "vanilla_owner",
    "keeper": "vanilla_definer",
}
"""Callers that are not vanilla_app. `keeper` owns the functions, so no grant refuses it before they do."""


async def prepare(connection: asyncpg.Connection, world: World) -> Stage:
    """Makes the twin inside the caller's transaction."""
    await connection.execute(FROZEN)
    await connection.execute("set local statement_timeout = '5s'")  # a loop that lost its end is a broken promise
    # what other tests of this world have left behind: a super admin who entered, and what they made happen
    await connection.execute(
        "update public.tenant_openings set expires_at = '2000-01-01';"
        " delete from public.webhook_deliveries where attempts = 0"
    )
    await _forget_others(connection, world)
    await plant(connection, world)
    a, b = world.a, world.b
    one = connection.fetchval
    open_hold = "select id::text from user_token_holds where tenant_id = $1 and user_id = $2 and state = 'open'"
    by_hand = "coalesce(reference_type, '') not in ('workflow_execution', 'resource_allocation')"
    names = {
        "a": a.id, "b": b.id, "same_id": SAME_ID, "context_key": world.signer.key_id, "word": a.word, "twin": TWIN,
        "secret": "00000000-0000-7000-8000-00000000f002",
        "platform": str(PLATFORM), "super": str(SUPER_ADMIN),
        "user": a.user.id, "other": a.other.id, "admin": a.admin.id, "b_user": b.user.id,
        "hold": await one(f"{open_hold} and call is null and {by_hand}", a.id, a.user.id),
        "call": await one(f"{open_hold} and call is not null and {by_hand}", a.id, a.user.id),
        "level": await one("select id::text from levels where tenant_id = $1 and is_default", a.id),
        "paid": await one(
            "select id::text from levels l where tenant_id = $1 and not is_default and not exists ("
            "select from payment_prices p where p.tenant_id = l.tenant_id and p.level_id = l.id) order by slug limit 1",
            a.id,
        ),
        "b_level": await one("select id::text from levels where tenant_id = $1 and is_default", b.id),
        "provider": await one("select id::text from ai_providers where tenant_id = $1 limit 1", a.id),
        "b_provider": await one("select id::text from ai_providers where tenant_id = $1 limit 1", b.id),
        "key_id": await one("select id::text from api_keys where key_hash = $1", a.user.key_hash),
        "admin_key_id": await one("select id::text from api_keys where key_hash = $1", a.admin.key_hash),
        **await _of_webhooks(connection, a.id, b.id, a.user.id),
        **await _of_payments(connection, world),
        **await _of_workflows(connection, world),
        **await _of_routing(connection, world),
        **await _of_executions(connection, world),
        **await _of_engines(connection, world),
        **await _of_allocations(connection, world),
        **await _of_orchestration(connection, world),
        **await _of_agents(connection, world),
        "grant": await one(LARGEST_GRANT, a.id, a.user.id),
        "b_grant": await one(LARGEST_GRANT, b.id, b.user.id),
        "b_key_id": await one("select id::text from api_keys where tenant_id = $1 limit 1", b.id),
    }  # fmt: skip
    wallet = await connection.fetchrow(
        "select available_tokens, borrowed_tokens from user_token_wallets where tenant_id = $1 and user_id = $2",
        a.id,
        a.user.id,
    )
    names["available"] = str(wallet["available_tokens"])
    names["balance"] = str(wallet["available_tokens"] - wallet["borrowed_tokens"])
    for member in ("user", "other", "admin"):
        for kind in ("key", "session", "refresh"):
            names[f"{member}_{kind}"] = f"'\\x{getattr(getattr(a, member), f'{kind}_hash').hex()}'::bytea"
    names |= tokens(world)
    names["as_admin"] = f"select set_config('vanilla.context', '{names['token_admin']}', true)"
    stage = Stage(world, names, "")
    # without the keys' triggers, which lock what the new rows refer to
    await connection.execute("set local session_replication_role = replica")
    await connection.execute(stage.fill(TRAPS))
    await connection.execute("set local session_replication_role = origin")
    await look_again(connection, stage)
    return stage


async def _forget_others(connection: asyncpg.Connection, world: World) -> None:
    """Users whom other tests made in A: promises count people, tokens and levels."""
    a = world.a
    ours = [uuid.UUID(member.id) for member in (a.user, a.other, a.admin)]
    await connection.execute("set local session_replication_role = replica")
    for table in world.tables:
        column = "id" if table.name == "users" else "user_id"
        if not table.parent and any(c.name == column for c in table.columns):
            await connection.execute(
                f"delete from public.{table.name} where tenant_id = $1 and {column} <> all($2)", uuid.UUID(a.id), ours
            )
    await connection.execute("set local session_replication_role = origin")


LARGEST_GRANT = (
    "select id::text from user_token_grants where tenant_id = $1 and user_id = $2 and state = 'active'"
    " order by remaining desc limit 1"
)


OF_TASK = (
    "select k.id::text from webhook_endpoints k join workflow_executions e on e.tenant_id = k.tenant_id"
    " and e.id = k.execution_id where k.tenant_id = $1 and e.user_id = $2"
)


async def _of_webhooks(connection: asyncpg.Connection, a: str, b: str, user: str) -> dict[str, str]:
    """The endpoints of both, the delivery that failed and the one that is in flight; a task's of the user."""
    statement = (
        "select * from webhook_deliveries where tenant_id = $1 and cause = 'event' and lease_id is {} null limit 1"
    )
    failed, leased, of_b = [
        await connection.fetchrow(statement.format(word), tenant) for tenant, word in ((a, ""), (a, "not"), (b, ""))
    ]
    return {
        "webhook": str(failed["endpoint_id"]),
        "failed": str(failed["id"]),
        "leased": str(leased["id"]),
        "lease": str(leased["lease_id"]),
        "b_webhook": str(of_b["endpoint_id"]),
        "notification": await connection.fetchval(OF_TASK, a, user),
        "b_failed": str(of_b["id"]),
    }


async def _of_payments(connection: asyncpg.Connection, world: World) -> dict[str, str]:
    """A's account, prices and the rows of its user; the customer of the other one, and B's pack."""
    a, user = world.a.id, world.a.user.id
    row = await connection.fetchrow(
        """
        select s.id as account, p.id as pack, l.id as sold_id, l.price_id as sold_price, l.level_id as sold,
            c.id as customer_key, c.customer_id as customer, o.customer_id as other_customer,
            u.subscription_id as subscription,
            m.id as payment, m.intent_id as intent, r.reversal_id as refund, q.id as pending, q.lease_id as pay_lease,
            b.id as b_pack
        from payment_accounts s
        join payment_prices p on p.tenant_id = s.tenant_id and p.kind = 'pack'
        join payment_prices l on l.tenant_id = s.tenant_id and l.kind = 'level'
        join payment_customers c on c.tenant_id = s.tenant_id and c.user_id = $2
        join payment_customers o on o.tenant_id = s.tenant_id and o.user_id = $3
        join payment_subscriptions u on u.tenant_id = s.tenant_id and u.user_id = $2
        join payments m on m.tenant_id = s.tenant_id and m.user_id = $2 and m.state = 'succeeded'
        join payment_reversals r on r.tenant_id = s.tenant_id and r.intent_id = m.intent_id
        join payments q on q.tenant_id = s.tenant_id and q.user_id = $2 and q.state = 'pending'
        join payment_prices b on b.tenant_id = $4 and b.kind = 'pack'
        where s.tenant_id = $1""",
        *(uuid.UUID(x) for x in (a, user, world.a.other.id, world.b.id)),
    )
    return {name: str(value) for name, value in row.items()} | {"endpoint": f"'\\x{world.a.endpoint.hex()}'::bytea"}


async def _of_workflows(connection: asyncpg.Connection, world: World) -> dict[str, str]:
    """The private and the shared workflow of A's user and of another that were never started, and those that run."""
    rows = await connection.fetch(
        "select w.id, w.tenant_id, w.slug, w.user_id, w.shared from ai_workflows w where w.tenant_id = any($1)"
        " and w.user_id is not null",
        [world.a.id, world.b.id],
    )
    names = {}
    for row in rows:
        whose = "flow" if str(row["user_id"]) == world.a.user.id else "others"
        kind = row["slug"].split("-")[1] if "-" in row["slug"] else ""
        if str(row["tenant_id"]) == world.b.id:
            names["b_flow"] = str(row["id"])
        elif kind in ("run", "part"):
            names[f"{whose}_{kind}"] = str(row["id"])
        else:
            names[whose + ("_shared" if row["shared"] else "" if whose == "flow" else "_flow")] = str(row["id"])
    return names


NO_AGENT = (
    "exists (select from ai_workflows w where w.tenant_id = e.tenant_id and w.id = e.workflow_id"
    " and w.user_id is not null)"
)
"""Of an execution `e`: that it is of a workflow that people have written."""


async def _of_executions(connection: asyncpg.Connection, world: World) -> dict[str, str]:
    """Of A's user and of another: what runs, what waits for its place, what was started within, what has ended; of B
    one of each table."""
    names = {"hands": str(await connection.fetchval("select id from worker_registry where name = 'of the world'"))}
    of = f"e.tenant_id = $1 and e.user_id = $2 and {NO_AGENT}"
    for prefix, tenant, user in (
        ("", world.a, world.a.user.id),
        ("others_", world.a, world.a.other.id),
        ("b_", world.b, world.b.user.id),
    ):
        for name, where in (
            ("run", "e.status = 'running' and e.slot_held"),
            ("slotted", "e.status = 'running' and e.slot is not null and not e.slot_held"),
            ("child", "e.parent_execution_id is not null"),
            ("done", "e.status = 'succeeded'"),
            ("failed", "e.status = 'failed'"),
        ):
            found = await connection.fetchval(
                f"select e.id::text from workflow_executions e where {of} and {where}", tenant.id, user
            )
            names[prefix + {"run": "running", "done": "ended", "failed": "lost"}.get(name, name)] = found
        row = await connection.fetchrow(
            "select a.id::text as approval, (select q.lease::text from workflow_queue q where q.tenant_id = a.tenant_id"
            " and q.execution_id = a.execution_id and q.node = $3) as busy, (select q.lease::text from workflow_queue q"
            " where q.tenant_id = a.tenant_id and q.execution_id = a.execution_id and q.node = $4) as judge,"
            " (select h.id::text from user_token_holds h where h.tenant_id = a.tenant_id and h.state = 'open'"
            "  and h.reference_id = a.execution_id and h.call is not null limit 1) as step_call"
            " from workflow_approvals a where a.tenant_id = $1 and a.user_id = $2",
            tenant.id, user, NODES.index("busy") + 1, NODES.index("judge") + 1,
        )  # fmt: skip
        names |= {f"{prefix}{name}": value for name, value in row.items()}
        scheduled = "select id::text from workflow_schedules where tenant_id = $1 and user_id = $2"
        names[f"{prefix}schedule"] = await connection.fetchval(scheduled, tenant.id, user)
    return names


async def _of_engines(connection: asyncpg.Connection, world: World) -> dict[str, str]:
    """The engine of both tenants, the assignments and copies of their users, and the copy of A's other one."""
    row = await connection.fetchrow(
        """
        select a.id as engine, b.id as b_engine, s.id as assignment, t.id as b_assignment, c.id as copy,
            o.id as others_copy, d.id as b_copy
        from ai_engines a
        join ai_engines b on b.tenant_id = $3
        join engine_assignments s on s.tenant_id = a.tenant_id and s.user_id = $2
        join engine_assignments t on t.tenant_id = b.tenant_id and t.user_id = $4
        join user_engines c on c.tenant_id = a.tenant_id and c.user_id = $2
        join user_engines o on o.tenant_id = a.tenant_id and o.user_id <> $2
        join user_engines d on d.tenant_id = b.tenant_id and d.user_id = $4
        where a.tenant_id = $1""",
        *(uuid.UUID(x) for x in (world.a.id, world.a.user.id, world.b.id, world.b.user.id)),
    )
    return {name: str(value) for name, value in row.items()}


async def _of_allocations(connection: asyncpg.Connection, world: World) -> dict[str, str]:
    """The budget of A's user, its child, both of its steps and its hold; those of A's other one and of B's user."""
    names = {}
    for prefix, tenant, member in (
        ("", world.a, world.a.user),
        ("others_", world.a, world.a.other),
        ("b_", world.b, world.b.user),
    ):
        row = await connection.fetchrow(
            """
            select r.id as budget, r.hold_id as budget_hold, c.id as share, o.id as step, s.id as paid_step
            from resource_allocations r
            join resource_allocations c on c.tenant_id = r.tenant_id and c.parent_id = r.id
            join allocation_holds o on o.tenant_id = r.tenant_id and o.allocation_id = c.id and o.state = 'open'
            join allocation_holds s on s.tenant_id = r.tenant_id and s.allocation_id = c.id and s.state = 'settled'
            where r.tenant_id = $1 and r.user_id = $2""",
            uuid.UUID(tenant.id),
            uuid.UUID(member.id),
        )
        names |= {f"{prefix}{name}": str(value) for name, value in row.items()}
    return names


async def _of_orchestration(connection: asyncpg.Connection, world: World) -> dict[str, str]:
    """The user's channel that is held to an agreement, as which participant they speak, the lease that is out."""
    names: dict[str, str] = {}
    for prefix, tenant in (("", world.a), ("b_", world.b)):
        row = await connection.fetchrow(
            """
            select c.id as channel, c.agreement_id as agreement, p.id as speaker, p.lease_token as word_lease,
                encode(v.hash, 'hex') as hash
            from communication_channels c
            join agreement_versions v on v.tenant_id = c.tenant_id and v.agreement_id = c.agreement_id
            join channel_participants p on p.tenant_id = c.tenant_id and p.channel_id = c.id
                and p.lease_token is not null
            where c.tenant_id = $1 and c.user_id = $2 and c.agreement_id is not null""",
            uuid.UUID(tenant.id),
            uuid.UUID(tenant.user.id),
        )
        names |= {prefix + name: str(value) for name, value in row.items()}
    return names


async def _of_agents(connection: asyncpg.Connection, world: World) -> dict[str, str]:
    """Of A's user, A's other one and B's user: both agents, the run that waits, the one that it asked, the one in a
    turn, and of these two what the worker has."""
    names = {"agents_worker": str(await connection.fetchval("select id from worker_registry where name = 'of agents'"))}
    for prefix, tenant, member in (
        ("", world.a, world.a.user),
        ("others_", world.a, world.a.other),
        ("b_", world.b, world.b.user),
    ):
        row = await connection.fetchrow(
            """
            select a.id as agent, h.id as helper, p.id as asking, p.execution_id as asking_execution,
                p.allocation_id as asking_budget, c.id as asked, c.execution_id as asked_execution,
                c.allocation_id as asked_budget, d.lease as asked_lease, t.id as turning,
                t.execution_id as turn_execution, t.allocation_id as turn_budget, q.lease as turn_lease,
                o.id as turn_call
            from agents a
            join agents h on h.tenant_id = a.tenant_id and h.user_id = a.user_id and h.shared
            join agent_runs c on c.tenant_id = a.tenant_id and c.user_id = a.user_id and c.parent_run_id is not null
            join agent_runs p on p.tenant_id = a.tenant_id and p.id = c.parent_run_id
            join agent_runs t on t.tenant_id = a.tenant_id and t.user_id = a.user_id and t.parent_run_id is null
                and t.id <> p.id
            join workflow_queue q on q.tenant_id = t.tenant_id and q.execution_id = t.execution_id
            join workflow_queue d on d.tenant_id = c.tenant_id and d.execution_id = c.execution_id
            join allocation_holds o on o.tenant_id = t.tenant_id and o.allocation_id = t.allocation_id
                and o.state = 'open'
            where a.tenant_id = $1 and a.user_id = $2 and not a.shared""",
            uuid.UUID(tenant.id),
            uuid.UUID(member.id),
        )
        names |= {f"{prefix}{name}": str(value) for name, value in row.items()}
    return names


async def _of_routing(connection: asyncpg.Connection, world: World) -> dict[str, str]:
    """The platform's worker, and of both tenants a worker and the decision that can be replayed."""
    one = connection.fetchval
    own = "select id::text from worker_registry where tenant_id = $1 order by id limit 1"
    decision = (
        "select id::text from routing_decisions where tenant_id = $1 and kind = 'least_loaded' order by id limit 1"
    )
    return {
        "worker": await one("select id::text from worker_registry where name = 'of the world'"),
        "own_worker": await one(own, world.a.id),
        "b_worker": await one(own, world.b.id),
        "decision": await one(decision, world.a.id),
        "b_decision": await one(decision, world.b.id),
    }


FROZEN = """do $$ begin execute format('create or replace function vanilla.clock() returns timestamptz language sql'
    ' volatile parallel safe as %L', format('select %L::pg_catalog.timestamptz', (select max(created_at)
    from public.user_token_ledger where created_at < 'infinity'))); end $$"""
"""The moment the world was made, so that a long run meets no hold and no session that has expired meanwhile."""

SAME_ID = "00000000-0000-7000-8000-00000000f001"
"""Of a grant that cases give A, and the twin has already."""

TRAPS = f"""
    -- what the twin has and A has not: found by a statement that forgets the tenant
    update users set external_id = 'twin-only' where tenant_id = '{TWIN}' and id = '{{other}}';
    update ai_models set slug = 'twin-model', name = '{WORD}', status = 'active' where tenant_id = '{TWIN}';
    update api_keys set budget_tokens = 1000000, used_tokens = 500000 where tenant_id = '{TWIN}';
    insert into system_configurations (tenant_id, key, value) values ('{TWIN}', 'twin.only', '"{WORD}"');
    insert into user_token_ledger (tenant_id, user_id, seq, id, created_at, amount, reserved_amount, available_after,
        reserved_after, borrowed_after, direction, reason, source, idempotency_key, hash)
        values ('{TWIN}', '{{user}}', 1000000, gen_random_uuid(), now(), 1, 0, 1, 0, 0, 'credit', '{WORD}', 'x',
            'twin-key', '');
    insert into user_token_grants
        (tenant_id, user_id, kind, amount, remaining, effective_at, expires_at, state, level_id, idempotency_key)
        select '{TWIN}', '{{user}}', kind, 9, 9, vanilla.clock(), '2199-01-01', 'voided', '{{paid}}', 'twin-' || kind
        from unnest(array['base', 'plan']) kind;
    update user_token_holds set call = jsonb_set(call, array['input_weight'], '7')
        where tenant_id = '{TWIN}' and call is not null;
    insert into user_token_grants
        (tenant_id, id, user_id, kind, priority, amount, remaining, effective_at, expires_at, state)
        select '{TWIN}', id, '{{user}}', 'promo', 99, 500, n, f, u, state from (values
            ('{SAME_ID}'::uuid, 500, '2198-01-01'::timestamptz, '2199-01-01'::timestamptz, 'scheduled'),
            (gen_random_uuid(), 500, '2026-01-01', '2199-01-01', 'scheduled'),
            (gen_random_uuid(), 0, '2026-01-01', '2199-01-01', 'active'),
            (gen_random_uuid(), 3, '2026-01-01', '2026-01-15', 'active')) s (id, n, f, u, state);
    update user_token_wallets
        set next_event_at = '2199-01-01', next_reset_at = '2199-01-01', period_start = '2000-01-01'
        where tenant_id = '{TWIN}';
    insert into users (tenant_id, id, external_id, status) values ('{TWIN}', '{{provider}}', 'left', 'deleted');
    insert into api_keys (tenant_id, user_id, name, prefix, key_hash, scopes)
        values ('{TWIN}', '{{provider}}', '{WORD}', 'x', sha256('left'), '{{chat}}');
    insert into sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at)
        values ('{TWIN}', '{{provider}}', gen_random_uuid(), sha256('left'), sha256('left'), '2199-01-01',
            '2199-01-01');
    update level_token_policies set enforcement_mode = 'warn' where tenant_id = '{TWIN}';
    -- never due, and old enough to be forgotten were they not open
    update webhook_deliveries set next_attempt_at = '2199-01-01', created_at = '2020-01-01' where tenant_id = '{TWIN}';
    -- jobs of the platform's names, due at any time, and a month that it says was exported
    insert into schedules (tenant_id, name, description, kind, period, next_run_at, requested_at)
        select '{TWIN}', name, '{WORD}', kind, '1 hour', '2020-01-01', '2020-01-01' from (
            select name, kind from schedules where tenant_id = vanilla.platform()
            union all values ('twin_job', 'sql')) s;
    insert into log_exports (tenant_id, log_table, month, rows, bytes, sha256, location)
        values ('{TWIN}', 'ai_executions', '2025-01-01', 1, 1, sha256('{WORD}'), '{WORD}');
    insert into sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at)
        values ('{TWIN}', '{{user}}', gen_random_uuid(), sha256('{WORD}'), sha256('{WORD}'), '2199-01-01',
            '2199-01-01');
    insert into payments (tenant_id, user_id, account_tenant_id, cause, state, price_id, tokens, currency, amount)
        select '{TWIN}', '{{user}}', '{TWIN}', 'checkout', 'open', '{WORD}', 1, 'USD', 1 from generate_series(1, 20);
    update payments set created_at = vanilla.clock() where tenant_id = '{TWIN}' and state = 'open';
    -- a worker with the id of the platform's before it, silent for long; a quick one; a strategy for a pool
    delete from worker_registry where tenant_id = '{{platform}}' and id <> '{{worker}}' and name <> 'of agents';
    insert into worker_registry (tenant_id, id, name, pools, capacity, status, heartbeat_at, latency_ewma_ms)
        values ('{TWIN}', '{{worker}}', '{WORD}', '{{default}}', 7, 'active', '2020-01-01', null),
            ('{TWIN}', gen_random_uuid(), '{WORD}', '{{default}}', 7, 'active', '2199-01-01', 1);
    with gone as (delete from worker_registry where tenant_id = '{{platform}}' returning *)
        insert into worker_registry select * from gone;
    insert into routing_strategies (tenant_id, slug, kind, pool) values ('{TWIN}', 'twin-only', 'sticky', 'twinpool');
    -- signals that came to the twin's alone, and votes that would make a quorum
    insert into workflow_signals (tenant_id, execution_id, name, user_id, payload, sent_at)
        select '{TWIN}', '{{running}}', name, '{{user}}', '"{WORD}"', now() from unnest(array['word', 'go']) name;
    insert into ai_engines (tenant_id, slug, name, default_access)
        values ('{TWIN}', 'twin-engine', '{WORD}', 'execute');
    insert into engine_assignments (tenant_id, engine_tenant_id, engine_id, target, tier, assigned_at)
        select '{TWIN}', '{TWIN}', '{{engine}}', t, case t when 'tier' then l.tier end, now()
        from levels l, unnest(array['tier', 'tenant']) t where l.tenant_id = '{{a}}' and l.id = '{{level}}';
    insert into workflow_nodes select (jsonb_populate_record(n, '{{"node": 99}}')).* from workflow_nodes n
        where tenant_id = '{TWIN}' and node = 1;
    update workflow_steps set status = 'failed' where tenant_id = '{TWIN}' and execution_id = '{{lost}}';
    insert into workflow_approval_votes (tenant_id, approval_id, user_id, decision, comment, voted_at)
        select '{TWIN}', '{{approval}}', u::uuid, 'approved', '{WORD}', '2020-01-01'
        from unnest(array['{{user}}', '{{admin}}']) u;
    insert into ai_executions (tenant_id, id, user_id, provider, model, status)
        select '{TWIN}', execution_id, user_id, 'x', 'x', 'abandoned' from user_token_holds
        where tenant_id = '{{a}}' and id = '{{call}}';
"""


def tokens(world: World) -> dict[str, str]:
    """Contexts by name: those that must be believed, and the others."""
    a, b, sign = world.a, world.b, world.signer.sign
    user, admin = uuid.UUID(a.user.id), uuid.UUID(a.admin.id)

    def token(tenant: str, who: uuid.UUID, role: str, lifetime_s: int = 7200) -> str:
        return sign(Identity(uuid.UUID(tenant), who, role), lifetime_s)  # type: ignore[arg-type]

    good = token(a.id, user, "user")
    named = {
        "user": good, "admin": token(a.id, admin, "admin"), "lowered": token(a.id, admin, "user"),
        "service": token(a.id, admin, "service"), "super": token(str(PLATFORM), SUPER_ADMIN, "superadmin"),
        "opened": token(a.id, SUPER_ADMIN, "superadmin"),
        # in the twin this user is an admin
        "raised": token(a.id, user, "admin"), "user_service": token(a.id, user, "service"),
        "odd": token(a.id, admin, "owner"), "expired": token(a.id, user, "user", -1),
        "other_key": a.token(OTHER_KEY, a.user, 7200),
        "forged": good.replace(a.id, b.id), "user_of_b": token(a.id, uuid.UUID(b.user.id), "user"),
        "second_version": resigned(world, good.replace("v1.", "v2.")),
        "too_long": resigned(world, good.replace(".user.", f".{'x' * 60}.")),
        "stranger": token(a.id, uuid.uuid4(), "user"), "twin_admin": token(TWIN, admin, "admin"),
    }  # fmt: skip
    return {f"token_{name}": text for name, text in named.items()}


def resigned(world: World, token: str) -> str:
    payload = token[:-65]
    return f"{payload}.{hmac.new(world.signer.key, payload.encode(), hashlib.sha256).hexdigest()}"


async def _digest(connection: asyncpg.Connection, world: World) -> str:
    """Of every row of B and of the twin, and of who has locked it."""
    rows = " union all ".join(
        f"select hash_record_extended((x, {LOCK}), {n}) as d from public.{t.name} x"
        f" where tenant_id in ('{world.b.id}', '{TWIN}')"
        for n, t in enumerate(world.tables)
        if not t.parent
    )
    return await connection.fetchval(f"select coalesce(sum(d), 0)::text from ({rows}) s")


async def look_again(connection: asyncpg.Connection, stage: Stage) -> None:
    """Takes rows as they are now: whoever locked one and was undone has taken the place of who had locked it before."""
    stage.digest = await _digest(connection, stage.world)


async def broken(connection: asyncpg.Connection, stage: Stage, cases: Iterable[Case]) -> str | None:
    """The first promise that does not hold, or None."""
    for case in cases:
        async with rolled_back(connection, "promise"):
            if problem := await _try(connection, stage, case):
                return f"{case}: {problem}"
    return None


async def _try(connection: asyncpg.Connection, stage: Stage, case: Case) -> str | None:
    fill = stage.fill
    try:
        if case.given:
            await connection.execute(fill(case.given))
        others = await _digest(connection, stage.world) if case.given else stage.digest
        logged = await _logged(connection, case)
        outcome = await _call(connection, stage, case)
        if CANARY in outcome or WORD in outcome or TWIN in outcome:
            return f"tells of another tenant: {outcome[:200]}"
        if case.expect == OK or case.expect.startswith("VS") or case.expect[0].isdigit():
            if not outcome.startswith(case.expect):
                return f"{outcome[:300]} instead of {case.expect}"
        elif outcome != f"{OK} {fill(case.expect.removeprefix('= '))}":
            return f"{outcome[:300]} instead of {fill(case.expect)}"
        if case.audit and await _logged(connection, case) <= logged:
            return f"no audit row {case.audit}"
        if case.then and not await connection.fetchval(f"select {fill(case.then)}"):
            return f"not true afterwards: {case.then}"
        if outcome.startswith(OK) and await _digest(connection, stage.world) != others:
            return "rows of another tenant were changed or locked"
    except asyncpg.PostgresError as error:
        return f"the case itself failed: {error.sqlstate} {error}"
    return None


async def _logged(connection: asyncpg.Connection, case: Case) -> int:
    if not case.audit:
        return 0
    return await connection.fetchval("select count(*) from audit_logs where action = $1", case.audit)


async def _call(connection: asyncpg.Connection, stage: Stage, case: Case) -> str:
    role = ROLES.get(case.who, "vanilla_app")
    try:
        async with connection.transaction():
            await connection.execute(f"set local role {role}")
            await connection.fetchval("select set_config('vanilla.context', $1, true)", stage.token(case.who))
            answer = await connection.fetch(f"select x::text from ({stage.fill(case.statement)}) x")
            await connection.execute("reset role")
            await connection.fetchval("select set_config('vanilla.context', '', true)")
    except asyncpg.PostgresError as error:
        told = " ".join(str(v) for k, v in error.as_dict().items() if k in ("detail", "hint", "message") and v)
        return f"{error.sqlstate} {told}"
    return f"{OK} {', '.join(r['x'] for r in answer)}"
