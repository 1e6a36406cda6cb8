"""CEL: compiled by Google's own C++ implementation, values as JSON, the names that an expression uses."""

import math
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson
from cel_expr_python import cel
from cel_expr_python.ext import ext_encoders, ext_math, ext_strings

from vanilla_saas.workflows.evaluator.refused import CACHED, DEPTH, Answer, Refused

VARIABLES = ("input", "steps", "item", "index", "execution", "feedback", "value")
_ENVIRONMENT = cel.NewEnv(
    variables=dict.fromkeys(VARIABLES, cel.Type.DYN),
    extensions=[ext_strings.ExtStrings(), ext_math.ExtMath(), ext_encoders.ExtEncoders()],
)
# cel-cpp takes the element of a dyn by [] for something that cannot be iterated; the specification says it is dyn
_CHECKER_BUG = "expression of type 'dyn' cannot be the range of a comprehension"


@lru_cache(CACHED)
def program_of(text: str) -> Any:
    try:
        # JSON has no types that a checker could know beforehand; `_type_error` says what it can
        return _ENVIRONMENT.compile(text, disable_check=True)
    except RuntimeError as error:
        message = _first_error(str(error))
        deep = "recursion" in message
        raise Refused("too_large" if deep else "syntax", "It is nested too deep." if deep else message) from None


def _first_error(text: str) -> str:
    """`line 1, column 4: Syntax error: ...` of the compiler's listing."""
    first = text.partition("\n")[0].partition(": ERROR: <input>:")[2] or text.partition("\n")[0]
    line, _, rest = first.partition(":")
    column, _, message = rest.partition(":")
    if line.isdigit() and column.isdigit():
        return f"line {line}, column {column}: {message.strip()}"
    return first.removesuffix(" [INVALID_ARGUMENT]").replace("<input>:-1:-1: ", "")


def _type_error(text: str) -> str | None:
    try:
        _ENVIRONMENT.compile(text)
    except RuntimeError as error:
        found = [line for line in str(error).splitlines() if "ERROR:" in line]
        real = [line for line in found if _CHECKER_BUG not in line]
        return _first_error(f": {real[0][real[0].index('ERROR:') :]}") if real else None
    return None


def compile_expression(text: str) -> Answer:
    program = program_of(text)
    roots, paths = names_of(program.serialize())
    # a name that is not there is reported by name, and better, by who knows what is there
    wrong = _type_error(text) if roots <= set(VARIABLES) else None
    return {"roots": sorted(roots), "paths": sorted(map(list, paths)), "type_error": wrong}


def evaluate_expression(text: str, variables: dict[str, Any], result_bytes: int) -> Answer:
    program = program_of(text)
    try:
        value = program.eval(data=variables)
    except RuntimeError as error:
        if "budget" in str(error):
            raise Refused("timeout", "It takes more than 10,000 iterations of map, filter, all or exists.") from None
        raise Refused("failed", _first_error(str(error))) from None
    return {"value": _Json(result_bytes).of(value, 0)}


class _Json:
    """A CEL value as JSON, up to a size: shared lists can make a small value endless."""

    def __init__(self, limit: int):
        self.limit = self.left = limit

    def of(self, value: Any, depth: int) -> Any:
        kind, plain = value.type(), value.value()
        if kind == cel.Type.ERROR:
            raise _failure(str(plain))
        self.spend(plain)
        if depth > DEPTH:
            raise Refused("too_large", f"The result is nested more than {DEPTH} deep.")
        if isinstance(plain, dict):
            return {self.key(key): self.of(item, depth + 1) for key, item in plain.items()}
        if isinstance(plain, list):
            return [self.of(item, depth + 1) for item in plain]
        return _scalar(plain)

    def key(self, key: Any) -> str:
        self.spend(key)
        return key if isinstance(key, str) else orjson.dumps(key).decode()

    def spend(self, plain: Any) -> None:
        size = len(plain) if isinstance(plain, str | bytes | bytearray) else 8
        self.left -= size + 4
        if self.left < 0:
            raise Refused("too_large", f"The result has more than {self.limit:,} bytes.")


def _scalar(plain: Any) -> Any:
    if plain is None or isinstance(plain, bool | int | str):
        return plain
    if isinstance(plain, float):
        if not math.isfinite(plain):
            raise Refused("type", f"The result {plain} is no JSON number.")
        return plain
    if isinstance(plain, bytes | bytearray):
        return b64encode(plain).decode()
    if isinstance(plain, datetime):
        return plain.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(plain, timedelta):
        return f"{plain.total_seconds():f}".rstrip("0").rstrip(".") + "s"
    raise Refused("type", "The result is a type, which is no JSON value.")


def _failure(text: str) -> Refused:
    """`UNKNOWN: No matching overloads found : _+_(int64, double)` in words and with a code."""
    message = text.partition(": ")[2] or text
    if "overload" in message:
        return Refused("type", f"{message}; dyn(), int(), double() and string() convert.")
    return Refused("type" if "out of range for" in message else "failed", message)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protobuf message: varints and bytes, fixed sizes passed over."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
        elif wire == 2:
            size = varint()
            yield number, data[at : at + size]
            at += size
        else:
            at += 8 if wire == 1 else 4


Path = tuple[str, ...]


def names_of(serialized: bytes) -> tuple[set[str], set[Path]]:
    """Names that the expression does not bind itself, and the paths of constants below them (`steps`, `a`, `output`).

    Read from the compiler's own tree, cel/expr/syntax.proto: 3 constant, 4 identifier, 5 select, 6 call, 7 list,
    8 struct, 9 comprehension.
    """
    parsed = dict(_fields(memoryview(serialized)))[2]
    expression = dict(_fields(parsed))[2]
    roots: set[str] = set()
    paths: set[Path] = set()

    def path_of(kind: int, node: memoryview, bound: frozenset[str]) -> Path | None:
        fields = dict(_fields(node))
        if kind == 4:
            name = bytes(fields[1]).decode().lstrip(".")
            return None if name in bound else (name,)
        if kind == 5:
            below = path_of(*_kind(fields[1]), bound)
            return below and (*below, bytes(fields[2]).decode())
        if kind == 6 and bytes(fields[2]) == b"_[_]":
            operand, key = [part for number, part in _fields(node) if number == 3]
            key_kind, key_node = _kind(key)
            constant = dict(_fields(key_node)).get(6) if key_kind == 3 else None
            below = path_of(*_kind(operand), bound) if constant is not None else None
            return below and (*below, bytes(constant or b"").decode())
        return None

    def walk(expression: memoryview, bound: frozenset[str]) -> None:
        kind, node = _kind(expression)
        if path := path_of(kind, node, bound):
            roots.add(path[0])
            paths.add(path)
        elif kind == 5:
            walk(dict(_fields(node))[1], bound)
        elif kind == 6:
            for number, part in _fields(node):
                if number in (1, 3):
                    walk(part, bound)
        elif kind == 7:
            for number, part in _fields(node):
                if number == 1:
                    walk(part, bound)
        elif kind == 8:
            for number, entry in _fields(node):
                for inner, part in _fields(entry) if number == 2 else ():
                    if inner in (3, 4):
                        walk(part, bound)
        elif kind == 9:
            fields = dict(_fields(node))
            inside = bound | {bytes(fields[number]).decode() for number in (1, 3, 8) if number in fields}
            for number in (2, 4):
                walk(fields[number], bound)
            for number in (5, 6, 7):
                walk(fields[number], inside)

    walk(expression, frozenset())
    return roots, paths


def _kind(expression: memoryview) -> tuple[int, memoryview]:
    return next(((number, part) for number, part in _fields(expression) if number != 2), (0, memoryview(b"")))
