"""`vanilla-saas engines`, as the operator, in a database without any other worker."""

import json
import uuid
from pathlib import Path

import pytest

from tests.engines.shop import Shop, plain
from tests.engines.test_engines import offered
from tests.tokens.test_cli import Cli, shell

TONE = {"tone": {"type": "string", "enum": ["kind", "short"], "default": "kind"}}
INPUT = {"type": "object", "properties": {"tone": {"type": "string"}, "n": {"type": "integer"}}}


@pytest.fixture
def vs(monkeypatch: pytest.MonkeyPatch, floor: Shop, tmp_path: Path) -> Cli:
    return shell(monkeypatch, floor.room.cluster, floor.room.name, tmp_path)


async def test_an_engine_is_deployed_promoted_rolled_back_and_retired(vs: Cli, floor: Shop, tmp_path: Path) -> None:
    first, second = [str(await floor.flow(plain(text, input=INPUT))) for text in ("1", "2")]
    (tmp_path / "tone.json").write_text(json.dumps(TONE))
    declared = ("--parameters", str(tmp_path / "tone.json"), "--access", "execute")
    made = await vs("engines", "deploy", "tones", first, "--name", "Tones", *declared)
    assert "tones is deployed: version 1" in made.stdout
    assert (await vs.json("engines", "deploy", "tones", first, *declared))["unchanged"] is True
    assert (await vs.json("engines", "deploy", "tones", second))["version"] == 2
    assert (
        "for 10 of 100 users"
        in (await vs("engines", "promote", "tones", "2", "--alias", "canary", "--weight", "10")).stdout
    )
    [row] = [row for row in await vs.json("engines", "list") if row["slug"] == "tones"]
    assert {alias["alias"]: (alias["version"], alias["weight"]) for alias in row["aliases"]} == {
        "stable": (1, 100),
        "canary": (2, 10),
    }
    assert "2 (10 of 100)" in (await vs("engines", "list")).stdout
    assert "no canary now" in (await vs("engines", "rollback", "tones", "--alias", "canary")).stdout
    await vs("engines", "promote", "tones", "2")
    shown = await vs("engines", "show", "tones")
    assert "stable: 2" in shown.stdout
    assert (await vs.json("engines", "show", "tones"))["data"][0]["version"] == 2
    assert "version 1 again" in (await vs("engines", "rollback", "tones")).stdout
    assert "Version 2 of tones is retired." in (await vs("engines", "retire", "tones", "--version", "2")).stdout
    assert (await vs.refused("engines", "promote", "tones", "2")).name == "invalid_state"
    await vs("engines", "retire", "tones")
    assert (await vs.refused("engines", "retire", "tones")).name == "invalid_state"
    assert (await vs.refused("engines", "show", "none")).name == "not_found"
    assert (await vs.refused("engines", "deploy", "tones", "none")).name == "not_found"


async def test_one_is_permitted_assigned_and_explained(vs: Cli, floor: Shop) -> None:
    engine, user = await floor.deploy(access=None), await floor.person()
    who = ("--user", user.email)
    await vs("engines", "access", engine.slug, "free", "execute")
    [card] = [card for card in await vs.json("engines", "list", *who) if card["slug"] == engine.slug]
    assert card["access"] == "execute"
    await vs("engines", "access", engine.slug, "free", "default")
    await vs("engines", "access", engine.slug, "-", "read")
    assert (await vs.refused("engines", "run", engine.slug, *who)).name == "forbidden"
    await vs("engines", "access", engine.slug, "-", "execute")
    assert (await vs.refused("engines", "access", engine.slug, "free", "all")).name == "invalid_request"
    made = await vs.json("engines", "assign", engine.slug, "user", user.email, "--pin", "stable", "--until", "90d")
    await vs("engines", "assign", engine.slug, "tier", "77", "--priority", "3")
    await vs("engines", "assign", engine.slug, "level", "free")
    rows = await vs.json("engines", "explain", *who)
    assert [(row["source"], row["chosen"], row["reason"]) for row in rows] == [
        ("user", True, None),
        ("level", False, "preceded"),
    ]
    assert user.email in (await vs("engines", "show", engine.slug)).stdout
    await vs("engines", "unassign", made["id"])
    assert (await vs.refused("engines", "unassign", made["id"])).name == "not_found"
    assert "preceded" not in (await vs("engines", "explain", *who)).stdout
    assert "number" in (await vs("engines", "assign", engine.slug, "tier", "high", code=2)).stderr
    assert (await vs.refused("engines", "assign", engine.slug, "tenant", "me")).name == "invalid_request"
    assert (await vs.refused("engines", "assign", engine.slug, "user")).name == "invalid_request"
    assert (await vs.refused("engines", "assign", "none", "tenant")).name == "not_found"


async def test_one_is_run_here_forked_and_reported(vs: Cli, floor: Shop) -> None:
    engine = await floor.deploy(plain("10 / input.n", input=INPUT, output="steps.a.output"), p_parameters=TONE)
    user = await floor.person()
    who = ("--user", user.email)
    ran = await vs("engines", "run", engine.slug, *who, "--input", "n=5")
    assert ran.stdout.strip() == "2"
    assert "No worker is running" in ran.stderr
    assert "✓ a" in ran.stderr
    failed = await vs("engines", "run", engine.slug, *who, "--input", "n=0", code=1)
    assert "expression_failed in a" in failed.stderr
    copy = await vs.json("engines", "fork", engine.slug, "mine", *who, "--set", "tone=short", "--default")
    assert (copy["ref"], copy["version"]) == ("my/mine", 1)
    by_default = await vs.json("engines", "run", *who, "--input", "n=1")
    assert (by_default["output"], by_default["input"]) == (10, {"n": 1, "tone": "short"})
    begun = await vs.json("engines", "run", "my/mine", *who, "--input", "n=1", "--no-follow", "--key", "k")
    again = await vs.json("engines", "run", "my/mine", *who, "--input", "n=1", "--no-follow", "--key", "k")
    assert (again["execution_id"], again["replayed"], begun["source"]) == (begun["execution_id"], True, "reference")
    [row] = await vs.json("engines", "report", engine.slug)
    assert (row["version"], row["runs"], row["succeeded"], row["failed"]) == (1, 4, 2, 1)
    lines = [line.split() for line in (await vs("engines", "report", engine.slug)).stdout.splitlines()]
    assert (lines[0], ["runs", "4"] in lines, ["gate_pass_rate"] in lines) == (["version", "1", "stable"], True, True)
    unfit = await vs.refused("engines", "run", engine.slug, *who, "--input", "n=x")
    assert (unfit.name, unfit.detail["problems"][0]["pointer"]) == ("invalid_input", "/n")
    assert (
        await vs.refused("engines", "fork", engine.slug, "other", *who, "--set", "n=1")
    ).name == "invalid_definition"
    for command, option in (("run",), "--input"), (("fork", "other"), "--set"):
        name, *rest = command
        assert "NAME=VALUE" in (await vs("engines", name, engine.slug, *rest, *who, option, "wrong", code=2)).stderr
    assert (await vs.refused("engines", "run", "A b", *who)).name == "invalid_request"
    assert (await vs.refused("engines", "run", engine.slug, "--user", "nobody@example.test")).name == "not_found"
    assert (await vs.refused("engines", "report", str(uuid.uuid4())[:8])).name == "not_found"


async def test_copies_are_taken_to_another_version_and_what_does_not_fit_is_shown(vs: Cli, floor: Shop) -> None:
    engine = await floor.deploy(plain(input=INPUT), p_parameters=TONE)
    user, other = await floor.person(), await floor.person()
    for who in (user, other):
        await floor.ask(who, "fork_engine", engine.slug, "mine", {"tone": "short"})
    kind = {"tone": {"type": "string", "enum": ["kind"]}}
    await floor.ask(floor.admin, "deploy_engine", engine.slug, engine.flow, p_parameters=kind)
    mine = ("engines", "rebase", "my/mine", "--user", user.email, "--to", "2")
    shown = await vs(*mine, code=1)
    assert "It is one of" in shown.stdout
    assert (await vs.json(*mine, "--drop", "--dry-run"))[0]["dropped"] == ["tone"]
    [moved] = await vs.json(*mine, "--set", "tone=kind")
    assert (moved["from"], moved["version"], moved["overlay"], moved["changed"]) == (1, 2, {"tone": "kind"}, True)
    assert (await vs.json(*mine[:-2]))[0]["version"] == 1
    every = ("engines", "rebase", engine.slug, "--to", "2")
    told = json.loads((await vs(*every, "--json", code=1)).stdout)
    assert sorted((one["changed"], len(one["conflicts"])) for one in told) == [(False, 1), (True, 0)]
    assert "tone" in (await vs(*every, "--drop")).stdout
    for wrong in ((engine.slug, "--user", user.email), ("my/mine",), (engine.slug, "--set", "tone=kind")):
        await vs("engines", "rebase", *wrong, code=2)
    assert (await vs.refused("engines", "rebase", "my/none", "--user", user.email)).name == "not_found"
    assert (await vs.refused("engines", "rebase", "none")).name == "not_found"
    assert (await vs.refused(*every[:-1], "newest")).name == "invalid_request"


async def test_what_the_platform_offers_is_listed_before_anybody_may_run_it(vs: Cli, floor: Shop) -> None:
    engine = await offered(floor)
    await floor.ask(floor.boss, "set_engine", engine.id, p_default_access="none")
    [row] = [row for row in await vs.json("engines", "offered") if row["slug"] == engine.slug]
    assert (row["default_access"], row["version"]) == ("none", 1)
    await vs("engines", "access", str(engine.id), "free", "read")
    assert "free: read" in (await vs("engines", "offered")).stdout


async def test_a_key_is_printed_once_and_opens_one_engine(vs: Cli, floor: Shop) -> None:
    engine, user = await floor.deploy(), await floor.person()
    made = await vs.json("engines", "key", engine.slug, "--user", user.email, "--budget", "100", "--expires", "90d")
    assert made["key"][:12] == made["prefix"]
    row = await floor.operator.fetchrow(
        "select scopes, engine_ref, budget_tokens from api_keys where id = $1", uuid.UUID(made["id"])
    )
    assert tuple(row) == (["engine"], engine.slug, 100)
    assert "--keep-runs" in (await vs("keys", "revoke", "--help")).stdout
    await vs("keys", "revoke", made["id"], "--keep-runs")
    assert "Shown once" in (await vs("engines", "key", engine.slug, "--user", user.email)).stdout
    assert (await vs.refused("engines", "key", "none", "--user", user.email)).name == "not_found"


CHECKED = {
    "nodes": [
        {"id": "a", "kind": "transform", "value": "10 / input.n"},
        {"id": "g", "kind": "gate", "of": "steps.a.output", "check": "rule", "rule": "value > 3", "on_fail": "branch"},
        {"id": "b", "kind": "transform", "value": "steps.a.output"},
    ],
    "connections": [
        {"from": "a", "to": "g"},
        {"from": "g", "to": "b", "on": "passed"},
        {"from": "g", "to": "b", "on": "failed"},
    ],
    "output": "steps.a.output",
}


async def test_two_versions_are_compared_and_taken_up_again(vs: Cli, floor: Shop, tmp_path: Path) -> None:
    engine = await floor.deploy(CHECKED)
    await floor.ask(floor.admin, "deploy_engine", engine.slug, await floor.flow(plain("5", output="steps.a.output")))
    cases, user = tmp_path / "cases.jsonl", await floor.person()
    cases.write_text('{"n": 2}\n\n{"n": 5}\n{"n": 0}\n{"n": 2}\n')
    told = (f"{engine.slug}@1", f"{engine.slug}@2", "--user", user.email, "--input", str(cases))
    found = await vs.json("engines", "compare", *told, code=1)
    assert [(row["line"], row["a"]["output"], row["b"]["output"], row["equal"]) for row in found["cases"]] == [
        (1, 5, 5, True), (3, 2, 5, False), (4, None, 5, None), (5, 5, 5, True),
    ]  # fmt: skip
    assert found["cases"][2]["a"]["reason"] == "expression_failed"
    assert (found["equal"], found["compared"]) == (2, 3)
    a, b = found["a"], found["b"]
    assert (a["runs"], a["succeeded"], a["failed"], a["gates"], a["gates_passed"]) == (told[0], 3, 1, 3, 2)
    assert (b["succeeded"], b["failed"], b["gates"], b["charged_tokens"]) == (4, 0, 0, 0)
    assert 0 <= a["p50_ms"] <= a["p95_ms"]
    ids = [row[side]["execution_id"] for row in found["cases"] for side in "ab"]
    assert len(set(ids)) == 8

    again = await vs("engines", "compare", *told, code=1)
    assert "failed: expression_failed" in again.stdout
    assert "2 of 3" in again.stdout
    assert "Equal outputs: 2 of 3" in again.stdout
    cases.write_text('{"n": 2}\n{"n": 1}\n')
    more = await vs.json("engines", "compare", *told)
    begun = [row[side]["execution_id"] for row in more["cases"] for side in "ab"]
    assert begun[:2] == ids[:2]
    assert not set(begun[2:]) & set(ids)
    anew = await vs.json("engines", "compare", *told, "--name", "second")
    assert not {row[side]["execution_id"] for row in anew["cases"] for side in "ab"} & {*ids, *begun}
    count = "select count(*) from engine_executions where engine_id = $1"
    assert await floor.operator.fetchval(count, engine.id) == 14


async def test_what_cannot_be_compared_is_refused_before_anything_runs(vs: Cli, floor: Shop, tmp_path: Path) -> None:
    engine, hidden = await floor.deploy(), await floor.deploy(access="read")
    await floor.deploy_again(engine)
    cases, user = tmp_path / "cases.jsonl", await floor.person()
    who = ("--user", user.email, "--input", str(cases))
    refs = (f"{engine.slug}@1", f"{engine.slug}@2")
    assert "does not exist" in (await vs("engines", "compare", *refs, *who, code=2)).stderr
    for text, said in (
        ('{"n": 1}\n{"n": \n', "Line 2 is no JSON"),
        ('{"n": 1}\n\n[1]\n', "Line 3 is no JSON object"),
        ("\n\n", "no case"),
    ):
        cases.write_text(text)
        assert said in " ".join((await vs("engines", "compare", *refs, *who, code=2)).stderr.split())
    cases.write_bytes(b'{"n": "\xff"}\n')
    assert "utf-8" in (await vs("engines", "compare", *refs, *who, code=2)).stderr
    cases.write_text('{"n": 1}\n')
    same = await vs("engines", "compare", engine.slug, f"{engine.slug}@stable", *who, code=2)
    assert f"are both {engine.slug}@1 now" in " ".join(same.stderr.replace("│", "").split())
    for ref, code in (("none", "not_found"), ("A b", "invalid_request"), (hidden.slug, "forbidden")):
        assert (await vs.refused("engines", "compare", refs[0], ref, *who)).name == code
    assert (await vs.refused("engines", "compare", *refs, "--user", "nobody@x.test", *who[2:])).name == "not_found"
    count = "select count(*) from engine_executions where user_id = $1"
    assert await floor.operator.fetchval(count, user.identity.user_id) == 0


TONES = """
slug: applied-{n}
name: {name}
parameters: {{tone: {{type: string, default: kind}}}}
default_access: execute
{more}
workflow:
  name: Applied
  input: {{type: object, properties: {{tone: {{type: string}}}}}}
  nodes: [{{id: a, kind: transform, value: "{value}"}}]
  output: steps.a.output
"""


async def test_a_file_is_an_engine_and_again_it_is_nothing_new(vs: Cli, floor: Shop, tmp_path: Path) -> None:
    user, n, file = await floor.person(), uuid.uuid4().hex[:8], tmp_path / "applied.yaml"
    other = tmp_path / "other.yaml"
    other.write_text(f"slug: checked-{n}\ntemplate: summarise_and_check\nset: {{max_words: 20}}\nmode: sequential\n")
    command = ("engines", "apply", str(file), str(other), "--user", user.email)

    async def applied(value: str, more: str = "", name: str = "Applied") -> tuple[int, bool]:
        file.write_text(TONES.format(n=n, value=value, more=more, name=name))
        one, two = await vs.json(*command)
        assert (two["slug"], two["version"]) == (f"checked-{n}", 1)
        return one["version"], one["changed"]

    async def meant() -> dict[str, tuple[int, int]]:
        shown = await vs.json("engines", "show", f"applied-{n}")
        return {alias["alias"]: (alias["version"], alias["weight"]) for alias in shown["aliases"]}

    assert await applied("input.tone") == (1, True)
    assert await applied("input.tone") == (1, False)
    assert await applied("input.tone", name="Renamed") == (1, True)
    assert await applied("input.tone") == (1, True)
    assert f"applied-{n} is already what its file says: version 1" in (await vs(*command)).stdout
    assert await vs.json("engines", "run", f"applied-{n}", "--user", user.email) is not None
    canary = "alias: canary\nweight: 10"
    assert await applied("'2'", canary) == (2, True)
    assert await applied("'2'", canary) == (2, False)
    assert await meant() == {"stable": (1, 100), "canary": (2, 10)}
    assert await applied("'2'") == (2, True)
    assert await meant() == {"stable": (2, 100)}
    assert await applied("'2'", "mode: sequential") == (3, True)
    versions = (await vs.json("engines", "show", f"applied-{n}"))["data"]
    assert [(version["version"], version["mode"], version["at_once"]) for version in versions] == [
        (3, "sequential", 1),
        (2, "parallel", None),
        (1, "parallel", None),
    ]


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ("template: summarise_and_check", ""),  # beside a workflow
        ("set: {a: 1}", ""),
        ("alias: canary", ""),  # of which part of the users?
        ("weight: 5", ""),
        ("modes: parallel", "modes"),
        ("at_once: many", "at_once"),
    ],
)
async def test_a_file_that_is_no_engine_is_refused_by_place(
    vs: Cli, floor: Shop, tmp_path: Path, more: str, path: str
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    slug = uuid.uuid4().hex[:8]
    good.write_text(TONES.format(n=slug, value="'1'", more="", name="Good"))
    bad.write_text(TONES.format(n=slug, value="'2'", more=more, name="Bad"))
    refused = await vs.refused("engines", "apply", str(good), str(bad), "--user", floor.admin.email)
    assert (refused.name, [problem["path"] for problem in refused.detail["problems"]]) == ("invalid_definition", [path])
    assert (await vs.refused("engines", "show", f"applied-{slug}")).name == "not_found"


async def test_of_files_all_are_applied_or_none(vs: Cli, floor: Shop, tmp_path: Path) -> None:
    good, bad, slug = tmp_path / "good.yaml", tmp_path / "bad.yaml", uuid.uuid4().hex[:8]
    good.write_text(TONES.format(n=slug, value="'1'", more="", name="Good"))
    bad.write_text(TONES.format(n=f"{slug}-b", value="1 +", more="", name="Bad"))
    refused = await vs.refused("engines", "apply", str(good), str(bad), "--user", floor.admin.email)
    assert refused.name == "invalid_definition"
    assert (await vs.refused("engines", "show", f"applied-{slug}")).name == "not_found"
