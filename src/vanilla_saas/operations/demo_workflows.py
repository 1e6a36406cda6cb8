"""The tour's visitor draws a workflow and runs it: a circle is refused, a gate judges, the wallet pays."""

import asyncio
from contextlib import nullcontext
from functools import partial
from uuid import UUID

import asyncpg
from rich.console import Console

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.settings import Settings
from vanilla_saas.workflows import drafts, execution_store, executions, store
from vanilla_saas.workflows.execution_view import tree
from vanilla_saas.workflows.working import options_of, worker_alone, working

SLUG = "tour"
TEXT = "A wallet holds tokens. A call reserves the worst case, and what it did not need comes back when it ends."
RUN_S = 30.0
SPENT = "select spent_tokens from user_token_wallets where user_id = $1"


async def show(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    """Raises VanillaError `internal_error` when a circle is published, or a version is not what was drawn."""
    tenant_id = await operator.fetchval("select tenant_id from users where id = $1", user_id)
    one = partial(nullcontext, operator)
    slug = f"{SLUG}-{user_id.hex[-12:]}"
    await drafts.begin(one, tenant_id, "summarise_and_check", slug, {}, user_id=user_id)
    first = await drafts.publish(one, tenant_id, slug)
    found = await store.find(operator, tenant_id, slug)
    draft = found["draft"]
    ids = [node["id"] for node in draft["nodes"]]
    console.print(f"   {draft['name']}: {', '.join(ids)}; version {first['version']} is {first['hash'][:12]}")
    back = {"from": ids[-1], "to": ids[0]}
    await store.save(operator, tenant_id, slug, draft | {"connections": [*draft["connections"], back]})
    try:
        await drafts.publish(one, tenant_id, slug)
    except VanillaError as error:
        console.print(f"   a circle is refused: {error.detail['problems'][0]['message']}")
    else:
        raise VanillaError("internal_error", "A circle was published.")
    await store.save(operator, tenant_id, slug, draft | {"description": "For the tour."})
    second = await drafts.publish(one, tenant_id, slug)
    kept = await store.version(operator, tenant_id, found["id"], first["version"])
    if kept["hash"] != first["hash"]:
        raise VanillaError("internal_error", "A published version has changed.")
    newest = await store.version(operator, tenant_id, found["id"], second["version"])
    told = drafts.compare(kept["definition"], newest["definition"]).text()
    console.print(f"   version {second['version']}: {told}")
    await store.delete(operator, tenant_id, found["id"])


async def run(
    operator: asyncpg.Connection,
    where: Addresses,
    signer: ContextSigner,
    console: Console,
    user_id: UUID,
    settings: Settings | None = None,
) -> None:
    """A template with a gate on a worker of the tour's own.

    Raises VanillaError `internal_error` when it does not succeed, or the wallet paid something else than steps cost.
    """
    tenant_id = await operator.fetchval("select tenant_id from users where id = $1", user_id)
    one, slug = partial(nullcontext, operator), f"{SLUG}-run-{user_id.hex[-12:]}"
    await drafts.begin(one, tenant_id, "summarise_and_check", slug, {}, user_id=user_id)
    await drafts.publish(one, tenant_id, slug)
    before = await operator.fetchval(SPENT, user_id)
    settings = settings or Settings()
    async with worker_alone(settings, options_of(settings), where, signer) as worker, working(worker):
        started = await executions.start(one, tenant_id, slug, {"text": TEXT}, user_id=user_id)
        async with asyncio.timeout(RUN_S):
            while True:
                found = await execution_store.progress(operator, tenant_id, UUID(started["execution_id"]))
                if found["finished_at"]:
                    break
                await asyncio.sleep(0.05)
    console.print(tree(found))
    paid = await operator.fetchval(SPENT, user_id) - before
    cost = sum(step["charged_tokens"] for step in found["steps"])
    if found["status"] != "succeeded" or not cost == paid == found["charged_tokens"]:
        raise VanillaError("internal_error", f"It is {found['status']}, cost {cost} tokens, {paid} were paid.")
    console.print(f"   the gate passed it; its steps cost {cost} tokens, and the wallet paid {paid}")
