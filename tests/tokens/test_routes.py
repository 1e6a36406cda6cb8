"""The wallet over HTTP: who sees what, who may change it, pages, replays."""

import uuid
from typing import Any

import aiohttp
import pytest

from tests.conftest import People, Person
from vanilla_saas.database.cursor import encode_cursor


async def get(http: aiohttp.ClientSession, person: Person, path: str, status: int = 200, **query: Any) -> Any:
    async with http.get(f"/api/v1{path}", headers=person.headers, params=query) as answer:
        body = await answer.json()
        assert answer.status == status, body
        return body


async def post(
    http: aiohttp.ClientSession, person: Person, path: str, body: Any, status: int = 200, key: str | None = None
) -> tuple[Any, Any]:
    headers = person.headers | ({"idempotency-key": key} if key else {})
    async with http.post(f"/api/v1{path}", headers=headers, json=body) as answer:
        content = await answer.json()
        assert answer.status == status, content
        return content, answer.headers


async def admin_of(people: People, person: Person) -> Person:
    return await people.user(role="admin", tenant_id=person.identity.tenant_id, scopes=["read", "admin"])


async def test_a_user_sees_their_own_wallet(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=1000)
    await people.operator.fetchval("select adjust_user_tokens($1, 300, 'reserve')", person.identity.user_id)
    wallet = await get(http, person, "/wallet")
    assert wallet["user_id"] == str(person.identity.user_id)
    assert (wallet["available"], wallet["reserved"], wallet["borrowed"], wallet["spent"]) == (700, 300, 0, 0)
    assert wallet["level"]["slug"] == "free"
    assert wallet["enforcement_mode"] == "hard"
    assert wallet["period_start"] < wallet["next_reset_at"]
    # below 20 percent of the allocation of 10,000
    assert (wallet["warn_below"], wallet["warning"]) == (2000, True)
    # the plan lapses first, so it was burned first
    assert [(grant["kind"], grant["remaining"], grant["expires_at"]) for grant in wallet["grants"]] == [
        ("base", 700, None)
    ]


async def test_a_wallet_with_enough_does_not_warn(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=2000)
    assert (await get(http, person, "/wallet"))["warning"] is False


async def test_an_admin_sees_wallets_of_the_tenant_and_no_other(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=5)
    admin = await admin_of(people, person)
    assert (await get(http, admin, f"/wallets/{person.identity.user_id}"))["available"] == 5
    stranger = await people.user(role="admin", tenant_id=await people.tenant(), scopes=["read", "admin"])
    other = await people.user()
    for outsider in (stranger, other):
        for path in ("/wallets/{}", "/ledger?user_id={}", "/executions?user_id={}"):
            problem = await get(http, outsider, path.format(person.identity.user_id), status=404)
            assert problem["code"] == "not_found"


async def test_a_key_without_the_scope_read_reads_nothing(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(scopes=["chat"])
    for path in ("/wallet", "/wallet/verify", "/ledger", "/executions", "/levels"):
        assert (await get(http, person, path, status=403))["need"] == "read"


# pages ------------------------------------------------------------------------------------------------------------
async def test_the_ledger_is_paged_newest_first_without_gap_or_repetition(
    http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user(balance=1000)
    for _ in range(7):
        await people.operator.fetchval("select adjust_user_tokens($1, 1, 'debit')", person.identity.user_id)
    last = (await people.wallet(person))["seq"]
    seen: list[int] = []
    query: dict[str, Any] = {"limit": 4}
    while True:
        page = await get(http, person, "/ledger", **query)
        assert len(page["data"]) <= 4
        seen += [entry["seq"] for entry in page["data"]]
        if len(seen) == 4:  # rows that arrive while somebody turns pages move nothing
            await people.operator.fetchval("select adjust_user_tokens($1, 1, 'debit')", person.identity.user_id)
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == list(range(last, 0, -1))


async def test_the_ledger_is_filtered_by_direction_and_by_execution(
    http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user(balance=1000)
    execution = uuid.uuid4()
    for direction in ("debit", "debit", "reserve"):
        await people.operator.fetchval(
            "select adjust_user_tokens($1, 3, $2, p_execution_id => $3)", person.identity.user_id, direction, execution
        )
        await people.operator.fetchval("select adjust_user_tokens($1, 1, 'debit')", person.identity.user_id)
    debits = await get(http, person, "/ledger", direction="debit")
    assert [entry["amount"] for entry in debits["data"]] == [-1, -1, -3, -1, -3]
    of_call = await get(http, person, "/ledger", execution_id=str(execution))
    assert [entry["direction"] for entry in of_call["data"]] == ["reserve", "debit", "debit"]
    both = await get(http, person, "/ledger", execution_id=str(execution), direction="reserve", limit=1)
    assert [entry["reserved_amount"] for entry in both["data"]] == [3]
    assert both["next_cursor"] is None


async def test_executions_are_ones_own_or_for_an_admin_those_of_the_tenant(
    http: aiohttp.ClientSession, people: People
) -> None:
    tenant = await people.tenant()
    first, second = await people.user(tenant_id=tenant), await people.user(tenant_id=tenant)
    admin = await admin_of(people, first)
    for n in range(6):
        owner = (first, second)[n % 2]
        await people.operator.execute(
            "insert into ai_executions (tenant_id, user_id, provider, model, status, input_tokens, created_at)"
            # two of the same moment: the id decides
            " values ($1, $2, 'sandbox', 'm', 'failed', $3, date_trunc('month', now()) + $4 * interval '1 second')",
            tenant,
            owner.identity.user_id,
            n,
            n // 2,
        )

    async def all_of(person: Person, **query: Any) -> list[int]:
        seen, cursor = [], {}
        while True:
            page = await get(http, person, "/executions", limit=2, **query, **cursor)
            seen += [row["input_tokens"] for row in page["data"]]
            if page["next_cursor"] is None:
                return seen
            cursor = {"cursor": page["next_cursor"]}

    assert await all_of(first) == [4, 2, 0]
    assert await all_of(admin, user_id=str(second.identity.user_id)) == [5, 3, 1]
    everything = await all_of(admin)
    assert sorted(everything) == [0, 1, 2, 3, 4, 5]
    assert [n // 2 for n in everything] == [2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "cursor",
    ["x", "!!!!", "é", encode_cursor(["1"]), encode_cursor([1, 2]), encode_cursor([2**70 // 2**7]), "bnVsbA", "e30"],
)
async def test_a_cursor_that_is_not_ours_is_refused(http: aiohttp.ClientSession, people: People, cursor: str) -> None:
    person = await people.user()
    problem = await get(http, person, "/ledger", status=400, cursor=cursor)
    assert problem["code"] == "invalid_request"
    problem = await get(http, person, "/executions", status=400, cursor=cursor)
    assert problem["param"] == "cursor"


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 201}, {"direction": "gift"}, {"user_id": "me"}])
async def test_a_malformed_query_is_refused(http: aiohttp.ClientSession, people: People, query: dict[str, Any]) -> None:
    problem = await get(http, await people.user(), "/ledger", status=400, **query)
    assert problem["param"] == f"{next(iter(query))}"


# changes ----------------------------------------------------------------------------------------------------------
async def test_an_admin_adjusts_once_for_each_key(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=0)
    admin, path = await admin_of(people, person), f"/wallets/{person.identity.user_id}/adjust"
    body = {"amount": 50, "direction": "credit", "reason": "a gift", "source": "promo", "metadata": {"campaign": 7}}
    first, headers = await post(http, admin, path, body, key="k1")
    assert first["replayed"] is False
    assert "idempotency-replayed" not in headers
    again, headers = await post(http, admin, path, body, key="k1")
    assert headers["idempotency-replayed"] == "true"
    assert again == first | {"replayed": True}
    problem, _ = await post(http, admin, path, body | {"amount": 51}, status=409, key="k1")
    assert problem["code"] == "idempotency_key_reused"
    await post(http, admin, path, body, key="k2")
    assert (await people.wallet(person))["available_tokens"] == 100
    entry = (await get(http, person, "/ledger"))["data"][0]
    assert (entry["actor_id"], entry["reason"]) == (str(admin.identity.user_id), "a gift")
    audited = await people.operator.fetchval(
        "select count(*) from audit_logs where action = 'wallet.adjusted' and target_id = $1 and actor_id = $2",
        person.identity.user_id,
        admin.identity.user_id,
    )
    assert audited == 2


async def test_an_adjustment_without_a_key_is_refused(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=0)
    admin, path = await admin_of(people, person), f"/wallets/{person.identity.user_id}/adjust"
    problem, _ = await post(http, admin, path, {"amount": 5, "direction": "credit", "reason": "x"}, status=400)
    assert (problem["code"], problem["param"]) == ("invalid_request", "Idempotency-Key")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"amount": 0}, 400, "invalid_request"),
        ({"amount": -5}, 400, "invalid_request"),  # a negative credit
        ({"amount": 10**16}, 400, "invalid_request"),
        ({"amount": "5.5"}, 400, "invalid_request"),
        ({"direction": "settle"}, 400, "invalid_request"),
        ({"reason": " "}, 400, "invalid_request"),
        ({"reason": "a\0b"}, 400, "invalid_request"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, 400, "invalid_request"),
        ({"direction": "debit"}, 402, "insufficient_tokens"),
        ({"direction": "release"}, 404, "not_found"),
    ],
)
async def test_a_refused_adjustment_says_why(
    http: aiohttp.ClientSession, people: People, change: dict[str, Any], status: int, code: str
) -> None:
    person = await people.user(balance=0)
    admin, path = await admin_of(people, person), f"/wallets/{person.identity.user_id}/adjust"
    body = {"amount": 5, "direction": "credit", "reason": "x"} | change
    problem, _ = await post(http, admin, path, body, status=status, key="k")
    assert problem["code"] == code
    assert (await people.wallet(person))["available_tokens"] == 0


async def test_only_admins_of_the_tenant_change_wallets(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=0)
    stranger = await people.user(role="admin", tenant_id=await people.tenant(), scopes=["admin"])
    narrow = await people.user(role="admin", scopes=["read"])  # an admin's key without the scope
    changes: list[tuple[str, Any]] = [
        ("adjust", {"amount": 5, "direction": "credit", "reason": "x"}),
        ("level", {"level_id": str(uuid.uuid4())}),
        ("status", {"status": "locked", "reason": "x"}),
    ]
    for path, body in changes:
        for caller, status in ((person, 403), (narrow, 403), (stranger, 404)):
            await post(http, caller, f"/wallets/{person.identity.user_id}/{path}", body, status=status, key="k")
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["status"]) == (0, "active")


async def test_an_admin_moves_a_user_to_a_level_once_a_period(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    admin = await admin_of(people, person)
    levels = {level["slug"]: level for level in (await get(http, admin, "/levels"))["data"]}
    assert levels["basic"]["policy"]["monthly_allocation"] == 200_000
    path = f"/wallets/{person.identity.user_id}/level"
    granted, _ = await post(http, admin, path, {"level_id": levels["basic"]["id"]})
    assert granted["period_granted"] == 200_000
    granted, _ = await post(http, admin, path, {"level_id": levels["basic"]["id"]})
    assert granted["period_granted"] == 0
    await post(http, admin, path, {"level_id": str(uuid.uuid4())}, status=404)
    assert (await get(http, person, "/wallet"))["level"]["slug"] == "basic"


async def test_members_see_levels_and_only_admins_their_policies(http: aiohttp.ClientSession, people: People) -> None:
    levels = (await get(http, await people.user(), "/levels"))["data"]
    assert [level["slug"] for level in levels] == ["free", "basic", "premium", "enterprise"]
    assert all(level["policy"] is None for level in levels)


async def test_an_admin_locks_and_opens_a_wallet(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=10)
    admin, path = await admin_of(people, person), f"/wallets/{person.identity.user_id}"
    wallet, _ = await post(http, admin, f"{path}/status", {"status": "locked", "reason": "fraud"})
    assert wallet["status"] == "locked"
    debit = {"amount": 5, "direction": "debit", "reason": "x"}
    problem, _ = await post(http, admin, f"{path}/adjust", debit, status=403, key="k")
    assert problem["code"] == "wallet_inactive"
    await post(http, admin, f"{path}/status", {"status": "active", "reason": "cleared"})
    await post(http, admin, f"{path}/adjust", debit, key="k")


async def test_everyone_verifies_their_own_ledger(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=10)
    entries = (await people.wallet(person))["seq"]
    assert await get(http, person, "/wallet/verify") == {"verified": True, "entries": entries, "problems": []}
    # edited behind the functions' back, and put right again
    edit = "update user_token_ledger set reason = $2 where user_id = $1 and seq = 2 returning reason"
    reason = await people.operator.fetchval(
        "select reason from user_token_ledger where user_id = $1 and seq = 2", person.identity.user_id
    )
    await people.operator.execute(edit, person.identity.user_id, "edited")
    try:
        found = await get(http, person, "/wallet/verify")
        assert found["verified"] is False
        assert [problem["seq"] for problem in found["problems"]] == [2]
    finally:
        await people.operator.execute(edit, person.identity.user_id, reason)
