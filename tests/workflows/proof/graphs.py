"""Random workflows whose outcome does not depend on who runs what when, and that outcome."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from random import Random
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.workflows.hands import Outcome, Step

NEVER = 99
BRANCHES = {"condition": ["true", "false"], "switch": ["x", "y", "default"], "gate": ["passed", "failed"]}
KINDS = (
    ["transform"] * 3
    + ["llm"] * 3
    + ["condition"] * 2
    + ["switch"]
    + ["join"] * 3
    + ["map"] * 2
    + ["gate"] * 3
    + ["wait", "workflow", "engine"]
)
JOINING = ["transform"] * 4 + ["join"] * 5 + ["gate"] * 2 + ["llm", "condition", "map", "wait", "workflow"]
"""Kinds of nodes in `joining`."""
WITHIN = ("workflow", "engine")
Result = dict[str, tuple[str, Any]]
"""Of every node its status and output."""


@dataclass
class Node:
    """What a node does, whoever runs it: `fails` attempts fail first; a gate refuses `refuses` rounds."""

    id: str
    kind: str
    fails: int = 0
    branch: str = ""
    items: int = 0
    at_once: int | None = None
    needs: int = 0
    refuses: int = 0
    back_to: str = ""
    edges: list[tuple[str, str]] = field(default_factory=list)
    """Connections into it: from where, and on which branch."""
    mended: bool = False
    """What it is written as is not what it was."""
    calls: bool = False
    """It calls a model in every attempt: set where the number of attempts does not depend on the schedule."""

    @property
    def before(self) -> list[str]:
        return sorted({name for name, _ in self.edges})


@dataclass
class Graph:
    nodes: list[Node]
    order: list[int] = field(default_factory=list)
    """Places of the nodes in the order in which they are written, when it is another."""

    def node(self, id_: str) -> Node:
        return next(node for node in self.nodes if node.id == id_)

    def after(self, id_: str) -> set[str]:
        """A node and all that depends on it: what a gate that goes back to it undoes."""
        found = {id_}
        for node in self.nodes:
            if found & set(node.before):
                found.add(node.id)
        return found

    def upstream(self, id_: str) -> set[str]:
        return {node.id for node in self.nodes if id_ in self.after(node.id)} - {id_}

    def left(self) -> set[str]:
        """What may be given up: on every way to the end is a join that may have enough without it."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            after = [other for other in self.nodes if node.id in other.before]
            if after and all(other.needs or other.id in found for other in after):
                found.add(node.id)
        return found

    def uncertain(self) -> set[str]:
        """Nodes that run as often as the schedule has it: what may be left, and what a gate undoes.

        But for what lies between the node that it goes back to and the only gate: that has ended when the gate looks.
        """
        gates = [node for node in self.nodes if node.back_to and node.refuses]
        undone = set().union(*(self.after(gate.back_to) for gate in gates)) if gates else set()
        if len(gates) == 1 and not any(node.needs for node in self.nodes):
            undone -= self.upstream(gates[0].id)
        return undone | self.left()

    def decide_calls(self) -> None:
        uncertain = self.uncertain()
        for node in self.nodes:
            node.calls = node.kind in ("llm", "map") and node.id not in uncertain

    def definition(self, child: str) -> dict[str, Any]:
        return {
            "nodes": [
                self._written(node, child)
                for node in ([self.nodes[n] for n in self.order] if self.order else self.nodes)
            ],
            "connections": [
                {"from": name, "to": node.id} | ({"on": on} if on else {})
                for node in self.nodes
                for name, on in node.edges
            ],
        }

    def _written(self, node: Node, child: str) -> dict[str, Any]:
        reads = ", ".join(f"steps.{name}.output" for name in node.before)
        made: dict[str, Any] = {
            "id": node.id,
            "kind": node.kind,
            "value": f"[{reads}{', 1' if node.mended and reads else ''}]",
            "retry": {"attempts": 3, "initial_ms": 0, "max_ms": 0},
        }
        if node.kind == "join":
            made |= (
                {"mode": "all"}
                if not node.needs
                else {"mode": "any"}
                if node.needs == 1
                else {"mode": "count", "count": node.needs}
            )
        if node.kind == "map":
            made |= {"over": "[]", "item": {"kind": "transform", "value": "item"}}
        if node.kind == "gate":
            times = 1 if node.refuses == NEVER else 10
            made |= (
                {"on_fail": "retry", "retry": {"node": node.back_to, "times": times}}
                if node.back_to
                else {"on_fail": "branch"}
            )
        if node.kind in WITHIN:
            made |= {"ref": child}
        return made

    def failed_branch(self, id_: str) -> bool:
        return any(edge == (id_, "failed") for node in self.nodes for edge in node.edges)

    def verdict(self, node: Node) -> str:
        """How a gate ends at last: passed, failed, or stop."""
        if not node.refuses or (node.back_to and node.refuses != NEVER):
            return "passed"
        return "failed" if self.failed_branch(node.id) else "stop"

    def outcome(self) -> tuple[Result, set[str]]:
        """How every node ends that is not given up, and with which codes the execution may fail; none: it succeeds."""
        ends: Result = {}
        branches: dict[str, str] = {}
        codes: set[str] = set()
        for node in self.nodes:
            taken = [name for name, on in node.edges if ends[name][0] == "succeeded" and on in ("", branches[name])]
            if node.edges and len(taken) < max(node.needs, 1):
                ends[node.id], branches[node.id] = ("skipped", None), ""
                continue
            if node.fails == NEVER:
                codes.add("tool_failed")
            branches[node.id] = node.branch
            if node.kind == "gate":
                branches[node.id] = self.verdict(node)
                codes |= {"gate_failed"} if branches[node.id] == "stop" else set()
            ends[node.id] = ("succeeded", output_of(node, {name: ends[name] for name in node.before}))
        return ends, codes

    def must_fail(self) -> bool:
        """It fails in every schedule: what fails for good is not given up before."""
        ends, _ = self.outcome()
        left = self.left()
        return any(
            node.fails == NEVER or (node.kind == "gate" and self.verdict(node) == "stop")
            for node in self.nodes
            if node.id not in left and ends[node.id][0] != "skipped"
        )

    def mended(self, dice: Random) -> "Graph":
        """What fails for good does not any more; nodes are written in another order, behind one that is new."""
        nodes = [replace(node, fails=node.fails % NEVER, mended=node.fails == NEVER) for node in self.nodes]
        for node in nodes:
            if node.kind == "gate" and self.verdict(node) == "stop":
                node.refuses, node.mended = 0, True
        return Graph([Node("new", "transform"), *nodes], dice.sample(range(len(nodes) + 1), len(nodes) + 1))

    def last(self) -> Iterator[str]:
        followed = {name for node in self.nodes for name, _ in node.edges}
        return (node.id for node in self.nodes if node.id not in followed)


def digest(*parts: Any) -> str:
    return sha256(repr(parts).encode()).hexdigest()[:12]


def output_of(node: Node, before: Result) -> Any:
    """Depends on all that it is given, so that a step that ran too early or was given something old is seen."""
    if node.kind == "wait":
        return None
    if node.kind == "gate":
        return "gate"  # which round it passed in is a matter of the schedule
    if node.kind == "join" and node.needs:
        return node.id  # and so is which of its predecessors were there
    if node.kind in WITHIN:
        return {"x": "child"}
    made = digest(
        node.id,
        sorted((name, status, output if status == "succeeded" else None) for name, (status, output) in before.items()),
    )
    return [f"{made}{item}" for item in range(node.items)] if node.kind == "map" else made


def answer(graph: Graph, step: Step, child: str, calls: list[dict[str, Any]]) -> Outcome:
    """What a hand says of a step: a function of the step alone."""
    more = {"calls": calls}
    if step.node == "x":
        return step.done(output="child", **more)
    node = graph.node(step.node)
    if step.attempt <= node.fails:
        return step.failed(retryable=node.fails != NEVER) | more
    if step.item is not None:
        return step.done(output=step.value, **more)
    before = {name: (step.steps[name]["status"], step.steps[name]["output"]) for name in node.before}
    for name, (status, output) in before.items():
        if graph.node(name).kind == "gate":
            before[name] = (status, "gate" if status == "succeeded" else output)
    output = output_of(node, before)
    match node.kind:
        case "gate":
            passed = step.round >= node.refuses
            return step.done("gate", passed=passed, score=int(passed), threshold=1, feedback="no", value=output, **more)
        case "map":
            return step.done("items", items=output, concurrency=node.at_once, **more)
        case "wait":
            return step.done("waiting", wait={"kind": "timer", "due_at": "2020-01-01T00:00:00Z"}, state=None, **more)
        case "workflow" | "engine" if not step.decision:
            wait = {"kind": "execution", "of": node.kind, "ref": child, "input": {}}
            return step.done("waiting", wait=wait, state=None, **more)
        case "workflow" | "engine":
            return step.done(output=step.decision["output"], **more)
    return step.done(output=output, branch=node.branch or None, **more)


@st.composite
def graphs(draw: st.DrawFn, most: int = 12, kinds: Sequence[str] = KINDS) -> Graph:
    """Valid graphs: connections go from earlier nodes to later ones."""
    graph = Graph([])
    for number in range(draw(st.integers(2, most))):
        node = Node(f"n{number}", draw(st.sampled_from(kinds)))
        earlier = graph.nodes
        chosen = draw(st.lists(st.sampled_from(earlier), max_size=4)) if earlier else []
        for other in chosen:
            edge = (other.id, draw(st.sampled_from(["", *BRANCHES.get(other.kind, [])])))
            if edge not in node.edges:
                node.edges.append(edge)
        node.fails = draw(st.sampled_from([0] * 12 + [1, 2] * 3 + [NEVER])) if node.kind != "wait" else 0
        if node.kind in ("condition", "switch"):
            node.branch = draw(st.sampled_from(BRANCHES[node.kind]))
        elif node.kind == "map":
            node.items, node.at_once = draw(st.integers(0, 4)), draw(st.sampled_from([None, 1, 2]))
        elif node.kind == "join" and node.edges:
            node.needs = draw(st.integers(0, len(node.edges)))
        graph.nodes.append(node)
        if node.kind == "gate":
            node.refuses = draw(st.sampled_from([0, 1, 1, 2, NEVER]))
            upstream = sorted(graph.upstream(node.id))
            if upstream and draw(st.integers(0, 4)):
                node.back_to = draw(st.sampled_from(upstream))
            # one that sends nothing back has the rounds of others; one that fails for good may have a branch for it
            node.refuses = node.refuses if node.back_to or node.refuses in (0, NEVER) else NEVER
            node.fails = node.fails if node.fails != NEVER else 0
    # one that sends back to a node that was skipped lets it run
    ends, _ = graph.outcome()
    assume(all(not node.back_to or ends[node.back_to][0] != "skipped" for node in graph.nodes))
    graph.decide_calls()
    return graph


def joining() -> st.SearchStrategy[Graph]:
    """Graphs in which something may be given up."""
    return graphs(kinds=JOINING).filter(lambda graph: bool(graph.left()) and not graph.must_fail())
