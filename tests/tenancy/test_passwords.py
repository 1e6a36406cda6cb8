"""Changing, redeeming and forgetting a password, and what a hash costs."""

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from argon2 import extract_parameters
from pydantic import SecretStr, ValidationError

from tests.conftest import Cluster, People, serve, settings_for
from tests.tenancy.conftest import PASSWORD, Api, MakeMember
from tests.tenancy.smtp import MailServer
from vanilla_saas.app import create_app
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy import passwords, sign_in

NEW = "another four short words"


async def issue(call: Api, admin_token: str, user_id: str) -> str:
    link = await call("POST", f"/users/{user_id}/password-link", token=admin_token)
    assert link.status == 201
    token: str = link.body["token"]
    assert link.body["url"] == f"/password/set?token={token}"
    return token


# change


async def test_a_changed_password_ends_other_sessions_and_open_links(
    call: Api, member: MakeMember, audited: Any
) -> None:
    admin, ada = await member("admin"), await member()
    link = await issue(call, admin.token, ada.id)
    other = (await call.sign_in(ada.person)).body["access_token"]
    body = {"old_password": PASSWORD, "new_password": NEW}
    assert (await call("POST", "/auth/password", body, ada.token)).status == 204
    assert (await call("GET", "/me", token=ada.token)).status == 200
    assert (await call("GET", "/me", token=other)).status == 401
    redeemed = await call("POST", "/auth/password/redeem", {"token": link, "new_password": "mine now, says a thief"})
    assert redeemed.refusal == (401, "authentication_failed")
    assert (await call.sign_in(ada.person)).status == 401
    assert (await call.sign_in(ada.person, NEW)).status == 200
    assert len(await audited("user.password_changed", ada.id)) == 1


async def test_the_old_password_is_needed_and_guessing_it_is_throttled(call: Api, member: MakeMember) -> None:
    ada = await member()
    body = {"old_password": "not the password", "new_password": NEW}
    replies = [await call("POST", "/auth/password", body, ada.token) for _ in range(10)]
    assert {reply.refusal for reply in replies} == {(401, "authentication_failed")}
    right = await call("POST", "/auth/password", {"old_password": PASSWORD, "new_password": NEW}, ada.token)
    assert right.refusal == (429, "limit_reached")


async def test_the_new_password_is_not_the_old_one(call: Api, member: MakeMember) -> None:
    ada = await member()
    reply = await call("POST", "/auth/password", {"old_password": PASSWORD, "new_password": PASSWORD}, ada.token)
    assert (reply.refusal, reply.body["param"]) == ((400, "invalid_request"), "password")


async def test_who_must_change_the_password_does_nothing_else_before(call: Api, member: MakeMember) -> None:
    ada = await member("admin", must_change=True)
    assert (await call.sign_in(ada.person)).body["must_change_password"] is True
    for method, path, body in [
        ("GET", "/me", None),
        ("PATCH", "/me", {"display_name": "Ada"}),
        ("GET", "/users", None),
        ("POST", "/keys", {"name": "a way around"}),
        ("GET", "/audit", None),
    ]:
        reply = await call(method, path, body, ada.token)
        assert (reply.refusal, reply.body["need"]) == ((403, "forbidden"), "password_change")
    renewed = await call("POST", "/auth/refresh", {"refresh_token": ada.refresh_token})
    assert renewed.body["must_change_password"] is True
    token = renewed.body["access_token"]
    changed = await call("POST", "/auth/password", {"old_password": PASSWORD, "new_password": NEW}, token)
    assert changed.status == 204
    assert (await call("GET", "/me", token=token)).status == 200


async def test_a_key_changes_no_password(call: Api, people: People) -> None:
    admin = await people.user("admin", scopes=["admin"])
    body = {"old_password": PASSWORD, "new_password": NEW}
    assert (await call("POST", "/auth/password", body, admin.key)).refusal == (403, "forbidden")


# links


async def test_a_link_sets_a_password_once_and_ends_all_sessions(
    call: Api, member: MakeMember, operator: asyncpg.Connection, audited: Any
) -> None:
    admin, ada = await member("admin"), await member()
    first, second = [await issue(call, admin.token, ada.id) for _ in range(2)]
    stored = await operator.fetch("select * from one_time_tokens where user_id = $1", ada.person.identity.user_id)
    assert {row["token_hash"] for row in stored} == {sign_in.token_hash(first), sign_in.token_hash(second)}
    body = {"token": first, "new_password": NEW}
    redeemed = await call("POST", "/auth/password/redeem", body)
    assert (redeemed.status, redeemed.body) == (200, {"tenant": "default", "email": ada.person.email})
    for token in (first, second):
        again = await call("POST", "/auth/password/redeem", {"token": token, "new_password": "yet another one, then"})
        assert again.refusal == (401, "authentication_failed")
    assert (await call("GET", "/me", token=ada.token)).status == 401
    assert (await call.sign_in(ada.person, NEW)).status == 200
    assert len(await audited("user.password_link", ada.id)) == 2
    assert len(await audited("user.password_changed", ada.id)) == 1


async def test_two_links_of_a_user_redeemed_at_once_set_one_password(
    call: Api, member: MakeMember, database: Database, password_hash: str
) -> None:
    admin, ada = await member("admin"), await member()
    for _ in range(5):
        links = [await issue(call, admin.token, ada.id) for _ in range(4)]
        redeem = "select vanilla.redeem_one_time_token($1, $2)"
        outcomes = await asyncio.gather(
            *(database.call(redeem, sign_in.token_hash(link), password_hash) for link in links),
            return_exceptions=True,
        )
        refusals = [getattr(outcome, "name", repr(outcome)) for outcome in outcomes if not isinstance(outcome, dict)]
        assert refusals == ["authentication_failed"] * 3


async def test_a_link_lapses_after_a_day(call: Api, member: MakeMember, operator: asyncpg.Connection) -> None:
    admin, ada = await member("admin"), await member()
    token = await issue(call, admin.token, ada.id)
    await operator.execute(
        "update one_time_tokens set expires_at = expires_at - $2::interval where user_id = $1",
        ada.person.identity.user_id,
        timedelta(hours=24),
    )
    reply = await call("POST", "/auth/password/redeem", {"token": token, "new_password": NEW})
    assert reply.refusal == (401, "authentication_failed")


async def test_a_dead_link_costs_no_hash_and_a_poor_password_leaves_the_link(
    call: Api, member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, ada = await member("admin"), await member()
    token = await issue(call, admin.token, ada.id)
    poor = await call("POST", "/auth/password/redeem", {"token": token, "new_password": ada.person.email})
    assert (poor.refusal, poor.body["param"]) == ((400, "invalid_request"), "password")
    assert (await call("POST", "/auth/password/redeem", {"token": token, "new_password": NEW})).status == 200
    monkeypatch.setattr(passwords, "hash_password", lambda password: pytest.fail("a hash was computed"))
    reply = await call("POST", "/auth/password/redeem", {"token": "vst_guessed", "new_password": NEW})
    assert reply.refusal == (401, "authentication_failed")


# forgotten


async def test_without_a_mail_server_a_forgotten_password_writes_nothing(
    call: Api, member: MakeMember, operator: asyncpg.Connection
) -> None:
    ada = await member()
    for email in (ada.person.email, "nobody@example.test"):
        reply = await call("POST", "/auth/password/forgot", {"email": email})
        assert (reply.status, reply.body) == (202, b"")
    tokens = "select count(*) from one_time_tokens where user_id = $1"
    assert await operator.fetchval(tokens, ada.person.identity.user_id) == 0


async def test_a_forgotten_password_sends_a_link_to_whoever_is_known_at_most_three_times(
    cluster: Cluster, database_name: str, tmp_path: Path, member: MakeMember, audited: Any
) -> None:
    ada = await member()
    async with MailServer() as server:
        settings = settings_for(
            cluster,
            database_name,
            tmp_path,
            smtp_url=SecretStr(f"smtp://127.0.0.1:{server.port}?from=door@example.test"),
            public_url="https://saas.example.test/",
        )
        async with serve(create_app(settings)) as address, aiohttp.ClientSession(address) as session:
            api = Api(session)
            for email in ["nobody@example.test", *[ada.person.email] * 4]:
                assert (await api("POST", "/auth/password/forgot", {"email": email})).status == 202
        # the server has stopped, so all that it had to send is sent
        assert [(mail.sender, mail.recipients) for mail in server.mails] == [
            ("door@example.test", [ada.person.email])
        ] * 3
        link = re.search(r"https://saas\.example\.test/password/set\?token=(vst_\S+)", server.mails[0].text)
        assert link
        async with serve(create_app(settings)) as address, aiohttp.ClientSession(address) as session:
            reply = await Api(session)("POST", "/auth/password/redeem", {"token": link[1], "new_password": NEW})
    assert (reply.status, reply.body["email"]) == (200, ada.person.email)
    rows = await audited("user.password_link", ada.id)
    assert [row["actor_id"] for row in rows] == [ada.person.identity.user_id] * 3


async def test_a_mail_server_that_is_away_changes_no_answer_and_leaks_no_token(
    cluster: Cluster, database_name: str, tmp_path: Path, member: MakeMember, capsys: pytest.CaptureFixture[str]
) -> None:
    ada = await member()
    settings = settings_for(
        cluster, database_name, tmp_path, smtp_url=SecretStr("smtp://127.0.0.1:1"), public_url="https://x.test"
    )
    async with serve(create_app(settings)) as address, aiohttp.ClientSession(address) as session:
        reply = await Api(session)("POST", "/auth/password/forgot", {"email": ada.person.email})
    assert reply.status == 202
    logged = capsys.readouterr().err
    assert "password_link_not_sent" in logged
    assert "vst_" not in logged
    assert ada.person.email not in logged


def test_mails_need_an_address_for_their_links() -> None:
    with pytest.raises(ValidationError, match="VANILLA_SAAS_PUBLIC_URL"):
        Settings(_env_file=None, smtp_url=SecretStr("smtp://localhost"))


# hashes


async def test_hashes_have_the_stated_parameters_and_the_hash_of_nobody_too() -> None:
    made = extract_parameters(await passwords.hash_password(PASSWORD))
    assert (made.memory_cost, made.time_cost, made.parallelism) == (19 * 1024, 2, 1)
    assert extract_parameters(passwords._NOBODY) == made
    assert not passwords.needs_rehash(passwords._NOBODY)


async def test_nothing_is_the_password_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_NOBODY", await passwords.hash_password(PASSWORD))
    assert not await passwords.verify_password(None, PASSWORD)


async def test_a_crowd_at_the_door_is_turned_away_beyond_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_matches", lambda stored, password: True)
    crowd = passwords.MAX_RUNNING + passwords.MAX_WAITING + 5
    outcomes = await asyncio.gather(
        *(passwords.verify_password("hash", PASSWORD) for _ in range(crowd)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, VanillaError)]
    assert {error.name for error in refused} == {"saturated"}
    assert len(refused) == 5
    assert await passwords.verify_password("hash", PASSWORD)
