"""A process that waits for a run works for it as a worker does: what bounds workers bounds it, and it may die."""

import asyncio
import json
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from tests.conftest import DEFAULT_TENANT, LONG, TEST_KEY, Person, serve, settings_for
from tests.engines.shop import Made, Shop
from tests.engines.test_chat import ONE_TEXT, asks, code, only_run, say, sdk
from tests.pgbouncer import pgbouncer
from tests.processes import Running, eventually, over
from tests.workflows.hands import workflow
from tests.workflows.proof.invariants import require_invariants
from vanilla_saas.app import create_app
from vanilla_saas.checks import BOOKS, run_checks
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import ContextSigner, load_signer
from vanilla_saas.database.exit_at import EXIT_CODE
from vanilla_saas.engines import chat
from vanilla_saas.workflows.attending import Attended
from vanilla_saas.workflows.worker import Worker
from vanilla_saas.workflows.working import options_of, worker_alone, working

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


async def test_of_what_callers_meant_so_much_is_kept_whoever_calls(
    floor: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "KNOWN", 3)
    monkeypatch.setattr(chat, "VERSIONS", 2)
    engines = [await floor.deploy(asks()) for _ in range(3)]
    people = [await floor.person() for _ in range(2)]
    app = create_app(settings_for(floor.room.cluster, floor.room.name, tmp_path))
    async with serve(app) as address:
        kept = app.state.gateway._engines
        for person in people:
            async with sdk(address, person.key) as client:
                for engine in engines[:2]:
                    for _ in range(2):
                        assert (await say(client, engine, REPLY)).choices[0].message.content == "Two words"
        # what a version takes is kept once for all
        assert (len(kept._known), len(kept._takes)) == (3, 2)
        async with sdk(address, people[0].key) as client:
            for engine in [*engines, *engines]:
                assert (await say(client, engine, REPLY)).choices[0].message.content == "Two words"
        assert (len(kept._known), len(kept._takes)) == (3, 2)


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


async def test_all_who_wait_while_the_worker_begins_are_worked_for(floor: Shop, tmp_path: Path) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    async with (
        serve(create_app(settings_for(floor.room.cluster, floor.room.name, tmp_path))) as address,
        sdk(address, person.key) as client,
        asyncio.timeout(10),
    ):
        async with floor.operator.transaction():
            await floor.operator.execute("lock table worker_registry in exclusive mode")
            calls = [asyncio.create_task(say(client, engine, REPLY)) for _ in range(3)]
            begun = "select count(*) from workflow_executions where user_id = $1"
            while await floor.operator.fetchval(begun, person.identity.user_id) < 3:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
        answers = await asyncio.gather(*calls)
    assert [answer.choices[0].message.content for answer in answers] == ["Two words"] * 3


async def test_what_another_worker_computes_after_a_wait_is_in_the_usage(floor: Shop, api: str, tmp_path: Path) -> None:
    node = {"model": "sandbox-small", "prompt": "{{ input.text }}"}
    engine = await floor.deploy(workflow("s=signal a=llm", "s>a", s={"signal": "go"}, a=node, input=ONE_TEXT))
    person = await floor.person()
    waits = "select id from workflow_executions e where user_id = $1 and finished_at is null and exists"
    waits += " (select from workflow_steps s where s.execution_id = e.id and s.status = 'waiting')"
    other = serve(create_app(settings_for(floor.room.cluster, floor.room.name, tmp_path, run_worker=True)))
    async with sdk(api, person.key) as client, asyncio.timeout(20), AsyncExitStack() as beside:
        for _ in range(2):
            call = asyncio.create_task(say(client, engine))
            while not (execution := await floor.operator.fetchval(waits, person.identity.user_id)):
                await asyncio.sleep(0.01)
            await floor.operator.fetchval("select signal_execution($1, 'go')", execution)
            await call
        await beside.enter_async_context(other)
        for _ in range(3):
            call = asyncio.create_task(say(client, engine))
            while not (execution := await floor.operator.fetchval(waits, person.identity.user_id)):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # it is looked at rarely by now
            await floor.operator.fetchval("select signal_execution($1, 'go')", execution)
            answer = await call
            assert answer.usage.total_tokens == answer.engine["charged_tokens"] > 0


@pytest.mark.parametrize(
    ("outcome", "running", "alone"),
    [("succeeded", 1, True), ("waiting", 1, False), ("gate", 1, False), ("succeeded", 0, False)],
)
def test_a_run_is_one_process_alone_while_no_other_can_have_a_step(outcome: str, running: int, alone: bool) -> None:
    attended = Attended(DEFAULT_TENANT, uuid.uuid4(), running=running, alone=True)
    attended.heard([{"outcome": outcome}], {"end": None, "elsewhere": False, "stale": [], "steps": []})
    assert attended.alone == alone


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


@asynccontextmanager
async def at_work(floor: Shop, home: Path, *, polls: bool) -> AsyncIterator[Worker]:
    settings = settings_for(floor.room.cluster, floor.room.name, home)
    signer = load_signer(settings)
    with addresses(settings, signer) as where:
        made = worker_alone(settings, options_of(settings, polls=polls), where, signer)
        async with made as worker, working(worker), asyncio.timeout(20):
            while not worker.ready:
                await asyncio.sleep(0.01)
            yield worker


@asynccontextmanager
async def waited_for(floor: Shop, home: Path) -> AsyncIterator[tuple[Worker, Attended]]:
    """A worker for those alone who wait in its process, and a run that it attends."""
    execution = await floor.room.start(await floor.flow(workflow("a b", "a>b")))
    async with at_work(floor, home, polls=False) as worker:
        attended = worker.attend(DEFAULT_TENANT, execution)
        assert attended is not None
        yield worker, attended


async def looked_at_to_the_end(worker: Worker, attended: Attended) -> None:
    while attended.end is None:
        await worker.look(attended)
        await asyncio.sleep(0.02)


async def test_after_what_was_told_nothing_is_looked_at_at_once(
    floor: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, person = await floor.deploy(workflow("a b c d", "a>b b>c c>d")), await floor.person()
    look, clock, ended = Worker.look, asyncio.get_running_loop().time, 0.0
    pauses: list[float] = []

    async def seen(worker: Worker, attended: Attended) -> None:
        nonlocal ended
        if not attended.done:
            pauses.append(clock() - ended)
        await look(worker, attended)
        ended = clock()

    app = create_app(settings_for(floor.room.cluster, floor.room.name, tmp_path, run_worker=True))
    async with serve(app) as address, sdk(address, person.key) as client:
        await say(client, engine, extra_body={"input": {}})
        monkeypatch.setattr(Worker, "look", seen)
        for _ in range(3):
            await say(client, engine, extra_body={"input": {}})
    assert all(pause > 0.02 for pause in pauses), pauses


async def test_a_run_that_this_process_alone_computes_is_looked_at_when_a_step_has_ended(
    floor: Shop, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, person, looks = await floor.deploy(asks()), await floor.person(), []
    look = Worker.look

    async def seen(worker: Worker, attended: Attended) -> None:
        looks.append(len(attended.done))
        await look(worker, attended)

    slow = f"sandbox: {json.dumps({'reply': 'slow', 'latency_ms': 800})}"
    async with sdk(api, person.key) as client:
        for _ in range(2):
            await say(client, engine, REPLY)
        monkeypatch.setattr(Worker, "look", seen)
        await say(client, engine, slow)
    assert looks == [1]


async def test_steps_that_have_no_words_do_not_wait_for_a_start(floor: Shop, tmp_path: Path) -> None:
    async with at_work(floor, tmp_path, polls=True) as worker:
        with worker.about_to_attend():
            execution = await floor.room.start(await floor.flow(workflow("a b", "a>b")))
            while (await floor.room.execution(execution))["status"] != "succeeded":
                await asyncio.sleep(0.02)


async def test_what_a_look_that_is_cancelled_was_to_tell_is_told(
    floor: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, leave = [], Worker._leave_to_all

    def seen(worker: Worker, done: list[dict[str, Any]]) -> None:
        left.extend(outcome["lease"] for outcome in done)
        leave(worker, done)

    monkeypatch.setattr(Worker, "_leave_to_all", seen)
    waits = (
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')"
    )
    async with waited_for(floor, tmp_path) as (worker, attended):
        await worker.look(attended)
        while not attended.done:
            await asyncio.sleep(0.01)
        told = [outcome["lease"] for outcome in attended.done]
        async with floor.operator.transaction():
            locked = "select from workflow_executions where id = $1 for update"
            await floor.operator.execute(locked, attended.execution_id)
            look = asyncio.create_task(worker.look(attended))
            while not await floor.operator.fetchval(waits):
                await asyncio.sleep(0.01)
            look.cancel()
            await asyncio.gather(look, return_exceptions=True)
        assert left == told  # what is lost would be handed back and computed again
        await looked_at_to_the_end(worker, attended)
    found = await steps(floor, str(attended.execution_id))
    assert (found["a"], found["b"]) == (("succeeded", 1), ("succeeded", 1))


async def test_steps_whose_answer_was_lost_are_handed_back_by_who_looks_for_nobody_elses_work(
    floor: Shop, tmp_path: Path
) -> None:
    async with waited_for(floor, tmp_path) as (worker, attended):
        lost = "select vanilla.tick_run($1, '[]', 10, $2, $3)"
        answer = await floor.runtime.fetchval(lost, worker.id, attended.tenant_id, attended.execution_id)
        assert [step["node"] for step in answer["steps"]] == ["a"]
        await looked_at_to_the_end(worker, attended)
    assert attended.end is not None
    assert attended.end["status"] == "succeeded"


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
