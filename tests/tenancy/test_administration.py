"""Users, tenants, keys and the audit log over HTTP: who may do what, to whom."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, SUPER_ADMIN, People
from tests.tenancy.conftest import PASSWORD, Api, MakeMember
from vanilla_saas.database.context import PLATFORM
from vanilla_saas.tenancy.secret_tokens import token_hash

NOBODY = "00000000-0000-7000-8000-00000000dead"


# oneself


async def test_everyone_renames_themselves_and_only_themselves(call: Api, member: MakeMember, audited: Any) -> None:
    ada, eve = await member(), await member()
    renamed = await call("PATCH", "/me", {"display_name": "  Ada Ĺ "}, ada.token)
    assert (renamed.status, renamed.body["display_name"], renamed.body["id"]) == (200, "Ada Ĺ", ada.id)
    assert (await call("GET", "/me", token=ada.token)).body["display_name"] == "Ada Ĺ"
    assert (await call("GET", "/me", token=eve.token)).body["display_name"] == ""
    assert [row["actor_id"] for row in await audited("user.display_name", ada.id)] == [ada.person.identity.user_id]
    too_long = await call("PATCH", "/me", {"display_name": "Ĺ" * 101}, ada.token)
    assert (too_long.refusal, too_long.body["param"]) == ((400, "invalid_request"), "display_name")


async def test_a_name_needs_a_context(operator: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.PostgresError, match="no context"):
        await operator.fetchval("select set_display_name('operator')")


# users


async def test_an_admin_makes_changes_and_disables_users(
    call: Api, member: MakeMember, operator: asyncpg.Connection, audited: Any
) -> None:
    admin, email = await member("admin"), f"{uuid.uuid4().hex}@example.test"
    made = await call("POST", "/users", {"email": email, "password": PASSWORD, "display_name": "Ada"}, admin.token)
    assert (made.status, made.body["role"], made.body["must_change_password"]) == (201, "user", True)
    user_id = made.body["id"]
    wallet = "select available_tokens from user_token_wallets where user_id = $1"
    assert await operator.fetchval(wallet, uuid.UUID(user_id)) == 15_000
    promoted = await call("PATCH", f"/users/{user_id}", {"role": "admin", "status": "disabled"}, admin.token)
    assert (promoted.status, promoted.body["role"], promoted.body["status"]) == (200, "admin", "disabled")
    assert (await call("GET", f"/users/{user_id}", token=admin.token)).body == promoted.body
    assert (await call("POST", "/users", {"email": email.upper()}, admin.token)).refusal == (409, "invalid_state")
    for action in ("user.created", "user.role", "user.status"):
        assert [row["actor_id"] for row in await audited(action, user_id)] == [admin.person.identity.user_id]


async def test_a_user_sees_only_themselves_and_administers_nobody(call: Api, member: MakeMember) -> None:
    ada, eve = await member(), await member()
    listed = await call("GET", "/users", token=ada.token)
    assert [one["id"] for one in listed.body["items"]] == [ada.id]
    assert (await call("GET", f"/users/{eve.id}", token=ada.token)).refusal == (404, "not_found")
    assert (await call("GET", "/audit", token=ada.token)).body == {"items": [], "next_cursor": None}
    for method, path, body in [
        ("POST", "/users", {"email": "new@example.test"}),
        ("PATCH", f"/users/{eve.id}", {"status": "disabled"}),
        ("PATCH", f"/users/{ada.id}", {"role": "admin"}),
        ("POST", f"/users/{eve.id}/password-link", None),
        ("POST", "/tenants", {"slug": "mine", "name": "Mine"}),
        ("POST", f"/tenants/{DEFAULT_TENANT}/open", {"reason": "curious"}),
        ("POST", "/keys", {"name": "hers", "user_id": eve.id}),
        ("POST", "/keys", {"name": "mine", "scopes": ["act_as"]}),
    ]:
        assert (await call(method, path, body, ada.token)).refusal == (403, "forbidden"), path


async def test_an_admin_cannot_tell_another_tenants_user_from_none(
    call: Api, member: MakeMember, people: People
) -> None:
    admin, eve = await member("admin"), await member(tenant_id=await people.tenant())
    for method, suffix, body in [
        ("GET", "", None),
        ("PATCH", "", {"status": "disabled"}),
        ("PATCH", "", {"role": "admin"}),
        ("POST", "/password-link", None),
    ]:
        theirs, none = [await call(method, f"/users/{one}{suffix}", body, admin.token) for one in (eve.id, NOBODY)]
        assert theirs.refusal == none.refusal == (404, "not_found")
        assert (theirs.body["detail"], set(theirs.body)) == (none.body["detail"], set(none.body))
    assert eve.id not in str((await call("GET", "/users?limit=200", token=admin.token)).body)
    assert (await call("GET", "/me", token=eve.token)).status == 200


async def test_an_admin_makes_no_super_admin_and_does_not_disable_themselves(call: Api, member: MakeMember) -> None:
    admin = await member("admin")
    made = await call("POST", "/users", {"email": "root@example.test", "role": "superadmin"}, admin.token)
    assert made.refusal == (400, "invalid_request")
    own = await call("PATCH", f"/users/{admin.id}", {"status": "disabled"}, admin.token)
    assert own.refusal == (409, "invalid_state")
    assert (await call("PATCH", f"/users/{admin.id}", {}, admin.token)).refusal == (400, "invalid_request")


async def test_users_are_listed_in_pages_newest_first(call: Api, member: MakeMember, people: People) -> None:
    admin = await member("admin", await people.tenant())
    made = [admin.id] + [
        str((await people.user(tenant_id=admin.person.identity.tenant_id)).identity.user_id) for _ in range(4)
    ]
    seen: list[str] = []
    cursor = ""
    for expected in (2, 2, 1):
        reply = await call("GET", f"/users?limit=2{cursor}", token=admin.token)
        assert len(reply.body["items"]) == expected
        seen += [one["id"] for one in reply.body["items"]]
        cursor = f"&cursor={reply.body['next_cursor']}"
    assert reply.body["next_cursor"] is None
    assert seen == made[::-1]


# tenants


async def test_a_super_admin_makes_suspends_and_activates_tenants(call: Api, member: MakeMember, audited: Any) -> None:
    root, slug = await member("superadmin"), f"t{uuid.uuid4().hex[:10]}"
    made = await call("POST", "/tenants", {"slug": slug, "name": "Acme", "time_zone": "Europe/Berlin"}, root.token)
    assert (made.status, made.body["status"], made.body["time_zone"]) == (201, "active", "Europe/Berlin")
    tenant_id = made.body["id"]
    eve = await member(tenant_id=uuid.UUID(tenant_id))
    for status, seen in [("suspended", 401), ("active", 200)]:
        changed = await call("PATCH", f"/tenants/{tenant_id}", {"status": status}, root.token)
        assert (changed.status, changed.body["status"]) == (200, status)
        assert (await call("GET", "/me", token=eve.token)).status == seen
    again = await call("POST", "/tenants", {"slug": slug, "name": "Acme"}, root.token)
    assert (again.refusal, again.body["param"]) == ((409, "invalid_state"), "slug")
    assert (await call("PATCH", f"/tenants/{NOBODY}", {"status": "active"}, root.token)).refusal == (404, "not_found")
    assert len(await audited("tenant.created", tenant_id, PLATFORM)) == 1
    assert len(await audited("tenant.status", tenant_id, PLATFORM)) == 2


async def test_closing_a_tenant_ends_everything_that_lets_anybody_in(
    call: Api, member: MakeMember, people: People, operator: asyncpg.Connection, audited: Any
) -> None:
    root, tenant_id = await member("superadmin"), await people.tenant()
    admin = await member("admin", tenant_id)
    program = await people.user(tenant_id=tenant_id)
    link = await call("POST", f"/users/{admin.id}/password-link", token=admin.token)
    await call("POST", f"/tenants/{tenant_id}/open", {"reason": "a question"}, root.token)
    assert (await call("GET", "/users", token=root.token, tenant=tenant_id)).status == 200
    assert (await call("GET", "/me", token=program.key)).status == 200

    no_reason = await call("POST", f"/tenants/{tenant_id}/close", {"reason": " "}, root.token)
    assert no_reason.refusal == (400, "invalid_request")
    for _ in range(2):
        closed = await call("POST", f"/tenants/{tenant_id}/close", {"reason": "unpaid"}, root.token)
        assert (closed.status, closed.body["status"]) == (200, "closed")
    for token in (admin.token, program.key):
        assert (await call("GET", "/me", token=token)).status == 401
    assert (await call("POST", "/auth/refresh", {"refresh_token": admin.refresh_token})).status == 401
    assert (await call.sign_in(admin.person, tenant=admin.tenant)).status == 401
    redeemed = {"token": link.body["token"], "new_password": "another long password"}
    assert (await call("POST", "/auth/password/redeem", redeemed)).status == 401
    assert (await call("GET", "/users", token=root.token, tenant=tenant_id)).status == 403
    opened = await call("POST", f"/tenants/{tenant_id}/open", {"reason": "again"}, root.token)
    assert opened.refusal == (409, "invalid_state")

    for log in (PLATFORM, tenant_id):
        (row,) = await audited("tenant.closed", tenant_id, log)
        assert row["details"].pop("erase_at")
        assert row["details"] == {"reason": "unpaid", "sessions": 1, "keys": 1, "openings": 1}
        assert str(row["actor_id"]) == root.id
    # the ledger stays, and so do the people; what let programs in is gone for good
    assert await operator.fetchval("select count(*) from users where tenant_id = $1", tenant_id) == 2
    assert (await call("PATCH", f"/tenants/{tenant_id}", {"status": "active"}, root.token)).status == 200
    assert (await call("GET", "/me", token=program.key)).status == 401
    assert (await call("GET", "/me", token=admin.token)).status == 401
    assert (await call.sign_in(admin.person, tenant=admin.tenant)).status == 200


async def test_a_tenant_is_not_closed_in_passing(call: Api, member: MakeMember, people: People) -> None:
    root, tenant_id = await member("superadmin"), await people.tenant()
    assert (await call("PATCH", f"/tenants/{tenant_id}", {"status": "closed"}, root.token)).status == 400
    platform = await call("POST", f"/tenants/{PLATFORM}/close", {"reason": "x"}, root.token)
    assert platform.refusal == (409, "invalid_state")
    assert (await call("POST", f"/tenants/{NOBODY}/close", {"reason": "x"}, root.token)).refusal == (404, "not_found")


async def test_tenants_are_a_super_admins_to_make_and_a_members_to_see_their_own(
    call: Api, member: MakeMember, people: People
) -> None:
    admin = await member("admin", await people.tenant())
    own = str(admin.person.identity.tenant_id)
    assert [one["id"] for one in (await call("GET", "/tenants", token=admin.token)).body["items"]] == [own]
    made = await call("POST", "/tenants", {"slug": "mine", "name": "Mine"}, admin.token)
    suspended = await call("PATCH", f"/tenants/{own}", {"status": "suspended"}, admin.token)
    closed = await call("POST", f"/tenants/{own}/close", {"reason": "mine"}, admin.token)
    opened = await call("POST", f"/tenants/{DEFAULT_TENANT}/open", {"reason": "curious"}, admin.token)
    for reply in (made, suspended, closed, opened):
        assert reply.refusal == (403, "forbidden")
        assert "super admin" in reply.body["detail"]


async def test_a_super_admin_sees_a_tenant_only_once_opened_and_both_logs_say_so(
    call: Api, member: MakeMember, people: People, audited: Any
) -> None:
    root, tenant_id = await member("superadmin"), await people.tenant()
    eve = await member(tenant_id=tenant_id)
    assert eve.id not in str((await call("GET", "/users?limit=200", token=root.token)).body)
    shut = await call("GET", "/users", token=root.token, tenant=tenant_id)
    assert (shut.refusal, shut.body["need"]) == ((403, "forbidden"), "open_tenant")
    assert (await call("POST", f"/tenants/{tenant_id}/open", {"reason": "  "}, root.token)).status == 400
    opened = await call("POST", f"/tenants/{tenant_id}/open", {"reason": "ticket 7"}, root.token)
    assert opened.status == 200
    listed = await call("GET", "/users", token=root.token, tenant=tenant_id)
    assert [one["id"] for one in listed.body["items"]] == [eve.id]
    assert (await call("PATCH", f"/users/{eve.id}", {"role": "admin"}, root.token, tenant_id)).status == 200
    for log in (PLATFORM, tenant_id):
        rows = await audited("tenant.opened", tenant_id, log)
        assert [(row["actor_id"], row["details"]["reason"]) for row in rows] == [
            (root.person.identity.user_id, "ticket 7")
        ]
    other = await member("superadmin")
    assert (await call("GET", "/users", token=other.token, tenant=tenant_id)).refusal == (403, "forbidden")


async def test_an_unopened_tenant_is_refused_alike_whether_it_exists(
    call: Api, member: MakeMember, people: People
) -> None:
    ada, tenant_id = await member(), await people.tenant()
    replies = [await call("GET", "/me", token=ada.token, tenant=one) for one in (tenant_id, uuid.UUID(NOBODY))]
    assert {reply.refusal for reply in replies} == {(403, "forbidden")}
    assert replies[0].body["detail"] == replies[1].body["detail"]
    await call("POST", "/auth/sign-out", token=ada.token)
    assert (await call("GET", "/me", token=ada.token, tenant=tenant_id)).refusal == (401, "authentication_failed")


# keys


async def test_a_key_is_shown_once_and_kept_as_prefix_and_hash(
    call: Api, member: MakeMember, operator: asyncpg.Connection, audited: Any
) -> None:
    ada = await member()
    made = await call("POST", "/keys", {"name": "ci", "scopes": ["read"], "budget_tokens": 500}, ada.token)
    assert made.status == 201
    key, key_id = made.body["key"], made.body["id"]
    assert key.startswith("vsk_")
    assert (made.body["prefix"], made.body["user_id"], made.body["expires_at"]) == (key[:12], ada.id, None)
    listed = (await call("GET", "/keys", token=ada.token)).body["items"]
    assert [one["id"] for one in listed] == [key_id]
    row = await operator.fetchrow("select * from api_keys where id = $1", uuid.UUID(key_id))
    assert row["key_hash"] == token_hash(key)
    log = await audited("api_key.created", key_id)
    assert len(log) == 1
    for kept in (listed, dict(row), dict(log[0])):
        assert key not in str(kept)
    me = (await call("GET", "/me", token=key)).body
    assert (me["id"], me["scopes"]) == (ada.id, ["read"])


async def test_a_revoked_key_is_refused_at_its_next_request(call: Api, member: MakeMember, audited: Any) -> None:
    ada, eve = await member(), await member()
    made = (await call("POST", "/keys", {"name": "ci", "scopes": ["read"]}, ada.token)).body
    assert (await call("DELETE", f"/keys/{made['id']}", token=eve.token)).refusal == (404, "not_found")
    assert (await call("GET", "/me", token=made["key"])).status == 200
    assert (await call("DELETE", f"/keys/{made['id']}", token=ada.token)).status == 204
    assert (await call("GET", "/me", token=made["key"])).refusal == (401, "authentication_failed")
    assert len(await audited("api_key.revoked", made["id"])) == 1


async def test_an_admin_cannot_tell_another_tenants_key_from_none(
    call: Api, member: MakeMember, people: People
) -> None:
    admin, eve = await member("admin"), await people.user(tenant_id=await people.tenant())
    theirs, none = [await call("DELETE", f"/keys/{one}", token=admin.token) for one in (eve.key_id, NOBODY)]
    assert theirs.refusal == none.refusal == (404, "not_found")
    assert theirs.body["detail"] == none.body["detail"]
    assert (await call("GET", "/me", token=eve.key)).status == 200


async def test_an_expired_key_is_refused_and_none_is_made_that_is(
    call: Api, member: MakeMember, operator: asyncpg.Connection
) -> None:
    ada, soon = await member(), datetime.now(UTC) + timedelta(hours=1)
    made = (
        await call("POST", "/keys", {"name": "ci", "scopes": ["read"], "expires_at": soon.isoformat()}, ada.token)
    ).body
    assert datetime.fromisoformat(made["expires_at"]) == soon
    assert (await call("GET", "/me", token=made["key"])).status == 200
    await operator.execute(
        "update api_keys set expires_at = expires_at - interval '1 hour' where id = $1", uuid.UUID(made["id"])
    )
    assert (await call("GET", "/me", token=made["key"])).refusal == (401, "authentication_failed")
    past = {"name": "ci", "expires_at": (soon - timedelta(hours=2)).isoformat()}
    assert (await call("POST", "/keys", past, ada.token)).refusal == (400, "invalid_request")
    naive = {"name": "ci", "expires_at": "2099-01-01T00:00:00"}
    assert (await call("POST", "/keys", naive, ada.token)).refusal == (400, "invalid_request")


@pytest.mark.parametrize(
    ("scopes", "reads", "writes"),
    [(["chat"], 403, 403), (["read"], 200, 403), (["act_as"], 403, 403), (["admin"], 200, 204)],
)
async def test_scopes_of_a_key_bound_what_its_admin_may_do(
    call: Api, people: People, scopes: list[str], reads: int, writes: int
) -> None:
    admin, ada = await people.user("admin", scopes=scopes), await people.user()
    for path in ("/me", "/users", f"/users/{admin.identity.user_id}", "/tenants", "/keys", "/audit"):
        assert (await call("GET", path, token=admin.key)).status == reads, path
    for path, body in [
        ("/users", {}),
        (f"/users/{ada.identity.user_id}/password-link", None),
        ("/keys", {"name": "x"}),
        ("/tenants", {"slug": "x", "name": "x"}),
        (f"/tenants/{DEFAULT_TENANT}/open", {"reason": "x"}),
    ]:
        reply = await call("POST", path, body, admin.key)
        assert (reply.status == 403) == (writes == 403 or "tenants" in path), path
    assert (await call("PATCH", "/me", {"display_name": "x"}, admin.key)).status == (403 if writes == 403 else 200)
    assert (await call("DELETE", f"/keys/{ada.key_id}", token=admin.key)).status == writes


async def test_a_key_without_admin_lists_as_a_user_would(call: Api, people: People) -> None:
    admin = await people.user("admin", scopes=["read"])
    listed = (await call("GET", "/users", token=admin.key)).body["items"]
    assert [one["id"] for one in listed] == [str(admin.identity.user_id)]
    assert (await call("GET", "/audit", token=admin.key)).body["items"] == []


async def test_a_key_acts_in_its_own_tenant_only(call: Api, people: People) -> None:
    ada = await people.user()
    assert (await call("GET", "/me", token=ada.key, tenant=DEFAULT_TENANT)).status == 200
    reply = await call("GET", "/me", token=ada.key, tenant=await people.tenant())
    assert (reply.refusal, reply.body["param"]) == ((403, "forbidden"), "X-Vanilla-Tenant")


async def test_an_admin_makes_keys_that_act_for_others(call: Api, member: MakeMember) -> None:
    admin, ada = await member("admin"), await member()
    acting = {"name": "gateway", "scopes": ["chat", "act_as", "act_as:create"]}
    assert (await call("POST", "/keys", acting, admin.token)).status == 201
    for_ada = await call("POST", "/keys", acting | {"user_id": ada.id}, admin.token)
    assert (for_ada.status, for_ada.body["user_id"]) == (201, ada.id)
    above = await call("POST", "/keys", {"name": "x", "scopes": ["admin"], "user_id": ada.id}, admin.token)
    assert above.refusal == (400, "invalid_request")


async def test_a_demoted_admins_key_acts_as_a_user(call: Api, people: People, operator: asyncpg.Connection) -> None:
    admin, ada = await people.user("admin", scopes=["admin"]), await people.user()
    await operator.execute("select set_user_role($1, 'user')", admin.identity.user_id)
    change = await call("PATCH", f"/users/{ada.identity.user_id}", {"role": "admin"}, admin.key)
    assert change.refusal == (403, "forbidden")
    assert (await call("POST", "/keys", {"name": "x", "scopes": ["admin"]}, admin.key)).status == 403


# audit


async def test_the_audit_log_says_who_did_what_from_where(call: Api, member: MakeMember) -> None:
    admin = await member("admin")
    made = await call(
        "POST", "/users", {"external_id": uuid.uuid4().hex}, admin.token, headers={"x-request-id": "audit-1"}
    )
    rows = (await call("GET", "/audit?action=user.created&limit=1", token=admin.token)).body["items"]
    assert len(rows) == 1
    assert (rows[0]["actor_id"], rows[0]["actor_role"], rows[0]["target_id"]) == (admin.id, "admin", made.body["id"])
    assert (rows[0]["ip"], rows[0]["request_id"]) == ("127.0.0.1", "audit-1")


async def test_the_audit_log_says_from_where_somebody_came_to_the_door(call: Api, operator: asyncpg.Connection) -> None:
    email, new = f"{uuid.uuid4().hex[:12]}@example.test", "four other short words"
    door = {"tenant": "default", "email": email}
    made = await call("POST", "/auth/register", door | {"password": PASSWORD})
    await call("POST", "/auth/sign-in", door | {"password": "not the password"})
    tokens = (await call("POST", "/auth/sign-in", door | {"password": PASSWORD})).body
    for _ in range(2):
        await call("POST", "/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    entered = (await call("POST", "/auth/sign-in", door | {"password": PASSWORD})).body["access_token"]
    await call("POST", "/auth/password", {"old_password": PASSWORD, "new_password": new}, entered)
    await call("POST", "/auth/sign-out", token=entered)
    rows = await operator.fetch(
        "select action, ip from audit_logs where target_id = $1 order by id", uuid.UUID(made.body["user_id"])
    )
    assert {row["action"] for row in rows} == {
        "user.registered",
        "session.opened",
        "session.refused",
        "session.reused",
        "session.closed",
        "user.password_changed",
    }
    assert {row["ip"] for row in rows} == {"127.0.0.1"}


async def test_the_audit_log_is_the_tenants_own(call: Api, member: MakeMember, people: People) -> None:
    admin = await member("admin", await people.tenant())
    actions = {row["action"] for row in (await call("GET", "/audit", token=admin.token)).body["items"]}
    assert actions == {"user.created", "session.opened"}
    assert str(SUPER_ADMIN) not in str(actions)
