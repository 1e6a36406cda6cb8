"""The tour's visitor leaves: all that is kept of them as a document, their erasure, and books that still verify."""

from uuid import UUID

import asyncpg
import orjson
from rich.console import Console

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tenancy import person_export, store


async def show(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    """Raises VanillaError `internal_error` when something of them is left or the books are not right."""
    tenant_id = await operator.fetchval("select tenant_id from users where id = $1", user_id)
    email = await operator.fetchval("select email from users where id = $1", user_id)

    async def connect() -> asyncpg.Connection:
        return operator

    async with operator.transaction():
        begun = await store.start_person_export(operator, tenant_id, user_id)
        document = orjson.loads(b"".join([part async for part in person_export.document(begun, connect)]))
    tables = {name: len(rows) for name, rows in document["tables"].items() if rows}
    console.print(
        f"   export: {sum(tables.values())} rows of {len(tables)} tables, {tables['user_token_ledger']} entries"
    )
    erased = await store.erase_user(operator, tenant_id, user_id, "the tour is over")
    left = await operator.fetchrow("select email, display_name, status from users where id = $1", user_id)
    console.print(
        f"   erased: {email} is {left['email']}, {erased['keys']} key and {erased['voided_tokens']} tokens ended"
    )
    broken = await operator.fetch("select * from verify_token_ledger($1)", user_id)
    unequal = await operator.fetch("select * from reconcile_token_wallets() where user_id = $1", user_id)
    kept = await operator.fetchval("select count(*) from user_token_ledger where user_id = $1", user_id)
    if left["email"] or left["display_name"] or broken or unequal or kept < tables["user_token_ledger"]:
        raise VanillaError("internal_error", "The person was not erased as promised.")
    console.print(f"   the chain of {kept} entries verifies without them, and the wallet is their sum")
