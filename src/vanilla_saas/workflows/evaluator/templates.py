"""Templates: minijinja over JSON that cannot be changed from within."""

import re
from functools import lru_cache
from typing import Any

import minijinja
import orjson

from vanilla_saas.workflows.evaluator.refused import Answer, Refused

FUEL = 5_000_000
"""Steps of a template; minijinja counts the bytes that an operation makes as well."""


class _Map(dict[str, Any]):
    """What a template may do with an object: read it. Methods that change one could grow it without fuel."""


class _List(list[Any]):
    """What a template may do with a list: read it."""


def _refused_method(_: Any) -> Any:
    raise AttributeError("A template reads values; this would change or copy one.")


for _name in ("clear", "copy", "pop", "popitem", "setdefault", "update", "fromkeys"):
    setattr(_Map, _name, property(_refused_method))
for _name in ("append", "clear", "copy", "extend", "insert", "pop", "remove", "reverse", "sort"):
    setattr(_List, _name, property(_refused_method))


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return _Map((key, _frozen(item)) for key, item in value.items())
    return _List(map(_frozen, value)) if isinstance(value, list) else value


def _shown(value: Any) -> Any:
    """Text as it is, everything else as JSON, which models read better than Python's words."""
    if value is None or isinstance(value, bool | dict | list | tuple):
        return orjson.dumps(value).decode()
    return NotImplemented


_TEMPLATES = minijinja.Environment(
    fuel=FUEL,
    undefined_behavior="strict",
    debug=False,
    auto_escape_callback=lambda _: False,
    finalizer=_shown,
    keep_trailing_newline=True,
)
_TEMPLATES.remove_global("debug")
GLOBALS = frozenset(("range", "dict", "namespace", "joiner", "cycler"))


def _template_error(error: minijinja.TemplateError) -> Refused:
    code = {"SyntaxError": "syntax", "OutOfFuel": "timeout", "UndefinedError": "undefined"}.get(error.kind, "failed")
    if code == "timeout":
        return Refused(code, "It takes too many steps or makes too much text.", error.line)
    said = str(error.detail or error.message).partition(" (in <string>")[0]
    return Refused(code, said, error.line)


_TAG = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", re.DOTALL)
_RAW = re.compile(r"\{%-?\s*raw\s*-?%\}.*?\{%-?\s*endraw\s*-?%\}", re.DOTALL)
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_OTHER_TEMPLATES = re.compile(r"\{%[-+]?\s*(include|import|from|extends|block)\b")
_FILTER = re.compile(r"\|\s*([A-Za-z_]\w*)")
_TEST = re.compile(r"\bis\s+(?:not\s+)?([A-Za-z_]\w*)")


def _refuse_unknown(text: str) -> None:
    """Filters and tests are looked up when they are reached; who publishes a template wants to know before."""
    text = _RAW.sub(lambda raw: "\n" * raw[0].count("\n"), text)
    for tag in _TAG.finditer(text):
        line = text.count("\n", 0, tag.start()) + 1
        if tag[0].startswith("{#"):
            continue
        inside = _STRING.sub("''", tag[0])
        if other := _OTHER_TEMPLATES.match(inside):
            raise Refused("syntax", f"{other[1]}: a template stands alone, there is no other one.", line)
        for kind, pattern in (("filter", _FILTER), ("test", _TEST)):
            for name in pattern.findall(inside):
                if not _known(kind, name):
                    raise Refused("syntax", f"There is no {kind} {name}.", line)


@lru_cache(1024)
def _known(kind: str, name: str) -> bool:
    try:
        _TEMPLATES.render_str(f"{{{{ 1|{name} }}}}" if kind == "filter" else f"{{{{ 1 is {name} }}}}")
    except minijinja.TemplateError as error:
        return error.kind not in ("UnknownFilter", "UnknownTest")
    return True


_PIECE = re.compile(rf"{_STRING.pattern}|[\[\](){{}}:]|[^\[\](){{}}:'\"]+|.", re.DOTALL)


def _without_slices(tag: str) -> str:
    """`a[b:c]` as `a[[b, c]]`: minijinja does not look for names in slices and what they are of."""
    open_: list[tuple[str, list[str], list[str]]] = []
    bounds: list[str] = []
    out: list[str] = []
    for piece in _PIECE.findall(tag):
        if piece in ("[", "(", "{"):
            open_.append((piece, out, bounds))
            out, bounds = [], []
        elif piece in ("]", ")", "}") and open_:
            opening, before, bounds_before = open_.pop()
            text = "".join(out)
            if opening == "[" and bounds:
                kept = ", ".join(bound for bound in (*bounds, text) if bound.strip())
                text = f"[{kept}]"
            out, bounds = [*before, opening, text, piece], bounds_before
        elif piece == ":" and open_ and open_[-1][0] == "[":
            bounds.append("".join(out))
            out = []
        else:
            out.append(piece)
    while open_:
        opening, before, _ = open_.pop()
        out = [*before, opening, *out]
    return "".join(out)


def parse_template(text: str) -> Answer:
    try:
        _TEMPLATES.undeclared_variables_in_str(text)
        looked = _TAG.sub(lambda tag: tag[0] if tag[0].startswith("{#") else _without_slices(tag[0]), text)
        names = _TEMPLATES.undeclared_variables_in_str(looked, nested=True)
    except minijinja.TemplateError as error:
        raise _template_error(error) from None
    _refuse_unknown(text)
    paths = [name.split(".") for name in sorted(names) if name not in GLOBALS]
    return {"roots": sorted({path[0] for path in paths}), "paths": paths}


def render_template(text: str, variables: dict[str, Any], result_bytes: int) -> Answer:
    try:
        result = _TEMPLATES.render_str(text, **{name: _frozen(value) for name, value in variables.items()})
    except minijinja.TemplateError as error:
        raise _template_error(error) from None
    except (AttributeError, TypeError, ValueError) as error:
        raise Refused("failed", str(error)) from None
    if len(result.encode()) > result_bytes:
        raise Refused("too_large", f"The text has more than {result_bytes:,} bytes.")
    return {"value": result}
