"""Any sequence of changes costs and grants what the model says: lines and tokens, never below nothing, never above."""

import asyncio
import itertools
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.conftest import LONG, Cluster
from tests.levels.change_model import Level, Model, rest
from tests.levels.change_support import Changes
from tests.tokens.support import START, Books, User
from vanilla_saas.database.pool import _prepare

MINUTE = timedelta(minutes=1)
LEVELS = {
    "free": Level(0, 0, 0),
    "odd": Level(997, 0, 1009),
    "fee": Level(2903, 1901, 10007),
    "big": Level(100_003, 1, 1_000_003),
    "one": Level(1, 0, 7),
}
DISCOUNTS = {("odd", "big"): 37, ("free", "big"): 100}
"""The ways back from it take effect at the end of a period only; every other path is for any time."""
LATER = {("big", slug) for slug in LEVELS if slug != "big"}


def months_after(moment: datetime, months: int) -> datetime:
    """The same day so many months later, or the last one of a shorter month."""
    years, month = divmod(moment.month - 1 + months, 12)
    for day in range(moment.day, 0, -1):
        try:
            return moment.replace(year=moment.year + years, month=month + 1, day=day)
        except ValueError:
            continue
    raise AssertionError


def minute(moment: datetime) -> int:
    return int((moment - START) / MINUTE)


def month_end(anchor: int, at: int) -> int:
    return next(end for n in range(1, 1000) if (end := minute(months_after(START + anchor * MINUTE, n))) > at)


def calendar(at: int) -> tuple[int, int]:
    first = (START + at * MINUTE).replace(day=1, hour=0, minute=0)
    return minute(first), minute(months_after(first, 1))


STEPS = st.lists(
    st.tuples(
        # within an hour, within days, beyond one or several months; often at the very same moment
        st.one_of(st.just(0), st.integers(0, 60), st.integers(0, 20_000), st.integers(0, 130_000)),
        st.sampled_from(("now", "now", "now", "back", "period_end", "undo", "spend", "reprice")),
        st.sampled_from(tuple(LEVELS)),
        st.integers(1, 2_000_000),
    ),
    min_size=4,
    max_size=12,
)

ROUND_A_PRICE = [(0, "now", "odd", 1), (900, "reprice", "odd", 5), (60, "now", "one", 1), (5000, "back", "odd", 1)]
"""Back on a level within the period: it costs what it did, though its price is another by now."""
FEE_TWICE = [
    (0, "now", "fee", 1), (9000, "now", "odd", 1), (60, "back", "fee", 1), (60, "now", "odd", 1),
    (60_000, "now", "fee", 1),
]  # fmt: skip
"""Out and in again within the period of a fee, and once more in the next one, when the rest of it was paid for good."""
SPENT_AHEAD = [(0, "now", "fee", 1), (60, "spend", "fee", 9000), (60, "now", "odd", 1), (60_000, "spend", "odd", 1)]


class Life:
    """One user, done in the database and in the model side by side."""

    def __init__(self, changes: Changes):
        self.changes = changes
        self.model = Model(dict(LEVELS), DISCOUNTS, month_end, calendar, month=calendar(0))
        self.at = 0
        self.told = 0
        self.before = "free"

    async def go(self, ahead: int) -> None:
        self.at += ahead
        await self.changes.books.at(START + self.at * MINUTE)
        self.model.pass_time(self.at)
        await self.changes.job()

    async def step(self, what: str, level: str, amount: int) -> None:
        held = self.model.level
        level = self.before if what == "back" else level
        later = (held, level) in LATER
        if what == "spend":
            amount = min(amount, max(self.model.balance, 0))
            if amount:
                await self.changes.books.adjust(self.changes.user, amount, "debit")
                self.model.spend(amount)
        elif what == "reprice" and level != "free":
            there = self.model.levels[level]
            await self.changes.price(level, "monthly", amount, replace=True)
            self.model.levels[level] = Level(amount, there.fee, there.plan)
        elif what == "undo" and self.model.scheduled:
            await self.changes.undo()
            self.model.scheduled = None
        elif self.model.scheduled or level == held:
            return
        elif what == "period_end" and self.model.period:
            due = self.model.schedule(level)
            looked, done = await self.both(level, what)
            assert looked["due"] == done["due"] == due
        elif what in ("now", "back") and not later:
            due = self.model.change(level, self.at)
            looked, done = await self.both(level, "now")
            assert looked["due"] == done["due"] == due == sum(line["amount"] for line in done["lines"])
            assert looked["tokens"] == done["tokens"]
            self.before = held

    async def both(self, level: str, when: str) -> tuple[dict[str, Any], dict[str, Any]]:
        looked = await self.changes.preview(level, when, currency="EUR")
        return looked, await self.changes.change(level, when, currency="EUR")

    async def compare(self) -> None:
        """Level, periods and their sums, and the balance, as the model has them."""
        await self.changes.connection.fetchval("select refresh_token_wallet($1)", self.changes.user.id)
        assert await self.changes.slug() == self.model.level
        totals = {minute(start): total for start, total in (await self.changes.totals()).items() if total}
        assert totals == {start: total for start, total in self.model.charged.items() if total}
        assert min(totals.values(), default=0) >= 0
        available, _, borrowed = await self.changes.books.figures(self.changes.user)
        assert available - borrowed == self.model.balance
        given = await self.changes.connection.fetchval(
            "select coalesce(sum(amount), 0)::bigint from user_token_ledger where user_id = $1"
            " and source = 'level_policy' and direction in ('credit', 'void', 'adjustment')"
            " and (metadata ->> 'period_start')::timestamptz = $2",
            self.changes.user.id, START + self.model.month[0] * MINUTE,
        )  # fmt: skip
        assert given == self.model.by_rule <= max(there.plan for there in LEVELS.values())


async def world(books: Books) -> User:
    """A tenant with the levels and every path between them."""
    user = await books.user()
    changes = Changes(books, user)
    for tier, (slug, there) in enumerate(LEVELS.items()):
        if slug != "free":
            prices = {"monthly": there.price} | ({"one_time": there.fee} if there.fee else {})
            await changes.level(slug, tier, prices, there.plan)
    for start in LEVELS:
        for end in LEVELS:
            if start != end:
                timing = "period_end" if (start, end) in LATER else "any"
                await changes.path(start, end, DISCOUNTS.get((start, end), 0), timing)
    return user


async def live(connection: asyncpg.Connection, steps: list[tuple[int, str, str, int]]) -> None:
    books = Books(connection)
    await books.at(START)
    life = Life(Changes(books, await world(books)))
    for ahead, what, level, amount in steps:
        await life.go(ahead)
        await life.step(what, level, amount)
        await life.compare()


def test_any_sequence_of_changes_comes_to_what_the_lines_and_the_ledger_say(
    cluster: Cluster, clocked_name: str
) -> None:
    with asyncio.Runner() as runner:

        async def connect() -> asyncpg.Connection:
            connection = await asyncpg.connect(
                cluster.url(database=clocked_name), server_settings={"timezone": "UTC", "jit": "off"}
            )
            await _prepare(connection)
            return connection

        connection = runner.run(connect())
        books = Books(connection)

        @settings(
            max_examples=2000 if LONG else 30,
            deadline=None,
            database=None,
            derandomize=not LONG,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @example(ROUND_A_PRICE)
        @example(FEE_TWICE)
        @example(SPENT_AHEAD)
        @given(STEPS)
        def lives(steps: list[tuple[int, str, str, int]]) -> None:
            runner.run(live(connection, steps))

        try:
            lives()
            assert runner.run(books.problems()) == []
        finally:
            runner.run(connection.close())


@given(st.integers(0, 10**15), st.integers(1, 10**14), st.lists(st.integers(0, 10**14), max_size=5))
def test_the_rest_of_an_amount_never_grows(amount: int, length: int, moments: list[int]) -> None:
    """What the model stands on: parts of a period are never below nothing and add up to the whole."""
    cuts = sorted({0, length, *(m % length for m in moments)})
    parts = [rest(amount, 0, length, a) - rest(amount, 0, length, b) for a, b in itertools.pairwise(cuts)]
    assert min(parts) >= 0
    assert sum(parts) == amount
