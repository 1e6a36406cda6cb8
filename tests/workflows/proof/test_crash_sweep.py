"""A worker's process ends before and after every statement of its loop, or PostgreSQL does: the work is done once."""

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import LONG, Cluster, People, as_person, serve, settings_for
from tests.processes import Running, eventually, kill_postgresql, over, own_server, reached
from tests.workflows.hands import Room, workflow
from tests.workflows.proof.invariants import require_invariants
from tests.workflows.proof.support import DEPLOY
from vanilla_saas.app import create_app
from vanilla_saas.checks import BOOKS, run_checks
from vanilla_saas.database.embedded import EmbeddedServer
from vanilla_saas.database.exit_at import EXIT_CODE
from vanilla_saas.workflows.definition import Definition, plain

WORK_S = 15.0
"""Within this the work of a dead worker is done by another, though on a busy machine not always."""
MODEL = {"model": "sandbox-small", "max_output_tokens": 50}
SHAPE = workflow(
    "each=map draft=llm check=gate pause=wait within=engine ask=approval last",
    "each>ask draft>check check>pause pause>ask within>ask ask>last:approved",
    each={"over": "input.list", "concurrency": 2,
          "item": {"kind": "llm", **MODEL, "prompt": 'sandbox: {"reply": "{{ item }}", "latency_ms": 30}'}},
    draft={**MODEL, "prompt": 'sandbox: {"reply": "{% if feedback %}good{% else %}bad{% endif %}"}'},
    check={"checks": [{"check": "regex", "pattern": "good"}], "of": "steps.draft.output.text",
           "on_fail": "retry", "retry": {"node": "draft", "times": 2}},
    pause={"seconds": 1},
    within={"ref": "doubles", "input": "{'n': size(input.list)}"},
    ask={"title": "Is it good?", "approvers": ["role:admin"]},
    last={"value": "[steps.draft.output.text] + steps.each.output.map(one, one.text) + [string(steps.within.output)]"},
    input={"type": "object"},
    output="steps.last.output",
)  # fmt: skip
OUTPUT = ["good", "one", "two", "three", "6"]
ENGINE = workflow("a", a={"value": "input.n * 2"}, output="steps.a.output")
CALLS = 5
"""Three items, and a draft that is written twice."""


@dataclass
class Place:
    """A server of its own, whose postmaster is killed, and a database in it."""

    server: EmbeddedServer
    home: Path
    people: list[Any] = field(default_factory=list)
    shape: uuid.UUID | None = None
    charged: int = 0
    """What one execution costs when nothing happens to it."""

    @property
    def cluster(self) -> Cluster:
        return Cluster(str(self.server.socket_dir), 5432)

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await reached(dsn=self.cluster.url(database="crash"))
        try:
            yield connection
        finally:
            connection.terminate()

    def worker(self, moment: str = "") -> Running:
        """A worker in a process of its own that ends at the moment."""
        installation = over(self.cluster, "crash", self.home, VANILLA_SAAS_DEBUG_EXIT_AT=moment)
        return installation.start("worker", "--name", "mortal")

    @asynccontextmanager
    async def another(self) -> AsyncIterator[None]:
        """A worker that lives, in this process, beside an API."""
        async with serve(create_app(settings_for(self.cluster, "crash", self.home, run_worker=True))):
            yield

    async def start(self, operator: asyncpg.Connection) -> list[uuid.UUID]:
        user, _ = self.people
        start = "select (start_workflow($1, $2, p_user_id => $3) ->> 'execution_id')::uuid"
        values = {"list": ["one", "two", "three"]}
        return [await operator.fetchval(start, self.shape, values, user.identity.user_id) for _ in range(2)]

    async def ended(self, executions: list[uuid.UUID], seconds: float, why: Any = lambda: "") -> None:
        """Approves what is asked until all have ended."""
        _, admin = self.people

        async def look() -> bool:
            with suppress(asyncpg.PostgresError, OSError):
                async with self.operator() as operator:
                    asked = "select id from workflow_approvals where status = 'open' and execution_id = any ($1)"
                    for row in await operator.fetch(asked, executions):
                        async with as_person(operator, admin):
                            await operator.fetchval("select decide_approval($1, 'approved')", row["id"])
                    left = "select count(*) from workflow_executions where finished_at is null and id = any ($1)"
                    return not await operator.fetchval(left, executions)
            return False

        await eventually(look, seconds, why)

    async def require_done_once(self, executions: list[uuid.UUID], attempts: int = 1) -> None:
        async with self.operator() as operator:
            for execution in executions:
                found = await Room(self.cluster, "crash", People(operator), self.people[0]).execution(execution)
                assert (found["status"], found["output"]) == ("succeeded", OUTPUT), found
                steps = found["steps"].values()
                assert {step["status"] for step in steps} == {"succeeded"}
                # what a worker died with is no attempt
                assert {step["attempts"] for step in steps} <= {*range(1, attempts + 1)}, found
                items = await operator.fetch(
                    "select attempts from workflow_steps where execution_id = $1 and item >= 0", execution
                )
                assert len(items) == 3
                assert {row["attempts"] for row in items} <= {*range(1, attempts + 1)}
                runs = (
                    "select array_agg(e.status) from engine_executions x"
                    " join workflow_executions e on e.tenant_id = x.tenant_id and e.id = x.id"
                    " where e.parent_execution_id = $1"
                )
                assert await operator.fetchval(runs, execution) == ["succeeded"]
                judged = "select array_agg(passed order by id) from quality_gate_results where execution_id = $1"
                assert await operator.fetchval(judged, execution) == [False, True]
                settled = (
                    "select count(*), count(distinct hold_id), sum((metadata ->> 'actual')::bigint)"
                    " from user_token_ledger where direction = 'settle' and reference_id = $1"
                )
                assert tuple(await operator.fetchrow(settled, execution)) == (
                    CALLS,
                    CALLS,
                    self.charged or found["charged_tokens"],
                )
                self.charged = self.charged or found["charged_tokens"]
            await require_invariants(operator)
            assert await run_checks(operator, BOOKS) == []
            left = await operator.fetchrow(
                "select (select count(*) from workflow_queue), (select count(*) from workflow_timers),"
                " (select count(*) from user_token_holds where state = 'open'),"
                " (select sum(reserved_tokens) from user_token_wallets)"
            )
            assert tuple(left) == (0, 0, 0, 0)


@pytest.fixture(scope="module")
async def place() -> AsyncIterator[Place]:
    async with own_server("crash") as (server, home):
        made = Place(server, home)
        async with made.operator() as operator:
            people = People(operator)
            made.people = [await people.user(balance=10_000_000), await people.user("admin")]
            room = Room(made.cluster, "crash", people, made.people[0])
            made.shape = await room.publish(plain(Definition.model_validate({"name": "Test", **SHAPE})))
            engine = await room.publish(plain(Definition.model_validate({"name": "Doubles", **ENGINE})))
            await operator.fetchval(DEPLOY, "doubles", engine)
            executions = await made.start(operator)
        async with made.another():
            await made.ended(executions, 60)
        await made.require_done_once(executions)
        yield made


BUSY = {"register_worker": 1, "tick_worker": 6, "tick_worker+": 12, "admit_call": 10, "tend_workflows": 3,
        "held_leases": 2, "workflow_plan": 1, "bury_workers": 1, "heartbeat_worker": 2}  # fmt: skip
"""Statements of a worker that works, and how many of each are tried."""
LEAVING = ("drain_worker", "stop_worker")
SHORT = ["register_worker:after:1", "tick_worker:after:1", "tick_worker+:before:1", "tick_worker+:after:2",
         "admit_call:after:1", "tick_worker+:after:6", "tend_workflows:after:2", "drain_worker:after:1"]  # fmt: skip


def moments() -> Iterator[str]:
    if not LONG:
        yield from SHORT
        return
    for when in ("before", "after"):
        for function, most in BUSY.items():
            yield from (f"{function}:{when}:{nth}" for nth in range(1, most + 1))
        yield from (f"{function}:{when}:1" for function in LEAVING)


@pytest.mark.parametrize("moment", list(moments()))
async def test_a_worker_that_ends_at_any_statement_leaves_nothing_undone_and_nothing_done_twice(
    place: Place, moment: str
) -> None:
    async with place.operator() as operator:
        executions = await place.start(operator)
    running = place.worker(moment)
    try:
        if moment.split(":")[0] in LEAVING:
            await working(place, running)
            running.send(signal.SIGTERM)
        # it works alone until then; people answer it
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(answer_until_cancelled(place, executions))
            assert await running.wait(60) == EXIT_CODE, running.err
            answering.cancel()
    finally:
        await running.end()
    died = time.monotonic()
    async with place.operator() as operator:
        # ten seconds without a heartbeat have passed
        await operator.execute(
            "update worker_registry set heartbeat_at = heartbeat_at - interval '10 s' where name = 'mortal'"
        )
    async with place.another():
        await place.ended(executions, 60)
    print(f"{moment}: done by another in {time.monotonic() - died:.1f} s")
    await place.require_done_once(executions)


async def answer_until_cancelled(place: Place, executions: list[uuid.UUID]) -> None:
    with suppress(asyncio.CancelledError):
        await place.ended(executions, 1000)


async def working(place: Place, running: Running) -> None:
    async def has_something() -> bool:
        assert running.process.poll() is None, running.err
        async with place.operator() as operator:
            return bool(await operator.fetchval("select count(*) from workflow_queue where worker is not null"))

    await eventually(has_something, 60, lambda: running.err)


DOWN = ["tick_worker+:before:2", "tick_worker+:after:2"] if not LONG else [
    f"{function}:{when}:2:stop"
    for function in ("tick_worker", "tick_worker+", "admit_call", "tend_workflows", "held_leases", "heartbeat_worker")
    for when in ("before", "after")
]  # fmt: skip


@pytest.mark.parametrize("moment", DOWN)
async def test_postgresql_that_is_killed_at_a_statement_loses_nothing_and_the_same_worker_goes_on(
    place: Place, moment: str
) -> None:
    async with place.operator() as operator:
        executions = await place.start(operator)
    running = place.worker(moment.removesuffix(":stop") + ":stop")
    try:
        await running.stands()
        await kill_postgresql(place.server.data_dir)
        async with place.operator():
            running.send(signal.SIGCONT)
        await place.ended(executions, 90, lambda: running.err)
        assert await running.stop() == 0, running.err
    finally:
        await running.end()
    assert "Traceback" not in running.err
    # a call that was not admitted is another attempt's
    await place.require_done_once(executions, attempts=2)


@pytest.mark.long
async def test_the_work_of_a_dead_worker_is_done_by_another_within_15_seconds(place: Place) -> None:
    async with place.operator() as operator:
        executions = await place.start(operator)
    running = place.worker("tick_worker+:after:2")
    assert await running.wait(60) == EXIT_CODE
    await running.end()
    died = time.monotonic()
    async with place.another():
        await place.ended(executions, 60)
    assert time.monotonic() - died < WORK_S
    await place.require_done_once(executions)
