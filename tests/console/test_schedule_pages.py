"""Schedules on the page of a workflow: added, changed and deleted by whose it is, refused in place."""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import serve, settings_for
from tests.console.console_support import look, signed_in, submit
from tests.workflows.conftest import desk
from tests.workflows.hands import Room, workflow
from vanilla_saas.app import create_app

__all__ = ["desk"]

FRAGMENT = {"hx-request": "true"}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
async def api(desk: Room, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with serve(create_app(settings_for(desk.cluster, desk.name, tmp_path_factory.mktemp("home")))) as address:
        yield address


async def test_a_schedule_is_added_changed_and_deleted(desk: Room, api: str) -> None:
    shape = await desk.publish(workflow("a"))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", shape)
    path = f"/workflows/{slug}"
    form = {"name": "nightly", "cron": " 30  2 * * * ", "time_zone": "Europe/Vienna", "catch_up": "one",
            "input": f'{{"text": "{HOSTILE}"}}', "enabled": "true"}  # fmt: skip
    saved = "select cron, input ->> 'text', enabled, user_id from workflow_schedules where workflow_id = $1"
    async with signed_in(api, desk.people, desk.owner) as http:
        assert "Add a schedule" in (await look(http, path))[1].text
        for wrong, told in (
            ({"cron": "soon"}, "is not a schedule"),
            ({"time_zone": "Mars"}, "here is no time zone Mars"),
            ({"input": "[1]"}, "he input is no JSON object"),
            ({"name": "A b"}, "A name as nightly"),
        ):
            status, text, _ = await submit(http, f"{path}/schedules", FRAGMENT, **form | wrong)
            assert (status, told in text) == (400, True), text
        status, _, headers = await submit(http, f"{path}/schedules", **form)
        assert (status, headers["location"]) == (303, f"{path}?notice=scheduled")
        page = (await look(http, path))[1]
        assert "Change nightly" in page.text
        assert "Europe/Vienna" in page.text
        assert HOSTILE not in page.text
        owner = desk.owner.identity.user_id
        assert tuple(await desk.operator.fetchrow(saved, shape)) == ("30 2 * * *", HOSTILE, True, owner)
        assert {"type": "hidden", "name": "user_id", "value": str(owner)} in page.all("input")
        # an admin changes it, and its owner goes on to pay
        admin = await desk.people.user("admin", tenant_id=desk.owner.identity.tenant_id)
        async with signed_in(api, desk.people, admin) as theirs:
            changed = form | {"enabled": "false", "user_id": str(owner)}
            assert (await submit(theirs, f"{path}/schedules", **changed))[0] == 303
        assert tuple(await desk.operator.fetchrow(saved, shape)) == ("30 2 * * *", HOSTILE, False, owner)
        assert (await submit(http, f"{path}/schedules/nightly/delete"))[0] == 303
        assert (await submit(http, f"{path}/schedules/nightly/delete", FRAGMENT))[0] == 404
        assert "Change nightly" not in (await look(http, path))[1].text


async def test_the_last_run_and_what_went_wrong_are_shown(desk: Room, api: str) -> None:
    shape = await desk.publish(workflow("a"))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", shape)
    run = await desk.start(shape, person=desk.owner)
    await desk.operator.fetchval("select set_workflow_schedule($1, 'hourly', '0 * * * *', 'UTC')", shape)
    await desk.operator.execute(
        "update workflow_schedules set last_at = now(), last_execution_id = $2, last_error = 'the wallet is empty'"
        " where workflow_id = $1",
        shape, run,
    )  # fmt: skip
    async with signed_in(api, desk.people, desk.owner) as http:
        page = (await look(http, f"/workflows/{slug}"))[1].text
    table = page[page.index("Table of schedules") :].partition("</table>")[0]
    assert f'href="/runs/{run}"' in table
    assert "the wallet is empty" in table


async def test_who_only_reads_a_workflow_sets_none(desk: Room, api: str) -> None:
    shape = await desk.publish(workflow("a"))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", shape)
    share = (
        "select save_workflow($1, draft, p_shared => true, p_tenant_id => tenant_id) from ai_workflows where id = $2"
    )
    await desk.operator.fetchval(share, slug, shape)
    other = await desk.people.user(tenant_id=desk.owner.identity.tenant_id)
    async with signed_in(api, desk.people, other) as http:
        assert "schedules-title" not in (await look(http, f"/workflows/{slug}"))[1].text
        form = {"name": "x", "cron": "0 * * * *"}
        assert (await submit(http, f"/workflows/{slug}/schedules", FRAGMENT, **form))[0] == 404
        headers = {"accept": "text/html", "sec-fetch-site": "cross-site"}
        async with http.post(f"/workflows/{slug}/schedules", data=form, headers=headers) as answer:
            assert answer.status == 403
