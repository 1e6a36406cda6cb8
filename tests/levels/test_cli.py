"""`vanilla-saas levels`."""

from tests.conftest import People
from tests.tokens.test_cli import Cli, vs

__all__ = ["vs"]


async def test_a_level_is_made_filled_used_and_deleted(vs: Cli, people: People) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    person, at = await people.user(tenant_id=tenant), ("--tenant", slug)
    await vs("levels", "set", "pro", "--name", "Pro", "--tier", "9", *at)
    await vs("levels", "feature", "pro", "scan", "--limit", "2", "--period", "daily", *at)
    wrong = await vs.refused("levels", "feature", "pro", "scan", "--limit", "2", *at)
    assert (wrong.name, wrong.detail["param"]) == ("invalid_request", "period")
    price = await vs.json("levels", "price", "pro", "monthly", "jpy", "1500", *at)
    assert (await vs.refused("levels", "price", "pro", "monthly", "JPY", "9", *at)).name == "invalid_state"
    shown = (await vs("levels", "show", "pro", *at)).stdout
    assert "1,500 JPY" in shown
    assert "scan" in shown
    listed = await vs.json("levels", "list", *at)
    assert [(row["slug"], row["users"]) for row in listed][-1] == ("pro", 0)
    assert (await vs.refused("levels", "consume", person.email, "scan", *at)).name == "forbidden"
    await vs("wallets", "level", person.email, "pro", *at)
    [state] = await vs.json("levels", "check", person.email, "scan", *at)
    assert (state["allowed"], state["remaining"]) == (True, 2)
    assert "1 of 2 used" in (await vs("levels", "consume", person.email, "scan", "--key", "k", *at)).stdout
    assert "nothing changed" in (await vs("levels", "consume", person.email, "scan", "--key", "k", *at)).stdout
    refused = await vs.refused("levels", "consume", person.email, "scan", "--amount", "2", *at)
    assert (refused.name, refused.detail["used"]) == ("limit_reached", 1)
    assert len(await vs.json("levels", "check", person.email, *at)) == 4
    assert (await vs.refused("levels", "delete", "pro", *at)).detail["users"] == 1
    await vs("wallets", "level", person.email, "free", *at)
    await vs("levels", "end-price", price["id"], *at)
    await vs("levels", "remove-feature", "pro", "scan", *at)
    await vs("levels", "delete", "pro", *at)
    assert (await vs.refused("levels", "show", "pro", *at)).name == "not_found"


async def test_a_level_is_previewed_changed_and_undone(vs: Cli, people: People) -> None:
    tenant = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    person, at = await people.user(tenant_id=tenant), ("--tenant", slug)
    await vs("levels", "path", "free", "basic", "--self-service", "--discount", "50", "--timing", "now", *at)
    assert (await vs.refused("levels", "path", "basic", "free", *at)).name == "invalid_state"
    refused = await vs.refused("levels", "preview", person.email, "basic", *at)
    assert (refused.name, refused.detail["currencies"]) == ("invalid_request", ["EUR", "USD"])
    ask = (person.email, "basic", "--currency", "usd", "--no-trial", *at)
    shown = (await vs("levels", "preview", *ask)).stdout
    assert "free -> basic: would change" in shown
    assert "Due: 4.50 USD" in shown
    assert "Free until" in (await vs("levels", "preview", person.email, "basic", "--currency", "USD", *at)).stdout
    done = await vs.json("levels", "change", *ask, "--key", "k")
    assert (done["state"], done["due"], done["from"]) == ("applied", 450, "free")
    assert "nothing changed" in (await vs("levels", "change", *ask, "--key", "k")).stdout
    assert (await vs.refused("levels", "change", person.email, "free", *at)).name == "invalid_state"
    later = await vs.json("levels", "change", person.email, "free", "--when", "period_end", *at)
    assert (later["state"], later["due"]) == ("scheduled", 0)
    assert "called off" in (await vs("levels", "undo", person.email, *at)).stdout
    assert (await vs.refused("levels", "undo", person.email, *at)).name == "invalid_state"
    paid = ("--payment-reference", "in_7", "--billed-amount", "2899")
    billed = await vs.json("levels", "change", person.email, "premium", *paid, *at)
    assert billed["state"] == "applied"
    lines = await people.operator.fetch(
        "select amount, payment_reference from level_invoice_lines where user_id = $1 order by id",
        person.identity.user_id,
    )
    assert [tuple(line) for line in lines] == [(450, None), (2899, "in_7")]
    await vs("levels", "path", "free", "basic", "--remove", *at)
    assert ("free", "basic") not in {(p["from"], p["to"]) for p in await vs.json("levels", "paths", *at)}
