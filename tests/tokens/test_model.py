"""Random lives of a wallet, played in PostgreSQL and in the model: same decisions, same amounts, same grants."""

import asyncio
import os
import uuid
from collections.abc import Awaitable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import TEST_KEY, Cluster, create_database
from tests.tokens.model import NEVER, Policy, Refused, Wallet
from tests.tokens.support import START, TEST_CLOCK, Books, User
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import _prepare

# a short run shows the life it found as it is: shrinking one takes minutes
settings.register_profile("short", max_examples=50, stateful_step_count=40, phases=[Phase.generate])
settings.register_profile("long", max_examples=3000, stateful_step_count=80)
LIFE = settings(
    settings.get_profile("long" if os.environ.get("VANILLA_SAAS_LONG") else "short"),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

T = TypeVar("T")
# credits outweigh debits, and most moves of the clock are short: a life of refusals and lapses tells little
given, spent = st.integers(1, 300), st.integers(1, 80)
cap = st.none() | st.none() | st.integers(0, 400)
policies = st.builds(
    Policy,
    base=st.sampled_from([0, 30]),
    monthly=st.sampled_from([0, 60, 100, 200, 250]),
    rollover_percent=st.sampled_from([100, 50, 33, 0]),
    rollover_cap=cap,
    monthly_cap=cap,
    mode=st.sampled_from(["hard", "warn", "monitor"]),
)
moves = st.sampled_from(
    [timedelta(minutes=n) for n in (5, 20, 40, 60)]
    + [timedelta(hours=9)]
    + [timedelta(days=n) for n in (3, 12, 31, 70)]
)
lives = st.none() | st.sampled_from([timedelta(minutes=30), timedelta(hours=5), timedelta(days=4), timedelta(days=45)])


class Place:
    """A database with a movable clock and a connection to it, driven from tests that are not async."""

    def __init__(self, runner: asyncio.Runner, connection: asyncpg.Connection):
        self.runner = runner
        self.books = Books(connection)

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[Place]:
    with asyncio.Runner() as runner:
        context = create_database(cluster, f"test_tokens_{uuid.uuid4().hex[:12]}")
        name = runner.run(context.__aenter__())
        url = cluster.url(database=name)

        async def prepare() -> asyncpg.Connection:
            await migrate(url, ContextSigner(bytes.fromhex(TEST_KEY)))
            connection = await asyncpg.connect(url)
            await _prepare(connection)
            await connection.execute(TEST_CLOCK)
            return connection

        connection = runner.run(prepare())
        yield Place(runner, connection)
        runner.run(connection.close())
        runner.run(context.__aexit__(None, None, None))


class Life(RuleBasedStateMachine):
    """One wallet; `place` is set by the test."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.books = self.place.books
        self.wallet: Wallet | None = None
        self.holds: list[uuid.UUID] = []
        self.user: User

    @initialize(free=policies, basic=policies)
    def begin(self, free: Policy, basic: Policy) -> None:
        self.place.run(self.books.at(START))
        self.user = self.place.run(self.books.user())
        # the empty level that every user of these tests begins on is left at once
        for level, policy in (("basic", basic), ("premium", free)):
            self.place.run(
                self.books.policy(
                    self.user.tenant_id,
                    self.user.levels[level],
                    base_allocation=policy.base,
                    monthly_allocation=policy.monthly,
                    rollover_percent=policy.rollover_percent,
                    rollover_cap=policy.rollover_cap,
                    monthly_cap=policy.monthly_cap,
                    enforcement_mode=policy.mode,
                )
            )
        self.wallet = Wallet({"basic": basic, "premium": free}, "basic", START)
        self.place.run(self.books.allocate(self.user, "basic"))

    @property
    def model(self) -> Wallet:
        assert self.wallet
        return self.wallet

    @rule(by=moves)
    def time_passes(self, by: timedelta) -> None:
        self.model.now += by
        self.place.run(self.books.at(self.model.now))

    @rule(
        amount=given,
        kind=st.sampled_from(["purchase", "promo", "trial", "refund"]),
        lasts=lives,
    )
    def credit(self, amount: int, kind: str, lasts: timedelta | None) -> None:
        expires = self.model.now + lasts if lasts else NEVER
        more = {"expires_at": expires} if lasts else {}
        self.both(
            lambda: self.model.credit(amount, kind, expires),
            self.books.adjust(self.user, amount, "credit", source=kind, **more),
        )

    @rule(amount=spent)
    def debit(self, amount: int) -> None:
        self.both(lambda: self.model.debit(amount), self.books.adjust(self.user, amount, "debit"))

    @rule(over=st.integers(0, 20))
    def debit_everything_and_more(self, over: int) -> None:
        """Into debt, where the policy lets it."""
        self.model.play_events()
        self.debit(max(self.model.available + over, 1))

    @rule()
    def reserve_everything_and_forget_it(self) -> None:
        self.model.play_events()
        self.reserve(max(self.model.available, 1))
        self.time_passes(timedelta(hours=1))

    @rule(amount=spent)
    def adjust_down(self, amount: int) -> None:
        self.both(lambda: self.model.debit(amount, counts=False), self.books.adjust(self.user, -amount, "adjustment"))

    @rule(amount=spent)
    def reserve(self, amount: int) -> None:
        entry = self.both(lambda: self.model.reserve(amount), self.books.adjust(self.user, amount, "reserve"))
        if entry is not None:
            self.holds.append(uuid.UUID(entry["hold_id"]))

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), actual=st.integers(0, 100))
    def settle(self, data: st.DataObject, actual: int) -> None:
        index = data.draw(self.some_hold())
        self.both(lambda: self.model.settle(index, actual), self.books.settle(self.holds[index], actual))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(self.some_hold())
        amount = self.model.holds[index].requested
        self.both(
            lambda: self.model.release(index),
            self.books.adjust(self.user, amount, "release", reference_id=self.holds[index]),
        )

    def some_hold(self) -> st.SearchStrategy[int]:
        """Any hold there was; an open one three times out of four."""
        every = range(len(self.holds))
        unsettled = [index for index in every if self.model.holds[index].open] or every
        return st.one_of(*[st.sampled_from(unsettled)] * 3, st.sampled_from(every))

    @rule(after=st.sampled_from([timedelta(0), timedelta(hours=1)]))
    def reaper(self, after: timedelta) -> None:
        self.time_passes(after)
        if any(hold.open and hold.expires <= self.model.now for hold in self.model.holds):
            self.model.reap()
        self.place.run(self.books.reap())

    @rule()
    def reset(self) -> None:
        self.model.play_events()
        self.place.run(self.books.reset())

    @rule(level=st.sampled_from(["basic", "premium"]))
    def join(self, level: str) -> None:
        self.both(lambda: self.model.join(level), self.books.allocate(self.user, level))

    @invariant()
    def same(self) -> None:
        if self.wallet is None:
            return
        self.model.play_events()
        found = self.place.run(self.folded())
        expected = (self.model.available, self.model.reserved, self.model.borrowed, self.model.spent, self.model.left())
        assert found == expected

    def teardown(self) -> None:
        if self.wallet is None:
            return
        self.place.run(self.retire())

    def both(self, model: Any, work: Awaitable[dict[str, Any]]) -> dict[str, Any] | None:
        """Plays an operation on both sides; they agree on the decision. None when it is refused."""
        try:
            model()
            expected = None
        except Refused as refused:
            expected = str(refused)
        try:
            entry = self.place.run(work)
            found = None
        except asyncpg.PostgresError as error:
            entry, found = None, error.sqlstate
        assert found == expected
        return entry

    async def folded(self) -> tuple[int, int, int, int, list[tuple[str, int]]]:
        """What the wallet comes to when all that is due is played; undone, so that laziness is part of the test."""
        transaction = self.books.connection.transaction()
        await transaction.start()
        await self.books.connection.execute(
            "select from vanilla.lock_wallet($1, $2)", self.user.tenant_id, self.user.id
        )
        wallet = await self.books.wallet(self.user)
        grants = await self.books.grants(self.user)
        await transaction.rollback()
        return *(wallet[f"{name}_tokens"] for name in ("available", "reserved", "borrowed", "spent")), grants

    async def retire(self) -> None:
        """Leaves a verified ledger, and nothing that is due in the next life, whose clock starts again."""
        problems = await self.books.connection.fetch("select * from verify_token_ledger($1)", self.user.id)
        assert problems == []
        await self.books.at(self.model.now + timedelta(days=1))
        await self.books.reap()
        await self.books.connection.execute(
            "update user_token_wallets set next_event_at = 'infinity', next_reset_at = null where user_id = $1",
            self.user.id,
        )


def test_a_wallet_lives_as_the_rules_say(place: Place) -> None:
    machine = type("LifeHere", (Life,), {"place": place})
    run_state_machine_as_test(machine, settings=LIFE)
    assert place.run(place.books.problems()) == []
