"""Every page in both themes: no accessibility violation, no complaint of the browser, nothing too wide."""

import uuid
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from tests.browser.conftest import LOOKS, Visitor
from tests.browser.history import month_of_calls
from tests.conftest import DEFAULT_TENANT, People, Person
from tests.console.console_support import PASSWORD, set_password, super_admin
from vanilla_saas.database.context import Identity
from vanilla_saas.database.pool import Database
from vanilla_saas.engines import store as engines
from vanilla_saas.orchestration import agreement_store as agreements
from vanilla_saas.orchestration import channel_store as channels
from vanilla_saas.orchestration import drafts as agent_drafts
from vanilla_saas.orchestration import store as agents
from vanilla_saas.workflows import drafts, store

Visit = Callable[..., Awaitable[Visitor]]
EVERYBODY = ["/sign-in", "/register", "/password/set?token=vst_x", "/nowhere", "/pricing?tenant=default"]
ADMIN = [
    "/wallet",
    "/plan",
    "/levels",
    "/levels/analytics",
    "/billing",
    "/payments",
    "/levels/paths",
    "/plan/change?level={premium}&when=now&price=monthly+USD",
    "/plan/change?level={basic}&when=period_end",
    "/levels/paths/change?user={other}&level={basic}&when=now&price=monthly+EUR",
    "/playground",
    "/keys",
    "/users",
    "/audit",
    "/password",
    "/executions/{execution}",
    "/wallet/{other}",
    "/wallet/{other}/grants",
    "/wallet/{other}/holds",
    "/wallet/{other}/holds?state=all",
    "/wallet/{other}/policy",
    "/wallet/{other}/statement",
    "/workflows",
    "/workflows/research",
    "/workflows/unfinished",
    "/engines",
    "/engines/research",
    "/engines/research/versions/1",
    "/engines/my/short",
    "/engine-choice?user={other}",
    "/agents",
    "/agents/helper",
    "/agent-runs",
    "/runs/{run}",
    "/runs",
    "/approvals",
    "/channels",
    "/channels/{channel}",
    "/agreements",
    "/agreements/{agreement}",
    "/webhooks",
    "/webhooks/events",
    "/webhooks/{webhook}",
    "/webhooks/{webhook}/deliveries/{delivery}",
]
SUPER = ["/tenants", "/providers", "/schedules", "/workers", "/workers/{worker}"]
NAMES = {
    "/levels/paths": "/levels-paths",
    "/workers/{worker}": "/worker",
    "/plan/change?level={premium}&when=now&price=monthly+USD": "/plan-change-now",
    "/plan/change?level={basic}&when=period_end": "/plan-change-later",
    "/levels/paths/change?user={other}&level={basic}&when=now&price=monthly+EUR": "/user-change-trial",
    "/wallet/{other}": "/user-wallet",
    "/wallet/{other}/grants": "/user-grants",
    "/wallet/{other}/holds": "/user-holds",
    "/wallet/{other}/holds?state=all": "/user-holds-all",
    "/wallet/{other}/policy": "/user-policy",
    "/wallet/{other}/statement": "/user-statement",
    "/engines/my/short": "/engine-copy",
    "/engine-choice?user={other}": "/engine-choice",
    "/runs/{run}": "/engine-run",
    "/channels/{channel}": "/channel",
    "/agreements/{agreement}": "/agreement",
    "/webhooks/{webhook}": "/webhook",
    "/webhooks/{webhook}/deliveries/{delivery}": "/webhook-delivery",
}
"""What the pictures of pages with an id in their address are called."""


@pytest.fixture(scope="session")
async def history(cluster: object, database_name: str, database: Database) -> Person:
    connection = await asyncpg.connect(cluster.url(database=database_name))  # type: ignore[attr-defined]
    try:
        email = f"ada.{uuid.uuid4().hex[:6]}@example.test"
        user_id = await month_of_calls(connection, database, email)
        days = "(vanilla.clock() - interval '29 days')::date, vanilla.clock()::date"
        await connection.fetchval(f"select roll_up_level_analytics({days}, $1)", DEFAULT_TENANT)
    finally:
        await connection.close()
    return Person(Identity(DEFAULT_TENANT, user_id, "admin"), "", user_id, email)


def _name(path: str, theme: str, width: int) -> str:
    return f"{path.strip('/').split('?')[0].replace('/', '-').split('{')[0].strip('-') or 'start'}-{theme}-{width}"


async def _paths(people: People, history: Person) -> list[str]:
    other = await people.user(balance=12_345)
    await _wallet_of_every_state(people, other)
    execution = await people.operator.fetchval(
        "select id from ai_executions where user_id = $1 order by created_at desc limit 1", history.identity.user_id
    )
    webhook, delivery = await _webhook(people, other)
    await _workflows(people, other)
    run = await _engine(people, history)
    await _agent(people, history)
    levels = await _plans(people, history)
    channel, agreement = await _talk(people, history, other)
    ids = {
        "execution": execution,
        "other": other.identity.user_id,
        "webhook": webhook,
        "delivery": delivery,
        "run": run,
        "channel": channel,
        "agreement": agreement,
        **levels,
    }
    return [path.format(**ids) for path in ADMIN]


async def _plans(people: People, person: Person) -> dict[str, uuid.UUID]:
    """One who pays for a level and came to it by another, one whose change waits, and a path with a discount."""
    rows = await people.operator.fetch("select slug, id from levels where tenant_id = $1", DEFAULT_TENANT)
    levels = {row["slug"]: row["id"] for row in rows}
    change = "select change_user_level($1, $2, p_currency => 'USD', p_trial => false, p_idempotency_key => $3)"
    path = "select set_upgrade_path($1, $2, $3, 'any', true, p_tenant_id => $4)"
    await people.operator.fetchval(path, levels["enterprise"], levels["premium"], 0, DEFAULT_TENANT)
    await people.operator.fetchval(path, levels["enterprise"], levels["basic"], 0, DEFAULT_TENANT)
    held = await people.operator.fetchval(
        "select level_id from user_token_wallets where user_id = $1", person.identity.user_id
    )
    if held != levels["enterprise"]:
        paid = "select change_user_level($1, $2, p_currency => 'USD', p_payment_reference => $3)"
        if held != levels["basic"]:
            await people.operator.fetchval(paid, person.identity.user_id, levels["basic"], "in_1Q8xS")
        await people.operator.fetchval(paid, person.identity.user_id, levels["enterprise"], "in_1Q8xT")
    waits = await people.user()
    await people.operator.fetchval(change, waits.identity.user_id, levels["premium"], "first")
    later = "select change_user_level($1, $2, 'period_end')"
    await people.operator.fetchval(later, waits.identity.user_id, levels["free"])
    return levels


async def _wallet_of_every_state(people: People, person: Person) -> None:
    """Grants, holds and an exception of every kind that a page draws."""
    call = people.operator.fetchval
    user_id = person.identity.user_id
    await call("select grant_user_tokens($1, 900, 'trial', p_expires_at => now() + interval '9 days')", user_id)
    await call(
        "select grant_user_tokens($1, 500, 'purchase', now() + interval '2 days', p_reason => 'invoice 7')", user_id
    )
    grant = await call("select grant_user_tokens($1, 77, p_reason => 'welcome') ->> 'id'", user_id)
    await call("select void_token_grant($1::text::uuid, 'given twice')", grant)
    for settled in (None, 40, 0):
        hold = await call(
            "select adjust_user_tokens($1, 300, 'reserve', p_reference_type => 'run') ->> 'hold_id'", user_id
        )
        if settled is not None:
            await call("select settle_user_tokens($1::text::uuid, $2)", hold, settled)
    await call("select set_user_token_policy($1, 25000, p_enforcement_mode => 'warn')", user_id)


async def _workflows(people: People, person: Person) -> None:
    """One of a template, published twice, and one that cannot be."""
    operator, tenant, user = people.operator, person.identity.tenant_id, person.identity.user_id
    one = partial(nullcontext, operator)
    await drafts.begin(one, tenant, "research_with_judge", "research", {}, user_id=user)
    await drafts.publish(one, tenant, "research")
    draft = (await store.find(operator, tenant, "research"))["draft"]
    await store.save(operator, tenant, "research", draft | {"description": "Looks things up."}, user_id=user)
    circle = {
        "name": "Unfinished",
        "nodes": [{"id": "a", "kind": "llm"}, {"id": "b", "kind": "odd"}],
        "connections": [{"from": "a", "to": "c"}],
    }
    await store.save(operator, tenant, "unfinished", circle, user_id=user)


async def _engine(people: People, person: Person) -> uuid.UUID:
    """One with parameters, a canary, a level that may read it, an assignment and a copy, and a run that has begun."""
    operator, tenant, user = people.operator, person.identity.tenant_id, person.identity.user_id
    started = "select id from engine_executions where user_id = $1 limit 1"
    if await engines.deployed(operator, tenant):
        return await operator.fetchval(started, user)  # what engines were made of is not deleted
    await drafts.begin(partial(nullcontext, operator), tenant, "research_with_judge", "digest", {}, user_id=user)
    await drafts.publish(partial(nullcontext, operator), tenant, "digest")
    flow = (await store.find(operator, tenant, "digest"))["id"]
    declared = {"question": {"type": "string", "default": "Why?", "maxLength": 500, "description": "What to look up"}}
    made = await engines.deploy(
        operator, tenant, "research", flow, description="Looks things up and judges them.", parameters=declared
    )
    await engines.deploy(operator, tenant, "research", flow, mode="sequential", parameters=declared)
    engine = uuid.UUID(made["engine_id"])
    await engines.change(operator, tenant, engine, default_access="execute")
    await engines.promote(operator, tenant, engine, 2, "canary", 10)
    level = await operator.fetchval("select id from levels where tenant_id = $1 and slug = 'free'", tenant)
    await engines.set_access(operator, tenant, level, engine, "execute")
    await engines.assign(operator, tenant, engine, "level", target_id=level, priority=2)
    await engines.assign(operator, tenant, engine, "user", target_id=user, pin="2")
    await engines.fork(operator, tenant, "research@1", "short", {"question": "How?"}, user_id=user)
    await engines.create_key(
        operator, tenant, "research", name="The site", prefix="vsk_research", key_hash=uuid.uuid4().bytes * 2,
        budget_tokens=5000, user_id=user,
    )  # fmt: skip
    await engines.start(operator, tenant, "research@1", {"question": "Why?"}, user_id=user)
    await engines.start(operator, tenant, "research", {"question": "Why?"}, user_id=user)
    return await operator.fetchval(started, user)


async def _agent(people: People, person: Person) -> None:
    """One with tools, limits and others that it may turn to, and a run that has begun."""
    operator, tenant, user = people.operator, person.identity.tenant_id, person.identity.user_id
    asked = {"tool": "refund", "approval": {"approvers": ["role:admin"]}}
    plain = {"instructions": "You help.", "model": "sandbox-small", "description": "Answers questions about orders."}
    for slug, more in (("billing", {"tools": ["order_of", asked]}), ("helper", {"handoffs": ["billing", "unknown"]})):
        await agents.save(operator, tenant, slug, agent_drafts.document(plain | more), shared=True, user_id=user)
    await agents.start(operator, tenant, "helper", {"message": "Hello"}, key="tour", user_id=user)


async def _talk(people: People, person: Person, other: Person) -> tuple[str, str]:
    """A channel under an agreement, with a message that broke it, and one that was not handled."""
    operator, tenant = people.operator, person.identity.tenant_id
    whose = {"triage": str(person.identity.user_id), "billing": str(other.identity.user_id)}
    refund = {"type": "object", "required": ["refund"], "properties": {"refund": {"type": "integer", "minimum": 1}}}
    terms: dict[str, Any] = {
        "acts": {
            "request": {"senders": ["triage"], "replies": ["agree"], "schema": refund},
            "agree": {"senders": ["billing"]},
        }
    }
    figures = {
        "price": {"max_tokens_per_task": 20000}, "sla": {"max_latency_ms": 3_600_000, "max_attempts": 3},
        "gate": {"kind": "regex", "acts": ["agree"], "field": "text", "pattern": "^[A-Z]"},
        "data": {"retention_days": 30},
    }  # fmt: skip
    made = await agreements.propose(operator, tenant, "Refunds", whose, "triage", terms, person.identity.user_id)
    agreement = uuid.UUID(made["agreement_id"])
    await agreements.respond(operator, tenant, agreement, "billing", bytes.fromhex(made["hash"]), "accept")
    await agreements.amend(operator, tenant, agreement, "billing", terms | figures)
    seats = [{"name": name, "user_id": user_id, "party": name} for name, user_id in whose.items()]
    opened = await channels.open_channel(
        operator, tenant, "Ticket 17", "group", seats, agreement_id=agreement, limits={"floor": "round_robin"},
        user_id=person.identity.user_id,
    )  # fmt: skip
    channel = uuid.UUID(opened["channel_id"])
    one, two = (uuid.UUID(opened["participants"][name]) for name in whose)
    await channels.send(operator, tenant, channel, one, "request", {"refund": 120}, "ask")
    await channels.send(operator, tenant, channel, two, "agree", {"text": "It is on its way."}, "yes", in_reply_to=1)
    await channels.send(operator, tenant, channel, one, "request", {"refund": 0}, "wrong")
    [row] = await channels.receive(operator, tenant, channel, two, 1, timedelta(minutes=1))
    await channels.nack(
        operator, tenant, channel, two, row["lease_token"], 1, "the till is closed", timedelta()
    )  # fmt: skip
    return str(channel), str(agreement)


async def _workers(people: People) -> uuid.UUID:
    """One that works and two that have ended, of which one died."""
    call = people.operator.fetchval
    names = ("worker-1", "worker-2", "worker-3")
    made = [await call("select vanilla.register_worker($1, '{default}', 8, '{}', 'eu', '1.0')", name) for name in names]
    for worker in made:
        report = {"finished": 90, "failed": 10, "latency_ms_sum": 45_000, "in_flight": 3}
        await call("select vanilla.heartbeat_worker($1, $2)", worker, report)
    await call("select vanilla.drain_worker($1)", made[1])
    await call("update worker_registry set heartbeat_at = now() - interval '1 minute' where id = $1", made[2])
    await call("select vanilla.bury_workers()")
    # a tour takes longer than a worker may be silent
    await call("update worker_registry set heartbeat_at = now() + interval '1 hour' where stopped_at is null")
    return made[0]


async def _webhook(people: People, person: Person) -> tuple[uuid.UUID, uuid.UUID]:
    """One that failed, with a delivery that was tried."""
    webhook = uuid.uuid4()
    await people.operator.fetchval(
        "select create_webhook_endpoint($1, 'https://example.com/billing', '{token.*}', 'x', 'Billing',"
        " p_tenant_id => $2)",
        webhook,
        DEFAULT_TENANT,
    )
    for n in range(3):
        await people.operator.fetchval("select adjust_user_tokens($1, $2, 'credit')", person.identity.user_id, n + 1)
    # claimed for good: the server's own sender leaves them as they are
    await people.operator.fetchval("select vanilla.claim_webhook_deliveries(20, '1 day')")
    rows = await people.operator.fetch("select * from webhook_deliveries where endpoint_id = $1", webhook)
    for row, status in zip(rows, (200, 503), strict=False):
        await people.operator.fetchval(
            "select vanilla.finish_webhook_delivery($1, $2, $3, $4, $5, 82)",
            DEFAULT_TENANT,
            row["id"],
            row["lease_id"],
            status,
            None if status == 200 else "answered 503: the queue is full",
        )
    return webhook, rows[1]["id"]


@pytest.mark.parametrize(("width", "theme"), LOOKS)
async def test_every_page_is_accessible_and_fits_its_window(
    visitor: Visit, people: People, history: Person, theme: str, width: int
) -> None:
    problems = []

    async def look(one: Visitor, path: str, name: str) -> None:
        await one.visit(path)
        problems.extend(f"{path}: {line}" for line in await one.violations())
        if await one.overflow() > 0:
            problems.append(f"{path} is wider than {width} pixels")
        await one.picture(_name(name, theme, width))

    guest = await visitor(width)
    await guest.theme(theme)
    for path in EVERYBODY:
        await look(guest, path, path)

    await set_password(people, history)
    admin = await visitor(width)
    await admin.theme(theme)
    await admin.sign_in("default", history.email, PASSWORD)
    paths = await _paths(people, history)
    for path, name in zip(paths, ADMIN, strict=True):
        await look(admin, path, NAMES.get(name, name))
    await people.operator.fetchval("select delete_webhook_endpoint(id, tenant_id) from webhook_endpoints")
    drawn = "select delete_workflow(id, tenant_id) from ai_workflows where slug in ('research', 'unfinished')"
    await people.operator.execute(drawn)

    root = await visitor(width)
    await root.theme(theme)
    await super_admin(people)
    await root.sign_in("platform", "admin@localhost", PASSWORD)
    worker = await _workers(people)
    for path in SUPER:
        await look(root, path.format(worker=worker), NAMES.get(path, path))
    await people.operator.execute("delete from worker_registry")
    assert not problems, "\n".join(problems)
