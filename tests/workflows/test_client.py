"""The client: starts, follows, decides, and says with a code what went wrong."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import aiohttp
import pytest
from fastapi import FastAPI

from tests.conftest import serve, settings_for
from tests.workflows.hands import Room, workflow
from vanilla_saas.app import create_app
from vanilla_saas.client import ApiError, Client, WorkflowFailed

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture(scope="module")
async def app(desk: Room, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(settings_for(desk.cluster, desk.name, tmp_path_factory.mktemp("home"), run_worker=True))


@pytest.fixture(scope="module")
async def address(app: FastAPI) -> AsyncIterator[str]:
    async with serve(app) as found:
        yield found


@pytest.fixture
async def client(address: str, desk: Room) -> AsyncIterator[Client]:
    async with Client(address, desk.owner.key) as opened:
        yield opened


async def test_a_workflow_is_started_followed_and_gives_its_output(client: Client, desk: Room) -> None:
    shape = await desk.publish(workflow("a b", "a>b", b={"value": "steps.a.output + input.n"}, output="steps.b.output"))
    run = await client.workflows.start(shape, input={"n": 41}, idempotency_key="k")
    again = await client.workflows.start(shape, input={"n": 41}, idempotency_key="k")
    assert (again.execution_id, run.replayed, again.replayed) == (run.execution_id, False, True)
    seen = [progress async for progress in client.workflows.follow(run.execution_id)]
    # each is the whole: what did not change is kept
    assert all(progress["input"] == {"n": 41} for progress in seen)
    steps = {step["node"]: step["status"] for step in seen[-1]["steps"]}
    assert steps == {"a": "succeeded", "b": "succeeded", "$end": "succeeded"}
    assert await client.workflows.result(run.execution_id) == 42
    assert (await client.workflows.get(run.execution_id))["status"] == "succeeded"
    assert (await client.workflows.step(run.execution_id, "a"))["output"] == 1


async def test_what_did_not_change_is_kept(client: Client, desk: Room) -> None:
    run = await client.workflows.start(await desk.publish(workflow("a s=signal", "a>s", s={"signal": "go"})), {"n": 1})
    told = client.workflows.follow(run.execution_id)
    async with asyncio.timeout(20):
        while (await anext(told))["steps"][1]["status"] != "waiting":
            pass
        await client.workflows.pause(run.execution_id)
        paused = await anext(told)
    assert (paused["status"], paused["input"], [step["node"] for step in paused["steps"]][:2]) == (
        "paused",
        {"n": 1},
        ["a", "s"],
    )
    await told.aclose()
    await client.workflows.cancel(run.execution_id)


async def test_a_failure_has_the_code_of_the_step_that_failed(client: Client, desk: Room) -> None:
    shape = await desk.publish(workflow("a", a={"value": "1 / (input.n - input.n)"}, input=NUMBER))
    with pytest.raises(ApiError, match=r"input\.n") as refused:
        await client.workflows.start(shape, input={"n": "x"})
    assert (refused.value.code, refused.value.status) == ("invalid_input", 422)
    run = await client.workflows.start(shape, input={"n": 1})
    with pytest.raises(WorkflowFailed) as failed:
        await client.workflows.result(run.execution_id)
    assert (failed.value.code, failed.value.node, failed.value.status) == ("expression_failed", "a", "failed")
    await client.workflows.restart(run.execution_id)
    with pytest.raises(WorkflowFailed):
        await client.workflows.result(run.execution_id)
    mended = await desk.publish_next(shape, workflow("a", a={"value": "input.n"}, input=NUMBER))
    await client.workflows.restart(run.execution_id, version=mended)
    assert await client.workflows.result(run.execution_id) == {"a": 1}


async def test_signals_approvals_pause_and_cancel(client: Client, address: str, desk: Room) -> None:
    asked = await desk.people.user()
    shape = await desk.publish(
        workflow("s=signal p=approval", "s>p", s={"signal": "go"},
                 p={"title": "Look", "approvers": [f"user:{asked.identity.user_id}"], "quorum": 1,
                    "of": "{'text': 'Draft'}", "edit": {"type": "object", "properties": {"text": {"type": "string"}}}},
                 output="steps.p.output.value")
    )  # fmt: skip
    run = await client.workflows.start(shape)
    await client.workflows.pause(run.execution_id)
    await client.workflows.resume(run.execution_id)
    assert await client.workflows.signal(run.execution_id, "go", {"by": "me"}) in (0, 1)
    async with Client(address, asked.key) as theirs, asyncio.timeout(20):
        while not (found := await theirs.workflows.approvals()):
            await asyncio.sleep(0.02)
        decided = await theirs.workflows.decide(found[0]["id"], "approved", value={"text": "Mine"}, comment="fine")
    assert decided["status"] == "approved"
    assert await client.workflows.result(run.execution_id) == {"text": "Mine"}
    run = await client.workflows.start(shape)
    await client.workflows.cancel(run.execution_id, "enough")
    with pytest.raises(WorkflowFailed, match="enough") as cancelled:
        await client.workflows.result(run.execution_id)
    assert cancelled.value.code == "cancelled"


async def test_a_stream_that_breaks_off_goes_on_with_the_whole(
    client: Client, app: FastAPI, desk: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = await desk.publish(workflow("s=signal", s={"signal": "go"}))
    run = await client.workflows.start(shape)
    told = client.workflows.follow(run.execution_id)
    assert (await anext(told))["input"] == {}
    monkeypatch.setattr(app.state.streams, "stopping", True)
    async with asyncio.timeout(20):
        assert (await anext(told))["input"] == {}  # of another stream
        monkeypatch.setattr(app.state.streams, "stopping", False)
        await client.workflows.signal(run.execution_id, "go")
        assert [progress["status"] async for progress in told][-1] == "succeeded"


async def test_refusals_have_codes_and_no_address_is_an_error_of_the_connection(address: str, desk: Room) -> None:
    async with Client(address, "vsk_wrong") as stranger:
        with pytest.raises(ApiError) as refused:
            await stranger.workflows.result(uuid.uuid4())
        assert (refused.value.code, refused.value.status) == ("authentication_failed", 401)
    async with Client("http://127.0.0.1:1", desk.owner.key) as lost:
        with pytest.raises(aiohttp.ClientError):
            await lost.workflows.get(uuid.uuid4())
    with pytest.raises(RuntimeError, match="async with"):
        await Client(address, desk.owner.key).workflows.get(uuid.uuid4())
