"""A file of plans: what it may say, and where in it something is wrong.

    levels:
      - slug: basic
        name: Basic
        tokens: {monthly_allocation: 200000}
        features: {scan: {limit: 50, period: daily}, support: false}
        restrictions: {requests_per_minute: 60, allowed_models: ["sandbox-*"]}
        prices: [{cycle: monthly, currency: EUR, amount: 900}]
        benefits: ["200,000 tokens a month"]
        upgrade_paths: {free: {timing: period_end, self_service: true}}

A section that is there is the whole of it for the level; one that is left out is left alone, and so is a level that the
file does not name.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.levels.change_models import PathBody
from vanilla_saas.levels.models import (
    MAX_AMOUNT,
    Benefit,
    Cycle,
    FeatureBody,
    FeatureName,
    LevelBody,
    RestrictionBody,
    RestrictionType,
)
from vanilla_saas.tokens.wallet_models import LevelPolicyBody

MAX_BYTES = 1_000_000
MAX_DEPTH = 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Feature(FeatureBody):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class _Restriction(RestrictionBody):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | list):
            raise ValueError("a number, or a list of patterns")
        return {"patterns": value} if isinstance(value, list) else {"amount": value}


class PlanPrice(_Strict):
    cycle: Cycle
    currency: Annotated[str, StringConstraints(pattern="^[A-Z]{3}$")]
    amount: int = Field(ge=0, le=MAX_AMOUNT, strict=True)
    trial_days: int = Field(0, ge=0, le=3660, strict=True)
    trial_credits: int = Field(0, ge=0, le=MAX_AMOUNT, strict=True)


class _Benefit(Benefit):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class _Path(PathBody):
    model_config = ConfigDict(extra="forbid")


class Plan(LevelBody):
    """A level with the sections that the file gives."""

    model_config = ConfigDict(extra="forbid")

    tokens: LevelPolicyBody | None = None
    features: dict[FeatureName, _Feature] | None = None
    restrictions: dict[RestrictionType, _Restriction] | None = None
    prices: list[PlanPrice] | None = None
    benefits: list[_Benefit] | None = Field(None, max_length=100)
    upgrade_paths: dict[str, _Path] | None = Field(None, max_length=1000)

    @field_validator("prices")
    @classmethod
    def _once(cls, prices: list[PlanPrice] | None) -> list[PlanPrice] | None:
        kinds = [(price.cycle, price.currency) for price in prices or ()]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise ValueError(f"two {twice[0]} prices in {twice[1]} would overlap")
        return prices


class Plans(_Strict):
    levels: list[Plan] = Field(min_length=1, max_length=1000)

    @field_validator("levels")
    @classmethod
    def _named_once(cls, levels: list[Plan]) -> list[Plan]:
        slugs = [level.slug for level in levels]
        if twice := next((slug for slug in slugs if slugs.count(slug) > 1), None):
            raise ValueError(f"the level {twice} is there twice")
        if sum(level.is_default for level in levels) > 1:
            raise ValueError("one level can be the default")
        return levels


class PlanFile:
    """The plans of a file, and the line of every place in it."""

    def __init__(self, path: Path):
        """Raises VanillaError `invalid_request` with the line and the place of what is wrong."""
        self.path = path
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise VanillaError("invalid_request", f"{path} has more than {MAX_BYTES:,} bytes.")
        try:
            _refuse_odd(path, raw.decode())
            self._root = yaml.compose(raw.decode(), Loader=yaml.SafeLoader)
            self._lines = dict(_places(self._root, (), path)) if self._root else {}
            content = yaml.safe_load(raw.decode())
        except UnicodeDecodeError:
            raise VanillaError("invalid_request", f"{path} is not UTF-8.") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise VanillaError("invalid_request", f"{path}, line {line}: {error.problem}.", {"line": line}) from None
        except (yaml.YAMLError, RecursionError) as error:
            raise VanillaError("invalid_request", f"{path} is not YAML: {error}.") from None
        try:
            self.plans = Plans.model_validate(content).levels
        except ValidationError as error:
            wrong = error.errors()[0]
            place = tuple(part for part in wrong["loc"] if part != "[key]")
            raise self.error("invalid_request", place, wrong["msg"].removeprefix("Value error, ")) from None

    def error(
        self, name: str, place: tuple[int | str, ...], message: str, detail: Mapping[str, Any] | None = None,
        hint: str | None = None,
    ) -> VanillaError:  # fmt: skip
        """A refusal that names the place: `plans.yaml, line 7, levels[0].prices[1].amount: ...`."""
        known = place
        while known and known not in self._lines:
            known = known[:-1]
        line = self._lines.get(known, 1)
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
        text = f"{self.path}, line {line}{f', {where}' if where else ''}: {message}"
        return VanillaError(name, text, dict(detail or {}) | {"line": line, "place": where}, hint)


def _refuse_odd(path: Path, text: str) -> None:
    """Aliases, and depths that no plan has: the parser's time grows with the square of the depth."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise VanillaError("invalid_request", f"{path} has an alias (*name); write the plan out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise VanillaError("invalid_request", f"{path} is nested more than {MAX_DEPTH} deep.")


def _places(node: yaml.Node, at: tuple[int | str, ...], path: Path) -> Iterator[tuple[tuple[int | str, ...], int]]:
    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                line = key.start_mark.line + 1
                name = key.value if isinstance(key, yaml.ScalarNode) else "a key"
                raise VanillaError("invalid_request", f"{path}, line {line}: {name} is there twice.", {"line": line})
            seen.add(key.value)
            yield (*at, key.value), key.start_mark.line + 1
            yield from _places(value, (*at, key.value), path)
    elif isinstance(node, yaml.SequenceNode):
        for n, child in enumerate(node.value):
            yield from _places(child, (*at, n), path)
