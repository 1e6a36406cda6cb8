"""After a suite the books of its database are right, whatever the tests did to it."""

import asyncpg

from vanilla_saas.checks import BOOKS, run_checks


async def require_clean_books(url: str) -> None:
    """Raises AssertionError with every difference that the checks of money find in the database."""
    connection = await asyncpg.connect(url)
    try:
        findings = await run_checks(connection, BOOKS)
    finally:
        await connection.close()
    assert not findings, "\n".join(["the tests left wrong books", *map(str, findings)])
