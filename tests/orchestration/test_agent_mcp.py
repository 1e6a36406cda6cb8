"""Agents with tools of MCP servers that lie, flood and hang: each call fails with its code, limits hold, others go on."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import Cluster
from tests.orchestration.recorder import Recorder, recorder
from tests.orchestration.studio import Studio, agent, calls, says, studio
from tests.orchestration.test_runs import settled
from tests.workflows.execution.mcp_support import GOOD, bad, left

SERVERS = {"bad": bad(), "good": GOOD}


@pytest.fixture(scope="module")
async def hostile(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Studio, Recorder]]:
    """A studio whose worker has a hostile server and a good one, and the model calls that are made."""
    home = tmp_path_factory.mktemp("home")
    file = home / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {n: {"command": s.command, "args": s.args} for n, s in SERVERS.items()}}))
    async with recorder() as sandbox, studio(cluster, home, sandbox_url=sandbox.url, mcp_servers=file) as desk:
        yield desk, sandbox
    assert not left()


async def beside(desk: Studio) -> uuid.UUID:
    """The run of another, who uses the hostile server too."""
    person = await desk.shop.person(balance=100_000)
    slug = await desk.save(agent(calls(("bad_later", {})), says("Heard."), tools=["mcp/bad/later"]))
    return await desk.start(person, slug)


async def require_heard(desk: Studio, run_id: uuid.UUID) -> None:
    found = await desk.ended(run_id)
    assert (found["stop_reason"], found["output"]["text"]) == ("done", "Heard.")
    await settled(desk, found)


@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("bad/garbled", {}, "provider_error"),
        ("bad/half", {}, "provider_error"),
        ("bad/output_unlike", {}, "schema_mismatch"),
        ("bad/output_lacks", {}, "schema_mismatch"),
        ("bad/much", {}, "output_too_large"),
        ("good/find", {"email": "nobody"}, "tool_arguments"),
    ],
)
async def test_what_a_server_does_wrong_is_told_to_the_model_and_to_nobody_else(
    hostile: tuple[Studio, Recorder], tool: str, arguments: dict[str, Any], code: str
) -> None:
    desk, _ = hostile
    person = await desk.shop.person(balance=100_000)
    turns = calls((tool.replace("/", "_"), arguments)), says("It does not work.")
    slug = await desk.save(agent(*turns, tools=[f"mcp/{tool}"]))
    other, run = await beside(desk), await desk.start(person, slug)
    found = await desk.ended(run, 60)
    (made,) = [step for step in await desk.steps(run) if step["kind"] == "tool"]
    assert (made["status"], made["result"]["code"]) == ("failed", code)
    assert (found["stop_reason"], found["output"]["text"], found["tool_calls"]) == ("done", "It does not work.", 1)
    await settled(desk, found)
    await require_heard(desk, other)


async def test_calls_of_a_slow_server_count_and_the_limit_ends_the_run_before_the_next_turn(
    hostile: tuple[Studio, Recorder],
) -> None:
    desk, sandbox = hostile
    person = await desk.shop.person(balance=100_000)
    turns = [calls(("bad_later", {"n": n})) for n in range(9)]
    slug = await desk.save(agent(*turns, tools=["mcp/bad/later"], limits={"tool_calls": 3}))
    sandbox.asked.clear()
    run = await desk.ended(await desk.start(person, slug), 60)
    assert (run["state"], run["stop_reason"], run["tool_calls"]) == ("failed", "max_tool_calls", 3)
    steps = [step["status"] for step in await desk.steps(run["id"]) if step["kind"] == "tool"]
    assert steps == ["done", "done", "done", "refused"]
    assert sandbox.asked.total() == 4
    await settled(desk, run)


async def test_a_server_that_hangs_holds_nobody_else_up_and_ends_with_the_runs_time(
    hostile: tuple[Studio, Recorder],
) -> None:
    desk, sandbox = hostile
    person = await desk.shop.person(balance=100_000)
    turns = calls(("bad_silent", {})), says("It answered.")
    slug = await desk.save(agent(*turns, tools=["mcp/bad/silent"], limits={"seconds": 3}))
    sandbox.asked.clear()
    run = await desk.start(person, slug)
    await require_heard(desk, await beside(desk))
    assert (await desk.run(run))["finished_at"] is None
    found = await desk.ended(run, 60)
    assert (found["state"], found["stop_reason"]) == ("failed", "deadline"), found
    assert sandbox.asked.total() == 1 + 2
    await settled(desk, found)
