"""`vanilla-saas agents`, as the operator, in a database without any other worker; and `client.agents`."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.conftest import Cluster
from tests.engines.shop import Shop, asking, shop
from tests.orchestration.studio import Studio, agent, calls, says
from tests.tokens.test_cli import Cli, shell
from vanilla_saas.client import ApiError, Client
from vanilla_saas.orchestration.teams import MESSAGE


@pytest.fixture(scope="module")
async def floor(cluster: Cluster) -> AsyncIterator[Shop]:
    async with shop(cluster) as made:
        yield made


@pytest.fixture
def vs(monkeypatch: pytest.MonkeyPatch, floor: Shop, tmp_path: Path) -> Cli:
    tools = {"VANILLA_SAAS_WORKER_TOOLS": '["tests.orchestration.hands"]'}
    return shell(monkeypatch, floor.room.cluster, floor.room.name, tmp_path, **tools)


async def test_an_agent_of_a_file_is_saved_run_shown_and_retired(vs: Cli, floor: Shop, tmp_path: Path) -> None:
    user = await floor.person()
    file = tmp_path / "helper.json"
    file.write_text(json.dumps(agent(calls(("tick", {})), says("Hello there."), tools=["tick"])))
    saved = await vs.json("agents", "save", str(file), "--user", user.email)
    assert (saved["slug"], saved["version"], saved["unchanged"]) == ("helper", 1, False)
    assert "saved already" in (await vs("agents", "save", str(file))).stdout
    assert [row["slug"] for row in await vs.json("agents", "list")] == ["helper"]
    assert "instructions:" in (await vs("agents", "show", "helper")).stdout
    who = ("--user", user.email, "--input", "message=Hi", "--tokens", "9000")
    ran = await vs("agents", "run", "helper", *who)
    assert "Hello there." in ran.stdout
    run = await vs.json("agents", "run", str(file), *who)
    assert (run["state"], run["stop_reason"], run["runs"][0]["budget"]["tokens"]) == ("completed", "done", 9000)
    assert len(await vs.json("agents", "runs", "--agent", "helper", "--state", "completed")) == 2
    shown = (await vs("agents", "run-show", run["run_id"])).stdout
    assert "helper v1" in shown
    assert "tick {}" in shown
    assert "left of 9000" in shown
    begun = await vs.json("agents", "run", "helper", *who, "--no-follow")
    assert "cancelled" in (await vs("agents", "cancel", begun["run_id"])).stdout
    assert (await vs.json("agents", "run-show", begun["run_id"]))["stop_reason"] == "canceled"
    assert "retired" in (await vs("agents", "retire", "helper")).stdout
    assert (await vs.refused("agents", "run", "helper", *who)).name == "invalid_state"


async def test_an_agent_with_an_engine_of_a_file_is_run(vs: Cli, floor: Shop, tmp_path: Path) -> None:
    user, engine = await floor.person(), await floor.deploy(asking(output="'Noon.'", input=MESSAGE))
    file = tmp_path / "clerk.yaml"
    file.write_text(f"instructions: You tell the time.\nengine: {engine.slug}@1\n")
    who = ("--user", user.email, "--input", "message=What time is it?")
    assert (await vs("agents", "run", str(file), *who)).stdout == "Noon.\n"
    run = await vs.json("agents", "run", str(file), *who)
    shown = (await vs("agents", "run-show", run["run_id"])).stdout
    assert f"turn 1 by engine/{engine.slug}@1: Noon." in shown
    (step,) = run["runs"][0]["steps"]
    assert (run["stop_reason"], step["name"]) == ("done", f"engine/{engine.slug}@1")
    made = await floor.room.execution(UUID(step["execution_id"]))
    assert step["charged_tokens"] == run["charged_tokens"] == made["charged_tokens"] > 0
    file.write_text(f"instructions: x\nengine: {engine.slug}\nmodel: sandbox-small\n")
    refused = await vs.refused("agents", "save", str(file))
    assert [(one["path"], one["code"]) for one in refused.detail["problems"]] == [("model", "fields_exclusive")]


async def test_a_file_that_is_wrong_is_refused(vs: Cli, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("instructions: x\nlimits: {turns: 0}\n")
    refused = await vs.refused("agents", "save", str(file))
    assert {one["path"] for one in refused.detail["problems"]} == {"model", "limits.turns"}


@pytest.mark.parametrize("pattern", ["sequential", "handoff"])
async def test_a_team_of_a_file_is_saved_and_run(vs: Cli, floor: Shop, tmp_path: Path, pattern: str) -> None:
    user = await floor.person()
    who = ("--user", user.email)
    file = tmp_path / "anything.yaml"
    team = {"name": f"t-{pattern}"[:20], "pattern": pattern, "agents": {"a": agent(says("First.")), "b": agent()}}
    file.write_text(json.dumps(team))
    names = [f"{team['name']}-a", f"{team['name']}-b"]
    saved = await vs.json("agents", "save", str(file), *who, "--shared")
    assert [(one["slug"], one["version"]) for one in saved["agents"]] == [(name, 1) for name in names]
    assert saved["start"] == (team["name"] if pattern == "sequential" else names[0])
    told = (await vs("agents", "save", str(file), *who)).stdout
    assert f"{names[1]} version 1. Start the" in told
    given = (*who, "--input", "message=Hi")
    found = await vs.json("agents", "run", str(file), *given)
    if pattern == "sequential":
        assert (found["status"], found["output"]["text"], found["version"]) == ("succeeded", 'You said: "First."', 1)
        shared = "select shared from ai_workflows where slug = $1"
        assert await floor.operator.fetchval(shared, team["name"]) is True
        refused = await vs("agents", "run", str(file), *given, "--tokens", "9", code=2)
        assert "budget_tokens" in refused.output
    else:
        assert (found["state"], found["output"]["text"]) == ("completed", "First.")
    assert "A team says" in (await vs("agents", "save", str(file), "--slug", "x", code=2)).output
    begun = await vs.json("agents", "run", str(file), *given, "--no-follow")
    assert UUID(begun["execution_id"])
    file.write_text(json.dumps(team | {"lead": "nobody", "agents": {"a": {"model": "m"}}}))
    wrong = await vs.refused("agents", "save", str(file))
    assert [one["path"] for one in wrong.detail["problems"]] == ["agents.a.instructions"]


async def test_a_client_saves_runs_waits_and_cancels(desk: Studio) -> None:
    person = await desk.shop.person()
    async with Client(desk.address, person.key) as client:
        assert await client.agents.save("mine", agent(says("Yes."))) == 1
        assert [one["slug"] for one in await client.agents.list() if one["slug"] == "mine"] == ["mine"]
        run_id = await client.agents.start("mine@1", {"message": "?"}, tokens=5000, idempotency_key="k")
        found = await client.agents.result(run_id)
        assert (found["state"], found["output"]["text"]) == ("completed", "Yes.")
        assert await client.agents.start("mine@1", {"message": "?"}, tokens=5000, idempotency_key="k") == run_id
        assert await client.agents.save("slow", agent(says("No.", latency_ms=60_000))) == 1
        slow = await client.agents.start("slow")
        await client.agents.cancel(slow, "enough")
        assert (await client.agents.get(slow))["stop_reason"] == "canceled"
        with pytest.raises(ApiError) as refused:
            await client.agents.save("bad", {"model": "x"})
        assert refused.value.code == "invalid_definition"
