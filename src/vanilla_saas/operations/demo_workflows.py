"""The tour's visitor draws a workflow: a template becomes a draft, a circle is refused, versions are compared."""

from contextlib import nullcontext
from functools import partial
from uuid import UUID

import asyncpg
from rich.console import Console

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.workflows import drafts, store

SLUG = "tour"


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
