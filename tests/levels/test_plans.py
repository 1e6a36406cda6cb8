"""A file of plans: the differences first, all or nothing, twice the same, and errors that name the place."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import People
from tests.tokens.test_cli import Cli, vs

__all__ = ["vs"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "plans.yaml"


async def own(people: People) -> tuple[Any, str]:
    tenant = await people.tenant()
    return tenant, await people.operator.fetchval("select slug from tenants where id = $1", tenant)


async def test_the_example_is_shown_applied_and_then_differs_in_nothing(vs: Cli, people: People) -> None:
    tenant, slug = await own(people)
    command = ("levels", "apply", str(EXAMPLE), "--tenant", slug)
    looked = await vs.json(*command)
    assert looked["changed"] is False
    made = await vs.json(*command, "--yes")
    assert (made["changed"], made["changes"]) == (True, looked["changes"])
    assert {"level": "free", "what": "restriction requests_per_minute", "before": "", "after": "20"} in made["changes"]
    before = "off, category support, name Priority support"
    gone = {"level": "free", "what": "feature priority-support", "before": before, "after": ""}
    assert gone in made["changes"]
    assert await vs.json(*command, "--yes") == {"changed": False, "changes": []}
    shown = await vs.json("levels", "show", "team", "--tenant", slug)
    assert {r["type"]: r["amount"] or r["patterns"] for r in shown["restrictions"]} == {
        "requests_per_minute": 600, "tokens_per_minute": 200_000, "denied_models": ["*-opus-*"],
    }  # fmt: skip
    assert [(p["cycle"], p["currency"], p["amount"]) for p in shown["prices"]] == [
        ("monthly", "EUR", 8900), ("one_time", "USD", 19900), ("monthly", "USD", 9900), ("yearly", "USD", 99000),
    ]  # fmt: skip
    policy = await people.operator.fetchrow(
        "select p.* from level_token_policies p join levels l on l.id = p.level_id where l.slug = 'team'"
        " and l.tenant_id = $1 and p.tenant_id = $1",
        tenant,
    )
    assert (policy["monthly_allocation"], policy["enforcement_mode"]) == (5_000_000, "warn")
    # what the file does not name is as it was
    assert (await vs.json("levels", "show", "premium", "--tenant", slug))["prices"] != []


async def test_a_price_that_changes_follows_the_former_and_what_is_left_out_of_a_section_goes(
    vs: Cli, people: People, tmp_path: Path
) -> None:
    _, slug = await own(people)
    plans, path = yaml.safe_load(EXAMPLE.read_text()), tmp_path / "plans.yaml"
    path.write_text(yaml.safe_dump(plans))
    command = ("levels", "apply", str(path), "--yes", "--tenant", slug)
    await vs(*command)
    team = plans["levels"][1]
    team["prices"] = [{"cycle": "monthly", "currency": "USD", "amount": 10900}]
    del team["restrictions"]["denied_models"], team["benefits"]
    path.write_text(yaml.safe_dump(plans))
    changed = (await vs.json(*command))["changes"]
    assert [(row["what"], row["after"]) for row in changed] == [
        ("restriction denied_models", ""),
        ("price monthly USD", "109 USD"),
        ("price monthly EUR", ""),
        ("price one_time USD", ""),
        ("price yearly USD", ""),
    ] or {row["what"] for row in changed} == {
        "restriction denied_models", "price monthly USD", "price monthly EUR", "price one_time USD", "price yearly USD",
    }  # fmt: skip
    shown = await vs.json("levels", "show", "team", "--tenant", slug)
    assert [(p["currency"], p["amount"]) for p in shown["prices"]] == [("USD", 10900)]
    assert len(shown["benefits"]) == 3
    assert (await vs.json(*command))["changes"] == []


async def test_paths_follow_the_file_and_a_circle_that_would_pay_names_its_place(
    vs: Cli, people: People, tmp_path: Path
) -> None:
    _, slug = await own(people)
    plans, path = yaml.safe_load(EXAMPLE.read_text()), tmp_path / "plans.yaml"
    command = ("levels", "apply", str(path), "--yes", "--tenant", slug)
    free, team = plans["levels"][0]["upgrade_paths"], plans["levels"][1]["upgrade_paths"]
    path.write_text(yaml.safe_dump(plans))
    await vs(*command)
    paths = await vs.json("levels", "paths", "--tenant", slug)
    named = [(p["from"], p["to"], p["timing"], p["discount_percent"]) for p in paths]
    assert [n for n in named if "team" in n] == [("free", "team", "any", 20), ("team", "free", "period_end", 0)]
    assert {p["to"] for p in paths if p["from"] == "free"} == {
        "team"
    }  # those of the seed that it does not name are gone
    team["free"]["timing"] = "any"
    path.write_text(yaml.safe_dump(plans))
    error = await vs.refused(*command)
    assert (error.name, error.detail["place"]) == ("invalid_state", "levels[1].upgrade_paths.free")
    assert await vs.json("levels", "paths", "--tenant", slug) == paths
    # with the discount gone it is no circle that pays, whatever the order in the file
    del free["team"]["discount_percent"]
    path.write_text(yaml.safe_dump(plans))
    assert [row["what"] for row in (await vs.json(*command))["changes"]] == ["path to team", "path to free"]
    assert (await vs.json(*command))["changes"] == []


async def test_nothing_is_changed_until_somebody_says_yes(vs: Cli, people: People) -> None:
    _, slug = await own(people)
    before = await vs.json("levels", "list", "--tenant", slug)
    output = (await vs("levels", "apply", str(EXAMPLE), "--tenant", slug, code=1)).output
    assert "requests_per_minute" in output
    assert await vs.json("levels", "list", "--tenant", slug) == before


@pytest.mark.parametrize(
    ("old", "new", "line", "place"),
    [
        ("amount: 9900,", "amount: -1,", 47, "levels[1].prices[1].amount"),
        ("amount: 9900,", "amount: 99.5,", 47, "levels[1].prices[1].amount"),
        ("currency: EUR", "currency: euro", 49, "levels[1].prices[3].currency"),
        ("currency: EUR", "currency: XXX", 49, "levels[1].prices[3]"),
        ("currency: EUR", "currency: USD", 46, "levels[1].prices"),
        ("limit: 5, period: daily", "limit: 5", 11, "levels[0].features.document-analysis"),
        ("period: daily, category: ai, name: Document analysis}\n      report-export: false",
         "period: hourly}\n      report-export: false", 11, "levels[0].features.document-analysis.period"),
        ("requests_per_minute: 20\n", "requests_per_minute: fast\n", 14, "levels[0].restrictions.requests_per_minute"),
        ("requests_per_minute: 20\n", "requests_an_hour: 20\n", 14, "levels[0].restrictions.requests_an_hour"),
        ('denied_models: ["*-opus-*"]', "denied_models: 5", 44, "levels[1].restrictions.denied_models"),
        ("slug: team", "slug: Team X", 27, "levels[1].slug"),
        ("slug: team", "slug: free", 4, "levels"),
        ("    tier: 5\n", "    tier: 5\n    teir: 6\n", 31, "levels[1].teir"),
        ("    tier: 5\n", "    tier: 5\n    tier: 6\n", 31, None),
        ("    tier: 5\n", "    tier: [5\n", 31, None),
        ("levels:", "plans:", 3, "levels"),
        ("discount_percent: 20", "discount_percent: 101", 25, "levels[0].upgrade_paths.team.discount_percent"),
        ("discount_percent: 20", "discount: 20", 25, "levels[0].upgrade_paths.team.discount"),
        ("      team: {", "      teem: {", 25, "levels[0].upgrade_paths.teem"),
        ("      free: {timing: period_end", "      team: {timing: any", 55, "levels[1].upgrade_paths.team"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_by_line_and_place_and_nothing_is_changed(
    vs: Cli, people: People, tmp_path: Path, old: str, new: str, line: int, place: str | None
) -> None:
    _, slug = await own(people)
    before = await vs.json("levels", "list", "--tenant", slug)
    text = EXAMPLE.read_text()
    assert text.count(old) == 1
    path = tmp_path / "plans.yaml"
    path.write_text(text.replace(old, new))
    error = await vs.refused("levels", "apply", str(path), "--yes", "--tenant", slug)
    assert error.name == "invalid_request"
    assert f"line {line}" in error.message, error.message
    if place:
        assert error.detail["place"] == place, error.message
    assert await vs.json("levels", "list", "--tenant", slug) == before


@pytest.mark.parametrize(
    "junk", [b"", b"\xff\xfe", b"- 1", b"null", b"a: &a [1]\nb: *a", b"[" * 100_000, b"x" * 1_000_001]
)
async def test_a_file_that_is_none_is_refused(vs: Cli, tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "plans.yaml"
    path.write_bytes(junk)
    assert (await vs.refused("levels", "apply", str(path), "--yes")).name == "invalid_request"


async def test_a_depth_that_no_plan_has_is_refused_before_the_file_is_read_to_its_end(vs: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text("[" * 30 + "]" * 30)
    assert "nested more than 20 deep" in (await vs.refused("levels", "apply", str(path), "--yes")).message
