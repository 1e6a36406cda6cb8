"""The tour's visitor gets an engine: permitted, run, promoted under a run that keeps its version, and rolled back."""

from contextlib import nullcontext
from functools import partial
from uuid import UUID

import asyncpg
from rich.console import Console

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import store as engines
from vanilla_saas.workflows import drafts, execution_store, store

INPUT = {"text": "A wallet holds tokens."}


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
    await execution_store.cancel(operator, tenant_id, UUID(run["execution_id"]), "the tour is over")
    await engines.retire(operator, tenant_id, engine, None)
    found = (denied["denied_reason"], told["version"], begun["version"], back["version"])
    if found != ("not_entitled", 2, 1, 1):
        raise VanillaError("internal_error", f"The engine went wrong: {found}.")
