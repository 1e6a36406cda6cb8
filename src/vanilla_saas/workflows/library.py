"""Workflows that ship: definitions with parameters, to be made one's own.

In a template's definition `{"$param": "model"}` stands for the whole value of the parameter `model`. `parameters` is a
JSON schema of an object; a property's `default` makes it optional.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from pydantic import Field, JsonValue, ValidationError

from vanilla_saas.workflows import documents, schemas
from vanilla_saas.workflows.definition import Definition
from vanilla_saas.workflows.fields import NODE_ID, Language, Strict, Title
from vanilla_saas.workflows.problems import DefinitionError, Problem, validated
from vanilla_saas.workflows.schemas import SchemaError

PARAM = "$param"


class WorkflowTemplate(Strict):
    slug: Annotated[str, Field(pattern=NODE_ID)]
    name: Title
    description: Annotated[str, Field(max_length=5000)] = ""
    parameters: Annotated[dict[str, JsonValue], Language("json_schema")] = Field({})
    definition: dict[str, JsonValue]

    def properties(self) -> dict[str, Any]:
        found = self.parameters.get("properties", {})
        return found if isinstance(found, dict) else {}


def load_template(text: str | bytes) -> WorkflowTemplate:
    """A template of YAML. Raises DocumentError, or DefinitionError when what it says of itself is wrong."""
    document = documents.parse(text, "yaml")
    try:
        template = WorkflowTemplate.model_validate(document)
    except ValidationError as error:
        raise DefinitionError(
            [
                Problem(None, ".".join(map(str, wrong["loc"])), "template_invalid", f"{wrong['msg']}.")
                for wrong in error.errors(include_url=False)
            ]
        ) from None
    if found := list(_own_problems(template)):
        raise DefinitionError(found)
    return template


def _own_problems(template: WorkflowTemplate) -> Iterator[Problem]:
    try:
        schemas.check_schema(template.parameters)
    except SchemaError as error:
        yield Problem(None, "parameters", error.code, f"Correct it: {error.message}.")
    for name in sorted(_used(template.definition) - template.properties().keys()):
        message = f"Declare {name} under parameters.properties, or take it out of the definition."
        yield Problem(None, "definition", "parameter_undeclared", message)


@cache
def library() -> Mapping[str, WorkflowTemplate]:
    """The templates that ship, by slug."""
    folder = files("vanilla_saas.workflows") / "library"
    texts = [file.read_bytes() for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {template.slug: template for template in sorted(map(load_template, texts), key=lambda one: one.slug)}


def instantiate(template: WorkflowTemplate, parameters: Mapping[str, Any]) -> Definition:
    """The template's definition with these parameters.

    Raises DefinitionError: parameter_missing, _unknown, _invalid, or what is wrong with the definition that they make.
    """
    properties = template.properties()
    defaults = {name: schema["default"] for name, schema in properties.items() if _has_default(schema)}
    values = defaults | dict(parameters)
    if found := list(_parameter_problems(template, values)):
        raise DefinitionError(found)
    return validated(_filled(template.definition, values))


def _has_default(schema: object) -> bool:
    return isinstance(schema, dict) and "default" in schema


def _parameter_problems(template: WorkflowTemplate, values: dict[str, Any]) -> Iterator[Problem]:
    if wrong := documents.not_plain(values):
        yield Problem(None, f"parameters.{wrong[0]}", "not_json", wrong[1])
        return
    properties = template.properties()
    for name in sorted(values.keys() - properties.keys()):
        message = f"Remove {name}; the parameters are {', '.join(sorted(properties)) or 'none'}."
        yield Problem(None, f"parameters.{name}", "parameter_unknown", message)
    required = template.parameters.get("required")
    wanted = _used(template.definition).union(map(str, required if isinstance(required, list) else ()))
    missing = sorted(wanted - values.keys())
    for name in missing:
        yield Problem(None, f"parameters.{name}", "parameter_missing", f"Say {name}.")
    if missing:
        return
    for fault in schemas.mismatches(template.parameters, {name: values[name] for name in values if name in properties}):
        field = f"parameters.{fault.path}" if fault.path else "parameters"
        yield Problem(None, field, "parameter_invalid", f"Correct it: {fault.message}.")


def _used(value: object) -> set[str]:
    if isinstance(value, dict):
        if value.keys() == {PARAM} and isinstance(value[PARAM], str):
            return {value[PARAM]}
        return set[str]().union(*map(_used, value.values()))
    return set[str]().union(*map(_used, value)) if isinstance(value, list) else set()


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {PARAM} and isinstance(value[PARAM], str):
            return values[value[PARAM]]
        return {key: _filled(inner, values) for key, inner in value.items()}
    return [_filled(inner, values) for inner in value] if isinstance(value, list) else value
