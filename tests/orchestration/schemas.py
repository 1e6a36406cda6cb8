"""Random schemas of the part that SQL enforces, and values that nearly fit them."""

import copy
import random
from typing import Any

PATTERNS = ("^[a-c]+$", "a|bc", "^(?:ab)*c?$", "[^a]", "\\.", "^a{2,3}$", "^[\\-_x]$", "b+$", "^ä", "[0-9a-f-]{2}")
TEXTS = ("", "a", "ab", "abc", "aa", "aaa", "aaaa", "cab", "c", ".", "-", "b\n", "bc", "äa", "😀", "0-", "x" * 9)
NUMBERS = (-1, 0, 1, 1.0, 1.5, 2, 3, 7, 10, 1e2, -2.5)
NAMES = ("a", "b", "a/b", "~c", "")


class Maker:
    """Draws of one seed."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)

    def schema(self, depth: int = 3, top: bool = True, refs: tuple[str, ...] = ()) -> Any:
        draw = self.draw
        if depth == 0 or draw.random() < 0.05:
            return draw.choice((True, True, False, {}))
        made: dict[str, Any] = {}
        if top and draw.random() < 0.4:
            # what a definition refers to is further inside, so that no definition is itself
            made["$defs"] = {"leaf": self.schema(1, False), "tree": self.tree()}
            refs = ("leaf", "tree")
        for _ in range(draw.randrange(1, 4)):
            made |= self.keyword(depth, refs)
        return made

    def tree(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"a": {"anyOf": [{"$ref": "#/$defs/tree"}, self.schema(1, False)]}},
            "additionalProperties": {"$ref": "#/$defs/leaf"},
        }

    def keyword(self, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
        draw = self.draw

        def inner() -> Any:
            return self.schema(depth - 1, False, refs)

        name = draw.choice(KEYWORDS)
        if name == "$ref":
            return {"$ref": f"#/$defs/{draw.choice(refs)}"} if refs else {}
        if name == "type":
            types = ["null", "boolean", "object", "array", "number", "string", "integer"]
            return {"type": draw.choice((draw.choice(types), draw.sample(types, 2)))}
        if name in ("const", "enum"):
            return {name: self.value() if name == "const" else [self.value() for _ in range(3)]}
        if name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            return {name: draw.choice(NUMBERS)}
        if name == "multipleOf":
            return {name: draw.choice((1, 2, 0.5, 3))}
        if name == "pattern":
            return {name: draw.choice(PATTERNS)}
        if name == "uniqueItems":
            return {name: draw.random() < 0.8}
        if name == "required":
            return {name: draw.sample(NAMES, 2)}
        if name == "properties":
            return {name: {n: inner() for n in draw.sample(NAMES, 2)}}
        if name in ("items", "additionalProperties", "not"):
            return {name: inner()}
        if name in ("allOf", "anyOf", "oneOf"):
            return {name: [inner() for _ in range(draw.randrange(1, 4))]}
        return {name: draw.randrange(4)}

    def value(self, depth: int = 3) -> Any:
        draw = self.draw
        kind = draw.randrange(8 if depth else 5)
        if kind < 3:
            return draw.choice((None, True, False, *TEXTS[:6]))
        if kind == 3:
            return draw.choice(NUMBERS)
        if kind == 4:
            return draw.choice(TEXTS)
        if kind == 5:
            made = [self.value(depth - 1) for _ in range(draw.randrange(4))]
            return made + copy.deepcopy(made[:1]) if draw.random() < 0.3 else made
        return {n: self.value(depth - 1) for n in draw.sample(NAMES, draw.randrange(4))}


KEYWORDS = (
    "type", "type", "const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "pattern", "pattern", "minItems", "maxItems", "uniqueItems", "items", "items",
    "minProperties", "maxProperties", "required", "properties", "properties", "additionalProperties", "allOf", "anyOf",
    "oneOf", "not", "$ref", "$ref",
)  # fmt: skip
