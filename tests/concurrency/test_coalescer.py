"""Calls that leave together: what each is answered, what nobody waits for, what a cancelled caller leaves behind."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster, People, Person
from tests.processes import assert_books_are_clean, eventually
from vanilla_saas.database.coalescer import RUN_CALLS, Coalescer
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database, _prepare
from vanilla_saas.providers.metering import ADMIT, HOLD_TTL, SETTLE
from vanilla_saas.tenancy.secret_tokens import token_hash
from vanilla_saas.tokens.store import ADJUST_BY_KEY


class Counted(Database):
    """The real database of a test, and what was sent to it."""

    def __init__(self, database: Database):
        super().__init__(database._app, database._runtime, database._signer, runtime_dsn=database._runtime_dsn)
        self.sent: list[str] = []

    async def call(self, statement: str, *arguments: object) -> Any:
        calls = len(arguments[0]) if statement == RUN_CALLS else 1  # type: ignore[arg-type]
        self.sent.append(f"{statement.split('(')[0].removeprefix('select vanilla.')} {calls}")
        return await super().call(statement, *arguments)


@pytest.fixture
def counted(database: Database) -> Counted:
    return Counted(database)


@pytest.fixture
async def admin(people: People) -> Person:
    """Whose key adjusts wallets."""
    return await people.user(role="admin", scopes=["admin"])


def adjustment(admin: Person, user: Person | uuid.UUID, amount: int, direction: str, **more: Any) -> tuple[Any, ...]:
    user_id = user.identity.user_id if isinstance(user, Person) else user
    reason, reference, key = more.get("reason", "test"), more.get("reference"), more.get("key")
    common = (user_id, amount, direction, reason, "manual", None, reference, None, more.get("metadata", {}), key)
    return (ADJUST_BY_KEY, token_hash(admin.key), *common, None, "", "")


def admission(person: Person, **more: Any) -> tuple[Any, ...]:
    payer, model = more.get("payer"), more.get("model", "sandbox-small")
    sizes = (5, 5, more.get("limit", 10), 1)
    return (
        ADMIT,
        token_hash(person.key),
        None,
        payer,
        model,
        *sizes,
        uuid.uuid4(),
        False,
        HOLD_TTL,
        more.get("key"),
        None,
    )


def settlement(admitted: dict[str, Any], used: int = 5) -> tuple[Any, ...]:
    ids = (uuid.UUID(admitted["tenant_id"]), uuid.UUID(admitted["hold_id"]))
    return (SETTLE, *ids, "succeeded", used, used, 0, 0, False, None, 7, None)


@asynccontextmanager
async def locked(cluster: Cluster, database_name: str, *owners: Person) -> AsyncIterator[asyncpg.Connection]:
    """Somebody else is busy with these wallets for the time of the block."""
    connection = await asyncpg.connect(cluster.url(database=database_name))
    try:
        async with connection.transaction():
            ids = [owner.identity.user_id for owner in owners]
            await connection.execute("select from user_token_wallets where user_id = any ($1) for update", ids)
            yield connection
    finally:
        await connection.close()


async def waiting_in_database(operator: asyncpg.Connection, statement: str) -> int:
    """The backend of a statement that waits for a lock."""

    async def found() -> int | None:
        return await operator.fetchval(
            "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            " and query like $1",
            f"%{statement}%",
        )

    return await eventually(found)


async def outcome(coalescer: Coalescer, call: tuple[Any, ...], **more: Any) -> Any:
    try:
        return await coalescer.call(*call, **more)
    except VanillaError as error:
        return (error.name, error.message, error.detail, error.hint)


async def together(
    coalescer: Coalescer, cluster: Cluster, database_name: str, people: People, calls: list[tuple[Any, ...]]
) -> list[Any]:
    """The outcomes of calls that all wait while a first one is under way."""
    busy, admin = await people.user(balance=10), await people.user(role="admin", scopes=["admin"])
    async with locked(cluster, database_name, busy):
        first = asyncio.create_task(coalescer.call(*adjustment(admin, busy, 1, "debit")))
        await waiting_in_database(people.operator, "adjust_by_key")
        tasks = [asyncio.create_task(outcome(coalescer, call)) for call in calls]
        await asyncio.sleep(0)
    await first
    return await asyncio.gather(*tasks)


async def test_calls_one_after_the_other_leave_alone_and_none_is_a_batch(
    counted: Counted, people: People, admin: Person
) -> None:
    person, coalescer = await people.user(balance=100), Coalescer(counted)
    for _ in range(5):
        await coalescer.call(*adjustment(admin, person, 1, "debit"))
    await coalescer.call(*settlement(await coalescer.call(*admission(person))))
    assert counted.sent == ["adjust_by_key 1"] * 5 + ["admit_call 1", "settle_call 1"]


async def test_as_many_as_there_are_slots_leave_at_once_and_the_rest_leaves_as_one(
    counted: Counted, cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    person, coalescer = await people.user(balance=100), Coalescer(counted, in_flight=2)
    async with locked(cluster, database_name, person):
        tasks = [asyncio.create_task(coalescer.call(*adjustment(admin, person, 1, "debit"))) for _ in range(32)]
        await waiting_in_database(people.operator, "adjust_by_key")
        assert counted.sent == ["adjust_by_key 1"] * 2
    entries = await asyncio.gather(*tasks)
    assert counted.sent == ["adjust_by_key 1"] * 2 + ["run_calls 30"]
    assert sorted(entry["available_tokens"] for entry in entries) == list(range(68, 100))
    in_order = [entry["seq"] for entry in entries[2:]]
    assert in_order == sorted(in_order)


async def test_callers_that_ask_again_at_once_travel_together(counted: Counted, people: People, admin: Person) -> None:
    person, coalescer = await people.user(balance=1000), Coalescer(counted, in_flight=1)

    async def caller() -> None:
        for _ in range(10):
            await coalescer.call(*adjustment(admin, person, 1, "debit"))

    await asyncio.gather(*(caller() for _ in range(32)))
    assert len(counted.sent) <= 12, counted.sent
    assert (await people.wallet(person))["available_tokens"] == 1000 - 320


async def test_twenty_reservations_of_75_on_500_make_exactly_six_holds(
    database: Database, people: People, admin: Person
) -> None:
    person, coalescer = await people.user(balance=500), Coalescer(database)
    calls = [outcome(coalescer, adjustment(admin, person, 75, "reserve")) for _ in range(20)]
    outcomes = await asyncio.gather(*calls)
    refused = [found[0] for found in outcomes if isinstance(found, tuple)]
    assert refused == ["insufficient_tokens"] * 14
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (50, 450)


@pytest.mark.parametrize("in_flight", [1, 4])
async def test_one_key_sent_sixteen_times_at_once_has_one_effect_and_one_answer(
    in_flight: int, database: Database, people: People, admin: Person
) -> None:
    person, coalescer = await people.user(balance=500), Coalescer(database, in_flight=in_flight)
    call = adjustment(admin, person, 75, "debit", key="once")
    answers = await asyncio.gather(*(coalescer.call(*call) for _ in range(16)))
    assert sorted(answer.pop("replayed") for answer in answers) == [False] + [True] * 15
    assert all(answer == answers[0] for answer in answers)
    assert (await people.wallet(person))["available_tokens"] == 425


async def test_a_call_that_fails_fails_alone_and_in_the_words_it_would_have_heard_alone(
    database: Database, counted: Counted, cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    person, poor = await people.user(balance=100), await people.user(balance=100)
    stranger = await people.user(tenant_id=await people.tenant(), balance=50)
    plain = await people.user(role="admin", scopes=["read"])
    dead = await people.user(role="admin", scopes=["admin"])
    await people.operator.execute("select revoke_api_key($1, $2)", dead.key_id, dead.identity.tenant_id)
    failing = [
        adjustment(admin, stranger, 1, "debit"),
        adjustment(admin, stranger, 1, "credit"),
        adjustment(admin, uuid.uuid4(), 1, "debit"),
        adjustment(admin, poor, 1000, "debit"),
        adjustment(admin, poor, 0, "debit"),
        adjustment(admin, poor, 2**63, "debit"),
        adjustment(admin, poor, 1, "gift"),
        adjustment(admin, poor, 1, "debit", reason="a\0b"),
        adjustment(admin, poor, 1, "debit", metadata={"a": "\0"}),
        adjustment(admin, poor, 5, "release", reference=uuid.uuid4()),
        adjustment(plain, poor, 1, "debit"),
        adjustment(dead, poor, 1, "debit"),
        adjustment(dead, poor, 1, "credit"),
        admission(poor, model="no-such"),
        admission(poor, limit=10**9),
        admission(poor, payer="somebody"),
        admission(dead),
        settlement({"tenant_id": str(uuid.uuid4()), "hold_id": str(uuid.uuid4())}),
    ]
    alone = [await outcome(Coalescer(database), call) for call in failing]
    good = [adjustment(admin, person, 1, "debit") for _ in failing]
    mixed = [call for pair in zip(good, failing, strict=True) for call in pair]
    outcomes = await together(Coalescer(counted, in_flight=1), cluster, database_name, people, mixed)
    assert all(isinstance(error, tuple) for error in alone), alone
    assert outcomes[1::2] == alone
    assert all(entry["amount"] == -1 for entry in outcomes[::2])
    assert (await people.wallet(person))["available_tokens"] == 100 - len(good)
    assert (await people.wallet(stranger))["available_tokens"] == 50
    # two held a NUL and one a number that JSON's reader would not take for them
    assert counted.sent[1].startswith("run_calls ")
    assert len(counted.sent) <= 5, counted.sent


async def test_calls_of_the_gateway_are_answered_together_as_they_are_alone(
    counted: Counted, cluster: Cluster, database_name: str, people: People
) -> None:
    budgeted, other = await people.user(balance=1000), await people.user(balance=1000)
    await people.operator.execute("update api_keys set budget_tokens = 500 where id = $1", budgeted.key_id)
    coalescer = Coalescer(counted, in_flight=1)
    callers = [budgeted, other] * 8
    admitted = await together(coalescer, cluster, database_name, people, [admission(caller) for caller in callers])
    assert [found["user_id"] for found in admitted] == [str(caller.identity.user_id) for caller in callers]
    assert await people.operator.fetchval("select used_tokens from api_keys where id = $1", budgeted.key_id) == 8 * 15
    settlements = [settlement(found, used=4) for found in admitted]
    settled = await together(coalescer, cluster, database_name, people, settlements + settlements[:3])
    assert [found["charged"] for found in settled[:16]] == [8] * 16
    assert settled[16:] == [{"settled": False}] * 3
    assert counted.sent == ["adjust_by_key 1", "run_calls 16", "adjust_by_key 1", "run_calls 19"]
    for caller in (budgeted, other):
        wallet = await people.wallet(caller)
        assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (1000 - 64, 0)
    assert await people.operator.fetchval("select used_tokens from api_keys where id = $1", budgeted.key_id) == 64


async def test_calls_that_make_their_payer_run_alone_and_make_one_user(
    counted: Counted, cluster: Cluster, database_name: str, people: People
) -> None:
    owner = await people.user(role="admin", scopes=["chat", "act_as:create"])
    names = [f"customer-{uuid.uuid4().hex}" for _ in range(2)]
    calls = [admission(owner, payer=name) for name in names * 3]
    admitted = await together(Coalescer(counted, in_flight=1), cluster, database_name, people, calls)
    assert len({found["user_id"] for found in admitted}) == 2
    assert counted.sent[1:] == ["run_calls 6"] + ["admit_call 1"] * 6
    for found in admitted:
        await counted.call(SETTLE.statement, *settlement(found)[1:])


# cancellation -----------------------------------------------------------------------------------------------------
async def test_a_caller_cancelled_while_it_waits_leaves_without_effect(
    counted: Counted, cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    person, coalescer = await people.user(balance=100), Coalescer(counted, in_flight=1)
    async with locked(cluster, database_name, person):
        tasks = [asyncio.create_task(coalescer.call(*adjustment(admin, person, 1, "debit"))) for _ in range(10)]
        await waiting_in_database(people.operator, "adjust_by_key")
        for task in tasks[5:]:
            task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(found, asyncio.CancelledError) for found in outcomes] == [False] * 5 + [True] * 5
    assert counted.sent == ["adjust_by_key 1", "run_calls 4"]
    assert (await people.wallet(person))["available_tokens"] == 95


async def test_a_caller_cancelled_in_flight_takes_nobody_along_and_its_value_goes_to_whom_it_named(
    counted: Counted, cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    busy, person, coalescer = (
        await people.user(balance=9),
        await people.user(balance=100),
        Coalescer(counted, in_flight=1),
    )
    unwanted: list[Any] = []
    async with locked(cluster, database_name, person):
        async with locked(cluster, database_name, busy):
            first = asyncio.create_task(coalescer.call(*adjustment(admin, busy, 1, "debit")))
            await waiting_in_database(people.operator, "adjust_by_key")
            call = adjustment(admin, person, 1, "debit")
            tasks = [asyncio.create_task(coalescer.call(*call, unwanted=unwanted.append)) for _ in range(4)]
            await asyncio.sleep(0)
        await first
        await waiting_in_database(people.operator, "run_calls")
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
    entries = await asyncio.gather(*(task for task in tasks if not task.cancelled()))
    assert [entry["available_tokens"] for entry in entries] == [99, 97, 96]
    assert [entry["available_tokens"] for entry in unwanted] == [98]


async def test_a_model_call_cancelled_while_it_is_admitted_holds_nothing(
    cluster: Cluster, database_name: str, people: People, test_settings: Any
) -> None:
    from vanilla_saas.app import create_app

    app, person = create_app(test_settings), await people.user(balance=1000)
    body = {"model": "sandbox-small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 10}
    async with app.router.lifespan_context(app):
        async with locked(cluster, database_name, person):
            admission_of_nobody = asyncio.create_task(app.state.calls.admit(person.key, body))
            await waiting_in_database(people.operator, "admit_call")
            admission_of_nobody.cancel()

        async def settled() -> Any:
            return await people.operator.fetchval(
                "select status from ai_executions where user_id = $1", person.identity.user_id
            )

        assert await eventually(settled) == "cancelled"
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (1000, 0)


async def test_closing_answers_those_who_wait_and_refuses_those_who_come(
    counted: Counted, cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    person, coalescer = await people.user(balance=100), Coalescer(counted, in_flight=1, limit=3)
    call = adjustment(admin, person, 1, "debit")
    async with locked(cluster, database_name, person):
        tasks = [asyncio.create_task(coalescer.call(*call)) for _ in range(9)]
        await waiting_in_database(people.operator, "adjust_by_key")
        closing = asyncio.create_task(coalescer.close())
        await asyncio.sleep(0)
        assert (await outcome(coalescer, call))[0] == "database_unavailable"
        assert not closing.done()
    await closing
    assert all(task.done() for task in tasks)
    assert (await people.wallet(person))["available_tokens"] == 91
    assert counted.sent[1:] == ["run_calls 3", "run_calls 3", "run_calls 2"]


# fairness ---------------------------------------------------------------------------------------------------------
async def test_when_more_wait_than_a_batch_takes_every_lane_has_its_turn(
    counted: Counted, cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    busy, person = await people.user(balance=9), await people.user(balance=100)
    coalescer, order = Coalescer(counted, in_flight=1, limit=4), []

    async def caller(lane: str) -> None:
        await coalescer.call(*adjustment(admin, person, 1, "debit"), lane=lane)
        order.append(lane)

    async with locked(cluster, database_name, busy):
        first = asyncio.create_task(coalescer.call(*adjustment(admin, busy, 1, "debit")))
        await waiting_in_database(people.operator, "adjust_by_key")
        tasks = [asyncio.create_task(caller(lane)) for lane in "a" * 9 + "b" * 2 + "c"]
        await asyncio.sleep(0)
    await asyncio.gather(first, *tasks)
    assert counted.sent[1:] == ["run_calls 4"] * 3
    assert "".join(order) == "aabc" + "aaab" + "aaaa"


# locks ------------------------------------------------------------------------------------------------------------
async def test_batches_with_the_same_wallets_and_keys_in_opposite_order_do_not_wait_for_each_other(
    cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    owners = [await people.user(balance=100_000) for _ in range(12)]
    payers = [f"payer-{uuid.uuid4().hex}" for _ in range(12)]
    keys = [await people.user(role="admin", scopes=["chat", "act_as", "act_as:create"]) for _ in range(4)]
    await people.operator.execute(
        "update api_keys set budget_tokens = 100000000 where id = any ($1)", [key.key_id for key in keys]
    )
    runtime = [await asyncpg.connect(cluster.url("vanilla_runtime", database_name)) for _ in range(4)]
    for connection in runtime:
        await _prepare(connection)
    for payer in payers:
        found = await runtime[0].fetchval(ADMIT.statement, *admission(keys[0], payer=payer)[1:])
        await runtime[0].fetchval(SETTLE.statement, *settlement(found)[1:])

    async def run(connection: asyncpg.Connection, number: int) -> list[Any]:
        turn, found = -1 if number % 2 else 1, []
        for n in range(15):
            calls = [adjustment(admin, owner, 2, "debit" if n % 2 else "reserve") for owner in owners]
            # each connection names its own payers, so that only the keys meet
            calls += [admission(keys[i % 4], payer=payers[number * 3 + i % 3]) for i in range(4)][::turn]
            outcomes = await connection.fetchval(RUN_CALLS, [encoded(call) for call in calls[::turn]])
            admitted = [one["ok"] for one in outcomes if "provider" in one.get("ok", ())]
            settlements = [encoded(settlement(one)) for one in admitted]
            found += outcomes + await connection.fetchval(RUN_CALLS, settlements)
        return found

    try:
        outcomes = await asyncio.wait_for(asyncio.gather(*(run(c, n) for n, c in enumerate(runtime))), 120)
    finally:
        for connection in runtime:
            await connection.close()
    errors = [one["error"] for found in outcomes for one in found if "error" in one]
    assert errors == []
    await assert_books_are_clean(people.operator)


def encoded(call: tuple[Any, ...]) -> Any:
    from vanilla_saas.database.coalescer import _Call

    return _Call(call[0], call[1:], 0, None).encoded()
