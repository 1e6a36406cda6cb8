"""Computes a step: `execute` gives an outcome whatever happens, and only a cancellation ends it without one."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from vanilla_saas.orchestration import loop
from vanilla_saas.workflows.execution import computing, gates, models, outside, waits
from vanilla_saas.workflows.execution.attempt import Attempt
from vanilla_saas.workflows.execution.failures import Failure
from vanilla_saas.workflows.execution.plan import Plan
from vanilla_saas.workflows.execution.steps import END, START, Outcome, Step
from vanilla_saas.workflows.execution.storable import refuse_unstorable, storable_text
from vanilla_saas.workflows.execution.tooling import Tooling
from vanilla_saas.workflows.nodes import Map

log = structlog.get_logger()


KINDS: Mapping[str, Callable[[Attempt, Any], Awaitable[Outcome]]] = {
    "llm": models.llm,
    "prompt": computing.prompt,
    "transform": computing.transform,
    "condition": computing.condition,
    "switch": computing.switch,
    "map": computing.map_items,
    "join": computing.join,
    "http": outside.http,
    "tool": outside.tool,
    "engine": waits.execution,
    "workflow": waits.execution,
    "agent": loop.run,
    "wait": waits.wait,
    "signal": waits.signal,
    "approval": waits.approval,
    "gate": gates.gate,
}


async def execute(step: Step, plan: Plan, tooling: Tooling, calls: list[dict[str, Any]] | None = None) -> Outcome:
    """The outcome of one attempt, with the settlements of its model calls.

    Settlements are appended to `calls`: who cancels a step finds there what is to be settled all the same
    (`handed_back`).
    """
    calls = [] if calls is None else calls
    node = plan.nodes.get(step.node)
    retry_on = [] if node is None else node.retry.on
    try:
        outcome = await _timed(Attempt(step, plan, tooling, calls))
        refuse_unstorable(outcome.fields, tooling.settings.output_bytes)
    except Failure as failure:
        outcome = _failed(failure, retry_on, tooling)
    except Exception as error:
        log.error("step_failed", execution_id=step.execution_id, node=step.node, exc_info=error)
        message = "Something failed on our side; the log has the execution's id."
        outcome = Failure("internal_error", message).outcome(retry_on)
    return replace(outcome, lease=step.lease, attempt=step.attempt, calls=tuple(calls))


async def _timed(attempt: Attempt) -> Outcome:
    seconds = attempt.step.timeout_s
    try:
        async with asyncio.timeout(seconds) as deadline:
            return await _computed(attempt)
    except TimeoutError:
        if not deadline.expired():
            raise
    raise Failure("timeout", f"It did not end within {seconds:g} s.", {"timeout_s": seconds})


async def _computed(attempt: Attempt) -> Outcome:
    step = attempt.step
    if step.node == START:
        return await computing.start(attempt)
    if step.node == END:
        return await computing.end(attempt)
    node: Any = attempt.plan.nodes.get(step.node)
    if node is None:
        raise Failure("node_unknown", f"The definition has no node {step.node}.", {"node": step.node})
    if step.item is not None and isinstance(node, Map):
        node = node.item
    return await KINDS[node.kind](attempt, node)


def _failed(failure: Failure, retry_on: list[str], tooling: Tooling) -> Outcome:
    """A failure repeats what others said: it must not itself be what cannot be stored."""
    failure.message = storable_text(failure.message)
    try:
        refuse_unstorable(failure.details, tooling.settings.output_bytes)
    except Failure:
        failure.details = {}
    return failure.outcome(retry_on)
