"""The templates that ship make definitions without problems, whatever their parameters say."""

from importlib.resources import files
from typing import Any

import pytest

from tests.workflows.graphs import load
from vanilla_saas.providers.sandbox_rules import example_of
from vanilla_saas.workflows import prompts, schemas
from vanilla_saas.workflows.checks import JUDGEMENT
from vanilla_saas.workflows.definition import dump_yaml, plain
from vanilla_saas.workflows.library import WorkflowTemplate, instantiate, library, load_template
from vanilla_saas.workflows.nodes import Gate
from vanilla_saas.workflows.problems import DefinitionError, problems

SLUGS = [
    "draft_with_approval",
    "extract_to_schema",
    "map_and_merge",
    "moderated_reply",
    "research_with_judge",
    "summarise_and_check",
]


def refused(template: WorkflowTemplate, parameters: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(DefinitionError) as error:
        instantiate(template, parameters)
    return [(problem.field, problem.code) for problem in error.value.problems]


def test_six_templates_ship_each_in_a_file_of_its_name() -> None:
    folder = files("vanilla_saas.workflows") / "library"
    assert sorted(library()) == SLUGS == sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())


@pytest.mark.parametrize("slug", SLUGS)
def test_a_template_needs_no_parameters_and_runs_on_the_sandbox(slug: str) -> None:
    definition = instantiate(library()[slug], {})
    assert problems(definition) == []
    assert load(dump_yaml(definition), "yaml") == definition
    assert set(_values(plain(definition), "model")) == {"sandbox-small"}
    assert "$param" not in dump_yaml(definition)
    assert definition.input is not None
    assert schemas.mismatches(definition.input, {}), "a template says what it needs"


def _values(value: Any, name: str) -> list[Any]:
    if isinstance(value, dict):
        return [inner for key, item in value.items() for inner in ([item] if key == name else _values(item, name))]
    return [inner for item in value for inner in _values(item, name)] if isinstance(value, list) else []


@pytest.mark.parametrize("slug", SLUGS)
def test_every_parameter_changes_the_definition(slug: str) -> None:
    template, plainly = library()[slug], instantiate(library()[slug], {})
    for name, schema in template.properties().items():
        default = schema["default"]
        another = {
            str: f"{default}-other", int: default + 1 if isinstance(default, int) else 0, float: 0.5,
            list: ["role:user"], dict: {"type": "array"},
        }[type(default)]  # fmt: skip
        assert instantiate(template, {name: another}) != plainly, name


def test_parameters_that_are_wrong_are_problems() -> None:
    template = library()["map_and_merge"]
    assert refused(template, {"colour": 1}) == [("parameters.colour", "parameter_unknown")]
    assert refused(template, {"at_once": 0}) == [("parameters.at_once", "parameter_invalid")]
    assert refused(template, {"model": "\0"}) == [("parameters.model", "not_json")]
    assert refused(library()["summarise_and_check"], {"instructions": "{{ nowhere }}"}) == [("system", "name_unknown")]


OWN = """
slug: own
name: Own
parameters:
  type: object
  properties: {text: {type: string}, times: {type: integer, default: 2}}
definition:
  name: Own
  nodes: [{id: a, kind: prompt, template: {$param: text}, retry: {attempts: {$param: times}}}]
"""


def test_a_parameter_without_a_default_has_to_be_said_and_stands_for_the_whole_value() -> None:
    template = load_template(OWN)
    assert refused(template, {}) == [("parameters.text", "parameter_missing")]
    made = instantiate(template, {"text": "hello"})
    assert plain(made)["nodes"][0]["template"] == "hello"
    assert made.nodes[0].retry.attempts == 2


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("$param: text", "$param: txt", "parameter_undeclared"),
        ("type: object\n", "type: thing\n", "schema_syntax"),
        ("slug: own", "slug: Own", "template_invalid"),
        ("name: Own\nparameters", "title: Own\nparameters", "template_invalid"),
    ],
)
def test_a_template_that_is_wrong_is_refused_when_it_is_loaded(before: str, after: str, code: str) -> None:
    assert before in OWN
    with pytest.raises(DefinitionError) as error:
        load_template(OWN.replace(before, after))
    assert code in [problem.code for problem in error.value.problems]


def test_a_repair_is_told_what_was_wrong() -> None:
    definition = instantiate(library()["extract_to_schema"], {})
    extract, fits = definition.nodes
    assert isinstance(fits, Gate)
    assert fits.retry.node == extract.id
    prompt = plain(definition)["nodes"][0]["prompt"]
    first = prompts.render(prompt, {"input": {"text": "Ada"}, "feedback": None})
    feedback = {
        "value": {"name": 1},
        "feedback": "name is no text",
        "suggestions": ["Quote it."],
        "score": 0,
        "attempt": 1,
    }
    again = prompts.render(prompt, {"input": {"text": "Ada"}, "feedback": feedback})
    assert first.strip() == "Ada"
    assert again.splitlines()[2:] == [
        'Your last answer was {"name":1}',
        "It was refused: name is no text",
        "- Quote it.",
    ]


def test_what_the_sandbox_answers_is_what_the_templates_ask_for() -> None:
    judged = example_of(JUDGEMENT)
    assert (schemas.mismatches(JUDGEMENT, judged), judged["score"]) == ([], 1)
    for slug in SLUGS:
        for schema in _values(plain(instantiate(library()[slug], {})), "json_schema"):
            assert schemas.mismatches(schema, example_of(schema)) == [], slug
