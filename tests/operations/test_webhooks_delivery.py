"""What reaches an endpoint, what is tried again and when, and when an endpoint is given up."""

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from aiohttp import web
from standardwebhooks.webhooks import WebhookVerificationError

from tests.conftest import Cluster, migrated_database
from tests.operations.webhook_support import BOX, Hooks, Receiver, receiving, send_due, sending
from tests.processes import eventually
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.pool import Database
from vanilla_saas.operations.webhooks import WebhookSender
from vanilla_saas.operations.webhooks_signing import new_secret

FIVE_DAYS = timedelta(days=5, minutes=1)


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    """Ours alone: the clock is moved, and no other test's endpoints are sent to."""
    async with migrated_database(cluster) as name:
        yield name


@pytest.fixture(scope="module")
async def database(cluster: Cluster, database_name: str, signer: ContextSigner) -> AsyncIterator[Database]:
    opened = await Database.open(
        cluster.url("vanilla_app", database_name), cluster.url("vanilla_runtime", database_name), signer, size=8
    )
    yield opened
    await opened.close()


async def test_an_event_arrives_signed_as_the_reference_implementation_verifies(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url)
    await hooks.credit(hook, "welcome")
    assert await send_due(sender) == 1
    (request,) = receiver.requests
    request.verify(hook.secret)
    with pytest.raises(WebhookVerificationError):
        request.verify(new_secret())
    assert (request.event["type"], request.event["data"]["reason"]) == ("token.granted", "welcome")
    assert request.event["tenant_id"] == str(hook.tenant_id)
    assert request.event["user_id"] == str(hook.user_id)
    assert request.id == request.event["id"]
    row = await hooks.delivery(hook)
    assert (row["state"], row["attempts"], row["last_status_code"], row["last_error"]) == ("delivered", 1, 200, None)
    assert row["last_duration_ms"] >= 0
    assert await hooks.attempts(hook) == [(1, 200, None)]
    assert await send_due(sender) == 0


async def test_a_failure_is_tried_again_with_the_same_id_and_the_same_bytes(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url)
    receiver.script = [500, 503]
    await hooks.credit(hook)
    assert await send_due(sender) == 1
    assert (await hooks.delivery(hook))["state"] == "failed"
    assert await send_due(sender) == 0, "it is tried again before its time"
    await hooks.later(timedelta(seconds=7))
    assert await send_due(sender) == 1
    await hooks.later(timedelta(minutes=7))
    assert await send_due(sender) == 1
    assert len({request.id for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    assert await hooks.attempts(hook) == [(1, 500, "answered 500"), (2, 503, "answered 503"), (3, 200, None)]
    assert (await hooks.delivery(hook))["state"] == "delivered"
    assert (await hooks.endpoint(hook))["failing_since"] is None


async def test_the_schedule_is_that_of_the_specification_with_up_to_a_fifth_more_and_ends_in_death(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url)
    receiver.script = [500] * 20
    await hooks.credit(hook)
    least = [timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30)]
    least += [timedelta(hours=hours) for hours in (2, 5, 10, 14, 20, 24)]
    ahead = timedelta()
    for expected in least:
        assert await send_due(sender) == 1
        row = await hooks.delivery(hook)
        tried_at = await hooks.operator.fetchval("select max(created_at) from webhook_attempts")
        assert expected <= row["next_attempt_at"] - tried_at <= expected * 1.2
        assert row["state"] == "failed"
        ahead += expected * 1.2 + timedelta(seconds=1)
        await hooks.later(ahead)
    assert await send_due(sender) == 1
    row = await hooks.delivery(hook)
    assert (row["state"], row["attempts"], len(receiver.requests)) == ("dead", 10, 10)
    assert (await hooks.endpoint(hook))["status"] == "active", "one event alone does not disable an endpoint"


async def test_the_wait_before_a_retry_differs_from_delivery_to_delivery(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url, concurrency=8)
    receiver.script = [500] * 8
    for _ in range(8):
        await hooks.credit(hook)
    assert await send_due(sender) == 8
    rows = await hooks.operator.fetch(
        "select d.next_attempt_at - a.created_at as wait from webhook_deliveries d join webhook_attempts a"
        " on a.tenant_id = d.tenant_id and a.delivery_id = d.id where d.endpoint_id = $1",
        hook.id,
    )
    assert len(rows) == 8
    assert len({row["wait"] for row in rows}) > 3, "of 256 steps of a second: two may be alike, not most of them"


@pytest.mark.parametrize(("asked", "at_least"), [("3600", 3600), ("999999", 86_400), ("soon", 5), ("1", 5)])
async def test_a_receiver_may_ask_for_more_time_but_for_no_more_than_a_day(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender, asked: str, at_least: int
) -> None:
    async def busy(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"retry-after": asked})

    hook = await hooks.make(receiver.url)
    receiver.script = [busy]
    await hooks.credit(hook)
    await send_due(sender)
    row = await hooks.delivery(hook)
    tried_at = await hooks.operator.fetchval("select max(created_at) from webhook_attempts")
    assert timedelta(seconds=at_least) <= row["next_attempt_at"] - tried_at <= timedelta(seconds=at_least * 1.2)


async def test_five_days_of_failures_disable_an_endpoint_and_another_one_is_told(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    async with receiving() as watcher:
        hook = await hooks.make(receiver.url)
        await hooks.make(watcher.url, "webhook.*", tenant_id=hook.tenant_id)
        receiver.script = [500] * 20
        await hooks.credit(hook)
        await send_due(sender)
        await hooks.later(FIVE_DAYS)
        await hooks.credit(hook)
        await hooks.credit(hook)
        await send_due(sender)
        endpoint = await hooks.endpoint(hook)
        assert (endpoint["status"], endpoint["disabled_reason"]) == ("disabled", "every delivery failed for five days")
        assert {row["state"] for row in await hooks.deliveries(hook)} == {"dead"}
        await send_due(sender)
        (told,) = watcher.requests
        assert (told.event["type"], told.event["data"]["webhook_id"]) == ("webhook.disabled", str(hook.id))
        sent = len(receiver.requests)
        await hooks.credit(hook)
        await send_due(sender)
        assert len(receiver.requests) == sent
        audited = "select actor_role from audit_logs where action = 'webhook.disabled' and target_id = $1"
        assert await hooks.operator.fetchval(audited, hook.id) == "system"


async def test_a_success_in_between_begins_the_five_days_anew(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url)
    receiver.script = [500, 200, 500]
    await hooks.credit(hook)
    await send_due(sender)
    assert (await hooks.endpoint(hook))["failing_since"] is not None
    await hooks.later(timedelta(seconds=7))
    await send_due(sender)
    await hooks.later(FIVE_DAYS)
    await hooks.credit(hook)
    await send_due(sender)
    assert (await hooks.endpoint(hook))["status"] == "active"


async def test_410_gone_disables_an_endpoint_at_once(hooks: Hooks, receiver: Receiver, sender: WebhookSender) -> None:
    hook = await hooks.make(receiver.url)
    receiver.script = [410]
    await hooks.credit(hook)
    await send_due(sender)
    endpoint, row = await hooks.endpoint(hook), await hooks.delivery(hook)
    assert (endpoint["status"], endpoint["disabled_reason"]) == ("disabled", "it answered 410 Gone")
    assert (row["state"], row["last_status_code"]) == ("dead", 410)


async def test_while_secrets_rotate_both_verify_and_afterwards_only_the_new_one(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook, fresh = await hooks.make(receiver.url), new_secret()
    await hooks.operator.fetchval(
        "select rotate_webhook_secret($1, $2, '1 hour', $3)",
        hook.id,
        BOX.encrypt(hook.tenant_id, hook.id, fresh),
        hook.tenant_id,
    )
    await hooks.credit(hook)
    await send_due(sender)
    receiver.requests[0].verify(hook.secret)
    receiver.requests[0].verify(fresh)
    assert receiver.requests[0].headers["webhook-signature"].count("v1,") == 2
    await hooks.later(timedelta(hours=1, seconds=1))
    await hooks.credit(hook)
    await send_due(sender)
    receiver.requests[1].verify(fresh)
    with pytest.raises(WebhookVerificationError):
        receiver.requests[1].verify(hook.secret)


async def test_only_the_types_that_were_asked_for_arrive(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url, "token.status_changed")
    async with receiving() as everything:
        await hooks.make(everything.url, "*", tenant_id=hook.tenant_id)
        await hooks.credit(hook)
        await hooks.operator.fetchval("select set_wallet_status($1, 'locked', 'x')", hook.user_id)
        await send_due(sender)
        assert [request.event["type"] for request in receiver.requests] == ["token.status_changed"]
        assert sorted(r.event["type"] for r in everything.requests) == ["token.granted", "token.status_changed"]


async def test_a_refused_operation_leaves_no_event(hooks: Hooks, receiver: Receiver, sender: WebhookSender) -> None:
    hook = await hooks.make(receiver.url)
    async with hooks.operator.transaction():
        await hooks.credit(hook)
        with pytest.raises(asyncpg.PostgresError, match="not enough tokens"):
            async with hooks.operator.transaction():
                await hooks.operator.execute(
                    "select adjust_user_tokens($1, 7, 'credit'), adjust_user_tokens($1, -100000000, 'adjustment')",
                    hook.user_id,
                )
    assert [row["payload"]["amount"] for row in await hooks.events(hook)] == [5]


async def test_a_slow_endpoint_holds_no_other_and_no_more_than_its_concurrency_is_in_flight(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    release, waiting = asyncio.Event(), 0

    async def slow(_: web.Request) -> web.Response:
        nonlocal waiting
        waiting += 1
        await release.wait()
        return web.Response()

    stuck = await hooks.make(receiver.url, concurrency=2)
    receiver.script = [slow] * 5
    for _ in range(5):
        await hooks.credit(stuck)
    async with receiving() as quick:
        other = await hooks.make(quick.url)
        await hooks.credit(other)
        assert await sender.run_once() == 3
        await eventually(lambda: _state(hooks, other, "delivered"))
        await eventually(lambda: _true(waiting == 2))
        assert await sender.run_once() == 0
        async with sending(sender._database) as another_process:
            assert await another_process.run_once() == 0, "the limit holds over all processes"
    release.set()
    await sender.drain()
    assert await send_due(sender) == 2
    assert await send_due(sender) == 1
    assert {row["state"] for row in await hooks.deliveries(stuck)} == {"delivered"}


async def _state(hooks: Hooks, hook: object, state: str) -> bool:
    return (await hooks.delivery(hook))["state"] == state  # type: ignore[arg-type]


async def _true(value: bool) -> bool:
    return value


async def test_with_a_concurrency_of_one_first_tries_are_in_order_and_a_failed_one_comes_later(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url, concurrency=1)
    receiver.script = [200, 500]
    for n in range(4):
        await hooks.credit(hook, f"gift {n}")
    while await send_due(sender):
        pass
    await hooks.later(timedelta(seconds=7))
    await send_due(sender)
    reasons = [request.event["data"]["reason"] for request in receiver.requests]
    assert reasons == ["gift 0", "gift 1", "gift 2", "gift 3", "gift 1"]


async def test_many_senders_at_once_send_each_delivery_once(
    hooks: Hooks, receiver: Receiver, database: Database
) -> None:
    made = [await hooks.make(receiver.url, concurrency=32) for _ in range(3)]
    for hook in made * 8:
        await hooks.credit(hook)
    async with sending(database) as one, sending(database) as two, sending(database) as three:
        while sum(await asyncio.gather(*(send_due(sender) for sender in (one, two, three)))):
            pass
    assert len(receiver.requests) == len({request.id for request in receiver.requests}) == 24


async def test_of_two_claims_at_the_same_moment_one_has_the_endpoint_and_the_other_does_not_wait(
    hooks: Hooks, receiver: Receiver, cluster: Cluster, database_name: str
) -> None:
    one, other = await hooks.make(receiver.url), await hooks.make(receiver.url)
    await hooks.credit(one)
    claim = "select jsonb_array_length(vanilla.claim_webhook_deliveries())"
    second = await asyncpg.connect(cluster.url("vanilla_runtime", database_name))
    try:
        await second.execute("set lock_timeout = '5s'")
        async with hooks.operator.transaction():
            assert await hooks.operator.fetchval(claim) == 1
            assert await second.fetchval(claim) == 0, "not committed, and taken all the same"
        await hooks.credit(other)
        assert await second.fetchval(claim) == 1
    finally:
        await second.close()


async def test_a_redirect_is_a_failure_and_is_not_followed(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    async with receiving() as elsewhere:

        async def moved(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"location": elsewhere.url})

        hook = await hooks.make(receiver.url)
        receiver.script = [moved]
        await hooks.credit(hook)
        await send_due(sender)
        assert elsewhere.requests == []
        assert await hooks.attempts(hook) == [(1, 307, "answered 307")]


async def test_of_an_endless_answer_only_the_beginning_is_read(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(status=500)
        await answer.prepare(request)
        while True:
            await answer.write(b"no room \x1b[2J" * 1000)

    hook = await hooks.make(receiver.url)
    receiver.script = [endless]
    await hooks.credit(hook)
    await send_due(sender)
    ((_, status, error),) = await hooks.attempts(hook)
    assert status == 500
    assert error is not None
    assert error.startswith("answered 500: no room [2Jno room")
    assert len(error) <= 320
    assert "\x1b" not in error


async def test_no_answer_in_time_is_a_failure(hooks: Hooks, receiver: Receiver, database: Database) -> None:
    async def never(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    hook = await hooks.make(receiver.url)
    receiver.script = [never]
    await hooks.credit(hook)
    async with sending(database, timeout_s=0.2) as hurried:
        await send_due(hurried)
    assert await hooks.attempts(hook) == [(1, None, "no answer within 0.2 s")]


async def test_a_port_that_nobody_listens_on_is_a_failure(hooks: Hooks, sender: WebhookSender) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hook = await hooks.make(f"http://127.0.0.1:{unused.getsockname()[1]}/")
        await hooks.credit(hook)
        await send_due(sender)
    ((_, status, error),) = await hooks.attempts(hook)
    assert status is None
    assert "Connect call failed" in str(error)


async def test_a_secret_of_another_row_is_not_signed_with(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url)
    other = await hooks.make(receiver.url)
    await hooks.operator.execute(
        "update webhook_endpoints set secret = (select secret from webhook_endpoints where id = $1) where id = $2",
        other.id,
        hook.id,
    )
    await hooks.credit(hook)
    await send_due(sender)
    assert receiver.requests == []
    assert await hooks.attempts(hook) == [(1, None, "The signing secret cannot be read; rotate it.")]


async def test_a_suspended_tenants_deliveries_wait(hooks: Hooks, receiver: Receiver, sender: WebhookSender) -> None:
    hook = await hooks.make(receiver.url)
    await hooks.credit(hook)
    await hooks.operator.fetchval("select set_tenant_status($1, 'suspended')", hook.tenant_id)
    assert await send_due(sender) == 0
    await hooks.operator.fetchval("select set_tenant_status($1, 'active')", hook.tenant_id)
    assert await send_due(sender) == 1


async def test_disabling_gives_up_what_waits_but_records_what_is_in_flight(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        arrived.set()
        await release.wait()
        return web.Response()

    hook = await hooks.make(receiver.url, concurrency=1)
    receiver.script = [slow]
    await hooks.credit(hook)
    await hooks.credit(hook)
    await sender.run_once()
    await asyncio.wait_for(arrived.wait(), 20)
    disable = "select update_webhook_endpoint($1, p_status => 'disabled', p_tenant_id => $2)"
    await hooks.operator.fetchval(disable, hook.id, hook.tenant_id)
    release.set()
    await sender.drain()
    assert [row["state"] for row in await hooks.deliveries(hook)] == ["delivered", "dead"]
    assert await send_due(sender) == 0


async def test_an_endpoint_is_deleted_while_a_wallet_emits_and_neither_fails(
    hooks: Hooks, receiver: Receiver, cluster: Cluster, database_name: str
) -> None:
    hook = await hooks.make(receiver.url)
    wallet = await asyncpg.connect(cluster.url(database=database_name))
    try:
        transaction = hooks.operator.transaction()
        await transaction.start()
        await hooks.operator.fetchval("select delete_webhook_endpoint($1, $2)", hook.id, hook.tenant_id)
        # not committed: the wallet passes the endpoint by instead of waiting for it
        await wallet.execute("set lock_timeout = '5s'")
        await wallet.fetchval("select adjust_user_tokens($1, 5, 'credit')", hook.user_id)
        await transaction.commit()
    finally:
        await wallet.close()
    assert [row["type"] for row in await hooks.events(hook)] == ["token.granted"]
    assert await hooks.deliveries(hook) == []


async def test_a_test_event_goes_to_one_endpoint_whatever_it_asked_for(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url, "token.reset")
    async with receiving() as other:
        await hooks.make(other.url, "*", tenant_id=hook.tenant_id)
        await hooks.operator.fetchval("select send_test_webhook($1, $2)", hook.id, hook.tenant_id)
        await send_due(sender)
        assert [request.event["type"] for request in receiver.requests] == ["webhook.test"]
        assert other.requests == []


async def test_a_delivered_event_is_sent_again_under_the_same_id_as_a_delivery_of_its_own(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url)
    await hooks.credit(hook)
    await send_due(sender)
    first = await hooks.delivery(hook)
    again = await hooks.operator.fetchval("select redeliver_webhook($1, $2)", first["id"], hook.tenant_id)
    await send_due(sender)
    assert again != first["id"]
    assert [(row["cause"], row["state"]) for row in await hooks.deliveries(hook)] == [
        ("event", "delivered"),
        ("redelivery", "delivered"),
    ]
    assert receiver.requests[0].id == receiver.requests[1].id


async def test_a_failed_delivery_is_tried_at_once_when_it_is_redelivered(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url)
    receiver.script = [500]
    await hooks.credit(hook)
    await send_due(sender)
    failed = await hooks.delivery(hook)
    assert (
        await hooks.operator.fetchval("select redeliver_webhook($1, $2)", failed["id"], hook.tenant_id) == failed["id"]
    )
    assert await send_due(sender) == 1
    assert (await hooks.delivery(hook))["state"] == "delivered"


async def test_closed_deliveries_are_forgotten_after_thirty_days_and_open_ones_are_not(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender
) -> None:
    hook = await hooks.make(receiver.url)
    receiver.script = [200, 500]
    await hooks.credit(hook)
    await send_due(sender)
    await hooks.credit(hook)
    await send_due(sender)
    assert await hooks.operator.fetchval("select vanilla.prune_webhook_deliveries()") == 0
    await hooks.later(timedelta(days=30, minutes=1))
    assert await hooks.operator.fetchval("select vanilla.prune_webhook_deliveries()") == 1
    assert (await hooks.delivery(hook))["state"] == "failed"
    assert len(await hooks.events(hook)) == 2


async def test_the_tick_forgets_closed_deliveries(hooks: Hooks, receiver: Receiver, sender: WebhookSender) -> None:
    hook = await hooks.make(receiver.url)
    await hooks.credit(hook)
    await send_due(sender)
    await hooks.later(timedelta(days=30, minutes=1))
    assert await hooks.operator.fetchval("select (vanilla.run_maintenance() ->> 'deliveries_forgotten')::int") == 1


@pytest.mark.parametrize(
    ("scheme", "host", "said"),
    [
        ("http", "127.0.0.1", "A webhook's URL begins with https://."),
        ("https", "127.0.0.1", "The address 127.0.0.1 is not a public one."),
        # a name: it is what it resolves to that counts
        ("https", "localhost.localdomain", "The address"),
    ],
)
async def test_a_sender_in_production_reaches_no_address_of_our_own_network(
    hooks: Hooks,
    receiver: Receiver,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    host: str,
    said: str,
) -> None:
    known = socket.getaddrinfo

    def resolve(name: object, *more: object, **named: object) -> object:
        return known("127.0.0.1" if name == "localhost.localdomain" else name, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    hook = await hooks.make(receiver.url.replace("http://127.0.0.1", f"{scheme}://{host}"))
    await hooks.credit(hook)
    async with sending(database, private=False) as sender:
        assert await send_due(sender) == 1
    assert receiver.requests == []
    ((_, status, error),) = await hooks.attempts(hook)
    assert status is None
    assert said in str(error)
    assert (await hooks.delivery(hook))["state"] == "failed"
