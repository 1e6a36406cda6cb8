"""Whatever is sent to the metered call: an answer or a refusal in OpenAI's shape, and nothing stays reserved."""

import asyncio
import copy
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import LONG, Cluster, People, Person, serve, settings_for
from tests.processes import assert_books_are_clean
from vanilla_saas.app import create_app
from vanilla_saas.database.pool import _prepare

EXAMPLES = 5000 if LONG else 150
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
parts = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=30)}) | st.fixed_dictionaries(
    {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": st.just("data:,")})}
)
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": st.text(max_size=60) | st.lists(parts),
    },
    optional={"name": st.text(max_size=8), "tool_call_id": st.text(max_size=8)},
)
function = {"name": st.text(min_size=1, max_size=8), "parameters": st.just({"type": "object"}) | values}
tools = st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries(function)})
valid = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["sandbox-small", "sandbox-large", "gpt-4o-mini", "nothing"]),
        "messages": st.lists(messages, min_size=1, max_size=3),
        "max_tokens": st.integers(1, 60),
    },
    optional={
        "stream": st.booleans(),
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
        "n": st.integers(1, 3),
        "temperature": st.floats(0, 2),
        "stop": st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=2),
        "tools": st.lists(tools, max_size=2),
        "tool_choice": st.sampled_from(["auto", "none", "required"]),
        "response_format": st.sampled_from([{"type": "json_object"}, {"type": "text"}]),
        "seed": st.integers(0, 9),
    },
)

embeddings = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["sandbox-embed", "sandbox-small", "text-embedding-3-small", "nothing"]),
        "input": st.text(min_size=1, max_size=60)
        | st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4)
        | st.lists(st.integers(0, 2**32), min_size=1, max_size=5)
        | st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=3),
    },
    optional={
        "encoding_format": st.sampled_from(["float", "base64"]),
        "dimensions": st.integers(1, 5000),
        "user": st.text(max_size=5),
    },
)

EXTRA = ("user", "service_tier", "modalities", "audio", "functions", "logit_bias", "max_completion_tokens")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        found += places(item, (*path, key))
    return found


@st.composite
def mutated(draw: st.DrawFn, requests: st.SearchStrategy[Any] = valid) -> Any:
    """A valid request of which one to three places hold something else or are gone."""
    body = copy.deepcopy(draw(requests))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(body) or [("model",)]))
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            parent[path[-1]] = draw(values)
        elif isinstance(parent, dict):
            parent.pop(path[-1], None)
    name = draw(
        st.sampled_from(
            ["", "user", "service_tier", "modalities", "audio", "functions", "logit_bias", "max_completion_tokens"]
        )
    )
    return {**body, name: draw(values)} if name else body


def encoded(value: Any) -> bytes:
    # not orjson: integers beyond 64 bits and lone surrogates are to be sent
    return json.dumps(value).encode()


@dataclass
class Target:
    """A server, somebody who may call it, and their books."""

    url: str
    people: People
    person: Person
    path: str = "/v1/chat/completions"

    async def send(self, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> tuple[int, bytes, bytes]:
        """Status, content type and body of the answer to a request whose headers no client library would touch."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**24)
        given = dict(headers or [])
        lines = {b"authorization": b"Bearer " + self.person.key.encode(), b"host": b"x", b"connection": b"close"}
        lines |= {b"content-length": str(len(body)).encode()} | given
        head = b"".join(b"%b: %b\r\n" % line for line in lines.items())
        try:
            writer.write(b"POST %b HTTP/1.1\r\n" % self.path.encode() + head + b"\r\n" + body)
            async with asyncio.timeout(20):
                raw = await reader.read()
        finally:
            writer.close()
        start, _, rest = raw.partition(b"\r\n\r\n")
        status, *fields = start.split(b"\r\n")
        found = dict(field.lower().split(b": ", 1) for field in fields)
        if found.get(b"transfer-encoding") == b"chunked":
            rest = b"".join(rest.split(b"\r\n")[1::2])
        return int(status.split()[1]), found.get(b"content-type", b""), rest

    async def expect_sense(self, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        status, kind, answer = await self.send(body, headers)
        assert status == 200 or 400 <= status < 500, (status, answer)
        if kind.startswith(b"text/event-stream"):
            assert answer.endswith(b"data: [DONE]\n\n"), answer[-200:]
        elif answer == b"Invalid HTTP request received.":
            assert status == 400  # what is no HTTP has no route and no shape
        else:
            assert kind == b"application/json"
            parsed = orjson.loads(answer)
            assert parsed.get("choices") or parsed.get("data") if status == 200 else is_openais(parsed["error"]), parsed
        reserved = "select reserved_tokens from user_token_wallets where user_id = $1"
        assert await self.people.operator.fetchval(reserved, self.person.identity.user_id) == 0


def is_openais(error: dict[str, Any]) -> bool:
    """Whether its SDKs can read the error."""
    return (
        isinstance(error["message"], str)
        and isinstance(error["type"], str)
        and isinstance(error["param"], str | None)
        and isinstance(error["code"], str | None)
    )


@pytest.fixture(scope="module")
async def target(
    cluster: Cluster, database_name: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Target]:
    operator = await asyncpg.connect(cluster.url(database=database_name))
    await _prepare(operator)
    people = People(operator)
    person = await people.user("admin", scopes=["chat", "read", "act_as"], balance=10**9)
    async with serve(create_app(settings_for(cluster, database_name, tmp_path_factory.mktemp("home")))) as url:
        target = Target(url, people, person)
        yield target
        # it is alive, and the books are right
        status, _, answer = await target.send(orjson.dumps({**HELLO, "max_tokens": 3}))
        assert status == 200, answer
    await assert_books_are_clean(operator)
    await operator.close()


@pytest.fixture
def embedding(target: Target) -> Target:
    return replace(target, path="/v1/embeddings")


HELLO = {"model": "sandbox-small", "messages": [{"role": "user", "content": "hi"}]}


@fuzz
@given(body=valid)
async def test_a_valid_request_is_answered(target: Target, body: Any) -> None:
    await target.expect_sense(encoded(body))


@fuzz
@given(body=mutated())
@example(body={**HELLO, "n": True})
@example(body={**HELLO, "user": "\ud800"})
@example(body={**HELLO, "max_tokens": 2**64})
@example(body={**HELLO, "messages": [{"role": "user", "content": [None]}]})
@example(body={**HELLO, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"required": 1}}}]})
@example(body={**HELLO, "tool_choice": {"type": "function", "function": {"name": []}}})
async def test_a_broken_request_is_refused_or_answered(target: Target, body: Any) -> None:
    await target.expect_sense(encoded(body))


EMBED = {"model": "sandbox-embed", "input": ["hi"]}


@fuzz
@given(body=embeddings | mutated(embeddings))
@example(body={**EMBED, "input": [2**63]})
@example(body={**EMBED, "input": [2**64]})
@example(body={**EMBED, "input": ["\ud800"]})
@example(body={**EMBED, "input": "sandbox: {}"})
@example(body={**EMBED, "input": 'sandbox: {"usage": {"prompt_tokens": 2000}}'})
@example(body={**EMBED, "input": "sandbox: {1}"})
@example(body={**EMBED, "input": [[[]]]})
@example(body={**EMBED, "encoding_format": {}})
@example(body={**EMBED, "dimensions": 2**64})
@example(body={**EMBED, "stream": True})
async def test_a_request_for_embeddings_is_refused_or_answered(embedding: Target, body: Any) -> None:
    await embedding.expect_sense(encoded(body))


@fuzz
@given(body=values.map(encoded) | st.binary(max_size=200))
@example(body=b"[" * 100_000)
@example(body=b'{"model":' * 2000)
@example(body=b"\xef\xbb\xbf{}")
async def test_arbitrary_json_and_bytes_are_refused(target: Target, body: bytes) -> None:
    await target.expect_sense(body)


header_bytes = st.binary(max_size=60) | st.text(max_size=30).map(str.encode) | st.sampled_from([b"\xe9 latin", b"a\0b"])
# random, because a database would compress a repetition
long_bytes = st.integers(1, 9).map(lambda seed: random.Random(seed).randbytes(32_000).hex().encode())
NAMES = [
    *(b"authorization", b"idempotency-key", b"x-vanilla-user", b"x-request-id"),
    *(b"content-type", b"accept", b"cookie", b"transfer-encoding", b"expect"),
]


@fuzz
@given(name=st.sampled_from(NAMES), value=header_bytes | long_bytes)
@example(name=b"content-length", value=b"-1")
@example(name=b"content-length", value=b"9" * 40)
@example(name=b"idempotency-key", value=b"x" * 256)
@example(name=b"idempotency-key", value=random.Random(1).randbytes(32_000).hex().encode())
async def test_odd_headers_are_refused_or_have_no_effect(target: Target, name: bytes, value: bytes) -> None:
    # a line end would only make a second header, or end the head
    value = value.replace(b"\r", b"").replace(b"\n", b"")
    body = orjson.dumps({**HELLO, "max_tokens": 3})
    await target.expect_sense(body, [(name, value)])


async def test_a_key_with_as_many_bytes_as_allowed_is_kept(target: Target) -> None:
    key = b"k" * 255
    body = orjson.dumps({**HELLO, "max_tokens": 3})
    assert (await target.send(body, [(b"idempotency-key", key)]))[0] == 200
    status, _, answer = await target.send(body, [(b"idempotency-key", key)])
    assert (status, orjson.loads(answer)["error"]["code"]) == (409, "idempotency_key_reused")
