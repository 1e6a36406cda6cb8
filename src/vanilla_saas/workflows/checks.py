"""What a quality gate can check. Each check gives a score from 0 to 1; a gate weighs them."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from vanilla_saas.workflows.fields import Approver, Expression, ModelName, Pattern, Schema, Seconds, Strict, Template

JUDGEMENT: dict[str, JsonValue] = {
    "type": "object",
    "properties": {
        # five marks: judges agree with themselves on few steps, and not on a hundred
        "score": {"enum": [1, 0.75, 0.5, 0.25, 0]},
        "feedback": {"type": "string"},
        "suggestions": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["score", "feedback", "suggestions"],
    "additionalProperties": False,
}


class _Check(Strict):
    weight: float = Field(1, gt=0, le=1000, description="its share in the score of the gate")


class Rule(_Check):
    """1 when the CEL condition holds; it may give a number from 0 to 1 instead."""

    check: Literal["rule"]
    rule: Expression


class Regex(_Check):
    """1 when the RE2 pattern is found in the text, or is not with `found: false`."""

    check: Literal["regex"]
    pattern: Pattern
    found: bool = True


class JsonSchema(_Check):
    """1 when the value, or the JSON that a text holds, is what the schema says."""

    check: Literal["json_schema"]
    schema_: Schema = Field(alias="schema")


class Length(_Check):
    """1 when the value is between min and max."""

    check: Literal["length"]
    unit: Literal["characters", "words", "items"] = "characters"
    min: int = Field(0, ge=0, le=10_000_000)
    max: int | None = Field(None, ge=0, le=10_000_000)

    @model_validator(mode="after")
    def _ordered(self) -> "Length":
        if self.max is None and self.min == 0:
            raise PydanticCustomError("field_missing", "Say min, max or both.", {"field": "max"})
        if self.max is not None and self.max < self.min:
            raise PydanticCustomError("out_of_range", "Make max at least min.", {"field": "max"})
        return self


class Similarity(_Check):
    """How near the text is to another one: the cosine of their embeddings."""

    check: Literal["similarity"]
    to: Expression
    model: ModelName


class Judge(_Check):
    """What a model thinks of `value`; it is asked for JSON of the form JUDGEMENT."""

    check: Literal["judge"]
    model: ModelName
    prompt: Template


class Human(_Check):
    """What people think of `value`: 1 when they accept it. Their comment is the feedback."""

    check: Literal["human"]
    title: Template
    approvers: list[Approver] = Field(min_length=1, max_length=100)
    quorum: int = Field(1, ge=1, le=100)
    deadline_s: Seconds | None = Field(None, description="after it the check fails")


Check = Annotated[Rule | Regex | JsonSchema | Length | Similarity | Judge | Human, Field(discriminator="check")]
CHECKS = (Rule, Regex, JsonSchema, Length, Similarity, Judge, Human)
CHECK_NAMES = tuple(check.model_fields["check"].annotation.__args__[0] for check in CHECKS)  # type: ignore[union-attr]
CHECK_FIELDS = frozenset(name for check in CHECKS for name in (f.alias or n for n, f in check.model_fields.items()))
