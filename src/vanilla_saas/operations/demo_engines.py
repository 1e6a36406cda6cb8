"""The tour's visitor gets an engine: permitted, run, promoted under a run that keeps its version, and rolled back.

Then the engines of `examples/` are deployed and run.
"""

import asyncio
from contextlib import nullcontext
from functools import partial
from uuid import UUID

import asyncpg
from rich.console import Console

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import files, starts
from vanilla_saas.engines import store as engines
from vanilla_saas.operations.examples import folder
from vanilla_saas.settings import Settings
from vanilla_saas.workflows import drafts, execution_store, store
from vanilla_saas.workflows.working import options_of, worker_alone, working

INPUT = {"text": "A wallet holds tokens."}
GIVEN = {"checked-summary": INPUT, "plain-words": INPUT, "three-views": {"plan": "Sell tokens by the month."}}
RUN_S = 30.0
SPENT = "select spent_tokens from user_token_wallets where user_id = $1"


async def show(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    """Raises VanillaError `internal_error` when a user runs what nobody permitted, or a run changes its version."""
    tenant_id = await operator.fetchval("select tenant_id from users where id = $1", user_id)
    one, slug = partial(nullcontext, operator), f"tour-engine-{user_id.hex[-12:]}"
    await drafts.begin(one, tenant_id, "summarise_and_check", slug, {}, user_id=user_id)
    await drafts.publish(one, tenant_id, slug)
    flow = (await store.find(operator, tenant_id, slug))["id"]
    first = await engines.deploy(operator, tenant_id, slug, flow)
    second = await engines.deploy(operator, tenant_id, slug, flow, mode="sequential")
    engine = UUID(first["engine_id"])
    console.print(f"   {slug}: version 1 is {first['hash'][:12]}, version 2 {second['hash'][:12]}")
    denied = await engines.resolve(operator, tenant_id, user_id, slug)
    console.print(f"   nobody may run it yet: {denied['denied_reason']}")
    await engines.change(operator, tenant_id, engine, default_access="execute")
    run = await engines.start(operator, tenant_id, slug, INPUT, user_id=user_id)
    await engines.promote(operator, tenant_id, engine, 2, "stable", None)
    told = await engines.resolve(operator, tenant_id, user_id, slug)
    begun = await engines.run(operator, tenant_id, UUID(run["execution_id"]), None)
    console.print(
        f"   promoted: it means version {told['version']}; the run that had begun stays on {begun['version']}"
    )
    back = await engines.rollback(operator, tenant_id, engine, "stable")
    console.print(f"   rolled back: it means version {back['version']}")
    try:
        await execution_store.cancel(operator, tenant_id, UUID(run["execution_id"]), "the tour is over")
    except asyncpg.PostgresError as error:
        if error.sqlstate != "VS409":  # the workers of a running server may have done it by now
            raise
    await engines.retire(operator, tenant_id, engine, None)
    found = (denied["denied_reason"], told["version"], begun["version"], back["version"])
    if found != ("not_entitled", 2, 1, 1):
        raise VanillaError("internal_error", f"The engine went wrong: {found}.")


async def examples(
    operator: asyncpg.Connection,
    where: Addresses,
    signer: ContextSigner,
    console: Console,
    user_id: UUID,
    settings: Settings | None = None,
) -> None:
    """Deploys the engines of `examples/`, which stay, and runs each to its end.

    Raises VanillaError `internal_error` when one fails, or the wallet paid something else than the runs cost.
    """
    tenant_id = await operator.fetchval("select tenant_id from users where id = $1", user_id)
    settings = settings or Settings()
    before, cost = await operator.fetchval(SPENT, user_id), 0
    async with worker_alone(settings, options_of(settings), where, signer) as worker, working(worker):
        for path in sorted(folder("engines").glob("*.yaml")):
            file = files.read(path)
            async with operator.transaction():
                made = await files.apply(operator, tenant_id, file, user_id)
            found = await _ended(operator, tenant_id, user_id, file.slug)
            if found["status"] != "succeeded":
                raise VanillaError("internal_error", f"{file.slug} has {found['status']}: {found['error']}.")
            cost += found["charged_tokens"]
            console.print(
                f"   {file.slug}@{made['version']}, {file.name}: {found['charged_tokens']} tokens,"
                f" {found['cost_micros']} micros of USD"
            )
    paid = await operator.fetchval(SPENT, user_id) - before
    if cost != paid:
        raise VanillaError("internal_error", f"The runs cost {cost} tokens, and {paid} were paid.")
    console.print(f"   they stay for `vanilla-saas engines run`; the wallet paid {paid}")


async def _ended(operator: asyncpg.Connection, tenant_id: UUID, user_id: UUID, slug: str) -> engines.Answer:
    begun = await starts.start(partial(nullcontext, operator), tenant_id, slug, GIVEN[slug], user_id=user_id)
    execution_id = UUID(begun["execution_id"])
    async with asyncio.timeout(RUN_S):
        while not await engines.ended(operator, tenant_id, execution_id):
            await asyncio.sleep(0.05)
    return await engines.run(operator, tenant_id, execution_id, None)
