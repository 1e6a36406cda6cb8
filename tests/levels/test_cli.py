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
