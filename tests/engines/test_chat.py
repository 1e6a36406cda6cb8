"""Engines as models of the gateway: the official SDK, a served API with a worker beside it, the sandbox provider."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from fastapi import FastAPI

from tests.conftest import Person, serve, settings_for
from tests.engines.shop import Made, Shop
from tests.workflows.hands import workflow
from vanilla_saas.app import create_app
from vanilla_saas.engines import chat, waiting
from vanilla_saas.providers import gateway
from vanilla_saas.workflows.attending import Attended
from vanilla_saas.workflows.worker import Worker

ONE_TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.fixture(scope="module")
async def app(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    home = tmp_path_factory.mktemp("home")
    return create_app(settings_for(floor.room.cluster, floor.room.name, home, run_worker=True, max_streams=20))


@pytest.fixture(scope="module")
async def api(app: FastAPI) -> AsyncIterator[str]:
    async with serve(app) as address:
        yield address


@asynccontextmanager
async def sdk(api: str, key: str, **more: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{api}/v1", api_key=key, **{"max_retries": 0} | more) as client:
        yield client


def echo(value: str = "input.text", schema: Any = ONE_TEXT, **more: Any) -> dict[str, Any]:
    """A flow without a model: what the message became can be read in its answer."""
    return workflow("a", a={"value": value}, input=schema, output="steps.a.output", **more)


def asks(prompt: str = "{{ input.text }}", schema: Any = ONE_TEXT) -> dict[str, Any]:
    node = {"model": "sandbox-small", "prompt": prompt, "max_output_tokens": 200}
    return workflow("a=llm", a=node, input=schema)


def waits() -> dict[str, Any]:
    return workflow("s=signal a", "s>a", s={"signal": "go"}, a={"value": "'late'"}, output="steps.a.output")


async def say(client: openai.AsyncOpenAI, engine: Made | str, text: Any = "Hello", **more: Any) -> Any:
    model = f"engine/{engine if isinstance(engine, str) else engine.slug}"
    return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)


async def whole(client: openai.AsyncOpenAI, engine: Made, *, streamed: bool, **more: Any) -> None:
    """Reads an answer to its end."""
    async with asyncio.timeout(10):
        answer = await say(client, engine, stream=streamed, extra_body={"input": {}}, **more)
        if streamed:
            _ = [chunk async for chunk in answer]


def code(error: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[int, str]:
    return error.value.status_code, error.value.body["code"]  # type: ignore[index]


async def go(floor: Shop, execution: str) -> None:
    await floor.operator.fetchval("select signal_execution($1, 'go')", uuid.UUID(execution))


async def only_run(floor: Shop, person: Person) -> str:
    """The id of the one execution of a user, as soon as it is there."""
    async with asyncio.timeout(10):
        while not (
            found := await floor.operator.fetch(
                "select id from workflow_executions where user_id = $1", person.identity.user_id
            )
        ):
            await asyncio.sleep(0.01)
    assert len(found) == 1
    return str(found[0]["id"])


async def test_an_engine_answers_as_a_model_and_costs_what_its_model_calls_did(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person(balance=1000)
    async with sdk(api, person.key) as client:
        answer = await say(client, engine, f"sandbox: {json.dumps({'reply': 'Two words'})}")
    assert answer.choices[0].message.content == "Two words"
    assert (answer.object, answer.model) == ("chat.completion", f"engine/{engine.slug}")
    card = answer.engine
    assert (card["engine"], card["version"], card["source"]) == (engine.slug, 1, "reference")
    calls = await floor.operator.fetch("select * from ai_executions where user_id = $1", person.identity.user_id)
    assert len(calls) == 1
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        calls[0]["input_tokens"],
        calls[0]["output_tokens"],
    )
    assert card["charged_tokens"] == answer.usage.total_tokens == calls[0]["charged_tokens"] > 0
    wallet = await floor.room.people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (1000 - card["charged_tokens"], 0)
    assert (await floor.room.execution(uuid.UUID(card["execution_id"])))["status"] == "succeeded"


async def test_an_engine_with_a_budget_tells_its_usage_and_gives_back_the_rest(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks() | {"budget_tokens": 2000}), await floor.person(balance=5000)
    async with sdk(api, person.key) as client:
        answers = [await say(client, engine) for _ in range(2)]  # the second begins in one statement
    rows = await floor.operator.fetch(
        "select input_tokens, output_tokens, charged_tokens from ai_executions where user_id = $1 order by id",
        person.identity.user_id,
    )
    assert [
        (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.engine["charged_tokens"])
        for answer in answers
    ] == [tuple(row) for row in rows]
    states = "select array_agg(distinct state) from resource_allocations where user_id = $1"
    assert await floor.operator.fetchval(states, person.identity.user_id) == ["closed"]
    wallet = await floor.room.people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (5000 - sum(row[2] for row in rows), 0)


async def test_a_stream_has_the_text_the_usage_and_the_run(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person()
    long = "word " * 2500
    async with sdk(api, person.key) as client:
        script = f"sandbox: {json.dumps({'reply': long})}"
        stream = await say(client, engine, script, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.split() == long.split()[: len(text.split())]
    assert len(text) > 100
    assert (chunks[-2].choices[0].finish_reason, chunks[-2].engine["charged_tokens"]) == (
        "stop",
        chunks[-1].usage.total_tokens,
    )
    async with sdk(api, person.key) as client:
        chunks = [chunk async for chunk in await say(client, engine, "Hi", stream=True)]
    assert all(chunk.choices for chunk in chunks)  # usage was not asked for


async def test_a_stream_says_that_it_is_alive_until_the_run_ends(
    floor: Shop, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "KEEP_ALIVE_S", 0.05)
    engine, person = await floor.deploy(waits()), await floor.person()
    async with asyncio.timeout(10), sdk(api, person.key) as client:
        raw = client.chat.completions.with_streaming_response
        async with raw.create(
            model=f"engine/{engine.slug}", messages=[], stream=True, extra_body={"input": {}}
        ) as answer:
            lines: list[str] = []
            async for line in answer.iter_lines():
                lines.append(line)
                if line == ": still running" and lines.count(line) == 3:
                    await go(floor, answer.headers["x-vanilla-execution"])
    assert '"content":"late"' in "".join(lines)
    assert lines[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize(
    ("schema", "value", "messages", "seen"),
    [
        # the one text that is required
        ({"title": {"type": "string"}, "n": {"type": "integer"}}, "input.title", ["Hi"], "Hi"),
        # of the parts of a message their texts
        ({"text": {"type": "string"}}, "input.text", [[{"type": "text", "text": text} for text in "ab"]], "a\nb"),
        # the last of the user
        ({"text": {"type": ["string", "null"]}}, "input.text", ["First", "Last"], "Last"),
        # the list
        ({"messages": {"type": "array"}, "text": {"type": "string"}}, "input.messages[1].content", ["a", "b"], "b"),
    ],
    ids=["required", "parts", "last", "messages"],
)  # fmt: skip
async def test_messages_become_the_input_that_the_schema_asks_for(
    floor: Shop, api: str, schema: dict[str, Any], value: str, messages: list[Any], seen: str
) -> None:
    required = [name for name in schema if name in ("title", "text") and "messages" not in schema]
    engine = await floor.deploy(echo(value, {"type": "object", "properties": schema, "required": required}))
    person = await floor.person()
    said = [{"role": "user", "content": content} for content in messages]
    async with sdk(api, person.key) as client:
        answer = await client.chat.completions.create(
            model=f"engine/{engine.slug}",
            messages=[*said, {"role": "assistant", "content": "No."}],
            temperature=0.1,
        )
    assert answer.choices[0].message.content == seen
    assert (answer.usage.total_tokens, answer.engine["charged_tokens"]) == (0, 0)


async def test_a_property_is_found_by_name_and_not_where_a_parameter_has_a_default(floor: Shop, api: str) -> None:
    two = {"question": {"type": "string"}, "tone": {"type": "string"}}
    named = await floor.deploy(echo("input.question", {"type": "object", "properties": two}))
    both = {"type": "object", "properties": {"a": {"type": "string"}, "tone": {"type": "string"}}}
    defaulted = await floor.deploy(
        echo("input.a + ' ' + input.tone", both | {"required": ["a", "tone"]}),
        p_parameters={"tone": {"type": "string", "default": "kindly"}},
    )
    person = await floor.person()
    async with sdk(api, person.key) as client:
        assert (await say(client, named)).choices[0].message.content == "Hello"
        assert (await say(client, defaulted)).choices[0].message.content == "Hello kindly"
        over = await say(client, defaulted, extra_body={"input": {"a": "Bye", "tone": "sadly"}})
    assert over.choices[0].message.content == "Bye sadly"


async def test_the_answer_is_the_text_of_the_output_or_its_json(floor: Shop, api: str) -> None:
    person = await floor.person()
    async with sdk(api, person.key) as client:
        for value, seen in (
            ("{'text': 'T', 'n': 1}", "T"),
            ("{'only': {'text': 'T'}}", "T"),
            ("{'a': 'T'}", '{"a":"T"}'),
            ("[1, 2]", "[1,2]"),
            ("null", "null"),
        ):
            engine = await floor.deploy(echo(value))
            assert (await say(client, engine)).choices[0].message.content == seen


async def test_versions_aliases_copies_and_the_chosen_engine(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(echo("'one'")), await floor.person()
    for text in ("'two'", "'three'"):
        flow = await floor.flow(echo(text))
        await floor.ask(floor.admin, "deploy_engine", engine.slug, flow)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2)
    await floor.ask(floor.admin, "promote_engine", engine.id, 3, "canary", 0)
    await floor.ask(person, "fork_engine", f"{engine.slug}@1", "mine")
    await floor.ask(floor.admin, "assign_engine", engine.id, "user", person.identity.user_id, p_pin="3")
    async with sdk(api, person.key) as client:
        refs = {"": "two", "@1": "one", "@3": "three", "@canary": "three", "@stable": "two"}
        for pin, seen in refs.items():
            answer = await say(client, engine.slug + pin)
            assert (answer.choices[0].message.content, answer.engine["engine"]) == (seen, engine.slug)
        copy = await say(client, "my/mine")
        assert (copy.choices[0].message.content, copy.engine["version"], copy.engine["source"]) == (
            "one",
            1,
            "reference",
        )
        chosen = await say(client, "")
        assert (chosen.choices[0].message.content, chosen.engine["source"]) == ("three", "user")


async def test_only_engines_that_may_be_run_are_listed(floor: Shop, api: str) -> None:
    may, read, none = [await floor.deploy(echo(), access=access) for access in ("execute", "read", None)]
    person = await floor.person()
    refs = {f"engine/{engine.slug}": engine for engine in (may, read, none)}

    async def listed(key: str) -> set[str]:
        async with sdk(api, key) as client:
            return {model.id async for model in client.models.list()}

    assert await listed(person.key) & refs.keys() == {f"engine/{may.slug}"}
    assert "sandbox-small" in await listed(person.key)
    async with sdk(api, person.key) as client:
        row = await client.models.retrieve(f"engine/{may.slug}")
        assert (row.kind, row.owned_by) == ("engine", "default")
        assert abs(row.created - (await floor.operator.fetchval("select extract(epoch from now())::bigint"))) < 600
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(f"engine/{read.slug}")
    budget = await floor.room.people.user(scopes=["chat"])
    await floor.operator.execute("update api_keys set budget_tokens = 10 where id = $1", budget.key_id)
    reader = await floor.room.people.user(scopes=["read"])
    for other in (budget, reader):
        assert await listed(other.key) & refs.keys() == set()
    key, _ = await floor.key(person, f"{may.slug}@1")
    assert await listed(key) == {f"engine/{may.slug}@1"}


async def test_refusals_have_the_gateways_shape(floor: Shop, api: str) -> None:
    read, none = [await floor.deploy(echo(), access=access) for access in ("read", None)]
    engine, open_ended = await floor.deploy(echo()), await floor.deploy(echo("1", None))
    retired = await floor.deploy(echo())
    await floor.ask(floor.admin, "retire_engine", retired.id)
    person = await floor.person()
    async with sdk(api, person.key) as client:
        for ref, more, expected in (
            (read.slug, {}, (403, "forbidden")),
            (none.slug, {}, (404, "not_found")),
            ("nothing-there", {}, (404, "not_found")),
            (f"{engine.slug}@9", {}, (404, "not_found")),
            (retired.slug, {}, (409, "invalid_state")),
            ("No Such Form", {}, (400, "invalid_request")),
            (open_ended.slug, {}, (400, "input_required")),
            (engine.slug, {"n": 2}, (400, "unsupported_parameter")),
            (engine.slug, {"user": "someone"}, (400, "unsupported_parameter")),
            (engine.slug, {"extra_body": {"input": 3}}, (400, "invalid_request")),
            (engine.slug, {"text": [{"type": "image_url", "image_url": {"url": "x"}}]}, (400, "unsupported_content")),
            (engine.slug, {"extra_body": {"input": {"text": 3}}}, (422, "invalid_input")),
        ):
            with pytest.raises(openai.APIStatusError) as refused:
                await say(client, ref, **more)
            assert code(refused) == expected, ref
    assert (await floor.room.people.wallet(person))["available_tokens"] == 100_000
    ran = await floor.operator.fetchval(
        "select count(*) from workflow_executions where user_id = $1", person.identity.user_id
    )
    assert ran == 0
    assert refused.value.body["param"] == "input.text"  # type: ignore[index]


async def test_who_cannot_pay_is_told_so_and_nothing_is_started_again(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(asks()), await floor.person(balance=1)
    async with sdk(api, person.key, max_retries=2) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await say(client, engine)
    assert code(refused) == (402, "insufficient_tokens")
    assert refused.value.body["engine"]["charged_tokens"] == 0  # type: ignore[index]
    assert await only_run(floor, person) == refused.value.body["execution_id"]  # type: ignore[index]


async def test_a_failed_run_is_502_with_its_reason_also_in_a_stream(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(echo("1 / 0")), await floor.person()
    async with sdk(api, person.key, max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            await say(client, engine)
        assert failed.value.status_code == 502
        execution = await floor.room.execution(uuid.UUID(failed.value.body["execution_id"]))  # type: ignore[index]
        assert failed.value.body["code"] == execution["reason"]  # type: ignore[index]
        await only_run(floor, person)
        with pytest.raises(openai.APIError) as streamed:
            _ = [chunk async for chunk in await say(client, engine, stream=True)]
        assert streamed.value.code == execution["reason"]


@pytest.mark.parametrize("scopes", [["read"], ["chat"]], ids=["without chat", "with a budget"])
async def test_a_key_that_may_not_start_runs_starts_none(floor: Shop, api: str, scopes: list[str]) -> None:
    engine, person = await floor.deploy(echo()), await floor.room.people.user(scopes=scopes)
    if scopes == ["chat"]:
        await floor.operator.execute("update api_keys set budget_tokens = 10 where id = $1", person.key_id)
    async with sdk(api, person.key) as client:
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await say(client, engine)
    assert code(refused) == (403, "forbidden")


async def test_the_key_of_an_engine_runs_it_and_nothing_else(floor: Shop, api: str) -> None:
    engine, other, person = await floor.deploy(asks()), await floor.deploy(echo()), await floor.person()
    key, key_id = await floor.key(person, engine.slug, p_budget_tokens=1000)
    async with sdk(api, key) as client:
        answer = await say(client, engine)
        assert answer.engine["source"] == "key"
        used = await floor.operator.fetchval("select used_tokens from api_keys where id = $1", key_id)
        assert used == answer.usage.total_tokens > 0
        assert (await say(client, "")).engine["engine"] == engine.slug
        for ref in (other.slug, f"{engine.slug}@1"):
            with pytest.raises(openai.NotFoundError):
                await say(client, ref)
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="sandbox-small", messages=[{"role": "user", "content": "Hi"}])
        await floor.operator.execute("update api_keys set used_tokens = budget_tokens where id = $1", key_id)
        with pytest.raises(openai.RateLimitError) as spent:
            await say(client, engine)
        assert code(spent) == (429, "limit_reached")


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_a_revoked_key_starts_nothing_and_its_run_and_the_wait_for_it_end_within_a_second(
    floor: Shop, api: str, streamed: bool
) -> None:
    engine, person = await floor.deploy(waits()), await floor.person()
    key, key_id = await floor.key(person, engine.slug)

    async with sdk(api, key) as client:
        waiting = asyncio.create_task(whole(client, engine, streamed=streamed))
        execution = await only_run(floor, person)
        await floor.ask(person, "revoke_api_key", key_id)
        with pytest.raises(openai.APIError) as ended:
            await asyncio.wait_for(waiting, 1)
        assert ended.value.code == "authentication_failed"
        with pytest.raises(openai.AuthenticationError):
            await say(client, engine)
    row = await floor.room.execution(uuid.UUID(execution))
    assert (row["status"], row["reason"]) == ("cancelled", "key_revoked")


async def test_a_revoked_key_whose_runs_go_on_is_not_told_the_end(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(waits()), await floor.person()
    key, key_id = await floor.key(person, engine.slug)
    async with sdk(api, key) as client:
        waiting = asyncio.create_task(whole(client, engine, streamed=False))
        execution = await only_run(floor, person)
        await floor.ask(person, "revoke_api_key", key_id, p_cancel_runs=False)
        with pytest.raises(openai.AuthenticationError):
            await asyncio.wait_for(waiting, 1)
    assert (await floor.room.execution(uuid.UUID(execution)))["status"] == "running"


async def test_a_revoked_key_is_told_within_a_second_however_slow_looks_are(
    floor: Shop, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looked = Worker.look, 0

    async def slowly(worker: Worker, attended: Attended) -> None:
        nonlocal looked
        await asyncio.sleep(0.15)
        await look(worker, attended)
        looked += 1

    monkeypatch.setattr(Worker, "look", slowly)
    engine, person = await floor.deploy(waits()), await floor.person()
    async with sdk(api, person.key) as client, asyncio.timeout(20):
        waiting = asyncio.create_task(whole(client, engine, streamed=False))
        while looked < 2:  # the next is a second and a half later
            await asyncio.sleep(0.01)
        await floor.ask(floor.admin, "revoke_api_key", person.key_id)
        with pytest.raises(openai.AuthenticationError):
            await asyncio.wait_for(waiting, 1)
    assert looked == 2


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_a_client_that_leaves_ends_no_run_and_finds_it_again_by_its_key(
    floor: Shop, api: str, app: FastAPI, streamed: bool
) -> None:
    engine, person = await floor.deploy(waits()), await floor.person()
    named = {"extra_headers": {"Idempotency-Key": uuid.uuid4().hex}}
    more: dict[str, Any] = {"extra_body": {"input": {}}, **named}
    async with sdk(api, person.key, timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            await whole(client, engine, streamed=streamed, **named)
    execution = await only_run(floor, person)
    async with asyncio.timeout(5):
        while app.state.streams.open:  # its place is free again
            await asyncio.sleep(0.01)
    await go(floor, execution)
    async with asyncio.timeout(10), sdk(api, person.key) as client:
        for _ in range(2):
            answer = await say(client, engine, **more)
            assert (answer.choices[0].message.content, answer.engine["execution_id"]) == ("late", execution)
        with pytest.raises(openai.ConflictError) as reused:
            await say(client, f"{engine.slug}@1", **more)
    assert code(reused) == (409, "idempotency_key_reused")
    await only_run(floor, person)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_a_run_that_takes_too_long_is_named_and_goes_on(
    floor: Shop, api: str, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setattr(chat, "WAIT_S", 0.3)
    engine, person = await floor.deploy(waits()), await floor.person()
    async with sdk(api, person.key, max_retries=2) as client:
        with pytest.raises(openai.APIError) as late:
            await whole(client, engine, streamed=streamed)
    assert late.value.code == "still_running"
    if not streamed:
        assert late.value.status_code == 504  # type: ignore[attr-defined]
    execution = await only_run(floor, person)
    assert late.value.body["execution_id"] == execution  # type: ignore[index]
    await go(floor, execution)
    async with asyncio.timeout(10):
        while (await floor.room.execution(uuid.UUID(execution)))["status"] != "succeeded":
            await asyncio.sleep(0.02)


async def test_a_run_that_is_cancelled_is_told_as_such(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(waits()), await floor.person()
    async with sdk(api, person.key, max_retries=2) as client:
        waiting = asyncio.create_task(whole(client, engine, streamed=False))
        execution = await only_run(floor, person)
        await floor.ask(person, "cancel_execution", uuid.UUID(execution), "No more.")
        with pytest.raises(openai.ConflictError) as ended:
            await asyncio.wait_for(waiting, 10)
    assert code(ended) == (409, "cancelled")
    await only_run(floor, person)


@pytest.mark.parametrize("told", [True, False], ids=["beside", "elsewhere"])
async def test_an_end_is_seen_whether_or_not_the_worker_is_of_this_process(
    floor: Shop, api: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    if told:
        monkeypatch.setattr(waiting, "FIRST_S", 60.0)
    else:  # the worker is handed the method when the server starts, so what it looks in is emptied
        monkeypatch.setattr(app.state.ends, "_waiting", _Forgetful())
    engine, person = await floor.deploy(echo()), await floor.person()
    async with asyncio.timeout(10), sdk(api, person.key) as client:
        assert (await say(client, engine)).choices[0].message.content == "Hello"


class _Forgetful(dict[str, set[asyncio.Event]]):
    def get(self, *_: Any) -> Any:
        return ()


async def test_who_waits_has_a_place_of_its_own_and_takes_none_of_the_steps(floor: Shop, api: str) -> None:
    engine, person = await floor.deploy(waits()), await floor.person()
    async with asyncio.timeout(20), sdk(api, person.key) as client:
        calls = [asyncio.create_task(say(client, engine, extra_body={"input": {}})) for _ in range(21)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(next(iter(done)).exception(), openai.RateLimitError)
        rows = await floor.operator.fetch(
            "select id from workflow_executions where user_id = $1", person.identity.user_id
        )
        while len(rows) < 20:
            await asyncio.sleep(0.02)
            rows = await floor.operator.fetch(
                "select id from workflow_executions where user_id = $1", person.identity.user_id
            )
        for row in rows:
            await go(floor, str(row["id"]))
        answers = await asyncio.gather(*waiting)
    assert {answer.choices[0].message.content for answer in answers} == {"late"}
    assert len(rows) == len(answers) == 20
