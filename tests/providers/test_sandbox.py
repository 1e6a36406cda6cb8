"""The sandbox as clients see it: over HTTP, with the official SDK."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path

import aiohttp
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.provider_support import chat, eventually, scripted
from vanilla_saas.providers import sandbox_rules as rules
from vanilla_saas.providers.sandbox import Counters, SandboxServer

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "integer"},
            },
            "required": ["city", "unit", "days"],
        },
    },
}


@pytest.fixture(scope="session")
async def sdk(sandbox_server: SandboxServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=sandbox_server.url, api_key="unused", max_retries=0, timeout=10) as client:
        yield client


@pytest.fixture(scope="session")
async def http(sandbox_server: SandboxServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def request(text: str = "hello", **options: object) -> dict:
    return chat(text, **{"model": "sandbox-small", **options})


async def post(http: aiohttp.ClientSession, sandbox: SandboxServer, body: dict, **headers: str) -> bytes:
    async with http.post(f"{sandbox.url}/chat/completions", data=orjson.dumps(body), headers=headers) as answer:
        return await answer.read()


async def test_the_same_request_has_the_same_answer_to_the_byte(sandbox, http):
    for body in (request("one"), request("one", stream=True), request("one", tools=[WEATHER], n=2)):
        assert await post(http, sandbox, body) == await post(http, sandbox, body)
    assert await post(http, sandbox, request("one")) != await post(http, sandbox, request("two"))


async def test_the_sdk_reads_an_answer_and_its_usage(sandbox, sdk):
    answer = await sdk.chat.completions.create(**request("How are you?"))
    text = answer.choices[0].message.content
    assert "How are you?" in text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == rules.count_tokens(text)
    assert answer.usage.prompt_tokens == rules.prompt_tokens(request("How are you?"))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_stops_at_the_limit(sandbox, sdk, limit):
    answer = await sdk.chat.completions.create(**request("ünï-cödé " * 20, **{limit: 5}))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5 == rules.count_tokens(answer.choices[0].message.content)
    assert sandbox.counters.as_dict()["last_max_tokens"] == 5


@pytest.mark.parametrize("asked", [True, False])
async def test_a_stream_has_usage_only_when_asked(sandbox, sdk, asked):
    options = {"stream_options": {"include_usage": True}} if asked else {}
    plain = await sdk.chat.completions.create(**request("Grüße 🙂"))
    chunks = [c async for c in await sdk.chat.completions.create(**request("Grüße 🙂"), stream=True, **options)]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    reported = [c.usage for c in chunks if c.usage]
    assert [u.completion_tokens for u in reported] == ([plain.usage.completion_tokens] if asked else [])


async def test_a_forced_tool_is_called_with_arguments_of_its_schema(sandbox, sdk):
    choice = {"type": "function", "function": {"name": "weather"}}
    for forced in (choice, "required"):
        answer = await sdk.chat.completions.create(**request(tools=[WEATHER], tool_choice=forced))
        call = answer.choices[0].message.tool_calls[0].function
        assert (call.name, orjson.loads(call.arguments)) == (
            "weather",
            {"city": "sandbox", "unit": "C", "days": 1},
        )
        assert answer.choices[0].finish_reason == "tool_calls"


async def test_scripted_tool_calls_arrive_as_deltas(sandbox, sdk):
    body = scripted({"model": "sandbox-small"}, tool_calls=[{"name": "a", "arguments": {"x": "é" * 9}}, {"name": "b"}])
    chunks = [c async for c in await sdk.chat.completions.create(**body, stream=True)]
    names, arguments = {}, {}
    for delta in (c.choices[0].delta for c in chunks):
        for call in delta.tool_calls or []:
            names.setdefault(call.index, call.function.name)
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert names == {0: "a", 1: "b"}
    assert [orjson.loads(arguments[i]) for i in (0, 1)] == [{"x": "é" * 9}, {}]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_a_script_sets_the_reply_and_the_usage(sandbox, http):
    answer = orjson.loads(await post(http, sandbox, request(), **{"x-sandbox-script": '{"reply": "exactly"}'}))
    assert answer["choices"][0]["message"]["content"] == "exactly"
    told = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    answer = orjson.loads(await post(http, sandbox, scripted({"model": "sandbox-small"}, usage=told)))
    assert answer["usage"] == told
    answer = orjson.loads(await post(http, sandbox, scripted({"model": "sandbox-small"}, usage="missing")))
    assert "usage" not in answer


@pytest.mark.parametrize(
    ("options", "script", "tokens"),
    [
        ({}, {"completion_tokens": 50}, 50),
        ({"max_tokens": 20}, {"completion_tokens": 50}, 20),
        # a provider that does not honour the limit
        ({"max_tokens": 20}, {"completion_tokens": 50, "ignore_max_tokens": True}, 50),
        # three choices of it
        ({"max_tokens": 20, "n": 3}, {"completion_tokens": 50}, 60),
    ],
)
async def test_scripted_completion_tokens_are_text_as_well_as_usage(sandbox, http, options, script, tokens):
    body = scripted({"model": "sandbox-small", **options}, **script)
    answer = orjson.loads(await post(http, sandbox, body))
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert answer["usage"]["completion_tokens"] == tokens == sum(rules.count_tokens(t) for t in texts)


async def test_a_scripted_status_is_an_openai_error(sandbox, sdk):
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.chat.completions.create(**scripted({"model": "sandbox-small"}, status=429, retry_after=7))
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.code == "scripted"


def turns(script: object, *said: str) -> dict[str, object]:
    """A conversation with a script in its first message, in which `said` was answered already."""
    answers = [{"role": "assistant", "content": text} for text in said]
    first = {"role": "system", "content": "You help. sandbox: " + orjson.dumps(script).decode()}
    messages = [first, {"role": "user", "content": "Go"}, *answers]
    return {"model": "sandbox-small", "messages": messages, "tools": [WEATHER]}


async def test_a_conversation_is_scripted_turn_by_turn(sandbox, sdk):
    script = {"turns": [{"tool_calls": [{"name": "a"}, {"name": "b", "id": "own"}]}, {"reply": "Done."}]}
    first = (await sdk.chat.completions.create(**turns(script))).choices[0]
    assert [(call.id, call.function.name) for call in first.message.tool_calls] == [("call_0_0", "a"), ("own", "b")]
    for said in (("x",), ("x", "y", "z")):
        found = await sdk.chat.completions.create(**turns(script, *said))
        assert found.choices[0].message.content == "Done."
    without = (await sdk.chat.completions.create(**turns(script) | {"tools": []})).choices[0]
    assert without.message.tool_calls is None


@pytest.mark.parametrize("script", [{"turns": []}, {"turns": 1}, {"turns": [{"odd": 1}]}, {"reply": "no turns"}])
async def test_turns_that_are_wrong_are_refused(sandbox, sdk, script):
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(**turns(script))
    assert caught.value.code == "invalid_script"


@pytest.mark.parametrize(
    "script",
    [b"{", b"[]", b'{"latency": 1}', b'{"latency_ms": -1}', b'{"latency_ms": true}', b'{"status": 200}',
     b'{"usage": 3}', b'{"tool_calls": [{}]}', b'{"completion_tokens": 99999999999}'],
)  # fmt: skip
def test_a_script_that_is_wrong_is_refused(script):
    with pytest.raises(rules.SandboxError, match="refused"):
        rules.parse_script(script)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "gpt-4o"}, 404),
        ({"messages": []}, 400),
        ({"n": 0}, 400),
        ({"n": True}, 400),
        ({"max_tokens": 0}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": 1}}, 400),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 7}}], "tool_choice": "required"}, 400),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, 400),
    ],
)
async def test_a_wrong_request_is_refused(sandbox, http, body, status):
    async with http.post(f"{sandbox.url}/chat/completions", json=request(**{"text": "x"}) | body) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_models_and_embeddings_answer_the_sdk(sandbox, sdk):
    assert [model.id async for model in sdk.models.list()] == list(rules.MODELS)
    texts = ["a red fox", "the red fox", "quarterly balance sheet"]
    answer = await sdk.embeddings.create(model="sandbox-embed", input=texts)  # base64
    plain = await sdk.embeddings.create(model="sandbox-embed", input=texts, encoding_format="float")
    fox, same_fox, sheet = (item.embedding for item in answer.data)
    assert fox == pytest.approx(plain.data[0].embedding, abs=1e-6)

    def near(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert near(fox, same_fox) > near(fox, sheet)
    assert answer.usage.prompt_tokens == sum(rules.count_tokens(text) for text in texts)


async def test_more_numbers_than_the_sandbox_makes_are_refused(sandbox, sdk):
    with pytest.raises(openai.BadRequestError, match="512 inputs of 4096 dimensions"):
        await sdk.embeddings.create(model="sandbox-embed", input=["x"] * 513, dimensions=4096)


async def test_the_counters_are_readable_over_http(sandbox, http):
    await post(http, sandbox, request(max_tokens=9, stream=True))
    root = sandbox.url.removesuffix("/v1")
    async with http.get(f"{root}/sandbox/requests") as answer:
        seen = await answer.json()
    assert (seen["chat"], seen["streams"], seen["aborted"], seen["last_max_tokens"]) == (1, 1, 0, 9)
    assert "content" not in str(seen["last"])
    async with http.delete(f"{root}/sandbox/requests") as answer:
        assert answer.status == 200
    assert sandbox.counters.chat == 0


async def test_response_formats_are_json_of_the_schema(sandbox, sdk):
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    answer = await sdk.chat.completions.create(**request(response_format=form))
    assert orjson.loads(answer.choices[0].message.content) == {"score": 1}


@given(st.text(max_size=60), st.integers(0, 30))
def test_a_cut_text_counts_what_was_allowed(text, tokens):
    assert rules.count_tokens(rules.cut(text, tokens)) == min(tokens, rules.count_tokens(text))


@given(st.text(max_size=60))
def test_each_piece_is_one_token(text):
    parts = rules.pieces(text)
    assert "".join(parts) == text
    if text:
        for n in range(1, len(parts) + 1):
            assert rules.count_tokens("".join(parts[:n])) == n


async def test_a_server_that_stops_cuts_its_clients(http):
    async with SandboxServer() as server:
        body = scripted({"model": "sandbox-small"}, latency_ms=600_000)
        waiting = http.post(f"{server.url}/chat/completions", json=body)
        call = asyncio.ensure_future(waiting.__aenter__())
        await eventually(lambda: server.counters.chat == 1)
    with pytest.raises(aiohttp.ClientError):
        await call


def test_the_page_names_every_script_field_and_counter():
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text()
    names = [*(field.name for field in fields(rules.Script)), *Counters().as_dict()]
    assert [name for name in names if f"`{name}`" not in page] == []


async def test_it_serves_alone(http):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vanilla_saas.providers.sandbox", "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # whoever runs this suite in the background ignores it, and a child inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        url = (await process.stdout.readline()).decode().split()[-1]
        async with http.post(f"{url}/chat/completions", json=request("alone")) as answer:
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


async def test_it_is_silent_and_leaves_the_loggers_of_the_product_alone(sandbox, http, caplog):
    levels = {name: logging.getLogger(name).level for name in ("uvicorn", "uvicorn.error", "uvicorn.access")}
    caplog.set_level(logging.DEBUG)
    async with SandboxServer() as server:
        with pytest.raises(aiohttp.ClientError):
            await post(http, server, scripted({"model": "sandbox-small"}, error_after_chunks=1))
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []
    assert levels == {name: logging.getLogger(name).level for name in levels}
