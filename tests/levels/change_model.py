"""What changes of level cost and grant, by the rules of docs/design/levels.md, with none of the SQL in it.

Amounts are minor units, tokens whole; moments are whole minutes from the beginning. Every level is paid by the month in
one currency, and the plan's tokens are of the calendar month. `period` is what is paid for: (start, end), or None.
"""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Level:
    price: int
    fee: int
    plan: int


def rest(amount: int, start: int, end: int, at: int) -> int:
    """The part of an amount that falls on what is left of its time, rounded down."""
    return amount * (end - at) // (end - start)


@dataclass
class Model:
    levels: dict[str, Level]
    discounts: dict[tuple[str, str], int]
    month_end: Callable[[int, int], int]
    """When a month that is paid from the first moment on, and holds the second, ends."""
    calendar: Callable[[int], tuple[int, int]]
    level: str = "free"
    period: tuple[int, int] | None = None
    anchor: int = 0
    agreed: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """By level: price of the whole period, fee, when the fee was charged."""
    charged: dict[int, int] = field(default_factory=dict)
    """By the beginning of a period: the sum of its lines."""
    fees: dict[str, int] = field(default_factory=dict)
    discounted: set[str] = field(default_factory=set)
    scheduled: tuple[str, int, int, int] | None = None
    """Level, price of its first period, fee, discount."""
    balance: int = 0
    month: tuple[int, int] = (0, 0)
    by_rule: int = 0
    """Tokens that the levels of this calendar month give by rule: each for the time on it."""

    def worth(self, level: str, at: int) -> int:
        """What the rest of the running period is worth on a level that was agreed in it."""
        assert self.period
        price, fee, since = self.agreed[level]
        return rest(price, *self.period, at) + rest(fee, since, self.period[1], at)

    def terms(self, level: str) -> tuple[int, int, int]:
        """Price of the first period, fee and discount of who comes to a level anew."""
        there = self.levels[level]
        percent = self.discounts.get((self.level, level), 0) if level not in self.discounted and there.price else 0
        return there.price - there.price * percent // 100, 0 if self.fees.get(level) else there.fee, percent

    def change(self, level: str, at: int) -> int:
        """Changes at once; what is due, negative when something comes back."""
        there = self.levels[level]
        credit = self.worth(self.level, at) if self.period else 0
        fee_back = (
            rest(self.agreed[self.level][1], self.agreed[self.level][2], self.period[1], at) if self.period else 0
        )
        if self.period and level in self.agreed:
            price, fee, since = self.agreed[level]
        else:
            price, fee, percent = self.terms(level)
            since = at
            if percent:
                self.discounted.add(level)
        self._charge(-credit)
        if not self.period and there.price:
            self.period, self.anchor, self.agreed = (at, self.month_end(at, at)), at, {}
        if self.period:
            self.agreed[level] = (price, fee, since)
            due = self.worth(level, at)
            self.fees[self.level] = self.fees.get(self.level, 0) - fee_back
            self.fees[level] = self.fees.get(level, 0) + rest(fee, since, self.period[1], at)
            self._charge(due)
        else:
            due = 0
        self._tokens(level, at)
        self.level = level
        return due - credit

    def schedule(self, level: str) -> int | None:
        """Asks for a change at the end of the period; what will be due, or None where none runs."""
        self.scheduled = (level, *self.terms(level))
        return self.scheduled[1] + self.scheduled[2]

    def pass_time(self, at: int) -> None:
        """Everything that is due until a moment, period by period."""
        while self.period and self.period[1] <= at:
            start = self.period[1]
            if self.scheduled:
                level, price, fee, percent = self.scheduled
                if percent:
                    self.discounted.add(level)
                self.scheduled, self.anchor = None, start
                self._play_months(at)
                self._tokens(level, at)
                self.level = level
            else:
                level, price, fee = self.level, self.levels[self.level].price, 0
            if self.levels[level].price:
                self.period = (start, self.month_end(self.anchor, start))
                self.agreed = {level: (price, fee, start)}
                self.fees[level] = self.fees.get(level, 0) + fee
                self._charge(price + fee)
            else:
                self.period, self.agreed = None, {}
        self._play_months(at)

    def spend(self, amount: int) -> None:
        self.balance -= amount

    def _charge(self, amount: int) -> None:
        if amount:
            assert self.period
            self.charged[self.period[0]] = self.charged.get(self.period[0], 0) + amount
            assert self.charged[self.period[0]] >= 0

    def _tokens(self, level: str, at: int) -> None:
        plan, former = self.levels[level].plan, self.levels[self.level].plan
        moved = rest(plan, *self.month, at) - rest(former, *self.month, at)
        self.balance += moved
        self.by_rule += moved

    def _play_months(self, at: int) -> None:
        while self.month[1] <= at:
            self.month = self.calendar(self.month[1])
            self.balance = min(self.balance, 0) + self.levels[self.level].plan
            self.by_rule = self.levels[self.level].plan
