"""Pages of runs and approvals over HTTP: who sees and does what, pages of the list, texts that are strangers'."""

import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import serve, settings_for
from tests.console.console_support import look, signed_in, submit
from tests.workflows.conftest import desk
from tests.workflows.hands import Room, Step, workflow
from vanilla_saas.app import create_app

__all__ = ["desk"]

FRAGMENT = {"hx-request": "true"}
HOSTILE = '</pre></textarea><script>alert(1)</script>"'
ASKS = workflow("ask=approval", ask={"title": "t", "approvers": ["role:admin"], "quorum": 1})


@pytest.fixture(scope="module")
async def api(desk: Room, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with serve(create_app(settings_for(desk.cluster, desk.name, tmp_path_factory.mktemp("home")))) as address:
        yield address


async def asked(desk: Room, **wait: Any) -> uuid.UUID:
    """A run of the desk's owner that waits for an approval; its id."""
    run = await desk.start(await desk.publish(ASKS), person=desk.owner)
    details = {"kind": "approval", "title": "t", "prompt": "p", "subject": None, "edit": None, "quorum": 1}
    details |= {"approvers": ["role:admin"], "deadline_s": None, "on_deadline": None, "escalate_to": None} | wait

    def answer(step: Step) -> dict[str, Any]:
        return step.done("waiting", wait=details, state=None)

    async with desk.worker() as hands:
        await hands.run(answer)
    return run


async def test_a_run_is_its_payers_and_the_admins(desk: Room, api: str) -> None:
    run = await asked(desk)
    other, admin = await desk.people.user(), await desk.people.user("admin")
    async with signed_in(api, desk.people, other) as http:
        assert (await look(http, f"/runs/{run}"))[0] == 404
        assert (await look(http, f"/runs/{run}/live"))[0] == 404
        assert (await look(http, f"/runs/{run}/steps/ask"))[0] == 404
        for act, form in (("cancel", {}), ("pause", {}), ("resume", {}), ("restart", {}), ("signal", {"name": "x"})):
            assert (await submit(http, f"/runs/{run}/{act}", FRAGMENT, **form))[0] == 404
        _, page, _ = await look(http, "/runs")
        assert str(run) not in page.text
    async with signed_in(api, desk.people, admin) as http:
        _, page, _ = await look(http, "/runs")
        assert f"/runs/{run}" in page.text
        status, page, _ = await look(http, f"/runs/{run}")
        assert status == 200
        assert desk.owner.email in page.text
        assert (await submit(http, f"/runs/{run}/cancel", reason="enough"))[0] == 303
    found = await desk.execution(run)
    assert (found["status"], found["error"]["message"]) == ("cancelled", "enough")


async def test_an_ended_run_goes_on_with_a_newer_version(desk: Room, api: str) -> None:
    shape = await desk.publish(workflow("a b", "a>b"))
    run = await desk.start(shape, person=desk.owner)
    async with desk.worker() as hands:
        await hands.run(lambda step: step.failed() if step.node == "b" else step.done(output=1))
    async with signed_in(api, desk.people, desk.owner) as http:
        assert "restart-version" not in (await look(http, f"/runs/{run}"))[1].text
        other = await desk.publish_next(shape, workflow("a b", "a>b", a={"value": "2"}))
        mended = await desk.publish_next(shape, workflow("b a", "a>b", b={"value": "2"}))
        page = (await look(http, f"/runs/{run}"))[1].text
        assert f'<option value="{mended}">{mended}</option><option value="{other}">{other}</option>' in page
        status, refused, _ = await submit(http, f"/runs/{run}/restart", FRAGMENT, node="", version=str(other))
        assert status == 409
        assert "the node a gave is not of version 2" in refused
        assert (await submit(http, f"/runs/{run}/restart", node="", version=str(mended)))[0] == 303
        assert "version 3" in (await look(http, f"/runs/{run}"))[1].text
        await desk.operator.fetchval("select cancel_execution($1)", run)
        assert (await submit(http, f"/runs/{run}/restart", node="", version=""))[0] == 303
    await desk.operator.fetchval("select cancel_execution($1)", run)


async def test_a_step_that_was_given_up_says_why(desk: Room, api: str) -> None:
    shape = workflow("quick slow other=condition never j=join", "quick>j slow>j other>never:true", j={"mode": "any"})
    run = await desk.start(await desk.publish(shape), person=desk.owner)
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        await hands.tick(steps["quick"].done(output=1), steps["other"].done(output=1, branch="false"))
    why = "The join behind it has what it waits for."
    async with signed_in(api, desk.people, desk.owner) as http:
        page = (await look(http, f"/runs/{run}"))[1].text
        assert f"<title>slow: skipped, {why}</title>" in page
        assert f'<span class="dim"><span class="mono">not_needed</span> {why}</span>' in page
        # on a branch that was not taken there is nothing more to say
        assert "<title>never: skipped</title>" in page
        step = (await look(http, f"/runs/{run}/steps/slow", **FRAGMENT))[1].text
        assert "<h3>Why it was skipped</h3>" in step
        assert why in step
        assert "<h3>Error</h3>" not in step
    headers = desk.owner.headers
    async with aiohttp.ClientSession(api, headers=headers) as http:
        for path in (f"/api/v1/workflow-executions/{run}", f"/api/v1/workflow-executions/{run}/steps/slow"):
            async with http.get(path) as answer:
                told = await answer.json()
            given_up = next((one for one in told.get("steps", []) if one["node"] == "slow"), told)
            assert (given_up["status"], given_up["error"]["code"]) == ("skipped", "not_needed")
    await desk.operator.fetchval("select cancel_execution($1)", run)


async def test_forms_from_elsewhere_are_refused(desk: Room, api: str) -> None:
    run = await asked(desk)
    approval = await desk.operator.fetchval("select id from workflow_approvals where execution_id = $1", run)
    admin = await desk.people.user("admin")
    async with signed_in(api, desk.people, admin) as http:
        paths = [f"/runs/{run}/{act}" for act in ("cancel", "pause", "resume", "restart", "signal")]
        for path in [*paths, f"/approvals/{approval}", "/workflows/x/start"]:
            headers = {"accept": "text/html", "sec-fetch-site": "cross-site"}
            async with http.post(path, data={"decision": "approved", "name": "x"}, headers=headers) as answer:
                assert answer.status == 403, path
    assert (await desk.execution(run))["status"] == "running"


async def test_who_decides_need_not_read_the_run(desk: Room, api: str) -> None:
    person = await desk.people.user()
    run = await asked(
        desk, title=HOSTILE, prompt=HOSTILE, approvers=[f"user:{person.identity.user_id}"],
        subject={"text": HOSTILE, "kept": 1.0}, edit={"properties": {"text": {"type": "string"}}},
    )  # fmt: skip
    approval = await desk.operator.fetchval("select id from workflow_approvals where execution_id = $1", run)
    async with signed_in(api, desk.people, desk.owner) as http:
        _, page, _ = await look(http, "/approvals")
        assert "Nothing waits for you" in page.text
        assert (await look(http, "/approvals/count"))[1].text.strip() == ""
        assert (await submit(http, f"/approvals/{approval}", FRAGMENT, decision="approved"))[0] == 403
    async with signed_in(api, desk.people, person) as http:
        assert ">1<" in (await look(http, "/approvals/count", **FRAGMENT))[1].text
        _, page, _ = await look(http, "/approvals")
        assert "<script>alert" not in page.text
        assert page.text.count("&lt;script&gt;alert(1)") >= 3
        assert f"/runs/{run}" not in page.text
        status, text, _ = await submit(http, f"/approvals/{approval}", FRAGMENT, decision="perhaps")
        assert status == 422 or status == 400, text
        form = {"decision": "approved", "comment": "  ", "field.text": "new\r\nlines"}
        status, _, headers = await submit(http, f"/approvals/{approval}", **form)
        assert (status, headers["location"]) == (303, "/approvals?notice=approved")
        assert (await submit(http, f"/approvals/{approval}", FRAGMENT, **form))[0] == 409
    row = await desk.operator.fetchrow("select * from workflow_approvals where id = $1", approval)
    assert (row["status"], row["value"], row["comment"]) == ("approved", {"text": "new\nlines", "kept": 1.0}, None)


async def test_a_field_that_may_not_change_cannot_be_sent(desk: Room, api: str) -> None:
    run = await asked(desk, subject={"text": "a", "kept": 1}, edit={"properties": {"text": {"type": "string"}}})
    approval = await desk.operator.fetchval("select id from workflow_approvals where execution_id = $1", run)
    admin = await desk.people.user("admin")
    async with signed_in(api, desk.people, admin) as http:
        form = {"decision": "approved", "field.kept": "2", "field.text": "a"}
        assert (await submit(http, f"/approvals/{approval}", **form))[0] == 303
    found = await desk.operator.fetchval("select value from workflow_approvals where id = $1", approval)
    assert found == {"text": "a", "kept": 1}


async def test_runs_are_paged_and_filtered(desk: Room, api: str) -> None:
    person = await desk.people.user()
    shape, other = await desk.publish(workflow("a"), person), await desk.publish(workflow("a"), person)
    started = [str(await desk.start(shape, person=person)) for _ in range(30)]
    await desk.start(other, person=person)
    await desk.operator.fetchval("select cancel_execution($1)", uuid.UUID(started[0]))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", shape)

    async def listed(http: aiohttp.ClientSession, path: str) -> list[str]:
        seen: list[str] = []
        while path:
            _, page, _ = await look(http, path)
            seen += re.findall(r'<a href="/runs/([0-9a-f-]{36})">', page.text)
            path = next((str(a["href"]) for a in page.all("a") if "before=" in str(a.get("href"))), "")
        return seen

    async with signed_in(api, desk.people, person) as http:
        assert await listed(http, f"/runs?workflow={slug}") == started[::-1]
        assert len(await listed(http, "/runs")) == 31
        assert await listed(http, "/runs?status=cancelled") == [started[0]]
        assert await listed(http, "/runs?status=failed") == []
        assert (await look(http, "/runs?before=nonsense"))[0] == 400
        _, page, _ = await look(http, f"/workflows/{slug}")
        assert re.findall(r'<a href="/runs/([0-9a-f-]{36})">', page.text) == started[:-6:-1]


async def test_a_start_is_refused_by_its_schema_and_made_once(desk: Room, api: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    shape = await desk.publish(workflow("a", input=schema))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", shape)
    async with signed_in(api, desk.people, desk.owner) as http:
        _, page, _ = await look(http, f"/workflows/{slug}")
        key = next(field["value"] for field in page.all("input") if field.get("name") == "key")
        form = {"version": "1", "key": str(key), "field.n": "2"}
        status, text, _ = await submit(http, f"/workflows/{slug}/start", FRAGMENT, **form)
        assert (status, "does not fit its schema: input.n: " in text) == (422, True)
        sent = [await submit(http, f"/workflows/{slug}/start", **form | {"field.n": "3"}) for _ in range(2)]
        assert {status for status, _, _ in sent} == {303}
        assert len({headers["location"] for _, _, headers in sent}) == 1
        for bad in ({"version": "x"}, {"version": "9", "key": "k"}, {"version": "9" * 20, "key": "k"}, {}):
            assert (await submit(http, f"/workflows/{slug}/start", FRAGMENT, **bad))[0] in (400, 404)
    inputs = await desk.operator.fetch("select input from workflow_executions where workflow_id = $1", shape)
    assert [row["input"] for row in inputs] == [{"n": 3}]


async def test_a_page_that_has_seen_it_all_is_sent_nothing(desk: Room, api: str) -> None:
    run = await desk.start(await desk.publish(workflow("a b", "a>b")), person=desk.owner)
    async with signed_in(api, desk.people, desk.owner) as http:
        _, page, _ = await look(http, f"/runs/{run}")
        again = next(str(span["hx-get"]) for span in page.all("span") if span.get("id") == "poll")
        assert (await look(http, again, **FRAGMENT))[0] == 204
        assert [tag["id"] for tag in page.all("div") if tag.get("id") == "acts"] == ["acts"]

        def answer(step: Step) -> dict[str, Any]:
            return step.done(output=HOSTILE if step.node == "b" else "x" * 50_000)

        async with desk.worker() as hands:
            await hands.run(answer)
        status, page, headers = await look(http, again, **FRAGMENT)
        assert (status, "content-security-policy" in headers) == (200, True)
        assert "<html" not in page.text
        assert 'id="poll"' not in page.text
        assert page.text.count("hx-swap-oob") == 2
        assert "<script>alert" not in page.text
        _, page, _ = await look(http, f"/runs/{run}/steps/a", **FRAGMENT)
        assert "The rest is not shown." in page.text
        assert 20_000 < len(page.text) < 45_000
        _, page, _ = await look(http, f"/runs/{run}/steps/b")
        assert "&lt;script&gt;alert(1)" in page.text
        assert "<script>alert" not in page.text
        for missing in ("nothing", "$start", "a?item=0"):
            assert (await look(http, f"/runs/{run}/steps/{missing}"))[0] == 404
        assert (await look(http, f"/runs/{run}/steps/a?item=99999999999"))[0] in (400, 422)


async def test_items_of_a_map_are_paged(desk: Room, api: str) -> None:
    item = {"kind": "transform", "value": "item"}
    run = await desk.start(
        await desk.publish(workflow("each=map", each={"over": "[]", "item": item})), person=desk.owner
    )

    def answer(step: Step) -> dict[str, Any]:
        if step.item is None:
            return step.done("items", items=[f"e{n}" for n in range(30)], concurrency=None)
        return step.done(output=f"o{step.item}")

    async with desk.worker() as hands:
        await hands.run(answer)
    async with signed_in(api, desk.people, desk.owner) as http:
        _, page, _ = await look(http, f"/runs/{run}")
        assert ">30/30<" in page.text
        _, page, _ = await look(http, f"/runs/{run}/steps/each")
        assert len(re.findall(r'href="[^"]+\?item=\d+"', page.text)) == 25
        _, page, _ = await look(http, f"/runs/{run}/steps/each?after=24", **FRAGMENT)
        assert re.findall(r'href="[^"]+\?item=(\d+)"', page.text) == ["25", "26", "27", "28", "29"]
        _, page, _ = await look(http, f"/runs/{run}/steps/each?item=7")
        assert "o7" in page.text
        assert "e7" in page.text
