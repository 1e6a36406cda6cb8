"""The points of the wallet benchmark that are measured in slices: what each target does, and for whom it counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from benchmarks import wallet_pgbench as pgbench
from benchmarks.wallet_books import Range
from benchmarks.wallet_pgbench import FLOOR_DATABASE, Slice

SPREAD_FIRST = 100_000_000_000
HOT = Range(200_000_000_000, 200_000_000_000)
ADMIN = Range(300_000_000_000, 300_000_000_000)
LONG = Range(400_000_000_000, 400_000_000_000)
"""The wallet with the long history."""
ONE_GRANT_FIRST, MANY_GRANTS_FIRST = 500_000_000_000, 600_000_000_000
MANY_GRANTS = 100
FLOOR, OURS = "floor", "ours"
GRANTS, BYTES, MONTH, VERIFY, BALANCE_AT = "grants", "bytes", "month_close", "verify", "balance_at"
OTHERS = (GRANTS, BYTES, MONTH, VERIFY, BALANCE_AT)
"""What is measured by other means than slices beside a floor."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Debits that leave together, over so many connections."""

    size: int
    connections: int


@dataclass(frozen=True, slots=True)
class Point:
    """One comparison: a floor, and what is set against it."""

    name: str
    floor: Slice
    ours: Mapping[str, Slice | Batches]
    """By target. The ratio is that of OURS, or of the best of several batches; the others are figures."""
    settles: bool = False
    """A transaction of ours is a reservation and its settlement, instead of a debit."""
    hot: bool = False
    """All on one wallet."""
    best_of: tuple[str, ...] = field(default=(OURS,))


def points(spread: Range) -> list[Point]:
    """All of them, over the wallets of `spread`."""
    ours = Slice([pgbench.DEBIT], 8, spread.first, spread.last)
    floor = replace(ours, scripts=[pgbench.FLOOR], database=FLOOR_DATABASE)
    without_key = replace(ours, scripts=[pgbench.DEBIT_WITHOUT_KEY])
    app = replace(ours, login="vanilla_app")
    batches = {f"connections_{n}": Batches(100, n) for n in (2, 4, 8)}
    callers = {f"connections_{n}": Batches(32, n) for n in (1, 2)}
    return [
        Point(
            "debit_c8",
            floor,
            {
                OURS: ours,
                "without_key": without_key,
                "app_transaction": replace(app, scripts=[pgbench.DEBIT_IN_CONTEXT]),
                "app_statement": replace(app, scripts=[pgbench.DEBIT_WITH_CONTEXT]),
            },
        ),
        Point(
            "debit_c1",
            replace(floor, clients=1),
            {OURS: replace(ours, clients=1), "without_key": replace(without_key, clients=1)},
        ),
        Point(
            "debit_c8_async",
            replace(floor, durable=False),
            {OURS: replace(ours, durable=False), "without_key": replace(without_key, durable=False)},
        ),
        Point("reserve_settle_c8", floor, {OURS: replace(ours, scripts=[pgbench.RESERVE_AND_SETTLE])}, settles=True),
        Point(
            "hot_c32",
            replace(floor, clients=32, first=HOT.first, last=HOT.last),
            callers,
            hot=True,
            best_of=tuple(callers),
        ),
        Point("batch100", floor, batches, best_of=tuple(batches)),
    ]
