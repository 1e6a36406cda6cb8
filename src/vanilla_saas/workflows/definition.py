"""A workflow's definition: nodes, the connections between them, and what goes in and comes out.

docs/design/workflows.md describes the format; `json_schema` is its schema.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel, Field

from vanilla_saas.workflows import documents
from vanilla_saas.workflows.fields import Branch, Expression, NodeId, ObjectSchema, Seconds, Strict, Title
from vanilla_saas.workflows.nodes import AnyNode


class Connection(Strict):
    """Taken when `from` succeeds, or with `on` when that branch is its outcome."""

    source: NodeId = Field(alias="from")
    target: NodeId = Field(alias="to")
    on: Branch | None = None


class Concurrency(Strict):
    """At most `limit` executions at the same time for each value of `key`; the others wait."""

    key: Expression
    limit: int = Field(1, ge=1, le=100_000)


class Definition(Strict):
    name: Title
    description: str | None = Field(None, max_length=5000)
    input: ObjectSchema | None = Field(None, description="JSON schema of the input; none: any object")
    nodes: list[AnyNode] = Field(min_length=1)
    connections: list[Connection] = Field([])
    output: Expression | None = Field(None, description="none: the outputs of the nodes without successors, by id")
    concurrency: Concurrency | None = None
    max_duration_s: Seconds | None = None
    priority: int | None = Field(None, ge=0, le=9, description="9 first")
    estimate_tokens: int | None = Field(None, ge=0, le=10**12, description="wallet tokens reserved at the start")
    budget_tokens: int | None = Field(
        None, ge=1, le=10**12, description="wallet tokens that it and what it starts may cost, reserved at the start"
    )


@cache
def json_schema() -> dict[str, Any]:
    """The schema of a definition, for the API and for editors."""
    schema = Definition.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Workflow definition"}


def plain(definition: Definition) -> dict[str, Any]:
    """The definition as JSON with every default written out; fields without a value are left out."""
    return dict(_plain(definition, with_defaults=True))


def canonical(definition: Definition) -> bytes:
    """The same bytes for the same definition, however it was written."""
    return documents.canonical_json(plain(definition))


def dump_yaml(definition: Definition) -> str:
    """As a person would write it: defaults are left out."""
    return documents.dump_yaml(dict(_plain(definition, with_defaults=False)))


_FIRST = ("id", "kind", "name", "check")
_LAST = ("retry", "timeout_s", "pool")


def _plain(model: BaseModel, *, with_defaults: bool) -> Iterator[tuple[str, Any]]:
    # model_dump(exclude_none=True) would also leave nulls out of the JSON schemas that people wrote
    fields = type(model).model_fields
    for name in sorted(fields, key=lambda name: (name not in _FIRST and 1) + (name in _LAST and 1)):
        value, field = getattr(model, name), fields[name]
        if value is None and field.default is None:
            continue
        if not with_defaults and not field.is_required() and value == field.default:
            continue
        yield field.alias or name, _value(value, with_defaults)


def _value(value: Any, with_defaults: bool) -> Any:
    if isinstance(value, BaseModel):
        return dict(_plain(value, with_defaults=with_defaults))
    if isinstance(value, list) and any(isinstance(item, BaseModel) for item in value):
        return [_value(item, with_defaults) for item in value]
    return value
