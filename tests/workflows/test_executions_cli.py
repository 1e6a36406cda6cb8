"""`vanilla-saas workflows run` and what is done with executions, in a database without any other worker."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tokens.test_cli import Cli, shell
from tests.workflows.hands import Room, workflow

FLOW = """
name: Double
input: {type: object, properties: {n: {type: integer}}, required: [n]}
nodes:
  - {id: double, kind: transform, value: "input.n * 2"}
  - {id: check, kind: gate, of: steps.double.output, check: rule, rule: "value > 0"}
connections: [{from: double, to: check}]
output: steps.double.output
"""


@pytest.fixture
def vs(monkeypatch: pytest.MonkeyPatch, desk: Room, tmp_path: Path) -> Cli:
    return shell(monkeypatch, desk.cluster, desk.name, tmp_path)


async def test_a_file_is_published_run_here_and_its_output_printed(vs: Cli, desk: Room, tmp_path: Path) -> None:
    file = tmp_path / "double.yaml"
    file.write_text(FLOW)
    # of a tenant with one user it is theirs
    ran = await vs("workflows", "run", str(file), "--input", "n=21")
    assert ran.stdout.strip() == "42"
    assert "double is published: version 1" in ran.stderr
    assert "No worker is running" in ran.stderr
    for part in ("✓ double", "✓ check", "score 1.00", "→ passed"):
        assert part in ran.stderr, ran.stderr
    given = tmp_path / "input.json"
    given.write_text('{"n": 1}')
    again = await vs("workflows", "run", str(file), "--input-file", str(given))
    assert again.stdout.strip() == "2"
    assert "published" not in again.stderr
    file.write_text(FLOW.replace("* 2", "* 3"))
    changed = await vs.json("workflows", "run", str(file), "--input-file", str(given), "--input", "n=5")
    assert (changed["output"], changed["version"], changed["status"]) == (15, 2, "succeeded")
    refused = await vs.refused("workflows", "run", "double", "--input", "n=x")
    assert (refused.name, refused.detail["param"]) == ("invalid_input", "input.n")
    assert (await vs.refused("workflows", "run", str(tmp_path / "none.yaml"))).name == "not_found"
    rows = await vs.json("workflows", "executions", "--workflow", "double")
    assert [row["version"] for row in rows] == [2, 1, 1]
    assert {row["gate"] for row in await vs.json("workflows", "gates", "double")} == {"check"}


async def test_one_that_fails_is_exit_code_1_and_is_replayed(vs: Cli, desk: Room, tmp_path: Path) -> None:
    await vs("workflows", "save", str(_written(tmp_path, "broken", "1 / (input.n - input.n)")), "--user",
             desk.owner.email, "--publish")  # fmt: skip
    failed = await vs("workflows", "run", "broken", "--input", "n=1", code=1)
    assert "expression_failed in a" in failed.stderr
    [row] = await vs.json("workflows", "executions", "--status", "failed", "--workflow", "broken")
    shown = await vs("workflows", "show", row["id"])
    assert "✗ a" in shown.stdout
    told = await vs.json("workflows", "replay", "--workflow", "broken")
    assert told == {"restarted": [row["id"]], "refused": []}
    await vs("workflows", "cancel", row["id"])
    await vs("workflows", "save", str(_written(tmp_path, "broken", "input.n")), "--publish")
    assert "on version 2" in (await vs("workflows", "restart", row["id"], "--version", "2")).stdout
    assert (await vs.json("workflows", "show", row["id"]))["version"] == 2
    assert (await vs.json("workflows", "cancel", row["id"], "--reason", "enough"))["status"] == "cancelled"
    assert (await vs.json("workflows", "restart", row["id"], "--node", "a"))["status"] == "running"
    assert (await vs.json("workflows", "pause", row["id"]))["status"] == "paused"
    assert (await vs.json("workflows", "resume", row["id"]))["status"] == "running"
    await vs("workflows", "cancel", row["id"])


async def test_a_key_makes_a_start_safe_to_repeat(vs: Cli, desk: Room, tmp_path: Path) -> None:
    await vs("workflows", "save", str(_written(tmp_path, "once", "1")), "--user", desk.owner.email, "--publish")
    command = ("workflows", "run", "once", "--input", "n=1", "--key", "k", "--no-follow")
    first, again = await vs.json(*command), await vs.json(*command)
    assert (again["execution_id"], again["replayed"]) == (first["execution_id"], True)


async def test_signals_and_approvals_are_given_by_those_who_are_asked(vs: Cli, desk: Room) -> None:
    asked = await desk.people.user("admin")
    shape = await desk.publish(
        workflow("s=signal p=approval", "s>p", s={"signal": "go"},
                 p={"title": "Look", "approvers": ["role:admin"], "quorum": 1, "of": "{'text': 'Draft'}",
                    "edit": {"type": "object", "properties": {"text": {"type": "string", "minLength": 2}}}},
                 output="steps.p.output.value")
    )  # fmt: skip
    execution = str(await desk.start(shape))
    async with desk.worker() as hands:
        assert (await vs.json("workflows", "signal", execution, "go", "{by: me}"))["signal"] == "go"
        assert (await vs.refused("workflows", "signal", execution, "gone")).name == "not_found"
        # what other tests left behind stays claimed
        [step] = [step for step in await hands.tick(n=100) if step.execution_id == execution]
        [asks] = await hands.tick(step.done("waiting", wait={"kind": "signal", "name": "go", "timeout_s": None}))
        wait = {"kind": "approval", "title": "Look", "approvers": ["role:admin"], "quorum": 1,
                "subject": {"text": "Draft"}, "edit": _edit()}  # fmt: skip
        await hands.tick(asks.done("waiting", wait=wait))
        [row] = await vs.json("workflows", "approvals")
        assert (row["title"], row["execution_id"]) == ("Look", execution)
        assert await vs.json("workflows", "approvals", "--user", desk.owner.email) == []
        [mine] = await vs.json("workflows", "approvals", "--user", asked.email)
        assert mine["subject"] == {"text": "Draft"}
        by = ("--user", asked.email)
        refused = await vs.refused("workflows", "approve", row["id"], *by, "--value", "{text: M}")
        assert (refused.name, refused.detail["param"]) == ("invalid_input", "value.text")
        stranger = await vs.refused("workflows", "reject", row["id"], "--user", desk.owner.email)
        assert stranger.name == "forbidden"
        told = await vs("workflows", "approve", row["id"], *by, "--value", json.dumps({"text": "Mine"}))
        assert "approved" in told.stdout
        end = await hands.one()
        assert end.claim["steps"]["p"]["output"]["value"] == {"text": "Mine"}
        await hands.tick(end.done(output="x"))


def _edit() -> dict[str, Any]:
    return {"type": "object", "properties": {"text": {"type": "string", "minLength": 2}}}


def _written(folder: Path, slug: str, value: str) -> Path:
    file = folder / f"{slug}.yaml"
    nodes = [{"id": "a", "kind": "transform", "value": value}]
    file.write_text(json.dumps({"name": slug, "nodes": nodes}))
    return file
