"""Budget trees over one wallet as the rules say it in words, written apart from the SQL. Time is in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field


class Refused(Exception):
    """With the reason that the database tells."""


@dataclass
class Step:
    node: Node
    name: str
    amount: int
    ends: int
    last: bool
    state: str = "open"
    charged: int = 0


@dataclass
class Node:
    parent: Node | None
    budget: int
    ends: int
    requests_at_most: int | None
    at_once: int | None
    kept: int = 0
    state: str = "open"
    own: int = 0
    """What its own steps drew."""
    overrun: int = 0
    requests: int = 0
    told: bool = False
    children: list[Node] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def way(self) -> list[Node]:
        """From the root to this one."""
        return [*(self.parent.way if self.parent else []), self]

    @property
    def limited(self) -> bool:
        return self.requests_at_most is not None or self.at_once is not None

    @property
    def carved(self) -> int:
        return sum(child.budget for child in self.children if child.state == "open")

    @property
    def held(self) -> int:
        return sum(step.amount for step in self.steps if step.state == "open")

    @property
    def spent(self) -> int:
        return self.own + sum(child.spent for child in self.children if child.state != "open")

    @property
    def under_way(self) -> int:
        """Steps that are open: its own, and where it counts for them those below."""
        below = sum(child.under_way_of_all for child in self.children) if self.limited else 0
        return below + sum(step.state == "open" for step in self.steps)

    @property
    def under_way_of_all(self) -> int:
        return sum(step.state == "open" for step in self.steps) + sum(child.under_way_of_all for child in self.children)

    @property
    def wrapped(self) -> bool:
        return any(step.last and step.state != "released" for step in self.steps)

    def left(self, last: bool = False) -> int:
        rest = self.budget - self.carved - self.held - self.spent
        return rest if last or self.wrapped else max(rest - self.kept, 0)

    def tell(self) -> None:
        self.told = self.told or 5 * (self.spent + self.held) >= 4 * self.budget


def lesser(one: int | None, two: int | None) -> int | None:
    return min((value for value in (one, two) if value is not None), default=None)


class Purse:
    """A hard wallet and the trees over it."""

    def __init__(self, available: int):
        self.now = 0
        self.available, self.debt, self.spent = available, 0, 0
        self.trees: list[Node] = []
        self.held: dict[int, int] = {}
        """What the wallet holds for each tree that lives, by its place."""

    def living(self, node: Node) -> None:
        root = self.trees.index(node.way[0])
        if node.state != "open":
            raise Refused("closed" if node.state == "closed" else "deadline")
        if node.ends <= self.now:
            raise Refused("deadline")
        if root not in self.held:
            raise Refused("closed")

    def give(self, tokens: int) -> None:
        repaid = min(tokens, self.debt)
        self.debt -= repaid
        self.available += tokens - repaid

    def take(self, tokens: int) -> None:
        if self.available < tokens or self.debt:
            raise Refused("VS402")
        self.available -= tokens

    def open(self, tokens: int, lasts: int, requests: int | None, at_once: int | None, kept: int) -> Node:
        if kept > tokens:
            raise Refused("VS402" if self.available < tokens or self.debt else "VS400")
        self.take(tokens)
        self.trees.append(Node(None, tokens, self.now + lasts, requests, at_once, kept))
        self.held[len(self.trees) - 1] = tokens
        return self.trees[-1]

    def carve(self, parent: Node, tokens: int | None, lasts: int, requests: int | None, at_once: int | None) -> Node:
        self.living(parent)
        wanted = parent.left() if tokens is None else tokens
        if parent.overrun or parent.wrapped or wanted > parent.left() or wanted == 0:
            raise Refused("budget_exhausted")
        limits = lesser(requests, parent.requests_at_most), lesser(at_once, parent.at_once)
        parent.children.append(Node(parent, wanted, min(self.now + lasts, parent.ends), *limits))
        return parent.children[-1]

    def hold(self, node: Node, name: str, tokens: int, lasts: int, last: bool) -> Step:
        here = next((step for step in node.steps if step.name == name and step.state != "released"), None)
        if here and here.state == "settled":
            return here
        self.living(node)
        until = min(self.now + lasts, node.ends)
        if here:
            here.ends = max(here.ends, until)
            return here
        if tokens > node.left(last) or (node.at_once is not None and node.under_way >= node.at_once):
            self.release_late(node)
        if node.overrun or node.wrapped or tokens > node.left(last):
            raise Refused("budget_exhausted")
        for above in node.way:
            if above is node or above.limited:
                if above.requests_at_most is not None and above.requests >= above.requests_at_most:
                    raise Refused("max_requests")
                if above.at_once is not None and above.under_way >= above.at_once:
                    raise Refused("max_concurrent")
        for above in node.way:
            above.requests += above is node or above.limited
        node.steps.append(Step(node, name, tokens, until, last))
        node.tell()
        return node.steps[-1]

    def release_late(self, node: Node) -> None:
        for step in node.steps:
            if step.state == "open" and step.ends <= self.now:
                step.state = "released"

    def settle(self, step: Step, actual: int) -> None:
        node = step.node
        replaced = any(other.name == step.name and other.state != "released" for other in node.steps)
        if step.state == "settled" or (step.state == "released" and (actual == 0 or replaced)):
            return
        root = self.trees.index(node.way[0])
        drawn = 0
        if node.state == "open" and root in self.held:
            drawn = min(actual, node.left(last=True) + (step.amount if step.state == "open" else 0))
            self.held[root] -= drawn
        step.state, step.charged = "settled", actual
        node.own += drawn
        node.overrun += actual - drawn
        self.spent += actual
        paid = min(actual - drawn, self.available)
        self.available -= paid
        self.debt += actual - drawn - paid
        node.tell()

    def close(self, node: Node) -> None:
        if node.state != "open":
            return
        self.release_late(node)
        if node.carved or any(step.state == "open" for step in node.steps):
            raise Refused("open")
        self.end(node, "closed")

    def end(self, node: Node, state: str) -> None:
        if node.state != "open":
            return
        for child in node.children:
            self.end(child, state)
        for step in node.steps:
            if step.state == "open":
                step.state = "released"
        node.state = state
        if node.parent is None:
            self.give(self.held.pop(self.trees.index(node), 0))

    def take_back(self, root: Node) -> None:
        """release_token_hold: the tree is over, though nobody has written that down."""
        place = self.trees.index(root)
        if place not in self.held:
            raise Refused("VS409")
        self.give(self.held.pop(place))

    def top_up(self, node: Node, tokens: int) -> None:
        self.living(node)
        if node.parent is None:
            self.take(tokens)
            self.held[self.trees.index(node)] += tokens
        elif node.parent.overrun or node.parent.wrapped or tokens > node.parent.left():
            raise Refused("budget_exhausted")
        node.budget += tokens
        node.told = node.told and 5 * (node.spent + node.held) >= 4 * node.budget

    def reap(self) -> None:
        for root in self.trees:
            for node in self.all(root):
                self.release_late(node)
        for root in self.trees:
            if root.state == "open" and self.trees.index(root) not in self.held and root.ends > self.now:
                self.end(root, "closed")
            for node in self.all(root):
                if node.ends <= self.now:
                    self.end(node, "expired" if root is not node or self.trees.index(root) in self.held else "closed")

    def all(self, node: Node) -> list[Node]:
        return [node, *(below for child in node.children for below in self.all(child))]
