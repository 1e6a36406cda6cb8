"""Anchors: what only they find, what a damaged file says, and who may have which."""

import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import orjson
import pytest

from tests.conftest import People, Person
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tokens.anchor_file import Reader

REWRITE = """
do $$
declare
    v_row public.user_token_ledger;
    v_head bytea := '';
begin
    for v_row in select * from public.user_token_ledger where user_id = '{user}' order by seq loop
        v_head := vanilla.ledger_hash(v_head, v_row);
        update public.user_token_ledger set hash = v_head where user_id = '{user}' and seq = v_row.seq;
    end loop;
    update public.user_token_wallets set head = v_head where user_id = '{user}';
end $$
"""


async def admin_of(people: People, tenant_id: uuid.UUID) -> Person:
    return await people.user("admin", tenant_id, scopes=["read", "admin"])


async def download(http: aiohttp.ClientSession, person: Person, status: int = 200) -> bytes:
    async with http.get("/api/v1/ledger/anchor", headers=person.headers) as answer:
        body = await answer.read()
        assert answer.status == status, body
        return body


async def check(http: aiohttp.ClientSession, person: Person, file: bytes, status: int = 200) -> Any:
    async with http.post("/api/v1/ledger/anchor/check", headers=person.headers, data=file) as answer:
        body = await answer.json()
        assert answer.status == status, body
        return body


def sealed(*lines: dict[str, Any]) -> bytes:
    body = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    seal = {"count": len(lines), "at": "2026-03-01T00:00:00Z", "sha256": hashlib.sha256(body).hexdigest()}
    return body + orjson.dumps(seal) + b"\n"


@asynccontextmanager
async def rewritten(operator: asyncpg.Connection, person: Person) -> AsyncIterator[None]:
    """A superuser has changed an early reason and sealed the whole chain anew; put back afterwards."""
    user = person.identity.user_id
    change = "update user_token_ledger set reason = $2 where user_id = $1 and seq = 1"
    kept = await operator.fetchval("select reason from user_token_ledger where user_id = $1 and seq = 1", user)
    try:
        await operator.execute(change, user, "never happened")
        await operator.execute(REWRITE.format(user=user))
        yield
    finally:
        await operator.execute(change, user, kept)
        await operator.execute(REWRITE.format(user=user))


async def test_a_rewritten_chain_is_found_by_the_anchor_alone(
    http: aiohttp.ClientSession, people: People, operator: asyncpg.Connection
) -> None:
    tenant_id = await people.tenant()
    admin, person = await admin_of(people, tenant_id), await people.user(tenant_id=tenant_id, balance=77)
    file = await download(http, admin)
    assert (await check(http, admin, file))["verified"] is True
    await operator.fetchval("select adjust_user_tokens($1, 1, 'debit')", person.identity.user_id)
    assert (await check(http, admin, file))["verified"] is True  # a chain that went on is the same chain
    async with rewritten(operator, person):
        assert not await operator.fetch("select * from verify_token_ledger($1)", person.identity.user_id)
        assert not await operator.fetch("select * from reconcile_token_wallets()")
        found = await check(http, admin, file)
    assert (found["verified"], found["found"], found["checked"], found["chains"]) == (False, 1, 2, 2)
    [problem] = found["problems"]
    assert problem["user_id"] == str(person.identity.user_id)
    assert problem["problem"] == "the chain up to here was rewritten"


async def test_a_chain_that_is_gone_is_found(http: aiohttp.ClientSession, people: People) -> None:
    tenant_id = await people.tenant()
    admin = await admin_of(people, tenant_id)
    ghost = {"tenant_id": str(tenant_id), "user_id": str(uuid.uuid4()), "seq": 3, "hash": "ab" * 32}
    found = await check(http, admin, sealed(ghost))
    assert [problem["problem"] for problem in found["problems"]] == ["the entry is gone"]


async def test_an_admin_anchors_the_tenant_and_a_super_admin_everything(
    http: aiohttp.ClientSession, people: People, operator: asyncpg.Connection
) -> None:
    tenant_id = await people.tenant()
    admin, root = await admin_of(people, tenant_id), await superadmin(people)
    other = await people.user(tenant_id=await people.tenant())
    own, all_chains = await download(http, admin), await download(http, root)
    assert {orjson.loads(line)["tenant_id"] for line in own.splitlines()[:-1]} == {str(tenant_id)}
    users = {orjson.loads(line)["user_id"] for line in all_chains.splitlines()[:-1]}
    assert {str(admin.identity.user_id), str(other.identity.user_id)} <= users
    assert len(users) == await operator.fetchval("select count(*) from user_token_wallets where seq > 0")
    # an admin who is given the whole file learns of the own tenant's chains only
    async with rewritten(operator, other):
        assert (await check(http, root, all_chains))["found"] == 1
        found = await check(http, admin, all_chains)
    assert (found["verified"], found["checked"], found["chains"]) == (True, 1, len(users))


async def test_only_admins_have_anchors_and_proofs(http: aiohttp.ClientSession, people: People) -> None:
    user = await people.user()
    narrow = await people.user("admin", scopes=["read"])
    for person in (user, narrow):
        await download(http, person, 403)
        await check(http, person, sealed(), 403)
        for path in ("verify", "reconcile"):
            async with http.get(f"/api/v1/ledger/{path}", headers=person.headers) as answer:
                assert answer.status == 403


async def test_admins_verify_and_reconcile_their_tenant(
    http: aiohttp.ClientSession, people: People, operator: asyncpg.Connection
) -> None:
    tenant_id = await people.tenant()
    admin, person = await admin_of(people, tenant_id), await people.user(tenant_id=tenant_id, balance=10)
    stranger = await admin_of(people, await people.tenant())

    async def ask(who: Person, path: str) -> Any:
        async with http.get(f"/api/v1/ledger/{path}", headers=who.headers) as answer:
            assert answer.status == 200
            return await answer.json()

    assert await ask(admin, "verify") == {"verified": True, "problems": []}
    assert await ask(admin, "reconcile") == {"clean": True, "differences": []}
    edit = "update user_token_wallets set available_tokens = available_tokens + $2 where user_id = $1"
    reason = "update user_token_ledger set reason = reason || $2 where user_id = $1 and seq = 1"
    await operator.execute(edit, person.identity.user_id, 7)
    await operator.execute(reason, person.identity.user_id, "!")
    try:
        [broken] = (await ask(admin, "verify"))["problems"]
        assert (broken["user_id"], broken["seq"]) == (str(person.identity.user_id), 1)
        differences = (await ask(admin, "reconcile"))["differences"]
        assert {row["found"] - row["expected"] for row in differences} == {7}
        assert (await ask(stranger, "verify"))["verified"] is True
        assert (await ask(stranger, "reconcile"))["clean"] is True
    finally:
        await operator.execute(edit, person.identity.user_id, -7)
        await operator.execute(
            "update user_token_ledger set reason = rtrim(reason, $2) where user_id = $1 and seq = 1",
            person.identity.user_id,
            "!",
        )


async def superadmin(people: People) -> Person:
    platform = uuid.UUID(int=0)
    return await people.user("superadmin", platform, scopes=["read", "admin"])


CHAIN = {"tenant_id": str(uuid.UUID(int=1)), "user_id": str(uuid.UUID(int=2)), "seq": 1, "hash": "0" * 64}
WHOLE = sealed(CHAIN, CHAIN | {"seq": 2})


def without_line(n: int) -> bytes:
    lines = WHOLE.splitlines(keepends=True)
    del lines[n]
    return b"".join(lines)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "it ends before its last line"),
        (without_line(2), "it ends before its last line"),
        (without_line(0), "not those that the last line seals"),
        (WHOLE[:-1], "line 3 is cut off"),
        (WHOLE[:-20], "line 3 is cut off"),
        (WHOLE.replace(b'"seq":2', b'"seq":3'), "not those that the last line seals"),
        (WHOLE.replace(b'"count":2', b'"count":1'), "not those that the last line seals"),
        (WHOLE.replace(b'"at":"2026', b'"at":"soon'), "its last line has no time"),
        (WHOLE + WHOLE, "line 4 follows the last line"),
        (b"\n" + WHOLE, "line 1 is not JSON"),
        (b"[]\n", "line 1 is not the end of a chain"),
        *(
            (sealed(CHAIN | change), "line 1 is not the end of a chain")
            for change in (
                {"seq": 0},
                {"seq": "1"},
                {"seq": True},
                {"seq": 2**63},
                {"hash": "0" * 63},
                {"hash": None},
                {"hash": "G" * 64},
                {"user_id": "me"},
                {"tenant_id": None},
                {"more": 1},
            )
        ),
    ],
)
async def test_a_damaged_file_says_where(http: aiohttp.ClientSession, people: People, file: bytes, why: str) -> None:
    problem = await check(http, await people.user("admin", scopes=["admin"]), file, 400)
    assert (problem["code"], problem["param"]) == ("invalid_request", "anchor")
    assert why in problem["detail"]


def read_all(lines: list[bytes]) -> None:
    reader = Reader()
    for line in lines:
        reader.take(line)
    reader.end()


@pytest.mark.parametrize("flip", [lambda line: line[:-2] + b"x\n", lambda line: line.replace(b"0", b"1", 1)])
def test_any_changed_chain_breaks_the_seal(flip: Callable[[bytes], bytes]) -> None:
    lines = WHOLE.splitlines(keepends=True)
    read_all(lines)
    for n in range(len(lines) - 1):
        with pytest.raises(VanillaError):
            read_all([*lines[:n], flip(lines[n]), *lines[n + 1 :]])


@pytest.mark.parametrize(
    "anchor",
    [
        "null",
        "{}",
        '"x"',
        '[{"tenant_id": "x"}]',
        '[{"seq": 1e30}]',
        '[{"user_id": null, "tenant_id": null, "seq": 1, "hash": "zz"}]',
        "[5]",
    ],
)
async def test_an_anchor_that_is_none_is_refused_in_sql(operator: asyncpg.Connection, anchor: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await operator.fetch("select * from verify_token_anchor($1)", orjson.loads(anchor))
    assert refused.value.sqlstate == "VS400"
