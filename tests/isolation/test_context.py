"""The signed context: only what was signed is believed, only while it is valid, and only of whom it names."""

import asyncio
import hashlib
import hmac
import os
import random
import string
import time
import uuid
from contextlib import suppress

import asyncpg
import pytest

from tests.conftest import LONG, SUPER_ADMIN, Cluster
from tests.isolation.conftest import TENANTS_SEEN, accepted, identity
from tests.isolation.contexts import OTHER_KEY
from tests.isolation.rows import World
from vanilla_saas.database.context import PLATFORM, ContextSigner, Identity, Role
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database

EDITS = 20_000 if LONG else 2_000


async def test_prepared_statements_follow_the_context_from_tenant_to_tenant(pool: Database, world: World) -> None:
    for _ in range(12):  # custom plans first, then the generic one
        for tenant in ("a", "b"):
            async with pool.transaction(identity(world, tenant)) as connection:
                assert await connection.fetchval(TENANTS_SEEN) == [getattr(world, tenant).id]
        async with pool.transaction(None) as connection:
            assert await connection.fetchval(TENANTS_SEEN) is None


async def test_mixed_transactions_over_few_connections_never_see_each_other(
    cluster: Cluster, world_name: str, world: World
) -> None:
    database = await Database.open(
        cluster.url("vanilla_app", world_name), cluster.url("vanilla_runtime", world_name), world.signer, size=4
    )
    served = 0

    async def visit(number: int) -> None:
        nonlocal served
        tenant = ("a", "b", None)[number % 3]
        who = identity(world, tenant, ("user", "admin")[number % 2]) if tenant else None
        with suppress(asyncpg.DivisionByZeroError, TimeoutError):
            async with asyncio.timeout(0.001 if number % 7 == 0 else 30), database.transaction(who) as connection:
                assert await connection.fetchval(TENANTS_SEEN) == ([getattr(world, tenant).id] if tenant else None)
                served += 1
                if number % 5 == 0:
                    await connection.execute("select 1 / 0")

    await asyncio.gather(*(visit(number) for number in range(300)))
    await database.close()
    assert served > 200


async def test_no_edit_of_a_token_is_accepted(app: asyncpg.Connection, world: World) -> None:
    good, other = world.a.token(world.signer, world.a.admin), world.b.token(world.signer, world.b.user)
    assert await accepted(app, good) == [world.a.id]
    dice = random.Random(7)
    edits: dict[str, None] = {}
    while len(edits) < EDITS:
        edits |= dict.fromkeys({_edit(dice, good, other)} - {good, other, ""})
    for token in edits:
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await app.fetchval("select vanilla.set_context($1)", token)
        assert refusal.value.sqlstate == "VS401", token


def _edit(dice: random.Random, good: str, other: str) -> str:
    alphabet = string.ascii_letters + string.digits + ".-_ \n\t'\"%\\é０"
    at = dice.randrange(len(good))
    fields, others = good.split("."), other.split(".")
    field = dice.randrange(len(fields))
    match dice.randrange(8):
        case 0:
            return good[:at] + dice.choice(alphabet) + good[at + 1 :]
        case 1:
            return good[:at] + dice.choice(alphabet) + good[at:]
        case 2:
            return good[:at] + good[at + 1 :]
        case 3:
            return good[:at] + good[at : at + 2][::-1] + good[at + 2 :]
        case 4:
            return good[:at] + good[at:].upper()
        case 5:
            return good[:at] + other[at:]
        case 6:
            swapped = dice.choice((others[field], "", "*", fields[field] * 2))
            return ".".join([*fields[:field], swapped, *fields[field + 1 :]])
        case _:
            return ".".join([*fields[:field], str(dice.randrange(10**12)), *fields[field:]])


@pytest.mark.parametrize("text", ["' or true --", "'; drop table users; --", "$$", "%s", "00000000", "*", "null"])
async def test_sql_in_a_field_is_text_even_when_it_is_signed(app: asyncpg.Connection, world: World, text: str) -> None:
    fields = world.a.token(world.signer, world.a.admin).split(".")[:-1]
    for at in range(len(fields)):
        payload = ".".join([*fields[:at], text, *fields[at + 1 :]])
        for key in (world.signer.key, OTHER_KEY.key):
            signature = hmac.new(key, payload.encode(), hashlib.sha256).hexdigest()
            with pytest.raises(asyncpg.PostgresError):
                await app.fetchval("select vanilla.set_context($1)", f"{payload}.{signature}")
        assert await app.fetchval(TENANTS_SEEN) is None


async def test_tokens_without_form_time_or_the_right_key_are_refused(app: asyncpg.Connection, world: World) -> None:
    admin = world.a.admin
    good = world.a.token(world.signer, admin)
    for token in (
        world.a.token(world.signer, admin, lifetime_s=-1),
        world.a.token(world.signer, admin, lifetime_s=0),
        world.a.token(OTHER_KEY, admin),
        good.replace(f".{world.signer.key_id}.", f".{OTHER_KEY.key_id}."),
        good.replace(f".{world.signer.key_id}.", ".unknown."),
        good[:-64],
        good[:-1],
        f"{good} ",
        "x" * 1_000_000,
        f"{good}{'0' * 1_000_000}",
        ".",
        "null",
    ):
        assert await accepted(app, token) is None, token[:300]
    assert await accepted(app, "") == []
    with pytest.raises(asyncpg.CharacterNotInRepertoireError):
        await app.fetchval("select vanilla.set_context($1)", f"{good}\0")


async def test_a_token_ends_while_its_transaction_runs(app: asyncpg.Connection, world: World) -> None:
    transaction = app.transaction()
    await transaction.start()
    await app.fetchval("select vanilla.set_context($1)", world.a.token(world.signer, world.a.admin, lifetime_s=2))
    assert await app.fetchval(TENANTS_SEEN) == [world.a.id]
    deadline = time.monotonic() + 10
    while await app.fetchval(TENANTS_SEEN) is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    with pytest.raises(asyncpg.PostgresError, match="context refused"):
        await app.fetchval("select set_display_name('x')")
    await transaction.rollback()


class _ShortSigner(ContextSigner):
    def sign(self, identity: Identity, lifetime_s: int = 60) -> str:
        return super().sign(identity, 2)


async def test_a_transaction_that_outlives_its_token_is_refused_and_undone(
    cluster: Cluster, world_name: str, world: World, operator_of_world: asyncpg.Connection
) -> None:
    database = await Database.open(
        cluster.url("vanilla_app", world_name),
        cluster.url("vanilla_runtime", world_name),
        _ShortSigner(world.signer.key),
        size=1,
    )
    name = "select display_name from users where id = $1"
    before = await operator_of_world.fetchval(name, uuid.UUID(world.a.admin.id))

    async def outlive() -> None:
        async with database.transaction(identity(world, "a")) as connection:
            await connection.fetchval("select set_display_name('outlived')")
            deadline = time.monotonic() + 10
            while await connection.fetchval(TENANTS_SEEN) is not None and time.monotonic() < deadline:
                await asyncio.sleep(0.05)

    with pytest.raises(VanillaError) as refused:
        await outlive()
    await database.close()
    assert refused.value.code.name == "context_invalid"
    assert await operator_of_world.fetchval(name, uuid.UUID(world.a.admin.id)) == before


async def test_a_key_is_accepted_until_it_is_told_to_expire(
    app: asyncpg.Connection, world: World, operator_of_world: asyncpg.Connection
) -> None:
    rotated = ContextSigner(os.urandom(32))
    install = "select vanilla.install_context_key($1, $2, $3::text::timestamptz)"
    token = world.a.token(rotated, world.a.admin)
    assert await accepted(app, token) is None
    await operator_of_world.fetchval(install, rotated.key_id, rotated.key, "infinity")
    assert await accepted(app, token) == [world.a.id]
    with pytest.raises(asyncpg.UniqueViolationError):
        await operator_of_world.fetchval(install, rotated.key_id, os.urandom(32), "infinity")
    await operator_of_world.fetchval(install, rotated.key_id, rotated.key, "2020-01-01")
    assert await accepted(app, token) is None


@pytest.mark.parametrize(
    ("member", "claimed", "believed"),
    [
        ("user", "user", True),
        ("user", "admin", False),
        ("user", "service", False),
        ("user", "superadmin", False),
        ("user", "", False),
        ("user", "User", False),
        ("admin", "admin", True),
        ("admin", "user", True),  # a key without the scope admin acts below its user's role
        ("admin", "service", True),
        ("admin", "superadmin", False),
    ],
)
async def test_nobody_acts_above_their_role(
    app: asyncpg.Connection, world: World, member: str, claimed: Role, believed: bool
) -> None:
    who = Identity(uuid.UUID(world.a.id), uuid.UUID(getattr(world.a, member).id), claimed)
    assert (await accepted(app, world.signer.sign(who)) is not None) is believed


async def test_a_user_is_only_believed_in_their_own_tenant(app: asyncpg.Connection, world: World) -> None:
    a, b = world.a, world.b
    for tenant, user in (
        (a.id, b.admin.id),
        (b.id, a.admin.id),
        (str(PLATFORM), a.admin.id),
        (a.id, str(uuid.uuid4())),
    ):
        for role in ("user", "admin"):
            assert await accepted(app, world.signer.sign(Identity(uuid.UUID(tenant), uuid.UUID(user), role))) is None


@pytest.mark.parametrize("status", ["disabled", "deleted"])
async def test_a_user_who_is_not_active_is_refused_at_once(
    app: asyncpg.Connection, world: World, operator_of_world: asyncpg.Connection, status: str
) -> None:
    user = await operator_of_world.fetchval(
        "select create_user($1, p_tenant_id => $2)", f"{uuid.uuid4().hex}@example.test", uuid.UUID(world.a.id)
    )
    token = world.signer.sign(Identity(uuid.UUID(world.a.id), user, "user"))
    assert await accepted(app, token) is not None
    await operator_of_world.execute("update users set status = $1 where id = $2", status, user)
    assert await accepted(app, token) is None


@pytest.mark.parametrize("end", ["set_tenant_status($1, 'suspended')", "close_tenant($1, 'unpaid')"])
async def test_a_tenant_that_is_not_active_is_refused_at_once(
    app: asyncpg.Connection, world: World, operator_of_world: asyncpg.Connection, end: str
) -> None:
    # of its own: closing revokes keys and sessions for good, and others use those of the world
    tenant = await operator_of_world.fetchval("select create_tenant($1, 'Ended')", f"t{uuid.uuid4().hex[:10]}")
    admin = await operator_of_world.fetchval(
        "select create_user($1, 'admin', p_tenant_id => $2)", f"{uuid.uuid4().hex}@example.test", tenant
    )
    token = world.signer.sign(Identity(tenant, admin, "admin"))
    assert await accepted(app, token) == [str(tenant)]
    await operator_of_world.fetchval(f"select {end}", tenant)
    assert await accepted(app, token) is None
    await operator_of_world.fetchval("select set_tenant_status($1, 'active')", tenant)
    assert await accepted(app, token) == [str(tenant)]


async def test_a_super_admin_enters_only_a_tenant_that_they_opened_and_only_for_its_time(
    app: asyncpg.Connection, world: World, operator_of_world: asyncpg.Connection
) -> None:
    def token(tenant: str) -> str:
        return world.signer.sign(Identity(uuid.UUID(tenant), SUPER_ADMIN, "superadmin"))

    assert await accepted(app, token(world.a.id)) is None
    assert await accepted(app, token(str(PLATFORM))) == [str(PLATFORM)]
    async with app.transaction():
        await app.fetchval("select vanilla.set_context($1)", token(str(PLATFORM)))
        assert await app.fetchval("select count(*) from tenants") >= 4
        await app.fetchval("select open_tenant($1, 'a test')", uuid.UUID(world.a.id))
    assert await accepted(app, token(world.a.id)) == [world.a.id]
    assert await accepted(app, token(world.b.id)) is None
    audited = await operator_of_world.fetch(
        "select tenant_id::text from audit_logs where action = 'tenant.opened' and target_id = $1",
        uuid.UUID(world.a.id),
    )
    assert {r["tenant_id"] for r in audited} == {world.a.id, str(PLATFORM)}
    ended = await operator_of_world.execute(
        "update tenant_openings set expires_at = vanilla.clock() where tenant_id = $1 and user_id = $2",
        uuid.UUID(world.a.id),
        SUPER_ADMIN,
    )
    assert ended == "UPDATE 1"
    assert await accepted(app, token(world.a.id)) is None


async def test_a_savepoint_that_is_rolled_back_gives_the_context_before_it_back(
    app: asyncpg.Connection, world: World
) -> None:
    async with app.transaction():
        await app.fetchval("select vanilla.set_context($1)", world.a.token(world.signer, world.a.admin))
        await app.execute("savepoint one")
        await app.fetchval("select vanilla.set_context($1)", world.b.token(world.signer, world.b.admin))
        assert await app.fetchval(TENANTS_SEEN) == [world.b.id]
        await app.execute("rollback to one")
        assert await app.fetchval(TENANTS_SEEN) == [world.a.id]
        assert await accepted(app, "forged") is None
        assert await app.fetchval(TENANTS_SEEN) == [world.a.id]
        await app.fetchval("select vanilla.set_context('')")
        assert await app.fetchval(TENANTS_SEEN) is None
    assert await app.fetchval(TENANTS_SEEN) is None
