"""The wallets of the run, made by the product's own functions, and what must be in the books after it."""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg

from benchmarks.frame import BenchmarkError
from benchmarks.wallet_pgbench import AMOUNT, PREFIX, SETTLED
from benchmarks.wallets import BALANCE, DEFECTS, LEVEL
from vanilla_saas.operations.first_run import DEFAULT_TENANT

# The ids that scripts count to, which `create_user` would not give.
MAKE = """
select count(vanilla.make_user($1, 'load-' || n || '@example.test', null, '', $5, null, false,
    (select id from levels where tenant_id = $1 and slug = $2), ($6 || n)::uuid))
from generate_series($3::bigint, $4::bigint) n
"""
CREDIT = """
select count(adjust_user_tokens(($3 || n)::uuid, $4, 'credit', 'benchmark'))
from generate_series($1::bigint, $2::bigint) n
"""
GRANTS = """
select count(adjust_user_tokens(($4 || n)::uuid, 1000, 'credit', 'benchmark', 'promo',
                                p_expires_at => now() + g * interval '1 day' + interval '1 year'))
from generate_series($1::bigint, $2::bigint) n, generate_series(1, $3) g
"""
BOOKS = """
select (select count(*) from user_token_holds where state = 'open') as open_holds,
       count(*) filter (where direction = 'debit') as debits,
       coalesce(-sum(amount) filter (where direction = 'debit'), 0)::bigint as debited,
       count(*) filter (where direction = 'settle') as settlements,
       coalesce(-sum(amount) filter (where direction in ('reserve', 'settle')), 0)::bigint as settled,
       (select sum(spent_tokens) from user_token_wallets)::bigint as spent
from user_token_ledger
"""
FLOOR_BOOKS = """
select (select count(*) from floor_ledger) as entries,
       (select coalesce(-sum(amount), 0)::bigint from floor_ledger) as debited,
       (select sum($1 - balance)::bigint from floor_wallets) as spent
"""


@dataclass(frozen=True, slots=True)
class Range:
    """Wallets whose ids count from `first` to `last`."""

    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclass(slots=True)
class Done:
    """Operations that were answered, which is what the books must say."""

    floor: int = 0
    debits: int = 0
    settlements: int = 0


async def make_wallets(admin_url: str, wanted: Range, role: str = "user", rich: bool = True) -> None:
    """Users of the default tenant with the plan of their level as their one grant; a rich one gets another.

    That is more than a run can spend.
    """
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(MAKE, DEFAULT_TENANT, LEVEL, wanted.first, wanted.last, role, PREFIX, timeout=600)
        if rich:
            await connection.execute(CREDIT, wanted.first, wanted.last, PREFIX, BALANCE, timeout=600)
    finally:
        await connection.close()


async def add_grants(admin_url: str, wanted: Range, count: int) -> None:
    """`count` more live grants for each wallet, each with an expiry of its own."""
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(GRANTS, wanted.first, wanted.last, count, PREFIX, timeout=600)
        # the versions that the credits left of the wallet's row are not a debit's to clean up
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()


async def make_floor(floor_url: str, ranges: list[Range]) -> None:
    """The floor's tables with the same wallets."""
    connection = await asyncpg.connect(floor_url)
    wallets = "insert into floor_wallets select ($1 || n)::uuid, $2, $3 from generate_series($4::bigint, $5::bigint) n"
    try:
        await connection.execute(Path(__file__).with_name("wallet_floor.sql").read_text())
        for wanted in ranges:
            await connection.execute(wallets, PREFIX, DEFAULT_TENANT, BALANCE, wanted.first, wanted.last)
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()


async def close_books(admin_url: str, floor_url: str, done: Done) -> None:
    """Raises BenchmarkError when an operation is missing, was done twice, or the books are not right."""
    connection, floor = await asyncpg.connect(admin_url), await asyncpg.connect(floor_url)
    try:
        row, floor_row = await connection.fetchrow(BOOKS), await floor.fetchrow(FLOOR_BOOKS, BALANCE)
        defects = [record[0] for record in await connection.fetch(DEFECTS, timeout=600)]
    finally:
        await connection.close()
        await floor.close()
    debited, settled = done.debits * AMOUNT, done.settlements * SETTLED
    expected = {
        "open_holds": 0, "debits": done.debits, "debited": debited, "settlements": done.settlements,
        "settled": settled, "spent": debited + settled,
    }  # fmt: skip
    floor_expected = {"entries": done.floor, "debited": done.floor * AMOUNT, "spent": done.floor * AMOUNT}
    for where, wanted, found in (("wallets", expected, row), ("floor", floor_expected, floor_row)):
        defects += [
            f"{where}: {found[name]} {name}, but {value} were answered"
            for name, value in wanted.items()
            if found[name] != value
        ]
    if defects:
        raise BenchmarkError("the books are wrong after the load:\n" + "\n".join(defects[:20]))


def users(wanted: Range) -> list[UUID]:
    return [UUID(f"{PREFIX}{number}") for number in range(wanted.first, wanted.last + 1)]
