"""Pages of agents over HTTP: what people write, run and watch, what others do not see."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import Cluster
from tests.console.console_support import PAGE, look, signed_in, submit
from tests.engines.shop import asking
from tests.orchestration.studio import Studio, agent, calls, says, studio
from vanilla_saas.orchestration import drafts, page_view
from vanilla_saas.orchestration.stops import STOPS
from vanilla_saas.orchestration.teams import MESSAGE

FRAGMENT = {"hx-request": "true"}
HOSTILE = "</pre><script>alert(1)</script>"
TEXT = """\
name: Poet
instructions: You write poems.
model: sandbox-small
tools: [look_up]
limits: {turns: 3}
"""


@pytest.fixture(scope="module")
async def desk(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Studio]:
    """Pages are the same whoever drives an agent: one of the two loops is enough."""
    async with studio(cluster, tmp_path_factory.mktemp("home")) as made:
        yield made


def slug_of_test() -> str:
    return f"a{uuid.uuid4().hex[:10]}"


async def waits(desk: Studio, run_id: uuid.UUID, state: str = "input_required") -> None:
    async with asyncio.timeout(20):
        while (await desk.run(run_id))["state"] != state:
            await asyncio.sleep(0.02)


async def test_an_agent_is_made_changed_run_and_retired_on_its_pages(desk: Studio) -> None:
    person, slug = await desk.shop.person(), slug_of_test()
    async with signed_in(desk.address, desk.shop.room.people, person) as http:
        _, page, _ = await look(http, "/agents")
        assert "Make an agent" in page.text
        assert f'href="/agents/{slug}"' not in page.text
        status, text, _ = await submit(http, "/agents", FRAGMENT, slug=slug, definition="instructions: x\nlimits: 1\n")
        assert status == 422
        assert 'data-field="model"' in text
        _, _, headers = await submit(http, "/agents", slug=slug, definition=TEXT)
        assert headers["location"] == f"/agents/{slug}?notice=saved"
        _, page, _ = await look(http, headers["location"])
        for told in ("You write poems.", "look_up", "Run version 1", "alert good"):
            assert told in page.text, told
        assert "repeats:" not in page.text
        for text, notice in ((TEXT, "unchanged"), (TEXT + f"description: {HOSTILE}\n", "saved")):
            _, _, headers = await submit(http, f"/agents/{slug}/save", definition=text, shared="true")
            assert headers["location"] == f"/agents/{slug}?notice={notice}"
        _, page, _ = await look(http, f"/agents/{slug}?version=1")
        assert "the latest is 2" in page.text
        assert HOSTILE not in page.text
        form = {"message": "A poem", "tokens": 9000, "key": "once", "version": 1}
        twice = [(await submit(http, f"/agents/{slug}/run", **form))[2]["location"] for _ in range(2)]
        assert twice[0] == twice[1]
        run = await desk.ended(uuid.UUID(twice[0].rpartition("/")[2]))
        assert (run["state"], run["version"], run["limits"]["tokens"]) == ("completed", 1, 9000)
        _, page, _ = await look(http, twice[0])
        assert STOPS["done"] in page.text
        assert f"{await desk.charged(run['id']):,}</p>" in page.text
        _, page, _ = await look(http, "/agents")
        assert f'href="/agents/{slug}"' in page.text
        assert f"{run['charged_tokens']:,}</td>" in page.text
        await submit(http, f"/agents/{slug}/retire")
        _, page, _ = await look(http, f"/agents/{slug}?notice=retired")
        assert "Run version" not in page.text
        assert (await submit(http, f"/agents/{slug}/run", FRAGMENT, **form | {"key": "two"}))[0] == 409


async def test_an_agent_with_an_engine_shows_that_and_its_runs(desk: Studio) -> None:
    person, engine = await desk.shop.person(), await desk.shop.deploy(asking(output="'Noon.'", input=MESSAGE))
    slug = await desk.save({"instructions": "You tell the time.", "engine": engine.slug}, who=person)
    run = await desk.ended(await desk.start(person, slug))
    (step,) = await desk.steps(run["id"])
    async with signed_in(desk.address, desk.shop.room.people, person) as http:
        _, page, _ = await look(http, f"/agents/{slug}")
        assert f'<dt>Engine</dt><dd class="mono">{engine.slug}</dd>' in page.text
        assert "<dt>Model</dt>" not in page.text
        _, page, _ = await look(http, f"/agent-runs/{run['id']}")
        assert f"engine/{engine.slug}@1" in page.text
        assert "Noon." in page.text
        link = f"/runs/{step['child_execution_id']}"
        assert f'href="{link}"' in page.text
        assert (await look(http, link))[0] == 200


@pytest.mark.parametrize(
    ("limits", "told"),
    [({"tokens": 9000}, "left empty: 9,000, or what the wallet has"), ({}, "left empty: what its calls need")],
)
async def test_the_form_says_which_budget_a_run_has(desk: Studio, limits: dict[str, int], told: str) -> None:
    slug = await desk.save(agent(says("Yes."), limits=limits))
    async with signed_in(desk.address, desk.shop.room.people, desk.shop.admin) as http:
        _, page, _ = await look(http, f"/agents/{slug}")
    assert told in page.text


async def test_others_see_what_is_shared_and_no_runs_but_their_own(desk: Studio) -> None:
    owner, other = await desk.shop.person(), await desk.shop.person()
    private = await desk.save(agent(says("Mine.")), who=owner, p_shared=False)
    shared = await desk.save(agent(says("Ours.")), who=owner)
    run = await desk.start(owner, shared)
    await desk.ended(run)
    async with signed_in(desk.address, desk.shop.room.people, other) as http:
        _, page, _ = await look(http, "/agents")
        assert shared in page.text
        assert private not in page.text
        assert (await look(http, f"/agents/{private}"))[0] == 404
        _, page, _ = await look(http, f"/agents/{shared}")
        assert "Run version" in page.text
        for hidden in ("Save as version", "Retire", "Last runs"):
            assert hidden not in page.text, hidden
        assert (await submit(http, f"/agents/{shared}/save", FRAGMENT, definition=TEXT))[0] == 409
        assert (await submit(http, f"/agents/{shared}/retire", FRAGMENT))[0] == 404
        for path in ("", "/live", "/events"):
            assert (await look(http, f"/agent-runs/{run}{path}"))[0] == 404, path
        assert (await submit(http, f"/agent-runs/{run}/cancel", FRAGMENT))[0] == 404
        _, page, _ = await look(http, "/agent-runs")
        assert str(run) not in page.text
    async with signed_in(desk.address, desk.shop.room.people, desk.shop.admin) as http:
        _, page, _ = await look(http, f"/agent-runs?agent={shared}&state=completed")
        assert str(run) in page.text
        assert owner.email in page.text
        _, page, _ = await look(http, f"/agent-runs?agent={shared}&state=failed")
        assert "No run is like that" in page.text


async def test_a_run_shows_its_tree_budgets_artifacts_and_who_is_asked(desk: Studio) -> None:
    person = await desk.shop.person()
    asked = {"tool": "refund", "approval": {"approvers": ["role:admin"]}}
    child = await desk.save(
        agent(
            calls(("artifact_save", {"name": "note.md", "media_type": "text/markdown", "content": HOSTILE})),
            calls(("state_write", {"key": "plan", "value": [1, 2], "version": 0})),
            says("Written."),
            tools=["artifact_save", "state_write"],
        )
    )
    root = await desk.save(
        agent(
            calls((f"delegate_to_{child}", {"message": "Write"})), calls(("refund", {"amount": 7})), says("Paid."),
            delegates=[child], tools=[asked],
        )
    )  # fmt: skip
    run = await desk.start(person, root, p_tokens=20_000)
    await waits(desk, run)
    async with signed_in(desk.address, desk.shop.room.people, person) as http:
        _, page, _ = await look(http, f"/agent-runs/{run}")
        approval = await desk.shop.operator.fetchval("select id from workflow_approvals where status = 'open'")
        for told in (
            page_view.WAITS["input_required"], f'href="/approvals#approval-{approval}"', "left of 20,000", "Written.",
            "note.md", "text/markdown", "Shared state", "version 1, by", f"delegate_to_{child}", "Cancel run",
        ):  # fmt: skip
            assert told in page.text, told
        assert HOSTILE not in page.text
        assert page.text.count('class="budget"') == 2
        [live] = [one["hx-get"] for one in page.all("div") if one.get("id") == "live"]
        assert (await look(http, str(live), **FRAGMENT))[0] == 204
        status, fragment, _ = await look(http, f"/agent-runs/{run}/live?seen=else", **FRAGMENT)
        assert (status, "<html" in fragment.text) == (200, False)
        assert await events(http, f"/agent-runs/{run}/events", 1) == ["progress"]
        _, _, headers = await submit(http, f"/agent-runs/{run}/cancel", reason="enough")
        assert headers["location"] == f"/agent-runs/{run}?notice=cancelled"
        _, page, _ = await look(http, headers["location"])
        assert STOPS["canceled"] in page.text
        assert "data-events" not in page.text
        assert "Cancel run" not in page.text
        assert await events(http, f"/agent-runs/{run}/events", 2) == ["progress", "end"]


async def events(http: aiohttp.ClientSession, path: str, count: int) -> list[str]:
    """The names of the first events."""
    found: list[str] = []
    async with http.get(path, headers=PAGE) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.content:
            if line.startswith(b"event: "):
                found.append(line.decode()[7:].strip())
            if len(found) == count:
                break
    return found


def test_a_bar_is_never_wider_than_its_budget_and_what_it_says_adds_up() -> None:
    budget = {"tokens": 100, "spent": 50, "held": 25, "carved": 25}
    parts = page_view.bar(budget)
    assert [(part["x"], part["width"]) for part in parts] == [(0, 150), (150, 75), (225, 75)]
    over = page_view.bar(budget | {"spent": 150})
    assert over[-1]["x"] + over[-1]["width"] <= page_view.BAR + 0.2
    assert page_view.bar(None) == []


async def test_every_reason_to_stop_has_words(desk: Studio) -> None:
    rule = await desk.shop.operator.fetchval(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'agent_runs_stop_check'"
    )
    assert set(re.findall(r"'(\w+)'", rule)) == set(STOPS)


async def test_bids_for_the_word_are_told_on_the_page(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    members = [await desk.save(agent(says(word))) for word in ("bid 5 of a", "bid 7 of b")]
    chat = {"members": members, "floor": "bid", "rounds": 1}
    run = await desk.start(person, await desk.save(agent(chat=chat, limits={"turns": 100})))
    await desk.ended(run)
    async with signed_in(desk.address, desk.shop.room.people, person) as http:
        _, page, _ = await look(http, f"/agent-runs/{run}")
        bid = page.text.partition("Bid for the word")[2].partition("</li>")[0]
        assert "bid 5 of a" in bid
        assert "Answer of" not in bid


def test_what_a_definition_says_is_read_back_as_the_same() -> None:
    given: dict[str, Any] = {
        "instructions": "x", "model": "m", "tools": ["a", {"tool": "b", "approval": {"approvers": ["role:admin"]}}],
        "handoffs": ["one", {"agent": "two@3", "again": True}], "limits": {"turns": 3}, "contract": {"bidders": ["cid"]},
        "chat": {"members": ["dan", {"agent": "eve", "again": True}], "floor": "bid"},
        "output": {"type": "object", "properties": {"n": {"type": "integer", "default": None}}},
    }  # fmt: skip
    document = drafts.document(given)
    text = drafts.as_text(document)
    assert drafts.document(drafts.read(text, "yaml")) == document
    assert "repeats" not in text
    read = drafts.read(text, "yaml")
    assert (read["tools"], read["handoffs"]) == (given["tools"], given["handoffs"])
    assert (read["contract"], read["chat"]) == (given["contract"], given["chat"])
    assert drafts.turns_to(document) == [
        ("handoffs", "one"), ("handoffs", "two@3"), ("members", "dan"), ("members", "eve"), ("bidders", "cid"),
    ]  # fmt: skip
