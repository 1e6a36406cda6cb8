"""What is known of a run before it begins: then one statement begins it, checked, and with its first call admitted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vanilla_saas.workflows import prompts, schemas
from vanilla_saas.workflows.execution.models import body_of, templates_of
from vanilla_saas.workflows.execution.plan import Plan
from vanilla_saas.workflows.nodes import Llm


@dataclass(frozen=True, slots=True)
class Opening:
    """Of a run whose input needs no further look. Whatever is not seen at once is left to its steps."""

    node: str | None = None
    """The first node, a model call whose words need nothing but the input."""
    body: Mapping[str, Any] | None = None
    """The call."""
    speaks: bool = False
    """Whether the words of the call are those of the run's answer."""


def opening(plan: Plan, given: Mapping[str, Any]) -> Opening | None:
    """None when the step `$start` has more to do than to let this input in."""
    definition = plan.definition
    if definition.concurrency is not None:
        return None
    if definition.input is not None and not schemas.fits(definition.input, given):
        return None
    first = plan.first
    node: Any = first
    if first is None or not isinstance(node, Llm) or node.json_schema is not None:
        return Opening()
    texts = {field: prompts.filled(template, {"input": given}) for field, _, template in templates_of(node)}
    said = {field: text for field, text in texts.items() if text is not None}
    return Opening(first.id, body_of(node, said), first.id == plan.speaker) if len(said) == len(texts) else Opening()
