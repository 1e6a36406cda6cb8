"""The node http, against a server of the outside that is here: what is sent, what comes back, what is refused."""

import asyncio
import gzip
import socket
from typing import Any

import pytest
from aiohttp import web

from tests.providers.provider_support import raw_provider
from tests.rebinding import Rebinding, rebinding
from tests.workflows.execution.conftest import Compute, Receiver
from tests.workflows.execution.support import plan, step
from vanilla_saas.workflows.execution.http_client import HttpClient
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.steps import Outcome
from vanilla_saas.workflows.execution.tooling import Tooling

__all__ = ["rebinding"]

GET = {"kind": "http", "url": "{{ input.url }}/a?b=1"}


def answering(**fields: Any) -> Any:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(**fields)

    return answer


async def test_a_request_is_sent_as_it_is_written(compute: Compute, receiver: Receiver) -> None:
    node = GET | {
        "method": "POST",
        "headers": {"X-Who": " {{ input.who }} ", "Content-Type": "application/json"},
        "body": '{"who": "{{ input.who }}"}',
    }
    outcome = await compute(node, input={"url": receiver.url, "who": "Ada"})
    ((method, path, headers, body),) = receiver.requests
    assert (method, path, body) == ("POST", "/a?b=1", b'{"who": "Ada"}')
    assert headers["X-Who"] == "Ada"
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"] == "vanilla-saas-workflows/1"
    assert outcome.fields["output"]["status"] == 200
    assert outcome.fields["output"]["body"] == {"ok": True}
    assert outcome.fields["output"]["headers"]["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ({"text": "héllo"}, "héllo"),
        ({"body": "héllo".encode("latin-1"), "content_type": "text/plain", "charset": "latin-1"}, "héllo"),
        ({"body": b'{"a": 1}', "content_type": "application/problem+json"}, {"a": 1}),
        ({"body": b"{not json", "content_type": "application/json"}, "{not json"),
        ({"body": b"\xff\xfe", "content_type": "application/octet-stream"}, "//4="),
        ({"body": b"a\0b", "content_type": "text/plain"}, "YQBi"),
        ({"body": b"abc", "content_type": "text/plain", "charset": "no-such"}, "YWJj"),
        ({"body": b""}, ""),
    ],
)
async def test_a_body_is_json_text_or_base64(compute: Compute, receiver: Receiver, answer, body: object) -> None:
    receiver.answer = answering(**answer)
    outcome = await compute(GET, input={"url": receiver.url})
    assert outcome.fields["output"]["body"] == body


async def test_json_that_cannot_be_stored_fails(compute: Compute, receiver: Receiver) -> None:
    receiver.answer = answering(body=b'["a\\u0000b"]', content_type="application/json")
    assert (await compute(GET, input={"url": receiver.url})).code == "output_invalid"


async def test_headers_of_one_name_are_joined(compute: Compute, receiver: Receiver) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        response = web.Response()
        response.headers.add("X-A", "1")
        response.headers.add("x-a", "2")
        return response

    receiver.answer = answer
    headers = (await compute(GET, input={"url": receiver.url})).fields["output"]["headers"]
    assert headers["x-a"] == "1, 2"


async def test_a_header_of_any_bytes_is_text(compute: Compute) -> None:
    async def odd(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx-odd: a\xffb\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with raw_provider(odd) as url:
        outcome = await compute(GET | {"method": "POST", "body": "a"}, input={"url": url})
    assert outcome.fields["output"]["headers"]["x-odd"] == "a\ufffdb"


async def test_head_has_no_body(compute: Compute, receiver: Receiver) -> None:
    outcome = await compute(GET | {"method": "HEAD"}, input={"url": receiver.url})
    assert outcome.fields["output"]["body"] == ""
    assert receiver.requests[0][0] == "HEAD"


async def test_nothing_is_kept_between_requests(compute: Compute, receiver: Receiver) -> None:
    receiver.answer = answering(headers={"Set-Cookie": "a=b"})
    named = receiver.url.replace("127.0.0.1", "localhost")  # no jar takes cookies of a bare address
    for _ in range(2):
        await compute(GET, input={"url": named})
    assert len(receiver.requests) == 2
    assert all("Cookie" not in headers for _, _, headers, _ in receiver.requests)


@pytest.mark.parametrize(
    ("status", "code", "retryable", "after"),
    [
        (404, "http_status", False, None),
        (429, "rate_limited", True, 9),
        (500, "provider_error", True, None),
        (503, "provider_error", True, 9),
        (301, "http_status", False, None),
    ],
)
async def test_a_status_that_is_not_allowed_fails(
    compute: Compute, receiver: Receiver, status: int, code: str, retryable: bool, after: float | None
) -> None:
    receiver.answer = answering(status=status, text="because\0", headers={"Retry-After": "9"})
    outcome = await compute(GET, input={"url": receiver.url})
    assert outcome.code == code
    assert outcome.fields["error"]["retryable"] is retryable
    assert outcome.fields["error"]["details"] == {"status": status, "body": "because"}
    assert outcome.fields.get("retry_after_s") == after


async def test_statuses_can_be_allowed(compute: Compute, receiver: Receiver) -> None:
    receiver.answer = answering(status=404, text="none")
    outcome = await compute(GET | {"allowed_status": [200, 404]}, input={"url": receiver.url})
    assert outcome.fields["output"]["status"] == 404
    receiver.answer = answering(status=201)
    assert (await compute(GET | {"allowed_status": [200]}, input={"url": receiver.url})).code == "http_status"


async def test_a_redirect_is_not_followed(compute: Compute, receiver: Receiver) -> None:
    """Neither to our own network nor anywhere else: what is sent is for the address that was named."""
    target = f"{receiver.url}/metadata"
    receiver.answer = answering(status=302, headers={"Location": target})
    outcome = await compute(GET, input={"url": receiver.url})
    assert outcome.code == "http_status"
    assert outcome.fields["error"]["details"]["location"] == target
    seen = await compute(GET | {"allowed_status": [302]}, input={"url": receiver.url})
    assert seen.fields["output"]["headers"]["location"] == target
    assert {path for _, path, _, _ in receiver.requests} == {"/a?b=1"}


async def test_a_large_body_is_cut_off(compute: Compute, receiver: Receiver) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x" * 65536)
            sent += 65536
        return response

    receiver.answer = endless
    outcome = await compute(GET, input={"url": receiver.url})
    assert outcome.code == "http_too_large"
    assert sent < 30 << 20


async def test_a_small_body_does_not_become_a_large_one(compute: Compute, receiver: Receiver) -> None:
    bomb = gzip.compress(b"x" * (8 << 20))
    receiver.answer = answering(body=bomb, headers={"Content-Encoding": "gzip"}, content_type="text/plain")
    outcome = await compute(GET, input={"url": receiver.url})
    assert outcome.kind == "succeeded"
    assert len(outcome.fields["output"]["body"]) < 20_000


async def test_an_answer_that_does_not_come_is_a_timeout(compute: Compute, receiver: Receiver) -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    receiver.answer = never
    outcome = await compute(GET, input={"url": receiver.url}, timeout_s=0.2)
    assert outcome.code == "timeout"
    assert outcome.fields["error"]["retryable"]


async def test_the_client_has_a_deadline_of_its_own(receiver: Receiver, tooling: Tooling) -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    receiver.answer = never
    async with HttpClient(private=True, seconds=0.2) as http:
        lent = Tooling(tooling.calls, http)
        outcome = await execute(step(input={"url": receiver.url}, timeout_s=None), plan({"id": "a", **GET}), lent)
    assert outcome.code == "timeout"


async def test_a_connection_that_breaks_is_the_others_fault(compute: Compute, receiver: Receiver) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    receiver.answer = cut
    assert (await compute(GET, input={"url": receiver.url})).code == "provider_error"


async def test_where_nobody_listens_is_a_provider_error(compute: Compute) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    outcome = await compute(GET, input={"url": url})
    assert outcome.code == "provider_error"
    assert "127.0.0.1" in outcome.fields["error"]["message"]


async def public(tooling: Tooling, url: str, **fields: Any) -> Outcome:
    """By a client that goes to public addresses only, as a worker's does."""
    async with HttpClient() as http:
        node = {"id": "a", "kind": "http", "url": "{{ input.url }}", **fields}
        return await execute(step(input={"url": url}), plan(node), Tooling(tooling.calls, http))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "10.0.0.1",
     "169.254.169.254", "192.168.1.1", "[fd00::1]", "[fe80::1]", "100.64.0.1", "224.0.0.1"],
)  # fmt: skip
async def test_our_own_network_is_refused(tooling: Tooling, receiver: Receiver, host: str) -> None:
    port = receiver.url.rpartition(":")[2]
    outcome = await public(tooling, f"http://{host}:{port}/")
    assert outcome.code == "http_refused", outcome
    assert not outcome.fields["error"]["retryable"]
    assert receiver.requests == []


async def test_a_name_that_changes_its_mind_is_refused(tooling: Tooling, rebinding: Rebinding) -> None:
    assert (await public(tooling, "http://rebinding.example/")).code == "provider_error"
    assert (await public(tooling, "http://rebinding.example/")).code == "http_refused"
    assert rebinding.checked == ["1.1.1.1", "127.0.0.1"], "one look-up a request, and what it said is what is checked"


@pytest.mark.parametrize(
    "url",
    ["", "example.com", "file:///etc/passwd", "ftp://example.com/", "http://?", "https://user:secret@example.com/",
     "http://exa mple.com/", "http://example.com/\n", "http://example.com:99999/", "http://[::1/", "gopher://a/",
     "http://example.com/" + "a" * 9000, "http:///x"],
)  # fmt: skip
async def test_what_is_no_address_is_refused(compute: Compute, url: str) -> None:
    outcome = await compute({"kind": "http", "url": "{{ input.url }}x"}, input={"url": url})
    assert outcome.code == "http_refused", outcome
    assert "secret" not in outcome.fields["error"]["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("Host", "internal"), ("content-length", "5"), ("Transfer-Encoding", "chunked"), ("Connection", "upgrade"),
     ("X-A", "a\r\nHost: internal"), ("X-A", "a\nb"), ("X-A", "a\0b")],
)  # fmt: skip
async def test_headers_cannot_change_the_request(compute: Compute, receiver: Receiver, name: str, value: str) -> None:
    node = GET | {"headers": {name: "{{ input.value }}"}}
    outcome = await compute(node, input={"url": receiver.url, "value": value})
    assert outcome.code == "http_refused"
    assert receiver.requests == []
