"""The schema is the one that is declared: no key, null, value, grant or right of a function more or less."""

import asyncpg
import pytest

from tests.isolation.declared import DECLARED
from tests.isolation.rows import World


@pytest.mark.parametrize("name", DECLARED)
async def test_the_catalog_is_as_declared(name: str, superuser: asyncpg.Connection, world: World) -> None:
    transaction = superuser.transaction()
    await transaction.start()
    found = await DECLARED[name](superuser, world)
    await transaction.rollback()
    assert not found, "\n".join(found)
