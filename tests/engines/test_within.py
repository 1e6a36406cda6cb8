"""Engines that a node of a workflow runs: one child, of the version its reference meant, paid and ended with the whole."""

import asyncio
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Person
from tests.engines.shop import Made, Shop, asking, plain
from tests.engines.test_engines import offered
from tests.workflows.hands import Hands, Step, workflow
from tests.workflows.test_claims import call

RUNS = """
select x.id, x.version, x.alias, x.source, x.user_id, x.estimated_from, e.status, e.reason, e.depth, e.priority, e.at_once,
    e.parent_item, e.started_by, e.input, e.charged_tokens
from engine_executions x join workflow_executions e on e.tenant_id = x.tenant_id and e.id = x.id
where e.parent_execution_id = $1 order by x.id
"""


def names(ref: str, **more: Any) -> dict[str, Any]:
    return workflow("n=engine after", "n>after", n={"ref": ref, **more})


def asks(step: Step, ref: str, **values: Any) -> dict[str, Any]:
    """What a worker says of a node that runs an engine."""
    wait = {"kind": "execution", "of": "engine", "ref": ref, "input": values}
    return step.done("waiting", wait=wait, state=None)


async def begun(shop: Shop, person: Person, ref: str, **more: Any) -> uuid.UUID:
    return await shop.room.start(await shop.flow(names(ref, **more), person), person=person)


async def runs(shop: Shop, execution: uuid.UUID) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await shop.operator.fetch(RUNS, execution)
    return rows


async def to_the_end(shop: Shop, hands: Hands, execution: uuid.UUID, *done: dict[str, Any]) -> dict[str, Any]:
    """Answers with what a child gave, until the execution has ended."""

    def answer(step: Step) -> dict[str, Any]:
        if step.decision is None:
            return step.done(output=1)
        if step.decision["status"] == "succeeded":
            return step.done(output=step.decision["output"])
        return step.failed("engine_failed", retryable=True)

    await hands.run(answer, *done)
    while await shop.room.pass_time(execution):
        await hands.run(answer)
    return await shop.room.execution(execution)


async def test_a_node_runs_an_engine_for_the_user_of_the_execution(floor: Shop) -> None:
    shape = plain(input={"type": "object", "properties": {"x": {}, "y": {}}})
    engine = await floor.deploy(shape, p_mode="sequential", p_parameters={"y": {"type": "integer", "default": 4}})
    person = await floor.person()
    execution = await begun(floor, person, engine.slug)
    await floor.operator.execute("update workflow_executions set priority = 8 where id = $1", execution)
    async with floor.room.worker() as hands:
        step = await hands.one()
        start = await hands.one(asks(step, engine.slug, x=1))
        (run,) = await runs(floor, execution)
        assert (run["user_id"], run["source"], run["version"], run["alias"]) == (
            person.identity.user_id, "reference", 1, "stable",
        )  # fmt: skip
        assert (run["depth"], run["priority"], run["at_once"], run["parent_item"]) == (1, 8, 1, -1)
        assert run["input"] == {"x": 1, "y": 4}
        inner = await hands.one(start.done("go"))
        await hands.tick(inner.done(output=7))
        assert await floor.room.tend() == 1
        again = await hands.one()
        assert (again.node, again.decision["output"]) == ("n", {"a": 7})
        found = await to_the_end(floor, hands, execution, again.done(output=again.decision["output"]))
    assert found["status"] == "succeeded"
    assert len(await runs(floor, execution)) == 1


async def test_the_version_is_that_of_the_moment_in_which_the_node_began(floor: Shop) -> None:
    engine = await floor.deploy()
    await floor.deploy_again(engine)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2, "canary", 100)
    person = await floor.person()
    first = await begun(floor, person, engine.slug)
    async with floor.room.worker() as hands:
        inner = await hands.one(asks(await hands.one(), engine.slug))
        await floor.deploy_again(engine, "3")
        await floor.ask(floor.admin, "promote_engine", engine.id, 3)
        await floor.ask(floor.admin, "rollback_engine", engine.id, "canary")
        await floor.ask(floor.admin, "retire_engine", engine.id, 2)
        found = await to_the_end(floor, hands, first, inner.done(output=1))
        assert found["status"] == "succeeded"
        second = await begun(floor, person, f"{engine.slug}@1")
        await to_the_end(floor, hands, second, asks(await hands.one(), f"{engine.slug}@1"))
        third = await begun(floor, person, engine.slug)
        await to_the_end(floor, hands, third, asks(await hands.one(), engine.slug))
    made = [(await runs(floor, execution))[0] for execution in (first, second, third)]
    assert [(run["version"], run["alias"]) for run in made] == [(2, "canary"), (1, None), (3, "stable")]
    assert made[2]["estimated_from"] == 0


async def test_a_copy_is_the_users_own(floor: Shop) -> None:
    shape = plain(input={"type": "object", "properties": {"tone": {"type": "string"}}})
    engine = await floor.deploy(shape, p_parameters={"tone": {"type": "string", "default": "plain"}})
    person, other = await floor.person(), await floor.person()
    await floor.ask(person, "fork_engine", engine.slug, "mine", {"tone": "warm"})
    execution, refused = await begun(floor, person, "my/mine"), await begun(floor, other, "my/mine")
    async with floor.room.worker() as hands:
        await hands.run(lambda step: asks(step, "my/mine") if step.node == "n" else step.done("go"))
    (run,) = await runs(floor, execution)
    assert (run["input"], run["version"]) == ({"tone": "warm"}, 1)
    assert await runs(floor, refused) == []
    await floor.operator.fetchval("select cancel_execution($1)", execution)


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("absent", {"engine": "none-such"}),
        ("hidden", {}),
        ("read", {"reason": "read_only", "need": "execute"}),
        ("retired", {"reason": "engine_retired"}),
        ("version", {"reason": "no_version", "version": 9}),
        ("malformed", {"param": "ref"}),
        ("no object", {"param": "input"}),
        ("too large", {"param": "input"}),
    ],
)
async def test_what_may_not_be_run_ends_the_step_and_is_not_tried_again(
    floor: Shop, kind: str, details: dict[str, Any]
) -> None:
    engine = await floor.deploy(access={"hidden": "none", "read": "read"}.get(kind, "execute"))
    if kind == "retired":
        await floor.ask(floor.admin, "retire_engine", engine.id)
    refs = {"absent": "none-such", "version": f"{engine.slug}@9", "malformed": "A b"}
    ref = refs.get(kind, engine.slug)
    execution = await begun(floor, await floor.person(), engine.slug, retry={"on": ["engine_not_started"]})
    async with floor.room.worker() as hands:
        told = asks(await hands.one(), ref)
        told["wait"]["input"] = {"no object": [], "too large": {"x": [1] * 400_000}}.get(kind, {})
        assert await hands.tick(told) == []
    found = await floor.room.execution(execution)
    assert (found["status"], found["reason"]) == ("failed", "engine_not_started")
    assert found["error"]["details"].items() >= details.items()
    assert found["error"]["node"] == "n"
    assert found["steps"]["n"]["attempts"] == 1
    assert await runs(floor, execution) == []


async def test_what_is_hidden_is_refused_in_the_words_for_what_is_not_there(floor: Shop) -> None:
    engine = await floor.deploy(access=None)
    said = []
    for ref in (engine.slug, "e0000000000"):
        execution = await begun(floor, await floor.person(), ref)
        async with floor.room.worker() as hands:
            await hands.tick(asks(await hands.one(), ref))
        error = (await floor.room.execution(execution))["error"]
        said.append(str(error).replace(ref, "it"))
    assert said[0] == said[1]


async def test_a_right_that_is_lost_counts_for_what_begins_after_it(floor: Shop) -> None:
    engine = await floor.deploy()
    person = await floor.person()
    before, after = await begun(floor, person, engine.slug), await begun(floor, person, engine.slug)
    async with floor.room.worker() as hands:
        first, second = sorted(await hands.tick(), key=lambda step: step.execution_id != str(before))
        inner = await hands.one(asks(first, engine.slug))
        await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="read")
        await hands.tick(asks(second, engine.slug))
        assert (await to_the_end(floor, hands, before, inner.done(output=1)))["status"] == "succeeded"
    assert (await floor.room.execution(after))["reason"] == "engine_not_started"


@pytest.mark.parametrize("how", ["cancelled", "late", "child cancelled"])
async def test_a_run_within_ends_with_the_one_that_started_it(floor: Shop, how: str) -> None:
    engine = await floor.deploy()
    execution = await begun(floor, await floor.person(), engine.slug)
    async with floor.room.worker() as hands:
        inner = await hands.one(asks(await hands.one(), engine.slug))
        (run,) = await runs(floor, execution)
        if how == "late":
            await floor.room.pass_time(execution)
        else:
            ended = execution if how == "cancelled" else run["id"]
            await floor.operator.fetchval("select cancel_execution($1)", ended)
        found = await to_the_end(floor, hands, execution, inner.done())
        (run,) = await runs(floor, execution)
    ends = {
        "cancelled": ("cancelled", "cancelled", "parent_ended"),
        "late": ("failed", "timeout", "timeout"),
        "child cancelled": ("failed", "engine_failed", "cancelled"),
    }
    assert (found["status"], found["reason"], run["reason"]) == ends[how]
    assert run["status"] == "cancelled"


async def test_what_a_paused_one_waits_for_ends_and_is_taken_up_when_it_goes_on(floor: Shop) -> None:
    engine = await floor.deploy()
    execution = await begun(floor, await floor.person(), engine.slug)
    async with floor.room.worker() as hands:
        inner = await hands.one(asks(await hands.one(), engine.slug))
        await floor.operator.fetchval("select pause_execution($1)", execution)
        await hands.tick(inner.done(output=1))
        await floor.room.tend()
        assert await hands.tick() == []
        await floor.operator.fetchval("select resume_execution($1)", execution)
        assert (await to_the_end(floor, hands, execution))["status"] == "succeeded"
    assert [run["status"] for run in await runs(floor, execution)] == ["succeeded"]


async def test_attempts_have_the_same_run_and_a_restart_another(floor: Shop) -> None:
    engine = await floor.deploy()
    retry = {"attempts": 3, "initial_ms": 0, "on": ["engine_failed"]}
    execution = await begun(floor, await floor.person(), engine.slug, retry=retry)
    async with floor.room.worker() as hands:
        inner = await hands.one(asks(await hands.one(), engine.slug))
        found = await to_the_end(floor, hands, execution, inner.failed())
        assert (found["status"], found["reason"]) == ("failed", "engine_failed")
        assert found["steps"]["n"]["attempts"] == 3
        assert [run["status"] for run in await runs(floor, execution)] == ["failed"]
        await floor.room.restart(execution)
        inner = await hands.one(asks(await hands.one(), engine.slug))
        assert (await to_the_end(floor, hands, execution, inner.done(output=1)))["status"] == "succeeded"
    assert [run["status"] for run in await runs(floor, execution)] == ["failed", "succeeded"]


@pytest.mark.parametrize("when", ["before it begins", "as it begins", "when it has ended"])
async def test_a_worker_that_dies_begins_no_second_run(floor: Shop, when: str) -> None:
    engine = await floor.deploy()
    execution = await begun(floor, await floor.person(), engine.slug)
    async with floor.room.worker() as hands, floor.room.worker() as other:
        step = await hands.one()
        if when == "before it begins":
            await lost(floor, hands)
            assert await hands.tick(asks(step, engine.slug), n=0) == []
            assert hands.stale == [step.lease]
            assert await runs(floor, execution) == []
            step = await other.one()
            inner = await other.one(asks(step, engine.slug))
        else:
            await hands.tick(asks(step, engine.slug), n=0)
            assert await hands.tick(asks(step, engine.slug), n=0) == []  # its answer was lost, so it says it again
            assert hands.stale == [step.lease]
            inner = await other.one()
        if when == "when it has ended":
            await other.tick(inner.done(output=1), n=0)
            await floor.room.tend()
            assert (await hands.one()).node == "n"
            await lost(floor, hands)
            inner = None
        found = await to_the_end(floor, other, execution, *([inner.done(output=1)] if inner else []))
    assert found["status"] == "succeeded"
    assert len(await runs(floor, execution)) == 1


async def lost(shop: Shop, hands: Hands) -> None:
    await shop.operator.fetchval("select vanilla.reclaim_leases($1)", hands.worker)


async def test_each_item_of_a_map_has_its_run(floor: Shop) -> None:
    engine = await floor.deploy()
    each = {"over": "[1, 2, 3]", "concurrency": 2, "item": {"kind": "engine", "ref": engine.slug}}
    person = await floor.person()
    execution = await floor.room.start(await floor.flow(workflow("m=map", m=each), person), person=person)

    def answer(step: Step) -> dict[str, Any]:
        if step.node == "a":
            return step.done(output=str(step.input["n"]))
        if step.item is None:
            return step.done("items", items=[1, 2, 3], concurrency=2)
        return asks(step, engine.slug, n=step.value) if step.decision is None else step.done(
            output=step.decision["output"]["a"]
        )  # fmt: skip

    async with floor.room.worker() as hands:
        await hands.run(answer)
        assert [run["parent_item"] for run in await runs(floor, execution)] == [0, 1]
        while await floor.room.tend():
            await hands.run(answer)
    assert (await floor.room.execution(execution))["output"] == {"m": ["1", "2", "3"]}
    assert [(run["parent_item"], run["status"]) for run in await runs(floor, execution)] == [
        (0, "succeeded"), (1, "succeeded"), (2, "succeeded"),
    ]  # fmt: skip


async def test_what_it_costs_is_paid_once_by_the_user_and_counted_for_the_engine(floor: Shop) -> None:
    engine = await floor.deploy(asking())
    person = await floor.person()
    shape = workflow("n=engine own=llm", "n>own", n={"ref": engine.slug}, own={"model": "sandbox-small", "prompt": "x"})
    execution = await floor.room.start(await floor.flow(shape, person), person=person)
    before = (await floor.room.people.wallet(person))["available_tokens"]
    async with floor.room.worker() as hands:
        inner = await hands.one(asks(await hands.one(), engine.slug))
        await hands.tick(inner.done(calls=[await call(hands, inner)], output="a"))
        await floor.room.tend()
        again = await hands.one()
        own = await hands.one(again.done(output=again.decision["output"]))
        await hands.tick(own.done(calls=[await call(hands, own)], output="b"))
    paid = before - (await floor.room.people.wallet(person))["available_tokens"]
    rows = await floor.operator.fetch(
        """
        select e.id, e.charged_tokens, e.cost_micros, e.parent_execution_id is not null as within,
            (select sum(s.charged_tokens) from workflow_steps s where s.execution_id = e.id and s.item = -1) as steps,
            (select -sum(l.amount) from user_token_ledger l where l.reference_id = e.id) as ledger
        from workflow_executions e where e.id = $1 or e.parent_execution_id = $1 order by e.depth
        """,
        execution,
    )
    assert [row["within"] for row in rows] == [False, True]
    assert all(0 < row["charged_tokens"] == row["steps"] == row["ledger"] for row in rows)
    assert paid == sum(row["charged_tokens"] for row in rows)
    reported = await floor.operator.fetchrow(
        "select runs, charged_tokens, cost_micros from engine_report($1, '-infinity', 'infinity', $2)",
        engine.id,
        person.identity.tenant_id,
    )
    assert tuple(reported) == (1, rows[1]["charged_tokens"], rows[1]["cost_micros"])


async def test_calls_of_it_count_on_the_key_of_the_execution_it_is_in(floor: Shop) -> None:
    engine = await floor.deploy(asking())
    person = await floor.person()
    _, key = await floor.key(person, engine.slug, p_budget_tokens=100)
    execution = await begun(floor, person, engine.slug)
    await floor.operator.execute("update workflow_executions set api_key_id = $2 where id = $1", execution, key)
    async with floor.room.worker() as hands:
        inner = await hands.one(asks(await hands.one(), engine.slug))
        await hands.tick(inner.done(calls=[await call(hands, inner)]))
    (run,) = await runs(floor, execution)
    assert run["charged_tokens"] > 0
    assert await floor.operator.fetchval("select used_tokens from api_keys where id = $1", key) == run["charged_tokens"]
    await floor.operator.fetchval("select cancel_execution($1)", execution)


async def test_the_platforms_engine_runs_within_a_tenants_workflow(floor: Shop) -> None:
    engine: Made = await offered(floor)
    people = [await floor.person() for _ in range(2)]
    executions = [await begun(floor, person, engine.slug) for person in people]
    async with floor.room.worker() as one, floor.room.worker() as other:
        (first,) = await one.tick(n=1)
        (second,) = await other.tick(n=1)
        await asyncio.gather(one.tick(asks(first, engine.slug), n=0), other.tick(asks(second, engine.slug), n=0))
        for execution in executions:
            (run,) = await runs(floor, execution)
            assert run["status"] == "running"
            await floor.operator.fetchval("select cancel_execution($1)", execution)


async def test_runs_are_at_most_five_deep(floor: Shop) -> None:
    engine = await floor.deploy()
    execution = await begun(floor, await floor.person(), engine.slug)
    await floor.operator.execute("update workflow_executions set depth = 5 where id = $1", execution)
    async with floor.room.worker() as hands:
        await hands.tick(asks(await hands.one(), engine.slug))
    found = await floor.room.execution(execution)
    assert (found["reason"], found["error"]["details"]) == ("engine_not_started", {"limit": 5})
