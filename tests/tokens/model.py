"""The wallet as docs/design/tokens.md describes it: every operation rewrites every grant at once.

No rule is taken from the code: no burn counter, no epoch column, no lazy fold. What the rules say and this plays:
grants burn by (priority, expiry, age); debt is repaid before anything becomes spendable; what a hold gives back returns
to what was burned last, and after the grants have changed to any active grant with room, the last burned first, while
the rest has lapsed; events are played in order of time, at one moment lapses, then grants that begin, then the new
period; expired holds return when tokens are needed that are not there, before a release, or when the reaper comes; a
key stands for one body, and a refused operation changes nothing, nor does it use up its key.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import UUID

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
GIVEN_BY_HAND = {"purchase", "promo", "trial", "refund", "adjustment"}
OF_A_PERIOD = {"plan", "rollover"}


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
    period: str = "month"


@dataclass
class Exceptions:
    """What a user has instead of the level's policy; None is as the level says."""

    monthly: int | None = None
    rollover_percent: int | None = None
    rollover_cap: int | None = None
    monthly_cap: int | None = None
    mode: str | None = None


@dataclass
class Grant:
    number: int
    kind: str
    amount: int
    remaining: int
    expires: datetime
    priority: int
    level: str | None = None
    state: str = "active"
    starts: datetime | None = None
    """When a scheduled grant begins."""
    by_hand: bool = False
    """Voided on purpose, so that coming back to the level does not restore it."""
    burned: int = 0
    """Taken since the grants last changed."""

    @property
    def order(self) -> tuple[int, datetime, int]:
        return self.priority, self.expires, self.number


@dataclass
class Hold:
    amount: int
    requested: int
    expires: datetime
    change: int
    """How often the grants had changed when it was made."""
    reference: UUID | None = None
    open: bool = True
    name: UUID | None = None
    """The id that the database gave it."""


@dataclass(frozen=True)
class Body:
    """What is asked of adjust_user_tokens."""

    direction: str
    amount: int
    source: str = "manual"
    reference: UUID | None = None
    expires: datetime = NEVER


@dataclass(frozen=True)
class Answer:
    """An entry as it must be answered; `hold` is the place of the hold it made."""

    direction: str
    amount: int
    reserved_amount: int
    available: int
    reserved: int
    borrowed: int
    hold: int | None = None
    replayed: bool = False


@dataclass
class Wallet:
    policies: dict[str, Policy]
    """By level; all wallets of a tenant share them. A wallet is on no level until it joins one."""
    now: datetime
    level: str = ""
    exceptions: Exceptions = field(default_factory=Exceptions)
    status: str = "active"
    grants: list[Grant] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    entries: dict[str, tuple[Body, Answer]] = field(default_factory=dict)
    """First answers by idempotency key."""
    gifts: dict[str, tuple[object, int]] = field(default_factory=dict)
    """Bodies and numbers of grants by their idempotency keys, which are apart from those of entries."""
    borrowed: int = 0
    spent: int = 0
    lapsed: int = 0
    voided: int = 0
    changes: int = 0
    next_reset: datetime = NEVER

    # what the outside sees
    @property
    def available(self) -> int:
        return sum(grant.remaining for grant in self.active())

    @property
    def reserved(self) -> int:
        return sum(hold.amount for hold in self.holds if hold.open)

    @property
    def mode(self) -> str:
        return self.exceptions.mode or self.policies[self.level].mode

    @property
    def next_event(self) -> datetime:
        starts = [grant.starts for grant in self.scheduled() if grant.starts]
        return min([self.next_reset, *starts, *(grant.expires for grant in self.active())])

    # operations of adjust_user_tokens
    def adjust(self, body: Body, key: str | None = None) -> Answer:
        if body.amount == 0:
            raise Refused("VS400")
        self.play_events()
        if key in self.entries:
            first, answer = self.entries[key]
            if first != body:
                raise Refused("VS410")
            return replace(answer, replayed=True)
        able = self.copied()
        answer = able.carry_out(body)
        if key:
            able.entries[key] = body, answer
        self.adopt(able)
        return answer

    def carry_out(self, body: Body) -> Answer:
        amount = abs(body.amount)
        if body.expires <= self.now:
            raise Refused("VS400")
        if body.direction == "credit" or (body.direction == "adjustment" and body.amount > 0):
            of_source = body.direction == "credit" and body.source in GIVEN_BY_HAND
            self.give(body.source if of_source else "adjustment", amount, body.expires)
            return self.answer(body.direction, amount)
        if body.direction == "release":
            return self.release(body)
        if self.status != "active":
            raise Refused("VS415")
        self.return_holds_if_needed(amount)
        if body.direction == "reserve":
            return self.reserve(amount, body.reference)
        self.pay(amount)
        self.spent += amount if body.direction == "debit" else 0
        return self.answer(body.direction, -amount)

    def reserve(self, amount: int, reference: UUID | None) -> Answer:
        held = min(amount, self.available)
        self.burn(held)
        self.holds.append(Hold(held, amount, self.now + timedelta(hours=1), self.changes, reference))
        return replace(self.answer("reserve", -held, held), hold=len(self.holds) - 1)

    def release(self, body: Body) -> Answer:
        self.return_expired_holds()
        of_name = [hold for hold in self.holds if hold.open and body.reference == hold.name]
        of_reference = [hold for hold in self.holds if hold.open and body.reference == hold.reference]
        if body.reference is None or not (of_name or of_reference):
            raise Refused("VS404")
        hold = (of_name or of_reference)[0]
        if abs(body.amount) not in (hold.amount, hold.requested):
            raise Refused("VS409")
        before = self.available - self.borrowed
        self.close(hold, hold.amount)
        return self.answer("release", self.available - self.borrowed - before, -hold.amount)

    # operations on holds
    def settle(self, index: int, actual: int) -> Answer:
        self.play_events()
        hold = self.holds[index]
        if not hold.open:
            raise Refused("VS409")
        before = self.available - self.borrowed
        self.close(hold, max(hold.amount - actual, 0))
        owed = self.pay(max(actual - hold.amount, 0))
        self.spent += actual
        if owed:
            return self.answer("debt", -owed)
        return self.answer("settle", self.available - self.borrowed - before, -hold.amount)

    def settle_part(self, index: int, part: int) -> Answer:
        self.play_events()
        hold = self.holds[index]
        if not hold.open or part > hold.amount:
            raise Refused("VS409")
        hold.amount -= part
        hold.requested -= part
        self.spent += part
        return self.answer("settle", 0, -part)

    def extend(self, index: int, expires: datetime) -> None:
        if not self.now < expires <= self.now + timedelta(days=30):
            raise Refused("VS400")
        hold = self.holds[index]
        if not hold.open or hold.expires <= self.now:
            raise Refused("VS409")
        hold.expires = expires

    def reap(self) -> None:
        self.play_events()
        self.return_expired_holds()

    # operations on grants
    def grant(
        self,
        kind: str,
        amount: int,
        starts: datetime | None,
        expires: datetime,
        priority: int | None,
        key: str | None = None,
    ) -> tuple[Grant, bool]:
        """The grant, and whether it was there before."""
        self.play_events()
        body = (kind, amount, starts, expires, priority)
        if kind not in GIVEN_BY_HAND:
            raise Refused("VS400")
        if key in self.gifts:
            first, number = self.gifts[key]
            if first != body:
                raise Refused("VS410")
            return self.grants[number], True
        if expires <= max(self.now, starts or self.now):
            raise Refused("VS400")
        if starts and starts > self.now:
            order = PRIORITY[kind] if priority is None else priority
            made = Grant(len(self.grants), kind, amount, amount, expires, order, state="scheduled", starts=starts)
            self.grants.append(made)
        else:
            made = self.give(kind, amount, expires, priority=priority)
        if key:
            self.gifts[key] = body, made.number
        return made, False

    def void(self, number: int) -> Grant:
        self.play_events()
        grant = self.grants[number]
        if grant.state not in ("active", "scheduled"):
            raise Refused("VS409")
        self.changed()
        self.voided += grant.remaining if grant.state == "active" else 0
        grant.state, grant.remaining, grant.by_hand = "voided", 0, True
        return grant

    def join(self, level: str) -> tuple[int, int, int]:
        """What came: base, of the period, restored."""
        self.play_events()
        self.changed()
        if level != self.level:
            for grant in self.active():
                if grant.kind in OF_A_PERIOD:
                    grant.state = "voided"
                    self.voided += grant.remaining
        self.level = level
        policy = self.policies[level]
        base = 0
        if policy.base and not any(g.kind == "base" and g.level == level for g in self.grants):
            base = self.give("base", policy.base, NEVER, level).amount
        running = [g for g in self.grants if g.kind in OF_A_PERIOD and g.level == level and g.expires > self.now]
        if not running:
            return base, self.open_period(0, border(policy.period, self.now)), 0
        restored = 0
        for grant in running:
            if grant.state == "voided" and not grant.by_hand:
                grant.state = "active"
                restored += grant.remaining
                grant.remaining -= self.repay(grant.remaining)
        self.next_reset = max(grant.expires for grant in running)
        return base, 0, restored

    # rules
    def active(self) -> list[Grant]:
        return sorted((grant for grant in self.grants if grant.state == "active"), key=lambda grant: grant.order)

    def scheduled(self) -> list[Grant]:
        return [grant for grant in self.grants if grant.state == "scheduled"]

    def changed(self) -> None:
        self.changes += 1
        for grant in self.grants:
            grant.burned = 0

    def repay(self, amount: int) -> int:
        repaid = min(self.borrowed, amount)
        self.borrowed -= repaid
        return repaid

    def give(
        self, kind: str, amount: int, expires: datetime, level: str | None = None, priority: int | None = None
    ) -> Grant:
        self.changed()
        remaining = amount - self.repay(amount)
        order = PRIORITY[kind] if priority is None else priority
        self.grants.append(Grant(len(self.grants), kind, amount, remaining, expires, order, level))
        return self.grants[-1]

    def pay(self, amount: int) -> int:
        """From what is available; the rest becomes debt, and is returned."""
        paid = min(amount, self.available)
        self.burn(paid)
        self.borrowed += amount - paid
        return amount - paid

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
        self.lapsed += returned

    def return_expired_holds(self) -> None:
        due = [hold for hold in self.holds if hold.open and hold.expires <= self.now]
        for hold in sorted(due, key=lambda hold: hold.expires):
            self.close(hold, hold.amount)

    def return_holds_if_needed(self, amount: int) -> None:
        if self.available < amount or self.borrowed:
            self.return_expired_holds()
            if self.mode == "hard" and (self.available < amount or self.borrowed):
                raise Refused("VS402")

    def play_events(self) -> None:
        while (due := self.next_event) <= self.now:
            self.changed()
            unused = 0
            for grant in self.active():
                if grant.expires == due:
                    unused += grant.remaining if grant.kind == "plan" else 0
                    self.lapsed += grant.remaining
                    grant.state, grant.remaining = "expired", 0
            for grant in self.scheduled():
                if grant.starts == due:
                    grant.state = "active"
                    grant.remaining -= self.repay(grant.amount)
            if due == self.next_reset:
                self.open_period(unused, border(self.policies[self.level].period, due))

    def open_period(self, unused: int, ends: datetime) -> int:
        policy, own = self.policies[self.level], self.exceptions
        monthly = policy.monthly if own.monthly is None else own.monthly
        percent = policy.rollover_percent if own.rollover_percent is None else own.rollover_percent
        rollover_cap = policy.rollover_cap if own.rollover_cap is None else own.rollover_cap
        together = policy.monthly_cap if own.monthly_cap is None else own.monthly_cap
        plan = monthly if together is None else min(monthly, together)
        rollover = unused * percent // 100
        if rollover_cap is not None:
            rollover = min(rollover, rollover_cap)
        if together is not None:
            rollover = min(rollover, together - plan)
        self.next_reset = ends
        for kind, amount in (("rollover", rollover), ("plan", plan)):
            if amount:
                self.give(kind, amount, ends, self.level)
        return rollover + plan

    # copies, of which one is kept
    def answer(self, direction: str, amount: int, reserved_amount: int = 0) -> Answer:
        return Answer(direction, amount, reserved_amount, self.available, self.reserved, self.borrowed)

    def copied(self) -> Self:
        return replace(
            self,
            grants=[replace(grant) for grant in self.grants],
            holds=[replace(hold) for hold in self.holds],
            entries=dict(self.entries),
            gifts=dict(self.gifts),
        )

    def adopt(self, other: Self) -> None:
        self.__dict__.update(other.__dict__)


def border(period: str, moment: datetime) -> datetime:
    """Where the calendar period that holds the moment ends."""
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "day":
            return midnight + timedelta(days=1)
        case "week":
            return midnight + timedelta(days=7 - moment.weekday())
        case _:
            return datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
