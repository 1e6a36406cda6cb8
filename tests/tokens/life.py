"""Two wallets of one tenant live a random life, in PostgreSQL and in the model."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import asyncpg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.tokens.model import NEVER, Answer, Body, Exceptions, Grant, Policy, Refused, Wallet
from tests.tokens.support import START, Books, User

# What the wallet comes to when all that is due is played; undone, so that laziness is part of the test.
OBSERVE = """
create or replace function vanilla.test_observe(p_tenant uuid, p_user uuid) returns jsonb language plpgsql as $f$
declare
    v_seen jsonb;
begin
    begin
        perform vanilla.lock_wallet(p_tenant, p_user);
        select jsonb_build_object('available', w.available_tokens, 'reserved', w.reserved_tokens,
            'borrowed', w.borrowed_tokens, 'spent', w.spent_tokens, 'next_event', w.next_event_at, 'status', w.status,
            'mode', w.enforcement_mode, 'balance', l.balance, 'held', l.held, 'lapsed', l.lapsed, 'voided', l.voided,
            'scheduled', (select count(*) from public.user_token_grants g
                where g.tenant_id = p_tenant and g.user_id = p_user and g.state = 'scheduled'),
            'grants', (select coalesce(jsonb_agg(jsonb_build_array(g.kind, g.priority, g.amount, g.remaining,
                    g.expires_at) order by g.priority, g.expires_at, g.id), '[]')
                from vanilla.grants_after_burn(p_tenant, p_user) g)) into v_seen
        from public.user_token_wallets w,
            lateral (select coalesce(sum(amount), 0) as balance, coalesce(sum(reserved_amount), 0) as held,
                -- a grant lapses, or what a hold gives back finds no room; part of a charge may be an entry of debt
                coalesce(sum(case direction when 'expire' then -amount when 'release' then -reserved_amount - amount
                    when 'settle' then -reserved_amount - (metadata ->> 'actual')::bigint - amount
                    when 'debt' then -amount else 0 end), 0) as lapsed,
                -- tokens that come back with the level were voided with it
                coalesce(sum(case when direction = 'void' then -amount end), 0) as voided
                from public.user_token_ledger x where x.tenant_id = p_tenant and x.user_id = p_user) l
        where w.tenant_id = p_tenant and w.user_id = p_user;
        raise exception using errcode = 'ZZ001';
    exception when sqlstate 'ZZ001' then null;
    end;
    return v_seen;
end
$f$
"""

T = TypeVar("T")
# credits outweigh debits, and most moves of the clock are short: a life of refusals and lapses tells little
given, spent, pick = st.integers(1, 300), st.integers(1, 80), st.integers(0, 10_000)
who = st.sampled_from([0, 0, 0, 1])
modes = st.sampled_from(["hard", "warn", "monitor"])
monthly = st.sampled_from([0, 60, 100, 200, 250])
percent = st.sampled_from([100, 50, 33, 0])
cap = st.none() | st.none() | st.integers(0, 400)
policies = st.builds(
    Policy,
    base=st.sampled_from([0, 30]),
    monthly=monthly,
    rollover_percent=percent,
    rollover_cap=cap,
    monthly_cap=cap,
    mode=modes,
    period=st.sampled_from(["month", "month", "month", "week"]),
)
exceptions = st.builds(
    Exceptions,
    monthly=st.none() | monthly,
    rollover_percent=st.none() | percent,
    rollover_cap=cap,
    monthly_cap=cap,
    mode=st.none() | modes,
)
moves = st.sampled_from(
    [timedelta(minutes=n) for n in (5, 10, 20, 40, 60)] * 2
    + [timedelta(hours=9)] * 2
    + [timedelta(days=n) for n in (3, 12, 31, 70)]
)
later = st.sampled_from(
    [None] * 12 + [timedelta(minutes=30)] * 2 + [timedelta(hours=20), timedelta(days=10), timedelta(days=35)]
)
"""Some operations come as the first touch after a while."""
lives = st.none() | st.sampled_from([timedelta(minutes=30), timedelta(hours=5), timedelta(days=4), timedelta(days=45)])
starts = st.none() | st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(days=4), timedelta(days=45)])
kinds = st.sampled_from(["purchase", "promo", "trial", "refund", "adjustment"])
directions = st.sampled_from(["credit", "debit", "debit", "debit", "reserve", "release", "up", "down", "again"])
keyed = st.sampled_from([True, False, False])
levels = st.sampled_from(["basic", "premium"])


class Place:
    """A database with a movable clock and a connection to it, driven from tests that are not async."""

    def __init__(self, runner: asyncio.Runner, connection: asyncpg.Connection):
        self.runner = runner
        self.books = Books(connection)
        self.outcomes: Counter[str] = Counter()

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        # not the runner's run, which changes the handler of SIGINT twice and renders the task both times
        return self.runner.get_loop().run_until_complete(awaited())


@dataclass
class Seat:
    """A user: its wallet in the model, and the names that the database gave."""

    user: User
    model: Wallet
    grants: list[uuid.UUID | None] = field(default_factory=list)
    """Ids of the grants of grant_user_tokens, by their number in the model."""
    asked: list[tuple[Body, str]] = field(default_factory=list)
    gifts: list[tuple[Any, str]] = field(default_factory=list)
    touched: bool = True
    """Since it was last compared."""


class Life(RuleBasedStateMachine):
    """`place` is set by the test."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.books = self.place.books
        self.seats: list[Seat] = []
        self.now = START
        self.references = [uuid.uuid4(), uuid.uuid4()]

    @initialize(basic=policies, premium=policies)
    def begin(self, basic: Policy, premium: Policy) -> None:
        self.place.run(self.books.at(START))
        first, second = self.place.run(self._users())
        by_level = {"basic": basic, "premium": premium}
        for level in by_level:
            self.place.run(self._set_level_policy(first, level, by_level[level]))
        for user in (first, second):
            self.seats.append(Seat(user, Wallet(by_level, START)))
            self.join(len(self.seats) - 1, "basic", None)

    async def _users(self) -> tuple[User, User]:
        # the empty level that every user of these tests begins on is left at once
        first = await self.books.user()
        second = await self.books.connection.fetchval(
            "select create_user($1, p_tenant_id => $2)", f"{uuid.uuid4().hex}@example.test", first.tenant_id
        )
        return first, User(first.tenant_id, second, first.levels)

    # time
    @rule(by=moves)
    def time_passes(self, by: timedelta) -> None:
        self.now += by
        self.touch()
        for seat in self.seats:
            seat.model.now = self.now
        self.place.run(self.books.at(self.now))

    def wait(self, by: timedelta | None) -> None:
        if by:
            self.time_passes(by)

    @rule(after=st.sampled_from([timedelta(0), timedelta(hours=1)]), how=st.sampled_from(["reaper", "tick"]))
    def maintenance(self, after: timedelta, how: str) -> None:
        self.time_passes(after)
        for seat in self.seats:
            if any(hold.open and hold.expires <= self.now for hold in seat.model.holds):
                seat.model.reap()
        call = "vanilla.reap_holds()" if how == "reaper" else "vanilla.run_maintenance()"
        self._count(how)
        self.place.run(self.books.connection.execute(f"select {call}"))

    @rule()
    def reset(self) -> None:
        self.touch()
        self._count("reset")
        self.place.run(self.books.reset())
        assert self.place.run(self.books.reset()) == 0

    # adjust_user_tokens
    @rule(who=who, amount=given, kind=kinds, lasts=lives, key=keyed)
    def credit(self, who: int, amount: int, kind: str, lasts: timedelta | None, key: bool) -> None:
        self.ask(who, Body("credit", amount, kind, expires=self.now + lasts if lasts else NEVER), key)

    @rule(who=who, amount=spent, key=keyed)
    def debit(self, who: int, amount: int, key: bool) -> None:
        self.ask(who, Body("debit", amount), key)

    @rule(who=who, over=st.integers(0, 20))
    def debit_everything_and_more(self, who: int, over: int) -> None:
        """Into debt, where the policy lets it."""
        model = self.seats[who].model
        model.play_events()
        self.ask(who, Body("debit", max(model.available + over, 1)))

    @rule(who=who, amount=spent, reference=st.sampled_from([None, 0, 1]), key=keyed)
    def reserve(self, who: int, amount: int, reference: int | None, key: bool) -> None:
        self.ask(who, Body("reserve", amount, reference=None if reference is None else self.references[reference]), key)

    @rule(who=who)
    def reserve_everything_and_forget_it(self, who: int) -> None:
        model = self.seats[who].model
        model.play_events()
        self.ask(who, Body("reserve", max(model.available, 1)))
        self.time_passes(timedelta(hours=1))

    @rule(who=who, amount=spent, sign=st.sampled_from([-1, -1, 1]), key=keyed)
    def correct(self, who: int, amount: int, sign: int, key: bool) -> None:
        self.ask(who, Body("adjustment", sign * amount), key)

    @rule(later=later, who=who, pick=pick, by_reference=st.booleans(), wrong=st.sampled_from([0, 0, 0, 1]), key=keyed)
    def release(self, who: int, pick: int, by_reference: bool, wrong: int, key: bool, later: timedelta | None) -> None:
        self.wait(later)
        body = self._release(self.seats[who], pick, by_reference)
        self.ask(who, Body("release", body.amount + wrong, reference=body.reference), key)

    @rule(who=who, pick=pick, more=st.sampled_from([0, 0, 1]))
    def ask_again(self, who: int, pick: int, more: int) -> None:
        """A key that was used before, also for what was refused then; with another body it must be refused."""
        asked = self.seats[who].asked
        if asked:
            body, key = asked[pick % len(asked)]
            self.ask(who, Body(body.direction, body.amount + more, body.source, body.reference, body.expires), key)

    def ask(self, who: int, body: Body, key: bool | str = False) -> None:
        seat = self.seats[who]
        named = self._name(seat, body, key)
        more = {"source": body.source, "reference_id": body.reference, "idempotency_key": named}
        if body.expires != NEVER:
            more["expires_at"] = body.expires
        both = self.both(
            seat,
            f"adjust {body.direction}",
            lambda: seat.model.adjust(body, named),
            self.books.adjust(seat.user, body.amount, body.direction, **more),
        )
        if both:
            self._same_entry(seat, *both)

    def _name(self, seat: Seat, body: Body, key: bool | str) -> str | None:
        if key is True:
            key = uuid.uuid4().hex
            seat.asked.append((body, key))
        return key or None

    # adjust_user_tokens_batch
    @rule(
        later=later,
        operations=st.lists(st.tuples(who, directions, spent, pick, keyed), min_size=1, max_size=7),
        atomic=st.booleans(),
    )
    def batch(self, operations: list[tuple[int, str, int, int, bool]], atomic: bool, later: timedelta | None) -> None:
        self.wait(later)
        asked: list[tuple[Seat, Body, str | None]] = []
        for who, direction, amount, pick, key in operations:
            seat = self.seats[who]
            body, name = self._of_batch(seat, direction, amount, pick, key)
            asked.append((seat, body, name))
        work = self.books.connection.fetchval(
            "select adjust_user_tokens_batch($1, $2)", [_operation(*each) for each in asked], atomic
        )
        both = self.both(None, "batch atomic" if atomic else "batch", lambda: self._play_batch(asked, atomic), work)
        if not both:
            return
        for (seat, body, _), expected, found in zip(asked, *both, strict=True):
            self._count(f"batch {body.direction}{'' if found['ok'] else ' refused'}")
            if isinstance(expected, Answer):
                self._same_entry(seat, expected, found["entry"])
            else:
                assert not found["ok"]
                assert found["error"]["sqlstate"] == expected

    def _of_batch(self, seat: Seat, direction: str, amount: int, pick: int, key: bool) -> tuple[Body, str | None]:
        match direction:
            case "again" if seat.asked:
                return seat.asked[pick % len(seat.asked)]
            case "release":
                body = self._release(seat, pick, by_reference=bool(pick % 2))
            case "up" | "down" | "again":
                body = Body("adjustment", -amount if direction == "down" else amount)
            case "reserve":
                body = Body("reserve", amount, reference=self.references[pick % 2])
            case _:
                body = Body(direction, amount)
        return body, self._name(seat, body, key)

    def _play_batch(self, asked: list[tuple[Seat, Body, str | None]], atomic: bool) -> list[Answer | str]:
        before = [seat.model.copied() for seat in self.seats]
        # each wallet's operations in their order, wallets in that of their ids: it decides whose refusal is told
        order = sorted(range(len(asked)), key=lambda n: (asked[n][0].user.id, n))
        answers: dict[int, Answer | str] = {}
        for n in order:
            seat, body, key = asked[n]
            try:
                answers[n] = seat.model.adjust(body, key)
            except Refused as refused:
                if atomic:
                    for each, kept in zip(self.seats, before, strict=True):
                        each.model.adopt(kept)
                    raise
                answers[n] = str(refused)
        return [answers[n] for n in range(len(asked))]

    def _release(self, seat: Seat, pick: int, by_reference: bool) -> Body:
        """Of any hold there was, an open one three times out of four; of an unknown one where there was none."""
        holds = seat.model.holds
        if not holds:
            return Body("release", 5, reference=self.references[0])
        hold = holds[self._some_hold(seat, pick)]
        reference = hold.reference if by_reference and hold.reference else hold.name
        return Body("release", max(hold.requested if pick % 3 else hold.amount, 1), reference=reference)

    def _some_hold(self, seat: Seat, pick: int) -> int:
        every = list(range(len(seat.model.holds)))
        unsettled = [n for n in every if seat.model.holds[n].open]
        chosen = unsettled if unsettled and pick % 4 < 3 else every
        return chosen[-1 - pick // 4 % len(chosen)]

    # holds
    @rule(later=later, who=who, pick=pick, off=st.sampled_from([0, 0]) | st.integers(-80, 120))
    def settle(self, who: int, pick: int, off: int, later: timedelta | None) -> None:
        self.wait(later)
        seat = self.seats[who]
        if seat.model.holds:
            index = self._some_hold(seat, pick)
            hold = seat.model.holds[index]
            actual = max(hold.amount + off, 0)
            work = self.books.settle(hold.name or uuid.uuid4(), actual)
            if both := self.both(seat, "settle", lambda: seat.model.settle(index, actual), work):
                self._same_entry(seat, *both)

    @rule(later=later, who=who, pick=pick, part=st.integers(1, 60))
    def settle_part(self, who: int, pick: int, part: int, later: timedelta | None) -> None:
        self.wait(later)
        seat = self.seats[who]
        if seat.model.holds:
            index = self._some_hold(seat, pick)
            # now and then all of it, and now and then more
            part = min(part, max(seat.model.holds[index].amount + pick % 2, 1))
            work = self.books.connection.fetchval(
                "select settle_user_tokens($1, $2, p_final => false)", seat.model.holds[index].name, part
            )
            if both := self.both(seat, "settle part", lambda: seat.model.settle_part(index, part), work):
                self._same_entry(seat, *both)

    @rule(
        later=later,
        who=who,
        pick=pick,
        by=st.sampled_from([timedelta(0), timedelta(minutes=50), timedelta(days=2), timedelta(days=31)]),
    )
    def extend(self, who: int, pick: int, by: timedelta, later: timedelta | None) -> None:
        self.wait(later)
        seat = self.seats[who]
        if seat.model.holds:
            index, until = self._some_hold(seat, pick), self.now + by
            work = self.books.connection.fetchval(
                "select extend_token_hold($1, $2)", seat.model.holds[index].name, until
            )
            if both := self.both(seat, "extend", lambda: seat.model.extend(index, until), work):
                assert both[1] == until

    # grants
    @rule(
        who=who,
        amount=given,
        kind=kinds | st.just("plan"),
        begins=starts,
        lasts=lives,
        priority=st.none() | st.sampled_from([0, 12, 55, 100]),
        key=keyed,
    )
    def grant(
        self,
        who: int,
        amount: int,
        kind: str,
        begins: timedelta | None,
        lasts: timedelta | None,
        priority: int | None,
        key: bool,
    ) -> None:
        begin = None if begins is None else self.now + begins
        # some would end before they begin
        gift = (kind, amount, begin, self.now + lasts if lasts else NEVER, priority)
        name = uuid.uuid4().hex if key else None
        if name:
            self.seats[who].gifts.append((gift, name))
        self._grant(self.seats[who], gift, name)

    @rule(who=who, pick=pick, more=st.sampled_from([0, 0, 1]))
    def grant_again(self, who: int, pick: int, more: int) -> None:
        gifts = self.seats[who].gifts
        if gifts:
            (kind, amount, *rest), key = gifts[pick % len(gifts)]
            self._grant(self.seats[who], (kind, amount + more, *rest), key)

    def _grant(self, seat: Seat, gift: Any, key: str | None) -> None:
        kind, amount, begin, expires, priority = gift
        work = self.books.connection.fetchval(
            "select grant_user_tokens($1, $2, $3, $4, coalesce($5::timestamptz, 'infinity'), $6,"
            " p_idempotency_key => $7)",
            seat.user.id,
            amount,
            kind,
            begin,
            None if expires == NEVER else expires,
            priority,
            key,
        )
        if both := self.both(seat, "grant", lambda: seat.model.grant(*gift, key), work):
            (grant, replayed), found = both
            assert found["replayed"] == replayed
            self._same_grant(grant, found)
            seat.grants += [None] * (grant.number + 1 - len(seat.grants))
            seat.grants[grant.number] = uuid.UUID(found["id"])

    @rule(later=later, who=who, pick=pick, of_level=st.sampled_from([True, False, False]))
    def void(self, who: int, pick: int, of_level: bool, later: timedelta | None) -> None:
        self.wait(later)
        seat = self.seats[who]
        known = [n for n, name in enumerate(seat.grants) if name]
        if of_level:
            number, name = self._plan(seat)
        elif known:
            number = known[pick % len(known)]
            name = seat.grants[number]
        else:
            return
        if name is None:
            return
        work = self.books.connection.fetchval("select void_token_grant($1, 'test')", name)
        if both := self.both(seat, "void", lambda: seat.model.void(number), work):
            self._same_grant(*both)

    def _plan(self, seat: Seat) -> tuple[int, uuid.UUID | None]:
        """The running plan; none while the database has yet to play the event that opens it."""
        seat.model.play_events()
        plan = next((grant for grant in seat.model.active() if grant.kind == "plan"), None)
        if plan is None:
            return 0, None
        return plan.number, self.place.run(
            self.books.connection.fetchval(
                "select id from user_token_grants where user_id = $1 and kind = 'plan' and state = 'active'"
                " and expires_at = $2",
                seat.user.id,
                plan.expires,
            )
        )

    # levels, policies, status
    @rule(later=later, who=who, level=levels)
    def join(self, who: int, level: str, later: timedelta | None) -> None:
        self.wait(later)
        seat = self.seats[who]
        both = self.both(seat, "join", lambda: seat.model.join(level), self.books.allocate(seat.user, level))
        assert both
        (base, period, restored), found = both
        assert (found["base_granted"], found["period_granted"], found["restored"]) == (base, period, restored)
        assert (found["available_tokens"], found["borrowed_tokens"]) == (seat.model.available, seat.model.borrowed)
        assert found["next_reset_at"] == _text(seat.model.next_reset)

    @rule(later=later, level=levels, policy=policies)
    def change_level_policy(self, level: str, policy: Policy, later: timedelta | None) -> None:
        """A period that is over when the policy changes was the old policy's."""
        self.wait(later)
        for seat in self.seats:
            seat.model.play_events()
        self.touch()
        self._count("level policy")
        self.seats[0].model.policies[level] = policy
        self.place.run(self._set_level_policy(self.seats[0].user, level, policy))

    async def _set_level_policy(self, user: User, level: str, policy: Policy) -> None:
        names = {"base": "base_allocation", "monthly": "monthly_allocation", "mode": "enforcement_mode"}
        values = {names.get(name, name): value for name, value in asdict(policy).items()}
        await self.books.policy(user.tenant_id, user.levels[level], **values)

    @rule(later=later, who=who, own=exceptions | st.just(Exceptions()))
    def change_user_policy(self, who: int, own: Exceptions, later: timedelta | None) -> None:
        self.wait(later)
        seat = self.seats[who]
        seat.model.play_events()
        seat.model.exceptions = own
        self.touch(seat)
        self._count("user policy")
        self.place.run(
            self.books.connection.execute(
                "select set_user_token_policy($1, $2, $3, $4, $5, $6)", seat.user.id, *asdict(own).values()
            )
        )

    @rule(who=who, status=st.sampled_from(["active", "active", "active", "locked", "suspended"]))
    def change_status(self, who: int, status: str) -> None:
        seat = self.seats[who]
        seat.model.status = status
        self.touch(seat)
        self._count(status)
        self.place.run(self.books.connection.execute("select set_wallet_status($1, $2, 'test')", seat.user.id, status))

    # what is compared
    @invariant()
    def same(self) -> None:
        touched = [seat for seat in self.seats if seat.touched]
        if not touched:
            return
        found = self.place.run(
            self.books.connection.fetchval(
                "select jsonb_agg(vanilla.test_observe($1, u) order by n)"
                " from unnest($2::uuid[]) with ordinality x (u, n)",
                touched[0].user.tenant_id,
                [seat.user.id for seat in touched],
            )
        )
        for seat, seen in zip(touched, found, strict=True):
            seat.model.play_events()
            expected = _expected(seat.model)
            differences = {name: (seen[name], value) for name, value in expected.items() if seen[name] != value}
            assert not differences, f"found and expected: {differences}"
            seat.touched = False

    def touch(self, *seats: Seat) -> None:
        for seat in seats or self.seats:
            seat.touched = True

    def both(self, seat: Seat | None, name: str, model: Callable[[], T], work: Awaitable[Any]) -> tuple[T, Any] | None:
        """Plays an operation on both sides; they agree on the decision. None when it is refused."""
        self.touch(*([seat] if seat else []))
        expected, refusal = None, None
        try:
            expected = model()
        except Refused as refused:
            refusal = str(refused)
        try:
            found, sqlstate = self.place.run(work), None
        except asyncpg.PostgresError as error:
            found, sqlstate = None, error.sqlstate
        assert sqlstate == refusal, f"{name}: found {sqlstate}, expected {refusal}"
        self._count(f"{name} {sqlstate}" if sqlstate else name)
        return None if expected is None and refusal else (expected, found)  # type: ignore[return-value]

    def _same_entry(self, seat: Seat, expected: Answer, found: dict[str, Any]) -> None:
        seen = Answer(
            found["direction"],
            found["amount"],
            found["reserved_amount"],
            found["available_tokens"],
            found["reserved_tokens"],
            found["borrowed_tokens"],
            expected.hold,
            found["replayed"],
        )
        assert seen == expected, f"found {seen}, expected {expected}"
        if expected.replayed:
            self._count("replayed")
        else:
            tells = expected.borrowed and expected.direction in ("debit", "settle", "debt", "reserve")
            assert ("warning" in found) == bool(tells and seat.model.mode != "monitor")
        if expected.hold is not None:
            hold = seat.model.holds[expected.hold]
            hold.name = hold.name or uuid.UUID(found["hold_id"])
            assert str(hold.name) == found["hold_id"]

    def _same_grant(self, expected: Grant, found: dict[str, Any]) -> None:
        seen = tuple(found[name] for name in ("kind", "priority", "amount", "remaining", "expires_at", "state"))
        values = (expected.kind, expected.priority, expected.amount, expected.remaining)
        wanted = (*values, _text(expected.expires), expected.state)
        assert seen == wanted, f"found {seen}, expected {wanted}"

    def _count(self, what: str) -> None:
        self.place.outcomes[what] += 1

    def teardown(self) -> None:
        """Leaves verified ledgers, and nothing that is due in the next life, whose clock starts again."""
        for seat in self.seats:
            assert self.place.run(self._retire(seat.user)) == []

    async def _retire(self, user: User) -> list[asyncpg.Record]:
        connection = self.books.connection
        problems = await connection.fetch("select * from verify_token_ledger($1)", user.id)
        await connection.execute(
            "update user_token_wallets set next_event_at = 'infinity', next_reset_at = null where user_id = $1", user.id
        )
        await self.books.at(self.now + timedelta(days=3))
        await self.books.reap()
        return problems


def _operation(seat: Seat, body: Body, key: str | None) -> dict[str, Any]:
    """As it stands in a batch."""
    asked = {"user_id": str(seat.user.id), "amount": body.amount, "direction": body.direction, "source": body.source}
    more = {"reference_id": body.reference and str(body.reference), "idempotency_key": key}
    if body.expires != NEVER:
        more["expires_at"] = body.expires.isoformat()
    return asked | {name: value for name, value in more.items() if value}


def _text(moment: datetime) -> str:
    return "infinity" if moment == NEVER else moment.isoformat()


def _expected(wallet: Wallet) -> dict[str, Any]:
    return {
        "available": wallet.available,
        "reserved": wallet.reserved,
        "borrowed": wallet.borrowed,
        "spent": wallet.spent,
        "next_event": _text(wallet.next_event),
        "status": wallet.status,
        "mode": wallet.mode,
        "balance": wallet.available - wallet.borrowed,
        "held": wallet.reserved,
        "lapsed": wallet.lapsed,
        "voided": wallet.voided,
        "scheduled": len(wallet.scheduled()),
        "grants": [[g.kind, g.priority, g.amount, g.remaining, _text(g.expires)] for g in wallet.active()],
    }
