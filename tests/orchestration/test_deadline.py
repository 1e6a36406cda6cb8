"""The time of a run: what it waits for is stopped when that is over, and nothing is begun again."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import Cluster
from tests.orchestration.hands import DONE
from tests.orchestration.recorder import Recorder, recorder
from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says, studio
from tests.orchestration.test_runs import approval_of, ended_flow, settled
from tests.workflows.execution.mcp_support import bad

SECONDS = 2
LATER = timedelta(seconds=SECONDS + 6)
"""By when a run of so many seconds has ended, however busy the machine is; what hangs does so for longer."""
ATTEMPTS = "select attempts from workflow_steps where execution_id = $1 and item = -1 and node = 1"


@pytest.fixture(scope="module", params=BOTH_LOOPS)
async def hanging(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Studio, Recorder]]:
    """A studio with a hanging MCP server, and the model calls that are made."""
    home = tmp_path_factory.mktemp("home")
    file, server = home / "mcp.json", bad()
    file.write_text(json.dumps({"mcpServers": {"bad": {"command": server.command, "args": server.args}}}))
    async with recorder() as sandbox:
        more = {"sandbox_url": sandbox.url, "mcp_servers": file}
        async with studio(cluster, home, request.param, **more) as desk:
            yield desk, sandbox


async def over(desk: Studio, run_id: uuid.UUID, attempts: int = 1) -> dict[str, Any]:
    """A run whose time has ended it, in time and at this attempt."""
    found = await desk.ended(run_id)
    assert (found["state"], found["stop_reason"], found["error"]["code"]) == ("failed", "deadline", "deadline")
    assert found["finished_at"] - found["started_at"] < LATER
    assert await desk.shop.operator.fetchval(ATTEMPTS, found["execution_id"]) == attempts
    await settled(desk, found)
    return found


@pytest.mark.parametrize("tool", ["hang", "mcp/bad/silent"])
async def test_a_tool_that_hangs_is_stopped_and_not_called_again(hanging: tuple[Studio, Recorder], tool: str) -> None:
    desk, sandbox = hanging
    turns = calls((tool.removeprefix("mcp/").replace("/", "_"), {})), says("It answered.")
    slug = await desk.save(agent(*turns, tools=[tool], limits={"seconds": SECONDS}))
    sandbox.asked.clear()
    run = await over(desk, await desk.start(await desk.shop.person(), slug))
    steps = await desk.steps(run["id"])
    assert [(step["kind"], step["status"]) for step in steps] == [("model", "done"), ("tool", "refused")]
    assert sandbox.asked.total() == 1
    assert await desk.charged(run["id"]) == steps[0]["charged_tokens"] > 0
    if tool == "hang":
        assert DONE[f"{run['id']}:2"] == ["called", "stopped"]


async def test_the_time_of_a_run_is_over_before_that_of_its_node_which_is_as_long(
    hanging: tuple[Studio, Recorder],
) -> None:
    desk, _ = hanging
    slug = await desk.save(agent(calls(("hang", {})), says("Late."), tools=["hang"], limits={"seconds": SECONDS}))
    node = {"id": "a", "kind": "agent", "ref": slug, "input": "{'message': 'Go'}", "timeout_s": SECONDS}
    flow = await ended_flow(desk, await desk.shop.person(), {"nodes": [node], "connections": []})
    run_id = await desk.shop.operator.fetchval("select id from agent_runs where execution_id = $1", flow["id"])
    await over(desk, run_id)
    assert (flow["status"], flow["reason"]) == ("failed", "deadline")


async def test_a_call_that_people_allow_too_late_is_not_made(hanging: tuple[Studio, Recorder]) -> None:
    desk, _ = hanging
    person = await desk.shop.person()
    wanted = {"tool": "refund", "approval": {"approvers": ["role:admin"]}}
    slug = await desk.save(
        agent(calls(("refund", {"amount": 5})), says("Paid."), tools=[wanted], limits={"seconds": 60})
    )
    run_id = await desk.start(person, slug)
    asked = await approval_of(desk, run_id)
    await desk.shop.operator.execute("update agent_runs set deadline_at = vanilla.clock() where id = $1", run_id)
    await desk.shop.ask(desk.shop.admin, "decide_approval", asked["id"], "approved")
    run = await over(desk, run_id)
    assert f"{run['id']}:2" not in DONE


async def test_a_model_that_hangs_is_given_up_and_costs_nothing(hanging: tuple[Studio, Recorder]) -> None:
    desk, sandbox = hanging
    slug = await desk.save(agent(says("It answered."), limits={"seconds": SECONDS}))
    release = asyncio.Event()
    sandbox.asked.clear()

    async def waits(_: int) -> None:
        await release.wait()

    sandbox.at_call = waits
    try:
        run = await over(desk, await desk.start(await desk.shop.person(), slug))
    finally:
        sandbox.at_call = None
        release.set()
    assert (sandbox.asked.total(), run["turns"], await desk.charged(run["id"])) == (1, 0, 0)
    made = "select status, error_code from ai_executions where user_id = $1"
    assert [tuple(row) for row in await desk.shop.operator.fetch(made, run["user_id"])] == [
        ("cancelled", "step_stopped")
    ]


async def test_what_could_be_tried_again_only_after_the_time_is_told_to_the_model(
    hanging: tuple[Studio, Recorder],
) -> None:
    desk, _ = hanging
    slug = await desk.save(agent(calls(("balk", {})), says("Another time."), tools=["balk"], limits={"seconds": 60}))
    found = await desk.ended(await desk.start(await desk.shop.person(), slug))
    assert (found["stop_reason"], found["output"]["text"]) == ("done", "Another time.")
    (made,) = [step for step in await desk.steps(found["id"]) if step["kind"] == "tool"]
    assert (made["status"], made["result"]["code"]) == ("failed", "tool_failed")
    await settled(desk, found)
