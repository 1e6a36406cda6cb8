"""The types of fields that are more than text: in which language they are written stands in the type."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

LanguageName = Literal["cel", "template", "json_schema", "regex"]


@dataclass(frozen=True, slots=True)
class Language:
    name: LanguageName


NODE_ID = r"^[a-z][a-z0-9_]{0,62}$"
NodeId = Annotated[str, StringConstraints(pattern=NODE_ID)]
Branch = Annotated[str, StringConstraints(pattern=NODE_ID)]
Title = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Expression = Annotated[str, StringConstraints(min_length=1, max_length=8192), Language("cel")]
Template = Annotated[str, StringConstraints(min_length=1, max_length=65536), Language("template")]
Schema = Annotated[dict[str, JsonValue] | bool, Language("json_schema")]
ObjectSchema = Annotated[dict[str, JsonValue], Language("json_schema")]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=1000), Language("regex")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Ref = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}(@[A-Za-z0-9][A-Za-z0-9._-]{0,62})?$")]
"""A slug, and after an @ a version or alias."""
EngineRef = Annotated[
    str,
    StringConstraints(
        pattern=r"^(my/[a-z0-9][a-z0-9_-]{0,62}|[a-z0-9][a-z0-9_-]{0,62}(@([1-9][0-9]{0,8}|stable|canary))?)$"
    ),
]
"""An engine: `slug`, `slug@3`, `slug@stable`, `slug@canary`, or `my/slug` for a copy of the user's."""
Approver = Annotated[
    str, StringConstraints(pattern=r"^(role:(admin|user)|user:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$")
]
"""`role:admin`, `role:user` (anybody of the tenant), `user:<id>`."""
Seconds = Annotated[int, Field(ge=1, le=31_536_000)]


class Strict(BaseModel):
    """Says what it takes: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


Place = tuple[str, ...]


def written(model: BaseModel, at: Place = ()) -> Iterator[tuple[LanguageName, Any, Place]]:
    """Every value below `model` that is written in a language, with its place by the names of the document."""
    for name, field in type(model).model_fields.items():
        value, place = getattr(model, name), (*at, field.alias or name)
        languages = [part for part in field.metadata if isinstance(part, Language)]
        if languages and value is not None:
            yield languages[0].name, value, place
        else:
            yield from _written(value, field.annotation, place)


def _written(value: Any, annotation: Any, at: Place) -> Iterator[tuple[LanguageName, Any, Place]]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if value is None:
        return
    if isinstance(value, BaseModel):
        yield from written(value, at)
    elif origin is Annotated:
        languages = [part for part in arguments[1:] if isinstance(part, Language)]
        if languages:
            yield languages[0].name, value, at
        else:
            yield from _written(value, arguments[0], at)
    elif origin in (Union, UnionType):
        # of the unions here, one side is None or a model
        for argument in arguments:
            yield from _written(value, argument, at)
    elif origin is list:
        for n, item in enumerate(value):
            yield from _written(item, arguments[0], (*at, str(n)))
    elif origin is dict:
        for key, item in value.items():
            yield from _written(item, arguments[1], (*at, key))
