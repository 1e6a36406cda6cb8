"""The parts of `vanilla-saas demo` that attack a tenant and tamper with a ledger: what they say is what happened."""

import io
import re
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from rich.console import Console

from tests.conftest import Cluster, People, settings_for
from tests.processes import assert_books_are_clean
from tests.workflows.hands import room
from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import store as engine_store
from vanilla_saas.operations import (
    demo_agents,
    demo_analytics,
    demo_engines,
    demo_isolation,
    demo_levels,
    demo_person,
    demo_wallet,
    demo_workflows,
)
from vanilla_saas.operations.demo_isolation import ATTEMPTS, Attempt


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=110, highlight=False)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def attack(
    operator: asyncpg.Connection, cluster: Cluster, name: str, signer: ContextSigner, out: Console
) -> None:
    await demo_isolation.show(operator, cluster.url("vanilla_app", name), signer, out)


async def test_every_attack_is_told_and_leaves_the_other_tenant_as_it_was(
    operator: asyncpg.Connection, cluster: Cluster, database_name: str, signer: ContextSigner, console: Console
) -> None:
    await attack(operator, cluster, database_name, signer, console)
    lines = {line[3:35].strip(): line[35:].strip() for line in said(console).splitlines() if line.startswith("   ")}
    came_to = {attempt.what: next(v for k, v in lines.items() if k == attempt.what) for attempt in ATTEMPTS}
    assert {what: text.partition(":")[0] for what, text in came_to.items()} == {
        "update their wallet": "refused, 42501",
        "write their ledger": "refused, 42501",
        "every wallet, no where": "1 rows, only their own",
        "their users by name": "0 rows",
        "a function with their id": "refused, VS404",
        "another function": "refused, VS404",
        "an edited token": "refused, VS401",
        "a forged token": "refused, VS401",
        "set_config of an edited one": "0 rows",
        "set_config of claims": "0 rows",
        "become the operator": "refused, 42501",
        "read the signing key": "refused, 42501",
    }
    digests = re.search(r"before and after: (\w{8}) = (\w{8}), 3 ledger entries", said(console))
    assert digests
    assert digests[1] == digests[2]
    row = await operator.fetchrow(
        "select t.status, w.available_tokens, w.spent_tokens from tenants t"
        " join user_token_wallets w on w.tenant_id = t.id"
        " where t.slug like 'tour-victim-%' order by t.created_at desc limit 1"
    )
    assert tuple(row) == ("closed", 1_015_000, 0)


async def test_the_tour_fails_where_an_attack_succeeds(
    operator: asyncpg.Connection,
    cluster: Cluster,
    database_name: str,
    signer: ContextSigner,
    console: Console,
) -> None:
    await operator.execute("create policy hole on user_token_wallets for select to vanilla_app using (true)")
    try:
        with pytest.raises(VanillaError, match="An attack reached another tenant: every wallet, no where"):
            await attack(operator, cluster, database_name, signer, console)
    finally:
        await operator.execute("drop policy hole on user_token_wallets")


async def test_the_tour_fails_when_an_attack_changes_what_it_cannot_read(
    operator: asyncpg.Connection,
    cluster: Cluster,
    database_name: str,
    signer: ContextSigner,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The comparison of the victim's rows is not for show."""

    async def steal(connection: Any, attempt: Attempt, tokens: Any, victim: Any, attacker: Any) -> str:
        await operator.fetchval("select adjust_user_tokens($1, 1, 'debit')", victim.user_id)
        return "0 rows"

    monkeypatch.setattr(demo_isolation, "_try", steal)
    with pytest.raises(VanillaError, match="The victim's rows were changed"):
        await attack(operator, cluster, database_name, signer, console)


async def test_the_wallet_in_depth_tells_what_the_ledger_says(
    operator: asyncpg.Connection, people: People, console: Console
) -> None:
    person = await people.user()
    user = person.identity.user_id
    await demo_wallet.show(operator, console, user)
    rows = await operator.fetch("select * from user_token_ledger where user_id = $1 order by seq", user)
    lapsed = next(row for row in rows if row["direction"] == "expire")
    settled = [
        (row["metadata"]["actual"], row["amount"], row["reserved_amount"])
        for row in rows
        if row["direction"] == "settle"
    ]
    assert settled == [(120, 0, -120), (90, 90, -180)]
    assert said(console).splitlines() == [
        f"   500 promotional tokens, 120 spent: entry {lapsed['seq']}, 'promo lapsed', took back 380",
        "   a hold of 300: 120 charged and 180 still held, then 90 charged and 90 back",
        "   a superuser adds 1000000 to entry 1: verify finds entry 1,",
        "     'the row or the one before it was changed'",
        "   then rewrites the whole chain, wallet and grant: verify finds 0, reconcile 0,",
        f"     the anchor kept elsewhere: entry {rows[-1]['seq']}, 'the chain up to here was rewritten'",
    ]
    # what was tampered with is undone
    assert (await people.wallet(person))["available_tokens"] == 15_000 + 300 - 210
    await assert_books_are_clean(operator)


async def test_the_tour_fails_where_tampering_is_not_found(
    operator: asyncpg.Connection, people: People, console: Console
) -> None:
    person, name = await people.user(), f"away_{uuid.uuid4().hex[:8]}"
    source = await operator.fetchval("select pg_get_functiondef('verify_token_anchor(jsonb)'::regprocedure)")
    await operator.execute(f"alter function verify_token_anchor(jsonb) rename to {name}")
    await operator.execute(
        "create function verify_token_anchor(jsonb) returns table (seq bigint, problem text) language sql"
        " as 'select 1::bigint, null where false'"
    )
    try:
        with pytest.raises(VanillaError, match="The anchor must convict"):
            await demo_wallet.show(operator, console, person.identity.user_id)
    finally:
        await operator.execute("drop function verify_token_anchor(jsonb)")
        await operator.execute(f"alter function {name}(jsonb) rename to verify_token_anchor")
    assert await operator.fetchval("select pg_get_functiondef('verify_token_anchor(jsonb)'::regprocedure)") == source


async def test_who_leaves_is_exported_erased_and_the_books_stay(
    operator: asyncpg.Connection, people: People, console: Console
) -> None:
    person = await people.user(balance=300)
    await demo_person.show(operator, console, person.identity.user_id)
    assert re.search(r"export: \d+ rows of \d+ tables, 3 entries", said(console))
    assert f"erased: {person.email} is None, 1 key and 300 tokens ended" in said(console)
    assert "the chain of 4 entries verifies without them" in said(console)
    assert await operator.fetchval("select status from users where id = $1", person.identity.user_id) == "deleted"


async def test_a_day_of_levels_is_told_as_the_wallets_are(
    operator: asyncpg.Connection, people: People, console: Console
) -> None:
    tenant = await people.tenant()
    person, other = [await people.user(tenant_id=tenant, balance=90) for _ in range(2)]
    await operator.fetchval("select adjust_user_tokens($1, 25, 'debit')", other.identity.user_id)
    await demo_analytics.show(operator, console, person.identity.user_id)
    assert "computed twice and equal" in said(console)
    assert re.search(r"free +2 +1 +2 +0 +[\d,]+ +25 +[\d,]+", said(console))


async def test_the_tour_of_plans_charges_what_it_previewed(
    operator: asyncpg.Connection, people: People, console: Console
) -> None:
    person = await people.user()
    await demo_levels.show(operator, console, person.identity.user_id)
    assert "free to basic: charge basic 9 USD" in said(console)
    assert re.search(r"basic to premium: credit basic -(9|8.99) USD, charge premium (29|28.99) USD", said(console))
    assert re.search(r"add up to (29|28.99|29.01|29) USD, premium's month", said(console)), said(console)


async def test_a_change_that_costs_more_than_its_preview_stops_the_tour(
    operator: asyncpg.Connection, people: People, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = await people.user()
    true_preview = demo_levels.change_store.preview

    async def wrong(*arguments: Any) -> Any:
        told = await true_preview(*arguments)
        return told.model_copy(update={"due": told.due + 5})

    monkeypatch.setattr(demo_levels.change_store, "preview", wrong)
    with pytest.raises(VanillaError, match="something else than its preview"):
        await demo_levels.show(operator, console, person.identity.user_id)


async def test_a_workflow_is_drawn_published_and_compared(
    operator: asyncpg.Connection, people: People, console: Console
) -> None:
    person = await people.user(tenant_id=await people.tenant())
    await demo_workflows.show(operator, console, person.identity.user_id)
    told = said(console)
    assert re.search(r"version 1 is [0-9a-f]{12}", told)
    assert "wait for each other in a circle" in told
    assert 'version 2: ~ description: "' in told
    assert await operator.fetchval("select count(*) from ai_workflows where user_id = $1", person.identity.user_id) == 0


async def test_a_workflow_runs_and_the_wallet_pays_what_its_steps_cost(
    cluster: Cluster, signer: ContextSigner, console: Console, tmp_path: Path
) -> None:
    async with room(cluster) as desk:
        where = Addresses(*(cluster.url(login, desk.name) for login in ("postgres", "vanilla_app", "vanilla_runtime")))
        settings = settings_for(cluster, desk.name, tmp_path)
        await demo_workflows.run(desk.operator, where, signer, console, desk.owner.identity.user_id, settings)
    assert re.search(r"its steps cost (\d+) tokens, and the wallet paid \1$", said(console), re.MULTILINE)
    assert "score 1.00" in said(console)


async def test_a_desk_pays_back_when_an_admin_agrees_and_a_team_works(
    cluster: Cluster, signer: ContextSigner, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with room(cluster) as desk:
        where = Addresses(*(cluster.url(login, desk.name) for login in ("postgres", "vanilla_app", "vanilla_runtime")))
        settings, user_id = settings_for(cluster, desk.name, tmp_path), desk.owner.identity.user_id
        await demo_agents.show(desk.operator, where, signer, console, user_id, settings)
        told = said(console)
        assert "input_required: a refund waits for an admin" in told
        assert "Your 40 dollars are on their way." in told
        assert len(re.findall(r"its turns cost (\d+) tokens, the wallet paid \1, and nothing", told)) == 2
        monkeypatch.setattr(
            demo_agents, "WALLET", demo_agents.WALLET.replace("spent_tokens,", "spent_tokens * 2 as spent_tokens,")
        )
        with pytest.raises(VanillaError, match="were paid"):
            await demo_agents.show(desk.operator, where, signer, console, user_id, settings)


async def test_an_engine_is_promoted_under_a_run_that_keeps_its_version(
    operator: asyncpg.Connection, people: People, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await people.tenant()
    person, other = await people.user(tenant_id=tenant, balance=10_000), await people.user(tenant_id=tenant)
    await demo_engines.show(operator, console, person.identity.user_id)
    told = said(console)
    assert "nobody may run it yet: not_entitled" in told
    assert "it means version 2; the run that had begun stays on 1" in told
    assert "rolled back: it means version 1" in told

    async def to_the_third(*arguments: Any) -> Any:
        return {"version": 3}

    monkeypatch.setattr(demo_engines.engines, "rollback", to_the_third)
    with pytest.raises(VanillaError, match="went wrong"):
        await demo_engines.show(operator, console, other.identity.user_id)


async def test_the_engines_of_the_examples_stay_and_each_has_run_and_was_paid(
    cluster: Cluster, signer: ContextSigner, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slugs = ["checked-summary", "plain-words", "three-views"]
    async with room(cluster) as desk:
        where = Addresses(*(cluster.url(login, desk.name) for login in ("postgres", "vanilla_app", "vanilla_runtime")))
        settings, identity = settings_for(cluster, desk.name, tmp_path), desk.owner.identity
        tour = partial(demo_engines.examples, desk.operator, where, signer, console, identity.user_id, settings)
        await tour()
        cards = await engine_store.cards(desk.operator, identity.tenant_id, identity.user_id)
        assert [(card["slug"], card["access"], card["version"]) for card in cards] == [
            (slug, "execute", 1) for slug in slugs
        ]
        rows = await desk.operator.fetch(
            "select e.slug, x.status, x.charged_tokens, x.cost_micros from engine_executions r"
            " join workflow_executions x on x.tenant_id = r.tenant_id and x.id = r.id"
            " join ai_engines e on e.tenant_id = r.engine_tenant_id and e.id = r.engine_id order by e.slug"
        )
        assert [(row["slug"], row["status"]) for row in rows] == [(slug, "succeeded") for slug in slugs]
        for row in rows:
            assert f"{row['charged_tokens']} tokens, {row['cost_micros']} micros" in said(console)
        assert f"the wallet paid {sum(row['charged_tokens'] for row in rows)}" in said(console)
        await tour()
        assert await desk.operator.fetchval("select count(*) from engine_versions") == len(slugs)
        monkeypatch.setattr(demo_engines, "SPENT", demo_engines.SPENT.replace("spent_tokens", "spent_tokens * 2", 1))
        with pytest.raises(VanillaError, match="were paid"):
            await tour()
