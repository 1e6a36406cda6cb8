"""`vanilla-saas workflows`."""

from pathlib import Path

from tests.conftest import People
from tests.tokens.test_cli import Cli, vs

__all__ = ["vs"]
FLOW = """
name: Shorten
nodes:
  - {id: shorten, kind: llm, model: sandbox-small, prompt: "Shorten {{ input.text }}"}
"""


async def test_a_file_is_validated_saved_published_compared_and_exported(
    vs: Cli, people: People, tmp_path: Path
) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    person, at = await people.user(tenant_id=tenant), ("--tenant", slug)
    file = tmp_path / "shorten.yaml"
    file.write_text(FLOW)
    assert "Nothing is wrong" in (await vs("workflows", "validate", str(file))).stdout
    made = await vs.json("workflows", "save", str(file), "--user", person.email, "--publish", *at)
    assert (made["revision"], made["version"], made["problems"]) == (1, 1, [])
    file.write_text(FLOW.replace("Shorten {{", "Cut {{"))
    assert "revision 2" in (await vs("workflows", "save", str(file), *at)).stdout
    shown = (await vs("workflows", "diff", "shorten", "1", *at)).stdout
    assert 'node shorten: prompt: "Shorten {{ input.text }}" -> "Cut {{ input.text }}"' in shown
    assert "version 2" in (await vs("workflows", "publish", "shorten", *at)).stdout
    assert "already" in (await vs("workflows", "publish", "shorten", *at)).stdout
    assert "Nothing differs" in (await vs("workflows", "diff", "shorten", "2", *at)).stdout
    [row] = await vs.json("workflows", "list", *at)
    assert (row["slug"], row["latest_version"]) == ("shorten", 2)
    exported = tmp_path / "again.yaml"
    exported.write_text((await vs("workflows", "export", "shorten", *at)).stdout)
    assert (await vs.json("workflows", "save", str(exported), "--slug", "shorten", *at))["problems"] == []
    await vs("workflows", "retire", "shorten", "--version", "1", *at)
    assert [v["state"] for v in await vs.json("workflows", "versions", "shorten", *at)] == ["published", "retired"]
    await vs("workflows", "delete", "shorten", *at)
    assert (await vs.refused("workflows", "export", "shorten", *at)).name == "not_found"


async def test_what_is_wrong_is_said_by_node_and_field_with_exit_code_1(vs: Cli, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(FLOW.replace("prompt:", "promt:"))
    told = (await vs("workflows", "validate", str(file), code=1)).stdout
    assert "shorten: promt: " in told
    problems = (await vs.json("workflows", "validate", str(file), code=1))["problems"]
    assert {problem["code"] for problem in problems} >= {"field_unknown"}
    file.write_text("nodes: &a [*a]")
    refused = await vs.refused("workflows", "validate", str(file))
    assert (refused.name, refused.detail["problems"][0]["code"]) == ("invalid_definition", "document_syntax")


async def test_a_template_becomes_a_workflow(vs: Cli, people: People) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    person, at = await people.user(tenant_id=tenant), ("--tenant", slug)
    rows = await vs.json("workflows", "templates", *at)
    assert len(rows) == 6
    assert "summarise_and_check" in (await vs("workflows", "templates", *at)).stdout
    made = await vs.json("workflows", "new", "summarise_and_check", "mine", "--user", person.email, *at)
    assert made["problems"] == []
    assert "version 1" in (await vs("workflows", "publish", "mine", *at)).stdout
