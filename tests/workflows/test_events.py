"""Executions as server-sent events: what changed, the end, many watchers over few connections, who may not look."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import orjson
import pytest
from fastapi import FastAPI

from tests.conftest import Person, serve, settings_for
from tests.processes import over
from tests.tokens.test_routes import get, post
from tests.workflows.hands import Room, workflow
from vanilla_saas.app import create_app
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.workflows import execution_events
from vanilla_saas.workflows.execution_events import Streams, changes

WAITS = workflow("a s=signal b", "a>s s>b", s={"signal": "go"}, b={"value": "steps.s.output"}, output="steps.b.output")


@pytest.fixture(scope="module")
async def app(desk: Room, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    home = tmp_path_factory.mktemp("home")
    return create_app(settings_for(desk.cluster, desk.name, home, run_worker=True, max_streams=60))


@pytest.fixture(scope="module")
async def http(app: FastAPI) -> AsyncIterator[aiohttp.ClientSession]:
    # a connection that was idle may be closed by the server just when it is used again
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with serve(app) as address, aiohttp.ClientSession(address, connector=connector) as session:
        yield session


async def started(desk: Room, http: aiohttp.ClientSession, person: Person | None = None) -> str:
    """An execution that waits for the signal `go`."""
    person = person or desk.owner
    shape = await desk.publish(WAITS, person)
    answer, _ = await post(http, person, f"/workflows/{shape}/executions", {}, status=201)
    async with asyncio.timeout(20):
        while (await get(http, person, f"/workflow-executions/{answer['execution_id']}/steps/s"))[
            "status"
        ] != "waiting":
            await asyncio.sleep(0.02)
    return str(answer["execution_id"])


@asynccontextmanager
async def watching(
    http: aiohttp.ClientSession, person: Person, execution: str
) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    async with following(http, person, f"/api/v1/workflow-executions/{execution}/events") as told:
        yield told


@asynccontextmanager
async def following(
    http: aiohttp.ClientSession, person: Person, path: str
) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """Name and data of each event; comments as ("", text)."""

    async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
        name = ""
        async for line in answer.content:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, orjson.loads(value)
            elif line.startswith(b":"):
                yield "", line.decode().strip()

    async with http.get(path, headers=person.headers, timeout=aiohttp.ClientTimeout(total=60)) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        yield events(answer)


async def test_the_whole_comes_first_then_what_changed_then_the_end_with_the_output(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    execution = await started(desk, http)
    async with watching(http, desk.owner, execution) as events:
        name, first = await anext(events)
        assert (name, first["id"], first["input"]) == ("progress", execution, {})
        assert {step["node"]: step["status"] for step in first["steps"]}["s"] == "waiting"
        # nothing happened: nothing is told
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.7)
    async with watching(http, desk.owner, execution) as events:
        await anext(events)
        await post(http, desk.owner, f"/workflow-executions/{execution}/pause", None)
        name, paused = await anext(events)
        assert (name, paused) == ("progress", {"status": "paused"})
        await post(http, desk.owner, f"/workflow-executions/{execution}/resume", None)
        await post(http, desk.owner, f"/workflow-executions/{execution}/signals", {"name": "go", "payload": [1]})
        told = [event async for event in events]
        assert all("a" not in [step["node"] for step in data.get("steps", ())] for _, data in told[:-1])
        name, last = told[-1]
        assert (name, last["status"], last["output"]) == ("end", "succeeded", [1])
    async with watching(http, desk.owner, execution) as events:
        assert [name async for name, _ in events] == ["progress", "end"]


async def test_more_watchers_than_connections_all_hear_the_end_and_hold_none_meanwhile(
    desk: Room, http: aiohttp.ClientSession, app: FastAPI
) -> None:
    execution = await started(desk, http)

    async def watch() -> list[str]:
        async with watching(http, desk.owner, execution) as events:
            return [name async for name, _ in events]

    watchers = [asyncio.create_task(watch()) for _ in range(50)]
    async with asyncio.timeout(20):
        while app.state.streams.open < 50:
            await asyncio.sleep(0.02)
    # the pool has eight, and requests go on beside
    assert (await get(http, desk.owner, f"/workflow-executions/{execution}"))["status"] == "running"
    # the eleventh above the limit of sixty is refused before it begins
    more = [asyncio.create_task(watch()) for _ in range(10)]
    async with asyncio.timeout(20):
        while app.state.streams.open < 60:
            await asyncio.sleep(0.02)
    refused = await get(http, desk.owner, f"/workflow-executions/{execution}/events", status=429)
    assert (refused["code"], refused["limit"]) == ("saturated", 60)
    await post(http, desk.owner, f"/workflow-executions/{execution}/signals", {"name": "go"})
    heard = await asyncio.gather(*watchers, *more)
    assert all(names[0] == "progress" and names[-1] == "end" for names in heard)
    assert app.state.streams.open == 0


async def test_a_stream_ends_when_its_client_goes(desk: Room, http: aiohttp.ClientSession, app: FastAPI) -> None:
    execution = await started(desk, http)
    async with watching(http, desk.owner, execution) as events:
        await anext(events)
        assert app.state.streams.open == 1
    async with asyncio.timeout(5):
        while app.state.streams.open:
            await asyncio.sleep(0.02)


async def test_a_quiet_stream_shows_that_it_lives_and_ends_when_the_key_is_revoked(
    desk: Room, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_events, "KEEP_ALIVE_S", 0.3)
    person = await desk.people.user()
    execution = await started(desk, http, person)
    async with watching(http, person, execution) as events:
        await anext(events)
        assert await anext(events) == ("", ": still here")
        await desk.operator.fetchval("select revoke_api_key($1)", person.key_id)
        told = [event async for event in events]
        name, problem = told[-1]
        assert (name, problem["code"]) == ("error", "authentication_failed")


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends at once"])
async def test_a_revoked_key_is_told_neither_more_nor_the_end(
    desk: Room, http: aiohttp.ClientSession, ends: bool
) -> None:
    person = await desk.people.user()
    execution = await started(desk, http, person)
    async with watching(http, person, execution) as events:
        await anext(events)
        await desk.operator.fetchval("select revoke_api_key($1)", person.key_id)
        if ends:
            await desk.operator.execute("select cancel_execution($1)", UUID(execution))
        async with asyncio.timeout(1):
            told = [event async for event in events]
    assert [(name, problem["code"]) for name, problem in told] == [("error", "authentication_failed")]


async def test_streams_end_when_the_process_is_told_to_stop(
    desk: Room, http: aiohttp.ClientSession, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = await started(desk, http)
    async with watching(http, desk.owner, execution) as events:
        await anext(events)
        monkeypatch.setattr(app.state.streams, "stopping", True)
        assert [event async for event in events] == []


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_server_that_is_told_to_stop_does_not_wait_for_its_watchers(
    desk: Room, http: aiohttp.ClientSession, tmp_path: Path, processes: str
) -> None:
    execution = await started(desk, http)
    installation = over(desk.cluster, desk.name, tmp_path, VANILLA_SAAS_RUN_WORKER="false")
    async with (
        installation.serving("serve", "--processes", processes) as server,
        aiohttp.ClientSession(server.url) as theirs,
        watching(theirs, desk.owner, execution) as events,
    ):
        await anext(events)
        began = time.monotonic()
        assert await server.stop() == 0
        assert time.monotonic() - began < 20, "it waited until the server gives up on answers, after 30 s"
        assert [event async for event in events] == []


def test_changes_are_the_fields_and_steps_that_differ() -> None:
    step = {"node": "a", "status": "ready"}
    before = {
        "status": "running",
        "input": {},
        "charged_tokens": 0,
        "steps": [step, {"node": "b", "status": "pending"}],
    }
    after = {"status": "running", "charged_tokens": 5, "steps": [step | {"status": "succeeded"}, before["steps"][1]]}
    assert changes(before, after) == {"charged_tokens": 5, "steps": [{"node": "a", "status": "succeeded"}]}
    assert changes(before, {name: before[name] for name in ("status", "charged_tokens", "steps")}) == {}


def test_a_place_is_given_back_whatever_happens() -> None:
    streams = Streams(1)
    with pytest.raises(ZeroDivisionError), streams.one():
        _ = 1 / 0
    assert streams.open == 0
    with streams.one(), pytest.raises(VanillaError, match="keeps 1 streams"), streams.one():
        pass
