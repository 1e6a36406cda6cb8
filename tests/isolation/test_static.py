"""The catalog itself: policies, grants, keys, indexes, functions and roles are as the design says."""

import asyncpg
import pytest

from tests.isolation.static import CHECKS, GLOBAL_KEYS, UNPINNED


@pytest.mark.parametrize("name", sorted(CHECKS))
async def test_the_catalog_obeys(name: str, superuser: asyncpg.Connection) -> None:
    assert await CHECKS[name](superuser) == []


async def test_every_exception_is_still_needed(superuser: asyncpg.Connection) -> None:
    indexes = {r["relname"] for r in await superuser.fetch("select relname from pg_class where relkind = 'i'")}
    assert set(GLOBAL_KEYS) <= indexes
    for function in UNPINNED:
        source = await superuser.fetchval("select prosrc from pg_proc where oid = $1::text::regprocedure", function)
        assert "pg_catalog." in source
