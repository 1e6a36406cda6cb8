"""The job `auto_top_up`: charges what is due without the user, one after the other.

The database leases each charge and holds the ceiling; a charge whose server died, or that got no answer, is asked for
again under the same idempotency key, and nothing else of that user meanwhile.
"""

from typing import Any

import asyncpg

from vanilla_saas.database.connection import Addresses, connect_admin
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import _prepare
from vanilla_saas.payments import store
from vanilla_saas.payments.accounts import api_key
from vanilla_saas.payments.stripe_api import ChargeRefused, connected
from vanilla_saas.settings import Settings

AT_ONCE = 20
ROUNDS = 50
"""Of one run; what is due beyond that is due in the next one."""


async def charge_due(where: Addresses, settings: Settings) -> dict[str, Any]:
    """Charges everything that is due; how many came to what. Raises VanillaError when an account cannot be used."""
    connection = await connect_admin(where.admin)
    try:
        await _prepare(connection)
        counts = {"succeeded": 0, "failed": 0, "pending": 0, "elsewhere": 0}
        problem: VanillaError | None = None
        for _ in range(ROUNDS):
            claimed = await store.claim_top_ups(connection, AT_ONCE)
            for one in claimed:
                try:
                    state = await _charge(connection, settings, one)
                except VanillaError as error:
                    # one tenant's account keeps nobody else's users waiting
                    problem = error
                    state = await store.finish_top_up(connection, one, None, None)
                counts[state or "elsewhere"] += 1
            if not claimed:
                break
        if problem is not None:
            raise problem
        return counts
    finally:
        await connection.close()


async def _charge(connection: asyncpg.Connection, settings: Settings, claimed: dict[str, Any]) -> str | None:
    key = api_key(settings, await store.account_of(connection, bytes.fromhex(claimed["endpoint"])))
    async with connected(settings, key) as stripe:
        try:
            intent = await stripe.charge(claimed)
        except ChargeRefused as refused:
            return await store.finish_top_up(connection, claimed, None, str(refused))
    return await store.finish_top_up(connection, claimed, intent, None)
