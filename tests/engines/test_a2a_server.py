"""Engines and agents as A2A agents, called by the stock client over HTTP: a task is a run."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from itertools import pairwise

import aiohttp
import pytest
from a2a.client.client import Client
from a2a.client.errors import AgentCardResolutionError
from a2a.types import a2a_pb2 as types
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InvalidParamsError,
    InvalidRequestError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from google.protobuf.json_format import MessageToDict

from tests.conftest import Cluster
from tests.engines.a2a import OPEN, TWICE, asked, connected, data, delegating, further, sent, state, text, usage
from tests.engines.served import INPUT, WAITS, Served, served
from tests.engines.shop import Made, plain
from tests.orchestration.studio import agent, calls, says
from vanilla_saas.engines.protocols.a2a_tasks import SCHEMAS
from vanilla_saas.workflows.attending import Attended
from vanilla_saas.workflows.worker import Worker

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.fixture(scope="module")
async def desk(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(cluster, tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
async def doubling(desk: Served) -> Made:
    return await desk.shop.deploy(plain("input.n * 2", input=INPUT, output="steps.a.output"))


async def test_a_card_is_of_what_the_caller_may_run_and_a_message_is_a_run(desk: Served, doubling: Made) -> None:
    user = await desk.shop.person()
    async with (
        aiohttp.ClientSession(desk.address, headers=user.headers) as http,
        http.get(f"/a2a/{doubling.slug}/.well-known/agent-card.json") as answer,
    ):
        card = await answer.json()
    assert card["supportedInterfaces"][0]["url"] == f"{desk.address}/a2a/{doubling.slug}"
    assert (card["version"], card["capabilities"]["streaming"], card["capabilities"]["pushNotifications"]) == (
        "1",
        True,
        True,
    )
    extensions = {one["uri"]: one for one in card["capabilities"]["extensions"]}
    assert extensions[SCHEMAS]["params"] == {"input": INPUT}
    async with connected(desk, user, doubling.slug) as client:
        task = await sent(client, data("m-1", "letters", n=21))
        got = await client.get_task(types.GetTaskRequest(id=task.id))
        bare = await client.get_task(types.GetTaskRequest(id=task.id, history_length=0))
    assert (state(task), task.context_id) == ("completed", "letters")
    assert MessageToDict(task.artifacts[0].parts[0])["data"] == 42
    assert got == task
    assert (task.history[0].message_id, MessageToDict(task.history[0].parts[0])["data"]) == ("m-1", {"n": 21.0})
    assert len(bare.history) == 0
    row = await desk.shop.room.execution(uuid.UUID(task.id))
    told = usage(task)
    assert (told["charged_tokens"], told["cost_micros"]) == (row["charged_tokens"], row["cost_micros"])


async def test_without_a_key_there_is_no_card_and_what_may_not_be_run_is_not_there(
    desk: Served, doubling: Made
) -> None:
    outside = await desk.shop.room.people.user("admin", tenant_id=await desk.shop.room.people.tenant())
    closed, user = await desk.shop.deploy(access="read"), await desk.shop.person()
    answers = []
    for who, name in ((outside, doubling.slug), (outside, "nothing"), (user, closed.slug)):
        async with aiohttp.ClientSession(desk.address, headers=who.headers) as http:
            for method, path in (("GET", "/.well-known/agent-card.json"), ("POST", "")):
                async with http.request(method, f"/a2a/{name}{path}") as answer:
                    told = await answer.json()
                    answers.append((answer.status, told["code"], told["detail"]))
    assert set(answers) == {(404, "not_found", "There is nothing of that name that you may run.")}
    async with (
        aiohttp.ClientSession(desk.address) as http,
        http.get(f"/a2a/{doubling.slug}/.well-known/agent-card.json") as answer,
    ):
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="vanilla-saas"')
    with pytest.raises(AgentCardResolutionError):
        async with connected(desk, outside, doubling.slug):
            pass


async def test_a_text_is_what_the_engine_takes_as_one(desk: Served) -> None:
    engine = await desk.shop.deploy(plain("'I heard ' + input.text", input=TEXT, output="steps.a.output"))
    async with connected(desk, await desk.shop.person(), engine.slug) as client:
        task = await sent(client, text("you"))
    assert task.artifacts[0].parts[0].text == "I heard you"


async def test_the_same_message_is_the_same_task_and_another_body_with_its_id_is_refused(
    desk: Served, doubling: Made
) -> None:
    user = await desk.shop.person()
    async with connected(desk, user, doubling.slug) as client:
        first, again = [await sent(client, data("one", n=3)) for _ in range(2)]
        with pytest.raises(InvalidParamsError, match="idempotency key"):
            await sent(client, data("one", n=4))
        other = await sent(client, data("one", first.context_id, n=3))
    assert (first.id, first.context_id) == (again.id, first.id)
    # within another context it is another message
    assert (other.id != first.id, other.context_id) == (True, first.id)
    assert await desk.runs(user) == 2


async def test_what_cannot_be_an_input_is_refused_and_nothing_is_written(desk: Served, doubling: Made) -> None:
    user = await desk.shop.person()
    picture = types.SendMessageRequest(
        message=types.Message(
            message_id="m", role=types.ROLE_USER, parts=[types.Part(raw=b"abc", media_type="image/png")]
        )
    )
    cases: list[tuple[types.SendMessageRequest, type[A2AError], str]] = [
        (data(n="x"), InvalidParamsError, "input.n"),
        (text("two"), InvalidParamsError, "not clear where"),
        (picture, ContentTypeNotSupportedError, "Parts are texts"),
        (data("m" * 300, n=1), InvalidParamsError, "too long"),
        (text("x", task_id=str(uuid.uuid4())), TaskNotFoundError, "not found"),
        (data(n=1, tell=types.TaskPushNotificationConfig(url="http://example.test/")), InvalidParamsError, "https://"),
        (data(n=1, tell=types.TaskPushNotificationConfig(url="https://10.0.0.1/")), InvalidParamsError, "public"),
    ]
    async with connected(desk, user, doubling.slug) as client:
        for request, kind, words in cases:
            with pytest.raises(kind, match=words):
                await sent(client, request)
    assert await desk.runs(user) == 0


async def test_a_task_that_is_anothers_is_one_that_is_not_there(desk: Served, doubling: Made) -> None:
    user, other = await desk.shop.person(), await desk.shop.person()
    twin = await desk.shop.deploy()
    tenant = await desk.shop.room.people.tenant()
    outside = await desk.shop.room.people.user("admin", tenant_id=tenant)
    flow = await desk.shop.room.publish(plain("1"), outside)
    made = await desk.shop.ask(outside, "deploy_engine", doubling.slug, flow)
    await desk.shop.ask(outside, "set_engine", uuid.UUID(made["engine_id"]), p_default_access="execute")
    waits = await desk.shop.deploy(WAITS)
    async with connected(desk, user, doubling.slug) as client:
        task = await sent(client, data(n=1))
    async with connected(desk, user, waits.slug, polling=True) as client:
        going = await sent(client, data())
    state = "select id, status, output, finished_at from workflow_executions order by id"
    before = await desk.shop.operator.fetch(state)
    words = set()
    for who, name in ((other, doubling.slug), (outside, doubling.slug), (user, twin.slug)):
        async with connected(desk, who, name, streaming=True) as client:
            for id_ in (task.id, going.id, str(uuid.uuid4()), "x"):
                for ask in (
                    client.get_task(types.GetTaskRequest(id=id_)),
                    client.cancel_task(types.CancelTaskRequest(id=id_)),
                    anext(client.subscribe(types.SubscribeToTaskRequest(id=id_))),
                ):
                    with pytest.raises(TaskNotFoundError) as refused:
                        await ask
                    words.add((refused.value.message, str(refused.value.data)))
    assert len(words) == 1
    assert await desk.shop.operator.fetch(state) == before
    async with connected(desk, user, waits.slug) as client:
        assert (await client.get_task(types.GetTaskRequest(id=going.id))).status.state == types.TASK_STATE_WORKING
        await desk.shop.ask(user, "cancel_execution", uuid.UUID(going.id))


async def test_a_task_is_polled_followed_again_and_cancelled(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS)
    async with (
        connected(desk, user, engine.slug, polling=True) as client,
        connected(desk, user, engine.slug, streaming=True) as follower,
    ):
        task = await sent(client, data())
        assert state(task) == "working"
        follow = types.SubscribeToTaskRequest(id=task.id)
        left = follower.subscribe(follow)
        assert state((await anext(left)).task) == "working"
        await left.aclose()
        events = follower.subscribe(follow)
        assert (await anext(events)).task.id == task.id
        await desk.shop.ask(user, "signal_execution", uuid.UUID(task.id), "go", 7)
        told = [event async for event in events]
        assert told[0].artifact_update.artifact.name == "output"
        assert state(told[-1].status_update) == "completed"
        with pytest.raises(UnsupportedOperationError):
            await anext(follower.subscribe(follow))
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(types.CancelTaskRequest(id=task.id))
        second = await sent(client, data())
        assert state(await client.cancel_task(types.CancelTaskRequest(id=second.id))) == "canceled"
    assert (await desk.shop.room.execution(uuid.UUID(second.id)))["status"] == "cancelled"


async def test_an_agent_that_asks_people_needs_input_until_they_decide(desk: Served) -> None:
    user = await desk.shop.person()
    tool = {"tool": "refund", "approval": {"approvers": ["role:admin"]}}
    slug = await desk.save(agent(calls(("refund", {"amount": 7})), says("Done."), tools=[tool]))
    async with (
        connected(desk, user, f"agent_{slug}") as client,
        connected(desk, user, f"agent_{slug}", streaming=True) as follower,
    ):
        # a blocking call answers when it asks
        task = await sent(client, text("Pay it back"))
        assert state(task) == "input_required"
        assert "people" in task.status.message.parts[0].text
        events = follower.subscribe(types.SubscribeToTaskRequest(id=task.id))
        assert state((await anext(events)).task) == "input_required"
        approval = await desk.shop.operator.fetchval(OPEN, uuid.UUID(task.id))
        await desk.shop.ask(desk.shop.admin, "decide_approval", approval, "approved", "fine")
        told = [event async for event in events]
        states = [state(event.status_update) for event in told if event.HasField("status_update")]
        assert (states[-1], set(states) <= {"working", "completed"}) == ("completed", True)
        ended = await client.get_task(types.GetTaskRequest(id=task.id))
    assert ended.artifacts[-1].parts[0].text == "Done."


async def test_a_message_to_a_task_is_the_signal_that_it_waits_for(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS | {"output": "steps.s.output"})
    async with (
        connected(desk, user, engine.slug, polling=True) as poller,
        connected(desk, user, engine.slug) as client,
        connected(desk, user, engine.slug, streaming=True) as follower,
    ):
        task = await sent(poller, data(context="letters"))
        assert state(task) == "working"
        ended = await sent(client, further(task, "letters", signal="go", payload={"n": 7}))
        assert (ended.id, ended.context_id, state(ended)) == (task.id, "letters", "completed")
        assert MessageToDict(ended.artifacts[0].parts[0])["data"] == {"n": 7}
        second = await sent(poller, data(context="letters"))
        told = [event async for event in follower.send_message(further(second, signal="go"))]
        assert (told[0].task.id, state(told[-1].status_update)) == (second.id, "completed")
        found = await client.list_tasks(types.ListTasksRequest(context_id="letters"))
        assert [one.id for one in found.tasks] == [second.id, task.id]


async def test_a_message_decides_what_a_task_asks_of_its_user_and_sent_again_decides_nothing_else(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(TWICE)
    async with connected(desk, user, engine.slug) as client:
        task = await sent(client, data(n=1))
        assert state(task) == "input_required"
        (first,) = asked(task)
        assert (first["title"], first["subject"], "n" in first["edit"]["properties"]) == ("First", {"n": 1}, True)
        answer = further(task, approval_id=first["approval_id"], decision="approved", value={"n": 2}, comment="more")
        task = await sent(client, answer)
        assert (state(task), [one["title"] for one in asked(task)]) == ("input_required", ["Second"])
        with pytest.raises(InvalidRequestError, match="not any more"):
            await sent(client, answer)
        (second,) = asked(await client.get_task(types.GetTaskRequest(id=task.id)))
        assert (second["title"], second["subject"]) == ("Second", {"n": 2})
        ended = await sent(client, further(task, approval_id=second["approval_id"], decision="approved"))
    assert (state(ended), MessageToDict(ended.artifacts[0].parts[0])["data"]) == ("completed", 2)
    votes = "select user_id, comment from workflow_approval_votes where approval_id = $1"
    vote = await desk.shop.operator.fetchrow(votes, uuid.UUID(first["approval_id"]))
    assert tuple(vote) == (user.identity.user_id, "more")


async def test_what_a_delegate_asks_is_asked_of_the_task_and_decided_by_a_message_to_it(desk: Served) -> None:
    user = await desk.shop.person()
    slug = await delegating(desk)
    async with connected(desk, user, f"agent_{slug}") as client:
        task = await sent(client, text("Please"))
        assert state(task) == "input_required"
        (one,) = asked(task)
        ended = await sent(client, further(task, approval_id=one["approval_id"], decision="approved"))
    assert (state(ended), ended.artifacts[-1].parts[0].text) == ("completed", "Done.")


async def test_a_stream_tells_each_thing_that_a_task_asks(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(TWICE)
    titles = []
    async with (
        connected(desk, user, engine.slug, streaming=True) as follower,
        connected(desk, user, engine.slug, polling=True) as client,
        asyncio.timeout(20),
    ):
        async for event in follower.send_message(data(n=1)):
            task = event.task if event.HasField("task") else None
            status = types.Task(id=event.status_update.task_id, status=event.status_update.status)
            for one in asked(task or status):
                titles.append(one["title"])
                await sent(client, further(task or status, approval_id=one["approval_id"], decision="approved"))
    assert titles == ["First", "Second"]


async def test_a_message_that_a_task_cannot_take_is_refused_and_changes_nothing(desk: Served, doubling: Made) -> None:
    user, other = await desk.shop.person(), await desk.shop.person()
    engine, signals = await desk.shop.deploy(TWICE), await desk.shop.deploy(WAITS)
    of_admins = {
        **TWICE,
        "nodes": [{**one, "approvers": ["role:admin"]} if "title" in one else one for one in TWICE["nodes"]],
    }
    closed = await desk.shop.deploy(of_admins)
    async with (
        connected(desk, user, engine.slug) as client,
        connected(desk, user, closed.slug) as unasked,
        connected(desk, user, signals.slug, polling=True) as waiting,
        connected(desk, user, doubling.slug) as ended,
        connected(desk, other, engine.slug) as stranger,
    ):
        task, theirs, done = await sent(client, data(n=1)), await sent(unasked, data(n=1)), await sent(ended, data(n=1))
        waits = await sent(waiting, data())
        approval = asked(task)[0]["approval_id"]
        assert (state(theirs), asked(theirs)) == ("input_required", [])
        hidden = await desk.shop.operator.fetchval(OPEN, uuid.UUID(theirs.id))
        yes = {"approval_id": approval, "decision": "approved"}
        cases: list[tuple[Client, types.SendMessageRequest, type[A2AError], str]] = [
            (stranger, further(task, **yes), TaskNotFoundError, "not found"),
            (ended, further(task, **yes), TaskNotFoundError, "not found"),
            (ended, further(done, signal="go"), UnsupportedOperationError, "has ended"),
            (client, further(task, "elsewhere", **yes), InvalidParamsError, "another context"),
            (client, text("Yes", task_id=task.id), InvalidParamsError, "one data part"),
            (client, further(task, **yes, n=1), InvalidParamsError, "n: Extra"),
            (client, further(task, approval_id=approval, decision="maybe"), InvalidParamsError, "decision: "),
            (client, further(task, **yes, value={"n": "x"}), InvalidParamsError, "value.n"),
            (client, further(task, approval_id=str(hidden), decision="approved"), InvalidRequestError, "not ask you"),
            (
                unasked,
                further(theirs, approval_id=str(hidden), decision="approved"),
                InvalidRequestError,
                "not ask you",
            ),
            (waiting, further(waits, signal="Go"), InvalidParamsError, "signal: "),
            (waiting, further(waits, signal="x" * 64), InvalidParamsError, "signal: "),
        ]
        for who, request, kind, words in cases:
            with pytest.raises(kind, match=words):
                await sent(who, request)
    assert await desk.shop.operator.fetchval(OPEN, uuid.UUID(task.id)) == uuid.UUID(approval)
    assert await desk.shop.operator.fetchval(OPEN, uuid.UUID(theirs.id)) == hidden
    assert (
        await desk.shop.operator.fetchval(
            "select count(*) from workflow_approval_votes where user_id = $1", user.identity.user_id
        )
        == 0
    )
    assert (
        await desk.shop.operator.fetchval(
            "select count(*) from workflow_signals where user_id = $1", user.identity.user_id
        )
        == 0
    )


async def test_a_key_of_an_engine_is_asked_nothing_and_tells_nothing(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(TWICE)
    key = (await desk.shop.key(user, engine.slug))[0]
    async with connected(desk, key, engine.slug) as client:
        task = await sent(client, data(n=1))
        assert (state(task), asked(task)) == ("input_required", [])
        approval = await desk.shop.operator.fetchval(OPEN, uuid.UUID(task.id))
        for told in ({"approval_id": str(approval), "decision": "approved"}, {"signal": "go"}):
            with pytest.raises(InvalidRequestError, match="scope chat"):
                await sent(client, further(task, **told))
    assert await desk.shop.operator.fetchval(OPEN, uuid.UUID(task.id)) == approval


async def test_a_stream_tells_of_a_tree_whose_usage_is_the_ledgers(desk: Served) -> None:
    user = await desk.shop.person()
    writer = await desk.save(
        agent(calls(("artifact_save", {"name": "poem", "content": "Roses"})), says("Written."), tools=["artifact_save"])
    )
    slug = await desk.save(
        agent(calls((f"delegate_to_{writer}", {"task": "A poem"})), says("Here."), delegates=[writer])
    )
    async with connected(desk, user, f"agent_{slug}", streaming=True) as client:
        told = [event async for event in client.send_message(text("Write"))]
        task = await client.get_task(types.GetTaskRequest(id=told[0].task.id))
    assert state(told[-1].status_update) == "completed"
    assert told[-1].status_update.status.timestamp == task.status.timestamp
    names = [event.artifact_update.artifact.name for event in told if event.HasField("artifact_update")]
    assert sorted(names) == ["output", "poem"]
    assert sorted(one.name for one in task.artifacts) == ["output", "poem"]
    found, root = usage(task), usage(task)["runs"][0]
    assert [run["agent"] for run in found["runs"]] == [slug, writer]
    assert found["runs"][1]["parent_run_id"] == root["run_id"]
    charged = await desk.charged(uuid.UUID(root["run_id"]))
    assert sum(run["charged_tokens"] for run in found["runs"]) == found["charged_tokens"] == charged > 0


async def test_ones_own_tasks_of_an_agent_are_listed_by_page_and_context(desk: Served, doubling: Made) -> None:
    user, other, twin = await desk.shop.person(), await desk.shop.person(), await desk.shop.deploy()
    async with connected(desk, user, twin.slug) as client:
        await sent(client, data())
    async with connected(desk, user, doubling.slug) as client:
        first = await sent(client, data(n=1))
        rest = [await sent(client, data(context=context, n=2)) for context in (first.id, "a/b", "a")]
        newest = [task.id for task in (first, *rest)][::-1]
        page = await client.list_tasks(types.ListTasksRequest(page_size=3))
        assert ([task.id for task in page.tasks], page.total_size) == (newest[:3], 4)
        last = await client.list_tasks(types.ListTasksRequest(page_size=3, page_token=page.next_page_token))
        assert ([task.id for task in last.tasks], last.next_page_token) == (newest[3:], "")
        for context, ids in ((first.id, [rest[0].id, first.id]), ("a/b", [rest[1].id]), ("a", [rest[2].id]), ("x", [])):
            found = await client.list_tasks(types.ListTasksRequest(context_id=context))
            assert [task.id for task in found.tasks] == ids
        with pytest.raises(UnsupportedOperationError):
            await client.list_tasks(types.ListTasksRequest(status=types.TASK_STATE_WORKING))
    async with connected(desk, other, doubling.slug) as client:
        assert (await client.list_tasks(types.ListTasksRequest())).total_size == 0


async def test_tasks_are_listed_by_the_time_of_their_state(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS)
    async with connected(desk, user, engine.slug, polling=True) as client:
        first, second, third = [await sent(client, data()) for _ in range(3)]
        await client.cancel_task(types.CancelTaskRequest(id=second.id))
        await client.cancel_task(types.CancelTaskRequest(id=first.id))
        listed, token = [], ""
        while page := await client.list_tasks(types.ListTasksRequest(page_size=1, page_token=token)):
            listed += page.tasks
            token = page.next_page_token
            if not token:
                break
    assert [task.id for task in listed] == [first.id, second.id, third.id]
    times = [task.status.timestamp.ToDatetime() for task in listed]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    ("method", "params", "version", "code"),
    [
        ("GetTask", {"id": "x"}, "1.0", -32001),
        ("GetTask", {"id": "x"}, "1.0.7", -32001),  # the patch is not looked at
        ("GetTask", {"id": "x"}, "", -32009),  # empty is 0.3
        ("GetTask", {"id": "x"}, None, -32009),
        ("GetTask", {"id": "x"}, "2.0", -32009),
        ("GetTask", {"id": 7}, "1.0", -32602),
        ("GetTask", [], "1.0", -32602),
        ("GetExtendedAgentCard", {}, "1.0", -32004),
        ("CancelTask", {"id": "x"}, "1.0", -32001),
        ("SubscribeToTask", {"id": "x"}, "1.0", -32001),
        ("SendMessage", {"message": {}}, "1.0", -32602),
        ("Nothing", {}, "1.0", -32601),
    ],
)
async def test_what_the_protocol_refuses_has_its_code(
    desk: Served, doubling: Made, method: str, params: object, version: str | None, code: int
) -> None:
    user = await desk.shop.person()
    headers = user.headers | ({} if version is None else {"A2A-Version": version})
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    async with (
        aiohttp.ClientSession(desk.address, headers=headers) as http,
        http.post(f"/a2a/{doubling.slug}", json=call) as answer,
    ):
        told = await answer.text()
    body = json.loads(told.removeprefix("event: error").strip().removeprefix("data: "))
    assert (body["id"], body["error"]["code"], bool(body["error"]["message"])) == (1, code, True)


async def test_a_key_of_an_engine_is_an_agent_of_that_one(desk: Served, doubling: Made) -> None:
    user, other = await desk.shop.person(), await desk.shop.deploy()
    key, twin = [(await desk.shop.key(user, doubling.slug))[0] for _ in range(2)]
    async with connected(desk, key, doubling.slug) as client:
        task = await sent(client, data(n=2))
        assert MessageToDict(task.artifacts[0].parts[0])["data"] == 4
    async with connected(desk, twin, doubling.slug) as client:
        with pytest.raises(TaskNotFoundError):
            await client.get_task(types.GetTaskRequest(id=task.id))
    with pytest.raises(AgentCardResolutionError):
        async with connected(desk, key, other.slug):
            pass


async def test_who_waits_looks_at_most_every_quarter_of_a_second_when_nothing_happens(
    desk: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS)
    look, clock, began = Worker.look, asyncio.get_running_loop().time, [0.0]

    async def seen(worker: Worker, attended: Attended) -> None:
        began.append(clock())
        await look(worker, attended)

    monkeypatch.setattr(Worker, "look", seen)
    async with connected(desk, user, engine.slug) as client, asyncio.timeout(20):
        call = asyncio.create_task(sent(client, data()))
        run = await desk.latest(user, "running")
        while len(began) < 10:
            await asyncio.sleep(0.02)
        assert min(later - sooner for sooner, later in pairwise(began[-4:])) > 0.2  # the first are sooner
        await desk.shop.operator.fetchval("select signal_execution($1, 'go')", run)
        assert state(await call) == "completed"


async def test_a_client_that_leaves_its_stream_keeps_no_place(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS)
    async with connected(desk, user, engine.slug, streaming=True) as client:
        await anext(client.send_message(data()))
        async with asyncio.timeout(5):
            while desk.app.state.streams.open != 1:
                await asyncio.sleep(0.01)
    await desk.nobody_waits()
    await desk.shop.operator.fetchval("select cancel_execution($1)", await desk.latest(user, "running"))


async def test_a_key_that_is_revoked_is_told_nothing_more_within_a_second(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS)
    async with connected(desk, user, engine.slug) as client:
        call = asyncio.create_task(sent(client, data()))
        await desk.latest(user, "running")
        await desk.shop.operator.execute("select revoke_api_key($1)", user.key_id)
        async with asyncio.timeout(1):
            with pytest.raises(InvalidRequestError, match="revoked"):
                await call
