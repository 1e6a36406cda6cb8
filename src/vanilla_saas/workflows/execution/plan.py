"""A published definition as workers keep it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from vanilla_saas.workflows.definition import Definition
from vanilla_saas.workflows.nodes import BaseNode, Llm

NOTHING_YET: Mapping[str, Any] = {"output": None, "status": None, "branch": None, "error": None}


_OUTPUT = re.compile(r"\s*steps\.([a-z][a-z0-9_]*)\.output(\.text)?\s*")


@dataclass(frozen=True)
class Plan:
    definition: Definition
    nodes: Mapping[str, BaseNode]
    nothing_yet: Mapping[str, Mapping[str, Any]]
    """What texts see of nodes of which nothing is known."""

    @cached_property
    def speaker(self) -> str | None:
        """The node whose words are the answer of the run: the only last one, a model call whose text nothing checks."""
        last = self.nodes.keys() - {connection.source for connection in self.definition.connections}
        only = self.nodes[last.pop()] if len(last) == 1 else None
        if not isinstance(only, Llm) or only.json_schema is not None:
            return None
        output = self.definition.output
        named = None if output is None else _OUTPUT.fullmatch(output)
        return only.id if output is None or (named and named[1] == only.id) else None

    @cached_property
    def first(self) -> BaseNode | None:
        """The node with which a run begins, when it is one."""
        first = self.nodes.keys() - {connection.target for connection in self.definition.connections}
        return self.nodes[first.pop()] if len(first) == 1 else None

    @classmethod
    def of(cls, definition: Definition) -> Self:
        nodes = {node.id: node for node in definition.nodes}
        return cls(definition, nodes, dict.fromkeys(nodes, NOTHING_YET))

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Of what `vanilla.workflow_plan` gives. Raises pydantic's ValidationError."""
        return cls.of(Definition.model_validate(given["definition"]))
