"""What a new database lacks: a password for the super admin and, when it is embedded, somebody to try it as."""

import secrets
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from vanilla_saas.database.connection import connect_admin
from vanilla_saas.tenancy import passwords
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, prefix_of, token_hash

DEFAULT_TENANT = UUID("00000000-0000-7000-8000-000000000001")
DEMO_EMAIL = "demo@localhost"


@dataclass(frozen=True, slots=True)
class FirstRun:
    """Secrets that are shown once; the demo is None unless the database was empty and embedded."""

    admin_email: str
    admin_password: str
    demo_password: str | None = None
    demo_key: str | None = None


async def prepare_first_run(admin_url: str, *, with_demo: bool) -> FirstRun | None:
    """Sets a random super-admin password that must be changed; None when there is one already."""
    connection = await connect_admin(admin_url)
    try:
        async with connection.transaction():
            # two that start at once: the second waits here and finds it done
            await connection.execute("select pg_advisory_xact_lock(hashtext('vanilla_saas.first_run'))")
            admin = await connection.fetchrow(
                "select id, email from users where tenant_id = vanilla.platform() and role = 'superadmin'"
                " and password_hash is null and status = 'active' order by created_at limit 1"
            )
            if admin is None:
                return None
            password = secrets.token_urlsafe(12)
            await connection.fetchval(
                "select set_user_password($1, $2, true, vanilla.platform())",
                admin["id"],
                passwords.HASHER.hash(password),
            )
            demo = await _make_demo(connection) if with_demo else (None, None)
            return FirstRun(admin["email"], password, *demo)
    finally:
        await connection.close()


async def _make_demo(connection: asyncpg.Connection) -> tuple[str | None, str | None]:
    if await connection.fetchval("select exists (select from users where tenant_id = $1)", DEFAULT_TENANT):
        return None, None
    password = secrets.token_urlsafe(12)
    user_id = await connection.fetchval(
        "select create_user($1, 'user', 'Demo', $2, p_must_change_password => false, p_tenant_id => $3)",
        DEMO_EMAIL,
        passwords.HASHER.hash(password),
        DEFAULT_TENANT,
    )
    return password, await make_key(connection, user_id, "demo")


async def make_key(connection: asyncpg.Connection, user_id: UUID, name: str) -> str:
    """A key of scopes chat and read for a user of the default tenant, as the operator."""
    key = new_token(KEY_PREFIX)
    await connection.fetchval(
        "select create_api_key($1, $2, $3, '{chat,read}', p_user_id => $4, p_tenant_id => $5)",
        name,
        prefix_of(key),
        token_hash(key),
        user_id,
        DEFAULT_TENANT,
    )
    return key
