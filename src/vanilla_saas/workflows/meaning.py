"""What a definition means beyond its shape: its languages are read, its names exist, its branches do."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from vanilla_saas.workflows import expressions, prompts, schemas
from vanilla_saas.workflows.checks import Human
from vanilla_saas.workflows.definition import Connection
from vanilla_saas.workflows.expressions import ExpressionError
from vanilla_saas.workflows.fields import LanguageName, Place, written
from vanilla_saas.workflows.graph import ancestors
from vanilla_saas.workflows.names import Names
from vanilla_saas.workflows.nodes import Approval, BaseNode, Gate
from vanilla_saas.workflows.prompts import TemplateError
from vanilla_saas.workflows.schemas import SchemaError
from vanilla_saas.workflows.shape import Problem, field_of, named

STEP_FIELDS = ("output", "status", "branch", "error")
EVERYWHERE = frozenset(("input", "steps", "execution"))
_WHERE = {
    "item": "item and index are there inside the item of a map",
    "index": "item and index are there inside the item of a map",
    "feedback": "feedback is there in the node that a gate retries",
    "value": "value is there in the checks of a gate, and in an approval that says of",
}


@dataclass(frozen=True, slots=True)
class _Scope:
    roots: frozenset[str]
    upstream: frozenset[str] | None
    """Nodes whose outcome is known; None: all, at the end."""
    node: str | None = None


class Meaning:
    """`nodes` and `connections` are those of the document that could be read, with their places in it."""

    def __init__(
        self,
        document: dict[str, Any],
        nodes: list[tuple[int, BaseNode]],
        connections: list[tuple[int, Connection]],
        until: float,
    ) -> None:
        self.document, self.nodes, self.connections, self.until = document, nodes, connections, until
        raw = document.get("nodes")
        self.raw_nodes: list[Any] = raw if isinstance(raw, list) else []
        self.ids = {n["id"] for n in self.raw_nodes if isinstance(n, dict) and isinstance(n.get("id"), str)}
        self.retried = {node.retry.node for _, node in nodes if isinstance(node, Gate) and node.retry.node}
        self.before = self._ancestors()

    def _ancestors(self) -> Mapping[str, frozenset[str]]:
        links = self.document.get("connections")
        pairs = (
            (c.get("from"), c.get("to")) for c in (links if isinstance(links, list) else ()) if isinstance(c, dict)
        )
        known = ((a, b) for a, b in pairs if isinstance(a, str) and isinstance(b, str))
        return ancestors(sorted(self.ids), known)

    def problems(self) -> Iterator[Problem]:
        yield from self._of_connections()
        for n, node in self.nodes:
            yield from self._of_node(n, node)
        yield from self._of_definition()

    def _of_connections(self) -> Iterator[Problem]:
        by_id = {node.id: node for _, node in self.nodes}
        for n, link in self.connections:
            place = f"connections.{n}"
            node = by_id.get(link.source)
            if node is None or link.on is None or link.on in node.branch_names():
                continue
            branches = ", ".join(node.branch_names())
            message = f"Write one of {branches}." if branches else f"Remove on: {link.source} has no branches."
            yield Problem(link.source, f"{place}.on", "branch_unknown", message)

    def _of_node(self, n: int, node: BaseNode) -> Iterator[Problem]:
        raw = self.raw_nodes[n] if n < len(self.raw_nodes) else None
        name, prefix = named(raw, f"nodes.{n}")
        upstream = self.before.get(node.id, frozenset())
        for language, text, place in written(node):
            if _late(self.until):
                yield Problem(None, "", "check_timeout", "Make it simpler: reading its expressions takes too long.")
                return
            scope = _Scope(EVERYWHERE | self._roots(node, place), upstream, node.id)
            for problem in _read(language, text, scope, self.ids):
                field = field_of(raw, ".".join(place) + problem.field)
                yield Problem(name, ".".join(p for p in (prefix, field) if p), problem.code, problem.message)
        yield from self._of_gate(node, upstream) if isinstance(node, Gate) else ()
        yield from _of_quorum(node)

    def _roots(self, node: BaseNode, place: Place) -> frozenset[str]:
        more: set[str] = set()
        if place[0] == "item":
            more |= {"item", "index"}
        if node.id in self.retried:
            more.add("feedback")
        shown = isinstance(node, Approval) and node.of is not None and place[0] in ("title", "prompt")
        if shown or place[0] == "checks":
            more.add("value")
        return frozenset(more)

    def _of_gate(self, gate: Gate, upstream: frozenset[str]) -> Iterator[Problem]:
        target = gate.retry.node
        if target is not None and target not in self.ids:
            yield Problem(gate.id, "retry.node", "step_unknown", _unknown_step(target, self.ids))
        elif target is not None and target not in upstream:
            message = f"Name a node that comes before {gate.id}; {target} does not."
            yield Problem(gate.id, "retry.node", "step_not_upstream", message)
        if gate.on_fail == "branch" and not any(c.source == gate.id and c.on == "failed" for _, c in self.connections):
            yield Problem(gate.id, "on_fail", "branch_missing", f"Add a connection from {gate.id} with on: failed.")

    def _of_definition(self) -> Iterator[Problem]:
        document = self.document
        concurrency = document.get("concurrency")
        key = concurrency.get("key") if isinstance(concurrency, dict) else None
        texts: list[tuple[LanguageName, object, str, _Scope]] = [
            ("json_schema", document.get("input"), "input", _Scope(EVERYWHERE, None)),
            ("cel", key, "concurrency.key", _Scope(frozenset(("input",)), frozenset())),
            ("cel", document.get("output"), "output", _Scope(EVERYWHERE, None)),
        ]
        for language, text, place, scope in texts:
            if isinstance(text, dict if language == "json_schema" else str) and text != "":
                for problem in _read(language, text, scope, self.ids):
                    yield Problem(None, place + problem.field, problem.code, problem.message)


def _late(until: float) -> bool:
    return time.monotonic() > until


def _read(language: LanguageName, text: Any, scope: _Scope, ids: set[str]) -> Iterator[Problem]:
    """Problems without a node; `field` is what follows the place of the text."""
    try:
        if language == "cel":
            expression = expressions.compile(text)
            yield from _of_names(expression.names, scope, ids)
            if expression.type_error:
                yield Problem(None, "", "expression_type", f"Correct it: {expression.type_error}.")
        elif language == "template":
            yield from _of_names(prompts.names(text), scope, ids)
        elif language == "json_schema":
            schemas.check_schema(text)
        else:
            schemas.check_pattern(text)
    except (ExpressionError, SchemaError) as error:
        yield Problem(None, "", error.code, f"Correct it: {error.message.rstrip('.')}.")
    except TemplateError as error:
        line = f"line {error.line}: " if error.line else ""
        yield Problem(None, "", error.code, f"Correct it: {line}{error.message.rstrip('.')}.")


def _of_names(names: Names, scope: _Scope, ids: set[str]) -> Iterator[Problem]:
    for root in sorted(names.roots - scope.roots):
        yield Problem(None, "", "name_unknown", _unknown_name(root, scope, ids))
    if "steps" not in scope.roots:
        return
    for step in sorted(names.steps):
        if step not in ids:
            yield Problem(None, "", "step_unknown", _unknown_step(step, ids))
        elif scope.upstream is not None and step not in scope.upstream:
            why = "a node does not see its own outcome" if step == scope.node else f"connect {step} before it"
            yield Problem(None, "", "step_not_upstream", f"Use steps of nodes that come before; {why}.")
    for step, field in sorted(names.step_fields):
        if step in ids and field not in STEP_FIELDS:
            message = f"Write one of {', '.join(STEP_FIELDS)} after steps.{step}, as in steps.{step}.output.{field}."
            yield Problem(None, "", "step_field_unknown", message)


def _unknown_name(root: str, scope: _Scope, ids: set[str]) -> str:
    if root in _WHERE:
        return f"Remove {root}: {_WHERE[root]}."
    if root in ids and "steps" in scope.roots:
        return f"Write steps.{root}.output instead of {root}."
    return f"Replace {root}; the names here are {', '.join(sorted(scope.roots))}."


def _unknown_step(step: str, ids: set[str]) -> str:
    near = get_close_matches(step, sorted(ids), 1)
    return f"Name a node that is there; {step} is not{f', {near[0]} is' if near else ''}."


def _of_quorum(node: BaseNode) -> Iterator[Problem]:
    asked: list[tuple[str, Approval | Human]] = [("", node)] if isinstance(node, Approval) else []
    if isinstance(node, Gate):
        asked = [(f"checks.{n}.", check) for n, check in enumerate(node.checks) if isinstance(check, Human)]
    for place, who in asked:
        persons = set(who.approvers)
        if who.quorum > len(persons) and all(person.startswith("user:") for person in persons):
            message = f"Ask {who.quorum} persons or lower the quorum; {len(persons)} can answer."
            yield Problem(node.id, f"{place}quorum", "quorum_too_high", message)
