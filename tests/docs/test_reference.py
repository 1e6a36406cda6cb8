"""The reference says what the code does: a setting, code, command or function that it lacks fails here."""

from pathlib import Path

import asyncpg
import pytest

from tests.docs import reference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("settings.md", reference.settings_page),
        ("errors.md", reference.errors_page),
        ("commands.md", reference.commands_page),
        ("metrics.md", reference.metrics_page),
    ],
)
def test_a_page_of_the_reference_is_current(page: str, expected: object) -> None:
    assert (reference.REFERENCE / page).read_text() == expected(), "run: uv run python -m tests.docs.reference"  # type: ignore[operator]


def test_the_committed_openapi_document_is_what_the_api_says() -> None:
    committed = (ROOT / "openapi.json").read_text()
    assert committed == reference.openapi_document(), "run: uv run python -m tests.docs.reference"


async def test_the_sql_reference_is_current(operator: asyncpg.Connection) -> None:
    expected = await reference.sql_page(operator)
    assert (reference.REFERENCE / "sql.md").read_text() == expected, "run: uv run python -m tests.docs.reference"


def test_every_setting_has_a_meaning_and_stands_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    for name, variable, _, meaning in reference.setting_rows():
        assert f"{variable}=" in example, f"{variable} is missing in .env.example"
        assert meaning or name in ("host", "port", "log_level"), f"{name} has no docstring"


def test_every_command_has_a_sentence() -> None:
    for path, command in reference.commands():
        assert command.help, f"vanilla-saas {path} has no help"
