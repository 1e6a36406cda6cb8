"""Definitions of agents and teams as people give them: read from a text, everything that is wrong told at once."""

from typing import Any

from pydantic import BaseModel, ValidationError

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.orchestration.definition import AgentDefinition
from vanilla_saas.orchestration.teams import Plan, Team, plan
from vanilla_saas.workflows import documents

MAX_PROBLEMS = 200
Answer = dict[str, Any]


def problems(given: object, model: type[BaseModel] = AgentDefinition) -> list[dict[str, str]]:
    """`path` with dots, `code` and `message` of each; none: it can be saved, for all that is not the database's."""
    if wrong := documents.not_plain(given):
        return [{"path": wrong[0], "code": "not_json", "message": wrong[1]}]
    try:
        model.model_validate(given)
    except ValidationError as error:
        return [
            {"path": ".".join(str(part) for part in one["loc"]), "code": one["type"], "message": _said(one["msg"])}
            for one in error.errors(include_url=False, include_input=False)[:MAX_PROBLEMS]
        ]
    return []


def _said(message: str) -> str:
    return message.removeprefix("Value error, ").rstrip(".") + "."


def document(given: object) -> Answer:
    """The definition with its defaults. Raises VanillaError `invalid_definition` with every problem."""
    if found := problems(given):
        raise _refusal(found)
    return AgentDefinition.model_validate(given).document()


def team(given: object) -> Plan:
    """What a team becomes. Raises VanillaError `invalid_definition` with every problem."""
    if found := problems(given, Team):
        raise _refusal(found, "the team does not validate")
    return plan(Team.model_validate(given))


def as_text(definition: Answer) -> str:
    """YAML as a person would write it: without defaults, and a name alone where nothing is said beside it."""
    try:
        plain = AgentDefinition.model_validate(definition).model_dump(
            mode="json", exclude_defaults=True, exclude_none=True
        )
    except ValidationError:
        return documents.dump_yaml(definition)
    for field, name in (("tools", "tool"), ("handoffs", "agent"), ("delegates", "agent")):
        _shorten(plain, field, name)
    _shorten(plain.get("chat", {}), "members", "agent")
    _shorten(plain.get("contract", {}), "bidders", "agent")
    return documents.dump_yaml(plain)


def _shorten(within: Answer, field: str, name: str) -> None:
    if field in within:
        within[field] = [one[name] if set(one) == {name} else one for one in within[field]]


def turns_to(definition: Answer) -> list[tuple[str, str]]:
    """The agents that one may turn to: how, and the reference of each."""
    named = [(how, edge) for how in ("handoffs", "delegates") for edge in definition.get(how) or ()]
    named += [("members", edge) for edge in (definition.get("chat") or {}).get("members") or ()]
    named += [("bidders", edge) for edge in (definition.get("contract") or {}).get("bidders") or ()]
    return [(how, edge["agent"]) for how, edge in named]


def _refusal(found: list[dict[str, str]], words: str = "the agent does not validate") -> VanillaError:
    return VanillaError("invalid_definition", words, {"problems": found}, found[0]["message"])


def read(text: str | bytes, format: documents.Format) -> Answer:
    """The object that a text of JSON or YAML is. Raises VanillaError `invalid_definition`."""
    try:
        value = documents.parse(text, format)
    except documents.DocumentError as error:
        raise _refusal([{"path": "", "code": error.code, "message": error.message}]) from error
    if not isinstance(value, dict):
        raise _refusal(
            [{"path": "", "code": "wrong_type", "message": "Write an object with instructions and a model."}]
        )
    return value
