"""Kinds that compute from what is there (prompt, transform, condition, switch, map, join), and a workflow's ends."""

from typing import Any

import orjson

from vanilla_saas.workflows.execution.attempt import Attempt, wrong_type
from vanilla_saas.workflows.execution.failures import Failure, of_mismatches
from vanilla_saas.workflows.execution.steps import Outcome, succeeded
from vanilla_saas.workflows.nodes import Condition, Join, Map, Prompt, Switch, Transform

MAX_KEY = 1000
"""Characters of a value of `concurrency.key`."""


async def prompt(attempt: Attempt, node: Prompt) -> Outcome:
    return succeeded((await attempt.render({"template": node.template}))["template"])


async def transform(attempt: Attempt, node: Transform) -> Outcome:
    return succeeded(await attempt.compute("value", node.value))


async def condition(attempt: Attempt, node: Condition) -> Outcome:
    found = await attempt.compute("condition", node.condition)
    if not isinstance(found, bool):
        raise wrong_type("condition", "true or false", found)
    return succeeded(found, "true" if found else "false")


async def switch(attempt: Attempt, node: Switch) -> Outcome:
    value = await attempt.compute("value", node.value)
    taken = next((case.name for case in node.cases if same(case.equals, value)), "default")
    return succeeded(value, taken)


async def map_items(attempt: Attempt, node: Map) -> Outcome:
    """What is computed for each item is the database's to hand out."""
    found = await attempt.compute("over", node.over)
    if not isinstance(found, list):
        raise wrong_type("over", "a list", found)
    return Outcome("items", {"items": found, "concurrency": node.concurrency})


async def join(attempt: Attempt, _: Join) -> Outcome:
    """When it runs is its mode's, in the database; what it gives are the predecessors that have succeeded by then."""
    steps = attempt.step.steps
    done = [name for name in attempt.step.predecessors if steps.get(name, {}).get("status") == "succeeded"]
    return succeeded({name: steps[name].get("output") for name in done})


async def start(attempt: Attempt) -> Outcome:
    """Checks the input and computes who shares the limit of concurrency."""
    given, definition = attempt.step.input, attempt.plan.definition
    if not isinstance(given, dict):
        raise Failure("input_invalid", "The input must be an object.")
    if definition.input is not None and (found := await attempt.mismatches("input", definition.input, given)):
        raise of_mismatches("input_invalid", "The input", found)
    if definition.concurrency is None:
        return Outcome("go", {"key": None, "limit": None})
    key = await attempt.compute("concurrency.key", definition.concurrency.key)
    text = key if isinstance(key, str | None) else orjson.dumps(key, option=orjson.OPT_SORT_KEYS).decode()
    if text is not None and len(text) > MAX_KEY:
        raise Failure("expression_too_large", f"concurrency.key: it gives more than {MAX_KEY:,} characters.")
    return Outcome("go", {"key": text, "limit": None if text is None else definition.concurrency.limit})


async def end(attempt: Attempt) -> Outcome:
    """The output of the execution; without an expression the database ends it by itself."""
    assert attempt.plan.definition.output is not None
    return succeeded(await attempt.compute("output", attempt.plan.definition.output))


def same(a: Any, b: Any) -> bool:
    """Equality of JSON: 1 is 1.0 and not true."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)
