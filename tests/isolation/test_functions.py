"""Every function that a login may execute, called by tenant A with B's ids in each uuid argument."""

import uuid
from dataclasses import dataclass
from itertools import combinations

import asyncpg
import pytest

from tests.isolation.catalog import LOGINS
from tests.isolation.conftest import accepted
from tests.isolation.matrix import rolled_back
from tests.isolation.rows import CANARY, World

OPEN_HOLD = "select id from user_token_holds where tenant_id = $1 and user_id = $2 and state = 'open' order by call is "
IDS = {
    "p_tenant_id": "select $1::uuid",
    "p_user_id": "select $2::uuid",
    "p_level_id": "select id from levels where tenant_id = $1 and is_default",
    "p_grant_id": "select id from user_token_grants where tenant_id = $1 and user_id = $2 and state = 'active' limit 1",
    "p_key_id": "select id from api_keys where tenant_id = $1 and user_id = $2",
    "p_provider_id": "select id from ai_providers where tenant_id = $1 limit 1",
    "p_execution_id": "select id from ai_executions where tenant_id = $1 limit 1",
    "p_reference_id": OPEN_HOLD + "not null limit 1",
    "p_hold_id": OPEN_HOLD + "not null limit 1",
    "vanilla.settle_call.p_hold_id": OPEN_HOLD + "null limit 1",
    "p_endpoint_id": "select id from webhook_endpoints where tenant_id = $1 limit 1",
    "public.create_webhook_endpoint.p_endpoint_id": "select gen_random_uuid()",
    "p_delivery_id": "select id from webhook_deliveries where tenant_id = $1 and lease_id is not null limit 1",
    "p_lease_id": "select lease_id from webhook_deliveries where tenant_id = $1 and lease_id is not null limit 1",
}
"""Where the ids of a tenant for an argument of this name come from: $1 the tenant, $2 its user."""

OK = "ok"
PASSWORD = "'$argon2id$other'"

CALLS: dict[str, tuple[str, dict[str, str]]] = {
    # functions of people: what A's admin gets with A's own ids, and the arguments that are not ids
    "public.get_current_tenant_id": (OK, {}),
    "public.get_current_user_id": (OK, {}),
    "vanilla.current_tenant_id": (OK, {}),
    "vanilla.current_user_id": (OK, {}),
    "vanilla.current_user_role": (OK, {}),
    "vanilla.claim": (OK, {"p_index": "3"}),
    "vanilla.clock": (OK, {}),
    "vanilla.uuid7": (OK, {}),
    "vanilla.platform": (OK, {}),
    "vanilla.refuse": ("VS400", {"p_sqlstate": "'VS400'", "p_message": "'no'"}),
    "vanilla.set_context": ("VS401", {"p_token": "'{forged}'"}),
    "public.create_tenant": ("VS403", {"p_slug": "'another'", "p_name": "'Another'"}),
    "public.set_tenant_status": ("VS403", {"p_status": "'suspended'"}),
    "public.open_tenant": ("VS403", {"p_reason": "'curious'"}),
    "public.create_user": (OK, {"p_email": "'new@example.test'"}),
    "public.set_display_name": (OK, {"p_name": "'x'"}),
    "public.set_user_role": (OK, {"p_role": "'admin'"}),
    "public.set_user_status": (OK, {"p_status": "'disabled'"}),
    "public.set_user_password": (OK, {"p_password_hash": PASSWORD}),
    "public.issue_one_time_token": (OK, {"p_token_hash": "sha256('x')"}),
    "public.create_api_key": (OK, {"p_name": "'n'", "p_prefix": "'p'", "p_key_hash": "sha256('x')"}),
    "public.revoke_api_key": (OK, {}),
    "public.set_provider_secret": (OK, {"p_secret": "'x'", "p_hint": "'x'"}),
    "public.adjust_user_tokens": (OK, {"p_amount": "10", "p_direction": "'release'"}),
    "public.settle_user_tokens": (OK, {"p_actual": "5"}),
    "public.adjust_user_tokens_batch": (
        OK,
        {"p_operations": '\'[{{"user_id": "00000000-0000-7000-8000-00000000dead", "amount": 1}}]\''},
    ),
    "public.release_token_hold": (OK, {}),
    "public.extend_token_hold": (OK, {"p_expires_at": "now() + interval '1 day'"}),
    "public.grant_user_tokens": (OK, {"p_amount": "5"}),
    "public.void_token_grant": (OK, {"p_reason": "'x'"}),
    "public.set_user_token_policy": (OK, {}),
    "public.get_user_token_policy": (OK, {}),
    "public.token_statement": (OK, {"p_from": "'2000-01-01'", "p_until": "now()"}),
    "public.token_statement_frame": (OK, {"p_from": "'2000-01-01'", "p_until": "now()"}),
    "public.token_ledger_anchor": (OK, {}),
    "public.verify_token_anchor": (OK, {"p_anchor": "'[]'"}),
    "public.auto_allocate_tokens_for_level": (OK, {}),
    "public.reset_monthly_tokens": ("VS404", {}),
    "public.set_wallet_status": (OK, {"p_status": "'locked'", "p_reason": "'x'"}),
    "public.set_level_token_policy": (OK, {"p_base_allocation": "1", "p_monthly_allocation": "1"}),
    "vanilla.grants_after_burn": (OK, {}),
    "public.verify_token_ledger": (OK, {}),
    "public.reconcile_token_wallets": (OK, {}),
    "public.token_balance_at": (OK, {"p_at": "now()"}),
    "vanilla.event_types": (OK, {}),
    "public.create_webhook_endpoint": (
        OK,
        {"p_url": "'https://example.com/'", "p_event_types": "array['*']", "p_secret": "'x'"},
    ),
    "public.update_webhook_endpoint": (OK, {"p_url": "'https://example.com/'"}),
    "public.rotate_webhook_secret": (OK, {"p_secret": "'x'"}),
    "public.delete_webhook_endpoint": (OK, {}),
    "public.send_test_webhook": (OK, {}),
    "public.redeliver_webhook": (OK, {}),
    # functions of the gateway and the workers: they take a key, a session, a hold or a lease of A
    "vanilla.begin_sign_in": (OK, {"p_tenant": "'{word}'", "p_email": "'user@{word}.test'", "p_ip": "'x'"}),
    "vanilla.finish_sign_in": (
        OK,
        {
            "p_tenant": "'{word}'",
            "p_email": "'user@{word}.test'",
            "p_token_hash": "sha256('x')",
            "p_refresh_hash": "sha256('y')",
            "p_ip": "'x'",
            "p_user_agent": "'x'",
        },
    ),
    "vanilla.fail_sign_in": (OK, {"p_tenant": "'{word}'", "p_email": "'user@{word}.test'"}),
    "vanilla.session_identity": (OK, {"p_token_hash": "{session}"}),
    "vanilla.rotate_session": (
        OK,
        {"p_refresh_hash": "{refresh}", "p_token_hash": "sha256('x')", "p_new_refresh_hash": "sha256('y')"},
    ),
    "vanilla.close_session": (OK, {"p_token_hash": "{session}"}),
    "vanilla.begin_password_change": (OK, {"p_token_hash": "{session}"}),
    "vanilla.change_password": (OK, {"p_token_hash": "{session}", "p_password_hash": PASSWORD}),
    "vanilla.request_password_link": (
        OK,
        {"p_tenant": "'{word}'", "p_email": "'user@{word}.test'", "p_ip": "'x'", "p_token_hash": "sha256('x')"},
    ),
    "vanilla.one_time_token_user": (OK, {"p_token_hash": "sha256('x')"}),
    "vanilla.begin_registration": (OK, {"p_ip": "'x'"}),
    "vanilla.redeem_one_time_token": ("VS411", {"p_token_hash": "sha256('x')", "p_password_hash": PASSWORD}),
    "vanilla.register_user": (
        "VS403",
        {
            "p_tenant": "'{word}'",
            "p_email": "'new@example.test'",
            "p_password_hash": PASSWORD,
            "p_display_name": "''",
        },
    ),
    "vanilla.key_identity": (OK, {"p_key_hash": "{key}"}),
    "vanilla.admit_call": (
        OK,
        {
            "p_key_hash": "{key}",
            "p_session_hash": "null",
            "p_payer": "null",
            "p_model": "'sandbox-small'",
            "p_prompt_tokens": "1",
            "p_sandbox_prompt_tokens": "1",
            "p_output_limit": "1",
            "p_choices": "1",
            "p_streamed": "false",
            "p_ttl": "'60 s'",
        },
    ),
    "vanilla.settle_call": (
        OK,
        {"p_status": "'succeeded'", "p_input": "1", "p_output": "1", "p_cached": "0", "p_reasoning": "0"},
    ),
    "vanilla.quote_call": (
        OK,
        {
            "p_session_hash": "{session}",
            "p_model": "'sandbox-small'",
            "p_prompt_tokens": "1",
            "p_sandbox_prompt_tokens": "1",
            "p_output_limit": "1",
        },
    ),
    "vanilla.list_models": (OK, {"p_key_hash": "{key}"}),
    "vanilla.ensure_partitions": (OK, {}),
    "vanilla.reap_holds": (OK, {}),
    "vanilla.run_maintenance": (OK, {}),
    # a job over all tenants: nothing of B's is due, so it is handed nothing of B's
    "vanilla.claim_webhook_deliveries": (OK, {}),
    "vanilla.finish_webhook_delivery": (OK, {"p_status_code": "200", "p_error": "null", "p_duration_ms": "1"}),
    "vanilla.prune_webhook_deliveries": (OK, {}),
}

CAPABILITIES = {
    "vanilla.settle_call": {"p_tenant_id", "p_hold_id"},
    "vanilla.finish_webhook_delivery": {"p_tenant_id", "p_delivery_id", "p_lease_id"},
}
"""Arguments that together are the right to act, of functions without a context: B's are tried one at a time."""


@dataclass(frozen=True)
class Function:
    name: str
    ids: tuple[str, ...]
    login: str


async def executable(connection: asyncpg.Connection) -> list[Function]:
    """Functions of schemas public and vanilla that a login may execute, with their uuid arguments."""
    rows = await connection.fetch(
        """
        select p.pronamespace::regnamespace || '.' || p.proname as name, l as login,
            array(select a.name from unnest(p.proargnames, coalesce(p.proargmodes::text[], array_fill('i'::text,
                      array[p.pronargs::int])), p.proargtypes::oid[]) with ordinality a(name, mode, type, n)
                  where a.mode = 'i' and a.type = 'uuid'::regtype order by n) as ids
        from pg_proc p, unnest($1::text[]) l
        where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
          and has_function_privilege(l, p.oid, 'execute') order by 1, 2""",
        list(LOGINS),
    )
    return [Function(r["name"], tuple(r["ids"]), r["login"]) for r in rows]


async def test_every_executable_function_is_in_the_table(superuser: asyncpg.Connection) -> None:
    functions = await executable(superuser)
    assert {f.name for f in functions} == set(CALLS)
    assert len({(f.name, f.login) for f in functions}) == len(functions), "an overloaded name hides a function"
    missing = {i for f in functions for i in f.ids if i not in IDS}
    assert missing == set()


@pytest.mark.parametrize("member", ["admin", "user", None])
async def test_no_function_touches_or_tells_of_another_tenant(
    world: World, superuser: asyncpg.Connection, member: str | None
) -> None:
    problems: list[str] = []
    transaction = superuser.transaction()
    await transaction.start()
    known = await _ids_of_b(superuser, world)
    digest = await world.digest(superuser, of_b=True)
    for function in await executable(superuser):
        own = {i: await _id(superuser, world, function, i, "a") for i in function.ids}
        theirs = {i: await _id(superuser, world, function, i, "b") for i in function.ids}
        for choice in _choices(function):
            arguments = own | {i: theirs[i] for i in choice}
            async with rolled_back(superuser, "call"):
                outcome = await _call(superuser, world, function, arguments, member)
                await superuser.execute("reset role")
                label = f"{function.login}: {function.name} with b's {', '.join(choice) or 'nothing'} by {member}"
                if await world.digest(superuser, of_b=True) != digest:
                    problems.append(f"{label}: b's rows changed")
                told = {i for i in known - set(theirs.values()) if i in outcome}
                if CANARY in outcome or told:
                    problems.append(f"{label}: tells {outcome}")
                expected = CALLS[function.name][0]
                if not choice and member == "admin" and not outcome.startswith(expected):
                    problems.append(f"{label}: {expected} was expected, so nothing is proven: {outcome}")
                if not outcome.startswith((OK, "VS4", "42501")):
                    problems.append(f"{label}: fails instead of refusing: {outcome}")
                if choice and outcome.startswith(OK) and not _harmless(function, choice, outcome):
                    problems.append(f"{label}: accepted: {outcome[:200]}")
    await transaction.rollback()
    assert problems == []


def _choices(function: Function) -> list[tuple[str, ...]]:
    """Which arguments are B's: none, each alone, every pair, all; but never a whole right to act."""
    sizes = sorted({0, 1, 2, len(function.ids)} & set(range(len(function.ids) + 1)))
    right = CAPABILITIES.get(function.name)
    return [c for size in sizes for c in combinations(function.ids, size) if not (right and right <= set(c))]


def _harmless(function: Function, choice: tuple[str, ...], outcome: str) -> bool:
    """Nothing came back, or the ids were only written down or not looked at."""
    if outcome in (f"{OK} []", f"{OK} [None]"):
        return True
    unused = {"p_execution_id"}
    if function.name in ("public.create_api_key", "public.revoke_api_key"):
        unused.add("p_tenant_id")  # a user's own keys are of their own tenant, whatever is said
    if function.name == "public.create_webhook_endpoint":
        unused.add("p_endpoint_id")  # the caller makes it up
    return set(choice) <= unused


async def _id(connection: asyncpg.Connection, world: World, function: Function, name: str, tenant: str) -> str:
    chosen = getattr(world, tenant)
    source = IDS.get(f"{function.name}.{name}", IDS[name])
    tenant_and_user = (uuid.UUID(chosen.id), uuid.UUID(chosen.user.id))
    found = await connection.fetchval(f"with given as (select $1::uuid, $2::uuid) {source}", *tenant_and_user)
    assert found, f"there is no {name} of {function.name}"
    return str(found)


async def _ids_of_b(connection: asyncpg.Connection, world: World) -> set[str]:
    """Every UUID in B's rows that is in nobody else's: the platform's providers and models are everybody's."""
    columns = [(t.name, c.name) for t in world.tables for c in t.columns if c.type == "uuid" and not t.parent]

    async def ids(condition: str) -> set[str]:
        union = " union ".join(f"select {c}::text as v from {t} where tenant_id {condition}" for t, c in columns)
        return {r["v"] for r in await connection.fetch(union) if r["v"]}

    return await ids(f"= '{world.b.id}'") - await ids(f"<> '{world.b.id}'")


async def _call(
    connection: asyncpg.Connection, world: World, function: Function, arguments: dict[str, str], member: str | None
) -> str:
    """`ok` and the rows, or the SQLSTATE and everything that the error tells."""
    a = world.a
    forged = a.token(world.signer, a.admin).replace(a.id, world.b.id)
    values = {
        "word": a.word,
        "forged": forged,
        "key": f"'\\x{a.user.key_hash.hex()}'",
        "session": f"'\\x{a.user.session_hash.hex()}'",
        "refresh": f"'\\x{a.user.refresh_hash.hex()}'",
    }
    written = [f"{name} => {text.format(**values)}" for name, text in CALLS[function.name][1].items()]
    written += [f"{name} => '{value}'::uuid" for name, value in arguments.items()]
    token = a.token(world.signer, getattr(a, member)) if member and function.login != "vanilla_runtime" else ""
    await connection.execute(f"set local role {function.login}")
    await connection.fetchval("select set_config('vanilla.context', $1, true)", token)
    try:
        async with connection.transaction():
            rows = await connection.fetch(f"select x::text as v from {function.name}({', '.join(written)}) x")
    except asyncpg.PostgresError as error:
        return f"{error.sqlstate} {error.as_dict()}"
    return f"{OK} {[r['v'] for r in rows]}"


async def test_tokens_are_adjusted_by_the_operator_without_a_context_and_by_nobody_else(
    world: World, app: asyncpg.Connection, operator_of_world: asyncpg.Connection
) -> None:
    adjust = "select (adjust_user_tokens($1, 5, 'credit') ->> 'amount')::int"
    user = uuid.UUID(world.a.other.id)
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await app.fetchval(adjust, user)
    assert refusal.value.sqlstate == "VS401"
    assert await accepted(app, "") == []
    assert await operator_of_world.fetchval(adjust, user) == 5
    async with operator_of_world.transaction():
        await operator_of_world.execute("set local role vanilla_operator")
        assert await operator_of_world.fetchval(adjust, user) == 5
        await operator_of_world.execute("set local role vanilla_system")
        assert await operator_of_world.fetchval(adjust, user) == 5
