"""Batches of adjustments against the same adjustments one by one; and over HTTP."""

import random
import uuid
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.conftest import People, Person
from tests.processes import assert_books_are_clean
from tests.tokens.test_routes import admin_of, post
from vanilla_saas.tenancy.secret_tokens import token_hash

BATCH = "select adjust_user_tokens_batch($1, $2)"
ONE = """select adjust_user_tokens($1, $2, $3, $4, coalesce($5, 'manual'), $6, $7, $8, coalesce($9, '{}'::jsonb), $10,
    coalesce($11, 'infinity'))"""
FIELDS = ("user_id", "amount", "direction", "reason", "source", "reference_type", "reference_id", "execution_id")
FIELDS += ("metadata", "idempotency_key", "expires_at")
NAMES = {"id", "user_id", "created_at", "hold_id", "reference_id", "execution_id", "entry_id", "resets_at"}
"""What differs between two runs of the same operations."""


def random_operations(dice: random.Random, users: list[uuid.UUID], count: int) -> list[dict[str, Any]]:
    """Mostly debits, and everything else that may stand between them; keys and references come back."""
    keys, references = [f"k{n}" for n in range(count // 2)], [uuid.UUID(int=n + 1) for n in range(4)]
    operations = []
    for _ in range(count):
        direction = dice.choices(["debit", "credit", "reserve", "release", "adjustment", "gift"], [12, 2, 3, 3, 2, 1])[
            0
        ]
        amount = 25 if direction in ("reserve", "release") else dice.choice([1, 2, 3, 10, 40, 300, -7, 0, None])
        operations.append(
            {
                "user_id": dice.choice(users),
                "amount": amount,
                "direction": direction,
                "reason": dice.choice([None, "because"]),
                "source": dice.choice([None, "promo"]),
                "reference_id": dice.choice(references) if direction in ("reserve", "release") else None,
                "metadata": dice.choice([None, {"n": 1}]),
                "idempotency_key": dice.choice([None, None, *keys]),
                "expires_at": dice.choice([None] * 9 + ["2020-01-01T00:00:00Z"]),
            }
        )
    return operations


async def one_by_one(operator: asyncpg.Connection, operations: list[dict[str, Any]]) -> list[Any]:
    """The outcomes in the shape of a batch."""
    outcomes: list[Any] = []
    for operation in operations:
        values = [operation.get(field) for field in FIELDS]
        try:
            statement = ONE.replace("$11", "$11::text::timestamptz").replace("$1,", "$1::text::uuid,")
            outcomes.append({"ok": True, "entry": await operator.fetchval(statement, str(values[0]), *values[1:])})
        except asyncpg.PostgresError as error:
            if not error.sqlstate.startswith("VS"):
                raise
            outcomes.append({"ok": False, "error": {"sqlstate": error.sqlstate, "message": str(error.args[0])}})
    return outcomes


def plain(outcome: Any) -> Any:
    """An outcome without what two runs of the same cannot share."""
    if outcome["ok"]:
        entry = {name: value for name, value in outcome["entry"].items() if name not in NAMES}
        return entry | {"held": outcome["entry"]["hold_id"] is not None}
    error = outcome["error"]
    # ids stand in no message
    return (error["sqlstate"], error["message"])


async def ledger(operator: asyncpg.Connection, user: uuid.UUID) -> list[Any]:
    rows = await operator.fetch(
        "select seq, amount, reserved_amount, available_after, reserved_after, borrowed_after, direction, reason,"
        " source, idempotency_key, request_hash, metadata, actor_id from user_token_ledger"
        " where user_id = $1 order by seq",
        user,
    )
    return [tuple(row) for row in rows]


async def events(operator: asyncpg.Connection, user: uuid.UUID) -> list[Any]:
    rows = await operator.fetch(
        "select type, payload - 'entry_id' as payload from events where user_id = $1 order by payload ->> 'seq', type",
        user,
    )
    return [tuple(row) for row in rows]


async def wallet(people: People, person: Person) -> Any:
    row = dict(await people.wallet(person))
    changing = ("user_id", "head", "last_entry_at", "created_at", "updated_at", "anchor_at")
    return {name: value for name, value in row.items() if name not in changing}


async def pairs_of_users(people: People) -> tuple[list[Person], list[Person]]:
    """Two sets of the same wallets: one that warns, one near its warning, one that is locked."""
    sets: tuple[list[Person], list[Person]] = ([], [])
    for chosen in sets:
        for balance in (120, 2050, 500):
            chosen.append(await people.user(balance=balance))
        for person, change in zip(
            chosen, ("enforcement_mode = 'warn'", "burn = burn", "status = 'locked'"), strict=True
        ):
            await people.operator.execute(
                f"update user_token_wallets set {change} where user_id = $1", person.identity.user_id
            )
    return sets


def renamed(operations: list[dict[str, Any]], users: list[Person]) -> list[dict[str, Any]]:
    """The operations on these users, whose numbers stand in them; number 3 is nobody."""
    ids = [*(user.identity.user_id for user in users), uuid.UUID(int=99)]
    return [operation | {"user_id": ids[operation["user_id"].int]} for operation in operations]


@pytest.mark.parametrize("seed", range(12))
async def test_a_batch_does_what_its_operations_do_one_by_one(seed: int, people: People) -> None:
    dice, (here, there) = random.Random(seed), await pairs_of_users(people)
    for _ in range(4):
        operations = random_operations(dice, [uuid.UUID(int=n) for n in (0, 0, 0, 1, 1, 2, 3)], dice.randint(1, 60))
        expected = await one_by_one(people.operator, renamed(operations, here))
        found = await people.operator.fetchval(BATCH, texts(renamed(operations, there)), False)
        assert [plain(outcome) for outcome in found] == [plain(outcome) for outcome in expected]
    for one, other in zip(here, there, strict=True):
        ids = [one.identity.user_id, other.identity.user_id]
        assert [row[:-3] for row in await ledger(people.operator, ids[0])] == [
            row[:-3] for row in await ledger(people.operator, ids[1])
        ]
        assert await wallet(people, one) == await wallet(people, other)
        assert await events(people.operator, ids[0]) == await events(people.operator, ids[1])
    await assert_books_are_clean(people.operator)


@pytest.mark.parametrize("seed", range(6))
async def test_calls_of_keys_in_a_batch_do_what_they_do_one_by_one(seed: int, people: People) -> None:
    dice, (here, there) = random.Random(seed), await pairs_of_users(people)
    keys = [token_hash((await people.user(role="admin", scopes=["admin"])).key) for _ in range(2)]
    for _ in range(4):
        operations = random_operations(dice, [uuid.UUID(int=n) for n in (0, 0, 0, 1, 1, 2, 3)], dice.randint(1, 40))
        signed = [{"function": "adjust", "key_hash": "\\x" + dice.choice(keys).hex()} for _ in operations]

        async def run(users: list[Person], size: int, operations: Any = operations, signed: Any = signed) -> Any:
            calls = [sign | call for sign, call in zip(signed, texts(renamed(operations, users)), strict=True)]
            parts = [calls[n : n + size] for n in range(0, len(calls), size)]
            answers = [await people.operator.fetchval("select vanilla.run_calls($1)", part) for part in parts]
            return [plain({"ok": "ok" in one, "entry": one.get("ok"), **one}) for part in answers for one in part]

        def plain(one: Any) -> Any:
            if not one["ok"] or "error" in one:
                return (one["error"]["sqlstate"], one["error"]["message"])
            return {name: value for name, value in one["entry"].items() if name not in NAMES}

        assert await run(there, 1000) == await run(here, 1)
    for one, other in zip(here, there, strict=True):
        rows = [await ledger(people.operator, person.identity.user_id) for person in (one, other)]
        assert rows[0] == rows[1]
        assert await wallet(people, one) == await wallet(people, other)


def texts(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = ("user_id", "reference_id", "execution_id")
    return [o | {name: str(o[name]) for name in ids if o.get(name)} for o in operations]


async def test_an_atomic_batch_is_undone_as_a_whole_and_says_which_operation_was_refused(people: People) -> None:
    first, second = await people.user(balance=100), await people.user(balance=5)
    operations = [
        {"user_id": str(first.identity.user_id), "amount": 10, "direction": "debit", "idempotency_key": "a"},
        {"user_id": str(first.identity.user_id), "amount": 10, "direction": "credit"},
        {"user_id": str(second.identity.user_id), "amount": 6, "direction": "debit"},
        {"user_id": str(first.identity.user_id), "amount": 10, "direction": "debit"},
    ]
    before = [await people.wallet(person) for person in (first, second)]
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await people.operator.fetchval(BATCH, operations, True)
    assert refusal.value.sqlstate == "VS402"
    assert '"operation": 2' in refusal.value.detail
    assert [await people.wallet(person) for person in (first, second)] == before
    await people.operator.fetchval(BATCH, operations[:2], True)
    assert (await people.wallet(first))["available_tokens"] == 100


@pytest.mark.parametrize(
    "operations",
    [
        None,
        {},
        [],
        "x",
        [5],
        [None],
        [[]],
        [{}] * 1001,
        {"user_id": "me"},
        {"amount": "many"},
        {"amount": 5.5},
        {"amount": "9" * 30},
        {"expires_at": "soon"},
        {"expires_at": "2026-99-99"},
        {"execution_id": 7},
    ],
)
@pytest.mark.parametrize("atomic", [False, True])
async def test_a_malformed_batch_is_refused_and_nothing_of_it_is_written(
    operations: Any, atomic: bool, people: People
) -> None:
    person = await people.user(balance=100)
    good = {"user_id": str(person.identity.user_id), "amount": 1, "direction": "debit"}
    if isinstance(operations, dict) and operations:
        bad = good | operations
        operations = [good, bad, good]
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await people.operator.fetchval(BATCH, operations, atomic)
    assert refusal.value.sqlstate == "VS400"
    assert (await people.wallet(person))["available_tokens"] == 100


# over HTTP --------------------------------------------------------------------------------------------------------
def debit(person: Person, amount: int, key: str, **more: Any) -> dict[str, Any]:
    common = {"user_id": str(person.identity.user_id), "amount": amount, "direction": "debit", "reason": "x"}
    return common | {"idempotency_key": key} | more


async def test_a_batch_over_http_answers_each_operation_and_a_repetition_writes_nothing(
    http: aiohttp.ClientSession, people: People
) -> None:
    person, other = await people.user(balance=100), await people.user(balance=1)
    stranger = await people.user(tenant_id=await people.tenant(), balance=9)
    admin = await admin_of(people, person)
    body = {
        "operations": [debit(person, 10, "a"), debit(other, 2, "b"), debit(stranger, 1, "c"), debit(person, 1, "d")]
    }
    for replayed in (False, True):
        answer, _ = await post(http, admin, "/wallets/batch", body)
        assert [one["ok"] for one in answer["data"]] == [True, False, False, True]
        assert [one["entry"]["replayed"] for one in answer["data"] if one["ok"]] == [replayed] * 2
        poor, unknown = answer["data"][1]["error"], answer["data"][2]["error"]
        assert (poor["code"], poor["needed"], poor["available"]) == ("insufficient_tokens", 2, 1)
        assert (unknown["code"], unknown["status"]) == ("not_found", 404)
    # the key of an operation is the key of the same adjustment sent by itself
    alone = {
        name: value for name, value in debit(person, 10, "a").items() if name not in ("user_id", "idempotency_key")
    }
    _, headers = await post(http, admin, f"/wallets/{person.identity.user_id}/adjust", alone, key="a")
    assert headers["idempotency-replayed"] == "true"
    assert (await people.wallet(person))["available_tokens"] == 89
    assert (await people.wallet(stranger))["available_tokens"] == 9


async def test_an_atomic_batch_over_http_is_refused_with_the_number_of_the_operation(
    http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user(balance=10)
    admin = await admin_of(people, person)
    body = {"operations": [debit(person, 6, "a"), debit(person, 6, "b")], "atomic": True}
    problem, _ = await post(http, admin, "/wallets/batch", body, status=402)
    assert (problem["code"], problem["operation"]) == ("insufficient_tokens", 1)
    assert (await people.wallet(person))["available_tokens"] == 10


@pytest.mark.parametrize("change", ["no key", "too many", "none"])
async def test_a_batch_over_http_that_cannot_be_run_is_refused(
    change: str, http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user(balance=5000)
    admin = await admin_of(people, person)
    operations = {
        "no key": [{n: v for n, v in debit(person, 1, "a").items() if n != "idempotency_key"}],
        "too many": [debit(person, 1, str(n)) for n in range(1001)],
        "none": [],
    }[change]
    problem, _ = await post(http, admin, "/wallets/batch", {"operations": operations}, status=400)
    assert problem["code"] == "invalid_request"
    await post(http, person, "/wallets/batch", {"operations": [debit(person, 1, "a")]}, status=403)
    assert (await people.wallet(person))["available_tokens"] == 5000


async def test_an_adjustment_with_a_key_is_in_the_audit_log_as_one_of_a_session_would_be(
    http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user(balance=0)
    admin = await admin_of(people, person)
    body = {"amount": 50, "direction": "credit", "reason": "x"}
    _, headers = await post(http, admin, f"/wallets/{person.identity.user_id}/adjust", body, key="k")
    row = await people.operator.fetchrow(
        "select * from audit_logs where action = 'wallet.adjusted' and target_id = $1 and actor_id = $2",
        person.identity.user_id,
        admin.identity.user_id,
    )
    assert (row["actor_role"], row["request_id"], row["ip"]) == ("admin", headers["x-request-id"], "127.0.0.1")
