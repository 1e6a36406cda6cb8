"""The operator's commands: what they print, and exit codes that scripts can trust."""

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.conftest import TEST_KEY, Cluster, People, Person
from vanilla_saas.cli import app
from vanilla_saas.database.errors import VanillaError


class Cli:
    """Runs commands as a shell would, beside the running event loop."""

    async def __call__(self, *arguments: str, code: int = 0) -> Result:
        result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    async def refused(self, *arguments: str) -> VanillaError:
        """The refusal that the root prints before it exits with 1."""
        result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
        assert isinstance(result.exception, VanillaError), result.output
        return result.exception

    async def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads((await self(*arguments, "--json", code=code)).stdout)


def shell(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, database: str, home: Path, **more: str) -> Cli:
    """Commands of an operator over a database of the tests' server."""
    for name, value in {
        "DATABASE_URL": cluster.url(database=database),
        "VANILLA_SAAS_APP_URL": cluster.url("vanilla_app", database),
        "VANILLA_SAAS_RUNTIME_URL": cluster.url("vanilla_runtime", database),
        "VANILLA_SAAS_HOME": str(home),
        "VANILLA_SAAS_CONTEXT_KEY": TEST_KEY,
        "VANILLA_SAAS_SECRET_KEY": "c3" * 32,
        "COLUMNS": "200",
        **more,
    }.items():
        monkeypatch.setenv(name, value)
    return Cli()


@pytest.fixture
def vs(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, database_name: str, tmp_path: Path) -> Cli:
    return shell(monkeypatch, cluster, database_name, tmp_path)


async def test_a_wallet_is_credited_debited_and_corrected(vs: Cli, people: People) -> None:
    person = await people.user(balance=100)
    await vs("wallets", "credit", person.email, "50", "--reason", "gift", "--source", "promo")
    await vs("wallets", "debit", person.email, "30", "--reason", "call")
    entry = await vs.json("wallets", "adjust", person.email, "-20", "--reason", "typo")
    assert (entry["direction"], entry["amount"], entry["reason"]) == ("adjustment", -20, "typo")
    shown = await vs.json("wallets", "show", person.email)
    assert (shown["available"], shown["spent"]) == (100, 30)
    entries = await vs.json("wallets", "ledger", person.email, "--limit", "2")
    assert [entry["reason"] for entry in entries] == ["typo", "call"]


async def test_people_read_tables(vs: Cli, people: People) -> None:
    person = await people.user(balance=1234)
    assert "1234" in (await vs("wallets", "show", person.email)).stdout
    assert "adjustment" in (await vs("wallets", "ledger", person.email)).stdout
    assert "available 1239" in (await vs("wallets", "credit", person.email, "5", "--reason", "x")).stdout


async def test_a_key_makes_a_command_safe_to_repeat(vs: Cli, people: People) -> None:
    person = await people.user(balance=100)
    command = ("wallets", "debit", person.email, "30", "--reason", "call", "--key", "k")
    await vs(*command)
    assert "nothing changed" in (await vs(*command)).stdout
    assert (await people.wallet(person))["available_tokens"] == 70


async def test_a_user_is_named_by_email_external_id_or_uuid(vs: Cli, people: People) -> None:
    slug = await people.operator.fetchval("select slug from tenants where id = $1", await people.tenant())
    tenant_id = await people.operator.fetchval("select id from tenants where slug = $1", slug)
    user_id = await people.operator.fetchval(
        "select create_user('Ann@Example.test', p_tenant_id => $1, p_external_id => 'crm-7')", tenant_id
    )
    for name in ("ann@example.test", "ANN@example.test", "crm-7", str(user_id), str(user_id).upper()):
        assert (await vs.json("wallets", "show", name, "--tenant", slug))["user_id"] == str(user_id)
    # names are looked for in the named tenant only
    for name in ("ann@example.test", "crm-7", str(user_id)):
        assert (await vs.refused("wallets", "show", name)).name == "not_found"


async def test_a_refusal_has_the_code_of_the_function_that_refused(vs: Cli, people: People) -> None:
    person = await people.user(balance=10)
    refusal = await vs.refused("wallets", "debit", person.email, "30", "--reason", "x")
    assert (refusal.name, refusal.detail["available"]) == ("insufficient_tokens", 10)
    assert (await vs.refused("wallets", "credit", person.email, "0", "--reason", "x")).name == "invalid_request"
    await vs("wallets", "credit", person.email, "much", "--reason", "x", code=2)


@pytest.mark.parametrize(
    ("arguments", "status"), [(["lock", "--reason", "x"], "locked"), (["unlock", "--reason", "x"], "active")]
)
async def test_a_wallet_is_locked_and_opened(vs: Cli, people: People, arguments: list[str], status: str) -> None:
    person = await people.user()
    verb, *options = arguments
    if verb == "unlock":
        await vs("wallets", "lock", person.email, "--reason", "x")
    assert (await vs.json("wallets", verb, person.email, *options))["status"] == status
    assert (await people.wallet(person))["status"] == status


async def test_a_user_is_put_on_a_level(vs: Cli, people: People) -> None:
    person = await people.user()
    granted = await vs.json("wallets", "level", person.email, "basic")
    assert granted["period_granted"] == 200_000
    assert (await vs.refused("wallets", "level", person.email, "gold")).name == "not_found"


async def test_due_wallets_are_reset(vs: Cli, people: People) -> None:
    person = await people.user()
    await people.operator.execute(
        "update user_token_grants set expires_at = now() where user_id = $1 and kind = 'plan'", person.identity.user_id
    )
    await people.operator.execute(
        "update user_token_wallets w set next_reset_at = g.expires_at, next_event_at = g.expires_at"
        " from user_token_grants g where g.user_id = w.user_id and g.kind = 'plan' and w.user_id = $1",
        person.identity.user_id,
    )
    assert await vs.json("reset-tokens") == {"wallets_reset": 1}
    assert (await vs("reset-tokens")).stdout == "0 wallets reset\n"


async def test_clean_books_exit_with_0(vs: Cli, people: People) -> None:
    person = await people.user()
    assert (await vs("wallets", "verify")).stdout == "Every chain is whole.\n"
    assert await vs.json("wallets", "verify", person.email) == []
    assert (await vs("wallets", "reconcile")).stdout == "The books are right.\n"


async def test_wrong_books_exit_with_1_and_name_the_wallet(
    vs: Cli, people: People, operator: asyncpg.Connection
) -> None:
    person, other = await people.user(), await people.user()
    edit = "update user_token_wallets set spent_tokens = spent_tokens, {} where user_id = $1"
    await operator.execute(edit.format("available_tokens = available_tokens + 7"), person.identity.user_id)
    try:
        rows = await vs.json("wallets", "reconcile", code=1)
        assert [(row["user_id"], row["found"] - row["expected"]) for row in rows] == [
            (str(person.identity.user_id), 7),  # against the ledger
            (str(person.identity.user_id), 7),  # against the grants
        ]
    finally:
        await operator.execute(edit.format("available_tokens = available_tokens - 7"), person.identity.user_id)
    await swap_heads(operator, person, other)
    try:
        assert {row["user_id"] for row in await vs.json("wallets", "verify", code=1)} == {
            str(person.identity.user_id),
            str(other.identity.user_id),
        }
        assert "does not end" in (await vs("wallets", "verify", other.email, code=1)).stdout
    finally:
        await swap_heads(operator, person, other)


async def swap_heads(operator: asyncpg.Connection, one: Person, other: Person) -> None:
    await operator.execute(
        "update user_token_wallets w set head = x.head from user_token_wallets x"
        " where w.user_id in ($1, $2) and x.user_id in ($1, $2) and w.user_id <> x.user_id",
        one.identity.user_id,
        other.identity.user_id,
    )
