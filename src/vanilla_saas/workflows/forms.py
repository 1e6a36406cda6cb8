"""A form made from a JSON schema: a field for each property, which takes JSON where no other control fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from vanilla_saas.database.errors import VanillaError

Control = Literal["text", "number", "integer", "boolean", "choice", "json"]
_CONTROLS: Mapping[str, Control] = {"string": "text", "number": "number", "integer": "integer", "boolean": "boolean"}
WHOLE = ""
"""Name of the one field of a schema that lists no properties: the object itself."""
MOST_FIELDS = 50
PREFIX = "field."


@dataclass(frozen=True, slots=True)
class Field:
    """A property as a form asks for it; `value` is what stands in it first, `choices` its texts."""

    name: str
    control: Control
    title: str
    hint: str
    required: bool
    filled: bool
    """It may not be sent empty."""
    value: str
    choices: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Its name in the form: no property's name is another field's."""
        return PREFIX + self.name


def fields_of(schema: object, values: Mapping[str, Any] | None = None) -> list[Field]:
    """The fields of a schema of an object, with `values` or the schema's defaults in them."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(schema, dict) or not isinstance(properties, dict) or not 0 < len(properties) <= MOST_FIELDS:
        return [Field(WHOLE, "json", "Input", "a JSON object", True, True, _json(values or {}))]
    required = schema.get("required")
    # the database does not keep the order of keys, but that of a list
    order = {name: n for n, name in enumerate(required if isinstance(required, list) else []) if isinstance(name, str)}
    return [
        _field(name, part if isinstance(part, dict) else {}, name in order, values)
        for name, part in sorted(properties.items(), key=lambda one: order.get(one[0], len(order)))
    ]


def _field(name: str, part: Mapping[str, Any], required: bool, values: Mapping[str, Any] | None) -> Field:
    choices = part.get("enum")
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        control: Control = "choice"
    else:
        choices, kind = (), part.get("type")
        control = _CONTROLS.get(kind, "json") if isinstance(kind, str) else "json"
    value = (values or {}).get(name, part.get("default"))
    if value is not None and not isinstance(value, str) and control in ("text", "choice"):
        control, choices = "json", ()
    least = part.get("minLength")
    filled = required and (control != "text" or (isinstance(least, int) and least > 0))
    title, hint = part.get("title"), part.get("description")
    return Field(
        name,
        control,
        title if isinstance(title, str) and title else name,
        hint if isinstance(hint, str) else "",
        required,
        filled,
        _written(control, value),
        choices,
    )


def _written(control: Control, value: Any) -> str:
    if value is None:
        return ""
    return _json(value) if control == "json" else written(value)


def written(value: Any) -> str:
    """A value as a person writes it in a field of one line."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def read(fields: Sequence[Field], form: Mapping[str, Any]) -> dict[str, Any]:
    """The object that a form says; what is left empty and need not be there is left out.

    Raises VanillaError `invalid_request` with the name of a field that cannot be read.
    """
    found: dict[str, Any] = {}
    for field in fields:
        sent = form.get(field.key, "")
        text = sent.replace("\r\n", "\n") if isinstance(sent, str) else ""
        if text == "" and not (field.required and field.control == "text"):
            if field.required:
                raise _refusal(field, "is missing", "Fill it in.")
            continue
        value = _value(field, text)
        if field.name != WHOLE:
            found[field.name] = value
        elif isinstance(value, dict):
            found = value
        else:
            raise _refusal(field, "is no JSON object", 'Write it as {"name": "value"}.')
    return found


def _value(field: Field, text: str) -> Any:
    if field.control in ("text", "choice"):
        return text
    try:
        value = orjson.loads(text)
    except ValueError:
        value = _UNREAD
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "number": number,
        "integer": number and float(value).is_integer(),
        "boolean": isinstance(value, bool),
        "json": value is not _UNREAD,
    }
    if not fits[field.control]:
        meant = {"number": "a number", "integer": "a whole number", "boolean": "yes or no", "json": "JSON"}
        raise _refusal(field, f"is not {meant[field.control]}", None)
    return value


_UNREAD = object()


def _refusal(field: Field, what: str, hint: str | None) -> VanillaError:
    return VanillaError("invalid_request", f"{field.title} {what}", {"param": field.key}, hint)
