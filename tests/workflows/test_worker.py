"""The worker: whole workflows over the sandbox provider, in this process and in others that are killed."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import as_person, serve, settings_for
from tests.workflows.execution.mcp_support import GOOD, left
from tests.workflows.hands import Room, workflow
from vanilla_saas.app import create_app
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.workflows.definition import plain
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.steps import Outcome, Step
from vanilla_saas.workflows.library import instantiate, library
from vanilla_saas.workflows.working import options_of, worker_alone, working


@pytest.fixture(scope="module")
async def served(desk: Room, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """An API with a worker beside it."""
    home = tmp_path_factory.mktemp("home")
    async with serve(create_app(settings_for(desk.cluster, desk.name, home, run_worker=True))) as address:
        yield address


async def ended(desk: Room, execution: uuid.UUID, seconds: float = 20) -> dict[str, Any]:
    async with asyncio.timeout(seconds):
        while (found := await desk.execution(execution))["finished_at"] is None:
            await asyncio.sleep(0.02)
    return found


async def test_a_chain_of_expressions(desk: Room, served: str) -> None:
    shape = workflow(
        "a b", "a>b", a={"value": "input.n + 1"}, b={"value": "steps.a.output * 2"}, output="steps.b.output"
    )
    execution = await desk.start(await desk.publish(shape), n=20)
    found = await ended(desk, execution)
    assert (found["status"], found["output"]) == ("succeeded", 42)


INPUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "summarise_and_check": ({}, {"text": "A long story about a short thing."}),
    "moderated_reply": ({}, {"message": "Hello there."}),
    "extract_to_schema": ({}, {"text": "Ada was born in 1815."}),
    "map_and_merge": ({"at_once": 2}, {"question": "What is it?", "texts": ["one", "two", "three"]}),
    "research_with_judge": ({}, {"question": "Why?"}),
}


@pytest.mark.parametrize("slug", INPUTS)
async def test_a_template_runs_on_the_sandbox_and_costs_what_the_ledger_says(
    desk: Room, served: str, slug: str
) -> None:
    parameters, values = INPUTS[slug]
    person = await desk.people.user(balance=100_000)
    shape = await desk.publish(plain(instantiate(library()[slug], parameters)), person)
    execution = await desk.start(shape, **values)
    found = await ended(desk, execution)
    assert found["status"] == "succeeded", found["error"]
    assert found["output"]
    charged = sum(step["charged_tokens"] for step in found["steps"].values())
    assert 0 < charged == found["charged_tokens"]
    wallet = await desk.people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (100_000 - charged, 0)


@pytest.mark.parametrize(
    ("model", "code", "charged"), [("sandbox-embed", None, 8), ("sandbox-small", "unsupported_model", 0)]
)
async def test_a_gate_measures_how_near_texts_are_with_a_model_that_makes_embeddings(
    desk: Room, served: str, model: str, code: str | None, charged: int
) -> None:
    person = await desk.people.user(balance=1000)
    gate = {"of": "input.text", "check": "similarity", "to": "'a short story'", "model": model}
    execution = await desk.start(await desk.publish(workflow("g=gate", g=gate), person), text="a short story")
    found = await ended(desk, execution)
    assert (found["error"] or {}).get("code") == code, found
    wallet = await desk.people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (1000 - charged, 0)


async def test_a_draft_waits_for_a_person_and_goes_on_with_the_edited_text(desk: Room, served: str) -> None:
    shape = await desk.publish(plain(instantiate(library()["draft_with_approval"], {})))
    execution = await desk.start(shape, task="A letter.")
    async with asyncio.timeout(10):
        while not (
            approval := await desk.operator.fetchrow(
                "select * from workflow_approvals where execution_id = $1", execution
            )
        ):
            await asyncio.sleep(0.02)
    assert approval["title"] == "Draft: A letter."
    admin = await desk.people.user("admin")
    async with as_person(desk.operator, admin):
        await desk.operator.fetchval(
            "select decide_approval($1, 'approved', null, $2)", approval["id"], {"text": "Mine."}
        )
    found = await ended(desk, execution)
    assert found["output"] == {"text": "Mine.", "approved": True}


async def test_a_version_that_the_release_cannot_read_fails_its_execution(desk: Room, served: str) -> None:
    # published by SQL alone, which looks at the graph
    execution = await desk.start(await desk.publish(workflow("a", a={"value": "1", "timeout_s": 10**8})))
    found = await ended(desk, execution)
    assert (found["status"], found["reason"]) == ("failed", "invalid_definition")
    assert "nodes.0.transform.timeout_s: Input should be less than or equal to 86400" in found["error"]["message"]


async def test_an_outcome_that_cannot_be_stored_fails_alone(
    desk: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(step: Step, *rest: Any) -> Outcome:
        outcome = await execute(step, *rest)
        return replace(outcome, fields={"output": "\0"}) if step.node == "bad" else outcome

    monkeypatch.setattr("vanilla_saas.workflows.worker.execute", broken)
    bad, good = [
        await desk.start(await desk.publish(workflow(name, **{name: {"pool": "alone"}}))) for name in ("bad", "good")
    ]
    settings = settings_for(desk.cluster, desk.name, tmp_path, run_worker=True, worker_pools=["alone"])
    async with serve(create_app(settings)):
        assert (await ended(desk, bad))["reason"] == "internal_error"
        assert (await ended(desk, good))["status"] == "succeeded"


@pytest.mark.parametrize("alone", [False, True], ids=["beside", "alone"])
async def test_a_worker_calls_tools_of_mcp_servers_and_leaves_no_process(
    desk: Room, tmp_path: Path, alone: bool
) -> None:
    servers = tmp_path / "mcp.json"
    servers.write_bytes(orjson.dumps({"mcpServers": {"good": GOOD.model_dump(exclude_none=True)}}))
    pool = f"mcp-{alone}".lower()
    shape = workflow(
        "a=map b=tool", "a>b",
        a={"over": "['a@x', 'b@x']", "item": {"kind": "tool", "tool": "mcp/good/find", "arguments": "{'email': item}"},
           "pool": pool},
        b={"tool": "mcp/good/refuse", "arguments": "{'message': steps.a.output[1].email}", "pool": pool},
    )  # fmt: skip
    execution = await desk.start(await desk.publish(shape))
    settings = settings_for(
        desk.cluster, desk.name, tmp_path, run_worker=not alone, worker_pools=[pool], mcp_servers=servers
    )
    if alone:
        signer = load_signer(settings)
        with addresses(settings, signer) as where:
            async with worker_alone(settings, options_of(settings), where, signer) as worker, working(worker):
                found = await ended(desk, execution)
    else:
        async with serve(create_app(settings)):
            found = await ended(desk, execution)
    assert (found["status"], found["reason"]) == ("failed", "tool_failed")
    assert found["error"]["message"].startswith("The tool mcp/good/refuse failed:")
    assert found["error"]["message"].endswith("b@x")
    assert not left()


REFUSED = """
alter function vanilla.heartbeat_worker(uuid, jsonb) rename to heartbeat_worker_away;
create sequence refused_heartbeats;
grant usage on sequence refused_heartbeats to vanilla_runtime;
create function vanilla.heartbeat_worker(p_worker uuid, p_report jsonb) returns jsonb language plpgsql as $f$
begin
    perform nextval('public.refused_heartbeats');      -- stays, whatever becomes of the transaction
    raise exception 'not now';
end
$f$
"""
AGAIN = """
drop function vanilla.heartbeat_worker(uuid, jsonb);
drop sequence refused_heartbeats;
alter function vanilla.heartbeat_worker_away(uuid, jsonb) rename to heartbeat_worker
"""


async def test_what_a_heartbeat_could_not_tell_the_next_one_tells(desk: Room, served: str) -> None:
    async def until(query: str, *values: Any) -> None:
        async with asyncio.timeout(10):
            while not await desk.operator.fetchval(query, *values):
                await asyncio.sleep(0.05)

    told = "select coalesce(sum(finished), 0)::int from routing_metrics"
    shape = await desk.publish(workflow("a b c"))
    # what was done before is told
    now = await desk.operator.fetchval("select vanilla.clock()")
    await until("select bool_and(heartbeat_at > $1) from worker_registry where status = 'active'", now)
    before = await desk.operator.fetchval(told)
    await desk.operator.execute(REFUSED)
    try:
        await ended(desk, await desk.start(shape))
        refused = await desk.operator.fetchval("select last_value from refused_heartbeats")
        await until("select last_value > $1 from refused_heartbeats", refused)
        assert await desk.operator.fetchval(told) == before
    finally:
        await desk.operator.execute(AGAIN)
    await until(f"select ({told}) = $1", before + 3)
