"""A published definition as workers keep it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vanilla_saas.workflows.definition import Definition
from vanilla_saas.workflows.nodes import BaseNode

NOTHING_YET: Mapping[str, Any] = {"output": None, "status": None, "branch": None, "error": None}


@dataclass(frozen=True, slots=True)
class Plan:
    definition: Definition
    nodes: Mapping[str, BaseNode]
    nothing_yet: Mapping[str, Mapping[str, Any]]
    """What texts see of nodes of which nothing is known."""

    @classmethod
    def of(cls, definition: Definition) -> Self:
        nodes = {node.id: node for node in definition.nodes}
        return cls(definition, nodes, dict.fromkeys(nodes, NOTHING_YET))

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Of what `vanilla.workflow_plan` gives. Raises pydantic's ValidationError."""
        return cls.of(Definition.model_validate(given["definition"]))
