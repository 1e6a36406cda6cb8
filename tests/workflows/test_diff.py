"""A difference is empty for the same definition and otherwise enough to make one of the other."""

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings

from tests.workflows.graphs import definitions
from vanilla_saas.workflows.definition import Definition, canonical, plain
from vanilla_saas.workflows.diff import Change, Difference, difference
from vanilla_saas.workflows.documents import canonical_json

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def made(**fields: Any) -> Definition:
    return Definition.model_validate({"name": "x", "nodes": [{"id": "a", "kind": "prompt", "template": "t"}], **fields})


def prompt(id_: str, template: str = "t", **fields: Any) -> dict[str, Any]:
    return {"id": id_, "kind": "prompt", "template": template, **fields}


def set_at(document: Any, change: Change) -> None:
    *inner, last = change.path
    for key in inner:
        document = document[key]
    if change.after and isinstance(document, list) and last == len(document):
        document.append(change.after[0])
    elif change.after:
        document[last] = change.after[0]
    else:
        del document[last]


def applied(document: dict[str, Any], found: Difference) -> dict[str, Any]:
    """What `found` says, done to `document`."""
    document = copy.deepcopy(document)
    gone = {node["id"] for node in found.nodes_removed}
    document["nodes"] = [node for node in document["nodes"] if node["id"] not in gone]
    by_id = {node["id"]: node for node in document["nodes"]}
    for target, changes in [(document, found.fields), *((by_id[n], c) for n, c in found.nodes_changed.items())]:
        for change in [*(c for c in changes if c.after), *reversed([c for c in changes if not c.after])]:
            set_at(target, change)
    document["nodes"] += found.nodes_added
    for link in found.connections_removed:
        document["connections"].remove(link)
    document["connections"] += found.connections_added
    return document


def unordered(document: dict[str, Any]) -> bytes:
    return canonical_json(
        document | {name: sorted(map(canonical_json, document[name])).__repr__() for name in ("nodes", "connections")}
    )


@SLOW
@given(definitions())
def test_a_definition_does_not_differ_from_itself(document: dict[str, Any]) -> None:
    found = difference(Definition.model_validate(document), Definition.model_validate(copy.deepcopy(document)))
    assert not found
    assert (found.text(), found) == ("", Difference())


@SLOW
@given(definitions(), definitions())
def test_what_a_difference_says_makes_one_of_the_other(one: dict[str, Any], other: dict[str, Any]) -> None:
    before, after = Definition.model_validate(one), Definition.model_validate(other)
    found = difference(before, after)
    assert bool(found) == (canonical(before) != canonical(after))
    assert unordered(applied(plain(before), found)) == unordered(plain(after))
    assert bool(found.text()) == bool(found)


def test_a_difference_reads_as_people_speak() -> None:
    before = made(
        nodes=[prompt("a"), prompt("b"), prompt("c")],
        connections=[{"from": "a", "to": "b"}, {"from": "b", "to": "c"}],
        description="old",
    )
    after = made(
        nodes=[prompt("a", "u", name="New"), {"id": "b", "kind": "condition", "condition": "true"}, prompt("d")],
        connections=[{"from": "a", "to": "b"}, {"from": "b", "to": "d", "on": "true"}],
        priority=3,
    )
    assert difference(before, after).text().splitlines() == [
        '~ description: "old" (removed)',
        "~ priority: 3 (new)",
        "- node c (prompt)",
        "+ node d (prompt)",
        '~ node a: template: "t" -> "u"',
        '~ node a: name: "New" (new)',
        '~ node b: kind: "prompt" -> "condition"',
        '~ node b: template: "t" (removed)',
        '~ node b: condition: "true" (new)',
        "- connection b -> c",
        "+ connection b -> d on true",
    ]


def test_data_tells_null_from_nothing() -> None:
    before, after = made(input={"default": 1}), made(input={"default": None, "title": None})
    assert difference(before, after).data()["fields"] == [
        {"field": "input.default", "before": 1, "after": None},
        {"field": "input.title", "after": None},
    ]


def test_true_is_not_one_and_one_is_one() -> None:
    assert difference(made(input={"const": 1}), made(input={"const": True})).fields
    assert not difference(made(input={"const": 1}), made(input={"const": 1.0}))


def test_another_order_is_said_and_nothing_else() -> None:
    found = difference(made(nodes=[prompt("a"), prompt("b")]), made(nodes=[prompt("b"), prompt("a")]))
    assert found == Difference(reordered=True)
    assert found.text() == "~ written in another order"
