"""The layout of graphs: every node has room of its own, every edge goes from its beginning to its end."""

import re
from graphlib import CycleError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vanilla_saas.console.drawing import GAP_X, HEIGHT, WIDTH, draw

EDGES = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda edge: edge[0] < edge[1]), unique=True, max_size=30
)


@given(EDGES)
def test_nodes_do_not_overlap_and_edges_run_from_left_to_right_between_their_ends(pairs: list[tuple[int, int]]) -> None:
    nodes = [f"n{n}" for n in range(12)]
    edges = [(f"n{a}", f"n{b}", str(n)) for n, (a, b) in enumerate(pairs)]
    drawing = draw(nodes, edges)
    boxes = {box.id: box for box in drawing.boxes}
    assert list(boxes) == nodes
    for box in boxes.values():
        assert 0 <= box.x <= drawing.width - WIDTH
        assert 0 <= box.y <= drawing.height - HEIGHT
        for other in boxes.values():
            apart = abs(box.x - other.x) >= WIDTH or abs(box.y - other.y) >= HEIGHT
            assert box is other or apart, (box, other)
    assert [(line.source, line.target, line.label) for line in drawing.lines] == edges
    for line in drawing.lines:
        numbers = [float(number) for number in re.findall(r"-?\d+", line.path)]
        source, target = boxes[line.source], boxes[line.target]
        assert target.x >= source.x + WIDTH + GAP_X
        assert numbers[:2] == pytest.approx([source.x + WIDTH, source.y + HEIGHT / 2], abs=1)
        assert numbers[-2:] == pytest.approx([target.x, target.y + HEIGHT / 2], abs=1)


def test_two_edges_that_cross_in_the_order_they_are_written_are_uncrossed() -> None:
    drawing = draw(["a", "b", "c", "d"], [("a", "d", ""), ("b", "c", "")])
    y = {box.id: box.y for box in drawing.boxes}
    assert (y["a"] < y["b"]) == (y["d"] < y["c"])


def test_a_circle_is_refused() -> None:
    with pytest.raises(CycleError):
        draw(["a", "b"], [("a", "b", ""), ("b", "a", "")])
