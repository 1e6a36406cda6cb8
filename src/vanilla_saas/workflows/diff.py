"""How one definition differs from another, as data and as text that a person reads before publishing."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vanilla_saas.workflows.definition import Definition, canonical, plain
from vanilla_saas.workflows.documents import canonical_json, normal

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A field that is not as it was. A side that was not there is not in the data, which null would be."""

    path: Path
    before: tuple[Any, ...]
    after: tuple[Any, ...]

    @property
    def field(self) -> str:
        return ".".join(map(str, self.path))

    def data(self) -> dict[str, Any]:
        sides = {"before": self.before, "after": self.after}
        return {"field": self.field} | {name: side[0] for name, side in sides.items() if side}

    def __str__(self) -> str:
        if not self.before:
            return f"{self.field}: {_short(self.after[0])} (new)"
        if not self.after:
            return f"{self.field}: {_short(self.before[0])} (removed)"
        return f"{self.field}: {_short(self.before[0])} -> {_short(self.after[0])}"


@dataclass(frozen=True, slots=True)
class Difference:
    """Empty when both definitions are the same, however they were written."""

    fields: list[Change] = field(default_factory=list)
    nodes_added: list[dict[str, Any]] = field(default_factory=list)
    nodes_removed: list[dict[str, Any]] = field(default_factory=list)
    nodes_changed: dict[str, list[Change]] = field(default_factory=dict)
    connections_added: list[dict[str, Any]] = field(default_factory=list)
    connections_removed: list[dict[str, Any]] = field(default_factory=list)
    reordered: bool = False
    """Only the order in which nodes or connections are written is another: it runs as before."""

    def __bool__(self) -> bool:
        return self != Difference()

    def data(self) -> dict[str, Any]:
        return {
            "fields": [change.data() for change in self.fields],
            "nodes_added": self.nodes_added,
            "nodes_removed": self.nodes_removed,
            "nodes_changed": [
                {"id": name, "fields": [change.data() for change in changes]}
                for name, changes in self.nodes_changed.items()
            ],
            "connections_added": self.connections_added,
            "connections_removed": self.connections_removed,
            "reordered": self.reordered,
        }

    def text(self) -> str:
        """A line for each change; an empty text when there is none."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from (f"~ {change}" for change in self.fields)
        yield from (f"- node {node['id']} ({node['kind']})" for node in self.nodes_removed)
        yield from (f"+ node {node['id']} ({node['kind']})" for node in self.nodes_added)
        for name, changes in self.nodes_changed.items():
            yield from (f"~ node {name}: {change}" for change in changes)
        yield from (f"- connection {_arrow(link)}" for link in self.connections_removed)
        yield from (f"+ connection {_arrow(link)}" for link in self.connections_added)
        if self.reordered:
            yield "~ written in another order"


def difference(before: Definition, after: Definition) -> Difference:
    """What has to change in `before` to make it `after`. Nodes are the same when their ids are."""
    old, new = normal(plain(before)), normal(plain(after))
    old_nodes, new_nodes = ({node["id"]: node for node in one.pop("nodes")} for one in (old, new))
    old_links, new_links = ([_frozen(link) for link in one.pop("connections")] for one in (old, new))
    gone, come = Counter(old_links) - Counter(new_links), Counter(new_links) - Counter(old_links)
    kept = {name: list(_changes(node, new_nodes[name])) for name, node in old_nodes.items() if name in new_nodes}
    found = Difference(
        fields=list(_changes(old, new)),
        nodes_added=[node for name, node in new_nodes.items() if name not in old_nodes],
        nodes_removed=[node for name, node in old_nodes.items() if name not in new_nodes],
        nodes_changed={name: changes for name, changes in kept.items() if changes},
        connections_added=[dict(link) for link in come.elements()],
        connections_removed=[dict(link) for link in gone.elements()],
    )
    return found if found or canonical(before) == canonical(after) else Difference(reordered=True)


def _frozen(link: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(link.items())


def _changes(before: Any, after: Any, path: Path = ()) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from _side(before, after, key, key in before, key in after, path)
    elif isinstance(before, list) and isinstance(after, list):
        for n in range(max(len(before), len(after))):
            yield from _side(before, after, n, n < len(before), n < len(after), path)
    elif canonical_json(before) != canonical_json(after):  # not !=, to which true is 1
        yield Change(path, (before,), (after,))


def _side(before: Any, after: Any, key: str | int, in_before: bool, in_after: bool, path: Path) -> Iterator[Change]:
    if in_before and in_after:
        yield from _changes(before[key], after[key], (*path, key))
    else:
        yield Change((*path, key), (before[key],) if in_before else (), (after[key],) if in_after else ())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _arrow(link: dict[str, str]) -> str:
    return f"{link['from']} -> {link['to']}" + (f" on {link['on']}" if "on" in link else "")
