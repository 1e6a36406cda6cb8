"""The tour's visitor writes to the support desk of `examples/`, whose refund waits for an admin; then a team works."""

import asyncio
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from rich.console import Console

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import ContextSigner, Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.operations.examples import folder
from vanilla_saas.orchestration import drafts, run_events, run_view, store
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy import store as tenancy_store
from vanilla_saas.workflows import drafts as workflow_drafts
from vanilla_saas.workflows import execution_store, execution_view, executions
from vanilla_saas.workflows import store as workflow_store
from vanilla_saas.workflows.definition import plain
from vanilla_saas.workflows.working import options_of, worker_alone, working

RUN_S = 30.0
POOL = "tour"
"""No other worker has the desk's tools."""
TOOLS = "vanilla_saas_support_desk"
WALLET = "select spent_tokens, reserved_tokens from user_token_wallets where user_id = $1"
OPEN = "select id from workflow_approvals where tenant_id = $1 and execution_id = $2 and status = 'open'"
MESSAGE = "Order 1001 arrived broken."
Answer = dict[str, Any]


async def show(
    operator: asyncpg.Connection,
    where: Addresses,
    signer: ContextSigner,
    console: Console,
    user_id: UUID,
    settings: Settings | None = None,
) -> None:
    """Raises VanillaError `internal_error` when one does not end well, or the wallet paid something else."""
    tenant_id = await operator.fetchval("select tenant_id from users where id = $1", user_id)
    settings = settings or Settings()
    _load_tools()
    settings = settings.model_copy(update={"worker_tools": [*settings.worker_tools, TOOLS]})
    options = options_of(settings, pools=("default", POOL))
    async with worker_alone(settings, options, where, signer) as worker, working(worker):
        await _desk(operator, where, signer, settings, console, tenant_id, user_id)
        await _team(operator, console, tenant_id, user_id)


def _load_tools() -> None:
    spec = importlib.util.spec_from_file_location(TOOLS, folder("support_desk") / "tools.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[TOOLS] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _scripted(file: str, *turns: Answer, **more: Any) -> Answer:
    """An agent of the examples; the sandbox plays what its model does."""
    given = drafts.read((folder("support_desk") / file).read_bytes(), "yaml")
    script = orjson.dumps({"turns": turns}).decode()
    words = f"{given['instructions']}{{% raw %}}sandbox: {script}{{% endraw %}}"
    return drafts.document(given | {"instructions": words, "pool": POOL} | more)


async def _desk(
    operator: asyncpg.Connection,
    where: Addresses,
    signer: ContextSigner,
    settings: Settings,
    console: Console,
    tenant_id: UUID,
    user_id: UUID,
) -> None:
    name = user_id.hex[-12:]
    triage, billing = f"triage-{name}", f"support-billing-{name}"
    begin = {"tool_calls": [{"name": f"transfer_to_{billing}", "arguments": {}}]}
    agents = {
        billing: _scripted(
            "support-billing.yaml",
            begin,  # turns are counted over the whole conversation: the first was triage's
            {"tool_calls": [{"name": "order_of", "arguments": {"number": "1001"}}]},
            {"tool_calls": [{"name": "refund", "arguments": {"number": "1001", "amount": 40}}]},
            {"reply": "Your 40 dollars are on their way."},
        ),
        triage: _scripted("triage.yaml", begin, handoffs=[billing]),
    }
    for slug, document in agents.items():
        await store.save(operator, tenant_id, slug, document, user_id=user_id)
    before = await operator.fetchrow(WALLET, user_id)
    started = await store.start(operator, tenant_id, triage, {"message": MESSAGE}, user_id=user_id)
    run_id, execution = UUID(started["run_id"]), UUID(started["execution_id"])

    async def look() -> Answer:
        return run_events.told(await store.tree(operator, tenant_id, run_id), run_id)

    waiting = await _until(look, lambda found: found["state"] == "input_required" or found["finished_at"])
    console.print(f"   a customer writes '{MESSAGE}'; {waiting['state']}: a refund waits for an admin")
    approval = await operator.fetchval(OPEN, tenant_id, execution)
    if approval is None:
        raise VanillaError("internal_error", f"The refund asked nobody: {waiting['stop_reason']}.")
    await _approve(operator, where, signer, settings, tenant_id, approval)
    found = await _until(look, lambda found: found["finished_at"])
    console.print(run_view.tree(found))
    console.print(f"   {found['output']['text'] if found['output'] else found['stop_reason']}")
    await _require_paid(operator, console, user_id, before, found["charged_tokens"], found["state"] == "completed")


async def _approve(
    operator: asyncpg.Connection,
    where: Addresses,
    signer: ContextSigner,
    settings: Settings,
    tenant_id: UUID,
    approval: UUID,
) -> None:
    """By an admin who comes for this and goes."""
    admin = await operator.fetchval(
        "select create_user($1, 'admin', p_tenant_id => $2)", f"boss-{approval.hex[-12:]}@localhost", tenant_id
    )
    database = await Database.configured(where, settings, signer)
    try:
        async with database.transaction(Identity(tenant_id, admin, "admin")) as connection:
            await execution_store.decide(connection, approval, "approved", "It was broken indeed.", None)
    finally:
        await database.close()
        await tenancy_store.erase_user(operator, tenant_id, admin, "the tour is over")


async def _team(operator: asyncpg.Connection, console: Console, tenant_id: UUID, user_id: UUID) -> None:
    agent = {"model": "sandbox-small", "limits": {"tokens": 2000}}
    plan = drafts.team(
        {
            "name": f"tour-{user_id.hex[-12:]}",
            "title": "Two reviewers and an editor",
            "pattern": "concurrent",
            "merge": "editor",
            "agents": {
                "law": agent | {"instructions": "Say what a lawyer would object to."},
                "style": agent | {"instructions": "Say what reads badly."},
                "editor": agent | {"instructions": "Make one list of these remarks."},
            },
        }
    )
    assert plan.workflow is not None
    for slug, definition in plan.agents.items():
        await store.save(operator, tenant_id, slug, definition.document(), user_id=user_id)
    one = partial(nullcontext, operator)
    await workflow_store.save(operator, tenant_id, plan.start, plain(plan.workflow), user_id=user_id)
    await workflow_drafts.publish(one, tenant_id, plan.start)
    before = await operator.fetchrow(WALLET, user_id)
    given = {"message": "We never lose a token."}
    started = await executions.start(one, tenant_id, plan.start, given, user_id=user_id)

    async def look() -> Answer:
        return await execution_store.progress(operator, tenant_id, UUID(started["execution_id"]))

    found = await _until(look, lambda found: found["finished_at"])
    console.print(execution_view.tree(found))
    await _require_paid(operator, console, user_id, before, found["charged_tokens"], found["status"] == "succeeded")


async def _until(look: Callable[[], Awaitable[Answer]], enough: Callable[[Answer], Any]) -> Answer:
    async with asyncio.timeout(RUN_S):
        while not enough(found := await look()):
            await asyncio.sleep(0.05)
    return found


async def _require_paid(
    operator: asyncpg.Connection, console: Console, user_id: UUID, before: asyncpg.Record, cost: int, well: bool
) -> None:
    after = await operator.fetchrow(WALLET, user_id)
    paid, held = after["spent_tokens"] - before["spent_tokens"], after["reserved_tokens"] - before["reserved_tokens"]
    if not well or not 0 < cost == paid or held:
        how = "went well" if well else "failed"
        raise VanillaError("internal_error", f"It {how}, cost {cost} tokens, {paid} were paid and {held} are held.")
    console.print(f"   its turns cost {cost} tokens, the wallet paid {paid}, and nothing of the budget is held")
