"""Workflows over HTTP: saved by their owners, read by those they are shared with, published when nothing is wrong."""

import asyncio
from typing import Any

import aiohttp

from tests.conftest import People, Person
from tests.tokens.test_routes import get, post
from tests.tokens.test_wallet_routes import put
from tests.workflows.graphs import load
from vanilla_saas.workflows.definition import Definition, canonical

FLOW: dict[str, Any] = {
    "name": "Shorten",
    "nodes": [
        {"id": "shorten", "kind": "llm", "model": "sandbox-small", "prompt": "Shorten {{ input.text }}"},
        {"id": "check", "kind": "gate", "check": "length", "max": 100, "of": "steps.shorten.output.text"},
    ],
    "connections": [{"from": "shorten", "to": "check"}],
}


async def delete(http: aiohttp.ClientSession, person: Person, path: str, status: int = 204) -> None:
    async with http.delete(f"/api/v1{path}", headers=person.headers) as answer:
        assert answer.status == status, await answer.text()


async def four(people: People) -> tuple[Person, Person, Person, Person]:
    """An owner, another user and an admin of the tenant, and an admin of another."""
    tenant = await people.tenant()
    return (
        await people.user(tenant_id=tenant),
        await people.user(tenant_id=tenant),
        await people.user("admin", tenant, scopes=["read", "chat", "admin"]),
        await people.user("admin", await people.tenant(), scopes=["read", "chat", "admin"]),
    )


async def test_a_workflow_is_saved_published_shared_retired_and_deleted(
    http: aiohttp.ClientSession, people: People
) -> None:
    owner, other, admin, stranger = await four(people)
    made = await put(http, owner, "/workflows/shorten", {"definition": FLOW})
    assert (made["revision"], made["problems"]) == (1, [])
    # nobody but the owner and admins knows of it
    for person in (other, stranger):
        await get(http, person, "/workflows/shorten", status=404)
        assert (await get(http, person, "/workflows"))["data"] == []
    assert (await get(http, admin, "/workflows/shorten"))["user_id"] == str(owner.identity.user_id)
    taken = await put(http, other, "/workflows/shorten", {"definition": FLOW}, status=409)
    assert taken["param"] == "slug"

    published, _ = await post(http, owner, "/workflows/shorten/publish", {})
    assert (published["version"], published["unchanged"]) == (1, False)
    version = await get(http, owner, "/workflows/shorten/versions/1")
    # every default is written out: what it means does not depend on the release
    assert version["definition"]["nodes"][0]["retry"]["attempts"] == 3
    assert (version["hash"], version["state"]) == (published["hash"], "published")

    await put(http, owner, "/workflows/shorten", {"definition": FLOW, "shared": True, "expected_revision": 1})
    shared = await get(http, other, f"/workflows/{made['id']}")
    assert (shared["shared"], shared["latest_version"]) == (True, 1)
    assert (await get(http, other, "/workflows/shorten/versions/1"))["hash"] == published["hash"]
    for path, body in (("publish", {}), ("retire", {})):
        problem, _ = await post(http, other, f"/workflows/shorten/{path}", body, status=404)
        assert problem["code"] == "not_found"
    await delete(http, other, "/workflows/shorten", 404)
    await get(http, stranger, f"/workflows/{made['id']}", status=404)

    retired, _ = await post(http, admin, "/workflows/shorten/retire", {"version": 1})
    assert retired["latest_version"] is None
    assert [v["state"] for v in (await get(http, owner, "/workflows/shorten/versions"))["data"]] == ["retired"]
    await delete(http, owner, "/workflows/shorten")
    await get(http, owner, "/workflows/shorten", status=404)


async def test_problems_of_graph_fields_and_languages_are_told_together_and_stop_publishing(
    http: aiohttp.ClientSession, people: People
) -> None:
    owner, *_ = await four(people)
    wrong = {
        "name": "Wrong",
        "nodes": [
            {"id": "a", "kind": "transform", "value": "steps.b.output +"},
            {"id": "b", "kind": "llm", "model": "sandbox-small", "prompt": "{{ inputs.text }}", "color": "red"},
            {"id": "b", "kind": "transform", "value": "1"},
        ],
        "connections": [{"from": "a", "to": "c"}],
    }
    expected = {
        ("value", "expression_syntax"), ("color", "field_unknown"),
        ("nodes.2.id", "node_id_taken"), ("connections.0.to", "connection_node"),
    }  # fmt: skip
    found, _ = await post(http, owner, "/workflows/validate", {"definition": wrong})
    assert {(p["field"], p["code"]) for p in found["problems"]} >= expected
    saved = await put(http, owner, "/workflows/wrong", {"definition": wrong})
    assert saved["problems"] == found["problems"]
    refused, _ = await post(http, owner, "/workflows/wrong/publish", {}, status=422)
    assert (refused["code"], refused["problems"]) == ("invalid_definition", found["problems"])
    assert (await get(http, owner, "/workflows/wrong"))["latest_version"] is None
    # what the database would take is refused by its fields as well
    alone, _ = await post(
        http, owner, "/workflows/validate", {"definition": {"name": "x", "nodes": [{"id": "a", "kind": "transform"}]}}
    )
    assert [(p["node"], p["field"], p["code"]) for p in alone["problems"]] == [("a", "value", "field_missing")]


async def test_a_definition_comes_back_from_its_export_and_a_diff_says_what_changed(
    http: aiohttp.ClientSession, people: People
) -> None:
    owner, *_ = await four(people)
    await put(http, owner, "/workflows/shorten", {"definition": FLOW})
    await post(http, owner, "/workflows/shorten/publish", {})
    async with http.get("/api/v1/workflows/shorten/export", headers=owner.headers) as answer:
        assert answer.content_type == "application/yaml"
        text = await answer.text()
    assert canonical(load(text, "yaml")) == canonical(Definition.model_validate(FLOW))
    assert "retry" not in text  # defaults are left out
    same = await get(http, owner, "/workflows/shorten/diff", **{"from": 1})
    assert same["text"] == ""
    longer = FLOW | {"nodes": [FLOW["nodes"][0], FLOW["nodes"][1] | {"max": 200}]}
    await put(http, owner, "/workflows/shorten", {"definition": longer})
    changed = await get(http, owner, "/workflows/shorten/diff", **{"from": 1})
    assert changed["text"] == "~ node check: checks.0.max: 100 -> 200"
    schema = await get(http, owner, "/workflows/schema")
    assert schema["title"] == "Workflow definition"


async def test_a_workflow_begins_from_a_template_with_parameters(http: aiohttp.ClientSession, people: People) -> None:
    owner, *_ = await four(people)
    templates = {t["slug"]: t for t in (await get(http, owner, "/workflow-templates"))["data"]}
    assert len(templates) == 6
    for slug, template in templates.items():
        name = slug.replace("_", "-")
        made, _ = await post(http, owner, f"/workflow-templates/{slug}/instantiate", {"slug": name})
        assert made["problems"] == [], template["name"]
        await post(http, owner, f"/workflows/{name}/publish", {})
    again = {"slug": "summarise-and-check"}
    taken, _ = await post(http, owner, "/workflow-templates/summarise_and_check/instantiate", again, status=409)
    assert taken["param"] == "slug"
    odd = {"slug": "odd", "parameters": {"no_such": 1}}
    refused, _ = await post(http, owner, "/workflow-templates/summarise_and_check/instantiate", odd, status=422)
    assert refused["problems"][0]["code"] == "parameter_unknown"
    await post(http, owner, "/workflow-templates/none/instantiate", again, status=404)


async def test_of_many_who_save_from_one_revision_one_wins(http: aiohttp.ClientSession, people: People) -> None:
    owner, *_ = await four(people)
    await put(http, owner, "/workflows/shorten", {"definition": FLOW})

    async def save(n: int) -> int:
        body = {"definition": FLOW | {"description": str(n)}, "expected_revision": 1}
        async with http.put("/api/v1/workflows/shorten", headers=owner.headers, json=body) as answer:
            return answer.status

    assert sorted(await asyncio.gather(*map(save, range(6)))) == [200] + [409] * 5


async def test_a_tenants_own_template_stands_before_the_platforms_of_the_same_name(
    http: aiohttp.ClientSession, people: People
) -> None:
    owner, *_ = await four(people)
    await people.operator.execute(
        "insert into workflow_templates (tenant_id, slug, name, definition) values ($1, 'map_and_merge', 'Ours', $2)",
        owner.identity.tenant_id, FLOW,
    )  # fmt: skip
    mine = [t for t in (await get(http, owner, "/workflow-templates"))["data"] if t["slug"] == "map_and_merge"]
    assert next((t["name"], t["own"]) for t in mine) == ("Ours", True)
    made, _ = await post(http, owner, "/workflow-templates/map_and_merge/instantiate", {"slug": "ours"})
    assert made["problems"] == []
    assert (await get(http, owner, "/workflows/ours"))["name"] == "Shorten"


async def test_a_draft_that_is_nested_too_deep_is_shown_and_refused_like_any_other(
    http: aiohttp.ClientSession, people: People
) -> None:
    owner, *_ = await four(people)
    answered = {}
    for depth in (70, 240, 900):
        inside: Any = "x"
        for _ in range(depth):
            inside = [inside]
        body = {"definition": FLOW | {"description": inside}}
        async with http.put("/api/v1/workflows/deep", headers=owner.headers, json=body) as answer:
            answered[depth] = [answer.status]
        for path in ("", "/export", "/diff", "/publish"):
            post_it = http.post if path == "/publish" else http.get
            sent = {"json": {}} if path == "/publish" else {}
            async with post_it(f"/api/v1/workflows/deep{path}", headers=owner.headers, **sent) as answer:
                answered[depth].append(answer.status)
    # beyond what JSON is read to, nothing is saved and what was there stays
    assert answered == {depth: [400 if depth == 900 else 200, 200, 200, 422, 422] for depth in (70, 240, 900)}
