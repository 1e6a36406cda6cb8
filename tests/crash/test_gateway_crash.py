"""Processes that are killed or stopped in the middle of calls: no token is lost, none is charged twice."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.conftest import Cluster, People, Person, migrated_database
from tests.processes import Installation, assert_books_are_clean, eventually, over
from vanilla_saas.database.pool import _prepare


@asynccontextmanager
async def database_of_its_own(cluster: Cluster, home: Path) -> AsyncIterator[tuple[Installation, People]]:
    """A migrated database whose clock may be moved, and an installation over it."""
    async with AsyncExitStack() as stack:
        name = await stack.enter_async_context(migrated_database(cluster, "crash"))
        operator = await asyncpg.connect(cluster.url(database=name))
        stack.push_async_callback(operator.close)
        await _prepare(operator)
        yield over(cluster, name, home), People(operator)


async def move_clock(operator: asyncpg.Connection, minutes: int) -> None:
    await operator.execute(
        "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe"
        f" as 'select pg_catalog.clock_timestamp() + interval ''{minutes} minutes'''"
    )


def request(script: dict[str, Any], **more: Any) -> dict[str, Any]:
    text = f"sandbox: {json.dumps(script)}"
    return {"model": "sandbox-small", "messages": [{"role": "user", "content": text}], **more}


PLAIN = request({"completion_tokens": 60, "latency_ms": 60_000}, max_tokens=60)
STREAM = request({"completion_tokens": 60, "chunk_latency_ms": 2000}, max_tokens=60, stream=True)


async def try_call(url: str, person: Person, body: dict[str, Any]) -> str:
    """How a call ended: `200` and its text, or the status and the error's code, or `cut`."""
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/chat/completions", json=body, headers=person.headers) as answer,
        ):
            text = await answer.text()
    except (aiohttp.ClientError, OSError):
        return "cut"
    return text if answer.status == 200 else f"{answer.status} {json.loads(text)['error']['code']}"


async def open_holds(people: People) -> int:
    return await people.operator.fetchval("select count(*) from user_token_holds where state = 'open'")


async def until_held(people: People, count: int) -> None:
    async def so_many() -> bool:
        return await open_holds(people) == count

    await eventually(so_many)


@pytest.mark.parametrize("returned_by", ["the tick of a server", "the next call that needs it"])
async def test_a_killed_server_leaves_holds_that_return_when_they_expire(
    returned_by: str, cluster: Cluster, tmp_path: Path
) -> None:
    async with database_of_its_own(cluster, tmp_path) as (installation, people):
        person = await people.user(balance=250)
        async with installation.serving("serve") as running:
            calls = [asyncio.create_task(try_call(running.url, person, body)) for body in (PLAIN, STREAM)]
            await until_held(people, 2)
            running.send(signal.SIGKILL)
            assert await running.wait() == -signal.SIGKILL
            assert await asyncio.gather(*calls) == ["cut", "cut"]
        assert (await people.wallet(person))["reserved_tokens"] > 120
        await assert_books_are_clean(people.operator)

        before_expiry = returned_by != "the tick of a server"
        if not before_expiry:
            await move_clock(people.operator, 12)
        async with installation.serving("serve") as running:
            if before_expiry:
                await move_clock(people.operator, 12)
                # more than what is left beside the holds
                answer = await try_call(running.url, person, request({"completion_tokens": 200}, max_tokens=200))
                assert json.loads(answer)["usage"]["completion_tokens"] == 200

            async def nothing_held() -> bool:
                return not await open_holds(people)

            await eventually(nothing_held)
        rows = await people.operator.fetch(
            "select e.status, e.error_code, e.charged_tokens, e.streamed, h.state from ai_executions e"
            " join user_token_holds h on h.execution_id = e.id where h.state = 'expired' order by e.streamed"
        )
        lost = ("abandoned", "hold_expired", 0)
        assert [tuple(row) for row in rows] == [(*lost, False, "expired"), (*lost, True, "expired")]
        charged = await people.operator.fetchval("select sum(charged_tokens)::bigint from ai_executions")
        wallet = await people.wallet(person)
        assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (250 - charged, 0)
        assert (charged > 0) == before_expiry
        await assert_books_are_clean(people.operator)


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_stopped_server_finishes_and_settles_the_calls_in_flight(
    processes: int, cluster: Cluster, tmp_path: Path
) -> None:
    slow = request({"completion_tokens": 20, "latency_ms": 1500}, max_tokens=20)
    slow_stream = request({"completion_tokens": 15, "chunk_latency_ms": 100}, max_tokens=15, stream=True)
    async with database_of_its_own(cluster, tmp_path) as (installation, people):
        person = await people.user(balance=10_000)
        async with installation.serving("serve", "--processes", str(processes)) as running:
            calls = [asyncio.create_task(try_call(running.url, person, body)) for body in (slow, slow_stream) * 4]
            await until_held(people, 8)
            assert await running.stop() == 0
            answers = await asyncio.gather(*calls)
        assert "Traceback" not in running.err
        assert [json.loads(text)["usage"]["completion_tokens"] for text in answers[::2]] == [20] * 4
        assert [text.count("data: [DONE]") for text in answers[1::2]] == [1] * 4
        rows = await people.operator.fetch("select status, charged_tokens from ai_executions")
        assert [row["status"] for row in rows] == ["succeeded"] * 8
        wallet = await people.wallet(person)
        assert wallet["available_tokens"] == 10_000 - sum(row["charged_tokens"] for row in rows)
        assert wallet["reserved_tokens"] == 0
        await assert_books_are_clean(people.operator)


async def test_processes_whose_parent_is_killed_finish_their_calls_and_leave_the_port(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with database_of_its_own(cluster, tmp_path) as (installation, people):
        person = await people.user(balance=10_000)
        body = request({"completion_tokens": 20, "latency_ms": 1500}, max_tokens=20)
        async with installation.serving("serve", "--processes", "2") as running:
            call = asyncio.create_task(try_call(running.url, person, body))
            await until_held(people, 1)
            running.send(signal.SIGKILL)
            assert json.loads(await call)["usage"]["completion_tokens"] == 20
            again = lambda: refused(running.url)  # noqa: E731
            await eventually(again, 60)
        assert (await people.wallet(person))["reserved_tokens"] == 0


async def refused(url: str) -> bool:
    """Whether nobody listens any more."""
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models"):
            return False
    except aiohttp.ClientConnectorError:
        return True
    except aiohttp.ClientError:
        return False


async def test_a_settlement_that_fails_for_any_reason_is_tried_again_and_lands_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with database_of_its_own(cluster, tmp_path) as (installation, people):
        person = await people.user(balance=10_000)
        async with installation.serving("serve") as running:
            settle = "vanilla.settle_call(uuid, uuid, text, bigint, bigint, bigint, bigint, boolean, text, int, int)"
            await people.operator.execute(f"alter function {settle} rename to settle_call_away")
            bodies = [request({"completion_tokens": 20}, max_tokens=20, stream=stream) for stream in (False, True)]
            plain, stream = await asyncio.gather(*(try_call(running.url, person, body) for body in bodies))
            assert json.loads(plain)["usage"]["completion_tokens"] == 20
            assert stream.endswith("data: [DONE]\n\n")
            assert await open_holds(people) == 2
            await people.operator.execute(
                f"alter function {settle.replace('_call', '_call_away')} rename to settle_call"
            )

            async def settled() -> bool:
                return not await open_holds(people)

            await eventually(settled)
        rows = await people.operator.fetch("select status, output_tokens from ai_executions")
        assert [tuple(row) for row in rows] == [("succeeded", 20)] * 2
        await assert_books_are_clean(people.operator)
