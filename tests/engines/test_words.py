"""Words of a run's last model call go to the client while they are generated: the official SDK, a served API."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import openai
import pytest
from fastapi import FastAPI

from tests.conftest import Person, serve, settings_for
from tests.engines.shop import Made, Shop
from tests.engines.test_chat import ONE_TEXT, only_run, say, sdk
from tests.engines.upstream import Answer, Upstream, upstream
from tests.processes import eventually
from tests.workflows.hands import workflow
from vanilla_saas.app import create_app
from vanilla_saas.engines.waiting import Ends
from vanilla_saas.providers.engine_chat import EngineEnd, EngineRun, Engines, Words
from vanilla_saas.providers.gateway import Gateway
from vanilla_saas.providers.metering import MeteredCalls
from vanilla_saas.tenancy.identity import Caller
from vanilla_saas.workflows.attending import Attended

NODE = {"model": "sandbox-small", "prompt": "{{ input.text }}", "max_output_tokens": 200}
QUICK = {"retry": {"initial_ms": 100, "max_ms": 100}}
SPEAKS = {
    "the only node": workflow("a=llm", a=NODE, input=ONE_TEXT),
    "the output": workflow("a=llm", a=NODE, input=ONE_TEXT, output="steps.a.output.text"),
    "the last of two": workflow("p=prompt a=llm", "p>a", p={"template": "{{ input.text }}"},
        a=NODE | {"prompt": "{{ steps.p.output }}"}, input=ONE_TEXT),
    "without a schema": workflow("a=llm", a=NODE | {"prompt": "{{ input }}"}),
}  # fmt: skip
SILENT = {
    "a gate behind it": workflow("a=llm g=gate b=llm", "a>g g>b", a=NODE, b=NODE | {"json_schema": {"type": "string"}},
        g={"of": "steps.a.output.text", "checks": [{"check": "length", "max": 1000}]}, input=ONE_TEXT),
    "two that end it": workflow("a=llm b=llm", a=NODE, b=NODE, input=ONE_TEXT),
    "another output": workflow("a=llm", a=NODE, input=ONE_TEXT, output="steps.a.output.text + '!'"),
    "a schema": workflow("a=llm", a=NODE | {"json_schema": {"type": "string"}}, input=ONE_TEXT),
}  # fmt: skip


@pytest.fixture(scope="module")
async def model() -> AsyncIterator[Upstream]:
    async with upstream() as made:
        yield made


@pytest.fixture(scope="module", params=[True, False], ids=["a worker beside", "no worker"])
async def app(
    floor: Shop, model: Upstream, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> FastAPI:
    home = tmp_path_factory.mktemp("home")
    more = {"run_worker": request.param, "sandbox_url": model.url}
    return create_app(settings_for(floor.room.cluster, floor.room.name, home, **more))


@pytest.fixture(scope="module")
async def api(app: FastAPI) -> AsyncIterator[str]:
    async with serve(app) as address:
        yield address


class Listener:
    """A stream that is read while it comes."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.heard = ""
        self.last: Any = None

    async def until(self, text: str) -> None:
        async with asyncio.timeout(10):
            while text not in self.heard:
                await self.one()

    async def one(self) -> None:
        self.last = await anext(self.stream)
        self.heard += self.last.choices[0].delta.content or ""

    async def rest(self) -> None:
        async with asyncio.timeout(10):
            while self.last is None or self.last.choices[0].finish_reason is None:
                await self.one()


async def listen(client: openai.AsyncOpenAI, engine: Made, **more: Any) -> Listener:
    return Listener(aiter(await say(client, engine, stream=True, **more)))


async def status(floor: Shop, person: Person) -> str:
    return str((await floor.room.execution(uuid.UUID(await only_run(floor, person))))["status"])


async def calls(floor: Shop, person: Person) -> list[dict[str, Any]]:
    rows = await floor.operator.fetch(
        "select * from ai_executions where user_id = $1 order by created_at", person.identity.user_id
    )
    return [dict(row) for row in rows]


async def paid(floor: Shop, person: Person, tokens: int, began: int = 100_000) -> None:
    wallet = await floor.room.people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (began - tokens, 0)


@pytest.mark.parametrize("flow", SPEAKS.values(), ids=SPEAKS)
async def test_words_arrive_before_the_run_ends_and_are_its_output(
    floor: Shop, api: str, model: Upstream, flow: dict[str, Any]
) -> None:
    engine, person = await floor.deploy(flow), await floor.person()
    more: dict[str, Any] = {} if "input" in flow else {"extra_body": {"input": {}}}
    for number in range(3):  # the first, then by one statement, then with its call admitted by it
        model.will(Answer(["One ", "two ", "three"], held=2))
        async with sdk(api, person.key) as client:
            heard = await listen(client, engine, **more)
            await heard.until("One ")
            running = "select count(*) from workflow_executions where user_id = $1 and status = 'running'"
            assert await floor.operator.fetchval(running, person.identity.user_id) == 1
            assert heard.heard == "One "
            model.go.set()
            await heard.rest()
        assert heard.heard == "One two three"
        run = await floor.room.execution(uuid.UUID(heard.last.engine["execution_id"]))
        assert (run["status"], heard.last.engine["charged_tokens"]) == ("succeeded", 13)
        await paid(floor, person, 13 * (number + 1))
    made = await calls(floor, person)
    assert [(one["status"], one["streamed"], one["first_token_ms"] is not None) for one in made] == [
        ("succeeded", True, True)
    ] * 3


@pytest.mark.parametrize("flow", SILENT.values(), ids=SILENT)
async def test_an_answer_that_something_else_may_change_is_said_at_the_end(
    floor: Shop, api: str, model: Upstream, flow: dict[str, Any]
) -> None:
    engine, person = await floor.deploy(flow), await floor.person()
    model.will(Answer(['"One', ' two"']), Answer(['"One', ' two"']))
    async with sdk(api, person.key) as client:
        heard = await listen(client, engine)
        await heard.rest()
    assert "One" in heard.heard
    assert not any(body.get("stream") for body in model.asked)


async def test_a_worker_that_is_quicker_waits_for_who_hears_its_words(
    floor: Shop, api: str, model: Upstream, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = Ends.attend
    claimed = "select node from workflow_queue where execution_id = $1 and node > 0 and worker is not null"

    async def slowly(ends: Ends, tenant_id: uuid.UUID, execution_id: uuid.UUID, *words: Any) -> Attended | None:
        while app.state.settings.run_worker and not await floor.operator.fetchrow(claimed, execution_id):
            await asyncio.sleep(0.01)
        return await attend(ends, tenant_id, execution_id, *words)

    monkeypatch.setattr(Ends, "attend", slowly)
    engine, person = await floor.deploy(SPEAKS["the only node"]), await floor.person()
    model.will(Answer(["One ", "two"], held=1))
    async with sdk(api, person.key) as client:
        heard = await listen(client, engine)
        await heard.until("One ")
        model.go.set()
        await heard.rest()
    assert heard.heard == "One two"


async def test_a_second_attempt_that_says_the_same_goes_on_from_there(floor: Shop, api: str, model: Upstream) -> None:
    engine = await floor.deploy(workflow("a=llm", a=NODE | QUICK, input=ONE_TEXT))
    person = await floor.person()
    model.will(Answer(["One ", "two "], cut=True), Answer(["On", "e two", " three"], held=1))
    async with sdk(api, person.key) as client:
        heard = await listen(client, engine)
        await heard.until("two ")
        model.go.set()
        await heard.rest()
    assert heard.heard == "One two three"
    broken, whole = await calls(floor, person)
    assert (broken["status"], whole["status"]) == ("failed", "succeeded")
    # what broke off is charged as far as it came, as any stream is
    assert broken["charged_tokens"] > 0
    await paid(floor, person, broken["charged_tokens"] + 13)


async def test_a_second_attempt_that_says_something_else_ends_the_stream_and_not_the_run(
    floor: Shop, api: str, model: Upstream
) -> None:
    engine = await floor.deploy(workflow("a=llm", a=NODE | QUICK, input=ONE_TEXT))
    person = await floor.person()
    model.will(Answer(["One ", "two "], cut=True), Answer(["One ", "more ", "time"], held=1))
    async with sdk(api, person.key) as client:
        heard = await listen(client, engine)
        with pytest.raises(openai.APIError) as changed:
            await heard.rest()
    assert heard.heard == "One two "
    assert (changed.value.code, changed.value.body["execution_id"]) == (  # type: ignore[index]
        "answer_changed",
        await only_run(floor, person),
    )
    model.go.set()
    async with asyncio.timeout(10):
        while await status(floor, person) == "running":
            await asyncio.sleep(0.02)
    assert await status(floor, person) == "succeeded"


async def test_a_run_that_fails_after_words_tells_so(floor: Shop, api: str, model: Upstream) -> None:
    once = {"retry": {"attempts": 1}}
    engine, person = await floor.deploy(workflow("a=llm", a=NODE | once, input=ONE_TEXT)), await floor.person()
    model.will(Answer(["One "], cut=True))
    async with sdk(api, person.key) as client:
        heard = await listen(client, engine)
        with pytest.raises(openai.APIError) as failed:
            await heard.rest()
    assert failed.value.code == "provider_error"
    assert await status(floor, person) == "failed"


async def test_a_run_that_is_cancelled_while_it_speaks_costs_nothing(floor: Shop, api: str, model: Upstream) -> None:
    engine, person = await floor.deploy(SPEAKS["the only node"]), await floor.person()
    model.will(Answer(["One ", "two"], held=1))
    async with sdk(api, person.key) as client:
        heard = await listen(client, engine)
        await heard.until("One ")
        await floor.ask(person, "cancel_execution", uuid.UUID(await only_run(floor, person)))
        with pytest.raises(openai.APIError) as cancelled:
            await heard.rest()
    assert cancelled.value.code == "cancelled"
    await paid(floor, person, 0)


async def test_a_key_that_is_revoked_hears_no_more_within_a_second(floor: Shop, api: str, model: Upstream) -> None:
    engine, person = await floor.deploy(SPEAKS["the only node"]), await floor.person()
    model.will(Answer(["One ", "two"], held=1))
    async with sdk(api, person.key) as client:
        heard = await listen(client, engine)
        await heard.until("One ")
        await floor.ask(floor.admin, "revoke_api_key", person.key_id)
        with pytest.raises(openai.APIError) as ended:
            await asyncio.wait_for(heard.rest(), 1)
        assert ended.value.code == "authentication_failed"
        with pytest.raises(openai.AuthenticationError):
            await say(client, engine)
    assert heard.heard == "One "
    model.go.set()
    async with asyncio.timeout(10):
        while await status(floor, person) == "running":
            await asyncio.sleep(0.02)
    await paid(floor, person, 12)  # the run goes on


class Speaking:
    """In place of what runs engines: a run that speaks and ends when it is told to."""

    def __init__(self) -> None:
        self.words: Any = None
        self.over = asyncio.Event()

    def place(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def start(self, *of: Any, words: Words, **more: Any) -> EngineRun:
        self.words = words
        return EngineRun(uuid.uuid4(), "e", 1, "stable", "reference", "engine/e", 0, cast(Caller, None))

    async def end(self, *of: Any) -> EngineEnd:
        await self.over.wait()
        return EngineEnd("succeeded", None, None, "One two", 1, 1, 1, 0, 0)

    def leave(self, run: EngineRun) -> None:
        pass


async def test_what_comes_while_a_slow_client_is_sent_something_is_not_left_until_the_next_news() -> None:
    speaking, never, sent = Speaking(), asyncio.Event(), ""
    asked = b'{"model": "engine/e", "messages": [], "stream": true}'
    scope = {"path": "/v1/chat/completions", "method": "POST", "headers": [(b"authorization", b"Bearer x")]}
    receiving = iter([{"type": "http.request", "body": asked}])

    async def receive() -> Any:
        return next(receiving, None) or await never.wait()

    async def send(message: Any) -> None:
        nonlocal sent
        sent += message.get("body", b"").decode()
        if message["type"] == "http.response.body":
            if "One" in sent:
                speaking.over.set()
            elif not speaking.over.is_set():
                speaking.words.open()("One ")
            await asyncio.sleep(0.01)

    async with asyncio.timeout(1):
        await Gateway(cast(MeteredCalls, None), 1000, cast(Engines, speaking))(scope, receive, send)
    assert re.findall(r'"content":"([^"]+)"', sent) == ["One ", "two"]
    assert sent.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("flow", [SPEAKS["the only node"], SILENT["another output"]], ids=["streamed", "whole"])
async def test_a_key_that_is_revoked_in_the_midst_of_a_call_hangs_up_on_the_model(
    floor: Shop, api: str, model: Upstream, flow: dict[str, Any]
) -> None:
    engine, person = await floor.deploy(flow), await floor.person()
    key, key_id = await floor.key(person, engine.slug, p_budget_tokens=1000)
    model.will(Answer(["One ", "two"], held=1))
    async with sdk(api, key) as client:
        call = asyncio.create_task(_heard(client, engine))

        async def reserved() -> bool:
            wallet = await floor.room.people.wallet(person)
            return bool(model.asked and wallet["reserved_tokens"])

        await eventually(reserved)
        assert not model.left.is_set()
        await floor.ask(floor.admin, "revoke_api_key", key_id)
        await asyncio.wait_for(model.left.wait(), 1)
        with pytest.raises(openai.APIError):
            await call
    run = await floor.room.execution(uuid.UUID(await only_run(floor, person)))
    assert (run["status"], run["reason"], run["charged_tokens"]) == ("cancelled", "key_revoked", 0)
    assert [body["model"] for body in model.asked] == ["sandbox-small"]
    await paid(floor, person, 0)
    assert await floor.operator.fetchval("select used_tokens from api_keys where id = $1", key_id) == 0


async def _heard(client: openai.AsyncOpenAI, engine: Made) -> None:
    await (await listen(client, engine)).rest()


async def test_a_client_that_leaves_while_it_is_spoken_to_ends_no_run(
    floor: Shop, api: str, model: Upstream, app: FastAPI
) -> None:
    engine, person = await floor.deploy(SPEAKS["the only node"]), await floor.person()
    model.will(Answer(["One ", "two"], held=1))
    async with sdk(api, person.key) as client:
        heard = await listen(client, engine)
        await heard.until("One ")
    async with asyncio.timeout(5):
        while app.state.streams.open:
            await asyncio.sleep(0.01)
    model.go.set()
    async with asyncio.timeout(10):
        while await status(floor, person) == "running":
            await asyncio.sleep(0.02)
    await paid(floor, person, 12)
    assert [one["status"] for one in await calls(floor, person)] == ["succeeded"]
