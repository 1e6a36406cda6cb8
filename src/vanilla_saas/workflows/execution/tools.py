"""Tools: functions of the operator that nodes of the kind `tool` call.

    @tool
    async def find_customer(email: str, context: ToolContext) -> dict[str, str]:
        "Looks a customer up by the address."

Arguments come from the definition as JSON, are checked against the type hints and handed over by name. The function
runs in the worker's process with the worker's rights: it is the operator's own code, unlike everything else in a
definition.
"""

import asyncio
import contextvars
import importlib
import inspect
import threading
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from queue import Empty, SimpleQueue
from typing import Any, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticSerializationError, to_jsonable_python

from vanilla_saas.workflows.execution.failures import Failure

MCP = "mcp/"
"""How names of tools of MCP servers begin."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """For whom a tool is called; a parameter of this type is filled by the worker and is no argument."""

    tenant_id: str
    user_id: str
    execution_id: str
    node: str
    item: int | None
    attempt: int
    round: int = 0
    """How often a gate has sent the step back."""
    key: str | None = None
    """The idempotency key of an agent's call, of which a step makes many."""

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of the same step: a step may run more than once, its effect should be one.

        What a gate has sent back is another step.
        """
        if self.key is not None:
            return self.key
        item = "" if self.item is None else f":{self.item}"
        return f"{self.execution_id}:{self.node}{item}" + (f"@{self.round}" if self.round else "")


class RetryableToolError(Exception):
    """Raised by a tool that may do better at another attempt; the node's `retry` says how many there are."""

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    function: Callable[..., Any]
    arguments: type[BaseModel]
    context: str | None
    """The parameter that takes the ToolContext."""

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """JSON schema of the arguments: agents tell it to their model in each turn."""
        return self.arguments.model_json_schema(by_alias=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Any:
        """What it gives, as JSON. Raises Failure: tool_arguments, tool_failed, output_invalid."""
        given = self._checked(arguments)
        if self.context is not None:
            given[self.context] = context
        try:
            result = await (_in_task if inspect.iscoroutinefunction(self.function) else _in_thread)(
                lambda: self.function(**given)
            )
        except _Raised as raised:
            raise self._failure(raised.error) from raised.error
        try:
            return to_jsonable_python(result)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise Failure("output_invalid", f"What the tool {self.name} gives is no JSON: {error}") from None

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            checked = self.arguments.model_validate(dict(arguments))
        except ValidationError as error:
            found = [
                {"path": ".".join(map(str, one["loc"])), "message": one["msg"]}
                for one in error.errors(include_url=False, include_input=False)[:20]
            ]
            first = f"{found[0]['path']}: {found[0]['message']}"
            message = f"The arguments of the tool {self.name} do not fit: {first}."
            raise Failure("tool_arguments", message, {"mismatches": found}) from None
        return {str(field.alias): getattr(checked, name) for name, field in type(checked).model_fields.items()}

    def _failure(self, error: BaseException) -> Failure:
        message = f"The tool {self.name} failed: {type(error).__name__}: {error}"[:2000]
        if isinstance(error, RetryableToolError):
            return Failure("tool_failed", message, retryable=True, retry_after_s=error.retry_after_s)
        return Failure("tool_failed", message)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(*, name: str | None = None, description: str | None = None) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, description: str | None = None
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Makes a tool of a function; it can still be called as one. Name and description: its own, and its docstring.

    Raises TypeError for a parameter without a type, or one that cannot be given by name.
    """

    def made(function: Callable[..., Any]) -> Tool:
        arguments, context = _arguments_of(function)
        said = inspect.getdoc(function) or ""
        return Tool(
            name or function.__name__, said if description is None else description, function, arguments, context
        )

    return made if function is None else made(function)


class ToolRegistry:
    """The tools of a worker, by name."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for one in tools:
            self.add(one)

    def add(self, tool: Tool) -> None:
        """Raises ValueError when another tool has its name, or may have."""
        if tool.name.startswith(MCP):
            raise ValueError(f"The tool {tool.name} has a name as tools of MCP servers have.")
        if self._tools.setdefault(tool.name, tool) is not tool:
            raise ValueError(f"Two tools have the name {tool.name}.")

    def load(self, module: str) -> None:
        """Adds every tool of a module, which is imported. Raises ImportError."""
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, Tool):
                self.add(value)

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def names(self) -> list[str]:
        return sorted(self._tools)

    def all(self) -> list[Tool]:
        return [self._tools[name] for name in self.names()]


def _arguments_of(function: Callable[..., Any]) -> tuple[type[BaseModel], str | None]:
    """A model of the parameters, and the one that takes the context."""
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    context = None
    for n, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__}: its parameter {name} cannot be given by name.")
        if name not in hints:
            raise TypeError(f"{function.__name__}: its parameter {name} has no type.")
        if hints[name] is ToolContext:
            context = name
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        # under a name of its own: a parameter may be called `json` or `copy`, which a model has already
        fields[f"argument_{n}"] = (hints[name], Field(default, alias=name))
    made: type[BaseModel] = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    return made, context


class _Raised(Exception):
    """What a tool raised, told apart from what its caller meets while it waits."""

    def __init__(self, error: BaseException):
        self.error = error


_running: set[asyncio.Task[Any]] = set()
"""Tools that nobody waits for any more and that have not ended: the loop itself does not keep them alive."""


async def _in_task(function: Callable[[], Awaitable[Any]]) -> Any:
    """Awaits it so that one which does not heed its cancellation holds up nobody."""

    async def guarded() -> tuple[Any, BaseException | None]:
        try:
            return await function(), None
        except (Exception, SystemExit) as error:
            return None, error

    task = asyncio.create_task(guarded())
    _running.add(task)
    task.add_done_callback(_running.discard)
    try:
        result, error = await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        ours = asyncio.current_task()
        if task.cancelled() and not (ours and ours.cancelling()):  # it gave up by itself
            raise _Raised(cancelled) from None
        task.cancel()
        raise
    if error is not None:
        raise _Raised(error)
    return result


class _Threads:
    """Threads for tools, kept for the next one: one that hangs takes nobody's place, and none holds up the end."""

    IDLE_S = 10.0

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[Callable[[], None]]] = []

    def start(self, run: Callable[[], None]) -> None:
        try:
            calls = self._idle.pop()
        except IndexError:
            calls = SimpleQueue()
            threading.Thread(target=self._work, args=(calls,), name="tool", daemon=True).start()
        calls.put(run)

    def _work(self, calls: "SimpleQueue[Callable[[], None]]") -> None:
        while True:
            try:
                run = calls.get(timeout=self.IDLE_S)
            except Empty:
                with suppress(ValueError):  # it has just been given one
                    self._idle.remove(calls)
                    return
                continue
            run()
            del run  # with what it holds
            self._idle.append(calls)


_threads = _Threads()


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Runs it in a thread that nobody else has until it ends."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def end(result: Any, error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result((result, error))

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(end, result, error)

    _threads.start(partial(contextvars.copy_context().run, run))
    result, error = await ended
    if error is not None:
        raise _Raised(error)
    return result
