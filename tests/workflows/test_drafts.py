"""Drafts and versions in the database: graphs that validate, versions that never change, who may do what."""

import asyncio
import hashlib
import json
import uuid
from itertools import pairwise
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Cluster, People, Person
from tests.workflows.seed import FILE, seeded
from vanilla_saas.workflows.library import library

SAVE = "select save_workflow($1, $2, p_user_id => $3)"
AGAIN = "select save_workflow($1, $2, p_tenant_id => $3)"
PUBLISH = "select publish_workflow($1)"
RETIRE = "select retire_workflow($1, $2)"
VERSION = "select * from workflow_versions where workflow_id = $1 and version = $2"


def graph(nodes: str, connections: str = "") -> dict[str, Any]:
    """`a b` and `a>b b>c:failed`."""
    links = [link.partition(":") for link in connections.split()]
    ends = [(link.split(">"), branch) for link, _, branch in links]
    return {
        "name": "Graph",
        "nodes": [{"id": name, "kind": "transform", "value": "1"} for name in nodes.split()],
        "connections": [{"from": a, "to": b} | ({"on": on} if on else {}) for (a, b), on in ends],
    }


def node(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "nodes": [fields]}


MANY = " ".join(f"n{n}" for n in range(1000))
WRONG = {
    "a list": ([], "", "not_a_definition"),
    "more than a mebibyte": ({"name": "x" * 1_048_577}, "", "not_a_definition"),
    "no nodes": ({"name": "x"}, "nodes", "nodes_count"),
    "an empty list of nodes": ({"nodes": []}, "nodes", "nodes_count"),
    "nodes that are an object": ({"nodes": {}}, "nodes", "nodes_count"),
    "a node too many": (graph(f"{MANY} more"), "nodes", "nodes_count"),
    "connections that are an object": (graph("a") | {"connections": {}}, "connections", "connections_count"),
    "too many connections": (graph("a b", "a>b " * 5001), "connections", "connections_count"),
    "a node that is a text": ({"nodes": ["a"]}, "nodes.0.id", "node_id"),
    "a node without id": (node(kind="llm"), "nodes.0.id", "node_id"),
    "an id that is a number": (node(id=1, kind="llm"), "nodes.0.id", "node_id"),
    "an id with a capital": (node(id="A", kind="llm"), "nodes.0.id", "node_id"),
    "an id twice": (graph("a b a"), "nodes.2.id", "node_id_taken"),
    "an unknown kind": (node(id="a", kind="magic"), "kind", "node_kind"),
    "no kind": (node(id="a"), "kind", "node_kind"),
    "from nowhere": (graph("a", "b>a"), "connections.0.from", "connection_node"),
    "to nowhere": (graph("a", "a>b"), "connections.0.to", "connection_node"),
    "a connection that is a text": (graph("a") | {"connections": ["a"]}, "connections.0.from", "connection_node"),
    "to itself": (graph("a", "a>a"), "connections.0", "connection_self"),
    "twice": (graph("a b", "a>b a>b"), "connections.1", "connection_twice"),
    "a circle of two": (graph("a b", "a>b b>a"), "connections", "circle"),
    "a circle behind a node": (graph("a b c d", "a>b b>c c>d d>b"), "connections", "circle"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_with_a_graph_is_said_by_place_and_code(operator: asyncpg.Connection, case: str) -> None:
    definition, field, code = WRONG[case]
    found = await operator.fetchval("select validate_workflow($1)", definition)
    assert (field, code) in [(problem["field"], problem["code"]) for problem in found], found
    assert all(problem["message"] for problem in found)


async def test_a_circle_is_told_by_its_nodes_and_no_other(operator: asyncpg.Connection) -> None:
    [problem] = await operator.fetchval("select validate_workflow($1)", graph("in a b c out", "in>a a>b b>c c>a c>out"))
    assert problem["message"] == "b -> c -> a -> b wait for each other in a circle."


async def test_the_same_connection_by_two_branches_is_two(operator: asyncpg.Connection) -> None:
    both = graph("a b", "a>b:passed a>b:failed")
    assert await operator.fetchval("select validate_workflow($1)", both) == []


async def test_a_graph_of_the_largest_size_validates(operator: asyncpg.Connection) -> None:
    chain = " ".join(f"n{n}>n{n + step}" for step in range(1, 6) for n in range(1000 - step))
    assert await operator.fetchval("select validate_workflow($1)", graph(MANY, chain)) == []
    back = await operator.fetchval("select validate_workflow($1)", graph(MANY, f"{chain} n999>n0"))
    assert [problem["code"] for problem in back] == ["circle"]


async def test_whatever_json_is_validated_it_is_answered_with_problems(operator: asyncpg.Connection) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["a", "b", "llm", "", "A b"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["id", "kind", "from", "to", "on", "nodes", "connections"]), inner)
        ),
        max_leaves=20,
    )
    drawn: list[Any] = []

    @settings(max_examples=200, database=None, deadline=None)
    @given(st.builds(lambda nodes, links: {"nodes": nodes, "connections": links}, values, values) | values)
    def draw(value: Any) -> None:
        drawn.append(value)

    await asyncio.to_thread(draw)
    for value in drawn:
        found = await operator.fetchval("select validate_workflow($1::jsonb)", value)
        assert isinstance(found, list), value


async def test_a_graph_has_a_circle_exactly_when_it_has_no_order(operator: asyncpg.Connection) -> None:
    pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda p: p[0] != p[1]), unique=True)
    drawn: list[list[tuple[int, int]]] = []

    @settings(max_examples=300, database=None, deadline=None)
    @given(pairs)
    def draw(edges: list[tuple[int, int]]) -> None:
        drawn.append(edges)

    await asyncio.to_thread(draw)
    circles = 0
    for edges in drawn:
        definition = graph("n0 n1 n2 n3 n4 n5 n6", " ".join(f"n{a}>n{b}" for a, b in edges))
        found = await operator.fetchval("select validate_workflow($1)", definition)
        assert bool(found) == (not _ordered(edges)), edges
        if found:
            circles += 1
            path = found[0]["message"].partition(" wait")[0].split(" -> ")
            assert all((int(a[1:]), int(b[1:])) in edges for a, b in pairwise(path)), (edges, path)
            assert path[0] == path[-1]
    assert 0 < circles < len(drawn)


def _ordered(edges: list[tuple[int, int]]) -> bool:
    left = set(range(7))
    while free := {n for n in left if not any(b == n and a in left for a, b in edges)}:
        left -= free
    return not left


async def saved(people: People, person: Person, definition: dict[str, Any] | None = None) -> tuple[uuid.UUID, str]:
    slug = f"flow-{uuid.uuid4().hex[:8]}"
    made = await people.operator.fetchval(SAVE, slug, definition or graph("a b", "a>b"), person.identity.user_id)
    return uuid.UUID(made["id"]), slug


async def test_a_version_has_the_hash_of_its_text_and_counts_without_gaps(people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    workflow, slug = await saved(people, person)
    first = await people.operator.fetchval(PUBLISH, workflow)
    assert (first["version"], first["unchanged"]) == (1, False)
    text = await people.operator.fetchval(
        "select definition::text from workflow_versions where workflow_id = $1", workflow
    )
    assert first["hash"] == hashlib.sha256(text.encode()).hexdigest()
    again = await people.operator.fetchval(PUBLISH, workflow)
    assert (again["version"], again["unchanged"]) == (1, True)
    await people.operator.fetchval(AGAIN, slug, graph("a b c", "a>b"), person.identity.tenant_id)
    assert (await people.operator.fetchval(PUBLISH, workflow))["version"] == 2
    # the draft goes back to what version 1 was: a version of its own
    await people.operator.fetchval(AGAIN, slug, graph("a b", "a>b"), person.identity.tenant_id)
    assert (await people.operator.fetchval(PUBLISH, workflow))["version"] == 3


async def test_no_role_changes_a_version(people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    workflow, _ = await saved(people, person)
    await people.operator.fetchval(PUBLISH, workflow)
    await people.operator.fetchval(RETIRE, workflow, 1)
    changes = (
        "definition = '{}', hash = sha256('{}')", "version = 7", "published_at = now()", "published_by = user_id",
        "state = 'published', retired_at = null",
    )  # fmt: skip
    for change in changes:
        for role in ("vanilla_definer", "vanilla_system", None):
            transaction = people.operator.transaction()
            await transaction.start()
            if role:
                await people.operator.execute(f"set local role {role}")
            with pytest.raises(asyncpg.PostgresError) as error:
                await people.operator.execute(f"update workflow_versions set {change} where workflow_id = $1", workflow)
            await transaction.rollback()
            assert error.value.sqlstate == "VS409", (change, role, error.value)


async def test_what_does_not_validate_is_not_published_and_says_why(people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    workflow, _ = await saved(people, person, graph("a b", "a>b b>a"))
    with pytest.raises(asyncpg.PostgresError) as error:
        await people.operator.fetchval(PUBLISH, workflow)
    assert error.value.sqlstate == "VS422"
    assert json.loads(error.value.detail)["problems"][0]["code"] == "circle"
    assert (
        await people.operator.fetchval("select count(*) from workflow_versions where workflow_id = $1", workflow) == 0
    )


async def test_retired_versions_stay_retired_and_a_retired_workflow_comes_back_by_publishing(people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    workflow, slug = await saved(people, person)
    await people.operator.fetchval(PUBLISH, workflow)
    await people.operator.fetchval(AGAIN, slug, graph("a"), person.identity.tenant_id)
    await people.operator.fetchval(PUBLISH, workflow)
    assert (await people.operator.fetchval(RETIRE, workflow, 2))["latest_version"] == 1
    row = await people.operator.fetchrow(VERSION, workflow, 2)
    assert (row["state"], row["retired_at"] is not None) == ("retired", True)
    for version, state in ((2, "VS409"), (9, "VS404")):
        with pytest.raises(asyncpg.PostgresError) as error:
            await people.operator.fetchval(RETIRE, workflow, version)
        assert error.value.sqlstate == state
    assert (await people.operator.fetchval(RETIRE, workflow, None))["latest_version"] == 1
    with pytest.raises(asyncpg.PostgresError) as error:
        await people.operator.fetchval(RETIRE, workflow, None)
    assert error.value.sqlstate == "VS409"
    # the draft is what version 2 was, which is retired
    assert (await people.operator.fetchval(PUBLISH, workflow))["version"] == 3
    status = "select status from ai_workflows where id = $1"
    assert await people.operator.fetchval(status, workflow) == "active"


async def test_of_two_who_publish_at_once_each_gets_a_version_of_its_own(
    people: People, cluster: Cluster, database_name: str
) -> None:
    person = await people.user(tenant_id=await people.tenant())
    workflow, _ = await saved(people, person)
    connections = [await asyncpg.connect(cluster.url(database=database_name)) for _ in range(4)]
    try:
        given = "select publish_workflow($1, p_definition => $2::text::jsonb) ->> 'version'"
        made = await asyncio.gather(
            *(one.fetchval(given, workflow, json.dumps(graph(f"a{n}"))) for n, one in enumerate(connections))
        )
    finally:
        for one in connections:
            await one.close()
    assert sorted(made) == ["1", "2", "3", "4"]


async def test_who_began_from_an_older_revision_overwrites_nothing(people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    _, slug = await saved(people, person)
    save = "select save_workflow($1, $2, p_expected_revision => $3, p_user_id => $4)"
    second = await people.operator.fetchval(save, slug, graph("second"), 1, person.identity.user_id)
    assert second["revision"] == 2
    with pytest.raises(asyncpg.PostgresError) as error:
        await people.operator.fetchval(save, slug, graph("third"), 1, person.identity.user_id)
    assert (error.value.sqlstate, json.loads(error.value.detail)["revision"]) == ("VS409", 2)
    draft = "select draft -> 'nodes' -> 0 ->> 'id' from ai_workflows where tenant_id = $1 and slug = $2"
    assert await people.operator.fetchval(draft, person.identity.tenant_id, slug) == "second"


async def test_a_level_limits_the_workflows_that_are_not_retired(people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    await people.operator.execute(
        "select set_level_restriction(id, 'workflows', 1, null, tenant_id) from levels"
        " where tenant_id = $1 and is_default",
        person.identity.tenant_id,
    )
    workflow, slug = await saved(people, person)
    with pytest.raises(asyncpg.PostgresError) as error:
        await saved(people, person)
    assert error.value.sqlstate == "VS429"
    assert json.loads(error.value.detail) | {"resets_at": None} == {
        "restriction": "workflows", "limit": 1, "used": 1, "resets_at": None,
    }  # fmt: skip
    # what is there is saved as before, and a retired one leaves its place
    await people.operator.fetchval(AGAIN, slug, graph("a"), person.identity.tenant_id)
    await people.operator.fetchval(RETIRE, workflow, None)
    other, _ = await saved(people, person)
    # which it needs again to come back
    with pytest.raises(asyncpg.PostgresError) as error:
        await people.operator.fetchval(PUBLISH, workflow)
    assert error.value.sqlstate == "VS429"
    await people.operator.fetchval(RETIRE, other, None)
    await people.operator.fetchval(PUBLISH, workflow)


async def test_workflows_of_an_erased_user_go_with_them_but_for_shared_ones(people: People) -> None:
    person = await people.user(tenant_id=await people.tenant())
    private, _ = await saved(people, person)
    shared, slug = await saved(people, person)
    await people.operator.fetchval(
        "select save_workflow($1, $2, true, p_tenant_id => $3)", slug, graph("a"), person.identity.tenant_id
    )
    for workflow in (private, shared):
        await people.operator.fetchval(PUBLISH, workflow)
    await people.operator.fetchval("select erase_user($1, 'asked')", person.identity.user_id)
    left = "select array_agg(workflow_id) from workflow_versions where user_id = $1"
    assert await people.operator.fetchval(left, person.identity.user_id) == [shared]


async def test_the_templates_that_ship_are_those_of_the_library(operator: asyncpg.Connection) -> None:
    assert seeded(FILE.read_text()) == FILE.read_text(), "run python -m tests.workflows.seed"
    rows = await operator.fetch(
        "select slug, parameters, definition from workflow_templates where tenant_id = vanilla.platform()"
    )
    assert {row["slug"]: (row["parameters"], row["definition"]) for row in rows} == {
        slug: (template.parameters, template.definition) for slug, template in library().items()
    }
    assert len(rows) == 6
