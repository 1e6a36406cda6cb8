"""Grants, holds and policies over HTTP: who sees and changes what, pages, replays, refusals."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from tests.conftest import People, Person
from tests.tokens.test_routes import admin_of, get, post

GIFT = {"amount": 50, "kind": "promo", "reason": "a gift"}


def later(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


async def put(http: aiohttp.ClientSession, person: Person, path: str, body: Any, status: int = 200) -> Any:
    async with http.put(f"/api/v1{path}", headers=person.headers, json=body) as answer:
        content = await answer.json()
        assert answer.status == status, content
        return content


async def hold_of(people: People, person: Person, amount: int = 60) -> str:
    entry = await people.operator.fetchval(
        "select adjust_user_tokens($1, $2, 'reserve')", person.identity.user_id, amount
    )
    return str(entry["hold_id"])


async def pages(http: aiohttp.ClientSession, person: Person, path: str, **query: Any) -> list[Any]:
    seen, cursor = [], {}
    while True:
        page = await get(http, person, path, limit=2, **query, **cursor)
        assert len(page["items"]) <= 2
        seen += page["items"]
        if page["next_cursor"] is None:
            return seen
        cursor = {"cursor": page["next_cursor"]}


async def test_an_admin_gives_a_grant_once_for_each_key(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=0)
    admin, path = await admin_of(people, person), f"/wallets/{person.identity.user_id}/grants"
    body = GIFT | {"expires_at": later(3), "priority": 5, "metadata": {"campaign": 7}}
    first, headers = await post(http, admin, path, body, key="k1")
    assert "idempotency-replayed" not in headers
    assert (first["kind"], first["state"], first["priority"], first["remaining"]) == ("promo", "active", 5, 50)
    again, headers = await post(http, admin, path, body, key="k1")
    assert headers["idempotency-replayed"] == "true"
    assert again == first | {"replayed": True}
    problem, _ = await post(http, admin, path, body | {"amount": 51}, status=409, key="k1")
    assert problem["code"] == "idempotency_key_reused"
    wallet = await get(http, person, "/wallet")
    assert wallet["available"] == 50
    assert [grant["id"] for grant in wallet["grants"]] == [first["id"]]


async def test_a_grant_is_voided_once_for_each_key(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=0)
    admin = await admin_of(people, person)
    grant, _ = await post(http, admin, f"/wallets/{person.identity.user_id}/grants", GIFT, key="k")
    path = f"/grants/{grant['id']}/void"
    voided, _ = await post(http, admin, path, {"reason": "mistake"}, key="v")
    assert (voided["state"], voided["void_reason"], voided["expires_at"]) == ("voided", "mistake", None)
    again, headers = await post(http, admin, path, {"reason": "mistake"}, key="v")
    assert (again["replayed"], headers["idempotency-replayed"]) == (True, "true")
    problem, _ = await post(http, admin, path, {"reason": "mistake"}, status=409, key="v2")
    assert (problem["code"], problem["state"]) == ("invalid_state", "voided")
    assert (await people.wallet(person))["available_tokens"] == 0


async def test_grants_are_listed_in_every_state_with_what_is_left(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=0)
    admin = await admin_of(people, person)
    path = f"/wallets/{person.identity.user_id}/grants"
    promo, _ = await post(http, admin, path, GIFT, key="1")
    trial, _ = await post(http, admin, path, GIFT | {"kind": "trial", "expires_at": later(5)}, key="2")
    coming, _ = await post(http, admin, path, GIFT | {"effective_at": later(1)}, key="3")
    gone, _ = await post(http, admin, path, GIFT | {"kind": "refund"}, key="4")
    await post(http, admin, f"/grants/{gone['id']}/void", {"reason": "x"}, key="5")
    await people.operator.fetchval("select adjust_user_tokens($1, 60, 'debit')", person.identity.user_id)
    seen = await pages(http, person, "/grants")
    by_id = {grant["id"]: grant for grant in seen}
    assert len(by_id) == len(seen)
    assert [grant["created_at"] for grant in seen] == sorted((g["created_at"] for g in seen), reverse=True)
    # 50 of the trial, then 10 of the promo: burned, though no grant has been written
    left = {name: by_id[grant["id"]]["remaining"] for name, grant in (("promo", promo), ("trial", trial))}
    assert left == {"promo": 40, "trial": 0}
    of = {"user_id": str(person.identity.user_id)}
    assert [g["id"] for g in await pages(http, admin, "/grants", state="scheduled", **of)] == [coming["id"]]
    assert [g["id"] for g in await pages(http, person, "/grants", state="voided")] == [gone["id"]]
    assert [g["id"] for g in await pages(http, person, "/grants", kind="trial")] == [trial["id"]]


async def test_a_hold_is_extended_charged_in_part_and_finally(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=100)
    admin, hold = await admin_of(people, person), await hold_of(people, person)
    until = datetime.now(UTC) + timedelta(days=2)
    extended, _ = await post(http, admin, f"/holds/{hold}/extend", {"expires_at": until.isoformat()})
    assert datetime.fromisoformat(extended["expires_at"]) == until
    path = f"/holds/{hold}/settle"
    part, _ = await post(http, admin, path, {"actual": 10, "final": False}, key="p")
    assert (part["amount"], part["reserved_amount"]) == (0, -10)
    again, headers = await post(http, admin, path, {"actual": 10, "final": False}, key="p")
    assert (again, headers["idempotency-replayed"]) == (part | {"replayed": True}, "true")
    problem, _ = await post(http, admin, path, {"actual": 51, "final": False}, status=409, key="q")
    assert problem["amount"] == 50
    [open_hold] = (await get(http, person, "/holds"))["items"]
    assert (open_hold["id"], open_hold["amount"], open_hold["settled"]) == (hold, 50, 10)
    assert datetime.fromisoformat(open_hold["expires_at"]) == until
    last, _ = await post(http, admin, path, {"actual": 20}, key="r")
    assert last["available_tokens"] == 70
    assert (await get(http, person, "/holds"))["items"] == []


async def test_a_hold_is_released_once_for_each_key(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=100)
    admin, hold = await admin_of(people, person), await hold_of(people, person)
    first, _ = await post(http, admin, f"/holds/{hold}/release", {"reason": "given up"}, key="k")
    again, headers = await post(http, admin, f"/holds/{hold}/release", {"reason": "given up"}, key="k")
    assert (again, headers["idempotency-replayed"]) == (first | {"replayed": True}, "true")
    problem, _ = await post(http, admin, f"/holds/{hold}/release", {}, status=409, key="k2")
    assert problem["state"] == "released"
    assert (await people.wallet(person))["available_tokens"] == 100


async def test_holds_are_paged_newest_first_in_every_state(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=100)
    admin = await admin_of(people, person)
    holds = [await hold_of(people, person, n) for n in range(1, 8)]
    await post(http, admin, f"/holds/{holds[2]}/settle", {"actual": 1}, key="a")
    await post(http, admin, f"/holds/{holds[4]}/release", {}, key="b")
    newest_first = holds[::-1]
    assert [h["id"] for h in await pages(http, person, "/holds", state="all")] == newest_first
    assert [h["id"] for h in await pages(http, person, "/holds")] == [
        h for h in newest_first if h not in (holds[2], holds[4])
    ]
    assert [h["id"] for h in await pages(http, person, "/holds", state="settled")] == [holds[2]]
    of = {"user_id": str(person.identity.user_id)}
    assert [h["id"] for h in await pages(http, admin, "/holds", state="released", **of)] == [holds[4]]


async def test_every_money_route_asks_for_a_key(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=100)
    admin, hold = await admin_of(people, person), await hold_of(people, person)
    bodies: dict[str, Any] = {
        f"/wallets/{person.identity.user_id}/grants": GIFT,
        f"/grants/{uuid.uuid4()}/void": {"reason": "x"},
        f"/holds/{hold}/settle": {"actual": 1},
        f"/holds/{hold}/release": {},
    }
    for path, body in bodies.items():
        problem, _ = await post(http, admin, path, body, status=400)
        assert problem["param"] == "Idempotency-Key"
    assert (await people.wallet(person))["reserved_tokens"] == 60


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 0},
        {"amount": -5},
        {"amount": 10**15 + 1},
        {"amount": "much"},
        {"kind": "plan"},
        {"priority": 101},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "2030-01-01T00:00:00"},  # of which zone?
        {"effective_at": later(3), "expires_at": later(2)},
        {"reason": " "},
        {"reason": "a\0b"},
        {"metadata": []},
        {"expire_at": later(2)},  # a misspelt field is not passed over
    ],
)
async def test_a_malformed_grant_is_refused(
    http: aiohttp.ClientSession, people: People, change: dict[str, Any]
) -> None:
    person = await people.user(balance=0)
    admin = await admin_of(people, person)
    path = f"/wallets/{person.identity.user_id}/grants"
    problem, _ = await post(http, admin, path, GIFT | change, status=400, key="k")
    assert problem["code"] == "invalid_request"
    assert (await people.wallet(person))["available_tokens"] == 0


async def test_only_admins_of_the_tenant_change_what_others_may_not_even_see(
    http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user(balance=100)
    admin, hold = await admin_of(people, person), await hold_of(people, person)
    user_id = person.identity.user_id
    grant, _ = await post(http, admin, f"/wallets/{user_id}/grants", GIFT, key="k")
    level = str((await people.wallet(person))["level_id"])
    stranger = await people.user("admin", await people.tenant(), scopes=["read", "admin"])
    narrow = await people.user("admin", scopes=["read"])
    before = await get(http, person, "/wallet")
    changes: list[tuple[str, str, Any]] = [
        ("/wallets/{}/grants", str(user_id), GIFT),
        ("/grants/{}/void", grant["id"], {"reason": "x"}),
        ("/holds/{}/settle", hold, {"actual": 1}),
        ("/holds/{}/release", hold, {}),
        ("/holds/{}/extend", hold, {"expires_at": later(1)}),
    ]
    for path, target, body in changes:
        for caller in (person, narrow):
            problem, _ = await post(http, caller, path.format(target), body, status=403, key="k")
            assert problem["code"] == "forbidden"
        theirs, _ = await post(http, stranger, path.format(target), body, status=404, key="k")
        nobodys, _ = await post(http, stranger, path.format(uuid.uuid4()), body, status=404, key="k")
        assert theirs["detail"] == nobodys["detail"]
    policy = {"base_allocation": 1, "monthly_allocation": 1}
    for path, body in ((f"/wallets/{user_id}/policy", {}), (f"/levels/{level}/policy", policy)):
        await put(http, person, path, body, 403)
        await put(http, stranger, path, body, 404)
        await get(http, stranger, path, 404)
    await get(http, person, f"/levels/{level}/policy", 404)  # policies of levels are for admins
    for path in ("/grants", "/holds", "/balance?at=2026-01-01T00:00:00Z"):
        joint = "&" if "?" in path else "?"
        await get(http, stranger, f"{path}{joint}user_id={user_id}", 404)
        await get(http, await people.user(scopes=["chat"]), path, 403)
    assert await get(http, person, "/wallet") == before


async def test_a_users_exceptions_are_set_as_a_whole_and_shown_to_the_user(
    http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user(tenant_id=await people.tenant())
    admin, path = await admin_of(people, person), f"/wallets/{person.identity.user_id}/policy"
    plain = await get(http, person, path)
    assert (plain["monthly_allocation"], plain["period"]) == (10_000, "month")
    assert set(plain["exceptions"].values()) == {None}
    policy = await put(http, admin, path, {"monthly_allocation": 5, "enforcement_mode": "warn"})
    assert (policy["monthly_allocation"], policy["enforcement_mode"]) == (5, "warn")
    assert policy["exceptions"]["monthly_allocation"] == 5
    wallet = await get(http, person, "/wallet")
    assert wallet["policy"] == policy == await get(http, person, path)
    assert wallet["enforcement_mode"] == "warn"
    policy = await put(http, admin, path, {"rollover_percent": 7})
    assert (policy["monthly_allocation"], policy["rollover_percent"]) == (10_000, 7)
    assert await put(http, admin, path, {}) == plain
    for body in ({"rollover_percent": 101}, {"monthly_cap": -1}, {"period": "day"}, {"enforcement_mode": "soft"}):
        await put(http, admin, path, body, 400)
    assert await get(http, person, path) == plain


async def test_an_admin_sets_the_policy_of_a_level(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    admin = await admin_of(people, person)
    path = f"/levels/{(await people.wallet(person))['level_id']}/policy"
    body = {"base_allocation": 1, "monthly_allocation": 2, "period": "week", "rollover_cap": 3, "monthly_cap": None}
    policy = await put(http, admin, path, body)
    assert policy == await get(http, admin, path)
    assert {name: policy[name] for name in body} == body
    assert (await get(http, person, "/wallet"))["policy"]["period"] == "week"
    await put(http, admin, path, body | {"period": "decade"}, 400)
    await put(http, admin, f"/levels/{uuid.uuid4()}/policy", body, 404)
