"""The client against a real HTTP server: the sandbox, and TCP servers that misbehave."""

import asyncio
import json
import traceback

import aiohttp
import orjson
import pytest

from tests.providers.conftest import KEY
from tests.providers.provider_support import (
    DONE,
    FINISH,
    USAGE,
    answering,
    chat,
    delta,
    eventually,
    raw_provider,
    scripted,
    soon,
    sse,
    streaming,
)
from vanilla_saas.providers import adapters
from vanilla_saas.providers.adapters import (
    Upstream,
    UpstreamClient,
    UpstreamError,
    estimate_completion_tokens,
    with_output_limit,
)
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.providers.sandbox_rules import count_tokens

USAGE_ASKED = {"stream_options": {"include_usage": True}}


def elsewhere(url: str, key: str | None = KEY) -> Upstream:
    return Upstream("custom", url, key, "m")


async def streamed(client, upstream, body, deadline=None):
    """Chunks, the error that ended them or None, the stream."""
    chunks = []
    async with client.stream(upstream, body, deadline=deadline or soon()) as stream:
        try:
            async for chunk in stream:
                chunks.append(chunk)  # noqa: PERF401 - what came before an error counts
        except UpstreamError as error:
            return chunks, error, stream
    return chunks, None, stream


def text_of(chunks: list[bytes]) -> str:
    events = [event.removeprefix(b"data: ") for event in b"".join(chunks).split(b"\n\n")]
    parsed = [orjson.loads(event) for event in events if event and event != DONE]
    return "".join(c["delta"].get("content") or "" for event in parsed for c in event["choices"])


async def failure(awaitable) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await awaitable
    return caught.value


async def direct(url: str, body: dict) -> bytes:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/chat/completions", json=body) as answer,
    ):
        return await answer.read()


async def test_a_whole_answer_passes_as_the_provider_wrote_it(client, upstream, sandbox):
    body = chat("Grüße", max_tokens=4)
    answer = await client.complete(upstream, body, deadline=soon())
    seen = orjson.loads(await direct(sandbox.url, {**body, "model": "sandbox-small"}))
    assert {**orjson.loads(answer.body), "id": ""} == {**seen, "id": ""}
    assert (answer.status, answer.usage.completion_tokens) == (200, 4)
    assert answer.usage.completion_tokens == answer.completion_tokens_estimate


async def test_embeddings_take_the_same_way(client, sandbox):
    upstream = Upstream("sandbox", sandbox.url, None, "sandbox-embed")
    body = {"model": "x", "input": "four words of text"}
    answer = await client.complete(upstream, body, deadline=soon(), path="embeddings")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 0)


NUMBERS = b",".join([b"0.0123456789"] * 100_000)


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        (b'{"data":[{"embedding":[%b]}],"model":"m","usage":{"prompt_tokens":7,"total_tokens":7}}', 7),
        (b'{"data":[{"embedding":[%b]}],"usage":{"prompt_tokens":7},"model":"m"}\n', 7),
        (b'{"usage":{"prompt_tokens":7},"data":[{"embedding":[%b]}]}', 7),
        (b'{"data":[{"embedding":[%b],"usage":{"prompt_tokens":9}}],"usage":{"prompt_tokens":7}}', 7),
        (b'{"data":[{"embedding":[%b],"usage":{"prompt_tokens":9}}]}', None),
        (b'{"data":[{"embedding":[%b]}],"model":"\\"usage\\": {}"}', None),
        (b'{"data":[{"embedding":[%b]}],"usage":null}', None),
        (b'{"data":[{"embedding":[%b]}]}', None),
    ],
)
async def test_the_usage_of_many_vectors_is_found_wherever_it_stands(client, answer, prompt):
    body = answer % NUMBERS
    async with raw_provider(answering(200, body)) as url:
        found = await client.embed(Upstream("openai", url, None, "m"), {"input": "x"}, deadline=soon())
    assert found.body == body
    assert (found.usage and found.usage.prompt_tokens, found.completion_tokens_estimate) == (prompt, 0)


async def test_many_vectors_are_not_read_for_their_usage(client, monkeypatch):
    read = []
    monkeypatch.setattr(adapters.orjson, "loads", lambda raw: read.append(len(raw)) or json.loads(raw))
    body = b'{"data":[{"embedding":[%b]}],"usage":{"prompt_tokens":7}}' % NUMBERS
    async with raw_provider(answering(200, body)) as url:
        found = await client.embed(Upstream("openai", url, None, "m"), {"input": "x"}, deadline=soon())
    assert (found.usage.prompt_tokens, read) == (7, [29])


async def test_many_vectors_cut_short_are_malformed(client):
    body = b'{"data":[{"embedding":[%b]}],"usage":{"prompt_tokens":7}' % NUMBERS
    async with raw_provider(answering(200, body)) as url:
        call = client.embed(Upstream("openai", url, None, "m"), {"input": "x"}, deadline=soon())
        assert (await failure(call)).kind == "malformed"


@pytest.mark.parametrize("asked", [True, False])
async def test_usage_is_always_asked_and_only_shown_to_who_asked(client, upstream, sandbox, asked):
    body = chat("tell me 🙂 more", stream=True, **(USAGE_ASKED if asked else {}))
    chunks, error, stream = await streamed(client, upstream, body)
    assert error is None
    assert stream.finished
    assert sandbox.counters.last["stream_options"] == {"include_usage": True}
    assert stream.usage.completion_tokens == count_tokens(text_of(chunks))
    assert stream.usage.completion_tokens == stream.delivered_completion_tokens_estimate
    told = b'"completion_tokens"' in b"".join(chunks)
    assert told is asked
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")


async def test_bytes_of_a_stream_pass_untouched(client, upstream, sandbox):
    # written oddly on purpose: spacing, CRLF, comments and ids survive
    odd = [
        b": ping\r\n\r\n",
        b'event: x\r\nid: 7\r\ndata:{ "choices" : [ {"index":0,"delta":{"content":"\xc3\xa9"}} ] }\r\n\r\n',
        *sse(FINISH, DONE),
    ]
    whole = b"".join(odd)
    for size in (1, 3, 1000):
        writes = [whole[i : i + size] for i in range(0, len(whole), size)]
        async with raw_provider(streaming(*writes)) as url:
            chunks, error, stream = await streamed(client, elsewhere(url), chat())
        assert (b"".join(chunks), error, stream.delivered_completion_tokens_estimate) == (whole, None, 1)


async def test_a_stream_without_usage_has_an_estimate(client, upstream):
    _chunks, error, stream = await streamed(client, upstream, scripted(usage="missing", reply="x" * 41))
    assert (error, stream.usage, stream.finished) == (None, None, True)
    assert stream.delivered_completion_tokens_estimate == 11
    answer = await client.complete(upstream, scripted(usage="missing", reply="x" * 41), deadline=soon())
    assert (answer.usage, answer.completion_tokens_estimate) == (None, 11)


@pytest.mark.parametrize("options", [{}, {"n": 3}])
async def test_a_provider_that_dies_in_mid_stream_leaves_what_it_delivered(client, upstream, sandbox, options):
    body = scripted(options, completion_tokens=50, error_after_chunks=7)
    chunks, error, stream = await streamed(client, upstream, body)
    assert (error.kind, error.charged, error.retryable) == ("connection", True, False)
    assert (stream.usage, stream.finished) == (None, False)
    assert count_tokens(text_of(chunks)) == 7 == stream.delivered_completion_tokens_estimate
    assert sandbox.counters.chunks_sent == 7


async def test_a_provider_that_dies_in_a_whole_answer_is_a_connection_error(client, upstream):
    error = await failure(client.complete(upstream, scripted(error_after_chunks=1), deadline=soon()))
    assert (error.kind, error.charged, error.client_status) == ("connection", True, 502)


async def test_a_client_that_leaves_closes_the_call_upstream(client, upstream, sandbox):
    body = scripted(completion_tokens=10_000, chunk_latency_ms=2)
    async with client.stream(upstream, body, deadline=soon()) as stream:
        async for _ in stream:
            if stream.delivered_completion_tokens_estimate >= 3:
                break
    charged = stream.delivered_completion_tokens_estimate
    await eventually(lambda: sandbox.counters.aborted == 1)
    assert 3 <= charged <= sandbox.counters.chunks_sent < 100


async def test_a_cancelled_call_closes_the_call_upstream(client, upstream, sandbox):
    call = asyncio.create_task(client.complete(upstream, scripted(latency_ms=600_000), deadline=soon(60)))
    await eventually(lambda: sandbox.counters.chat == 1)
    call.cancel()
    await eventually(lambda: sandbox.counters.aborted == 1)
    assert call.cancelled() or ((await asyncio.wait({call})) and call.cancelled())


async def test_the_deadline_ends_a_call_that_has_not_begun_to_answer(client, upstream, sandbox):
    error = await failure(client.complete(upstream, scripted(latency_ms=600_000), deadline=soon(0.05)))
    assert (error.kind, error.charged, error.client_status) == ("timeout", True, 504)
    await eventually(lambda: sandbox.counters.aborted == 1)


async def test_the_deadline_ends_a_stream(client, upstream):
    body = scripted(completion_tokens=10_000, chunk_latency_ms=5)
    _, error, stream = await streamed(client, upstream, body, deadline=soon(1.5))
    assert (error.kind, error.charged) == ("timeout", True)
    assert stream.delivered_completion_tokens_estimate > 0


async def test_a_deadline_that_has_passed_sends_nothing(client, upstream, sandbox):
    error = await failure(client.complete(upstream, chat(), deadline=soon(-1)))
    assert (error.kind, error.charged, sandbox.counters.total) == ("timeout", False, 0)


async def test_a_malformed_chunk_ends_the_stream_after_what_was_sound(client, upstream):
    chunks, error, stream = await streamed(client, upstream, scripted(reply="abcdefgh", malformed=True))
    assert (error.kind, error.charged) == ("malformed", True)
    assert (text_of(chunks), stream.delivered_completion_tokens_estimate) == ("abcd", 1)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"id":'])
async def test_a_malformed_answer_is_no_answer(client, body):
    async with raw_provider(answering(200, body)) as url:
        error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert (error.kind, error.charged, error.client_status) == ("malformed", True, 502)


async def test_an_error_with_status_200_is_an_error_that_was_not_charged(client):
    async with raw_provider(answering(200, b'{"error":{"message":"no such route"}}')) as url:
        error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert (error.kind, error.charged, error.detail) == (
        "server",
        False,
        "it reported an error: no such route",
    )


async def test_an_answer_without_end_is_not_held(client, monkeypatch):
    monkeypatch.setattr(adapters, "MAX_ANSWER_BYTES", 1000)
    async with raw_provider(answering(200, b'{"a":"' + b"x" * 2000 + b'"}')) as url:
        error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert error.kind == "malformed"


@pytest.mark.parametrize("found", [b"5", b"null", b"[1]", b'[{"message":7}]', b'{"a":1}'])
async def test_choices_of_any_shape_do_no_harm(client, found):
    async with raw_provider(answering(200, b'{"choices":%b}' % found)) as url:
        answer = await client.complete(elsewhere(url), chat(), deadline=soon())
    assert (answer.usage, answer.completion_tokens_estimate) == (None, 0)


async def test_a_refusal_whose_body_is_cut_is_still_a_refusal(client):
    async def cut(reader, writer):
        writer.write(b"HTTP/1.1 429 X\r\nretry-after: 2\r\ncontent-length: 99\r\n\r\n{")
        await writer.drain()

    async with raw_provider(cut) as url:
        error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert (error.kind, error.charged, error.retry_after) == ("rate_limited", False, 2.0)


async def test_an_object_in_place_of_a_stream_is_malformed(client):
    async with raw_provider(answering(200, b'{"choices":[]}')) as url:
        with pytest.raises(UpstreamError, match="malformed"):
            async with client.stream(elsewhere(url), chat(), deadline=soon()):
                raise AssertionError("the stream must not begin")


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([delta("abcd"), {"error": {"message": f"overloaded {KEY}"}}], "server"),
        ([delta("abcd"), [1]], "malformed"),
        # a clean end of the connection in the middle of the answer
        ([delta("abcd")], "malformed"),
    ],
)
async def test_errors_inside_a_stream_are_raised_after_its_events(client, events, kind):
    async with raw_provider(streaming(b"".join(sse(*events)))) as url:
        chunks, error, stream = await streamed(client, elsewhere(url), chat())
    assert (error.kind, error.charged, text_of(chunks), stream.finished) == (kind, True, "abcd", False)
    assert KEY not in str(error)


async def test_a_stream_that_ends_without_done_is_whole_when_the_answer_was(client):
    async with raw_provider(streaming(*sse(delta("abcd"), FINISH, USAGE))) as url:
        chunks, error, stream = await streamed(client, elsewhere(url), chat())
    assert (error, stream.finished, stream.usage.completion_tokens) == (None, False, 7)
    assert b"completion_tokens" not in b"".join(chunks)


async def test_a_cut_after_done_is_no_error(client):
    async with raw_provider(streaming(*sse(delta("abcd"), FINISH, USAGE, DONE), whole=False)) as url:
        _, error, stream = await streamed(client, elsewhere(url), chat())
    assert (error, stream.finished) == (None, True)


async def test_usage_beside_choices_is_counted_and_forwarded(client):
    ending = {**FINISH, "usage": USAGE["usage"]}
    async with raw_provider(streaming(*sse(delta("abcd"), ending, DONE))) as url:
        chunks, _, stream = await streamed(client, elsewhere(url), chat())
    assert stream.usage.completion_tokens == 7
    assert b'"finish_reason":"stop"' in b"".join(chunks)


@pytest.mark.parametrize(
    ("status", "kind", "to_client"),
    [
        (400, "invalid_request", 400),
        (404, "invalid_request", 404),
        (413, "invalid_request", 413),
        (422, "invalid_request", 422),
        # the operator's key or bill, not the customer's
        (401, "authentication", 502),
        (402, "authentication", 502),
        (403, "authentication", 502),
        (408, "timeout", 504),
        (409, "server", 502),
        (429, "rate_limited", 429),
        (500, "server", 502),
        (503, "server", 502),
        (529, "server", 502),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_each_status_has_its_kind_and_is_not_charged(client, upstream, status, kind, to_client, stream):
    body = scripted(status=status, reply=f"wrong: {KEY}", retry_after=3)
    if stream:
        error = await failure(client.stream(upstream, body, deadline=soon()).__aenter__())
    else:
        error = await failure(client.complete(upstream, body, deadline=soon()))
    assert (error.kind, error.status, error.client_status, error.charged) == (kind, status, to_client, False)
    assert error.retryable is (kind in ("rate_limited", "server", "timeout"))
    assert set(orjson.loads(error.client_body())["error"]) == {"message", "type", "param", "code"}
    assert error.retry_after == (3.0 if kind in ("rate_limited", "server", "timeout") else None)


async def test_an_invalid_request_keeps_the_providers_words(client, upstream):
    error = await failure(client.complete(upstream, scripted(status=400, reply="too long"), deadline=soon()))
    told = orjson.loads(error.client_body())["error"]
    assert (told["message"], told["code"], told["type"]) == ("too long", "scripted", "invalid_request_error")


async def test_the_operators_key_problem_is_told_as_the_providers(client, upstream):
    error = await failure(client.complete(upstream, scripted(status=401, reply="bad key"), deadline=soon()))
    told = orjson.loads(error.client_body())["error"]
    assert told["code"] == "provider_authentication"
    assert "bad key" not in told["message"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"<html>nginx</html>", "status 400"),
        (b'[{"error":{"message":"Gemini says no","code":400}}]', "Gemini says no"),
        (b'{"error":"plain"}', "plain"),
        (b'{"error":{"message":"x"' + b" " * 100_000 + b"}}", "status 400"),
    ],
)
async def test_any_body_of_a_refusal_becomes_an_error_object(client, raw, message):
    async with raw_provider(answering(400, raw)) as url:
        error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert orjson.loads(error.client_body())["error"]["message"] == message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("retry-after: 2.5\r\n", 2.5),
        ("retry-after-ms: 250\r\n", 0.25),
        ("retry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\n", 0.0),
        ("retry-after: 999999999\r\n", 86_400.0),
        ("retry-after: soon\r\n", None),
        ("retry-after: nan\r\n", None),
        ("", None),
    ],
)
async def test_retry_after_is_read_in_all_its_forms(client, header, seconds):
    async with raw_provider(answering(429, b"{}", header)) as url:
        error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert error.retry_after == seconds


async def test_a_redirect_is_not_followed_with_the_key(client, sandbox):
    moved = f"location: {sandbox.url}/chat/completions\r\n"
    async with raw_provider(answering(307, b"", moved)) as url:
        error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert (error.kind, error.status, sandbox.counters.total) == ("server", 307, 0)


async def test_a_provider_that_is_not_there_was_not_charged(client):
    async with raw_provider(answering(200, b"{}")) as url:
        pass
    error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert (error.kind, error.charged, error.retryable) == ("connection", False, True)


async def test_a_provider_that_hangs_up_without_an_answer_was_not_charged(client):
    async def hang_up(reader, writer):
        pass

    async with raw_provider(hang_up) as url:
        error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert (error.kind, error.charged, error.retryable) == ("connection", False, True)


@pytest.mark.parametrize("url", ["http://", "not a url", "http://[::1", "ftp://x/v1"])
async def test_an_address_that_is_none_is_an_upstream_error(client, url):
    error = await failure(client.complete(elsewhere(url), chat(), deadline=soon()))
    assert error.kind == "connection"


async def test_the_key_is_sent_and_shows_nowhere_else(client, upstream):
    seen = []

    async def keep(reader, writer):
        await answering(400, orjson.dumps({"error": {"message": f"no {KEY} here"}}))(reader, writer)

    errors = []
    for key in (KEY, KEY + "\r\nx: y"):
        async with raw_provider(keep) as url:
            errors.append(await failure(client.complete(elsewhere(url, key), chat(), deadline=soon())))
    async with raw_provider(streaming(b"data: {\n\n")) as url:
        errors.append((await streamed(client, elsewhere(url), chat()))[1])
    for script in ({"status": 401}, {"status": 500}, {"error_after_chunks": 0}):
        call = client.complete(upstream, scripted(**script, reply=KEY), deadline=soon())
        errors.append(await failure(call))
    for error in errors:
        seen += [str(error), repr(error), str(vars(error)), error.client_body().decode()]
        seen += traceback.format_exception(error)
        # an aiohttp error knows the headers of its request
        assert error.__context__ is None
        assert error.__cause__ is None
    assert not [text for text in seen if KEY in text]
    assert KEY not in repr(upstream)


async def test_the_key_reaches_the_provider(client):
    heads = []

    async def handle(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await client.complete(elsewhere(url), chat(), deadline=soon())
        await client.complete(elsewhere(url, None), chat(), deadline=soon())
    assert f"Bearer {KEY}".encode() in heads[0]
    assert b"uthorization" not in heads[1]


async def test_a_client_outside_its_context_says_so(upstream):
    with pytest.raises(RuntimeError, match="outside its context"):
        await UpstreamClient().complete(upstream, chat(), deadline=soon())


@pytest.mark.parametrize(
    ("provider", "model", "name"),
    [
        ("openai", "gpt-6.1-sol", "max_completion_tokens"),
        ("openai", "o3", "max_completion_tokens"),
        ("openai", "gpt-4o", "max_completion_tokens"),
        ("openai", "ft:gpt-4o-mini:org", "max_completion_tokens"),
        ("openai", "gpt-4", "max_tokens"),
        ("openai", "gpt-4-turbo", "max_tokens"),
        ("openai", "gpt-3.5-turbo", "max_tokens"),
        ("anthropic", "claude-opus-5-5", "max_tokens"),
        ("google", "gemini-4-argon", "max_tokens"),
        ("custom", "gpt-6.1-sol", "max_tokens"),
        ("sandbox", "sandbox-small", "max_tokens"),
    ],
)
def test_one_output_limit_goes_upstream(provider, model, name):
    for given in (
        {},
        {"max_tokens": 9},
        {"max_completion_tokens": 9},
        {"max_tokens": 9, "max_completion_tokens": 8},
    ):
        body = chat(**given)
        limited = with_output_limit(provider, model, body, 100)
        assert {k: v for k, v in limited.items() if k.startswith("max_")} == {name: 100}
        assert body == chat(**given)


@pytest.mark.parametrize(("n", "limit", "share"), [(None, 7, 7), (1, 7, 7), (2, 7, 3), (7, 7, 1)])
def test_choices_share_the_limit(n, limit, share):
    assert with_output_limit("sandbox", "m", chat(n=n), limit)["max_tokens"] == share


def test_a_limit_that_cannot_be_shared_is_refused():
    with pytest.raises(InvalidRequest, match="n=8"):
        with_output_limit("sandbox", "m", chat(n=8), 7)


async def test_all_choices_together_stay_within_the_limit(client, upstream, sandbox):
    body = with_output_limit("sandbox", "sandbox-small", chat("long " * 50, n=3), 20)
    answer = await client.complete(upstream, body, deadline=soon())
    assert answer.usage.completion_tokens == 18
    _, _, stream = await streamed(client, upstream, body)
    assert stream.usage.completion_tokens == 18 == stream.delivered_completion_tokens_estimate


def test_the_estimate_rounds_up_each_choice():
    assert estimate_completion_tokens("custom", {}) == 0
    assert estimate_completion_tokens("custom", {0: 1, 1: 5}) == 3
