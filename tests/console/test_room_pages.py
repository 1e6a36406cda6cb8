"""What the rooms' pages do: wallets, keys, users, tenants, providers, a call in the playground."""

import re
from typing import Any
from uuid import UUID

import aiohttp
import orjson
import pytest

from tests.conftest import SUPER_ADMIN, People, Person
from tests.console.console_support import PAGE, look, signed_in, submit, super_admin
from vanilla_saas.tenancy.secret_tokens import token_hash

FRAGMENT = {"hx-request": "true"}


async def _call(http: aiohttp.ClientSession, **form: str) -> list[tuple[str, dict[str, Any]]]:
    _, text, headers = await submit(http, "/playground/call", {"accept": "text/event-stream"}, **form)
    assert headers["content-type"].startswith("text/event-stream")
    return [(name, orjson.loads(data)) for name, data in re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)]


async def test_the_playground_offers_models_that_chat(api: str, people: People) -> None:
    async with signed_in(api, people, await people.user()) as http, http.get("/playground") as page:
        text = await page.text()
    assert "sandbox-large" in text
    assert "sandbox-embed" not in text


async def test_a_call_in_the_playground_costs_what_the_wallet_then_shows(api: str, people: People) -> None:
    person = await people.user(balance=9_000)
    async with signed_in(api, people, person) as http:
        form = {"model": "sandbox-small", "prompt": "hello there", "system": "Be brief.", "max_tokens": "200"}
        _, quote, _ = await submit(http, "/playground/estimate", FRAGMENT, **form)
        before = dict(await people.wallet(person))
        events = await _call(http, **form)
        names = [name for name, _ in events]
        assert names[0] == "reserved"
        assert names[-1] == "settled"
        assert set(names[1:-1]) == {"delta"}
        assert f"<strong>{events[0][1]['tokens']:,}</strong>" in quote
        settled = events[-1][1]
        after = await people.wallet(person)
        assert settled["charged_tokens"] == settled["input_tokens"] + settled["output_tokens"] > 0
        assert settled["available_tokens"] == after["available_tokens"] == 9_000 - settled["charged_tokens"]
        assert after["seq"] == before["seq"] + 2
        assert after["reserved_tokens"] == 0

        _, page, _ = await look(http, "/wallet")
        assert f"{after['available_tokens']:,}" in page.text
        assert f"charged {settled['charged_tokens']:,} of" in page.text
        link = next(str(a["href"]) for a in page.all("a") if str(a.get("href")).startswith("/executions/"))
        _, page, _ = await look(http, link)
        assert "sandbox-small" in page.text


async def test_a_quote_writes_nothing_and_refuses_as_the_call_would(api: str, people: People) -> None:
    person = await people.user(balance=50)
    async with signed_in(api, people, person) as http:
        before = dict(await people.wallet(person))
        form = {"model": "sandbox-small", "prompt": "hello", "max_tokens": "4000"}
        status, text, _ = await submit(http, "/playground/estimate", FRAGMENT, **form)
        assert status == 402
        assert "50 available" in text
        name, problem = (await _call(http, **form))[0]
        assert (name, problem["code"], problem["available"]) == ("refused", "insufficient_tokens", 50)
        assert dict(await people.wallet(person)) == before
        assert not await people.operator.fetchval(
            "select count(*) from user_token_holds where user_id = $1", person.identity.user_id
        )


async def test_older_entries_follow_without_gap_or_repeat(api: str, people: People) -> None:
    person = await people.user()
    for n in range(60):
        await people.operator.fetchval(
            "select adjust_user_tokens($1, $2, 'credit', $3)", person.identity.user_id, n + 1, f"gift-{n}."
        )
    async with signed_in(api, people, person) as http:
        seen: list[str] = []
        _, page, _ = await look(http, "/wallet")
        text = page.text
        for _ in range(5):
            seen += re.findall(r"gift-\d+\.", text)
            more = re.search(r'hx-get="(/wallet[^"]+)"', text)
            if not more:
                break
            path = more[1].replace("&amp;", "&")
            _, fragment, _ = await look(http, path, **FRAGMENT)
            text = fragment.text
            assert "<html" not in text
            assert "dayline" not in text
        assert seen == [f"gift-{n}." for n in reversed(range(60))]


async def test_the_chain_is_verified_and_a_changed_entry_is_named(api: str, people: People) -> None:
    person = await people.user(balance=700)
    user_id = person.identity.user_id
    async with signed_in(api, people, person) as http:
        _, text, _ = await submit(http, f"/wallet/{user_id}/verify", FRAGMENT)
        entries = (await people.wallet(person))["seq"]
        assert f"verified: {entries} entries" in text
        forge = "update user_token_ledger set reason = $2 where user_id = $1 and seq = 1"
        kept = await people.operator.fetchval(
            "select reason from user_token_ledger where user_id = $1 and seq = 1", user_id
        )
        await people.operator.execute(forge, user_id, "forged")
        try:
            _, text, _ = await submit(http, f"/wallet/{user_id}/verify", FRAGMENT)
        finally:
            await people.operator.execute(forge, user_id, kept)
        assert "verified" not in text
        assert "entry 1: the row or the one before it was changed" in text


async def test_an_adjustment_shows_before_and_after_and_is_made_once(api: str, people: People) -> None:
    admin, person = await people.user("admin"), await people.user(balance=1_000)
    path = f"/wallet/{person.identity.user_id}/adjust"
    async with signed_in(api, people, admin) as http:
        form = {"amount": "250", "direction": "debit", "reason": "refund of an invoice"}
        _, text, _ = await submit(http, f"{path}/preview", FRAGMENT, **form)
        assert "1,000" in text
        assert "750" in text
        assert (await people.wallet(person))["available_tokens"] == 1_000
        key = re.search(r'name="idempotency_key" value="([^"]+)"', text)
        assert key
        for _ in range(2):
            status, _, headers = await submit(http, path, FRAGMENT, idempotency_key=key[1], **form)
            assert (status, headers["hx-redirect"]) == (200, f"{path.removesuffix('/adjust')}?notice=adjusted")
        assert (await people.wallet(person))["available_tokens"] == 750
        status, text, _ = await submit(http, f"{path}/preview", FRAGMENT, **form | {"amount": "5000"})
        assert status == 402
        assert "5,000 needed, 750 available" in text
        assert "<html" not in text


async def test_nobody_sees_or_changes_another_wallet(api: str, people: People) -> None:
    person, other = await people.user(balance=10), await people.user(balance=77_001)
    stranger = await people.user("admin", tenant_id=await people.tenant())
    path = f"/wallet/{other.identity.user_id}"
    async with signed_in(api, people, person) as http:
        assert (await look(http, path))[0] == 403
        _, page, _ = await look(http, f"{path}/ledger?before=100", **FRAGMENT)
        assert "77,001" not in page.text
        status, _, _ = await submit(http, f"{path}/verify", FRAGMENT)
        assert status in (403, 404)
        status, _, _ = await submit(http, f"{path}/adjust/preview", amount="1", direction="credit", reason="x")
        assert status == 403
    async with signed_in(api, people, stranger) as http:
        assert (await look(http, path))[0] == 404
        status, _, _ = await submit(http, f"{path}/adjust/preview", amount="1", direction="credit", reason="x")
        assert status == 404


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(api: str, people: People) -> None:
    person = await people.user()
    async with signed_in(api, people, person) as http:
        _, text, _ = await submit(http, "/keys", FRAGMENT, name="<b>mine</b>", scopes="chat", budget_tokens="5000")
        assert "&lt;b&gt;mine" in text
        key = re.search(r'value="(vsk_[^"]+)"', text)
        assert key
        _, page, _ = await look(http, "/keys")
        assert key[1] not in page.text
        assert key[1][:12] in page.text
        key_id = await people.operator.fetchval("select id from api_keys where key_hash = $1", token_hash(key[1]))
        status, text, _ = await submit(http, "/keys", FRAGMENT, name="too much", scopes="admin")
        assert status == 403
        assert "only an admin" in text.lower()
        await submit(http, f"/keys/{key_id}/revoke", FRAGMENT)
        assert await people.operator.fetchval("select revoked_at is not null from api_keys where id = $1", key_id)


async def test_an_admin_adds_a_user_who_sets_a_password_with_the_link(api: str, people: People) -> None:
    admin = await people.user("admin")
    async with signed_in(api, people, admin) as http:
        _, text, _ = await submit(http, "/users", FRAGMENT, email="Added@example.test", role="user")
        link = re.search(r'value="([^"]+/password/set\?token=vst_[^"]+)"', text)
        assert link
        async with http.get(link[1], headers=PAGE) as answer:
            assert answer.status == 200
        _, page, _ = await look(http, "/users?q=added@")
        assert "added@example.test" in page.text
        assert admin.email not in page.text.split("<main")[1]
        status, text, _ = await submit(http, "/users", FRAGMENT, email="added@example.test", role="user")
        assert status == 409
        assert "a user with this name exists" in text.lower()
        user_id = await people.operator.fetchval("select id from users where email = 'added@example.test'")
        await submit(http, f"/users/{user_id}/status", FRAGMENT, status="disabled")
        await submit(http, f"/users/{user_id}/role", FRAGMENT, role="admin")
        row = await people.operator.fetchrow("select role, status from users where id = $1", user_id)
        assert dict(row) == {"role": "admin", "status": "disabled"}
        _, page, _ = await look(http, "/audit?action=user.")
        assert "user.status" in page.text
        assert "session.opened" not in page.text


async def test_a_super_admin_works_in_a_tenant_only_while_it_is_open(api: str, people: People) -> None:
    tenant_id = await people.tenant()
    member: Person = await people.user(tenant_id=tenant_id, balance=4_321)
    async with signed_in(api, people, await super_admin(people)) as http:
        assert (await look(http, f"/wallet/{member.identity.user_id}"))[0] == 404
        status, text, _ = await submit(http, f"/tenants/{tenant_id}/open", FRAGMENT, reason=" ")
        assert status == 400
        assert "a reason is needed" in text.lower()
        await submit(http, f"/tenants/{tenant_id}/open", FRAGMENT, reason="ticket 42")
        status, page, _ = await look(http, f"/wallet/{member.identity.user_id}")
        assert status == 200
        assert "4,321" in page.text
        assert "You are inside" in page.text
        assert (await look(http, "/tenants"))[0] == 200
        assert "no wallet in this tenant" in (await look(http, "/wallet"))[1].text
        await people.operator.execute("update tenant_openings set expires_at = now() where user_id = $1", SUPER_ADMIN)
        status, _, headers = await look(http, "/users")
        assert (status, headers["location"]) == (303, "/tenants")
        _, page, _ = await look(http, "/users")
        assert "You are inside" not in page.text


async def test_a_super_admin_closes_a_tenant_with_a_reason(api: str, people: People) -> None:
    tenant_id = await people.tenant()
    member = await people.user(tenant_id=tenant_id)
    async with signed_in(api, people, await super_admin(people)) as http:
        close = f"/tenants/{tenant_id}/close"
        _, page, _ = await look(http, "/tenants")
        assert close in [button.get("formaction") for button in page.all("button")]
        status, text, _ = await submit(http, close, FRAGMENT, reason=" ")
        assert status == 400
        assert "a reason is needed" in text.lower()
        status, _, headers = await submit(http, close, FRAGMENT, reason="they left")
        assert (status, headers["hx-redirect"]) == (200, "/tenants?notice=closed")
        _, page, _ = await look(http, "/tenants?notice=closed")
        assert "The tenant is closed" in page.text
        assert close not in [button.get("formaction") for button in page.all("button")]
    assert await people.operator.fetchval("select revoked_at is not null from api_keys where id = $1", member.key_id)


async def test_a_provider_key_is_kept_encrypted_and_never_shown(api: str, people: People) -> None:
    provider_id = UUID("00000000-0000-7000-8000-000000000301")
    secret = "sk-test-0123456789abcdefWXYZ"
    async with signed_in(api, people, await super_admin(people)) as http:
        status, _, _ = await submit(http, f"/providers/{provider_id}/key", FRAGMENT, key=secret)
        assert status == 200
        stored = await people.operator.fetchval("select secret from ai_providers where id = $1", provider_id)
        assert secret.encode() not in stored
        _, page, _ = await look(http, "/providers")
        assert secret not in page.text
        assert "…WXYZ" in page.text
        await submit(http, f"/providers/{provider_id}/forget-key", FRAGMENT)
        assert await people.operator.fetchval("select secret is null from ai_providers where id = $1", provider_id)


@pytest.mark.parametrize("path", ["/users", "/keys", "/tenants"])
async def test_long_tables_are_paged(api: str, people: People, path: str) -> None:
    made = 53
    if path == "/tenants":
        for _ in range(made):
            await people.tenant()
    else:
        for _ in range(made):
            await people.user()
    async with signed_in(
        api, people, await super_admin(people) if path == "/tenants" else await people.user("admin")
    ) as http:
        _, page, _ = await look(http, path)
        first = page.text.count("<tr>")
        older = next(str(a["href"]) for a in page.all("a") if "before=" in str(a.get("href")))
        _, page, _ = await look(http, older)
        assert first == 51
        assert page.text.count("<tr>") >= 4
