"""The last admin of a tenant, what a former admin's keys may, and the end of an opened tenant."""

import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import People
from tests.console.console_support import look, signed_in, submit, super_admin
from tests.tenancy.conftest import Api, MakeMember
from vanilla_saas.database.context import PLATFORM
from vanilla_saas.tenancy.secret_tokens import token_hash

ADMINS = "select count(*) from users where tenant_id = $1 and role = 'admin' and status = 'active'"


async def test_the_last_admin_of_a_tenant_neither_demotes_themselves_nor_is_demoted_by_a_key_of_theirs(
    call: Api, member: MakeMember, people: People, operator: asyncpg.Connection
) -> None:
    admin = await member("admin", await people.tenant())
    tenant = admin.person.identity.tenant_id
    key = await call("POST", "/keys", {"name": "k", "scopes": ["admin", "read"]}, admin.token)
    for token in (admin.token, key.body["key"]):
        refused = await call("PATCH", f"/users/{admin.id}", {"role": "user"}, token)
        assert refused.refusal == (409, "invalid_state")
        assert refused.body["hint"] == "Make somebody else an admin first."
    assert await operator.fetchval(ADMINS, tenant) == 1
    assert (
        await operator.fetchval("select count(*) from audit_logs where tenant_id = $1 and action = 'user.role'", tenant)
        == 0
    )
    # a disabled admin is none
    spare = await member("admin", tenant)
    disabled = await call("PATCH", f"/users/{spare.id}", {"status": "disabled"}, admin.token)
    assert disabled.status == 200
    assert (await call("PATCH", f"/users/{admin.id}", {"role": "user"}, admin.token)).status == 409
    assert (await call("PATCH", f"/users/{spare.id}", {"status": "active"}, admin.token)).status == 200
    assert (await call("PATCH", f"/users/{admin.id}", {"role": "user"}, admin.token)).body["role"] == "user"
    assert await operator.fetchval(ADMINS, tenant) == 1


async def test_a_super_admin_who_opened_the_tenant_and_the_operator_may_remove_its_last_admin(
    call: Api, member: MakeMember, people: People, operator: asyncpg.Connection
) -> None:
    root, tenant = await member("superadmin"), await people.tenant()
    admin = await member("admin", tenant)
    await call("POST", f"/tenants/{tenant}/open", {"reason": "they left"}, root.token)
    changed = await call("PATCH", f"/users/{admin.id}", {"role": "user"}, root.token, tenant=tenant)
    assert (changed.status, changed.body["role"]) == (200, "user")
    other = await member("admin", tenant)
    await operator.fetchval("select set_user_status($1, 'disabled')", other.person.identity.user_id)
    assert await operator.fetchval(ADMINS, tenant) == 0


async def test_who_is_no_admin_any_more_has_no_key_that_names_who_pays(
    call: Api, member: MakeMember, people: People, operator: asyncpg.Connection
) -> None:
    tenant = await people.tenant()
    boss, admin = [await member("admin", tenant) for _ in range(2)]
    plain = await member("user", tenant)
    scopes = {
        "read": ["read"],
        "pays": ["chat", "act_as"],
        "makes": ["chat", "act_as:create"],
        "admin": ["admin", "read"],
    }
    keys = {
        name: (await call("POST", "/keys", {"name": name, "scopes": wanted}, admin.token)).body["id"]
        for name, wanted in scopes.items()
    }
    # a program's own user, to whom an admin gave the key, is not the matter
    body = {"name": "program", "scopes": ["chat", "act_as"], "user_id": plain.id}
    keys["program"] = (await call("POST", "/keys", body, boss.token)).body["id"]
    for user in (admin, plain):
        assert (await call("PATCH", f"/users/{user.id}", {"role": "user"}, boss.token)).status == 200
    rows = await operator.fetch("select id from api_keys where tenant_id = $1 and revoked_at is null", tenant)
    alive = {str(row["id"]) for row in rows}
    assert {name for name, key in keys.items() if key in alive} == {"read", "admin", "program"}


async def test_a_key_or_a_link_whose_hash_exists_is_refused_with_a_code_and_nothing_is_written(
    operator: asyncpg.Connection, people: People
) -> None:
    person, other = await people.user(), await people.user(tenant_id=await people.tenant())
    taken = await operator.fetchval("select key_hash from api_keys where id = $1", other.key_id)
    link = token_hash(uuid.uuid4().hex)
    await operator.fetchval("select issue_one_time_token($1, $2)", other.identity.user_id, link)
    counted = (
        "select (select count(*) from api_keys) + (select count(*) from one_time_tokens)"
        " + (select count(*) from audit_logs)"
    )
    before = await operator.fetchval(counted)
    for statement, hash_ in [
        ("select create_api_key('n', 'p', $2, p_user_id => $1)", taken),
        ("select issue_one_time_token($1, $2)", link),
    ]:
        with pytest.raises(asyncpg.PostgresError, match="with this hash exists") as refused:
            await operator.fetchval(statement, person.identity.user_id, hash_)
        assert refused.value.sqlstate == "VS409"
    assert await operator.fetchval(counted) == before


@pytest.mark.parametrize(
    "statement",
    [
        "select vanilla.redeem_one_time_token(sha256('x'), null)",
        "select vanilla.change_password(sha256('x'), null)",
        "select vanilla.register_user('default', 'null@example.test', null, '')",
    ],
)
async def test_no_password_is_set_to_nothing(statement: str, operator: asyncpg.Connection, people: People) -> None:
    person = await people.user()
    await operator.execute("delete from one_time_tokens where token_hash = sha256('x')")
    await operator.fetchval("select issue_one_time_token($1, sha256('x'))", person.identity.user_id)
    await operator.execute(
        "insert into sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at)"
        " values ($1, $2, $2, sha256('x'), sha256('y'), now() + interval '1 hour', now() + interval '1 hour')"
        " on conflict do nothing",
        person.identity.tenant_id,
        person.identity.user_id,
    )
    with pytest.raises(asyncpg.PostgresError, match="an Argon2id hash is expected") as refused:
        await operator.fetchval(statement)
    assert refused.value.sqlstate == "VS400"
    await operator.execute("delete from sessions where token_hash = sha256('x')")


# the end of an opening


async def test_a_super_admin_leaves_a_tenant_before_the_eight_hours_are_over(
    call: Api, member: MakeMember, people: People, audited: Any
) -> None:
    root, other, tenant = await member("superadmin"), await member("superadmin"), await people.tenant()
    for one in (root, root, other):
        await call("POST", f"/tenants/{tenant}/open", {"reason": "a question"}, one.token)
    assert (await call("GET", "/users", token=root.token, tenant=tenant)).status == 200
    # from inside or from the platform, once or twice
    assert (await call("DELETE", f"/tenants/{tenant}/open", token=root.token, tenant=tenant)).status == 204
    assert (await call("GET", "/users", token=root.token, tenant=tenant)).status == 403
    assert (await call("DELETE", f"/tenants/{tenant}/open", token=root.token)).status == 204
    assert (await call("GET", "/users", token=other.token, tenant=tenant)).status == 200
    for log in (PLATFORM, tenant):
        (row,) = await audited("tenant.left", tenant, log)
        assert (str(row["actor_id"]), row["details"]) == (root.id, {"who": [root.id]})


async def test_nobody_else_ends_an_opening(call: Api, member: MakeMember, people: People) -> None:
    root, tenant, elsewhere = await member("superadmin"), await people.tenant(), await people.tenant()
    admin = await member("admin", tenant)
    for one in (tenant, elsewhere):
        await call("POST", f"/tenants/{one}/open", {"reason": "a question"}, root.token)
    refused = await call("DELETE", f"/tenants/{tenant}/open", token=admin.token)
    assert refused.refusal == (403, "forbidden")
    # inside one tenant, another one's is not in reach
    assert (await call("DELETE", f"/tenants/{elsewhere}/open", token=root.token, tenant=tenant)).status == 403
    for one in (tenant, elsewhere):
        assert (await call("GET", "/users", token=root.token, tenant=one)).status == 200


async def test_leaving_in_the_console_ends_the_opening_and_not_only_the_cookie(api: str, people: People) -> None:
    tenant = await people.tenant()
    live = "select count(*) from tenant_openings where tenant_id = $1 and expires_at > now()"
    async with signed_in(api, people, await super_admin(people)) as browser:
        assert (await submit(browser, f"/tenants/{tenant}/open", reason="a question"))[0] == 303
        assert await people.operator.fetchval(live, tenant) == 1
        _, page, _ = await look(browser, "/users")
        assert "Leave tenant" in page.text
        assert (await submit(browser, "/tenants/leave"))[0] == 303
        assert await people.operator.fetchval(live, tenant) == 0
        assert (await submit(browser, "/tenants/leave"))[0] == 303
