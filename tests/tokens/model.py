"""The wallet as the rules of DESIGN and of 002 describe it: every operation rewrites every grant at once.

No rule is taken from the code: no burn counter, no epoch column, no lazy fold. What the rules say and this plays:
grants burn by (priority, expiry, age); debt is repaid before anything becomes spendable; what a hold gives back returns
to what was burned last, and after the grants have changed to any active grant with room, the last burned first, while
the rest has lapsed; events are played in order of time, lapses before the new period; expired holds return when tokens
are needed that are not there, or when the reaper comes.
"""

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

NEVER = datetime.max.replace(tzinfo=UTC)
PRIORITY = {
    "rollover": 10,
    "trial": 15,
    "plan": 20,
    "promo": 30,
    "base": 40,
    "adjustment": 50,
    "refund": 50,
    "purchase": 60,
}


class Refused(Exception):
    """The SQLSTATE with which the operation must be refused."""


@dataclass
class Policy:
    base: int
    monthly: int
    rollover_percent: int
    rollover_cap: int | None
    monthly_cap: int | None
    mode: str


@dataclass
class Grant:
    number: int
    kind: str
    amount: int
    remaining: int
    expires: datetime
    level: str | None = None
    state: str = "active"
    burned: int = 0
    """Taken since the grants last changed."""

    @property
    def order(self) -> tuple[int, datetime, int]:
        return PRIORITY[self.kind], self.expires, self.number


@dataclass
class Hold:
    amount: int
    requested: int
    expires: datetime
    change: int
    """How often the grants had changed when it was made."""
    open: bool = True


@dataclass
class Wallet:
    policies: dict[str, Policy]
    level: str
    now: datetime
    grants: list[Grant] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    borrowed: int = 0
    spent: int = 0
    changes: int = 0
    next_reset: datetime = NEVER

    def __post_init__(self) -> None:
        level, self.level = self.level, ""
        self.join(level)

    # what the outside sees
    @property
    def available(self) -> int:
        return sum(grant.remaining for grant in self.active())

    @property
    def reserved(self) -> int:
        return sum(hold.amount for hold in self.holds if hold.open)

    @property
    def mode(self) -> str:
        return self.policies[self.level].mode

    def left(self) -> list[tuple[str, int]]:
        return [(grant.kind, grant.remaining) for grant in self.active() if grant.remaining]

    # operations
    def credit(self, amount: int, kind: str, expires: datetime) -> None:
        self.play_events()
        self.give(kind, amount, expires)

    def debit(self, amount: int, *, counts: bool = True) -> None:
        self.play_events()
        with_holds_returned = self.able_to_pay(amount)
        self.adopt(with_holds_returned)
        paid = min(amount, self.available)
        self.burn(paid)
        self.borrowed += amount - paid
        self.spent += amount if counts else 0

    def reserve(self, amount: int) -> Hold:
        self.play_events()
        self.adopt(self.able_to_pay(amount))
        held = min(amount, self.available)
        self.burn(held)
        self.holds.append(Hold(held, amount, self.now + timedelta(hours=1), self.changes))
        return self.holds[-1]

    def settle(self, index: int, actual: int) -> None:
        self.play_events()
        hold = self.holds[index]
        if not hold.open:
            raise Refused("VS409")
        self.close(hold, max(hold.amount - actual, 0))
        extra = max(actual - hold.amount, 0)
        paid = min(extra, self.available)
        self.burn(paid)
        self.borrowed += extra - paid
        self.spent += actual

    def release(self, index: int) -> None:
        self.play_events()
        returned = copy.deepcopy(self)
        returned.return_expired_holds()
        hold = returned.holds[index]
        if not hold.open:
            raise Refused("VS404")
        returned.close(hold, hold.amount)
        self.adopt(returned)

    def reap(self) -> None:
        self.play_events()
        self.return_expired_holds()

    def join(self, level: str) -> None:
        self.play_events()
        self.changed()
        if level != self.level:
            for grant in self.active():
                if grant.kind in ("plan", "rollover"):
                    grant.state = "voided"
        self.level = level
        policy = self.policies[level]
        if policy.base and not any(g.kind == "base" and g.level == level for g in self.grants):
            self.give("base", policy.base, NEVER, level)
        running = [
            g for g in self.grants if g.kind in ("plan", "rollover") and g.level == level and g.expires > self.now
        ]
        if not running:
            self.open_period(0, next_month(self.now))
            return
        for grant in running:
            if grant.state == "voided":
                grant.state = "active"
                grant.remaining -= self.repay(grant.remaining)
        self.next_reset = max(grant.expires for grant in running)

    # rules
    def active(self) -> list[Grant]:
        return sorted((grant for grant in self.grants if grant.state == "active"), key=lambda grant: grant.order)

    def changed(self) -> None:
        self.changes += 1
        for grant in self.grants:
            grant.burned = 0

    def repay(self, amount: int) -> int:
        repaid = min(self.borrowed, amount)
        self.borrowed -= repaid
        return repaid

    def give(self, kind: str, amount: int, expires: datetime, level: str | None = None) -> None:
        self.changed()
        remaining = amount - self.repay(amount)
        self.grants.append(Grant(len(self.grants), kind, amount, remaining, expires, level))

    def burn(self, amount: int) -> None:
        for grant in self.active():
            taken = min(amount, grant.remaining)
            grant.remaining -= taken
            grant.burned += taken
            amount -= taken
        assert amount == 0

    def close(self, hold: Hold, returned: int) -> None:
        hold.open = False
        returned -= self.repay(returned)
        if hold.change == self.changes:
            for grant in reversed(self.active()):
                back = min(returned, grant.burned)
                grant.remaining += back
                grant.burned -= back
                returned -= back
            assert returned == 0
            return
        self.changed()
        for grant in reversed(self.active()):
            back = min(returned, grant.amount - grant.remaining)
            grant.remaining += back
            returned -= back

    def return_expired_holds(self) -> None:
        due = [hold for hold in self.holds if hold.open and hold.expires <= self.now]
        for hold in sorted(due, key=lambda hold: hold.expires):
            self.close(hold, hold.amount)

    def able_to_pay(self, amount: int) -> "Wallet":
        """The wallet with expired holds returned if they are needed; a refusal leaves them as they were."""
        able = copy.deepcopy(self)
        if able.available < amount or able.borrowed:
            able.return_expired_holds()
            if able.mode == "hard" and (able.available < amount or able.borrowed):
                raise Refused("VS402")
        return able

    def adopt(self, other: "Wallet") -> None:
        self.__dict__.update(other.__dict__)

    def play_events(self) -> None:
        while (due := min([self.next_reset, *(grant.expires for grant in self.active())])) <= self.now:
            self.changed()
            unused = 0
            for grant in self.active():
                if grant.expires == due:
                    unused += grant.remaining if grant.kind == "plan" else 0
                    grant.state = "expired"
            if due == self.next_reset:
                self.open_period(unused, next_month(due))

    def open_period(self, unused: int, ends: datetime) -> None:
        policy = self.policies[self.level]
        ceiling = policy.monthly if policy.monthly_cap is None else policy.monthly_cap
        plan = min(policy.monthly, ceiling)
        rollover = unused * policy.rollover_percent // 100
        if policy.rollover_cap is not None:
            rollover = min(rollover, policy.rollover_cap)
        if policy.monthly_cap is not None:
            rollover = min(rollover, policy.monthly_cap - plan)
        self.next_reset = ends
        for kind, amount in (("rollover", rollover), ("plan", plan)):
            if amount:
                self.give(kind, amount, ends, self.level)


def next_month(moment: datetime) -> datetime:
    return datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
