"""What is wrong with a definition, all of it at once, by node and field.

Rules of the graph (ids that are there once, connections to nodes that are there, cycles, what cannot be reached, how
many) are the database's: it checks them when a version is published.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vanilla_saas.workflows import documents
from vanilla_saas.workflows.definition import Connection, Definition, plain
from vanilla_saas.workflows.graph import MAX_CONNECTIONS, MAX_NODES
from vanilla_saas.workflows.meaning import Meaning
from vanilla_saas.workflows.nodes import AnyNode, BaseNode
from vanilla_saas.workflows.shape import Problem, shape_problems

__all__ = ["DefinitionError", "Problem", "problems", "validated"]

MAX_PROBLEMS = 200
SECONDS = 10.0
"""What is not checked by then is one more problem."""

_NODE: TypeAdapter[BaseNode] = TypeAdapter(AnyNode)
_CONNECTION = TypeAdapter(Connection)


class DefinitionError(ValueError):
    """A definition with problems."""

    def __init__(self, problems: list[Problem]):
        super().__init__("; ".join(str(problem) for problem in problems[:5]))
        self.problems = problems


def validated(document: object) -> Definition:
    """The definition of a document. Raises DefinitionError with its problems."""
    if found := problems(document):
        raise DefinitionError(found)
    return Definition.model_validate(document)


def problems(definition: object) -> list[Problem]:
    """None for a definition that can run; at most 200. Never raises, takes at most about ten seconds."""
    document = plain(definition) if isinstance(definition, Definition) else definition
    if wrong := documents.not_plain(document):
        return [Problem(None, wrong[0], "not_json", wrong[1])]
    if not isinstance(document, dict):
        return [Problem(None, "", "wrong_type", "Write an object with name, nodes and connections.")]
    if len(documents.canonical_json(document)) > documents.MAX_BYTES:
        return [Problem(None, "", "too_large", f"Make it smaller: it has more than {documents.MAX_BYTES:,} bytes.")]
    found: dict[Problem, None] = {}
    for problem in _all(document, time.monotonic() + SECONDS):
        found.setdefault(problem)
        if len(found) >= MAX_PROBLEMS:
            break
    return list(found)


def _all(document: dict[str, Any], until: float) -> Iterator[Problem]:
    # more is refused by the database; reading all of it would only take long
    document = document | {
        name: document[name][:most]
        for name, most in (("nodes", MAX_NODES), ("connections", MAX_CONNECTIONS))
        if isinstance(document.get(name), list)
    }
    try:
        definition = Definition.model_validate(document)
        nodes: list[tuple[int, BaseNode]] = [*enumerate(definition.nodes)]
        connections = [*enumerate(definition.connections)]
    except ValidationError as error:
        yield from shape_problems(document, error)
        # what could be read is read on, so that a person corrects all of it at once
        nodes = list(_valid(document.get("nodes"), _NODE))
        connections = list(_valid(document.get("connections"), _CONNECTION))
    yield from Meaning(document, nodes, connections, until).problems()


def _valid(items: object, kind: TypeAdapter[Any]) -> Iterator[tuple[int, Any]]:
    for n, item in enumerate(items if isinstance(items, list) else ()):
        with suppress(ValidationError):
            yield n, kind.validate_python(item)
