"""Push notifications of A2A tasks: a real receiver is told what states a task takes, in their order, by the outbox."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
from a2a.types import a2a_pb2 as types
from a2a.utils.errors import A2AError, InvalidParamsError, InvalidRequestError, TaskNotFoundError
from google.protobuf.json_format import Parse

from tests.conftest import Cluster
from tests.engines.a2a import ASK, TWICE, asked, connected, data, delegating, further, sent, state, text
from tests.engines.served import INPUT, WAITS, Served, served
from tests.engines.shop import asking, plain
from tests.engines.test_task_notifications import another, somebody_waits
from tests.operations.webhook_support import Received, Receiver, receiving
from tests.orchestration.studio import agent, says

Config = types.TaskPushNotificationConfig
PAST_DUE = "update webhook_deliveries set next_attempt_at = now() where state = 'failed'"
HELD = """
    select from workflow_executions where id = (select execution_id from workflow_approvals where id = $1)
    for no key update
"""
KEPT = "select count(*) from webhook_endpoints where execution_id = $1"


@pytest.fixture(scope="module")
async def desk(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(cluster, tmp_path_factory.mktemp("home"), webhooks_to_private=True) as made:
        yield made


@dataclass
class Listener:
    """A client that is told of its tasks."""

    receiver: Receiver

    def config(self, name: str = "", **more: str) -> Config:
        return Config(id=name, url=self.receiver.url, token="of-this-task", **more)

    def states(self, task_id: str) -> list[str]:
        """What it was told of a task, in the order of arrival."""
        updates = [update(one) for one in self.receiver.requests]
        return [state(one) for one in updates if one.task_id == task_id]  # type: ignore[arg-type]

    async def told(self, task_id: str, *states: str) -> None:
        """Waits until it was told so much of the task, which is exactly that."""
        async with asyncio.timeout(15):
            while len(self.states(task_id)) < len(states):
                await asyncio.sleep(0.02)
        assert self.states(task_id) == list(states)


def update(request: Received) -> types.TaskStatusUpdateEvent:
    return Parse(request.body, types.StreamResponse()).status_update


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with receiving() as receiver:
        yield Listener(receiver)


async def test_what_is_asked_for_with_the_first_message_is_told_every_state_in_order(
    desk: Served, listener: Listener
) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(TWICE)
    config = listener.config()
    config.authentication.CopyFrom(types.AuthenticationInfo(scheme="Bearer", credentials="s3cret"))
    async with connected(desk, user, engine.slug) as client:
        task = await sent(client, data(n=1, context="letters", tell=config))
        for _ in range(2):
            (one,) = asked(task)
            answer = further(task, approval_id=one["approval_id"], decision="approved")
            task = await sent(client, answer)
        await listener.told(task.id, "input_required", "working", "input_required", "working", "completed")
    first = listener.receiver.requests[0]
    assert first.headers["x-a2a-notification-token"] == "of-this-task"
    assert first.headers["authorization"] == "Bearer s3cret"
    assert first.headers["content-type"] == "application/a2a+json"
    last = update(listener.receiver.requests[-1])
    assert (last.context_id, last.status.timestamp) == ("letters", task.status.timestamp)
    assert len({one.id for one in listener.receiver.requests}) == 5
    kept = await desk.shop.operator.fetchval(
        "select secret from webhook_endpoints where execution_id = $1", uuid.UUID(task.id)
    )
    assert b"of-this-task" not in kept


async def test_every_kind_of_end_is_told_once(desk: Served, listener: Listener) -> None:
    user = await desk.shop.person()
    ends = {
        "computed": (plain("input.n", input=INPUT, output="steps.a.output"), "completed"),
        "in a batch": (plain("1", input=INPUT), "completed"),
        "of a model": (asking(input=INPUT), "completed"),
        "failed": (plain("1 / 0", input=INPUT), "failed"),
    }
    for definition, last in ends.values():
        engine = await desk.shop.deploy(definition)
        async with connected(desk, user, engine.slug) as client:
            task = await sent(client, data(n=1, tell=listener.config()))
        await listener.told(task.id, last)
    engine = await desk.shop.deploy(WAITS | {"input": INPUT})
    async with connected(desk, user, engine.slug, polling=True) as client:
        task = await sent(client, data(n=1, tell=listener.config()))
        await client.cancel_task(types.CancelTaskRequest(id=task.id))
    await listener.told(task.id, "canceled")
    slug = await desk.save(agent(says("Hello.")))
    async with connected(desk, user, f"agent_{slug}") as client:
        request = text("Hi")
        request.configuration.task_push_notification_config.CopyFrom(listener.config())
        task = await sent(client, request)
    await listener.told(task.id, "completed")


async def test_many_that_end_at_once_are_told_one_by_one(desk: Served, listener: Listener) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS | {"input": INPUT})
    async with connected(desk, user, engine.slug, polling=True) as client:
        tasks = [await sent(client, data(n=n, tell=listener.config())) for n in range(5)]
    webhook = await desk.shop.operator.fetchval(
        "select count(*) from events where type = 'workflow.succeeded' and user_id = $1", user.identity.user_id
    )
    for task in tasks:
        await desk.shop.operator.fetchval("select signal_execution($1, 'go')", uuid.UUID(task.id))
    for task in tasks:
        await listener.told(task.id, "completed")
    after = await desk.shop.operator.fetchval(
        "select count(*) from events where type = 'workflow.succeeded' and user_id = $1", user.identity.user_id
    )
    assert after - webhook == 5


async def test_what_a_delegate_asks_is_told_to_the_task(desk: Served, listener: Listener) -> None:
    user = await desk.shop.person()
    slug = await delegating(desk)
    async with connected(desk, user, f"agent_{slug}") as client:
        request = text("Please")
        request.configuration.task_push_notification_config.CopyFrom(listener.config())
        task = await sent(client, request)
        await listener.told(task.id, "input_required")
        (one,) = asked(task)
        # what the delegate does this moment is waited for by who is to be told from now on
        async with another(desk.shop) as other, other.transaction():
            await other.execute(HELD, uuid.UUID(one["approval_id"]))
            late = listener.config("late", task_id=task.id)
            making = asyncio.create_task(client.create_task_push_notification_config(late))
            await somebody_waits(other)
        await making
        await listener.told(task.id, "input_required", "input_required")
        gone = types.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="late")
        await client.delete_task_push_notification_config(gone)
        await sent(client, further(task, approval_id=one["approval_id"], decision="approved"))
    await listener.told(task.id, "input_required", "input_required", "working", "completed")


async def test_an_escalation_is_told(desk: Served, listener: Listener) -> None:
    user = await desk.shop.person()
    ask = ASK | {"id": "one", "deadline_s": 60, "on_deadline": "escalate", "escalate_to": ["role:admin"]}
    engine = await desk.shop.deploy({"input": INPUT, "nodes": [ask], "connections": []})
    async with connected(desk, user, engine.slug) as client:
        task = await sent(client, data(n=1, tell=listener.config()))
    await desk.shop.operator.execute(
        "update workflow_timers set due_at = now() where execution_id = $1 and kind = 'approval'", uuid.UUID(task.id)
    )
    await listener.told(task.id, "input_required", "input_required")


async def test_who_answers_500_is_told_again_and_of_what_came_after_only_then(desk: Served, listener: Listener) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(TWICE)
    listener.receiver.script = [500, 500]
    async with connected(desk, user, engine.slug) as client:
        task = await sent(client, data(n=1, tell=listener.config()))
        (one,) = asked(task)
        await listener.told(task.id, "input_required")
        await sent(client, further(task, approval_id=one["approval_id"], decision="rejected"))
    for n in (2, 3):
        while not await desk.shop.operator.fetchval(
            "select exists (select from webhook_deliveries where state = 'failed')"
        ):
            await asyncio.sleep(0.02)
        await desk.shop.operator.execute(PAST_DUE)
        async with asyncio.timeout(15):
            while len(listener.receiver.requests) < n:
                await asyncio.sleep(0.02)
    await listener.told(task.id, *["input_required"] * 3, "working", "completed")
    assert len({one.id for one in listener.receiver.requests}) == 3


async def test_a_config_is_made_shown_listed_replaced_and_deleted(desk: Served, listener: Listener) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS | {"input": INPUT})
    async with connected(desk, user, engine.slug, polling=True) as client, receiving() as other:
        task = await sent(client, data(n=1))
        made = await client.create_task_push_notification_config(listener.config(task_id=task.id))
        assert (made.id, made.task_id, made.token) == (task.id, task.id, "of-this-task")
        await client.create_task_push_notification_config(listener.config("b", task_id=task.id))
        await client.create_task_push_notification_config(listener.config("a", task_id=task.id))
        ask = types.ListTaskPushNotificationConfigsRequest(task_id=task.id, page_size=2)
        page = await client.list_task_push_notification_configs(ask)
        assert ([one.id for one in page.configs], page.next_page_token) == ([task.id, "a"], "a")
        ask.page_token = page.next_page_token
        page = await client.list_task_push_notification_configs(ask)
        assert ([one.id for one in page.configs], page.next_page_token) == (["b"], "")
        gone = types.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="b")
        for _ in range(2):
            await client.delete_task_push_notification_config(gone)
        for name in ("b", "never"):
            with pytest.raises(TaskNotFoundError):
                await client.get_task_push_notification_config(
                    types.GetTaskPushNotificationConfigRequest(task_id=task.id, id=name)
                )
        # the same id is the same config, and shows no token
        await client.create_task_push_notification_config(Config(task_id=task.id, id="a", url=other.url))
        found = await client.get_task_push_notification_config(
            types.GetTaskPushNotificationConfigRequest(task_id=task.id, id="a")
        )
        assert found == Config(task_id=task.id, id="a", url=other.url)
        await desk.shop.operator.fetchval("select signal_execution($1, 'go')", uuid.UUID(task.id))
        await listener.told(task.id, "completed")
        async with asyncio.timeout(15):
            while not other.requests:
                await asyncio.sleep(0.02)
        assert "x-a2a-notification-token" not in other.requests[0].headers
        # one that is made when all is over is told so, and once
        for _ in range(2):
            await client.create_task_push_notification_config(listener.config("late", task_id=task.id))
        await listener.told(task.id, "completed", "completed")
    assert len(other.requests) == 1


async def test_a_deleted_config_is_told_nothing(desk: Served, listener: Listener) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(TWICE)
    listener.receiver.script = [500]
    async with connected(desk, user, engine.slug) as client, receiving() as other:
        task = await sent(client, data(n=1, tell=listener.config()))
        await client.create_task_push_notification_config(Config(task_id=task.id, id="stays", url=other.url))
        await listener.told(task.id, "input_required")
        await client.delete_task_push_notification_config(
            types.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id=task.id)
        )
        await client.cancel_task(types.CancelTaskRequest(id=task.id))
        async with asyncio.timeout(15):
            while len(other.requests) < 2:
                await asyncio.sleep(0.02)
    assert listener.states(task.id) == ["input_required"]
    assert await desk.shop.operator.fetchval(KEPT, uuid.UUID(task.id)) == 1


async def test_a_task_that_is_anothers_has_no_configs(desk: Served, listener: Listener) -> None:
    user, other = await desk.shop.person(), await desk.shop.person()
    engine, twin = await desk.shop.deploy(WAITS | {"input": INPUT}), await desk.shop.deploy()
    tenant = await desk.shop.room.people.tenant()
    outside = await desk.shop.room.people.user("admin", tenant_id=tenant)
    flow = await desk.shop.room.publish(plain("1"), outside)
    made = await desk.shop.ask(outside, "deploy_engine", engine.slug, flow)
    await desk.shop.ask(outside, "set_engine", uuid.UUID(made["engine_id"]), p_default_access="execute")
    key, second = [(await desk.shop.key(user, engine.slug))[0] for _ in range(2)]
    async with (
        connected(desk, user, engine.slug, polling=True) as client,
        connected(desk, key, engine.slug, polling=True) as site,
    ):
        task = await sent(client, data(n=1, tell=listener.config("mine")))
        of_site = await sent(site, data(n=1, tell=listener.config("mine")))
    tries = [(other, engine.slug, task.id), (outside, engine.slug, task.id), (user, twin.slug, task.id)]
    tries += [(second, engine.slug, of_site.id), (key, engine.slug, task.id)]
    words = set()
    for who, name, task_id in tries:
        async with connected(desk, who, name) as client:
            for id_ in (task_id, str(uuid.uuid4()), "x"):
                for call in (
                    client.create_task_push_notification_config(listener.config("mine", task_id=id_)),
                    client.get_task_push_notification_config(
                        types.GetTaskPushNotificationConfigRequest(task_id=id_, id="mine")
                    ),
                    client.list_task_push_notification_configs(
                        types.ListTaskPushNotificationConfigsRequest(task_id=id_)
                    ),
                    client.delete_task_push_notification_config(
                        types.DeleteTaskPushNotificationConfigRequest(task_id=id_, id="mine")
                    ),
                ):
                    with pytest.raises(TaskNotFoundError) as refused:
                        await call
                    words.add((refused.value.message, str(refused.value.data)))
    assert len(words) == 1
    for one in (task, of_site):
        await desk.shop.operator.fetchval("select signal_execution($1, 'go')", uuid.UUID(one.id))
        await listener.told(one.id, "completed")


async def test_a_config_that_cannot_be_is_refused(desk: Served, listener: Listener) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS | {"input": INPUT})
    bearer = types.AuthenticationInfo
    async with connected(desk, user, engine.slug, polling=True) as client:
        task = await sent(client, data(n=1))
        cases: list[tuple[Config, type[A2AError], str]] = [
            (Config(task_id=task.id), InvalidParamsError, "Validation"),
            (Config(task_id=task.id, url="file:///etc/passwd"), InvalidParamsError, "https://"),
            (Config(task_id=task.id, url="https://me:word@example.test/"), InvalidParamsError, "no password"),
            (Config(task_id=task.id, url=listener.receiver.url, token="a\r\nb: c"), InvalidParamsError, "header"),
            (Config(task_id=task.id, url=listener.receiver.url, token="x" * 4097), InvalidParamsError, "4096"),
            (
                Config(task_id=task.id, url=listener.receiver.url, authentication=bearer(scheme="A b")),
                InvalidParamsError,
                "a word",
            ),
            (Config(task_id=task.id, url=listener.receiver.url, id="x" * 256), InvalidParamsError, "config_check"),
        ]
        for config, kind, words in cases:
            with pytest.raises(kind, match=words):
                await client.create_task_push_notification_config(config)
        assert await desk.shop.operator.fetchval(KEPT, uuid.UUID(task.id)) == 0
        for n in range(10):
            await client.create_task_push_notification_config(listener.config(f"{n}", task_id=task.id))
        with pytest.raises(InvalidRequestError, match="at most 10"):
            await client.create_task_push_notification_config(listener.config("more", task_id=task.id))
        await client.create_task_push_notification_config(listener.config("9", task_id=task.id))
        await client.cancel_task(types.CancelTaskRequest(id=task.id))


async def test_configs_are_no_webhooks_of_the_tenant_and_hear_nothing_else(desk: Served, listener: Listener) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS | {"input": INPUT})
    admin = await desk.shop.room.people.user("admin", scopes=["admin", "read"])
    async with receiving() as hook, aiohttp.ClientSession(desk.address, headers=admin.headers) as http:
        async with connected(desk, user, engine.slug, polling=True) as client:
            tasks = [await sent(client, data(n=n, tell=listener.config())) for n in range(21)]
            await client.create_task_push_notification_config(listener.config("gone", task_id=tasks[0].id))
        async with http.post("/api/v1/webhooks", json={"url": hook.url, "event_types": ["*"]}) as answer:
            assert answer.status == 201
            made = (await answer.json())["id"]
        async with http.get("/api/v1/webhooks") as answer:
            assert [one["id"] for one in (await answer.json())["items"]] == [made]
        config = await desk.shop.operator.fetchval(
            "select id from webhook_endpoints where execution_id = $1 and config_id = 'gone'", uuid.UUID(tasks[0].id)
        )
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("GET", "/deliveries")):
            async with http.request(method, f"/api/v1/webhooks/{config}{path}") as answer:
                assert (answer.status, (await answer.json())["detail"]) == (404, "no such webhook")
        # it is gone for good when it says so, and no admin hears of it
        listener.receiver.script = [410, 410]
        await desk.shop.operator.fetchval("select signal_execution($1, 'go')", uuid.UUID(tasks[0].id))
        await listener.told(tasks[0].id, "completed", "completed")
        async with asyncio.timeout(15):
            while not await desk.shop.operator.fetchval(
                "select status = 'disabled' from webhook_endpoints where id = $1", config
            ):
                await asyncio.sleep(0.02)
        await desk.shop.operator.fetchval("select signal_execution($1, 'go')", uuid.UUID(tasks[1].id))
        await listener.told(tasks[1].id, "completed")
        async with asyncio.timeout(15):
            while "workflow.succeeded" not in {json.loads(one.body)["type"] for one in hook.requests}:
                await asyncio.sleep(0.02)
        heard = {json.loads(one.body)["type"] for one in hook.requests}
        assert "task.state" not in heard
        assert "webhook.disabled" not in heard
        async with http.delete(f"/api/v1/webhooks/{made}") as answer:
            assert answer.status == 204
