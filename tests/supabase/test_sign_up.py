"""A sign-up of Supabase Auth is a user of ours under the same id, or fails; a deleted auth user's account is closed."""

import json
import uuid

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT
from tests.migrations.tools import FILES
from tests.supabase.project import ADMIN, Project, make_project, sign_up


def address() -> str:
    return f"{uuid.uuid4().hex[:12]}@Example.test"


async def the_user(editor: asyncpg.Connection, user: uuid.UUID) -> asyncpg.Record:
    return await editor.fetchrow("select * from users where id = $1", user)


async def test_a_sign_up_gets_the_default_tenants_level_and_tokens(
    editor: asyncpg.Connection, auth_admin: asyncpg.Connection
) -> None:
    email = address()
    user = await sign_up(auth_admin, email, raw_user_meta_data='{"tenant_id": "x", "role": "admin"}')
    made = await the_user(editor, user)
    assert (made["tenant_id"], made["email"], made["role"]) == (DEFAULT_TENANT, email.lower(), "user")
    wallet = await editor.fetchrow(
        "select l.slug, w.available_tokens from user_token_wallets w join levels l on l.tenant_id = w.tenant_id"
        " and l.id = w.level_id where w.user_id = $1",
        user,
    )
    assert tuple(wallet) == ("free", 15_000)
    audit = await editor.fetchrow("select action, details from audit_logs where target_id = $1", user)
    assert (audit["action"], json.loads(audit["details"])) == ("user.created", {"by": "supabase"})


async def test_app_metadata_names_the_tenant(editor: asyncpg.Connection, auth_admin: asyncpg.Connection) -> None:
    tenant = await editor.fetchval("select create_tenant($1, 'T')", f"t{uuid.uuid4().hex[:10]}")
    user = await sign_up(auth_admin, address(), {"tenant_id": str(tenant)})
    assert (await the_user(editor, user))["tenant_id"] == tenant


@pytest.mark.parametrize("email", [None, ""])
async def test_a_sign_up_without_an_address_is_a_user_too(
    editor: asyncpg.Connection, auth_admin: asyncpg.Connection, email: str | None
) -> None:
    user = await sign_up(auth_admin, email, phone="491700000000")
    made = await the_user(editor, user)
    assert (made["email"], made["external_id"]) == (None, str(user))


@pytest.mark.parametrize(
    "metadata",
    [
        {"tenant_id": "00000000-0000-0000-0000-000000000000"},
        {"tenant_id": "11111111-1111-7111-8111-111111111111"},
        {"tenant_id": "not an id"},
        {"tenant_id": "suspended"},
    ],
)
async def test_a_sign_up_that_cannot_become_a_user_fails_and_leaves_nothing(
    editor: asyncpg.Connection, auth_admin: asyncpg.Connection, metadata: dict[str, str]
) -> None:
    if metadata["tenant_id"] == "suspended":
        tenant = await editor.fetchval("select create_tenant($1, 'T')", f"t{uuid.uuid4().hex[:10]}")
        await editor.fetchval("select set_tenant_status($1, 'suspended')", tenant)
        metadata = {"tenant_id": str(tenant)}
    email = address()
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await sign_up(auth_admin, email, metadata)
    assert refusal.value.sqlstate == "VS403"
    assert await editor.fetchval("select count(*) from auth.users where email = $1", email) == 0
    assert await editor.fetchval("select count(*) from users where email = lower($1)", email) == 0


async def test_an_address_that_another_account_has_is_not_taken_over(
    editor: asyncpg.Connection, auth_admin: asyncpg.Connection
) -> None:
    email = address()
    owner = await editor.fetchval("select create_user($1, 'admin', p_tenant_id => $2)", email, DEFAULT_TENANT)
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await sign_up(auth_admin, email)
    assert refusal.value.sqlstate == "VS409"
    assert (await the_user(editor, owner))["role"] == "admin"


async def test_a_tenant_that_takes_no_registrations_takes_only_whom_an_admin_names(
    project: Project, editor: asyncpg.Connection, admin: asyncpg.Connection, auth_admin: asyncpg.Connection
) -> None:
    await admin.execute("update tenants set self_registration = false where id = $1", DEFAULT_TENANT)
    try:
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await sign_up(auth_admin, address())
        assert refusal.value.sqlstate == "VS403"
        invited = await sign_up(auth_admin, address(), {"tenant_id": str(DEFAULT_TENANT)})
        assert (await the_user(editor, invited))["tenant_id"] == DEFAULT_TENANT
    finally:
        await admin.execute("update tenants set self_registration = true where id = $1", DEFAULT_TENANT)


async def test_a_new_address_is_followed_and_a_sign_in_changes_nothing(
    editor: asyncpg.Connection, auth_admin: asyncpg.Connection
) -> None:
    user = await sign_up(auth_admin, address())
    changed = address()
    await auth_admin.execute("update auth.users set email = $2 where id = $1", user, changed)
    made = await the_user(editor, user)
    assert made["email"] == changed.lower()
    metadata = json.dumps({"provider": "email"})
    await auth_admin.execute("update auth.users set raw_app_meta_data = $2 where id = $1", user, metadata)
    assert await the_user(editor, user) == made


async def test_a_deleted_auth_user_is_erased_and_the_ledger_stays(
    editor: asyncpg.Connection, auth_admin: asyncpg.Connection
) -> None:
    email = address()
    user = await sign_up(auth_admin, email)
    await editor.fetchval("select create_api_key('k', 'p', sha256($1), p_user_id => $2)", user.bytes, user)
    await auth_admin.execute("delete from auth.users where id = $1", user)
    closed = await the_user(editor, user)
    assert (closed["status"], closed["email"], closed["external_id"]) == ("deleted", None, None)
    assert await editor.fetchval("select count(*) from api_keys where user_id = $1 and revoked_at is null", user) == 0
    entries = await editor.fetch(
        "select direction, amount from user_token_ledger where user_id = $1 order by seq", user
    )
    assert [tuple(entry) for entry in entries] == [("credit", 5_000), ("credit", 10_000), ("void", -15_000)]
    assert await editor.fetchval("select status from user_token_wallets where user_id = $1", user) == "closed"
    assert await editor.fetchval("select name from api_keys where user_id = $1", user) == "erased"
    audit = await editor.fetchval(
        "select details ->> 'by' from audit_logs where target_id = $1 and action = 'user.erased'", user
    )
    assert audit == "supabase"
    again = await sign_up(auth_admin, email)
    assert (await the_user(editor, again))["email"] == email.lower()


async def test_only_the_table_of_supabase_auth_gets_the_trigger(project: Project) -> None:
    other = make_project(project.cluster, project.major)
    other.shell(ADMIN).statement("alter table auth.users owner to dashboard_user")
    other.shell().sequence()
    assert "CREATE TRIGGER vanilla_follow_auth_user" not in other.shell().dump()


async def test_without_the_right_to_make_the_trigger_the_file_runs_and_says_so(project: Project) -> None:
    other = make_project(project.cluster, project.major)
    other.shell(ADMIN).statement("revoke trigger on auth.users from postgres")
    done = other.shell().file(FILES[0])
    assert done.returncode == 0
    assert "Supabase Auth's sign-ups will not become users" in done.stderr
    assert "ERROR" not in done.stderr
    other.shell(ADMIN).statement("grant trigger on auth.users to postgres")
    other.shell().sequence()
    assert "vanilla_follow_auth_user" in other.shell().dump()
