"""Prices of models, read from the installed `genai-prices` package; nothing is fetched.

`python -m vanilla_saas.providers.prices --sql` prints the rows of the seed.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version

from genai_prices.data import providers
from genai_prices.types import ModelInfo, StartDateConstraint, TieredPrices
from genai_prices.types import ModelPrice as PackagePrice

PRICES_VERSION = version("genai-prices")
PROVIDERS = ("openai", "anthropic", "google")

_NOT_TEXT = re.compile(
    r"image|audio|tts|realtime|live|transcribe|whisper|moderation|translate|search|vision"
    r"|computer-use|deep-research|robotics|nano-banana|omni|instruct|davinci|babbage|curie|ft:|\.ft-|:extended"
)
_NOT_SERVED_HERE = {"openai": ("gpt-oss", "ada"), "google": ("claude", "gemma"), "anthropic": ()}

_SEED = {
    "openai": (
        "gpt-6.1-sol",
        "gpt-6.1-terra",
        "gpt-6-astra",
        "gpt-6-sol",
        "gpt-6-luna",
        "gpt-5.6-sol",
        "gpt-5.6-terra",
        "gpt-5.6-luna",
        "gpt-5.4-mini",
        "gpt-5-mini",
        "gpt-4.1",
        "gpt-4o-mini",
        "text-embedding-3-large",
        "text-embedding-3-small",
    ),
    "anthropic": (
        "claude-fable-5-2",
        "claude-opus-5-5",
        "claude-opus-5",
        "claude-opus-4-8",
        "claude-sonnet-5-5",
        "claude-sonnet-5",
        "claude-sonnet-4-6",
        "claude-haiku-5-5",
        "claude-haiku-4-5",
    ),
    "google": (
        "gemini-4-argon",
        "gemini-3.8-flash",
        "gemini-3.7-flash",
        "gemini-3.6-flash",
        "gemini-3.5-flash",
        "gemini-3.5-flash-lite",
        "gemini-3.1-pro-preview",
        "gemini-3.1-flash-lite",
        "gemini-2.5-pro",
        "gemini-2.5-flash",
        "gemini-2.5-flash-lite",
        "gemini-embedding-2",
        "gemini-embedding-001",
    ),
}
"""Current models, the newest first, those for embeddings last, of what is widely used; each must be in the package."""


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """One row of `ai_models`. Prices are whole micros of USD for a million tokens: 2.50 USD is 2_500_000."""

    provider: str
    model: str
    display_name: str
    kind: str
    """`chat` or `embedding`."""
    context_window: int | None
    max_output_tokens: int | None
    """Always None at present: the package does not know it."""
    input_price: int
    output_price: int
    """0 for embeddings, which have no output."""
    cached_input_price: int
    """Of prompt tokens read from the provider's cache; the input price where none is published."""
    cache_write_price: int
    """Of prompt tokens written to that cache, never below the input price: what a hold must assume."""
    deprecated: bool


def catalogue(on: date | None = None) -> list[ModelPrice]:
    """Every text model of the three providers that has a plain price per token, by provider and model.

    A price that depends on the length of the prompt counts with its highest tier, and of a price that
    changes on a coming date the higher counts already: a call may cost the platform less than the row
    says, never more.
    """
    today = on or datetime.now(UTC).date()
    rows = [
        row
        for provider in providers
        if provider.id in PROVIDERS
        for model in provider.models
        if _is_text(provider.id, model) and (row := _row(provider.id, model, today)) is not None
    ]
    return sorted(rows, key=lambda row: (PROVIDERS.index(row.provider), row.model))


def seed_rows(limit: int | None = None) -> list[ModelPrice]:
    """The rows of the well-known current models, at most `limit` of each provider, newest first."""
    known = {(row.provider, row.model): row for row in catalogue()}
    return [known[provider, model] for provider in PROVIDERS for model in _SEED[provider][:limit]]


def as_sql(rows: Iterable[ModelPrice]) -> str:
    """The rows as tuples for `insert ... values`, in the order of ModelPrice's fields."""
    return ",\n".join(f"({', '.join(_literal(value) for value in astuple(row))})" for row in rows)


def _literal(value: str | int | bool | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower()


def _is_text(provider: str, model: ModelInfo) -> bool:
    return not _NOT_TEXT.search(model.id) and not model.id.startswith(_NOT_SERVED_HERE[provider])


def _row(provider: str, model: ModelInfo, today: date) -> ModelPrice | None:
    prices = _current_and_coming(model, today)
    input_price = _highest(prices, "input_mtok")
    output_price = _highest(prices, "output_mtok")
    kind = "embedding" if "embedding" in model.id else "chat"
    if not input_price or not (output_price or kind == "embedding"):
        return None
    return ModelPrice(
        provider=provider,
        model=model.id,
        display_name=model.name or model.id,
        kind=kind,
        context_window=model.context_window,
        max_output_tokens=None,
        input_price=input_price,
        output_price=output_price,
        cached_input_price=_highest(prices, "cache_read_mtok") or input_price,
        cache_write_price=max(input_price, _highest(prices, "cache_write_mtok")),
        deprecated=bool(model.deprecated),
    )


def _current_and_coming(model: ModelInfo, today: date) -> list[PackagePrice]:
    now = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
    prices = [model.get_prices(now)]
    if isinstance(model.prices, list):
        for conditional in model.prices:
            constraint = conditional.constraint
            passed = constraint is None or (
                isinstance(constraint, StartDateConstraint) and constraint.start_date <= today
            )
            if not passed:
                prices.append(conditional.prices)
    return prices


def _highest(prices: Iterable[PackagePrice], key: str) -> int:
    """Micros of USD; 0 when no price has the key."""
    found = [Decimal(0)]
    for price in prices:
        value = getattr(price, key)
        if isinstance(value, TieredPrices):
            found += [value.base, *(tier.price for tier in value.tiers)]
        elif value is not None:
            found.append(value)
    return int((max(found) * 1_000_000).to_integral_value(ROUND_CEILING))


def main() -> None:
    parser = argparse.ArgumentParser(description="Prices of the seed's models.")
    parser.add_argument("--sql", action="store_true", help="as tuples for an insert")
    parser.add_argument("--all", action="store_true", help="the whole catalogue")
    parser.add_argument("--limit", type=int, help="at most so many of each provider")
    arguments = parser.parse_args()
    rows = catalogue() if arguments.all else seed_rows(arguments.limit)
    print(f"-- genai-prices {PRICES_VERSION}; prices in micros of USD for a million tokens")
    if arguments.sql:
        print(as_sql(rows))
    else:
        for row in rows:
            print(row)


if __name__ == "__main__":
    main()
