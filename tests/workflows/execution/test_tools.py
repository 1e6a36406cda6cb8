"""Tools: functions of the operator, checked by their type hints, whatever they do."""

import asyncio
import threading
from dataclasses import dataclass, replace
from datetime import date
from queue import SimpleQueue
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from tests.workflows.execution.support import plan, step
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.steps import Outcome
from vanilla_saas.workflows.execution.tooling import Tooling
from vanilla_saas.workflows.execution.tools import RetryableToolError, ToolContext, ToolRegistry, _Threads, tool


class Item(BaseModel):
    name: str
    amount: int = 1


@dataclass
class Bill:
    total: int
    due: date


@tool
async def bill(items: list[Item], due: date, json: Annotated[bool, Field(description="as JSON")] = False) -> Bill:
    """Writes a bill.

    For everything on it."""
    return Bill(sum(item.amount for item in items), due)


@tool(name="who/asks", description="Who asks.")
def who(context: ToolContext, copy: int = 7) -> dict[str, Any]:
    return {
        "tenant": context.tenant_id,
        "key": context.idempotency_key,
        "attempt": context.attempt,
        "copy": copy,
        "thread": threading.current_thread().name,
    }


async def called(tooling: Tooling, function: Any, arguments: str = "{}", /, **fields: Any) -> Outcome:
    made = function if hasattr(function, "parameters") else tool(function)
    node = {"id": "a", "kind": "tool", "tool": made.name, "arguments": arguments}
    return await execute(step(**fields), plan(node), replace(tooling, tools=ToolRegistry([made])))


async def test_a_tool_gets_typed_arguments_and_gives_json(tooling: Tooling) -> None:
    outcome = await called(tooling, bill, "{'items': [{'name': 'a', 'amount': 2}, {'name': 'b'}], 'due': '2026-01-02'}")
    assert outcome.fields == {"output": {"total": 3, "due": "2026-01-02"}}


def test_a_tool_describes_itself_and_is_still_a_function() -> None:
    assert bill.name == "bill"
    assert bill.description.startswith("Writes a bill.\n\nFor")
    assert (who.name, who.description) == ("who/asks", "Who asks.")
    parameters = bill.parameters
    assert parameters["required"] == ["items", "due"]
    assert parameters["properties"]["json"]["description"] == "as JSON"
    assert parameters["additionalProperties"] is False
    assert list(who.parameters["properties"]) == ["copy"], "the context is the worker's to give"
    assert who(ToolContext("t", "u", "e", "n", None, 1))["copy"] == 7


async def test_a_function_that_blocks_has_a_thread_and_the_context(tooling: Tooling) -> None:
    output = (await called(tooling, who)).fields["output"]
    assert output == {
        "tenant": step().tenant_id, "key": f"{step().execution_id}:a", "attempt": 2, "copy": 7, "thread": "tool",
    }  # fmt: skip


async def test_an_item_has_an_idempotency_key_of_its_own(tooling: Tooling) -> None:
    node = {"id": "a", "kind": "map", "over": "[]", "item": {"kind": "tool", "tool": "who/asks"}}
    lent = replace(tooling, tools=ToolRegistry([who]))
    outcome = await execute(step(item=3, value=None), plan(node), lent)
    assert outcome.fields["output"]["key"] == f"{step().execution_id}:a:3"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [("{'due': '2026-01-02'}", "items"), ("{'items': [{}], 'due': '2026-01-02'}", "items.0.name"),
     ("{'items': [], 'due': 'x'}", "due"), ("{'items': [], 'due': '2026-01-02', 'more': 1}", "more")],
)  # fmt: skip
async def test_wrong_arguments_do_not_reach_the_tool(tooling: Tooling, arguments: str, path: str) -> None:
    outcome = await called(tooling, bill, arguments)
    assert outcome.code == "tool_arguments"
    assert [one["path"] for one in outcome.fields["error"]["details"]["mismatches"]] == [path]


async def test_arguments_are_an_object(tooling: Tooling) -> None:
    assert (await called(tooling, bill, "[1]")).code == "expression_type"


async def test_a_tool_that_is_not_there_is_named(tooling: Tooling) -> None:
    outcome = await execute(step(), plan({"id": "a", "kind": "tool", "tool": "nothing"}), tooling)
    assert outcome.code == "tool_unknown"
    assert "nothing" in outcome.fields["error"]["message"]


def _raise(error: BaseException) -> Any:
    raise error


ERRORS = [
    ValueError("no\0"),
    SystemExit(3),
    StopIteration(),
    TimeoutError("slow"),
    asyncio.CancelledError(),
    KeyError("k"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("awaited", [True, False], ids=["async", "sync"])
async def test_whatever_a_tool_raises_is_a_failure(tooling: Tooling, error: BaseException, awaited: bool) -> None:
    async def breaks() -> None:
        _raise(error)

    def breaks_at_once() -> None:
        _raise(error)

    outcome = await called(tooling, breaks if awaited else breaks_at_once)
    assert outcome.code == "tool_failed"
    assert not outcome.fields["error"]["retryable"]
    assert "\0" not in outcome.fields["error"]["message"]


async def test_a_tool_may_ask_for_another_attempt(tooling: Tooling) -> None:
    async def busy() -> None:
        raise RetryableToolError("busy", retry_after_s=4)

    outcome = await called(tooling, busy)
    assert outcome.code == "tool_failed"
    assert outcome.fields["error"]["retryable"]
    assert outcome.fields["retry_after_s"] == 4


@pytest.mark.parametrize(
    "given",
    [float("nan"), "a\0b", "\ud800", object(), {1: [float("inf")]}, b"\xff", 2**70],
    ids=["NaN", "U+0000", "surrogate", "object", "infinity", "bytes", "integer"],
)
async def test_what_cannot_be_stored_is_an_output_that_is_invalid(tooling: Tooling, given: object) -> None:
    async def gives() -> object:
        return given

    assert (await called(tooling, gives)).code == "output_invalid"


async def test_a_tool_that_gives_too_much_fails(tooling: Tooling) -> None:
    async def gives(size: int) -> str:
        return "x" * size

    assert (await called(tooling, gives, f"{{'size': {1 << 20}}}")).code == "output_too_large"
    assert (await called(tooling, gives, f"{{'size': {(1 << 20) - 100}}}")).kind == "succeeded"


async def test_a_thread_that_hangs_is_left_behind(tooling: Tooling) -> None:
    release = threading.Event()

    def hangs() -> None:
        release.wait(30)

    outcome = await called(tooling, hangs, timeout_s=0.1)
    release.set()
    assert outcome.code == "timeout"


async def test_a_thread_is_used_again_and_never_by_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Threads, "IDLE_S", 0.05)
    threads, ran, release = _Threads(), SimpleQueue[threading.Thread](), threading.Event()

    def hangs() -> None:
        ran.put(threading.current_thread())
        release.wait(30)

    threads.start(hangs)
    hanging = ran.get(timeout=5)
    used = []
    for _ in range(20):
        threads.start(lambda: ran.put(threading.current_thread()))
        used.append(ran.get(timeout=5))
    assert hanging not in used
    assert len(set(used)) <= 3, "they are given to the next"
    release.set()
    for thread in {hanging, *used}:
        thread.join(timeout=5)
        assert not thread.is_alive(), "what is not used goes"
    threads.start(lambda: ran.put(threading.current_thread()))
    assert ran.get(timeout=5) not in used


async def test_a_tool_that_does_not_heed_its_cancellation_holds_up_nobody(tooling: Tooling) -> None:
    released, ended = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    async with asyncio.timeout(5):
        outcome = await called(tooling, stubborn, timeout_s=0.1)
        assert outcome.code == "timeout"
        released.set()
        await ended.wait()


async def test_a_tool_is_told_that_its_time_is_over(tooling: Tooling) -> None:
    told = asyncio.Event()

    async def patient() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    assert (await called(tooling, patient, timeout_s=0.1)).code == "timeout"
    async with asyncio.timeout(5):
        await told.wait()


def test_a_parameter_has_a_name_and_a_type() -> None:
    with pytest.raises(TypeError, match="has no type"):
        tool(lambda x: x)
    with pytest.raises(TypeError, match="by name"):
        tool(_positional)


def _positional(a: int, /) -> int:
    return a


def test_a_registry_has_each_name_once_and_takes_modules() -> None:
    registry = ToolRegistry()
    registry.load(__name__)
    registry.load(__name__)
    assert registry.names() == ["bill", "who/asks"]
    with pytest.raises(ValueError, match="who/asks"):
        registry.add(tool(name="who/asks")(_nothing))


def _nothing() -> None:
    return None
