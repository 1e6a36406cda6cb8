"""Pages of engines over HTTP: what admins set, what users see and run, what is refused."""

import uuid
from collections.abc import AsyncIterator

import pytest

from tests.conftest import serve, settings_for
from tests.console.console_support import look, signed_in, submit
from tests.engines.shop import Shop, plain
from vanilla_saas.app import create_app

FRAGMENT = {"hx-request": "true"}
INPUT = {
    "type": "object",
    "properties": {"n": {"type": "integer", "title": "How many"}, "tone": {"type": "string"}},
    "required": ["n"],
}
TONE = {"tone": {"type": "string", "enum": ["kind", "short"], "default": "kind"}}
HOSTILE = "</h2><script>alert(1)</script>"


@pytest.fixture(scope="module")
async def api(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    home = tmp_path_factory.mktemp("home")
    async with serve(create_app(settings_for(floor.room.cluster, floor.room.name, home))) as address:
        yield address


async def test_an_admin_deploys_promotes_rolls_back_and_retires(floor: Shop, api: str) -> None:
    slug = f"e{uuid.uuid4().hex[:10]}"
    flows = [await floor.operator.fetchval("select slug from ai_workflows where id = $1", await floor.flow(plain(text)))
             for text in ("1", "2")]  # fmt: skip
    async with signed_in(api, floor.room.people, floor.admin) as http:
        _, page, _ = await look(http, "/engines")
        assert f'value="{flows[0]}"' in page.text
        for flow, notice in ((flows[0], "deployed"), (flows[0], "unchanged"), (flows[1], "deployed")):
            status, _, headers = await submit(http, "/engines", slug=slug, workflow=flow)
            assert (status, headers["location"]) == (303, f"/engines/{slug}?notice={notice}")
        for act, form, notice in (
            ("promote", {"version": 2, "alias": "canary", "weight": 25}, "promoted"),
            ("rollback", {"alias": "canary"}, "ended"),
            ("promote", {"version": 2}, "promoted"),
            ("rollback", {"alias": "stable"}, "rolled-back"),
        ):
            _, _, headers = await submit(http, f"/engines/{slug}/{act}", **form)
            assert headers["location"] == f"/engines/{slug}?notice={notice}"
            _, page, _ = await look(http, f"/engines/{slug}?notice={notice}")
            assert ("canary 25 %" in page.text) == (form.get("weight") == 25)
            assert "alert good" in page.text
        assert (await submit(http, f"/engines/{slug}/rollback", FRAGMENT, alias="stable"))[0] == 409
        await submit(http, f"/engines/{slug}/retire", version=2)
        await submit(http, f"/engines/{slug}/retire")
        _, page, _ = await look(http, "/engines")
        assert "retired" in page.text
        for act, form, wanted in (
            ("promote", {"version": "x"}, 400), ("promote", {"version": 9}, 404), ("promote", {"version": 2}, 409),
            ("settings", {"default_access": "all"}, 400),
            ("settings", {"default_access": "read", "offered": "true"}, 400),
            ("assign", {"target": "tier", "who": "high"}, 400), ("assign", {"target": "user", "who": "nobody"}, 404),
            ("levels", {"level": "none", "access": "read"}, 404), ("unassign", {"assignment": uuid.uuid4()}, 404),
        ):  # fmt: skip
            assert (await submit(http, f"/engines/{slug}/{act}", FRAGMENT, **form))[0] == wanted, (act, form)


async def test_an_admin_says_who_may_run_it_and_for_whom_it_is_chosen(floor: Shop, api: str) -> None:
    engine, user = await floor.deploy(access=None, p_name=HOSTILE, p_description=HOSTILE), await floor.person()
    path = f"/engines/{engine.slug}"
    async with signed_in(api, floor.room.people, user) as http:
        assert (await look(http, path))[0] == 404
    async with signed_in(api, floor.room.people, floor.admin) as http:
        await submit(http, f"{path}/settings", default_access="read")
        await submit(http, f"{path}/levels", level="free", access="execute")
        for form in (
            {"target": "tenant"}, {"target": "level", "who": "premium", "pin": "stable"},
            {"target": "tier", "who": "8", "priority": 3}, {"target": "user", "who": user.email, "pin": "1"},
        ):  # fmt: skip
            _, _, headers = await submit(http, f"{path}/assign", **form)
            assert headers["location"] == f"{path}?notice=assigned"
        _, page, _ = await look(http, path)
        for told in (f"user {user.email}", "level premium", "tier 8", "the tenant", "read where a level says nothing"):
            assert told in page.text, told
        assert HOSTILE not in page.text
    async with signed_in(api, floor.room.people, user) as http:
        _, page, _ = await look(http, path)
        assert "Run it" in page.text
        assert "Who may run it" not in page.text
        assert HOSTILE not in page.text
    rows = await floor.operator.fetch("select id from engine_assignments where engine_id = $1", engine.id)
    async with signed_in(api, floor.room.people, floor.admin) as http:
        for row in rows:
            await submit(http, f"{path}/unassign", assignment=str(row["id"]))
        await submit(http, f"{path}/levels", level="free", access="")
    assert (await floor.ask(user, "resolve_engine", p_ref=engine.slug))["access"] == "read"


async def test_a_user_fills_in_the_form_and_is_led_to_the_run(floor: Shop, api: str) -> None:
    engine = await floor.deploy(plain(input=INPUT), p_parameters=TONE, p_name="Doubles")
    reads = await floor.deploy(access="read", p_name="Only shown")
    user = await floor.person()
    async with signed_in(api, floor.room.people, user) as http:
        _, page, _ = await look(http, "/engines")
        assert "Doubles" in page.text
        assert "Deploy a workflow" not in page.text
        _, page, _ = await look(http, f"/engines/{reads.slug}")
        assert "may read it, not run it" in page.text
        _, page, _ = await look(http, f"/engines/{engine.slug}")
        assert "How many" in page.text
        assert "kind" in page.text  # what the parameter is without a word of the user
        form = {"key": "once", "field.n": "3", "field.tone": "short"}
        status, _, headers = await submit(http, f"/engines/{engine.slug}/run", **form)
        assert status == 303
        again = await submit(http, f"/engines/{engine.slug}/run", **form)
        assert again[2]["location"] == headers["location"]
        run = await floor.operator.fetchrow(
            "select e.input, x.engine_id from workflow_executions e join engine_executions x using (tenant_id, id)"
            " where e.id = $1",
            uuid.UUID(headers["location"].rpartition("/")[2]),
        )
        assert (run["input"], run["engine_id"]) == ({"n": 3, "tone": "short"}, engine.id)
        assert (await look(http, headers["location"]))[0] == 200
        assert (await submit(http, f"/engines/{engine.slug}/run", FRAGMENT, **{"field.n": "x"}))[0] == 400
        assert (await submit(http, f"/engines/{reads.slug}/run", FRAGMENT))[0] in (400, 403)
        assert (await submit(http, "/engines/none/run", FRAGMENT))[0] == 404
        # what admins do is refused
        for act, form in (
            ("promote", {"version": 1}), ("rollback", {}), ("retire", {}), ("settings", {"default_access": "execute"}),
            ("levels", {"level": "free", "access": "execute"}), ("assign", {"target": "tenant"}),
            ("unassign", {"assignment": str(uuid.uuid4())}),
        ):  # fmt: skip
            assert (await submit(http, f"/engines/{engine.slug}/{act}", FRAGMENT, **form))[0] in (403, 404), act
        assert (await submit(http, "/engines", FRAGMENT, slug="mine", workflow="none"))[0] in (403, 404)


async def test_names_of_no_engine_are_not_found_and_forms_from_elsewhere_refused(floor: Shop, api: str) -> None:
    engine = await floor.deploy()
    async with signed_in(api, floor.room.people, floor.admin) as http:
        for name in ("none", "a@1", f"{engine.slug}@1", str(uuid.uuid4()), "A"):
            assert (await look(http, f"/engines/{name}"))[0] == 404, name
        headers = {"accept": "text/html", "sec-fetch-site": "cross-site"}
        for act in ("run", "promote", "rollback", "retire", "settings", "levels", "assign", "unassign"):
            async with http.post(f"/engines/{engine.slug}/{act}", data={"version": 1}, headers=headers) as answer:
                assert answer.status == 403, act


async def test_where_there_is_no_engine_at_all_the_page_says_so(floor: Shop, api: str) -> None:
    admin = await floor.room.people.user("admin", await floor.room.people.tenant())
    async with signed_in(api, floor.room.people, admin) as http:
        status, page, _ = await look(http, "/engines")
        assert status == 200
        assert "No engines yet" in page.text
