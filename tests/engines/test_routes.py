"""Engines over HTTP: who deploys, promotes, assigns, permits and sees what, and what is refused in which words."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import Person, serve, settings_for
from tests.engines.shop import Shop, plain
from tests.tokens.test_routes import get, post
from vanilla_saas.app import create_app

ADMIN = ["read", "chat", "admin"]
TONE = {"tone": {"type": "string", "enum": ["kind", "short"], "default": "kind"}}
WITH_TONE = {"type": "object", "properties": {"tone": {"type": "string"}, "n": {"type": "integer"}}}


@pytest.fixture(scope="module")
async def http(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an API without a worker: what is begun stays begun."""
    home = tmp_path_factory.mktemp("home")
    async with (
        serve(create_app(settings_for(floor.room.cluster, floor.room.name, home))) as address,
        aiohttp.ClientSession(address) as session,
    ):
        yield session


@pytest.fixture(scope="module")
async def admin(floor: Shop) -> Person:
    return await floor.room.people.user("admin", scopes=ADMIN)


async def send(
    http: aiohttp.ClientSession, method: str, person: Person, path: str, body: Any = None, status: int = 200
) -> Any:
    async with http.request(method, f"/api/v1{path}", headers=person.headers, json=body) as answer:
        content = await answer.read()
        assert answer.status == status, content
        return await answer.json() if content else None


async def deployed(
    floor: Shop, http: aiohttp.ClientSession, admin: Person, flow: dict[str, Any] | None = None, **more: Any
) -> str:
    """The slug of a new engine that everybody may run."""
    slug = f"e{uuid.uuid4().hex[:10]}"
    workflow = str(await floor.flow(flow or plain(), admin))
    await post(http, admin, "/engines", {"slug": slug, "workflow": workflow, **more}, status=201)
    await send(http, "PATCH", admin, f"/engines/{slug}", {"default_access": "execute"})
    return slug


async def again(floor: Shop, http: aiohttp.ClientSession, admin: Person, slug: str, text: str = "2") -> int:
    workflow = str(await floor.flow(plain(text), admin))
    made, _ = await post(http, admin, "/engines", {"slug": slug, "workflow": workflow}, status=201)
    return int(made["version"])


async def test_a_workflow_is_deployed_listed_changed_and_shown(
    floor: Shop, http: aiohttp.ClientSession, admin: Person
) -> None:
    workflow, slug = str(await floor.flow(plain(), admin)), f"e{uuid.uuid4().hex[:10]}"
    body = {"slug": slug, "workflow": workflow, "name": "Adds", "mode": "sequential"}
    made, _ = await post(http, admin, "/engines", body, status=201)
    assert (made["version"], made["unchanged"], len(made["hash"])) == (1, False, 64)
    same, _ = await post(http, admin, "/engines", body)
    assert (same["version"], same["unchanged"], same["hash"]) == (1, True, made["hash"])
    changed = await send(http, "PATCH", admin, f"/engines/{slug}", {"default_access": "read", "description": "Of one."})
    assert (changed["name"], changed["description"], changed["default_access"]) == ("Adds", "Of one.", "read")
    [row] = [row for row in (await get(http, admin, "/engine-catalog"))["data"] if row["slug"] == slug]
    assert (row["versions"], row["aliases"][0]["alias"], row["aliases"][0]["version"]) == (1, "stable", 1)
    shown = await get(http, admin, f"/engines/{made['engine_id']}")
    assert (shown["data"][0]["hash"], shown["data"][0]["mode"], shown["data"][0]["at_once"]) == (
        made["hash"],
        "sequential",
        1,
    )
    assert {level["access"] for level in shown["access"]} == {None}
    version = await get(http, admin, f"/engines/{slug}/versions/1")
    assert version["config"]["flow"]["workflow_id"] == workflow
    await get(http, admin, f"/engines/{slug}/versions/2", status=404)


async def test_what_makes_no_engine_is_refused_with_problems_by_field(
    floor: Shop, http: aiohttp.ClientSession, admin: Person
) -> None:
    workflow = str(await floor.flow(plain(input=WITH_TONE), admin))
    wrong = {"slug": "wrong", "workflow": workflow, "parameters": {"none": {"type": "string"}}}
    problem, _ = await post(http, admin, "/engines", wrong, status=422)
    assert (problem["code"], problem["problems"][0]["field"]) == ("invalid_definition", "parameters.none")
    for body, status in (
        ({"slug": "A b", "workflow": workflow}, 400),
        ({"slug": "x", "workflow": "none"}, 404),
        ({"slug": "x", "workflow": workflow, "workflow_version": 9}, 404),
        ({"slug": "x", "workflow": workflow, "mode": "both"}, 400),
        ({"slug": "x", "workflow": workflow, "mode": "sequential", "at_once": 2}, 400),
        ({"slug": "x", "workflow": workflow, "colour": 1}, 400),
        ({"slug": "x"}, 400),
    ):
        await post(http, admin, "/engines", body, status=status)


async def test_versions_are_promoted_rolled_back_and_retired(
    floor: Shop, http: aiohttp.ClientSession, admin: Person
) -> None:
    slug = await deployed(floor, http, admin)
    assert await again(floor, http, admin, slug) == 2
    path = f"/engines/{slug}"
    canary, _ = await post(http, admin, f"{path}/promote", {"version": 2, "alias": "canary", "weight": 100})
    assert canary["weight"] == 100
    user = await floor.person()
    assert (await get(http, user, "/engine-choice", ref=slug))["version"] == 2
    refused, _ = await post(http, admin, f"{path}/retire", {"version": 2}, status=409)
    assert refused["alias"] == "canary"
    ended, _ = await post(http, admin, f"{path}/rollback", {"alias": "canary"})
    assert (ended["from"], ended["version"]) == (2, None)
    await post(http, admin, f"{path}/promote", {"version": 2})
    back, _ = await post(http, admin, f"{path}/rollback", None)
    assert (back["from"], back["version"]) == (2, 1)
    await post(http, admin, f"{path}/rollback", {}, status=409)
    await post(http, admin, f"{path}/retire", {"version": 2})
    await post(http, admin, f"{path}/promote", {"version": 2}, status=409)
    for body in ({"version": 1, "alias": "canary"}, {"version": 1, "weight": 5}, {"version": 0}, {"alias": "newest"}):
        await post(http, admin, f"{path}/promote", body, status=400)
    await post(http, admin, f"{path}/promote", {"version": 7}, status=404)
    await post(http, admin, f"{path}/retire", None)
    problem, _ = await post(http, user, "/engines/run", {"ref": slug}, status=409)
    assert problem["reason"] == "engine_retired"


async def test_users_see_cards_of_what_their_level_permits_and_nothing_of_the_rest(
    floor: Shop, http: aiohttp.ClientSession, admin: Person
) -> None:
    slug = await deployed(floor, http, admin, plain(input=WITH_TONE), parameters=TONE)
    user, pro = await floor.person(), await floor.person("premium")
    level = await floor.level("free")
    await send(http, "PUT", admin, f"/engines/{slug}/levels/{level}", {"access": "none"}, status=204)
    assert slug not in [card["slug"] for card in (await get(http, user, "/engines"))["data"]]
    assert (await get(http, user, "/engine-choice", ref=slug))["denied_reason"] == "unknown"
    await post(http, user, "/engines/run", {"ref": slug}, status=404)
    [card] = [card for card in (await get(http, pro, "/engines"))["data"] if card["slug"] == slug]
    assert (card["access"], card["parameters"], card["input"]["type"]) == ("execute", TONE, "object")
    await send(http, "PUT", admin, f"/engines/{slug}/levels/{level}", {"access": "read"}, status=204)
    [card] = [card for card in (await get(http, user, "/engines"))["data"] if card["slug"] == slug]
    assert card["access"] == "read"
    problem, _ = await post(http, user, "/engines/run", {"ref": slug}, status=403)
    assert problem["need"] == "execute"
    shown = await get(http, admin, f"/engines/{slug}")
    assert {row["level"]: row["access"] for row in shown["access"]}["free"] == "read"
    of_user = await get(http, admin, "/engines", user_id=str(user.identity.user_id))
    assert slug in [card["slug"] for card in of_user["data"]]
    await send(http, "PUT", admin, f"/engines/{slug}/levels/{level}", {"access": None}, status=204)
    await send(http, "PUT", admin, f"/engines/{slug}/levels/{level}", {"access": "all"}, status=400)
    await send(http, "PUT", admin, f"/engines/{slug}/levels/{uuid.uuid4()}", {"access": "read"}, status=404)


async def test_assignments_choose_and_are_explained_to_oneself_and_to_admins(
    floor: Shop, http: aiohttp.ClientSession, admin: Person
) -> None:
    slug, other = await deployed(floor, http, admin), await deployed(floor, http, admin)
    user = await floor.person()
    mine = {"engine": slug, "target": "user", "target_id": str(user.identity.user_id)}
    made, _ = await post(http, admin, "/engine-assignments", {**mine, "pin": "1"}, status=201)
    assert (made["engine"], made["target_name"], made["pin"], made["valid_to"]) == (slug, user.email, "1", None)
    changed, _ = await post(http, admin, "/engine-assignments", {**mine, "priority": 5}, status=201)
    assert (changed["id"], changed["priority"], changed["pin"]) == (made["id"], 5, None)
    wide, _ = await post(http, admin, "/engine-assignments", {"engine": other, "target": "tenant"}, status=201)
    listed = (await get(http, admin, "/engine-assignments"))["data"]
    assert [row["id"] for row in listed if row["id"] in (made["id"], wide["id"])] == [made["id"], wide["id"]]
    assert [row["id"] for row in (await get(http, admin, "/engine-assignments", engine=other))["data"]] == [wide["id"]]
    told = await get(http, user, "/engine-choice")
    assert (told["engine"], told["source"], told["source_id"]) == (slug, "user", made["id"])
    for person, query in ((user, {}), (admin, {"user_id": str(user.identity.user_id)})):
        rows = (await get(http, person, "/engine-choice/explanation", **query))["data"]
        assert [(row["engine"], row["chosen"], row["reason"]) for row in rows] == [
            (slug, True, None),
            (other, False, "preceded"),
        ]
    await send(http, "DELETE", admin, f"/engine-assignments/{made['id']}", status=204)
    await send(http, "DELETE", admin, f"/engine-assignments/{made['id']}", status=404)
    assert (await get(http, user, "/engine-choice"))["engine"] == other
    await send(http, "DELETE", admin, f"/engine-assignments/{wide['id']}", status=204)
    for body, status in (
        ({"engine": slug, "target": "user"}, 400),
        ({"engine": slug, "target": "tier"}, 400),
        ({"engine": slug, "target": "tier", "tier": 2**40}, 400),
        ({"engine": slug, "target": "tenant", "pin": "newest"}, 400),
        ({"engine": slug, "target": "tenant", "pin": "9"}, 404),
        ({"engine": "none", "target": "tenant"}, 404),
        ({"engine": slug, "target": "platform"}, 403),
        ({**mine, "target_id": str(uuid.uuid4())}, 404),
        ({**mine, "valid_from": "2027-01-02T00:00Z", "valid_to": "2027-01-01T00:00Z"}, 400),
    ):
        await post(http, admin, "/engine-assignments", body, status=status)


async def test_an_engine_that_the_platform_offers_is_named_by_slug_too(
    floor: Shop, http: aiohttp.ClientSession, admin: Person
) -> None:
    owner = Person(floor.boss, "", uuid.uuid4())
    workflow = await floor.flow(plain(), owner)
    made = await floor.ask(floor.boss, "deploy_engine", "offered", workflow)
    engine = uuid.UUID(made["engine_id"])
    body = {"engine": "offered", "target": "tier", "tier": 77}
    await post(http, admin, "/engine-assignments", body, status=404)
    await floor.ask(floor.boss, "set_engine", engine, p_offered=True)
    assigned, _ = await post(http, admin, "/engine-assignments", body, status=201)
    assert (assigned["engine_id"], assigned["platform"], assigned["engine"]) == (str(engine), True, None)
    # nobody may run it yet: that it is there is the admin's to see
    user = await floor.person()
    assert "offered" not in [card["slug"] for card in (await get(http, user, "/engines"))["data"]]
    await get(http, user, "/engine-offers", status=403)
    [offer] = (await get(http, admin, "/engine-offers"))["data"]
    assert (offer["engine_id"], offer["slug"], offer["default_access"], offer["hidden"]) == (
        str(engine),
        "offered",
        "none",
        False,
    )
    assert {one["access"] for one in offer["levels"]} == {None}
    await get(http, admin, "/engines/offered", status=404)
    await post(http, admin, f"/engines/{engine}/promote", {"version": 1}, status=404)
    level = await floor.level("free")
    await send(http, "PUT", admin, f"/engines/offered/levels/{level}", {"access": "execute"}, status=204)
    [offer] = (await get(http, admin, "/engine-offers"))["data"]
    assert {one["level"]: one["access"] for one in offer["levels"] if one["access"]} == {"free": "execute"}
    stranger = await floor.room.people.user("admin", await floor.room.people.tenant(), scopes=ADMIN)
    [theirs] = (await get(http, stranger, "/engine-offers"))["data"]
    assert {one["access"] for one in theirs["levels"]} == {None}
    assert "offered" in [card["slug"] for card in (await get(http, user, "/engines"))["data"] if card["platform"]]


async def test_copies_stay_on_a_version_with_values_of_ones_own(
    floor: Shop, http: aiohttp.ClientSession, admin: Person
) -> None:
    slug = await deployed(floor, http, admin, plain(input=WITH_TONE), parameters=TONE)
    user, other = await floor.person(), await floor.person()
    body = {"ref": slug, "slug": "mine", "overlay": {"tone": "short"}, "is_default": True}
    made, _ = await post(http, user, "/engine-copies", body, status=201)
    assert (made["ref"], made["version"], made["is_default"]) == ("my/mine", 1, True)
    [copy] = (await get(http, user, "/engine-copies"))["data"]
    assert (copy["id"], copy["overlay"]) == (made["id"], {"tone": "short"})
    assert (await get(http, other, "/engine-copies"))["data"] == []
    of_user = await get(http, admin, "/engine-copies", user_id=str(user.identity.user_id))
    assert [row["id"] for row in of_user["data"]] == [made["id"]]
    assert (await get(http, user, "/engine-choice"))["source"] == "copy"
    for overlay, code in (({"tone": "loud"}, "parameter_invalid"), ({"n": 1}, "parameter_undeclared")):
        problem, _ = await post(http, user, "/engine-copies", {**body, "overlay": overlay}, status=422)
        assert problem["problems"][0]["code"] == code
    await post(http, user, "/engine-copies", {**body, "user_id": str(other.identity.user_id)}, status=403)
    await send(http, "DELETE", other, f"/engine-copies/{made['id']}", status=404)
    await send(http, "DELETE", user, f"/engine-copies/{made['id']}", status=204)


async def test_copies_are_taken_to_another_version_by_their_user_or_all_by_an_admin(
    floor: Shop, http: aiohttp.ClientSession, admin: Person
) -> None:
    slug = await deployed(floor, http, admin, plain(input=WITH_TONE), parameters=TONE)
    user, other = await floor.person(), await floor.person()
    body = {"ref": slug, "slug": "mine", "overlay": {"tone": "short"}}
    copy, theirs = [(await post(http, who, "/engine-copies", body, status=201))[0]["id"] for who in (user, other)]
    flow = await floor.flow(plain(input=WITH_TONE))
    kind = {"tone": {"type": "string", "enum": ["kind"]}}
    await post(http, admin, "/engines", {"slug": slug, "workflow": str(flow), "parameters": kind}, status=201)
    path = f"/engine-copies/{copy}/rebase"
    problem, _ = await post(http, user, path, {"to": "2"}, status=422)
    assert (problem["code"], problem["problems"][0]["field"]) == ("invalid_definition", "overlay.tone")
    looked, _ = await post(http, user, path, {"to": "2", "dry_run": True})
    assert [one["code"] for one in looked["conflicts"]] == ["parameter_invalid"]
    assert (looked["from"], looked["version"], looked["changed"]) == (1, 2, False)
    moved, _ = await post(http, user, path, {"to": "2", "overlay": {"tone": "kind"}})
    assert (moved["version"], moved["overlay"], moved["changed"]) == (2, {"tone": "kind"}, True)
    assert (await post(http, user, path, {}))[0]["version"] == 1
    for wrong in ({"to": "newest"}, {"to": 2}, {"overlay": []}, {"version": 2}):
        await post(http, user, path, wrong, status=400)
    await post(http, other, path, {"to": "2"}, status=404)
    reader = await floor.room.people.user(scopes=["read"])
    await post(http, reader, path, {"to": "2"}, status=403)
    every = f"/engines/{slug}/rebase"
    await post(http, user, every, {"to": "2"}, status=403)
    told, _ = await post(http, admin, every, {"to": "2"})
    assert {one["id"]: (one["changed"], len(one["conflicts"])) for one in told["data"]} == {
        copy: (True, 0),
        theirs: (False, 1),
    }
    told, _ = await post(http, admin, every, {"to": "2", "drop": True, "dry_run": True})
    assert {one["id"]: one["dropped"] for one in told["data"]} == {copy: [], theirs: ["tone"]}
    assert (await get(http, other, "/engine-copies"))["data"][0]["version"] == 1


async def test_users_and_other_tenants_manage_nothing(floor: Shop, http: aiohttp.ClientSession, admin: Person) -> None:
    slug = await deployed(floor, http, admin)
    user = await floor.room.people.user(scopes=ADMIN[:2])
    stranger = await floor.room.people.user("admin", await floor.room.people.tenant(), scopes=ADMIN)
    engine = (await get(http, admin, f"/engines/{slug}"))["id"]
    level = await floor.level("free")
    assigned, _ = await post(http, admin, "/engine-assignments", {"engine": slug, "target": "tier", "tier": 9}, 201)
    for path in (f"/engines/{engine}", f"/engines/{engine}/versions/1"):
        await get(http, user, path, status=403)
        await get(http, stranger, path, status=404)
    for path in ("/engine-catalog", "/engine-assignments", f"/engines/{engine}/report"):
        await get(http, user, path, status=403)
    assert (await get(http, stranger, "/engine-catalog"))["data"] == []
    assert (await get(http, stranger, "/engine-assignments"))["data"] == []
    assert (await get(http, stranger, f"/engines/{engine}/report"))["data"] == []
    for person, status in ((user, 403), (stranger, 404)):
        for method, path, body in (
            ("PATCH", f"/engines/{engine}", {"name": "x"}),
            ("POST", f"/engines/{engine}/promote", {"version": 1}),
            ("POST", f"/engines/{engine}/rollback", {}),
            ("POST", f"/engines/{engine}/retire", {}),
            ("POST", f"/engines/{engine}/rebase", {}),
            ("PUT", f"/engines/{engine}/levels/{level}", {"access": "execute"}),
            ("POST", "/engine-assignments", {"engine": engine, "target": "tenant"}),
            ("DELETE", f"/engine-assignments/{assigned['id']}", None),
        ):
            await send(http, method, person, path, body, status=status)
    theirs = {"user_id": str(user.identity.user_id)}
    for path in ("/engines", "/engine-choice", "/engine-choice/explanation"):
        await get(http, stranger, path, status=404, **theirs)
        await get(http, user, path, status=403, user_id=str(admin.identity.user_id))
    assert (await get(http, stranger, "/engine-choice", ref=slug))["engine_id"] is None


async def test_what_names_no_engine_is_refused(floor: Shop, http: aiohttp.ClientSession, admin: Person) -> None:
    for ref in ("A", "a@0", "my/", "a@newest", "../a"):
        assert (await get(http, admin, "/engine-choice", status=400, ref=ref))["param"] == "ref"
        assert (await post(http, admin, "/engines/run", {"ref": ref}, status=400))[0]["param"] == "ref"
    for name in ("none", "a@1", "A", str(uuid.uuid4())):
        await get(http, admin, f"/engines/{name}", status=404)
    await post(http, admin, "/engine-assignments", {"engine": "my/x", "target": "tenant"}, status=404)
    await get(http, admin, "/engines/none/report", status=404)
    slug = await deployed(floor, http, admin)
    await get(http, admin, f"/engines/{slug}/report?until=0001-01-01")
    await get(http, admin, f"/engines/{slug}/report?from=soon", status=400)
