"""A key of an engine is revoked while its runs run, beside a real worker: they end with it, and no others do."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.conftest import Person, serve, settings_for
from tests.engines.shop import Made, Shop
from tests.engines.test_routes import send
from tests.processes import eventually
from tests.tokens.test_routes import get, post
from tests.workflows.hands import workflow
from vanilla_saas.app import create_app
from vanilla_saas.tenancy.secret_tokens import token_hash

ENDS_S = 1.0
SLOW = {"text": f"sandbox: {json.dumps({'latency_ms': 60_000})}"}
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}


@pytest.fixture(scope="module")
async def http(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[aiohttp.ClientSession]:
    home = tmp_path_factory.mktemp("home")
    app = create_app(settings_for(floor.room.cluster, floor.room.name, home, run_worker=True))
    async with serve(app) as address, aiohttp.ClientSession(address) as session:
        yield session


def asks_twice() -> dict[str, Any]:
    node = {"model": "sandbox-small", "prompt": "{{ input.text }}", "max_output_tokens": 50}
    return workflow("a=llm b=llm", "a>b", a=node, b=node, input=TEXT)


@pytest.fixture(scope="module")
async def admin(floor: Shop) -> Person:
    return await floor.room.people.user("admin", scopes=["admin"])


async def key_of(floor: Shop, user: Person, engine: Made) -> Person:
    key, key_id = await floor.key(user, engine.slug, p_budget_tokens=100_000)
    return Person(user.identity, key, key_id)


async def begin(http: aiohttp.ClientSession, key: Person, given: dict[str, Any] | None = None) -> uuid.UUID:
    begun, _ = await post(http, key, "/engines/run", {"input": given or {}}, status=202)
    return uuid.UUID(begun["execution_id"])


async def test_a_model_call_that_is_under_way_is_given_up_and_the_next_step_never_begins(
    http: aiohttp.ClientSession, floor: Shop, admin: Person
) -> None:
    engine, user = await floor.deploy(asks_twice()), await floor.person()
    key = await key_of(floor, user, engine)
    run = await begin(http, key, SLOW)
    reserved = "select reserved_tokens from user_token_wallets where user_id = $1"
    await eventually(lambda: floor.operator.fetchval(reserved, user.identity.user_id))
    await send(http, "DELETE", admin, f"/keys/{key.key_id}", status=204)

    async def ended() -> bool:
        return (await floor.room.execution(run))["status"] != "running"

    await eventually(ended, ENDS_S)
    row = await floor.room.execution(run)
    assert (row["status"], row["reason"], row["charged_tokens"]) == ("cancelled", "key_revoked", 0)
    steps = await floor.operator.fetch("select status from workflow_steps where execution_id = $1", run)
    assert "running" not in [step["status"] for step in steps]
    assert not await floor.operator.fetchval("select count(*) from workflow_queue where execution_id = $1", run)
    wallet = await floor.room.people.wallet(user)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (100_000, 0)
    assert await floor.operator.fetchval("select used_tokens from api_keys where id = $1", key.key_id) == 0
    await post(http, key, "/engines/run", {"input": SLOW}, status=401)
    logged = "select details from audit_logs where action = 'api_key.revoked' and target_id = $1"
    assert (await floor.operator.fetchval(logged, key.key_id))["runs_cancelled"] == 1


async def test_what_waits_or_is_paused_ends_too_and_runs_of_others_go_on(
    http: aiohttp.ClientSession, floor: Shop
) -> None:
    engine = await floor.deploy(workflow("s=signal a", "s>a", s={"signal": "go"}, a={"value": "1"}))
    user = await floor.person()
    key, twin = await key_of(floor, user, engine), await key_of(floor, user, engine)
    waits, paused, twins = await begin(http, key), await begin(http, key), await begin(http, twin)
    own = uuid.UUID((await floor.run(user, engine.slug))["execution_id"])
    await floor.ask(user, "pause_execution", paused)
    await floor.ask(floor.admin, "revoke_api_key", key.key_id)
    for run, status in ((waits, "cancelled"), (paused, "cancelled"), (twins, "running"), (own, "running")):
        assert (await floor.room.execution(run))["status"] == status
    # revoked again it changes nothing, and what has ended stays as it is
    await floor.ask(floor.admin, "revoke_api_key", key.key_id)
    for run in (twins, own):
        await floor.ask(user, "signal_execution", run, "go")
        told = await get(http, user, f"/engine-runs/{run}", wait_s=20)
        assert told["status"] == "succeeded"


async def test_a_key_that_is_only_put_away_lets_its_runs_go_on(
    http: aiohttp.ClientSession, floor: Shop, admin: Person
) -> None:
    engine = await floor.deploy(
        workflow("s=signal a=llm", "s>a", s={"signal": "go"}, a={"model": "sandbox-small", "prompt": "x"})
    )
    user = await floor.person()
    key = await key_of(floor, user, engine)
    run = await begin(http, key)
    await send(http, "DELETE", admin, f"/keys/{key.key_id}?cancel_runs=false", status=204)
    await post(http, key, "/engines/run", {}, status=401)
    await floor.ask(user, "signal_execution", run, "go")
    told = await get(http, user, f"/engine-runs/{run}", wait_s=20)
    assert (told["status"], told["charged_tokens"] > 0) == ("succeeded", True)


async def test_a_run_that_is_just_beginning_is_waited_for_and_ends_with_its_key(floor: Shop) -> None:
    engine, user = await floor.deploy(workflow("s=signal", s={"signal": "go"})), await floor.person()
    key = await key_of(floor, user, engine)
    start = "select vanilla.execute_by_key($1, null, '{}')"
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'advisory'"
    other = await asyncpg.connect(floor.room.cluster.url("vanilla_runtime", floor.room.name))
    async with other.transaction():
        started = json.loads(await other.fetchval(start, token_hash(key.key)))
        revoking = asyncio.create_task(floor.ask(user, "revoke_api_key", key.key_id))
        await eventually(lambda: floor.operator.fetchval(waiting))
    await revoking
    await other.close()
    row = await floor.room.execution(uuid.UUID(started["execution_id"]))
    assert (row["status"], row["reason"]) == ("cancelled", "key_revoked")


async def test_keys_revoked_in_the_midst_of_their_calls_leave_nothing_held(
    http: aiohttp.ClientSession, floor: Shop, admin: Person
) -> None:
    engine, user = await floor.deploy(asks_twice()), await floor.person()
    keys = [await key_of(floor, user, engine) for _ in range(4)]
    quick = {"text": f"sandbox: {json.dumps({'latency_ms': 5})}"}

    done = (
        "select count(*) from workflow_steps s join workflow_executions e on e.tenant_id = s.tenant_id and e.id = s.execution_id"
        " where e.api_key_id = $1 and s.status = 'succeeded'"
    )

    async def begin_and_revoke(key: Person, steps: int) -> None:
        runs = [await begin(http, key, quick) for _ in range(4)]

        async def so_far() -> bool:
            return bool(await floor.operator.fetchval(done, key.key_id) >= steps)

        await eventually(so_far)
        await send(http, "DELETE", admin, f"/keys/{key.key_id}", status=204)
        for run in runs:
            row = await floor.operator.fetchrow("select status, reason from workflow_executions where id = $1", run)
            assert tuple(row) in (("succeeded", None), ("cancelled", "key_revoked"))

    for steps, key in enumerate(keys):
        await begin_and_revoke(key, steps)
    wallet = await floor.room.people.wallet(user)
    charged = await floor.operator.fetchval(
        "select sum(charged_tokens) from workflow_executions where user_id = $1", user.identity.user_id
    )
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (100_000 - charged, 0)
