"""A process that waits for a run works for it as a worker does: what bounds workers bounds it, and it may die."""

import asyncio
import json
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from tests.conftest import LONG, TEST_KEY, Person, serve, settings_for
from tests.engines.shop import Made, Shop
from tests.engines.test_chat import ONE_TEXT, asks, code, only_run, say, sdk
from tests.pgbouncer import pgbouncer
from tests.processes import Running, eventually, over
from tests.workflows.hands import workflow
from tests.workflows.proof.invariants import require_invariants
from vanilla_saas.app import create_app
from vanilla_saas.checks import BOOKS, run_checks
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.exit_at import EXIT_CODE

REPLY = f"sandbox: {json.dumps({'reply': 'Two words'})}"


@pytest.fixture(scope="module")
async def api(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    home = tmp_path_factory.mktemp("home")
    async with serve(create_app(settings_for(floor.room.cluster, floor.room.name, home))) as address:
        yield address


async def steps(floor: Shop, execution: str) -> dict[str, tuple[str, int]]:
    """Of each step its status and how often it was claimed."""
    run = await floor.room.execution(uuid.UUID(execution))
    return {name: (step["status"], step["attempts"]) for name, step in run["steps"].items()}


async def charged(floor: Shop, person: Person) -> list[int]:
    rows = await floor.operator.fetch(
        "select charged_tokens from ai_executions where user_id = $1 order by created_at", person.identity.user_id
    )
    return [row["charged_tokens"] for row in rows]


async def test_what_was_seen_before_is_begun_checked_and_admitted_by_one_statement(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    seen = []
    async with sdk(api, person.key) as client:
        for _ in range(4):
            answer = await say(client, engine, REPLY)
            assert answer.choices[0].message.content == "Two words"
            assert answer.usage.total_tokens == answer.engine["charged_tokens"] > 0
            seen.append(await steps(floor, answer.engine["execution_id"]))
    begun = ("succeeded", 1)
    assert seen[0] == {"$start": begun, "a": begun, "$end": ("succeeded", 0)}
    # its input was seen to fit before it began
    assert seen[-1] == {"$start": ("succeeded", 0), "a": begun, "$end": ("succeeded", 0)}
    assert len(set(await charged(floor, person))) == 1
    await require_invariants(floor.operator)


async def test_what_a_reference_means_is_looked_up_each_time(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    async with sdk(api, person.key) as client:
        for _ in range(3):
            assert (await say(client, engine, REPLY)).engine["version"] == 1
        flow = await floor.flow(workflow("a", a={"value": "'new ' + input.question"}, output="steps.a.output",
            input={"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}))  # fmt: skip
        await floor.ask(floor.admin, "deploy_engine", engine.slug, flow)
        await floor.ask(floor.admin, "promote_engine", engine.id, 2)
        answer = await say(client, engine, "text")
        assert (answer.engine["version"], answer.choices[0].message.content) == (2, "new text")
        await floor.ask(person, "fork_engine", engine.slug, "mine", {}, True)
        await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="read")
        with pytest.raises(openai.PermissionDeniedError):
            await say(client, engine)
        await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="execute")
        await floor.ask(floor.admin, "revoke_api_key", person.key_id)
        with pytest.raises(openai.AuthenticationError):
            await say(client, engine)


async def test_declared_defaults_and_copies_are_in_the_input(floor: Shop, api: str) -> None:
    two = {"type": "object", "properties": {"text": {"type": "string"}, "tone": {"type": "string"}}}
    engine = await floor.deploy(
        asks('sandbox: {"reply": "{{ input.tone }}"}', two | {"required": ["text", "tone"]}),
        p_parameters={"tone": {"type": "string", "default": "kindly"}},
    )
    person = await floor.person()
    await floor.ask(person, "fork_engine", engine.slug, "mine", {"tone": "sadly"})
    async with sdk(api, person.key) as client:
        for _ in range(3):
            assert (await say(client, engine)).choices[0].message.content == "kindly"
            assert (await say(client, "my/mine")).choices[0].message.content == "sadly"
            given = {"input": {"text": "x", "tone": "loudly"}}
            assert (await say(client, engine, extra_body=given)).choices[0].message.content == "loudly"


async def test_an_idempotency_key_finds_its_run_by_the_same_statement(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    async with sdk(api, person.key) as client:
        for _ in range(2):
            await say(client, engine, REPLY)
        named = {"extra_headers": {"Idempotency-Key": uuid.uuid4().hex}}
        first, again = [await say(client, engine, REPLY, **named) for _ in range(2)]
        assert first.engine["execution_id"] == again.engine["execution_id"]
        assert first.usage == again.usage
        with pytest.raises(openai.ConflictError) as reused:
            await say(client, engine, "something else", **named)
    assert code(reused) == (409, "idempotency_key_reused")
    assert len(await charged(floor, person)) == 3


async def test_a_call_that_is_refused_with_the_start_is_the_failure_of_its_run(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    async with sdk(api, person.key, max_retries=2) as client:
        for _ in range(2):
            await say(client, engine, REPLY)
        await floor.room.people.set_balance(person, 1)
        with pytest.raises(openai.APIStatusError) as poor:
            await say(client, engine, REPLY)
    assert code(poor) == (402, "insufficient_tokens")
    run = await floor.room.execution(uuid.UUID(poor.value.body["execution_id"]))  # type: ignore[index]
    assert (run["status"], run["reason"], run["charged_tokens"]) == ("failed", "insufficient_tokens", 0)
    await require_invariants(floor.operator)


async def test_a_limit_of_the_level_holds(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person("free")
    level = await floor.level("free")
    async with sdk(api, person.key) as client:
        for _ in range(2):
            await say(client, engine, REPLY)
        await floor.operator.execute(
            "update levels set restrictions = '{\"max_output_tokens\": 10}' where id = $1", level
        )
        try:
            with pytest.raises(openai.APIStatusError) as limited:
                await say(client, engine, REPLY)
        finally:
            await floor.operator.execute("update levels set restrictions = null where id = $1", level)
    assert limited.value.body["execution_id"]  # type: ignore[index]
    assert len(await charged(floor, person)) == 2


async def test_a_tenant_at_its_cap_waits_for_its_turn(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    slow = f"sandbox: {json.dumps({'reply': 'slow', 'latency_ms': 400})}"
    await floor.ask(None, "set_workflow_share", person.identity.tenant_id, 1, 1)
    most = "select count(*) from workflow_queue where worker is not null"
    seen: list[int] = []
    try:
        async with sdk(api, person.key) as client:
            for _ in range(2):
                await say(client, engine, REPLY)
            calls = [asyncio.create_task(say(client, engine, slow)) for _ in range(3)]
            async with asyncio.timeout(20):
                while not all(call.done() for call in calls):
                    seen.append(await floor.operator.fetchval(most))
                    await asyncio.sleep(0.02)
            assert [(await call).choices[0].message.content for call in calls] == ["slow"] * 3
    finally:
        await floor.ask(None, "set_workflow_share", person.identity.tenant_id, 1, None)
    assert max(seen) == 1


async def test_steps_of_other_pools_and_those_held_for_others_are_left(floor: Shop, api: str) -> None:
    person = await floor.person()
    elsewhere = await floor.deploy(workflow("a", a={"value": "1", "pool": "far"}, input=ONE_TEXT))
    held = await floor.deploy(workflow("a", a={"value": "1"}))
    taken = "select count(*) from workflow_queue where worker is not null and user_id = $1"
    async with sdk(api, person.key, timeout=1.5) as client:
        with pytest.raises(openai.APITimeoutError):
            await say(client, elsewhere)
        assert await floor.operator.fetchval(taken, person.identity.user_id) == 0
        of_all = "update routing_strategies set kind = $1, config = $2 where pool = 'default' and target = 'worker'"
        before = await floor.operator.fetchrow(
            "select kind, config from routing_strategies where pool = 'default' and target = 'worker'"
        )
        await floor.operator.execute(of_all, "sticky", {"mode": "hard"})
        try:
            with pytest.raises(openai.APITimeoutError):
                await say(client, held, extra_body={"input": {}})
            assert await floor.operator.fetchval(taken, person.identity.user_id) == 0
        finally:
            await floor.operator.execute(of_all, *before)
    await floor.operator.execute(
        "select cancel_execution(id) from workflow_executions where user_id = $1 and finished_at is null",
        person.identity.user_id,
    )


async def test_a_run_over_http_is_worked_for_while_it_is_waited_for(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    headers = {"Authorization": f"Bearer {person.key}"}
    async with aiohttp.ClientSession(api, headers=headers) as http:
        body: dict[str, Any] = {"ref": engine.slug, "input": {"text": REPLY}, "wait_s": 10}
        async with http.post("/api/v1/engines/run", json=body) as answer:
            run = await answer.json()
    assert (answer.status, run["output"]["a"]["text"]) == (200, "Two words")


async def test_through_a_pooler_that_lends_sessions(floor: Shop, tmp_path: Path) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    slow = f"sandbox: {json.dumps({'reply': 'Two words', 'chunk_latency_ms': 50})}"
    with pgbouncer(floor.room.cluster, ContextSigner(bytes.fromhex(TEST_KEY))) as pooled:
        app = create_app(settings_for(pooled, floor.room.name, tmp_path))
        async with serve(app) as address, sdk(address, person.key) as client:
            for _ in range(3):
                assert (await say(client, engine, REPLY)).choices[0].message.content == "Two words"
            stream = await say(client, engine, slow, stream=True)
            words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(words) == "Two words"
    assert len([word for word in words if word]) > 1
    assert len(await charged(floor, person)) == 4


MOMENTS = {
    "begin_engine:before:2": None,
    "begin_engine:after:2": 3,
    "tick_run+:before:5": 3,
    "tick_run+:after:5": 3,
    "begin_engine:after:1": 2,
    "tick_run:after:1": 1,
    "tick_run+:after:1": 1,
    "admit_call:after:1": 1,
    "tick_run+:before:2": 1,
}
"""When the server ends, and the number of the call whose run is then there."""
SHORT = ["begin_engine:before:2", "begin_engine:after:2", "tick_run+:before:5", "tick_run+:after:5"]


def server(floor: Shop, home: Path, moment: str = "") -> Running:
    more = {"VANILLA_SAAS_DEBUG_EXIT_AT": moment, "VANILLA_SAAS_RUN_WORKER": "false"}
    return over(floor.room.cluster, floor.room.name, home, **more).start("serve")


async def call_until_it_dies(running: Running, engine: Made, person: Person, text: str) -> int:
    """How many calls were answered."""
    async with sdk(running.url, person.key, timeout=20) as client:
        for number in range(5):
            try:
                await say(client, engine, text)
            except openai.APIConnectionError:
                return number
    raise AssertionError("the server has not ended")


async def require_done_once(floor: Shop, person: Person, home: Path, runs: int) -> None:
    """Another worker finishes what the dead one had; every run is charged once."""
    await floor.operator.execute("update worker_registry set heartbeat_at = heartbeat_at - interval '1 minute'")
    left = "select count(*) from workflow_executions where user_id = $1 and finished_at is null"
    async with serve(create_app(settings_for(floor.room.cluster, floor.room.name, home, run_worker=True))):

        async def ended() -> bool:
            return not await floor.operator.fetchval(left, person.identity.user_id)

        await eventually(ended, 30, lambda: "the run has no end")
    found = await floor.operator.fetch(
        "select status, charged_tokens from workflow_executions where user_id = $1", person.identity.user_id
    )
    assert [row["status"] for row in found] == ["succeeded"] * runs
    assert len({row["charged_tokens"] for row in found}) == 1
    settled = (
        "select count(*), count(distinct hold_id) from user_token_ledger where direction = 'settle' and reference_id in"
        " (select id from workflow_executions where user_id = $1)"
    )
    assert tuple(await floor.operator.fetchrow(settled, person.identity.user_id)) == (runs, runs)
    wallet = await floor.room.people.wallet(person)
    assert wallet["reserved_tokens"] == 0
    assert wallet["available_tokens"] == 100_000 - sum(row["charged_tokens"] for row in found)
    await require_invariants(floor.operator)
    assert await run_checks(floor.operator, BOOKS) == []


@pytest.mark.parametrize("moment", MOMENTS if LONG else SHORT)
async def test_a_server_that_ends_loses_no_run_and_charges_none_twice(floor: Shop, tmp_path: Path, moment: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    running = server(floor, tmp_path, moment)
    try:
        await running.ready()
        answered = await call_until_it_dies(running, engine, person, REPLY)
        assert await asyncio.to_thread(running.process.wait, 30) == EXIT_CODE
    finally:
        await running.end()
    number = MOMENTS[moment]
    assert answered == (2 if number is None else number - 1)
    await require_done_once(floor, person, tmp_path, number or 2)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_a_server_that_is_killed_during_the_call_leaves_it_to_a_worker(
    floor: Shop, tmp_path: Path, streamed: bool
) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    slow = f"sandbox: {json.dumps({'reply': 'Two words', 'latency_ms': 700, 'chunk_latency_ms': 300})}"
    running = server(floor, tmp_path)
    try:
        await running.ready()
        async with sdk(running.url, person.key, timeout=20) as client:
            call = asyncio.create_task(_whole(client, engine, slow, streamed))
            execution = uuid.UUID(await only_run(floor, person))
            held = "select count(*) from user_token_holds where reference_id = $1 and state = 'open'"
            async with asyncio.timeout(10):
                while not await floor.operator.fetchval(held, execution):
                    await asyncio.sleep(0.01)
            running.process.send_signal(signal.SIGKILL)
            with pytest.raises((openai.APIError, httpx2.HTTPError)):
                await call
    finally:
        await running.end()
    await require_done_once(floor, person, tmp_path, 1)


async def _whole(client: openai.AsyncOpenAI, engine: Made, text: str, streamed: bool) -> None:
    answer = await say(client, engine, text, stream=streamed)
    if streamed:
        _ = [chunk async for chunk in answer]
