"""Requests that definitions make: to public addresses alone, bounded in size and time, nothing kept between them."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from vanilla_saas.outgoing import connector, no_cookies
from vanilla_saas.workflows.execution.failures import Failure

CONNECT_SECONDS = 10.0
MAX_URL = 8192
_OURS = frozenset(("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding",
                   "upgrade"))  # fmt: skip
"""Headers that say where a request ends or which server it is for: HTTP's, not the definition's."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    status: int
    headers: Mapping[str, str]
    """Names in small letters; values of the same name joined by `, `."""
    body: bytes
    """As it came over the wire: compressed when the request asked for that."""
    content_type: str
    charset: str


class HttpClient:
    """An async context manager. `private` also allows addresses of our own network; for development only."""

    def __init__(self, *, private: bool = False, seconds: float = 300.0, most_bytes: int = 1 << 20) -> None:
        self._private = private
        self._seconds = seconds
        self._most_bytes = most_bytes
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=connector(private=self._private),
            cookie_jar=no_cookies(),
            timeout=aiohttp.ClientTimeout(total=self._seconds, sock_connect=CONNECT_SECONDS),
            headers={"User-Agent": "vanilla-saas-workflows/1", "Accept-Encoding": "identity"},
            # a small answer cannot become a large one
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def fetch(self, method: str, url: str, headers: Mapping[str, str], body: str | None) -> HttpAnswer:
        """One answer, whatever its status. Redirects are not followed: what is sent is for the address that was named.

        Raises Failure: http_refused, http_too_large, timeout, provider_error (no connection, or a broken answer).
        """
        if self._session is None:
            raise RuntimeError("HttpClient is used outside its context")
        target = _target(url)
        _refuse_headers(headers)
        try:
            async with self._session.request(
                method, target, headers=headers, data=body, allow_redirects=False
            ) as answer:
                return await self._read(answer)
        except TimeoutError:
            raise Failure("timeout", f"{target.host} did not answer in time.") from None
        except aiohttp.ClientConnectorError as error:
            raise _not_connected(target, error) from None
        except aiohttp.InvalidURL:
            raise Failure("http_refused", "That is not a URL.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Failure("provider_error", f"{target.host} gave no whole answer: {type(error).__name__}.") from None
        except ValueError as error:  # a header that would be two
            raise Failure("http_refused", f"The request cannot be sent: {error}.") from None

    async def _read(self, answer: aiohttp.ClientResponse) -> HttpAnswer:
        body = bytearray()
        async for part in answer.content.iter_any():
            body += part
            if len(body) > self._most_bytes:
                answer.close()
                raise Failure("http_too_large", f"The answer has more than {self._most_bytes:,} bytes.")
        headers: dict[str, str] = {}
        for name, value in answer.headers.items():
            name, value = name.lower(), _text(value)
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        encoded = headers.get("content-encoding", "identity").lower() != "identity"
        return HttpAnswer(
            answer.status,
            headers,
            bytes(body),
            "application/octet-stream" if encoded else answer.content_type,
            answer.charset or "utf-8",
        )


def _target(url: str) -> URL:
    url = url.strip()
    if len(url) > MAX_URL:
        raise Failure("http_refused", f"The URL has more than {MAX_URL:,} characters.")
    if not url.isprintable() or " " in url:
        raise Failure("http_refused", "That is not a URL.")
    try:
        target = URL(url)
        host, _ = target.host, target.port
    except ValueError:
        raise Failure("http_refused", "That is not a URL.") from None
    if target.scheme not in ("http", "https") or not host:
        raise Failure("http_refused", "A URL begins with https:// or http:// and names a host.")
    if target.user is not None or target.password is not None:
        raise Failure("http_refused", "A URL holds no user and no password; send the header Authorization.")
    return target.with_fragment(None)


def _refuse_headers(headers: Mapping[str, str]) -> None:
    if ours := next((name for name in headers if name.lower() in _OURS), None):
        raise Failure("http_refused", f"The header {ours} cannot be set; HTTP sets it.")
    if bad := next((name for name, value in headers.items() if any(c in value for c in "\r\n\0")), None):
        raise Failure("http_refused", f"The header {bad} has more than one line.")


def _not_connected(target: URL, error: aiohttp.ClientConnectorError) -> Failure:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Failure("provider_error", f"{target.host} has a certificate that is not valid.")
    if error.os_error.errno == errno.EACCES:
        return Failure("http_refused", f"{target.host} is no public address.", {"host": target.host})
    return Failure(
        "provider_error", f"There is no connection to {target.host}: {error.os_error.strerror or 'refused'}."
    )


def _text(header: str) -> str:
    # aiohttp keeps bytes that are no UTF-8 as surrogates, which no JSON can hold
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
