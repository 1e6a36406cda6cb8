"""The door: registration, sign-in, refresh, sign-out, and how often one may knock."""

import asyncio
import sys
import uuid
from typing import Any

import asyncpg
import pytest
from argon2 import PasswordHasher

from tests.conftest import People
from tests.tenancy.conftest import PASSWORD, Api, MakeMember, stranger
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy import passwords, sign_in


def somebody() -> str:
    return f"{uuid.uuid4().hex[:12]}@example.test"


# registration


async def test_a_visitor_registers_with_the_tokens_of_the_default_level_and_signs_in(
    call: Api, operator: asyncpg.Connection, audited: Any
) -> None:
    email = somebody()
    made = await call("POST", "/auth/register", {"email": email, "password": PASSWORD, "display_name": "Ada"})
    assert made.status == 201
    wallet = await operator.fetchrow(
        "select available_tokens from user_token_wallets where user_id = $1", uuid.UUID(made.body["user_id"])
    )
    assert wallet["available_tokens"] == 15_000
    assert len(await audited("user.registered", made.body["user_id"])) == 1
    entered = await call("POST", "/auth/sign-in", {"email": email.upper(), "password": PASSWORD})
    assert (entered.status, entered.body["must_change_password"]) == (200, False)
    me = await call("GET", "/me", token=entered.body["access_token"])
    assert (me.body["id"], me.body["display_name"], me.body["role"]) == (made.body["user_id"], "Ada", "user")


async def test_a_tenant_that_takes_no_registrations_refuses_like_one_that_does_not_exist(
    call: Api, people: People, operator: asyncpg.Connection
) -> None:
    slug = await operator.fetchval("select slug from tenants where id = $1", await people.tenant())
    closed, missing = [
        await call("POST", "/auth/register", {"tenant": tenant, "email": somebody(), "password": PASSWORD})
        for tenant in (slug, "no-such-tenant")
    ]
    assert closed.refusal == missing.refusal == (403, "forbidden")
    assert closed.body["detail"] == missing.body["detail"]


async def test_of_parallel_registrations_of_one_address_one_wins(call: Api) -> None:
    body = {"email": somebody(), "password": PASSWORD}
    replies = await asyncio.gather(*(call("POST", "/auth/register", body) for _ in range(8)))
    assert sorted(reply.status for reply in replies) == [201] + [409] * 7
    assert {reply.refusal for reply in replies if reply.status == 409} == {(409, "invalid_state")}


async def test_refused_registrations_count_too(call: Api, operator: asyncpg.Connection) -> None:
    taken = {"email": somebody(), "password": PASSWORD}
    assert (await call("POST", "/auth/register", taken)).status == 201
    await operator.execute("update sign_in_throttles set failures = 98")
    refusals = [(await call("POST", "/auth/register", taken)).refusal for _ in range(3)]
    assert refusals == [(409, "invalid_state"), (409, "invalid_state"), (429, "limit_reached")]


@pytest.mark.parametrize(
    "password",
    ["short words", "x" * 129, "nul\0in the middle", "passwordpassword", "PasswordPassword", "abababababababab"],
)
async def test_a_poor_password_is_refused_by_its_field(call: Api, password: str) -> None:
    reply = await call("POST", "/auth/register", {"email": somebody(), "password": password})
    assert reply.refusal == (400, "invalid_request")
    assert reply.body["param"] == "password"
    assert password not in str(reply.body)


async def test_the_address_is_no_password(call: Api) -> None:
    email = somebody()
    reply = await call("POST", "/auth/register", {"email": email, "password": email.upper()})
    assert (reply.refusal, reply.body["param"]) == ((400, "invalid_request"), "password")


# sign-in


async def test_only_hashes_of_the_tokens_are_stored(
    call: Api, member: MakeMember, operator: asyncpg.Connection, audited: Any
) -> None:
    ada = await member()
    assert (ada.token[:4], ada.refresh_token[:4]) == ("vss_", "vsr_")
    row = await operator.fetchrow("select * from sessions where user_id = $1", ada.person.identity.user_id)
    assert row["token_hash"] == sign_in.token_hash(ada.token)
    assert ada.token not in str(dict(row))
    assert ada.refresh_token not in str(dict(row))
    assert len(await audited("session.opened", ada.id)) == 1


async def test_wrong_tenant_address_and_password_are_refused_in_the_same_words(
    call: Api, member: MakeMember, audited: Any
) -> None:
    ada = (await member()).person
    replies = [
        await call.sign_in(ada, "not the password"),
        await call.sign_in(ada, tenant="no-such-tenant"),
        await call.sign_in(stranger(somebody())),
    ]
    assert {reply.refusal for reply in replies} == {(401, "authentication_failed")}
    assert len({reply.body["detail"] for reply in replies}) == 1
    assert len(await audited("session.refused", ada.identity.user_id)) == 1


async def test_a_known_and_an_unknown_address_cost_the_same_steps(
    call: Api, member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = (await member()).person
    steps: list[str] = []
    matches, database_call = passwords._matches, Database.call

    def counted(stored: str, password: str) -> bool:
        steps.append(f"hash {stored.rsplit('$', 2)[0]}")
        return matches(stored, password)

    async def noted(self: Database, statement: str, *arguments: object) -> Any:
        # the server's own schedules and webhooks ask meanwhile
        if sys._getframe(1).f_globals["__name__"].startswith("vanilla_saas.tenancy."):
            steps.append(statement)
        return await database_call(self, statement, *arguments)

    monkeypatch.setattr(passwords, "_matches", counted)
    monkeypatch.setattr(Database, "call", noted)
    await call.sign_in(ada, "not the password")
    known = steps.copy()
    steps.clear()
    await call.sign_in(stranger(somebody()), "not the password")
    assert [step.startswith("hash") for step in known] == [True, False]
    assert steps == known


@pytest.mark.parametrize("known", [True, False])
async def test_the_eleventh_attempt_waits_and_hashes_nothing(
    call: Api, member: MakeMember, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    ada = (await member()).person if known else stranger(somebody())
    monkeypatch.setattr(passwords, "_matches", lambda stored, password: False)
    replies = [await call.sign_in(ada, "not the password") for _ in range(10)]
    assert {reply.refusal for reply in replies} == {(401, "authentication_failed")}
    monkeypatch.setattr(passwords, "_matches", lambda stored, password: pytest.fail("a hash was computed"))
    reply = await call.sign_in(ada)
    assert reply.refusal == (429, "limit_reached")
    assert 0 < reply.body["retry_after_s"] <= 900
    assert reply.headers["retry-after"] == str(reply.body["retry_after_s"])


async def test_a_right_password_takes_back_its_count_and_no_other(
    call: Api, member: MakeMember, operator: asyncpg.Connection
) -> None:
    ada = (await member()).person
    counts = "select coalesce(sum(failures), 0) from sign_in_throttles"
    before = await operator.fetchval(counts)
    await call.sign_in(ada)
    assert await operator.fetchval(counts) == before
    await call.sign_in(stranger(somebody()))
    assert await operator.fetchval(counts) == before + 2  # its address and the network
    await call.sign_in(ada)
    assert await operator.fetchval(counts) == before + 2


async def test_a_disabled_user_and_a_suspended_tenant_cannot_sign_in(
    call: Api, member: MakeMember, people: People, operator: asyncpg.Connection
) -> None:
    ada, eve = await member(), await member(tenant_id=await people.tenant())
    await operator.execute("select set_user_status($1, 'disabled')", ada.person.identity.user_id)
    await operator.execute("select set_tenant_status($1, 'suspended')", eve.person.identity.tenant_id)
    for one in (ada, eve):
        assert (await call("GET", "/me", token=one.token)).refusal == (401, "authentication_failed")
        assert (await call.sign_in(one.person, tenant=one.tenant)).refusal == (401, "authentication_failed")
        assert (await call("POST", "/auth/refresh", {"refresh_token": one.refresh_token})).status == 401


async def test_a_password_replaced_while_it_is_compared_opens_nothing(
    database: Database,
    member: MakeMember,
    operator: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ada = (await member()).person
    compare, replacement = passwords.verify_password, PasswordHasher().hash("another password altogether")

    async def slow(stored: str | None, password: str) -> bool:
        right = await compare(stored, password)
        await operator.execute("select set_user_password($1, $2, false)", ada.identity.user_id, replacement)
        return right

    monkeypatch.setattr(passwords, "verify_password", slow)
    with pytest.raises(sign_in.VanillaError, match="password is wrong"):
        await sign_in.sign_in(database, "default", ada.email, PASSWORD, "", "")
    live = "select count(*) from sessions where user_id = $1 and revoked_at is null"
    assert await operator.fetchval(live, ada.identity.user_id) == 0
    assert await operator.fetchval("select password_hash from users where id = $1", ada.identity.user_id) == replacement


async def test_a_hash_of_older_parameters_is_replaced_at_sign_in(
    call: Api, member: MakeMember, operator: asyncpg.Connection
) -> None:
    ada = await member()
    old = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    await operator.execute("update users set password_hash = $2 where id = $1", ada.person.identity.user_id, old)
    assert (await call.sign_in(ada.person)).status == 200
    new = await operator.fetchval("select password_hash from users where id = $1", ada.person.identity.user_id)
    assert new.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert (await call("GET", "/me", token=ada.token)).status == 200  # other sessions stay
    assert (await call.sign_in(ada.person)).status == 200


# refresh and sign-out


async def test_a_refresh_exchanges_both_tokens(call: Api, member: MakeMember) -> None:
    ada = await member()
    renewed = await call("POST", "/auth/refresh", {"refresh_token": ada.refresh_token})
    assert renewed.status == 200
    assert (await call("GET", "/me", token=renewed.body["access_token"])).status == 200
    assert (await call("GET", "/me", token=ada.token)).status == 401


async def test_a_refresh_token_used_twice_ends_the_family(call: Api, member: MakeMember, audited: Any) -> None:
    ada = await member()
    other = (await call.sign_in(ada.person)).body
    renewed = await call("POST", "/auth/refresh", {"refresh_token": ada.refresh_token})
    again = await call("POST", "/auth/refresh", {"refresh_token": ada.refresh_token})
    assert again.refusal == (401, "authentication_failed")
    assert (await call("GET", "/me", token=renewed.body["access_token"])).status == 401
    assert (await call("POST", "/auth/refresh", {"refresh_token": renewed.body["refresh_token"]})).status == 401
    assert (await call("GET", "/me", token=other["access_token"])).status == 200  # another sign-in
    assert len(await audited("session.reused", ada.id)) == 1


async def test_of_twenty_parallel_refreshes_at_most_one_is_answered(call: Api, member: MakeMember) -> None:
    ada = await member()
    body = {"refresh_token": ada.refresh_token}
    replies = await asyncio.gather(*(call("POST", "/auth/refresh", body) for _ in range(20)))
    assert sorted(reply.status for reply in replies) == [200] + [401] * 19


async def test_two_used_tokens_of_a_family_at_once_do_not_deadlock(
    database: Database, member: MakeMember, operator: asyncpg.Connection
) -> None:
    used = [(await member()).refresh_token]
    for _ in range(3):
        used.append((await sign_in.refresh(database, used[-1], "")).refresh_token)
    waiting = (
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        " and query like '%rotate_session%'"
    )
    # both have come far enough to hold what they start with, and go on together
    async with operator.transaction():
        await operator.execute("select from sessions where refresh_hash = $1 for update", sign_in.token_hash(used[0]))
        reuses = [asyncio.create_task(sign_in.refresh(database, token, "")) for token in used[1:3]]
        async with asyncio.timeout(10):
            while await operator.fetchval(waiting) < 2:
                await operator.execute("select pg_stat_clear_snapshot()")
    outcomes = await asyncio.gather(*reuses, return_exceptions=True)
    assert [getattr(outcome, "name", repr(outcome)) for outcome in outcomes] == ["authentication_failed"] * 2


async def test_signing_out_ends_the_family_and_may_be_repeated(call: Api, member: MakeMember, audited: Any) -> None:
    ada = await member()
    assert (await call("POST", "/auth/sign-out", token=ada.token)).status == 204
    assert (await call("GET", "/me", token=ada.token)).status == 401
    assert (await call("POST", "/auth/refresh", {"refresh_token": ada.refresh_token})).status == 401
    assert (await call("POST", "/auth/sign-out", token=ada.token)).status == 204
    assert len(await audited("session.closed", ada.id)) == 1
    assert (await call("POST", "/auth/sign-out")).refusal == (401, "authentication_failed")
