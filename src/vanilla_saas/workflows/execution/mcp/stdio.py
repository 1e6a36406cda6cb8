"""A server as a process: a message is a line, and none is held whole that is too long.

The library's own transport keeps a line however long it is, and ends the session with it.
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import PARSE_ERROR, jsonrpc_message_adapter

from vanilla_saas.workflows.execution.mcp.config import StdioServer
from vanilla_saas.workflows.execution.mcp.wire import MESSAGE_BYTES, TOO_LARGE, Streams, error

PATIENCE_S = 2.0
"""How long a process has to end when its input does, and again when it is told to, before it is killed."""
ENDS = 1 << 12
"""Bytes that are kept of both ends of a line that is too long: its id stands in one of them."""
CHUNK = 1 << 16
WATCH_S = 0.5
"""How often it is looked whether the process is there: a child of it may keep the pipe open."""
_ID_FIRST = re.compile(rb'\s*\{(?:\s*"jsonrpc"\s*:\s*"2\.0"\s*,)?\s*"id"\s*:\s*(\d{1,15})\s*,')
_ID_LAST = re.compile(rb',\s*"id"\s*:\s*(\d{1,15})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')


@asynccontextmanager
async def stdio(server: StdioServer) -> AsyncIterator[Streams]:
    """Messages of the server and to it. Raises OSError when the process cannot be started."""
    process = await asyncio.create_subprocess_exec(
        server.command,
        *server.args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=get_default_environment() | server.env,
        cwd=server.cwd,
        start_new_session=True,
    )
    said, read = anyio.create_memory_object_stream[Any](0)
    write, told = anyio.create_memory_object_stream[SessionMessage](0)

    async def listen() -> None:
        async with said:
            async for line, whole in lines(process):
                message = _message(line, whole)
                if message is None:
                    if whole:
                        continue
                    return
                try:
                    await said.send(SessionMessage(message))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return

    async def speak() -> None:
        assert process.stdin is not None
        async with told:
            async for one in told:
                process.stdin.write(one.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                try:
                    await process.stdin.drain()
                except OSError:  # it reads no more, so that no answer would come
                    await said.aclose()
                    return

    async def watch() -> None:
        while process.returncode is None:
            await anyio.sleep(WATCH_S)
        await anyio.sleep(WATCH_S)  # what it has said is read
        await said.aclose()

    try:
        async with anyio.create_task_group() as group:
            for task in (listen, speak, watch):
                group.start_soon(task)
            try:
                yield read, write
            finally:
                with anyio.CancelScope(shield=True):
                    await _end(process)
                group.cancel_scope.cancel()
    finally:
        for stream in (said, read, write, told):
            stream.close()


async def lines(process: asyncio.subprocess.Process) -> AsyncIterator[tuple[bytes, bool]]:
    """Each line and whether it is whole: of one that is too long the ends alone."""
    assert process.stdout is not None
    line, whole = bytearray(), True
    while chunk := await process.stdout.read(CHUNK):
        for n, part in enumerate(chunk.split(b"\n")):
            if n:
                yield bytes(line), whole
                line, whole = bytearray(), True
            line += part
            if len(line) > (MESSAGE_BYTES if whole else 4 * ENDS):
                del line[ENDS:-ENDS]
                whole = False


def _message(line: bytes, whole: bool) -> Any:
    """An error in place of what is too long or not understood; None when nobody knows whom it answers.

    Some servers print what is no message at all.
    """
    if whole:
        with suppress(ValueError):
            return jsonrpc_message_adapter.validate_json(line, by_name=False)
    request = _request_of(line)
    if request is None:
        return None
    if whole:
        return error(PARSE_ERROR, "It is not JSON-RPC.", request)
    return error(TOO_LARGE, f"It has more than {MESSAGE_BYTES:,} bytes.", request)


def _request_of(line: bytes) -> int | None:
    """Which request a line answers, as its ends say."""
    found = _ID_FIRST.match(line) or _ID_LAST.search(line[-ENDS:])
    return int(found[1]) if found else None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its input ends, then it is told to, then it is killed, with all that it has started."""
    assert process.stdin is not None
    process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with anyio.move_on_after(PATIENCE_S):
            await process.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
    with anyio.move_on_after(PATIENCE_S):
        await process.wait()
    # its pipes stay open as long as somebody has their other ends, who may have left its group
    process._transport.close()  # type: ignore[attr-defined]
