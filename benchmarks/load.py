"""A closed-loop HTTP client in a process of its own: a connection sends its next request when the answer is whole.

Plain asyncio protocols with keep-alive and without pipelining; requests are bytes made beforehand and answers are
only searched for their end, so that the client takes a small part of what it measures. The parent writes one JSON
line a slice to standard input and reads one line of results (`python -m benchmarks.load`).
"""

import asyncio
import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import uvloop

DRAIN_SECONDS = 60.0
"""How long the last answers of a slice are waited for."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One measurement. A request is POST `path` with `body`, for each element of `headers` in turn."""

    port: int
    path: str
    body: str
    headers: list[str]
    """Header lines of each request, without the final line feed."""
    connections: int
    seconds: float
    warmup: float = 0.2


@dataclass(frozen=True, slots=True)
class Measured:
    """What a slice came to. `answered` counts all whole answers, also those before and after the measured time."""

    rps: float
    p50_ms: float
    p99_ms: float
    answered: int
    errors: int
    first_error: str
    client_cpu: float
    """Part of one core that the client used."""


class Client:
    """The load process, seen from its parent. A context manager."""

    def __enter__(self) -> "Client":
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(30)

    def run(self, wanted: Slice) -> Measured:
        """Blocks until the slice is over."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(asdict(wanted)) + "\n")
        self._child.stdin.flush()
        return Measured(**json.loads(self._child.stdout.readline()))


class _Run:
    """State that the connections of a slice share."""

    def __init__(self, wanted: Slice, requests: Iterator[bytes]) -> None:
        self.requests = requests
        self.wanted = wanted
        self.streamed = '"stream":true' in wanted.body
        began = time.perf_counter()
        self.from_ = began + wanted.warmup
        self.until = self.from_ + wanted.seconds
        self.latencies: list[float] = []
        self.answered = self.errors = 0
        self.first_error = ""
        self.open = wanted.connections
        self.done = asyncio.Event()

    def failed(self, why: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or why[:300]

    def leave(self) -> None:
        self.open -= 1
        if not self.open:
            self.done.set()


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self.run = run
        self.buffer = b""
        self.size: int | None = None
        """Bytes of the answer with its head; None until the head is read, 0 when it is chunked."""
        self.leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self.send()

    def send(self) -> None:
        self.buffer, self.size = b"", None
        self.began = time.perf_counter()
        self.transport.write(next(self.run.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if self.size is None:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.size = _body_size(self.buffer[:end].lower(), end + 4)
        if self.buffer.endswith(b"0\r\n\r\n") if self.size == 0 else len(self.buffer) >= self.size:
            self.whole()

    def whole(self) -> None:
        now = time.perf_counter()
        run = self.run
        ok = self.buffer[9:12] == b"200" and (not run.streamed or b"data: [DONE]" in self.buffer)
        if ok:
            run.answered += 1
            if run.from_ <= now < run.until:
                run.latencies.append(now - self.began)
        else:
            run.failed(self.buffer.decode(errors="replace"))
        if now < run.until and run.errors < 100:
            self.send()
        else:
            self.leaving = True
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.leaving:
            self.run.failed(f"the connection was closed: {exc}")
        self.run.leave()


def _body_size(head: bytes, start: int) -> int:
    """Bytes of the whole answer, or 0 when it is chunked."""
    _, found, rest = head.partition(b"content-length:")
    return start + int(rest.split(b"\r\n", 1)[0]) if found else 0


async def _measure(wanted: Slice) -> Measured:
    head = f"POST {wanted.path} HTTP/1.1\r\nhost: 127.0.0.1:{wanted.port}\r\ncontent-type: application/json\r\n"
    tail = f"content-length: {len(wanted.body.encode())}\r\n\r\n{wanted.body}"
    requests = [f"{head}{line}\r\n{tail}".encode() for line in wanted.headers]
    run = _Run(wanted, itertools.cycle(requests))
    loop = asyncio.get_running_loop()
    used = time.process_time()
    for _ in range(wanted.connections):
        await loop.create_connection(lambda: _Connection(run), "127.0.0.1", wanted.port)
    try:
        await asyncio.wait_for(run.done.wait(), wanted.warmup + wanted.seconds + DRAIN_SECONDS)
    except TimeoutError:
        run.failed(f"{run.open} answers did not come within {DRAIN_SECONDS:.0f} s")
    elapsed = time.perf_counter() - run.from_ + wanted.warmup
    ordered = sorted(run.latencies) or [0.0]
    return Measured(
        rps=len(run.latencies) / wanted.seconds,
        p50_ms=ordered[len(ordered) // 2] * 1000,
        p99_ms=ordered[len(ordered) * 99 // 100] * 1000,
        answered=run.answered,
        errors=run.errors,
        first_error=run.first_error,
        client_cpu=(time.process_time() - used) / elapsed,
    )


def main() -> None:
    """One slice a line until standard input ends."""
    gc.disable()
    for line in sys.stdin:
        wanted: dict[str, Any] = json.loads(line)
        print(json.dumps(asdict(uvloop.run(_measure(Slice(**wanted))))), flush=True)


if __name__ == "__main__":
    main()
