"""What is written when, and that docs/webhooks.md shows it as it is sent."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from tests.conftest import Cluster, migrated_database
from tests.docs.test_fences import fences
from tests.operations.webhook_support import Hook, Hooks, Receiver, send_due
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.pool import Database
from vanilla_saas.operations.webhooks import WebhookSender

ROOT = Path(__file__).parents[2]
PAGE = "docs/webhooks.md"
ROW = re.compile(r"^\| `([a-z_.]+)` \| (.+?) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster) as name:
        yield name


@pytest.fixture(scope="module")
async def database(cluster: Cluster, database_name: str, signer: ContextSigner) -> AsyncIterator[Database]:
    opened = await Database.open(
        cluster.url("vanilla_app", database_name), cluster.url("vanilla_runtime", database_name), signer, size=4
    )
    yield opened
    await opened.close()


def blocks(wanted: str) -> list[str]:
    return [text for language, text in fences(PAGE) if language == wanted]


async def everything_happens(hooks: Hooks, hook: Hook) -> None:
    """One event of each type that is written."""
    user, call = hook.user_id, hooks.operator.fetchval
    await call("select adjust_user_tokens($1, 500, 'credit', 'invoice 7', 'purchase')", user)
    await call(
        "select adjust_user_tokens($1, 100, 'credit', 'welcome', 'promo', p_expires_at => $2)",
        user,
        await call("select vanilla.clock() + interval '1 hour'"),
    )
    await call("select adjust_user_tokens($1, -50, 'adjustment', 'corrected')", user)
    await call("select set_wallet_status($1, 'suspended', 'unpaid invoice')", user)
    await call("select set_wallet_status($1, 'active', 'paid')", user)
    level = await call("select id from levels where tenant_id = $1 and slug = 'basic'", hook.tenant_id)
    await call("select auto_allocate_tokens_for_level($1, $2)", user, level)
    await call("select send_test_webhook($1, $2)", hook.id, hook.tenant_id)
    await hooks.later(timedelta(days=32))
    await call("select reset_monthly_tokens()")
    left = await call("select available_tokens from user_token_wallets where user_id = $1", user)
    await call("select adjust_user_tokens($1, $2, 'debit', 'usage')", user, left - 10)
    await call("select adjust_user_tokens($1, 10, 'debit', 'usage')", user)


async def _types(hooks: Hooks, hook: Hook) -> list[str]:
    return [row["type"] for row in await hooks.events(hook)]


async def test_each_act_writes_its_event_once(hooks: Hooks, receiver: Receiver) -> None:
    hook = await hooks.make(receiver.url)
    await everything_happens(hooks, hook)
    types = await _types(hooks, hook)
    assert types[-2:] == ["token.warning", "token.exhausted"]
    # in February 32 days are two months
    assert types[8:-2] in (["token.reset"], ["token.reset"] * 2)
    assert types[:9] == [
        "token.granted",
        "token.granted",
        "token.adjusted",
        "token.status_changed",
        "token.status_changed",
        "token.level_changed",
        "webhook.test",
        "token.expired",
        "token.reset",
    ]
    by_type = {row["type"]: row["payload"] for row in await hooks.events(hook)}
    wallet = await hooks.operator.fetchrow("select * from user_token_wallets where user_id = $1", hook.user_id)
    assert by_type["token.reset"]["available_tokens"] == -by_type["token.warning"]["amount"] + 10
    assert by_type["token.warning"]["warn_below"] == wallet["warn_below"] == 200_000 * 20 // 100
    assert by_type["token.reset"]["granted"] == 200_000 + 50_000, "the allocation, and a quarter of the unused, capped"
    assert (by_type["token.expired"]["kind"], by_type["token.expired"]["amount"]) == ("promo", -100)
    assert by_type["token.status_changed"] == {"from": "suspended", "to": "active", "reason": "paid"}


@pytest.mark.parametrize(
    "statement",
    [
        "select adjust_user_tokens($1, 5, 'debit')",
        "select adjust_user_tokens($1, 5, 'reserve')",
        "select settle_user_tokens((adjust_user_tokens($1, 5, 'reserve') ->> 'hold_id')::uuid, 3)",
        "select set_wallet_status($1, 'active', 'it is already')",
    ],
)
async def test_the_hot_path_and_what_changes_nothing_write_no_event(
    hooks: Hooks, receiver: Receiver, statement: str
) -> None:
    hook = await hooks.make(receiver.url)
    await hooks.operator.fetchval(statement, hook.user_id)
    assert await hooks.events(hook) == []


async def test_a_warning_and_an_exhaustion_are_told_once_for_each_crossing(hooks: Hooks, receiver: Receiver) -> None:
    hook = await hooks.make(receiver.url)
    level = await hooks.operator.fetchval(
        "select id from levels where tenant_id = $1 and slug = 'basic'", hook.tenant_id
    )
    await hooks.operator.fetchval("select auto_allocate_tokens_for_level($1, $2)", hook.user_id, level)
    wallet = await hooks.operator.fetchrow("select * from user_token_wallets where user_id = $1", hook.user_id)
    above = wallet["available_tokens"] - wallet["warn_below"]

    async def told(statement: str, amount: int) -> list[str]:
        before = len(await hooks.events(hook))
        await hooks.operator.fetchval(statement, hook.user_id, amount)
        return (await _types(hooks, hook))[before:]

    debit, reserve = (f"select adjust_user_tokens($1, $2, '{direction}')" for direction in ("debit", "reserve"))
    settle = "select settle_user_tokens(id, $2) from user_token_holds where user_id = $1 and state = 'open' limit 1"
    credit = "select adjust_user_tokens($1, $2, 'credit')"
    batch = (
        "select adjust_user_tokens_batch(jsonb_build_array("
        "jsonb_build_object('user_id', $1::uuid, 'amount', $2::bigint, 'direction', 'debit')))"
    )
    assert await told(debit, above) == [], "at the mark is not below it"
    assert await told(reserve, 100) == [], "what is held is not spent"
    assert await told(settle, 100) == ["token.warning"]
    assert await told(debit, 100) == []
    assert await told(credit, 1000) == ["token.granted"]
    assert await told(batch, 801) == ["token.warning"], "above the mark and below it again"
    left = await hooks.operator.fetchval(
        "select available_tokens from user_token_wallets where user_id = $1", hook.user_id
    )
    assert await told(reserve, left) == []
    assert await told(settle, left) == ["token.exhausted"]


async def test_a_repeated_operation_writes_its_event_once(hooks: Hooks, receiver: Receiver) -> None:
    hook = await hooks.make(receiver.url)
    for _ in range(3):
        await hooks.operator.fetchval(
            "select adjust_user_tokens($1, 5, 'credit', p_idempotency_key => 'once')", hook.user_id
        )
    assert await _types(hooks, hook) == ["token.granted"]


async def test_without_an_endpoint_there_is_the_event_and_no_delivery(hooks: Hooks, receiver: Receiver) -> None:
    hook = await hooks.make(receiver.url)
    await hooks.operator.fetchval("select delete_webhook_endpoint($1, $2)", hook.id, hook.tenant_id)
    await hooks.credit(hook)
    assert await _types(hooks, hook) == ["token.granted"]
    assert await hooks.operator.fetchval("select count(*) from webhook_deliveries") == 0


async def test_no_role_changes_an_event(hooks: Hooks, receiver: Receiver) -> None:
    hook = await hooks.make(receiver.url)
    await hooks.credit(hook)
    for role in ("vanilla_app", "vanilla_runtime", "vanilla_definer", "vanilla_system", "vanilla_operator"):
        for statement in ("update events set type = 'x.y'", "truncate events"):
            async with hooks.operator.transaction():
                await hooks.operator.execute(f"set local role {role}")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    async with hooks.operator.transaction():
                        await hooks.operator.execute(statement)
                await hooks.operator.execute("reset role")


async def test_the_page_lists_every_type_with_its_meaning(operator: asyncpg.Connection) -> None:
    rows = await operator.fetch("select type, meaning from vanilla.event_types()")
    assert dict(ROW.findall((ROOT / PAGE).read_text())) == {row["type"]: row["meaning"] for row in rows}


def test_every_type_that_the_migrations_write_is_listed_and_no_other() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "migrations").glob("*.sql")))
    calls = (
        " ".join(re.findall(r"emit_event\([^;]*?;", text))
        + " "
        + " ".join(re.findall(r"_id, v_now, v_event, '[^']+'", text))
    )
    written = set(re.findall(r"'((?:token|webhook|user|level|payment|workflow|allocation|task)\.[a-z_]+)'", calls))
    assert written == {kind for kind, _ in ROW.findall((ROOT / PAGE).read_text())}


async def test_the_page_shows_every_event_as_it_is_sent_and_its_receiver_verifies_it(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url, "*")
    gone = await hooks.make(receiver.url, "token.granted", tenant_id=hook.tenant_id)
    await everything_happens(hooks, hook)
    while await send_due(sender):
        pass
    receiver.script = [410]
    await hooks.operator.fetchval(
        "select update_webhook_endpoint($1, p_status => 'disabled', p_tenant_id => $2)", hook.id, hook.tenant_id
    )
    await hooks.credit(gone)
    await hooks.operator.fetchval(
        "select update_webhook_endpoint($1, p_status => 'active', p_tenant_id => $2)", hook.id, hook.tenant_id
    )
    while await send_due(sender):
        pass
    sent = {request.event["type"]: request for request in receiver.requests if request.event["type"] != "token.granted"}
    sent["token.granted"] = next(r for r in receiver.requests if r.event["type"] == "token.granted")
    examples = [orjson.loads(text) for text in blocks("json")]
    assert {example["type"] for example in examples} == set(sent)
    for example in examples:
        assert _shape(example) == _shape(sent[example["type"]].event), example["type"]

    namespace: dict[str, Any] = {}
    request = sent["token.reset"]
    for text in blocks("python"):
        exec(text.replace("whsec_...", hook.secret), namespace)
        assert namespace["receive"](request.headers, request.body) == request.event
        with pytest.raises((WebhookVerificationError, ValueError)):
            namespace["receive"](request.headers, request.body.replace(b"token", b"taken"))
        late = request.headers | {"webhook-timestamp": str(int(request.headers["webhook-timestamp"]) - 600)}
        with pytest.raises((WebhookVerificationError, ValueError)):
            namespace["receive"](late, request.body)
    assert len(blocks("python")) == 2


def _shape(value: Any) -> Any:
    """Names and kinds of values: what may differ from event to event is left out."""
    if isinstance(value, dict):
        return {name: _shape(item) for name, item in value.items()}
    return type(value).__name__
