"""JSON and YAML as the same plain data: text, numbers that every reader reads alike, true, false, null, lists, objects.

YAML is read by the rules of JSON: `on` and `no` are texts, `2024-01-01` is one too, and there are no anchors, tags or
second documents. Keys that are there twice, NaN and Infinity are refused in both.
"""

import json
import math
import re
from typing import Any, Literal

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NUMBER = 2**53
"""Whole numbers beyond it are rounded by JavaScript, and a float beyond it is a whole number to PostgreSQL."""

Format = Literal["json", "yaml"]
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", re.ASCII)
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}


class DocumentError(ValueError):
    """`code`: document_too_large, document_encoding, document_syntax, document_duplicate_key, document_value."""

    def __init__(self, code: str, message: str, line: int | None = None):
        super().__init__(message)
        self.code, self.message, self.line = code, message, line


def parse(text: str | bytes, format: Format) -> Any:
    """The data of a text. Raises DocumentError."""
    try:
        data = text.encode() if isinstance(text, str) else text
        if len(data) > MAX_BYTES:
            raise DocumentError("document_too_large", f"Make it smaller: it has more than {MAX_BYTES:,} bytes.")
        text = data.decode()
    except UnicodeError:
        raise DocumentError("document_encoding", "Save it as UTF-8.") from None
    value = _json(text) if format == "json" else _yaml(text)
    if wrong := not_plain(value):
        raise DocumentError("document_value", f"{wrong[0]}: {wrong[1]}" if wrong[0] else wrong[1])
    return value


def not_plain(value: object) -> tuple[str, str] | None:
    """The place and the fault of the first thing in `value` that JSON, JavaScript and PostgreSQL do not read alike."""
    stack: list[tuple[str, int, object]] = [("", 0, value)]
    while stack:
        at, depth, item = stack.pop()
        if depth > MAX_DEPTH:
            return at, f"Nest it less: it is more than {MAX_DEPTH} deep."
        if isinstance(item, dict):
            for key, inner in item.items():
                if not isinstance(key, str):
                    return at, f"Quote the key {key!r}: keys are texts."
                if fault := _text_fault(key):
                    return at, fault
                stack.append((f"{at}.{key}" if at else key, depth + 1, inner))
        elif isinstance(item, list):
            stack.extend((f"{at}.{n}" if at else str(n), depth + 1, inner) for n, inner in enumerate(item))
        elif fault := _fault(item):
            return at, fault
    return None


def _fault(item: object) -> str | None:
    if item is None or isinstance(item, bool):
        return None
    if isinstance(item, str):
        return _text_fault(item)
    if isinstance(item, int | float):
        if isinstance(item, float) and not math.isfinite(item):
            return "Write a number: NaN and Infinity are none."
        if abs(item) >= MAX_NUMBER:
            return "Write it as a text: numbers from 2^53 on are not exact everywhere."
        return None
    return f"Write it as JSON: a {type(item).__name__} is none."


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "Remove the character U+0000: the database stores none."
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "Remove the surrogate: half of a character is no text."
    return None


def normal(value: Any) -> Any:
    """Numbers in one form: 1.0 is 1, as PostgreSQL and JavaScript compare them."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    return [normal(item) for item in value] if isinstance(value, list) else value


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8: equal data, equal bytes."""
    return json.dumps(
        normal(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()  # fmt: skip


def _json(text: str) -> Any:
    def constant(name: str) -> Any:
        raise DocumentError("document_value", f"Write a number: {name} is none.")

    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise DocumentError("document_syntax", f"Line {error.lineno}: {error.msg}.", error.lineno) from None
    except RecursionError:
        raise DocumentError("document_value", f"Nest it less: it is more than {MAX_DEPTH} deep.") from None
    except ValueError as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError("document_value", "Write it as a text: a number has too many digits.") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DocumentError("document_duplicate_key", f"Keep one of the two keys {twice!r}.")
    return found


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _yaml(text: str) -> Any:
    try:
        return _built(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DocumentError("document_syntax", f"Line {line}: {error.problem or error.context}.", line) from None
    except yaml.YAMLError as error:
        raise DocumentError("document_syntax", str(error).partition("\n")[0]) from None


def _built(text: str) -> Any:
    """From the parser's events: a document is refused at the first thing that is not allowed, not when it has grown."""
    documents: list[Any] = []
    open_: list[tuple[Any, list[Any]]] = []

    def put(item: Any, line: int) -> None:
        if not open_:
            documents.append(item)
            return
        container, key = open_[-1]
        if isinstance(container, list):
            container.append(item)
        elif key:
            container[key.pop()] = item
        elif not isinstance(item, str):
            raise DocumentError("document_value", f"Line {line}: quote the key; keys are texts.", line)
        elif item in container:
            raise DocumentError("document_duplicate_key", f"Line {line}: keep one of the two keys {item!r}.", line)
        else:
            key.append(item)

    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise DocumentError(
                "document_syntax", f"Line {line}: write it out; anchors and aliases are not read.", line
            )
        if getattr(event, "tag", None) is not None:
            raise DocumentError("document_syntax", f"Line {line}: remove the tag {event.tag}.", line)
        if isinstance(event, yaml.DocumentStartEvent) and documents:
            raise DocumentError("document_syntax", f"Line {line}: keep one document.", line)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_) >= MAX_DEPTH:
                raise DocumentError("document_value", f"Nest it less: it is more than {MAX_DEPTH} deep.", line)
            if open_ and isinstance(open_[-1][0], dict) and not open_[-1][1]:
                raise DocumentError("document_value", f"Line {line}: write a text as the key.", line)
            open_.append(({} if isinstance(event, yaml.MappingStartEvent) else [], []))
        elif isinstance(event, yaml.CollectionEndEvent):
            container, _ = open_.pop()
            put(container, line)
        elif isinstance(event, yaml.ScalarEvent):
            is_key = bool(open_) and isinstance(open_[-1][0], dict) and not open_[-1][1]
            put(event.value if is_key or not event.implicit[0] else _scalar(event.value, line), line)
    return documents[0] if documents else None


def _scalar(text: str, line: int) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if not _NUMBER.fullmatch(text):
        if text.lower().lstrip("+-") in (".nan", ".inf"):
            raise DocumentError("document_value", f"Line {line}: write a number; {text} is none.", line)
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise DocumentError(
            "document_value", f"Line {line}: write it as a text; it has too many digits.", line
        ) from None


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what the rules above would not read as a text, and what other readers would not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"{_NUMBER.pattern}$"), list("-0123456789"))


_OTHER_BREAKS = re.compile("[\r\x85\u2028\u2029\ufeff]")


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # readers take these for ends of lines outside of double quotes
    style = '"' if _OTHER_BREAKS.search(text) else "|" if "\n" in text.strip("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


def dump_yaml(value: object) -> str:
    """YAML that `parse` reads back as the same data."""
    text: str = yaml.dump(normal(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
