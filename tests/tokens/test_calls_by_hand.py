"""What an admin does by hand to the hold of a running model call: the call is paid for all the same, and once."""

import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import People, Person
from tests.processes import assert_books_are_clean

ADMIT = "select vanilla.admit_call($1, null, null, 'sandbox-small', 10, 10, 40, 1, $2, false, interval '10 minutes')"
SETTLE = "select vanilla.settle_call($1, $2, 'succeeded', 10, $3, 0, 0)"
BUDGET = 1000


@pytest.fixture
async def person(people: People) -> Person:
    made = await people.user(balance=200)
    await people.operator.execute("update api_keys set budget_tokens = $1 where id = $2", BUDGET, made.key_id)
    return made


async def admitted(people: People, person: Person) -> dict[str, Any]:
    hash_ = await people.operator.fetchval("select key_hash from api_keys where id = $1", person.key_id)
    return await people.operator.fetchval(ADMIT, hash_, uuid.uuid4())


async def used(people: People, person: Person) -> int:
    return await people.operator.fetchval("select used_tokens from api_keys where id = $1", person.key_id)


async def figures(people: People, person: Person) -> tuple[int, int, int]:
    wallet = await people.wallet(person)
    return wallet["available_tokens"], wallet["reserved_tokens"], wallet["borrowed_tokens"]


async def executions(people: People, person: Person) -> list[tuple[Any, ...]]:
    rows = await people.operator.fetch(
        "select status, error_code, charged_tokens from ai_executions where user_id = $1", person.identity.user_id
    )
    return [tuple(row) for row in rows]


async def release(people: People, call: dict[str, Any], way: str) -> None:
    if way == "release_token_hold":
        await people.operator.fetchval("select release_token_hold($1, 'it hangs')", call["hold_id"])
    else:
        await people.operator.fetchval(
            "select adjust_user_tokens($1, $2, 'release', p_reference_id => $3)",
            call["user_id"],
            call["reserved"],
            call["execution_id"],
        )


@pytest.mark.parametrize("way", ["release_token_hold", "adjust_user_tokens"])
async def test_a_call_whose_hold_was_released_by_hand_is_charged_when_it_ends_and_once(
    way: str, people: People, person: Person
) -> None:
    call = await admitted(people, person)
    assert (await figures(people, person), await used(people, person)) == ((150, 50, 0), 50)
    await release(people, call, way)
    # the tokens are back at once, with the key's budget, and the list of calls says why
    assert (await figures(people, person), await used(people, person)) == ((200, 0, 0), 0)
    assert await executions(people, person) == [("abandoned", "hold_released", 0)]

    settled = await people.operator.fetchval(SETTLE, person.identity.tenant_id, call["hold_id"], 25)
    assert (settled["settled"], settled["charged"]) == (True, 35)
    assert (await figures(people, person), await used(people, person)) == ((165, 0, 0), 35)
    assert await executions(people, person) == [("succeeded", None, 35)]

    again = await people.operator.fetchval(SETTLE, person.identity.tenant_id, call["hold_id"], 25)
    assert again == {"settled": False}
    assert await figures(people, person) == (165, 0, 0)
    await assert_books_are_clean(people.operator)


async def test_what_a_released_call_used_is_debt_when_the_tokens_were_spent_meanwhile(
    people: People, person: Person
) -> None:
    call = await admitted(people, person)
    await release(people, call, "release_token_hold")
    await people.operator.fetchval("select adjust_user_tokens($1, 190, 'debit')", person.identity.user_id)
    await people.operator.fetchval(SETTLE, person.identity.tenant_id, call["hold_id"], 25)
    assert await figures(people, person) == (0, 0, 25)
    await assert_books_are_clean(people.operator)


async def test_a_released_call_that_the_provider_did_not_charge_costs_nothing(people: People, person: Person) -> None:
    call = await admitted(people, person)
    await release(people, call, "release_token_hold")
    failed = "select vanilla.settle_call($1, $2, 'failed', 0, 0, 0, 0, false, 'upstream_error')"
    answer = await people.operator.fetchval(failed, person.identity.tenant_id, call["hold_id"])
    assert answer == {"settled": False}
    assert (await figures(people, person), await used(people, person)) == ((200, 0, 0), 0)
    assert await executions(people, person) == [("abandoned", "hold_released", 0)]
    await assert_books_are_clean(people.operator)


@pytest.mark.parametrize(("actual", "final"), [(0, True), (1, True), (1, False)])
async def test_the_hold_of_a_call_is_not_settled_by_hand_which_would_make_it_free_or_paid_twice(
    actual: int, final: bool, people: People, person: Person
) -> None:
    call = await admitted(people, person)
    settle = "select settle_user_tokens($1, $2, p_final => $3)"
    with pytest.raises(asyncpg.PostgresError, match="belongs to a model call") as refused:
        await people.operator.fetchval(settle, call["hold_id"], actual, final)
    assert refused.value.sqlstate == "VS409"
    assert await figures(people, person) == (150, 50, 0)
    settled = await people.operator.fetchval(SETTLE, person.identity.tenant_id, call["hold_id"], 25)
    assert settled["charged"] == 35
    assert (await figures(people, person), await used(people, person)) == ((165, 0, 0), 35)
    await assert_books_are_clean(people.operator)
