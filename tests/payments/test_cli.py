"""`vanilla-saas payments`."""

import asyncio

from typer.testing import CliRunner

from tests.conftest import People
from tests.payments.support import API_KEY, WEBHOOK_SECRET
from tests.tokens.test_cli import Cli, vs
from vanilla_saas.cli import app

__all__ = ["vs"]


async def test_an_account_and_its_prices_are_set_and_secrets_come_from_standard_input(vs: Cli, people: People) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    at = ("--tenant", slug)
    command = ["payments", "account", "--key", "--webhook-secret", *at]
    told = await asyncio.to_thread(CliRunner().invoke, app, command, f"{API_KEY}\n{WEBHOOK_SECRET}\n")
    assert told.exit_code == 0, told.output
    assert "sk_test_...cdef" in told.stdout
    assert API_KEY not in told.output
    account = await vs.json("payments", "account", "--grace-days", "3", "--disable", *at)
    assert (account["grace_days"], account["status"], account["livemode"]) == (3, "disabled", False)
    assert account["webhook_url"] in told.stdout
    await vs("payments", "set-price", "price_1", "--name", "Pack", "--amount", "9.50", "--tokens", "1000", *at)
    await vs("payments", "set-price", "price_2", "--name", "Plus", "--amount", "29", "--level", "premium", *at)
    assert [(row["price_id"], row["amount"]) for row in await vs.json("payments", "prices", *at)] == [
        ("price_1", 950),
        ("price_2", 2900),
    ]
    assert "9.50 USD" in (await vs("payments", "prices", *at)).stdout
    wrong = ("payments", "set-price", "price_3", "--name", "X", "--amount")
    assert (await vs.refused(*wrong, "odd", "--tokens", "1", *at)).detail == {"param": "amount"}
    assert (await vs.refused(*wrong, "9", *at)).detail == {"param": "tokens"}
    assert (await vs.refused(*wrong, "9", "--level", "none", *at)).name == "not_found"
    assert await vs.json("payments", "events", *at) == []
