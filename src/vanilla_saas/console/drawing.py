"""Where the nodes and edges of a directed acyclic graph are drawn, from left to right.

Layers by longest path, crossings reduced by sweeps of barycentres (Sugiyama, Tagawa, Toda 1981); an edge over several
layers passes through a place of its own in each. Units are CSS pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 168, 48, 72, 24, 8
SWEEPS = 8


@dataclass(frozen=True, slots=True)
class Box:
    """The upper left corner of a node."""

    id: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Line:
    """An edge as the path of an SVG, and where its label is: `below` it where it goes down, else above."""

    source: str
    target: str
    label: str
    path: str
    x: float
    y: float
    below: bool


@dataclass(frozen=True, slots=True)
class Drawing:
    boxes: Sequence[Box]
    lines: Sequence[Line]
    width: float
    height: float


def draw(nodes: Sequence[str], edges: Sequence[tuple[str, str, str]]) -> Drawing:
    """Places for `nodes` and paths for `edges` (from, to, label). Raises graphlib.CycleError for a circle."""
    ranks = _ranks(nodes, edges)
    chains = [_chain(n, source, target, ranks) for n, (source, target, _) in enumerate(edges)]
    layers = _layers(nodes, chains, ranks)
    _uncross(layers, chains)
    tallest = max(map(len, layers), default=0)
    height = tallest * (HEIGHT + GAP_Y) - GAP_Y
    places = {
        item: (
            MARGIN + rank * (WIDTH + GAP_X),
            MARGIN + (height - (len(layer) * (HEIGHT + GAP_Y) - GAP_Y)) / 2 + row * (HEIGHT + GAP_Y),
        )
        for rank, layer in enumerate(layers)
        for row, item in enumerate(layer)
    }
    boxes = [Box(node, *places[node]) for node in nodes]
    lines = [_line(edge, [places[item] for item in chain]) for edge, chain in zip(edges, chains, strict=True)]
    return Drawing(boxes, lines, len(layers) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN, height + 2 * MARGIN)


def _ranks(nodes: Sequence[str], edges: Sequence[tuple[str, str, str]]) -> Mapping[str, int]:
    before: dict[str, set[str]] = {node: set() for node in nodes}
    for source, target, _ in edges:
        before[target].add(source)
    ranks: dict[str, int] = {}
    for node in TopologicalSorter(before).static_order():
        ranks[node] = 1 + max((ranks[one] for one in before[node]), default=-1)
    return ranks


def _chain(number: int, source: str, target: str, ranks: Mapping[str, int]) -> list[str]:
    """The edge's ends, and a place in every layer between them; no node has a space in its name."""
    between = range(ranks[source] + 1, ranks[target])
    return [source, *(f"{number} {rank}" for rank in between), target]


def _layers(nodes: Sequence[str], chains: Sequence[Sequence[str]], ranks: Mapping[str, int]) -> list[list[str]]:
    layers: list[list[str]] = [[] for _ in range(1 + max(ranks.values(), default=-1))]
    for node in nodes:
        layers[ranks[node]].append(node)
    for chain in chains:
        for step, item in enumerate(chain[1:-1], start=1):
            layers[ranks[chain[0]] + step].append(item)
    return layers


def _uncross(layers: Sequence[list[str]], chains: Sequence[Sequence[str]]) -> None:
    left: dict[str, list[str]] = {item: [] for layer in layers for item in layer}
    right: dict[str, list[str]] = {item: [] for layer in layers for item in layer}
    for chain in chains:
        for one, other in pairwise(chain):
            right[one].append(other)
            left[other].append(one)
    rows = {item: row for layer in layers for row, item in enumerate(layer)}
    for sweep in range(SWEEPS):
        near, order = (left, layers) if sweep % 2 == 0 else (right, list(reversed(layers)))
        for layer in order[1:]:
            centre = {i: sum(rows[n] for n in near[i]) / len(near[i]) if near[i] else rows[i] for i in layer}
            layer.sort(key=centre.__getitem__)
            rows.update((item, row) for row, item in enumerate(layer))


def _line(edge: tuple[str, str, str], corners: Sequence[tuple[float, float]]) -> Line:
    x, y = corners[0][0] + WIDTH, corners[0][1] + HEIGHT / 2
    path = f"M{x:.0f} {y:.0f}"
    for n, (left, top) in enumerate(corners[1:], start=1):
        middle, end = (x + left) / 2, top + HEIGHT / 2
        path += f" C{middle:.0f} {y:.0f} {middle:.0f} {end:.0f} {left:.0f} {end:.0f}"
        if n < len(corners) - 1:
            path += f" H{left + WIDTH:.0f}"
        x, y = left + WIDTH, end
    source, target, label = edge
    (left, top), first = corners[0], corners[1]
    below = first[1] > top
    # nearer to where it leads than to where it begins: edges that part have their labels apart
    y = top + 0.8 * (first[1] - top) + HEIGHT / 2 + (14 if below else -6)
    return Line(source, target, label, path, (left + WIDTH + first[0]) / 2, y, below)
