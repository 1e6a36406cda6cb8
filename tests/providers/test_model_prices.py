"""The catalogue against the package it is read from."""

from datetime import UTC, date, datetime

import pytest
from genai_prices import Usage, calc_price

from vanilla_saas.providers import prices
from vanilla_saas.providers.prices import catalogue, seed_rows

BY_NAME = {(row.provider, row.model): row for row in catalogue()}


def test_prices_are_whole_micros_of_usd_for_a_million_tokens():
    row = BY_NAME["openai", "gpt-4o"]
    assert (row.input_price, row.output_price, row.cached_input_price) == (2_500_000, 10_000_000, 1_250_000)
    assert (row.context_window, row.display_name) == (128_000, "gpt 4o")


@pytest.mark.parametrize("tokens", [1_000, 900_000])
def test_no_call_costs_more_than_the_row_says(tokens):
    for row in BY_NAME.values():
        usage = Usage(input_tokens=tokens, output_tokens=tokens)
        cost = calc_price(usage, row.model, provider_id=row.provider).total_price
        assert cost * 1_000_000 <= (row.input_price + row.output_price) * tokens / 1_000_000, row


def test_cached_input_never_costs_more_than_the_row_says():
    for row in BY_NAME.values():
        usage = Usage(input_tokens=900_000, cache_read_tokens=900_000, output_tokens=0)
        cost = calc_price(usage, row.model, provider_id=row.provider).total_price
        assert cost * 1_000_000 <= row.cached_input_price * 900_000 / 1_000_000, row


def test_the_highest_tier_counts():
    row = BY_NAME["anthropic", "claude-sonnet-4-5"]
    assert (row.input_price, row.output_price) == (6_000_000, 22_500_000)


def test_a_price_that_will_rise_counts_already():
    today = datetime.now(UTC).date()
    earlier, later = catalogue(date(2020, 1, 1)), catalogue(date(2100, 1, 1))
    now = {(r.provider, r.model): r for r in catalogue(today)}
    assert {(r.provider, r.model) for r in earlier} == set(now) == {(r.provider, r.model) for r in later}
    for row in later:
        assert now[row.provider, row.model].input_price >= row.input_price
    # o3 fell from 10 to 2 USD in June 2025
    o3 = [{r.model: r for r in rows}["o3"].input_price for rows in (earlier, later)]
    assert o3 == [10_000_000, 2_000_000]


def test_every_row_is_sane():
    assert len(BY_NAME) == len(catalogue()) > 80
    assert {provider for provider, _ in BY_NAME} == set(prices.PROVIDERS)
    for row in BY_NAME.values():
        assert 0 < row.cached_input_price <= row.input_price <= row.cache_write_price, row
        if row.kind == "chat":
            assert 10_000 <= row.input_price < row.output_price * 2 <= 2_000_000_000, row
        else:
            assert 10_000 <= row.input_price <= 1_000_000, row
            assert row.output_price == 0, row
        assert (row.kind == "embedding") == ("embed" in row.model), row
        assert row.context_window is None or row.context_window >= 4_000
        assert not any(word in row.model for word in ("image", "audio", "tts", "live", "whisper")), row
    assert any(row.deprecated for row in BY_NAME.values())


def test_the_seed_is_current_and_complete():
    rows = seed_rows()
    for provider in prices.PROVIDERS:
        assert 8 <= sum(row.provider == provider and row.kind == "chat" for row in rows) <= 12
        embeddings = [row.provider == provider for row in rows if row.kind == "embedding"]
        assert sum(embeddings) == (0 if provider == "anthropic" else 2)
    assert not [row for row in rows if row.deprecated]
    assert [row.model for row in seed_rows(1)] == ["gpt-6.1-sol", "claude-fable-5-2", "gemini-4-argon"]


def test_the_sql_is_one_tuple_a_row(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prices", "--sql", "--limit", "1"])
    prices.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"-- genai-prices {prices.PRICES_VERSION}")
    assert len(lines) == 3
    row = seed_rows(1)[1]
    assert lines[1] == (
        f"('anthropic', 'claude-fable-5-2', 'Claude Fable 5.2', 'chat', 1000000, null, {row.input_price}, "
        f"{row.output_price}, {row.cached_input_price}, {row.cache_write_price}, false),"
    )


def test_quotes_in_names_are_doubled():
    assert prices.as_sql([prices.ModelPrice("p", "m", "o'1", "chat", None, None, 1, 1, 1, 1, True)]) == (
        "('p', 'm', 'o''1', 'chat', null, null, 1, 1, 1, 1, true)"
    )
