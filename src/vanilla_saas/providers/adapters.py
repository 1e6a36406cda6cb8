"""Calls to OpenAI-compatible providers: the bytes of the answer and what it cost.

`base_url` makes any such server a provider: OpenAI itself, Anthropic's and Gemini's compatible surfaces,
vLLM, the sandbox. Answers pass as bytes; only usage, errors and the size of the output are read from them.
A deadline is a moment of the running loop's clock (`loop.time()`), so that retries share one.
"""

import asyncio
import email.utils
import io
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import orjson

from vanilla_saas import tracing
from vanilla_saas.providers.estimate import InvalidRequest, choices
from vanilla_saas.providers.sse import (
    ProviderErrorEvent,
    StreamMeter,
    Usage,
    estimate_completion_tokens,
    message_of,
    output_bytes,
    usage_from,
)

__all__ = [
    "Completion",
    "Upstream",
    "UpstreamClient",
    "UpstreamError",
    "UpstreamStream",
    "Usage",
    "estimate_completion_tokens",
    "retry_after_seconds",
    "with_output_limit",
]

Kind = Literal["timeout", "connection", "rate_limited", "invalid_request", "authentication", "server", "malformed"]

CONNECT_SECONDS = 10.0
MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 128 * 1024 * 1024
MAX_DETAIL = 500
LARGE_ANSWER_BYTES = 2**20
"""Above it embeddings are not read whole: parsing 84 MB of numbers holds up the loop for half a second."""
WITHOUT_EMBEDDINGS = frozenset(("anthropic",))
_HEADERS_OF_INTEREST = ("content-type", "retry-after", "x-request-id", "openai-processing-ms")
_STATUS_TO_CLIENT: dict[Kind, int] = {
    "timeout": 504,
    "connection": 502,
    "rate_limited": 429,
    "authentication": 502,
    "server": 502,
    "malformed": 502,
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where one call goes."""

    provider: str
    base_url: str
    """With the version path and without a slash at its end: `https://api.openai.com/v1`."""
    api_key: str | None = field(repr=False)
    model: str
    """The name under which the provider knows the model."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    usage: Usage | None
    """None when the provider reported none."""
    completion_tokens_estimate: int
    """From the bytes of the output; for the answers without usage."""


class UpstreamError(Exception):
    """A call that brought no answer. Never holds the API key.

    `status` is the provider's, None when it sent none; `client_status` the one to answer with; `charged`
    says that the provider may bill the call: it had the whole request and reported no error for it.
    """

    def __init__(
        self,
        kind: Kind,
        status: int | None,
        detail: str,
        retry_after: float | None = None,
        charged: bool = False,
        *,
        body: bytes | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind: Kind = kind
        self.status = status
        self.detail = detail
        self.retry_after = retry_after
        """Seconds, when the provider said how long."""
        self.charged = charged
        self.provider_body = body
        """The provider's own error object, kept for invalid_request only."""
        self.provider_code = code

    @property
    def client_status(self) -> int:
        if self.kind == "invalid_request":
            return self.status or 400
        return _STATUS_TO_CLIENT[self.kind]

    @property
    def retryable(self) -> bool:
        """The same request may succeed elsewhere or later, and nothing was billed for this try."""
        return self.kind in ("timeout", "connection", "rate_limited", "server") and not self.charged

    def client_body(self) -> bytes:
        """The error object for the client: the provider's for its own mistakes, else one of ours."""
        if self.kind == "invalid_request" and self.provider_body is not None:
            return self.provider_body
        types = {"invalid_request": "invalid_request_error", "rate_limited": "rate_limit_error"}
        error = {
            "message": f"The model provider could not answer: {self.detail}",
            "type": types.get(self.kind, "server_error"),
            "param": None,
            "code": f"provider_{self.kind}",
        }
        return orjson.dumps({"error": error})


def with_output_limit(provider: str, model: str, body: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The body with exactly one output limit, such that all choices together stay within `limit` tokens.

    OpenAI takes `max_completion_tokens` (its reasoning models refuse the older name); the compatible
    servers of others are only sure to know `max_tokens`. Providers apply the limit to each of `n` choices,
    so each gets its share, rounded down. Raises InvalidRequest when a share would be less than one token.
    """
    share = limit // choices(body)
    if share < 1:
        raise InvalidRequest(
            "invalid_request",
            f"An output of {limit} tokens cannot be shared by n={choices(body)} answers.",
            "n",
        )
    limited = {key: body[key] for key in body if key not in ("max_tokens", "max_completion_tokens")}
    limited[_limit_parameter(provider, model)] = share
    return limited


def _limit_parameter(provider: str, model: str) -> str:
    if provider != "openai":
        return "max_tokens"
    older = model.removeprefix("ft:").startswith(("gpt-3.5", "gpt-4-", "davinci", "babbage"))
    return "max_tokens" if older or model == "gpt-4" else "max_completion_tokens"


class UpstreamStream:
    """An answer while it arrives; iterate it once for chunks of whole events."""

    def __init__(self, response: aiohttp.ClientResponse, upstream: Upstream, meter: StreamMeter) -> None:
        self.status = response.status
        self.headers = _interesting(response)
        self._response = response
        self._upstream = upstream
        self._meter = meter

    @property
    def usage(self) -> Usage | None:
        """As reported; None when the provider sent none. Before the end of the stream a floor at most."""
        return self._meter.usage

    @property
    def finished(self) -> bool:
        """[DONE] was seen."""
        return self._meter.finished

    @property
    def delivered_completion_tokens_estimate(self) -> int:
        """Completion tokens that have arrived, whether or not they were read by the client yet."""
        estimate = estimate_completion_tokens(self._upstream.provider, self._meter.sizes)
        return max(estimate, self.usage.completion_tokens) if self.usage else estimate

    def cut(self) -> None:
        """Closes the provider's connection: whoever iterates sees a failure, and the provider stops generating."""
        self._response.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks to forward. What arrived before a failure is yielded first, then UpstreamError raised."""
        content = self._response.content
        while True:
            failure: UpstreamError | None = None
            data = b""
            try:
                data = await content.readany()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = _failed(error, sent=True)
            if failure is not None:
                if self.finished:
                    return  # the answer is whole, only the connection did not end well
                raise failure
            chunk, problem = self._meter.feed(data) if data else self._meter.close()
            if chunk:
                yield chunk
            if problem is not None:
                raise self._stream_error(problem)
            if not data:
                return

    def _stream_error(self, problem: Exception) -> UpstreamError:
        detail = _safe(str(problem), self._upstream)
        if isinstance(problem, ProviderErrorEvent):
            return UpstreamError("server", self.status, f"it reported an error: {detail}", charged=True)
        return UpstreamError("malformed", self.status, f"its stream is broken: {detail}", charged=True)


class UpstreamClient:
    """The HTTP client of a process: one connection pool for all providers. An async context manager."""

    def __init__(self, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._connect_seconds = connect_seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # no cookies between tenants, no limit here: the gateway bounds the calls in flight
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent",),
            headers={"User-Agent": "vanilla-saas", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(
        self, upstream: Upstream, body: Mapping[str, Any], *, deadline: float, path: str = "chat/completions"
    ) -> Completion:
        """One whole answer of `path`; UpstreamError when there is none."""
        sent = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
        response = await self._post(upstream, {**sent, "model": upstream.model}, deadline, path)
        failure: UpstreamError | None = None
        raw = b""
        try:
            raw = await _read(response, MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = _failed(error, sent=True)
        finally:
            response.release()
        if failure is not None:
            raise failure
        if len(raw) > MAX_ANSWER_BYTES:
            raise UpstreamError(
                "malformed", response.status, f"its answer exceeds {MAX_ANSWER_BYTES} bytes", charged=True
            )
        return _completion(response, raw, upstream)

    async def embed(self, upstream: Upstream, body: Mapping[str, Any], *, deadline: float) -> Completion:
        """The embeddings of `input`, in the form of OpenAI's `/embeddings`.

        Raises InvalidRequest for a kind of provider that has none, UpstreamError when there is no answer.
        """
        if upstream.provider in WITHOUT_EMBEDDINGS:
            raise InvalidRequest(
                "unsupported_parameter",
                f"A provider of the kind {upstream.provider} has no embeddings; name a model of another one.",
                "model",
            )
        return await self.complete(upstream, body, deadline=deadline, path="embeddings")

    @asynccontextmanager
    async def stream(
        self, upstream: Upstream, body: Mapping[str, Any], *, deadline: float
    ) -> AsyncIterator[UpstreamStream]:
        """An answer as it arrives. Leaving the context before its end closes the provider's connection."""
        asked = body.get("stream_options")
        options = {**asked} if isinstance(asked, dict) else {}
        wants_usage = options.get("include_usage") is True
        options["include_usage"] = True
        sent = {**body, "model": upstream.model, "stream": True, "stream_options": options}
        response = await self._post(upstream, sent, deadline, "chat/completions")
        stream = UpstreamStream(response, upstream, StreamMeter(client_wants_usage=wants_usage))
        try:
            if response.content_type == "application/json":
                raise UpstreamError("malformed", response.status, "it answered a stream with one object", charged=True)
            yield stream
        finally:
            # a finished answer returns its connection to the pool, an unfinished one is cut
            response.close() if not stream.finished else response.release()

    async def _post(
        self, upstream: Upstream, body: dict[str, Any], deadline: float, path: str
    ) -> aiohttp.ClientResponse:
        """The response once its status says that the answer follows."""
        if self._session is None:
            raise RuntimeError("UpstreamClient is used outside its context")
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise UpstreamError("timeout", None, "the deadline had passed before the call")
        headers = {"Content-Type": "application/json"} | tracing.outgoing()
        if upstream.api_key is not None:
            headers["Authorization"] = f"Bearer {upstream.api_key}"
        failure: UpstreamError | None = None
        try:
            response = await self._session.post(
                f"{upstream.base_url.rstrip('/')}/{path}",
                data=_payload(body),
                headers=headers,
                allow_redirects=False,
                # connecting ends before the deadline does, so that a timeout tells whether the call was sent
                timeout=aiohttp.ClientTimeout(
                    total=remaining, sock_connect=min(self._connect_seconds, remaining * 0.9)
                ),
            )
            if response.status == 200:
                return response
            failure = _refused(response, await _read_refusal(response), upstream)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = _failed(error, sent=False)
        # raised out here: an aiohttp error knows the request's headers and must not become its context
        raise failure


def _completion(response: aiohttp.ClientResponse, raw: bytes, upstream: Upstream) -> Completion:
    if len(raw) > LARGE_ANSWER_BYTES and (usage := _usage_at_end(raw)) is not None:
        return Completion(response.status, _interesting(response), raw, usage, 0)
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise UpstreamError("malformed", response.status, "its answer is not a JSON object", charged=True)
    found = answer.get("choices")
    if answer.get("error") and not found:
        detail = _safe(message_of(answer["error"]), upstream)
        raise UpstreamError("server", response.status, f"it reported an error: {detail}")
    sizes = {
        index: output_bytes(choice.get("message"))
        for index, choice in enumerate(found if isinstance(found, list) else ())
        if isinstance(choice, dict)
    }
    return Completion(
        response.status,
        _interesting(response),
        raw,
        usage_from(answer.get("usage")),
        estimate_completion_tokens(upstream.provider, sizes),
    )


def _usage_at_end(raw: bytes) -> Usage | None:
    """The usage of embeddings that report it after their vectors, as providers do; None for every other answer."""
    start = raw.rfind(b'"usage"')
    if not raw.startswith(b"{") or raw.rfind(b'"embedding"', 0, max(start, 0)) < 0:
        return None
    try:
        return usage_from(orjson.loads(b"{" + raw[start:])["usage"])
    except orjson.JSONDecodeError:
        return None


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, or more than `limit` bytes of it: a provider cannot make us hold all it sends."""
    raw = bytearray()
    async for data in response.content.iter_any():
        raw += data
        if len(raw) > limit:
            break
    return bytes(raw)


async def _read_refusal(response: aiohttp.ClientResponse) -> bytes:
    """The start of an error's body, empty when it does not arrive: the status says enough."""
    try:
        return (await _read(response, MAX_ERROR_BYTES))[:MAX_ERROR_BYTES]
    except (aiohttp.ClientError, TimeoutError, OSError):
        return b""
    finally:
        response.release()


def _interesting(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: response.headers[name] for name in _HEADERS_OF_INTEREST if name in response.headers}


def _failed(error: Exception, *, sent: bool) -> UpstreamError:
    """A failure of the network; `sent` when the provider had begun to answer."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamError("timeout", None, "no connection within the time allowed")
    if isinstance(error, TimeoutError):
        return UpstreamError("timeout", None, "no answer before the deadline", charged=True)
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return UpstreamError("connection", None, "its address or key is not valid")
    if sent:
        return UpstreamError("connection", None, "it closed the connection in mid-answer", charged=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamError("connection", None, "no connection")
    # most often a kept connection that the provider closed while idle: nothing ran, so nothing is billed
    return UpstreamError("connection", None, "it closed the connection without an answer")


def _payload(body: Mapping[str, Any]) -> bytes | io.BytesIO:
    """As bytes, which one write sends; a large body in parts, so that it does not hold up the loop."""
    data = orjson.dumps(body)
    return data if len(data) < 2**20 else io.BytesIO(data)


def _refused(response: aiohttp.ClientResponse, raw: bytes, upstream: Upstream) -> UpstreamError:
    """The error for a status other than 200."""
    status = response.status
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        parsed = None
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]  # Gemini wraps its error object in a list
    error = parsed.get("error") if isinstance(parsed, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    code = code if isinstance(code, str) else None
    detail = _safe(message if isinstance(message, str) else f"status {status}", upstream)
    retry_after = retry_after_seconds(response.headers)
    if status in (401, 402, 403):
        # the provider's words about the operator's key or bill are not for the customer
        return UpstreamError("authentication", status, "it refused the operator's credentials", code=code)
    if status == 429:
        return UpstreamError("rate_limited", status, detail, retry_after, code=code)
    if status in (408, 504):
        return UpstreamError("timeout", status, detail, retry_after, code=code)
    if 400 <= status < 500 and status != 409:
        body = orjson.dumps(parsed) if isinstance(error, dict) and not _leaks(raw, upstream) else None
        return UpstreamError("invalid_request", status, detail, body=body or _error_object(detail), code=code)
    return UpstreamError("server", status, detail, retry_after, code=code)


def _error_object(detail: str) -> bytes:
    error = {"message": detail, "type": "invalid_request_error", "param": None, "code": None}
    return orjson.dumps({"error": error})


def _leaks(raw: bytes, upstream: Upstream) -> bool:
    return bool(upstream.api_key) and str(upstream.api_key).encode() in raw


def _safe(text: str, upstream: Upstream) -> str:
    if upstream.api_key:
        text = text.replace(upstream.api_key, "***")
    return text[:MAX_DETAIL]


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `retry-after`, a number or a date; at most a day."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif "retry-after" in headers:
            value = headers["retry-after"]
            try:
                seconds = float(value)
            except ValueError:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), 86_400.0)
