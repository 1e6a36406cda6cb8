"""What people make of engines on pages: copies, keys; why an engine runs; runs that say whose engine they are."""

import re
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.conftest import DEFAULT_TENANT, serve, settings_for
from tests.console.console_support import look, signed_in, submit, super_admin
from tests.engines.shop import Shop, plain
from tests.engines.test_pages import FRAGMENT, INPUT
from vanilla_saas.app import create_app

DECLARED = {
    "n": {"type": "integer", "default": 5, "minimum": 1, "maximum": 9, "title": "How many"},
    "tone": {"type": "string", "enum": ["kind", "short"], "description": "How it speaks"},
}
COPY = "select * from user_engines where user_id = $1 and slug = $2"
KEYS = "select name, engine_ref, budget_tokens, revoked_at, expires_at from api_keys where user_id = $1 and engine_id is not null"


@pytest.fixture(scope="module")
async def api(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    home = tmp_path_factory.mktemp("home")
    async with serve(create_app(settings_for(floor.room.cluster, floor.room.name, home))) as address:
        yield address


async def test_a_copy_is_made_with_values_changed_and_renewed(floor: Shop, api: str) -> None:
    engine = await floor.deploy(plain(input=INPUT), p_parameters=DECLARED, p_name="Counts")
    user = await floor.person()
    path, me = f"/engines/{engine.slug}", user.identity.user_id
    async with signed_in(api, floor.room.people, user) as http:
        _, page, _ = await look(http, path)
        for told in ("How many", "From 1 to 9. Left empty: 5.", "How it speaks."):
            assert told in page.text, told
        made = await submit(http, f"{path}/copies", copy_name="three", **{"field.n": "3"})
        assert (made[0], made[2]["location"]) == (303, "/engines/my/three?notice=made")
        row = await floor.operator.fetchrow(COPY, me, "three")
        assert (row["overlay"], row["version"], row["is_default"]) == ({"n": 3}, 1, False)
        again = await submit(http, f"{path}/copies", FRAGMENT, copy_name="three")
        assert again[0] == 409
        assert 'data-field="copy_name"' in again[1]
        await floor.deploy_again(engine)
        await floor.ask(floor.admin, "promote_engine", engine.id, 2)
        await submit(http, "/engines/my/three/change", **{"field.n": "4", "field.tone": "short"})
        await submit(http, "/engines/my/three/default", default="true")
        row = await floor.operator.fetchrow(COPY, me, "three")
        assert (row["overlay"], row["version"], row["is_default"]) == ({"n": 4, "tone": "short"}, 1, True)
        _, page, _ = await look(http, "/engines/my/three")
        assert "Take up version 2" in page.text
        assert 'value="4"' in page.text
        _, page, _ = await look(http, "/engines")
        assert "my/three" in page.text
        assert "chosen by the default copy" in page.text
        # version 2 declares nothing
        refused = await submit(http, "/engines/my/three/renew", FRAGMENT)
        assert refused[0] == 422
        assert "The engine declares no such parameter." in refused[1]
        await submit(http, "/engines/my/three/change", default="true")
        assert (await submit(http, "/engines/my/three/renew"))[2]["location"] == "/engines/my/three?notice=renewed"
        row = await floor.operator.fetchrow(COPY, me, "three")
        assert (row["overlay"], row["version"], row["is_default"]) == ({}, 2, True)
        assert (await submit(http, f"/engines/copies/{row['id']}/delete"))[2]["location"].endswith("copy-deleted")
        assert (await look(http, "/engines/my/three"))[0] == 404


async def test_a_copy_is_not_run_with_an_input_that_does_not_fit(floor: Shop, api: str) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 3}}, "required": ["text"]}
    engine, user = await floor.deploy(plain(input=schema)), await floor.person()
    await floor.ask(user, "fork_engine", engine.slug, "mine")
    begun = "select count(*) from workflow_executions where user_id = $1"
    async with signed_in(api, floor.room.people, user) as http:
        refused = await submit(http, "/engines/my/mine/run", FRAGMENT, **{"field.text": "x"})
        assert (refused[0], await floor.operator.fetchval(begun, user.identity.user_id)) == (422, 0)
        assert 'data-field="input.text"' in refused[1]
        assert (await submit(http, "/engines/my/mine/run", **{"field.text": "xyz"}))[0] == 303
    assert await floor.operator.fetchval(begun, user.identity.user_id) == 1


async def test_what_does_not_fit_is_said_at_its_field(floor: Shop, api: str) -> None:
    engine = await floor.deploy(plain(input=INPUT), p_parameters=DECLARED)
    user = await floor.person()
    async with signed_in(api, floor.room.people, user) as http:
        for sent, field, words in (
            ({"field.n": "12"}, "overlay.n", "It is at most 9."),
            ({"field.n": "x"}, "field.n", "How many is not a whole number"),
            ({"copy_name": "Not A Slug"}, "copy_name", "should match pattern"),
        ):
            status, text, _ = await submit(
                http, f"/engines/{engine.slug}/copies", FRAGMENT, **{"copy_name": "c", **sent}
            )
            assert status in (400, 422)
            assert f'data-field="{field}"' in text
            assert words in text
    async with signed_in(api, floor.room.people, floor.admin) as http:
        flow = await floor.operator.fetchval("select slug from ai_workflows where id = $1", engine.flow)
        for sent, field in (
            ({"parameters": "odd: {type: integer}"}, "parameters.odd"), ({"parameters": "["}, "parameters"),
            ({"output": "a: ["}, "output"), ({"mode": "sequential", "at_once": 5}, "at_once"),
            ({"workflow_version": 0}, "workflow_version"),
        ):  # fmt: skip
            status, text, _ = await submit(http, "/engines", FRAGMENT, slug=engine.slug, workflow=flow, **sent)
            assert status in (400, 422), sent
            assert f'data-field="{field}"' in text, sent
        status, text, _ = await submit(
            http, f"/engines/{engine.slug}/promote", FRAGMENT, version=1, alias="canary", weight=101
        )
        assert (status, 'data-field="weight"' in text) == (400, True)


async def test_an_admin_deploys_with_limits_and_what_is_left_empty_stays(floor: Shop, api: str) -> None:
    flow = await floor.operator.fetchval(
        "select slug from ai_workflows where id = $1", await floor.flow(plain(input=INPUT))
    )
    slug = f"e{uuid.uuid4().hex[:10]}"
    sent = {"slug": slug, "workflow": flow}
    declared = "n: {type: integer, default: 7}"
    async with signed_in(api, floor.room.people, floor.admin) as http:
        await submit(http, "/engines", **sent, parameters=declared, at_once=3, name="Counts", access="execute",
                     output="type: string")  # fmt: skip
        await submit(http, "/engines", **sent, mode="sequential")
        await submit(http, "/engines", **sent, parameters="{}", output="{}")
        _, page, _ = await look(http, f"/engines/{slug}")
        assert "Deploy a further version" in page.text
        _, says, _ = await look(http, f"/engines/{slug}/versions/2", **FRAGMENT)
        assert "sequential" in says.text
        assert "<html" not in says.text
    rows = await floor.operator.fetch(
        "select v.at_once, v.config -> 'parameters' as parameters, v.config -> 'output' as output, e.default_access"
        " from engine_versions v join ai_engines e on e.id = v.engine_id where e.slug = $1 order by version",
        slug,
    )
    given = {"n": {"type": "integer", "default": 7}}
    assert [(row["at_once"], row["parameters"], row["output"]) for row in rows] == [
        (3, given, {"type": "string"}), (1, given, {"type": "string"}), (None, {}, {}),
    ]  # fmt: skip
    assert {row["default_access"] for row in rows} == {"execute"}
    async with signed_in(api, floor.room.people, await floor.person()) as http:
        assert (await look(http, f"/engines/{slug}/versions/1"))[0] == 404


async def test_a_key_is_shown_once_and_listed_for_its_user_and_admins(floor: Shop, api: str) -> None:
    engine = await floor.deploy()
    user, other = await floor.person(), await floor.person()
    path = f"/engines/{engine.slug}"
    async with signed_in(api, floor.room.people, user) as http:
        sent = {"name": "the site", "ref": f"{engine.slug}@stable", "budget_tokens": 500, "lifetime_days": 30}
        status, text, _ = await submit(http, f"{path}/keys", FRAGMENT, **sent)
        assert status == 200
        key = re.search(r"vsk_[\w-]{20,}", text)
        assert key is not None
        row = await floor.operator.fetchrow(KEYS, user.identity.user_id)
        assert (row["name"], row["engine_ref"], row["budget_tokens"]) == ("the site", f"{engine.slug}@stable", 500)
        assert row["expires_at"] is not None
        _, page, _ = await look(http, path)
        assert key.group() not in page.text
        assert key.group()[:12] in page.text
        assert f'<td class="mono">{engine.slug}@stable</td>' in page.text
        _, page, _ = await look(http, "/keys")
        assert f"{engine.slug}@stable" in page.text
        refused = await submit(http, f"{path}/keys", FRAGMENT, name="x", ref="none")
        assert refused[0] == 404
    for person, seen in ((other, False), (floor.admin, True)):
        async with signed_in(api, floor.room.people, person) as http:
            _, page, _ = await look(http, path)
            assert ("the site" in page.text) == seen
    key_id = await floor.operator.fetchval(
        "select id from api_keys where user_id = $1 and engine_id is not null", user.identity.user_id
    )
    async with signed_in(api, floor.room.people, other) as http:
        assert (await submit(http, f"{path}/keys/{key_id}/revoke", FRAGMENT))[0] == 404
    async with signed_in(api, floor.room.people, user) as http:
        await submit(http, f"{path}/keys/{key_id}/revoke")
    assert (await floor.operator.fetchrow(KEYS, user.identity.user_id))["revoked_at"] is not None


async def test_copies_are_their_user_s_and_the_admin_s(floor: Shop, api: str) -> None:
    engine = await floor.deploy()
    user, other = await floor.person(), await floor.person()
    copy = await floor.ask(user, "fork_engine", engine.slug, "mine")
    async with signed_in(api, floor.room.people, other) as http:
        for path in ("/engines/my/mine", "/engines"):
            _, page, _ = await look(http, path)
            assert "my/mine" not in page.text
        for act in ("run", "change", "renew", "default"):
            assert (await submit(http, f"/engines/my/mine/{act}", FRAGMENT))[0] == 404, act
        assert (await submit(http, f"/engines/copies/{copy['id']}/delete", FRAGMENT))[0] == 404
    async with signed_in(api, floor.room.people, floor.admin) as http:
        _, page, _ = await look(http, f"/engines/{engine.slug}")
        assert user.email in page.text
        await submit(http, f"/engines/copies/{copy['id']}/delete")
    assert await floor.operator.fetchrow(COPY, user.identity.user_id, "mine") is None


async def test_a_copy_that_cannot_be_run_says_why(floor: Shop, api: str) -> None:
    engine, user = await floor.deploy(), await floor.person()
    await floor.ask(user, "fork_engine", engine.slug, "old")
    await floor.deploy_again(engine)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2)
    await floor.ask(floor.admin, "retire_engine", engine.id, 1)
    async with signed_in(api, floor.room.people, user) as http:
        _, page, _ = await look(http, "/engines/my/old")
        assert "its version is retired" in page.text
        assert "Take up version 2" in page.text
        await submit(http, "/engines/my/old/renew")
        await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="none")
        _, page, _ = await look(http, "/engines/my/old")
        assert "not offered to you any more" in page.text
        _, page, _ = await look(http, "/engines")
        assert "not offered to you any more" in page.text


async def test_the_choice_is_explained_to_who_asks_and_of_anybody_to_admins(floor: Shop, api: str) -> None:
    tenant = await floor.room.people.tenant()
    admin = await floor.room.people.user("admin", tenant)
    user = await floor.person(tenant=tenant)
    flow = await floor.flow(plain(), admin)
    ids = {}
    for slug, access in (("shown", "read"), ("runs", "execute"), ("later", "execute"), ("unseen", "none")):
        ids[slug] = (await floor.ask(admin, "deploy_engine", slug, flow))["engine_id"]
        await floor.ask(admin, "set_engine", ids[slug], p_default_access=access)
    await floor.ask(admin, "assign_engine", ids["shown"], "user", user.identity.user_id, p_priority=2)
    await floor.ask(admin, "assign_engine", ids["unseen"], "user", user.identity.user_id)
    await floor.ask(admin, "assign_engine", ids["runs"], "level", await floor.level("free", tenant))
    await floor.ask(admin, "assign_engine", ids["later"], "tenant")
    async with signed_in(api, floor.room.people, admin) as http:
        status, page, _ = await look(http, f"/engine-choice?user={user.email}")
        assert status == 200
        for told in (f"{user.email} runs runs, version 1", "read_only", "not_entitled", "preceded", "the level"):
            assert told in page.text, told
        _, page, _ = await look(http, f"/engine-choice?user={user.email}&ref=runs@7")
        assert "there is no such version" in page.text
        for query, status, field in (("user=nobody", 404, "user"), ("ref=A@b@c", 400, "ref")):
            answer = await look(http, f"/engine-choice?{query}")
            assert answer[0] == status
            assert any(one.get("aria-invalid") and one["name"] == field for one in answer[1].all("input"))
    async with signed_in(api, floor.room.people, user) as http:
        _, page, _ = await look(http, "/engine-choice")
        assert "You run runs, version 1" in page.text
        assert "unseen" not in page.text
        assert not any(one.get("name") == "user" for one in page.all("input"))
        assert (await look(http, f"/engine-choice?user={admin.email}"))[0] in (403, 404)


async def test_a_run_names_the_engine_its_version_and_what_chose_it(floor: Shop, api: str) -> None:
    engine = await floor.deploy(plain(), p_name="Doubles")
    user = await floor.person()
    await floor.ask(user, "fork_engine", engine.slug, "two", p_is_default=True)
    await floor.deploy_again(engine)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2, "canary", 100)
    for ref, told in ((None, ("as the default copy", "my/two")), (engine.slug, ("by name", "canary"))):
        run = (await floor.run(user, ref))["execution_id"]
        for person in (user, floor.admin):
            async with signed_in(api, floor.room.people, person) as http:
                _, page, _ = await look(http, f"/runs/{run}")
                assert "Run of Doubles" in page.title
                assert f"/engines/{engine.slug}" in [link.get("href") for link in page.all("a")]
                for words in told:
                    assert words in page.text, words
                _, page, _ = await look(http, "/runs")
                assert "Doubles" in page.text
                assert ("canary" in page.text) == (ref is not None)
    await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="none")
    async with signed_in(api, floor.room.people, user) as http:
        _, page, _ = await look(http, f"/runs/{run}")
        assert "not offered to you any more" in page.text
        assert "Doubles" not in page.text


async def test_a_report_has_its_period_and_the_canary_beside_stable(floor: Shop, api: str) -> None:
    engine, user = await floor.deploy(), await floor.person()
    for text in ("2", "3"):
        await floor.deploy_again(engine, text)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2)
    await floor.ask(floor.admin, "promote_engine", engine.id, 1, "canary", 10)
    for version in (1, 2, 3):
        await floor.run(user, f"{engine.slug}@{version}")
    await floor.operator.execute(
        "update engine_executions set created_at = created_at - interval '3 days' where engine_id = $1 and version = 3",
        engine.id,
    )
    async with signed_in(api, floor.room.people, floor.admin) as http:
        for days, versions in ((7, ["2", "1", "3"]), (1, ["2", "1"])):
            _, page, _ = await look(http, f"/engines/{engine.slug}?days={days}")
            table = page.text[page.text.index("Table of runs by version") :]
            assert re.findall(r'scope="col" class="num">Version (\d)', table[: table.index("</thead>")]) == versions
        assert (await look(http, f"/engines/{engine.slug}?days=0"))[0] == 400


async def test_a_super_admin_who_has_opened_a_tenant_manages_its_engines(floor: Shop, api: str) -> None:
    engine, user = await floor.deploy(p_name="Theirs"), await floor.person()
    run = (await floor.run(user, engine.slug))["execution_id"]
    root = await super_admin(floor.room.people)
    async with signed_in(api, floor.room.people, root) as http:
        await submit(http, f"/tenants/{DEFAULT_TENANT}/open", reason="ticket 42")
        for path in ("/engines", f"/engines/{engine.slug}", f"/runs/{run}", "/runs"):
            status, page, _ = await look(http, path)
            assert status == 200, path
            assert "Theirs" in page.text, path
        assert (await look(http, "/engine-choice"))[0] == 200
        _, page, _ = await look(http, f"/engine-choice?user={user.email}&ref={engine.slug}")
        assert f"runs {engine.slug}" in page.text


async def test_the_page_says_how_programs_call_it(floor: Shop, api: str) -> None:
    engine = await floor.deploy(slug=f"run_{uuid.uuid4().hex[:8]}")
    user = await floor.person()
    async with signed_in(api, floor.room.people, user) as http:
        _, page, _ = await look(http, f"/engines/{engine.slug}")
        for said in (
            f"engine/{engine.slug}",
            f"at {api}/mcp",
            f"engine_{engine.slug}",
            f"{api}/a2a/engine_{engine.slug}",
        ):
            assert said in page.text
        closed = await floor.deploy(access="read")
        assert "/a2a/" not in (await look(http, f"/engines/{closed.slug}"))[1].text
