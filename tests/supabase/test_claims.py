"""The claims that PostgREST sets are a context in its own session and in no other, and only of whom they name."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, SUPER_ADMIN
from tests.supabase.project import Project, claims, request, sign_up
from vanilla_saas.database.context import PLATFORM, ContextSigner, Identity

WHO = "select vanilla.current_tenant_id(), vanilla.current_user_id(), vanilla.current_user_role()"
WALLETS = "select user_id, available_tokens from user_token_wallets"


@dataclass
class Crowd:
    """Two tenants, each with two auth users; `admin` is an admin of ours, whatever a claim says."""

    tenant: uuid.UUID
    other_tenant: uuid.UUID
    user: uuid.UUID
    admin: uuid.UUID
    stranger: uuid.UUID


@pytest.fixture
async def crowd(editor: asyncpg.Connection, auth_admin: asyncpg.Connection) -> Crowd:
    slugs = [f"t{uuid.uuid4().hex[:10]}" for _ in range(2)]
    made = [await editor.fetchval("select create_tenant($1, 'T')", slug) for slug in slugs]
    users = [
        await sign_up(auth_admin, f"{uuid.uuid4().hex}@example.test", {"tenant_id": str(tenant)})
        for tenant in (made[0], made[0], made[1])
    ]
    await editor.fetchval("select set_user_role($1, 'admin')", users[1])
    return Crowd(made[0], made[1], *users)


async def seen(
    connection: asyncpg.Connection, given: dict[str, Any] | None, role: str = "authenticated"
) -> tuple[Any, ...] | str:
    """Tenant, user and role that the database believes, or the SQLSTATE of its refusal."""
    try:
        async with request(connection, given, role):
            return tuple(await connection.fetchrow(WHO))
    except asyncpg.PostgresError as error:
        return error.sqlstate


NOBODY = (None, None, None)


async def test_an_authenticated_request_acts_as_the_user_with_our_role(
    authenticator: asyncpg.Connection, crowd: Crowd
) -> None:
    assert await seen(authenticator, claims(crowd.user, crowd.tenant)) == (crowd.tenant, crowd.user, "user")
    assert await seen(authenticator, claims(crowd.admin, crowd.tenant)) == (crowd.tenant, crowd.admin, "admin")
    boasting = claims(crowd.user, crowd.tenant, user_role="admin", app_role="superadmin")
    boasting["app_metadata"] |= {"role": "admin"}
    assert await seen(authenticator, boasting) == (crowd.tenant, crowd.user, "user")


async def test_user_metadata_names_no_tenant(authenticator: asyncpg.Connection, crowd: Crowd) -> None:
    written = {"tenant_id": str(crowd.other_tenant)}
    given = claims(crowd.user, crowd.tenant, user_metadata=written, tenant_id=str(crowd.other_tenant))
    assert await seen(authenticator, given) == (crowd.tenant, crowd.user, "user")
    assert await seen(authenticator, claims(crowd.stranger, None, user_metadata=written)) == "VS401"


async def test_a_token_without_a_tenant_is_of_the_default_one(
    authenticator: asyncpg.Connection, auth_admin: asyncpg.Connection
) -> None:
    user = await sign_up(auth_admin, f"{uuid.uuid4().hex}@example.test")
    assert await seen(authenticator, claims(user, None)) == (DEFAULT_TENANT, user, "user")


async def test_claims_that_name_nobody_or_have_expired_are_refused(
    authenticator: asyncpg.Connection, crowd: Crowd
) -> None:
    good = claims(crowd.user, crowd.tenant)
    for wrong in (
        good | {"exp": int(time.time()) - 1},
        good | {"exp": str(int(time.time()) + 100)},
        {name: value for name, value in good.items() if name != "exp"},
        {name: value for name, value in good.items() if name != "sub"},
        good | {"sub": str(uuid.uuid4())},
        good | {"sub": "' or true --"},
        good | {"sub": str(crowd.stranger)},
        claims(crowd.user, crowd.other_tenant),
        claims(crowd.user, PLATFORM),
        claims(SUPER_ADMIN, PLATFORM),
        claims(crowd.user, "not an id"),
        claims(crowd.user, None),
    ):
        assert await seen(authenticator, wrong) == "VS401", wrong
    assert await seen(authenticator, None) == NOBODY
    assert await seen(authenticator, good) == (crowd.tenant, crowd.user, "user")


async def test_a_disabled_user_and_a_suspended_tenant_are_refused_at_once(
    authenticator: asyncpg.Connection, editor: asyncpg.Connection, crowd: Crowd
) -> None:
    await editor.fetchval("select set_user_status($1, 'disabled')", crowd.admin)
    assert await seen(authenticator, claims(crowd.admin, crowd.tenant)) == "VS401"
    await editor.fetchval("select set_tenant_status($1, 'suspended')", crowd.tenant)
    assert await seen(authenticator, claims(crowd.user, crowd.tenant)) == "VS401"


@pytest.mark.parametrize("login", ["vanilla_app", "postgres", "authenticated", "authenticator"])
async def test_claims_set_by_anybody_else_are_nothing(
    project: Project, admin: asyncpg.Connection, crowd: Crowd, login: str
) -> None:
    """authenticated: reached from the SQL editor; authenticator: itself, without set role."""
    given = json.dumps(claims(crowd.user, crowd.tenant))
    await admin.execute("alter role vanilla_app login")
    connection = await project.connect("postgres" if login == "authenticated" else login)
    async with connection.transaction():
        if login == "authenticated":
            await connection.execute("set local role authenticated")
        await connection.fetchval("select set_config('request.jwt.claims', $1, true)", given)
        if login == "authenticator":
            for statement in (WHO, WALLETS, "select vanilla.claim(3)"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    async with connection.transaction():
                        await connection.fetch(statement)
        elif login == "postgres":  # above row-level security, but nobody to a function that asks for the user
            with pytest.raises(asyncpg.PostgresError, match=r"no context|permission denied"):
                await connection.fetchval("select set_display_name('x')")
        else:
            assert tuple(await connection.fetchrow(WHO)) == NOBODY
            assert await connection.fetch(WALLETS) == []
    await connection.close()


@pytest.mark.parametrize("role", ["anon", "service_role", "authenticator"])
async def test_postgrests_other_roles_have_no_identity(
    authenticator: asyncpg.Connection, admin: asyncpg.Connection, crowd: Crowd, role: str
) -> None:
    given = claims(crowd.user, crowd.tenant, role=role)
    allowed = role == "service_role"  # reads everything, as nobody
    assert await seen(authenticator, given, role) == (NOBODY if allowed else "42501")
    # the verifier itself, past the missing grants
    async with admin.transaction():
        await admin.execute("grant usage on schema vanilla to public")
        await admin.execute("grant execute on function vanilla.claim(integer, boolean) to public")
        await admin.execute("set local session authorization postgres; set local role authenticated")
        await admin.fetchval("select set_config('request.jwt.claims', $1, true)", json.dumps(given))
        assert await admin.fetchval("select vanilla.claim(4)") is None
        await admin.execute("set local session authorization authenticator")
        if role != "authenticator":
            await admin.execute(f"set local role {role}")
        await admin.fetchval("select set_config('request.jwt.claims', $1, true)", json.dumps(given))
        assert await admin.fetchval("select vanilla.claim(4)") is None
        await admin.execute("set local role authenticated")
        assert await admin.fetchval("select vanilla.claim(4)") == str(crowd.user)
        await admin.execute("set local session authorization default; set local role none")
        await admin.execute("revoke usage on schema vanilla from public")
        await admin.execute("revoke execute on function vanilla.claim(integer, boolean) from public")


async def test_a_signed_token_stands_above_claims(
    authenticator: asyncpg.Connection, admin: asyncpg.Connection, crowd: Crowd, signer: ContextSigner
) -> None:
    await admin.fetchval("select vanilla.install_context_key($1, $2)", signer.key_id, signer.key)
    token = signer.sign(Identity(crowd.other_tenant, crowd.stranger, "user"))
    async with request(authenticator, claims(crowd.user, crowd.tenant)):
        await authenticator.fetchval("select vanilla.set_context($1)", token)
        assert (await authenticator.fetchrow(WHO))[1] == crowd.stranger
        await authenticator.fetchval("select set_config('vanilla.context', $1, true)", token[:-1] + "x")
        with pytest.raises(asyncpg.PostgresError, match="context refused"):
            await authenticator.fetchrow(WHO)


# what supabase-js reads and calls


async def test_a_user_reads_their_own_wallet_and_no_other(authenticator: asyncpg.Connection, crowd: Crowd) -> None:
    read = f"with rows as ({WALLETS}) select coalesce(json_agg(rows), '[]')::text from rows"
    for user, tenant, expected in (
        (crowd.user, crowd.tenant, {crowd.user}),
        (crowd.stranger, crowd.other_tenant, {crowd.stranger}),
        (crowd.admin, crowd.tenant, {crowd.user, crowd.admin}),
    ):
        async with request(authenticator, claims(user, tenant)):
            rows = json.loads(await authenticator.fetchval(read))
        assert {row["user_id"] for row in rows} == {str(one) for one in expected}
        assert {row["available_tokens"] for row in rows} == {15_000}


@pytest.mark.parametrize(
    "statement",
    [
        "update user_token_wallets set available_tokens = 1000000",
        "insert into user_token_ledger (tenant_id, user_id) values (vanilla.uuid7(), vanilla.uuid7())",
        "delete from user_token_ledger",
        "select password_hash from users",
        "select * from sessions",
        "select adjust_user_tokens(vanilla.current_user_id(), 1000, 'credit')",
        "select reset_monthly_tokens()",
        "truncate user_token_wallets",
        "create table public.mine ()",
        "create temporary table mine ()",
    ],
)
async def test_a_user_helps_themselves_to_nothing(
    authenticator: asyncpg.Connection, crowd: Crowd, statement: str
) -> None:
    async with request(authenticator, claims(crowd.user, crowd.tenant)):
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await authenticator.execute(statement)
    assert refusal.value.sqlstate in ("42501", "VS403", "VS404")


async def test_functions_are_called_over_rpc_as_the_user(authenticator: asyncpg.Connection, crowd: Crowd) -> None:
    call = "select pgrst_call.v::text from (select {} as v) pgrst_call"
    async with request(authenticator, claims(crowd.user, crowd.tenant)):
        assert await authenticator.fetchval(call.format("get_current_user_id()")) == str(crowd.user)
        await authenticator.fetchval("select set_display_name('Ada')")
        assert await authenticator.fetchval("select display_name from users") == "Ada"
        assert await authenticator.fetch("select * from verify_token_ledger($1)", crowd.user) == []
        assert await authenticator.fetchval("select token_balance_at($1, now())", crowd.user) == 15_000
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await authenticator.fetchval("select token_balance_at($1, now())", crowd.stranger)
    assert refusal.value.sqlstate in ("VS403", "VS404")
    async with request(authenticator, claims(crowd.admin, crowd.tenant)):
        entry = json.loads(await authenticator.fetchval("select adjust_user_tokens($1, 5, 'credit')", crowd.user))
        actor = await authenticator.fetchval("select actor_id from user_token_ledger where id = $1", entry["id"])
        assert (entry["amount"], actor) == (5, crowd.admin)


@pytest.fixture
async def service(authenticator: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A request with the service key."""
    async with request(authenticator, {"role": "service_role", "exp": int(time.time()) + 60}, "service_role"):
        yield authenticator


async def test_the_service_key_reads_every_tenant_and_runs_the_operators_functions(
    service: asyncpg.Connection, crowd: Crowd
) -> None:
    found = {row["user_id"] for row in await service.fetch(WALLETS)}
    assert found >= {crowd.user, crowd.admin, crowd.stranger}
    entry = json.loads(await service.fetchval("select adjust_user_tokens($1, 7, 'credit')", crowd.stranger))
    assert entry["amount"] == 7
    assert await service.fetchval("select reset_monthly_tokens()") == 0


@pytest.mark.parametrize(
    "statement",
    [
        "update user_token_wallets set available_tokens = 1",
        "delete from audit_logs",
        "delete from user_token_ledger",
        "select password_hash from users",
        "select key_hash from api_keys",
        "select secret from ai_providers",
        "select * from sessions",
        "select * from vanilla.context_keys",
    ],
)
async def test_the_service_key_reads_no_secret_and_writes_through_functions_only(
    service: asyncpg.Connection, statement: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await service.execute(statement)


async def test_a_service_role_that_is_bound_by_row_level_security_is_nobody(
    admin: asyncpg.Connection, crowd: Crowd
) -> None:
    async with admin.transaction():
        await admin.execute("alter role service_role nobypassrls")
        await admin.execute("set local session authorization authenticator; set local role service_role")
        assert await admin.fetch(WALLETS) == []
        with pytest.raises(asyncpg.PostgresError) as refusal:
            async with admin.transaction():
                await admin.fetchval("select adjust_user_tokens($1, 7, 'credit')", crowd.user)
        assert refusal.value.sqlstate == "VS401"
        await admin.execute("set local session authorization default; set local role none")
        await admin.execute("alter role service_role bypassrls")
