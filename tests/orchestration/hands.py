"""Tools that agents of tests call. What they did is in `DONE`, by idempotency key."""

import asyncio

from vanilla_saas.workflows.execution.tools import RetryableToolError, ToolContext, tool

DONE: dict[str, list[str]] = {}


@tool
def look_up(name: str) -> dict[str, str]:
    "Looks a customer up."
    return {"name": name, "plan": "pro"}


@tool
def refund(amount: int, context: ToolContext) -> str:
    "Pays an amount back."
    DONE.setdefault(context.idempotency_key, []).append(f"{amount}")
    return f"refunded {amount}"


@tool
def breaks() -> str:
    "Never works."
    raise ValueError("no luck")


TICKS = iter(range(10**9))


@tool
def tick() -> int:
    "Another number each time."
    return next(TICKS)


@tool
def stumble(context: ToolContext) -> str:
    "Works when it is called again."
    if context.idempotency_key not in DONE:
        DONE[context.idempotency_key] = []
        raise RetryableToolError("not yet")
    return "stumbled"


@tool
def measure(size: int | float) -> dict[str, object]:
    "Gives what it is told, under names in an order that is not PostgreSQL's."
    return {"size": size, "äö": True, "to": "x", "b": [{"zz": 1, "a": None}]}


HELD: dict[str, asyncio.Event] = {}
"""What calls of `hold` wait for, by name."""


@tool
async def hold(name: str) -> str:
    "Waits to be let go."
    await HELD[name].wait()
    return "held"


@tool
async def hang(context: ToolContext) -> None:
    "Gives nothing until it is stopped."
    done = DONE.setdefault(context.idempotency_key, [])
    done.append("called")
    try:
        await asyncio.Event().wait()
    finally:
        done.append("stopped")


@tool
def balk() -> str:
    "Asks to be called again each time."
    raise RetryableToolError("not now", retry_after_s=600)
