"""Push notifications of a task in the database: told with the change, one after the other, and gone with the task."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster, Person
from tests.engines.shop import Shop, asking, plain, shop
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import _prepare

CLAIM = "select vanilla.claim_webhook_deliveries($1, $2)"
FINISH = "select vanilla.finish_webhook_delivery($1, $2, $3, $4, $5, 1)"
TOLD = """
    select v.payload ->> 'state' from webhook_deliveries d
    join webhook_endpoints k on k.tenant_id = d.tenant_id and k.id = d.endpoint_id
    join events v on v.tenant_id = d.tenant_id and v.created_at = d.event_created_at and v.id = d.event_id
    where k.execution_id = $1 order by d.id
"""
SUCCEEDED = "select count(*) from events where type = 'workflow.succeeded' and payload ->> 'execution_id' = $1"
DUE = "update webhook_deliveries set next_attempt_at = now() where state in ('pending', 'failed')"
LEFT = """
    select (select count(*) from webhook_endpoints where execution_id is not null), (select count(*) from
        webhook_deliveries), (select count(*) from webhook_attempts)
"""
WAITS = {"nodes": [{"id": "s", "kind": "signal", "signal": "go"}], "connections": []}
ASKS = {"nodes": [{"id": "ask", "kind": "approval", "approvers": ["role:user"]}], "connections": []}
WAITING = """
    select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')
"""
LEASE = timedelta(minutes=1)


@pytest.fixture(scope="module")
async def store(cluster: Cluster) -> AsyncIterator[Shop]:
    async with shop(cluster) as made:
        yield made


@pytest.fixture(autouse=True)
async def alone(store: Shop) -> AsyncIterator[None]:
    yield
    for table in ("webhook_attempts", "webhook_deliveries"):
        await store.operator.execute(f"delete from {table}")
    await store.operator.execute("delete from webhook_endpoints")


async def listen(store: Shop, who: Person, task: uuid.UUID, name: str = "mine", **more: Any) -> None:
    await store.ask(
        who,
        "set_task_notification",
        task,
        more.get("endpoint", uuid.uuid5(task, name)),
        name,
        "context",
        "https://example.test/",
        b"sealed",
    )


async def told(store: Shop, task: uuid.UUID) -> list[str]:
    return [row[0] for row in await store.operator.fetch(TOLD, task)]


async def waiting(store: Shop, definition: dict[str, Any] | None = None) -> tuple[Person, uuid.UUID]:
    """A run that goes on, and whose it is."""
    user, engine = await store.person(), await store.deploy(definition or WAITS)
    run = await store.run(user, engine.slug)
    return user, uuid.UUID(run["execution_id"])


async def claimed(store: Shop) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await store.runtime.fetchval(CLAIM, 20, LEASE)
    return found


async def finish(store: Shop, one: dict[str, Any], status: int) -> str | None:
    ids = [uuid.UUID(one[name]) for name in ("tenant_id", "delivery_id", "lease_id")]
    error = None if status == 200 else "it failed"
    state: str | None = await store.runtime.fetchval(FINISH, *ids, status, error)
    return state


@asynccontextmanager
async def another(store: Shop) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(store.room.cluster.url(database=store.room.name))
    await _prepare(connection)
    try:
        yield connection
    finally:
        await connection.close()


async def somebody_waits(connection: asyncpg.Connection) -> None:
    """Until a session of this database waits for a lock."""
    async with asyncio.timeout(10):
        while not await connection.fetchval(WAITING):
            await asyncio.sleep(0.01)
            await connection.execute("select pg_stat_clear_snapshot()")


async def test_each_way_to_an_end_tells_it(store: Shop) -> None:
    async with store.room.worker() as hands:
        ends = []
        # one that computes an output, two that end in a batch, and one whose last step called a model
        for definition in (plain(output="steps.a.output"), plain(), plain(), asking()):
            user, task = await waiting(store, definition)
            await listen(store, user, task)
            ends.append(task)
        await hands.run(lambda step: step.done(output=1))
    assert [await told(store, task) for task in ends] == [["completed"]] * 4


async def test_of_many_that_end_at_once_each_is_told_once_of_those_that_end_singly_too(store: Shop) -> None:
    async with store.room.worker() as hands:
        ends = []
        for definition in (plain(), plain(max_duration_s=600), plain(max_duration_s=600)):
            user, task = await waiting(store, definition)
            await listen(store, user, task)
            ends.append(task)
        await hands.run(lambda step: step.done(output=1))
    assert [await told(store, task) for task in ends] == [["completed"]] * 3
    for task in ends:
        assert await store.operator.fetchval(SUCCEEDED, str(task)) == 1


async def test_the_end_of_a_run_that_its_own_process_works_tells_it(store: Shop) -> None:
    user, task = await waiting(store, plain())
    await listen(store, user, task)
    tick = "select vanilla.tick_run($1, $2, 1, $3, $4)"
    async with store.room.worker() as hands:
        step = await hands.one()
        of_run = (user.identity.tenant_id, task)
        last = await hands.connection.fetchval(tick, hands.worker, [step.done(output=1)], *of_run)
    assert last["end"]["status"] == "succeeded"
    assert await told(store, task) == ["completed"]


async def test_the_second_is_not_sent_before_the_first_has_its_answer(store: Shop) -> None:
    user, task = await waiting(store, ASKS)
    await listen(store, user, task)
    await listen(store, user, task, "other")
    async with store.room.worker() as hands:
        await hands.run(lambda step: step.done("waiting", wait={"kind": "approval", "approvers": ["role:user"]}))
    await store.operator.fetchval("select cancel_execution($1)", task)
    assert await told(store, task) == ["input_required"] * 2 + ["canceled"] * 2
    first = await claimed(store)
    assert [one["event"]["payload"]["state"] for one in first] == ["input_required"] * 2
    assert len({one["endpoint_id"] for one in first}) == 2
    assert await claimed(store) == []
    assert [await finish(store, one, status) for one, status in zip(first, (500, 200), strict=True)] == [
        "failed",
        "delivered",
    ]
    (second,) = await claimed(store)
    assert (second["endpoint_id"], second["event"]["payload"]["state"]) == (first[1]["endpoint_id"], "canceled")
    assert await claimed(store) == []  # the other's first one waits for its next try
    await store.operator.execute(DUE + " and state = 'failed'")  # later than what came after was
    (again,) = await claimed(store)
    assert (again["event"]["id"], again["attempt"]) == (first[0]["event"]["id"], 2)
    assert await finish(store, again, 200) == "delivered"
    (last,) = await claimed(store)
    assert (last["endpoint_id"], last["event"]["payload"]["state"]) == (again["endpoint_id"], "canceled")


async def test_what_a_killed_sender_had_comes_again_before_the_next(store: Shop) -> None:
    user, task = await waiting(store)
    await store.operator.fetchval("select pause_execution($1)", task)
    await listen(store, user, task)
    await store.operator.fetchval("select cancel_execution($1)", task)
    await store.operator.fetchval("select restart_execution($1, 's')", task)
    assert await told(store, task) == ["canceled", "working"]
    (lost,) = await claimed(store)
    await store.operator.execute(DUE)  # its lease has run out
    (again,) = await claimed(store)
    assert (again["event"], again["attempt"]) == (lost["event"], 2)
    assert await finish(store, lost, 200) is None
    assert await finish(store, again, 200) == "delivered"
    assert [one["event"]["payload"]["state"] for one in await claimed(store)] == ["working"]


async def test_one_that_is_made_while_the_run_ends_is_told_the_end(store: Shop) -> None:
    user, task = await waiting(store)
    async with another(store) as other, other.transaction():
        await other.fetchval("select cancel_execution($1)", task)
        making = asyncio.create_task(listen(store, user, task))
        await somebody_waits(other)
    await making
    assert await told(store, task) == ["canceled"]


async def test_who_ends_a_run_while_one_is_made_tells_it(store: Shop) -> None:
    user, task = await waiting(store)
    async with another(store) as other, other.transaction():
        await other.fetchval(
            "select set_task_notification($1, $2, 'mine', 'c', 'https://example.test/', 'sealed')",
            task,
            uuid.uuid4(),
        )
        ending = asyncio.create_task(store.ask(user, "cancel_execution", task))
        await somebody_waits(other)
    await ending
    assert await told(store, task) == ["canceled"]


async def test_one_that_is_not_deleted_after_all_has_missed_nothing(store: Shop) -> None:
    user, task = await waiting(store)
    await listen(store, user, task)
    async with another(store) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.fetchval("select delete_task_notification($1, 'mine')", task)
        # as by a delegate of the task, whose own execution is locked
        telling = asyncio.create_task(
            store.operator.fetchval("select vanilla.tell_task($1, $2)", user.identity.tenant_id, task)
        )
        await somebody_waits(other)
        await transaction.rollback()
    await telling
    assert await told(store, task) == ["working"]


async def test_they_go_with_the_task_when_its_days_are_over(store: Shop) -> None:
    user, task = await waiting(store)
    _, stays = await waiting(store)
    await listen(store, user, task)
    await store.operator.fetchval("select cancel_execution($1)", task)
    for one in await claimed(store):
        await finish(store, one, 500)
    assert tuple(await store.operator.fetchrow(LEFT)) == (1, 1, 1)
    await store.operator.execute(
        "update workflow_executions set finished_at = now() - interval '91 days' where id = $1", task
    )
    clock = "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe as"
    await store.operator.execute(f"{clock} $c$select pg_catalog.clock_timestamp() + interval '91 days'$c$")
    try:
        await store.operator.fetchval("select vanilla.job_workflow_history(100)")
    finally:
        await store.operator.execute(f"{clock} 'select pg_catalog.clock_timestamp()'")
    assert tuple(await store.operator.fetchrow(LEFT)) == (0, 0, 0)
    assert await store.operator.fetchval("select exists (select from workflow_executions where id = $1)", stays)


async def test_they_go_with_the_user_who_is_erased(store: Shop) -> None:
    user, task = await waiting(store)
    other, stays = await waiting(store)
    await listen(store, user, task)
    await listen(store, other, stays)
    await store.operator.fetchval("select erase_user($1, 'asked')", user.identity.user_id)
    assert await told(store, stays) == []
    assert tuple(await store.operator.fetchrow(LEFT)) == (1, 0, 0)


async def test_nobody_elses_row_is_taken_by_its_id(store: Shop) -> None:
    user, task = await waiting(store)
    hook = uuid.uuid4()
    await store.operator.fetchval(
        "select create_webhook_endpoint($1, 'https://example.test/', '{*}', 'x', p_tenant_id => $2)",
        hook,
        user.identity.tenant_id,
    )
    await listen(store, user, task)
    for name, endpoint in (("mine", hook), ("more", hook), ("more", uuid.uuid5(task, "mine"))):
        with pytest.raises(VanillaError, match=r"exists|of this name"):
            await listen(store, user, task, name, endpoint=endpoint)
    assert await store.operator.fetchval("select url from webhook_endpoints where id = $1", hook)
    other = await store.person()
    with pytest.raises(VanillaError, match="no such execution"):
        await listen(store, other, task)
    with pytest.raises(VanillaError, match="no such execution"):
        await store.ask(other, "delete_task_notification", task, "mine")
    shown = "config_id from task_notifications"
    assert (await store.ask(user, shown, task), await store.ask(other, shown, task)) == ("mine", None)
