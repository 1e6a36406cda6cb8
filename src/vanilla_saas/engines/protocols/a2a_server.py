"""The A2A methods of one engine or agent for one request: a task is a run, so every method is a look at ours.

Only this file imports the library, so whoever is never asked for `/a2a` has none of it in memory.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

import structlog
from a2a.server.context import ServerCallContext
from a2a.server.events.event_queue import Event
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types import a2a_pb2 as types
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InternalError,
    InvalidParamsError,
    InvalidRequestError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from a2a.utils.proto_utils import validate_proto_required_fields
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import runs
from vanilla_saas.engines.protocols import a2a_tasks as tasks
from vanilla_saas.engines.protocols import calls, notifications
from vanilla_saas.engines.protocols.calls import Offer, State
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.tenancy.identity import Caller, again

log = structlog.get_logger()
T = TypeVar("T", bound=Message)
MOST_LISTED = 100
LOOK_S = 0.1
"""The least between two looks at all of a run that goes on, however often one of its steps ends."""
_BAD_PARAMS = {"invalid_request", "invalid_input", "idempotency_key_reused"}


def card(offer: Offer, url: str) -> Response:
    """The agent card of what a caller may run."""
    return JSONResponse(agent_card_to_dict(ParseDict(tasks.card(offer, url), types.AgentCard())))


async def answer(request: Request, caller: Caller, offer: Offer) -> Response:
    """One JSON-RPC request."""
    response: Response = await JsonRpcDispatcher(Methods(request, caller, offer)).handle_requests(request)
    return response


@contextmanager
def _refusals() -> Iterator[None]:
    """Refusals as errors of the protocol, with our code; what may not be seen is what is not there."""
    try:
        yield
    except A2AError:
        raise
    except InvalidRequest as error:
        raise InvalidParamsError(str(error), {"code": error.code}) from None
    except VanillaError as error:
        if error.name == "not_found":
            raise TaskNotFoundError from None
        kind = InvalidParamsError if error.name in _BAD_PARAMS else InvalidRequestError
        raise kind(error.message, error.problem()) from None
    except Exception as error:
        log.error("a2a_call_failed", exc_info=error)
        raise InternalError("Something failed on our side.") from None


class Methods(RequestHandler):
    """What a caller may do with one engine or agent."""

    def __init__(self, request: Request, caller: Caller, offer: Offer):
        self._request, self._caller, self._offer = request, caller, offer

    async def on_message_send(self, params: types.SendMessageRequest, context: ServerCallContext) -> types.Task:
        """Begins or tells a run and, unless it is to return immediately, waits until it has ended or asks people."""
        with _refusals():
            found = await self._state(await self._send(params))
            if not params.configuration.return_immediately:
                found = await self._settled(found)
            return self._task(found, params.configuration)

    async def on_message_send_stream(
        self, params: types.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        """Begins or tells a run and says what becomes of it to its end; a client that leaves subscribes again."""
        with _refusals():
            found = await self._state(await self._send(params))
            async with aclosing(self._events(found)) as events:
                async for event in events:
                    yield event

    async def on_subscribe_to_task(
        self, params: types.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        """Tells of a run from now to its end."""
        with _refusals():
            found = await self._state(_id(params.id))
            if found[0]["finished_at"] is not None:
                raise UnsupportedOperationError("The task has ended.")
            async with aclosing(self._events(found)) as events:
                async for event in events:
                    yield event

    async def on_get_task(self, params: types.GetTaskRequest, context: ServerCallContext) -> types.Task:
        with _refusals():
            return self._task(await self._state(_id(params.id)), params)

    async def on_cancel_task(self, params: types.CancelTaskRequest, context: ServerCallContext) -> types.Task:
        with _refusals():
            run = (await self._state(_id(params.id)))[0]
            if run["finished_at"] is not None:
                raise TaskNotCancelableError
            await calls.cancel(self._request, self._caller, run["execution_id"], "cancelled by the client")
            return self._task(await self._state(run["execution_id"]))

    async def on_list_tasks(
        self, params: types.ListTasksRequest, context: ServerCallContext
    ) -> types.ListTasksResponse:
        """The caller's own tasks of this agent, last changed first."""
        with _refusals():
            size = params.page_size if params.HasField("page_size") else MOST_LISTED // 2
            if params.status or params.HasField("status_timestamp_after"):
                raise UnsupportedOperationError("Tasks are listed by context, not by status or time.")
            if not 1 <= size <= MOST_LISTED:
                raise InvalidParamsError(f"A page has 1 to {MOST_LISTED} tasks.")
            before = _id(params.page_token) if params.page_token else None
            context_id, prefix = quote(params.context_id, safe=""), tasks.prefix_of(self._offer)
            found, total = await calls.begun(self._request, self._caller, prefix, context_id, before, size + 1)
            page = [self._task(await self._state(one), params) for one in found[:size]]
            more = page[-1].id if len(found) > size else ""
            return types.ListTasksResponse(tasks=page, next_page_token=more, page_size=size, total_size=total)

    async def on_get_extended_agent_card(
        self, params: types.GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> types.AgentCard:
        raise UnsupportedOperationError("There is one card, which whoever asks for it gets.")

    async def on_create_task_push_notification_config(
        self, params: types.TaskPushNotificationConfig, context: ServerCallContext
    ) -> types.TaskPushNotificationConfig:
        """Has a task of the caller's told to an address; one of the same id is replaced, the task's without one."""
        with _refusals():
            validate_proto_required_fields(params)
            run = (await self._state(_id(params.task_id)))[0]
            return await self._notify(run, params, self._notification(params))

    async def on_get_task_push_notification_config(
        self, params: types.GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> types.TaskPushNotificationConfig:
        """Address and id; token and credentials are not shown again."""
        with _refusals():
            for config in await self._configs(params.task_id):
                if config.id == params.id:
                    return config
            raise TaskNotFoundError("The task has no such push notification.")

    async def on_list_task_push_notification_configs(
        self, params: types.ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> types.ListTaskPushNotificationConfigsResponse:
        """Those of a task by id."""
        with _refusals():
            size = params.page_size or MOST_LISTED
            if not 1 <= size <= MOST_LISTED:
                raise InvalidParamsError(f"A page has 1 to {MOST_LISTED} push notifications.")
            found = [one for one in await self._configs(params.task_id) if one.id > params.page_token]
            more = found[size - 1].id if len(found) > size else ""
            return types.ListTaskPushNotificationConfigsResponse(configs=found[:size], next_page_token=more)

    async def on_delete_task_push_notification_config(
        self, params: types.DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """One that is not there is deleted already."""
        with _refusals():
            execution_id = (await self._state(_id(params.task_id)))[0]["execution_id"]
            await notifications.delete(self._request, self._caller, execution_id, params.id)

    async def _send(self, params: types.SendMessageRequest) -> UUID:
        """The run that a message begins or is for. Raises A2AError, VanillaError."""
        validate_proto_required_fields(params)
        message, config = params.message, None
        if params.configuration.HasField("task_push_notification_config"):
            config = params.configuration.task_push_notification_config
        notification = None if config is None else self._notification(config)
        parts = [_whole(MessageToDict(part)) for part in message.parts]
        execution_id = await (self._tell(message, parts) if message.task_id else self._begin(message, parts))
        if config is not None and notification is not None:
            # what it has missed meanwhile it is told at once
            await self._notify((await self._state(execution_id))[0], config, notification)
        return execution_id

    def _notification(self, config: types.TaskPushNotificationConfig) -> notifications.Notification:
        """What a client asks for, before anything is done. Raises VanillaError `invalid_request`."""
        said = config.authentication
        return notifications.checked(self._request, config.url, config.token, said.scheme, said.credentials)

    async def _notify(
        self, run: dict[str, Any], config: types.TaskPushNotificationConfig, notification: notifications.Notification
    ) -> types.TaskPushNotificationConfig:
        """The config as it is kept. Raises VanillaError."""
        execution_id = run["execution_id"]
        kept = types.TaskPushNotificationConfig()
        kept.CopyFrom(config)
        kept.task_id, kept.id, kept.url = str(execution_id), config.id or str(execution_id), notification.url
        context_id = tasks.context_of(run)
        await notifications.put(self._request, self._caller, execution_id, kept.id, context_id, notification)
        return kept

    async def _configs(self, task_id: str) -> list[types.TaskPushNotificationConfig]:
        execution_id = (await self._state(_id(task_id)))[0]["execution_id"]
        found = await notifications.found(self._request, self._caller, execution_id)
        return [
            types.TaskPushNotificationConfig(task_id=str(execution_id), id=one["config_id"], url=one["url"])
            for one in found
        ]

    async def _tell(self, message: types.Message, parts: list[dict[str, Any]]) -> UUID:
        """A signal or a decision for a run. Raises TaskNotFoundError, UnsupportedOperationError, VanillaError."""
        run = (await self._state(_id(message.task_id)))[0]
        if message.context_id and message.context_id != tasks.context_of(run):
            raise InvalidParamsError("The task is of another context.")
        if run["finished_at"] is not None:
            raise UnsupportedOperationError("The task has ended.")
        self._request.app.state.streams.refuse_when_full()
        await calls.tell(self._request, self._caller, run, tasks.told_to_task(parts))
        execution_id: UUID = run["execution_id"]
        return execution_id

    async def _begin(self, message: types.Message, parts: list[dict[str, Any]]) -> UUID:
        """The same message again is the same run. Raises ContentTypeNotSupportedError, VanillaError."""
        try:
            given = tasks.input_of_message(self._offer, parts)
        except ValueError:
            raise ContentTypeNotSupportedError("Parts are texts, or one data part.") from None
        key = tasks.key_of(self._offer, message.context_id, message.message_id)
        self._request.app.state.streams.refuse_when_full()
        return (await calls.start(self._request, self._caller, self._offer, given, key)).execution_id

    async def _state(self, execution_id: UUID) -> State:
        found = await calls.state(self._request, self._caller, execution_id)
        if (found[0]["engine_id"] or found[0]["agent_id"]) != self._offer.id:
            raise TaskNotFoundError
        return found

    async def _settled(self, found: State) -> State:
        """The run when it has ended or asks people, or as it is when the time is over or the client has left."""
        async with aclosing(self._looks(found)) as looks:
            async for last in looks:
                found = last
                if last[0]["task_state"] in tasks.ENDED | tasks.ASKS or await self._request.is_disconnected():
                    break
        return found

    async def _looks(self, found: State) -> AsyncGenerator[State]:
        """The run until it has ended, the time is over or the process stops."""
        clock, identify = asyncio.get_running_loop().time, again(self._request, self._caller)
        yield found
        if found[0]["finished_at"] is not None:
            return
        execution_id, seen = found[0]["execution_id"], clock()
        ends = self._request.app.state.ends
        async with aclosing(runs.looks(ends, self._caller, execution_id, calls.WAIT_S, identify)) as looks:
            async for over in looks:
                if over or clock() - seen >= LOOK_S:
                    yield await self._state(execution_id)
                    seen = clock()

    async def _events(self, found: State) -> AsyncGenerator[Event]:
        """The task, then each state that it takes, and each thing that is made."""
        yield self._task(found)
        known, told = tasks.status(found[0]), {one["artifactId"] for one in tasks.artifacts(found[0], found[2])}
        async with aclosing(self._looks(found)) as looks:
            async for run, tree, made in looks:
                ids = {"taskId": str(run["execution_id"]), "contextId": tasks.context_of(run)}
                for one in tasks.artifacts(run, made):
                    if one["artifactId"] not in told:
                        told.add(one["artifactId"])
                        yield ParseDict(ids | {"artifact": one, "lastChunk": True}, types.TaskArtifactUpdateEvent())
                if (status := tasks.status(run)) != known:
                    known = status
                    told_usage = {"metadata": {tasks.USAGE: tasks.usage(run, tree)}}
                    yield ParseDict(ids | {"status": status} | told_usage, types.TaskStatusUpdateEvent())

    def _task(self, found: State, params: Any = None) -> types.Task:
        run, tree, made = found
        told = tasks.task(self._offer, run, tree, made)
        if params is not None and params.HasField("history_length") and params.history_length == 0:
            told.pop("history", None)
        task: types.Task = ParseDict(told, types.Task())
        return task


def _whole(value: Any) -> Any:
    """JSON with its whole numbers as such: the library has every number as a double."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _id(text: str) -> UUID:
    if not text:
        raise InvalidParamsError("The id of the task is missing.")
    try:
        return UUID(text)
    except ValueError:
        raise TaskNotFoundError from None
