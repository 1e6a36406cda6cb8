"""JSON schemas and regular expressions: linear in the text, nothing is fetched."""

from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson
from cel_expr_python import cel

from vanilla_saas.workflows.evaluator.cel import program_of
from vanilla_saas.workflows.evaluator.refused import CACHED, Answer, Refused


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")


@lru_cache(CACHED)
def _validator(schema: str) -> Any:
    try:
        return jsonschema_rs.validator_for(
            orjson.loads(schema), retriever=_no_retrieval, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        place = ".".join(map(str, getattr(error, "instance_path", None) or ()))
        message = str(getattr(error, "message", error))[:300]
        raise Refused("syntax", f"{place}: {message}" if place else message) from None


def check_schema(schema: str) -> Answer:
    _validator(schema)
    return {}


def validate_instance(schema: str, instance: Any) -> Answer:
    errors = []
    for error in _validator(schema).iter_errors(instance):
        errors.append({"path": list(error.instance_path), "message": error.message[:300]})
        if len(errors) == 20:
            break
    return {"value": errors}


def search_pattern(pattern: str, text: str) -> Answer:
    """RE2, as in CEL: linear in the text whatever the pattern."""
    found = program_of("value[0].matches(value[1])").eval(data={"value": [text, pattern]})
    if found.type() == cel.Type.ERROR:
        raise Refused("syntax", str(found.value()).partition("expression: ")[2] or str(found.value()))
    return {"value": found.value()}
