"""Definitions of agents and teams as people give them: read from a text, everything that is wrong told at once."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.orchestration.definition import AgentDefinition
from vanilla_saas.orchestration.teams import Plan, Team, plan
from vanilla_saas.workflows import documents
from vanilla_saas.workflows.shape import told

M = TypeVar("M", bound=BaseModel)
Answer = dict[str, Any]
MAX_PROBLEMS = 200
_SCHEMAS = ("output", "accept")
_EITHER = (*_SCHEMAS, "join")
"""Fields of one of several types, of which pydantic names the one that it has tried."""


def document(given: object) -> Answer:
    """The definition with its defaults. Raises VanillaError `invalid_definition` with every problem.

    A problem has `path` with dots, `code` and `message` as those of workflows; the database has problems of its own.
    """
    return _valid(given, AgentDefinition, "agent").document()


def team(given: object) -> Plan:
    """What a team becomes. Raises VanillaError `invalid_definition` with every problem."""
    return plan(_valid(given, Team, "team"))


def _valid(given: object, model: type[M], what: str) -> M:
    if wrong := documents.not_plain(given):
        raise _refusal([{"path": wrong[0], "code": "not_json", "message": wrong[1]}], what)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = [_problem(one, model) for one in error.errors(include_url=False, include_input=False)[:MAX_PROBLEMS]]
    raise _refusal([one for n, one in enumerate(found) if one not in found[:n]], what)


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> dict[str, str]:
    parts = [str(part) for part in detail["loc"] if part != "[key]"]
    last = next((n for n, part in enumerate(parts) if part in _EITHER and parts[n - 1 : n] != ["agents"]), len(parts))
    parts = parts[: last + 1]
    field = "schema" if parts and parts[-1] in _SCHEMAS else parts[-1] if parts else ""
    code, message = told(detail, field, tuple(model.model_fields) if len(parts) == 1 else ())
    return {"path": ".".join(parts), "code": code, "message": message}


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


def _refusal(found: list[dict[str, str]], what: str) -> VanillaError:
    return VanillaError("invalid_definition", f"the {what} does not validate", {"problems": found}, found[0]["message"])


def read(
    text: str | bytes, format: documents.Format, what: str = "agent", of: str = "instructions and a model or an engine"
) -> Answer:
    """The object that a text of JSON or YAML is: `what` it says, an object `of` what. Raises `invalid_definition`."""
    try:
        value = documents.parse(text, format)
    except documents.DocumentError as error:
        raise _refusal([{"path": "", "code": error.code, "message": error.message}], what) from error
    if not isinstance(value, dict):
        raise _refusal([{"path": "", "code": "wrong_type", "message": f"Write an object with {of}."}], what)
    return value
