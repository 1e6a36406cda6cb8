"""The stock client of A2A, what it sends, and what is told to it."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from a2a.client.client import Client, ClientConfig
from a2a.client.client_factory import create_client
from a2a.helpers import proto_helpers as parts
from a2a.types import a2a_pb2 as types
from google.protobuf.json_format import MessageToDict

from tests.conftest import Person
from tests.engines.served import INPUT, Served
from tests.orchestration.studio import agent, calls, says
from vanilla_saas.engines.protocols.a2a_tasks import USAGE

OPEN = "select id from workflow_approvals where execution_id = $1 and status = 'open'"
ASK = {
    "kind": "approval",
    "title": "First",
    "of": "input",
    "approvers": ["role:user"],
    "edit": {"type": "object", "properties": {"n": {"type": "integer"}}},
}
TWICE = {
    "input": INPUT,
    "nodes": [
        {"id": "one", **ASK},
        {"id": "two", **ASK, "title": "Second", "of": "steps.one.output.value"},
        {"id": "use", "kind": "transform", "value": "steps.two.output.value.n"},
    ],
    "connections": [{"from": "one", "to": "two", "on": "approved"}, {"from": "two", "to": "use", "on": "approved"}],
    "output": "steps.use.output",
}


@asynccontextmanager
async def connected(
    desk: Served, who: Person | str, name: str, streaming: bool = False, polling: bool = False
) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {who if isinstance(who, str) else who.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=30, trust_env=False) as http:
        config = ClientConfig(streaming=streaming, polling=polling, httpx_client=http)
        yield await create_client(f"{desk.address}/a2a/{name}", config)


def data(
    message_id: str | None = None,
    context: str = "",
    tell: types.TaskPushNotificationConfig | None = None,
    **given: Any,
) -> types.SendMessageRequest:
    message = parts.new_data_message(given, context_id=context, role=types.ROLE_USER)
    message.message_id = message_id or uuid.uuid4().hex
    configuration = types.SendMessageConfiguration(task_push_notification_config=tell) if tell else None
    return types.SendMessageRequest(message=message, configuration=configuration)


def text(said: str, **more: Any) -> types.SendMessageRequest:
    return types.SendMessageRequest(message=parts.new_text_message(said, role=types.ROLE_USER, **more))


def further(task: types.Task, context: str = "", **given: Any) -> types.SendMessageRequest:
    request = data(context=context, **given)
    request.message.task_id = task.id
    return request


def asked(task: types.Task) -> list[dict[str, Any]]:
    """What a task asks of its caller."""
    told = [part for part in task.status.message.parts if part.HasField("data")]
    return MessageToDict(told[0])["data"]["approvals"] if told else []


async def sent(client: Client, request: types.SendMessageRequest) -> types.Task:
    told = [event async for event in client.send_message(request)]
    return told[-1].task


def state(task: types.Task) -> str:
    return types.TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower()


def usage(task: types.Task) -> dict[str, Any]:
    return MessageToDict(task.metadata)[USAGE]


async def delegating(desk: Served) -> str:
    """An agent who asks another to pay something back, who asks people before."""
    tool = {"tool": "refund", "approval": {"approvers": ["role:user"]}}
    payer = await desk.save(agent(calls(("refund", {"amount": 7})), says("Paid."), tools=[tool]))
    task = calls((f"delegate_to_{payer}", {"task": "Pay it back"}))
    return await desk.save(agent(task, says("Done."), delegates=[payer]))
