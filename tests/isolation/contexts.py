"""Who a connection may claim to be, truly or not."""

import uuid
from dataclasses import dataclass

import asyncpg

from tests.conftest import SUPER_ADMIN
from tests.isolation.catalog import ACTS_AS, PLATFORM, Caller
from tests.isolation.rows import Member, World
from vanilla_saas.database.context import ContextSigner, Identity, Role

OTHER_KEY = ContextSigner(b"\x07" * 32)


@dataclass(frozen=True)
class Context:
    """A claim, and whom the database must take it for.

    `entry` says how it is made: accepted and refused by vanilla.set_context, as the product does, or injected past it
    with set_config, as SQL in a request could. `given` is what a superuser does before. `claims` is what PostgREST
    sets in a session of `authenticator` instead of a token.
    """

    name: str
    token: str
    caller: Caller
    entry: str
    given: str = ""
    claims: str | None = None


def contexts(world: World) -> list[Context]:
    """Every kind of claim. `nobody` reads nothing; a name of tenant a without a member of a is not believed either."""
    a, b = world.a, world.b
    nobody = Caller(None, a.id, a.admin.id)

    def own(name: str, member: Member, seen_as: str, role: Role | None = None) -> Context:
        return Context(
            name, _sign(world, a.id, member.id, role or member.role), Caller(seen_as, a.id, member.id), "set"
        )

    def refused(name: str, token: str, given: str) -> Context:
        return Context(name, token, nobody, "refused", given)

    def injected(name: str, token: str, caller: Caller = nobody) -> Context:
        return Context(name, token, caller, "injected")

    admin, user = a.token(world.signer, a.admin), a.token(world.signer, a.user)
    status = f"update public.users set status = '{{}}' where id = '{a.user.id}'"
    tenant_status = f"update public.tenants set status = '{{}}' where id = '{a.id}'"
    return [
        injected("none", ""),
        own("user", a.user, "user"),
        own("admin", a.admin, "admin"),
        own("service", a.admin, "user", "service"),
        injected("expired", a.token(world.signer, a.admin, lifetime_s=-1)),
        injected("forged", b.token(OTHER_KEY, b.admin)),
        injected("edited", admin.replace(a.id, b.id)),
        injected("junk", "v1.junk"),
        injected("user of b in tenant a", a.token(world.signer, b.user), Caller("user", a.id, b.user.id)),
        refused("suspended tenant", admin, tenant_status.format("suspended")),
        refused("closed tenant", admin, tenant_status.format("closed")),
        refused("disabled user", user, status.format("disabled")),
        refused("deleted user", user, status.format("deleted")),
        refused("super admin, not opened", _sign(world, a.id, str(SUPER_ADMIN), "superadmin"), ""),
        Context(
            "super admin, opened",
            _sign(world, a.id, str(SUPER_ADMIN), "superadmin"),
            Caller("admin", a.id, str(SUPER_ADMIN)),
            "set",
            "insert into public.tenant_openings (tenant_id, user_id, reason, expires_at)"
            f" values ('{a.id}', '{SUPER_ADMIN}', 'a test', 'infinity')",
        ),
        Context(
            "super admin, platform",
            _sign(world, PLATFORM, str(SUPER_ADMIN), "superadmin"),
            Caller("admin", PLATFORM, str(SUPER_ADMIN), platform=True),
            "set",
        ),
    ]


def _sign(world: World, tenant: str, user: str, role: Role) -> str:
    return world.signer.sign(Identity(uuid.UUID(tenant), uuid.UUID(user), role), 600)


async def become(connection: asyncpg.Connection, role: str, context: Context) -> None:
    if context.claims is not None:
        await connection.execute("set local session authorization authenticator")
    await connection.execute(f"set local role {role}")


def _injected(role: str, context: Context) -> bool:
    return context.entry == "injected" or (context.entry == "set" and ACTS_AS.get(role, role) == "vanilla_runtime")


def entering(role: str, context: Context) -> str:
    """A claim that nobody refuses, as a statement: it goes in one message with others."""
    if _injected(role, context):
        return f"select set_config('vanilla.context', '{context.token}', true)"
    return f"select vanilla.set_context('{context.token}')"


async def enter(connection: asyncpg.Connection, role: str, context: Context) -> str | None:
    """Makes the claim, as `role`, within the caller's transaction; returns what is wrong with the answer."""
    like = ACTS_AS.get(role, role)
    if context.claims is not None:
        await connection.fetchval("select set_config('request.jwt.claims', $1, true)", context.claims)
        return None
    if _injected(role, context):
        await connection.fetchval("select set_config('vanilla.context', $1, true)", context.token)
        return None
    expected = "42501" if like == "vanilla_runtime" else "VS401" if context.entry == "refused" else None
    try:
        async with connection.transaction():
            await connection.fetchval("select vanilla.set_context($1)", context.token)
        answer = None
    except asyncpg.PostgresError as error:
        answer = error.sqlstate
    return None if answer == expected else f"the context was answered {answer}, not {expected}"
