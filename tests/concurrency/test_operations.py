"""Every operation at once on few wallets: no limit is crossed, nobody deadlocks, a key counts once."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from tests.concurrency.test_wallet import at_once, connections
from tests.conftest import Cluster, People
from tests.processes import assert_books_are_clean

WALLETS, CONNECTIONS, OPERATIONS = 3, 32, 25
# a period that ends now, as the clock would end it
END_PERIOD = """
with w as (
    select tenant_id, user_id, clock_timestamp() as ends from user_token_wallets where user_id = $1 for update),
plans as (
    update user_token_grants g set expires_at = greatest(w.ends, g.effective_at + interval '1 microsecond') from w
    where g.tenant_id = w.tenant_id and g.user_id = w.user_id and g.state = 'active' and g.kind in ('plan', 'rollover')
    returning g.expires_at)
update user_token_wallets x set next_reset_at = p.at, next_event_at = p.at
from w, (select max(expires_at) as at from plans) p
where x.tenant_id = w.tenant_id and x.user_id = w.user_id and p.at is not null
"""


@pytest.fixture
async def crowd(cluster: Cluster, database_name: str) -> AsyncIterator[list[asyncpg.Connection]]:
    """Connections that say 40P01 at once instead of after a second."""
    async with connections(cluster, database_name, CONNECTIONS) as opened:
        for connection in opened:
            await connection.execute("set deadlock_timeout = '20ms'")
        yield opened


class Customer:
    """One connection that does anything to the wallets and holds that it shares with the others."""

    def __init__(self, connection: asyncpg.Connection, users: list[uuid.UUID], level: uuid.UUID, shared: "Shared"):
        self.connection = connection
        self.users = users
        self.level = level
        self.shared = shared
        self.dice = random.Random(len(shared.done))

    async def live(self) -> None:
        does = [name for name in dir(self) if name.startswith("do_")]
        for _ in range(OPERATIONS):
            name = self.dice.choice([*does, "do_reserve", "do_reserve", "do_settle"])
            try:
                await getattr(self, name)(self.dice.choice(self.users))
                self.shared.done[name] += 1
            except asyncpg.PostgresError as error:
                if error.sqlstate not in ("VS402", "VS404", "VS409"):
                    raise

    async def ask(self, function: str, *values: Any) -> Any:
        places = ", ".join(f"${n}" for n in range(1, len(values) + 1))
        return await self.connection.fetchval(f"select {function}({places})", *values)

    def hold(self) -> uuid.UUID:
        return self.dice.choice(self.shared.holds or [uuid.uuid4()])

    def some(self) -> int:
        return self.dice.randint(1, 40)

    async def do_debit(self, user: uuid.UUID) -> None:
        await self.ask("adjust_user_tokens", user, self.some(), "debit")

    async def do_credit(self, user: uuid.UUID) -> None:
        await self.ask("adjust_user_tokens", user, self.some(), "credit")

    async def do_correct(self, user: uuid.UUID) -> None:
        await self.ask("adjust_user_tokens", user, -self.some(), "adjustment")

    async def do_reserve(self, user: uuid.UUID) -> None:
        entry = await self.ask("adjust_user_tokens", user, 40, "reserve")
        self.shared.holds.append(uuid.UUID(entry["hold_id"]))
        self.shared.owners[self.shared.holds[-1]] = user

    async def do_settle(self, user: uuid.UUID) -> None:
        # the parts that others take at the same time leave less than was held: what is above it would be debt
        await self.ask("settle_user_tokens", self.hold(), 0)

    async def do_settle_part(self, user: uuid.UUID) -> None:
        await self.connection.fetchval(
            "select settle_user_tokens($1, $2, p_final => false)", self.hold(), self.dice.randint(1, 30)
        )

    async def do_extend(self, user: uuid.UUID) -> None:
        await self.connection.fetchval("select extend_token_hold($1, now() + interval '2 hours')", self.hold())

    async def do_release(self, user: uuid.UUID) -> None:
        hold = self.hold()
        await self.connection.fetchval(
            "select adjust_user_tokens($1, 40, 'release', p_reference_id => $2)",
            self.shared.owners.get(hold, user),
            hold,
        )

    async def do_expire(self, user: uuid.UUID) -> None:
        await self.connection.execute(
            "update user_token_holds set expires_at = clock_timestamp() where id = $1 and state = 'open'", self.hold()
        )
        await self.ask("vanilla.reap_holds")

    async def do_grant(self, user: uuid.UUID) -> None:
        begins = self.dice.choice(["null", "now() + interval '50 milliseconds'"])
        ends = self.dice.choice(["interval '200 milliseconds'", "interval '1 hour'"])
        grant = await self.connection.fetchval(
            f"select grant_user_tokens($1, $2, 'promo', {begins}, now() + {ends})",
            user,
            self.some(),
        )
        self.shared.grants.append(uuid.UUID(grant["id"]))

    async def do_void(self, user: uuid.UUID) -> None:
        await self.ask("void_token_grant", self.dice.choice(self.shared.grants or [uuid.uuid4()]), "test")

    async def do_end_period(self, user: uuid.UUID) -> None:
        await self.connection.execute(END_PERIOD, user)

    async def do_reset(self, user: uuid.UUID) -> None:
        await self.ask("reset_monthly_tokens")

    async def do_tick(self, user: uuid.UUID) -> None:
        await self.ask("vanilla.run_maintenance")

    async def do_level_policy(self, user: uuid.UUID) -> None:
        await self.connection.execute(
            "select set_level_token_policy($1, 0, 500, 'hard', $2, p_tenant_id => tenant_id) from users where id = $3",
            self.level,
            self.dice.choice([0, 50, 100]),
            user,
        )

    async def do_user_policy(self, user: uuid.UUID) -> None:
        await self.ask("set_user_token_policy", user, self.dice.choice([None, 400]))

    async def do_join(self, user: uuid.UUID) -> None:
        await self.ask("auto_allocate_tokens_for_level", user, self.level)

    async def do_batch(self, user: uuid.UUID) -> None:
        """Over all wallets, in another order each time; some of it releases what others are settling."""
        operations: list[dict[str, Any]] = []
        for hold in {self.hold() for _ in range(3)} & self.shared.owners.keys():
            owner = self.shared.owners[hold]
            asked = {"user_id": str(owner), "amount": 40, "direction": "release", "reference_id": str(hold)}
            operations.append(asked)
        operations += [{"user_id": str(each), "amount": self.some(), "direction": "debit"} for each in self.users]
        self.dice.shuffle(operations)
        results = await self.ask("adjust_user_tokens_batch", operations)
        assert {result["error"]["sqlstate"] for result in results if not result["ok"]} <= {"VS402", "VS404", "VS409"}


class Shared:
    """What the customers know of each other."""

    def __init__(self) -> None:
        self.holds: list[uuid.UUID] = []
        self.owners: dict[uuid.UUID, uuid.UUID] = {}
        self.grants: list[uuid.UUID] = []
        self.done: Counter[str] = Counter()


async def test_every_operation_at_once_on_few_wallets_crosses_no_limit_and_never_deadlocks(
    crowd: list[asyncpg.Connection], people: People
) -> None:
    tenant, operator = await people.tenant(), people.operator
    level = await operator.fetchval("select id from levels where tenant_id = $1 and slug = 'free'", tenant)
    await operator.execute("select set_level_token_policy($1, 0, 500, p_tenant_id => $2)", level, tenant)
    users = [(await people.user(tenant_id=tenant)).identity.user_id for _ in range(WALLETS)]
    for connection in crowd:
        await connection.execute("set statement_timeout = '60s'")
    shared = Shared()
    customers = {id(each): Customer(each, users, level, shared) for each in crowd}
    for number, customer in enumerate(customers.values()):
        customer.dice.seed(number)
    await asyncio.wait_for(at_once(crowd, lambda connection: customers[id(connection)].live()), 180)
    assert set(shared.done) == {name for name in dir(Customer) if name.startswith("do_")}
    crossed = await operator.fetch(
        "select * from user_token_ledger where user_id = any ($1)"
        " and (available_after < 0 or reserved_after < 0 or borrowed_after <> 0)",
        users,
    )
    assert crossed == []
    await assert_books_are_clean(operator)


def by_batch(operation: dict[str, Any]) -> Callable[[asyncpg.Connection, uuid.UUID], Awaitable[Any]]:
    async def ask(connection: asyncpg.Connection, user: uuid.UUID) -> Any:
        asked = {"user_id": str(user), "idempotency_key": "once"} | operation
        (result,) = await connection.fetchval("select adjust_user_tokens_batch($1)", [asked])
        return result["entry"]

    return ask


def by_call(call: str) -> Callable[[asyncpg.Connection, uuid.UUID], Awaitable[Any]]:
    return lambda connection, user: connection.fetchval(f"select {call}", user)


@pytest.mark.parametrize(
    ("ask", "figures"),
    [
        (by_call("adjust_user_tokens($1, 75, 'debit', p_idempotency_key => 'once')"), (425, 0)),
        (by_call("adjust_user_tokens($1, 75, 'reserve', p_idempotency_key => 'once')"), (425, 75)),
        (by_call("adjust_user_tokens($1, 75, 'credit', p_idempotency_key => 'once')"), (575, 0)),
        (by_call("adjust_user_tokens($1, -75, 'adjustment', p_idempotency_key => 'once')"), (425, 0)),
        (by_call("grant_user_tokens($1, 75, p_idempotency_key => 'once')"), (575, 0)),
        (by_batch({"amount": 75, "direction": "debit"}), (425, 0)),
        (by_batch({"amount": 75, "direction": "reserve"}), (425, 75)),
        (by_batch({"amount": 75, "direction": "credit"}), (575, 0)),
    ],
    ids=["debit", "reserve", "credit", "correct", "grant", "batch debit", "batch reserve", "batch credit"],
)
async def test_a_key_sent_sixteen_times_at_once_has_one_effect_and_sixteen_equal_answers(
    crowd: list[asyncpg.Connection], people: People, ask: Any, figures: tuple[int, int]
) -> None:
    person = await people.user(balance=500)
    answers = await at_once(crowd[:16], lambda connection: ask(connection, person.identity.user_id))
    assert sorted(answer.pop("replayed") for answer in answers) == [False] + [True] * 15
    assert answers == [answers[0]] * 16
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == figures
