"""A worker is killed before and after every statement of a run, in model calls and in tools: the run is done once."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import LONG, Cluster
from tests.orchestration.mortals import MODEL_STEPS, Ward
from tests.orchestration.recorder import recorder
from tests.orchestration.studio import BOTH_LOOPS
from tests.processes import kill_postgresql, own_server

OF_RUN = {
    "begin_run": 5,
    "record_turn": 8,
    "record_call": 1,
    "record_call_and_admit": 4,
    "admit_call": 4,
    "tick_worker+": 4,
}
"""Statements that bring the run on, and how many of each are tried; record_call: what people said."""
BESIDE = ("register_worker", "tick_worker", "tend_workflows", "held_leases", "workflow_plan")
IN_TOOLS = [f"tool:{name}:{when}" for name in ("stamp", "pay_back", "tell") for when in ("before", "after")]
SHORT = ["record_turn:after:3", "call:4", "record_call_and_admit:before:3", "tool:pay_back:after"]


def deaths() -> Iterator[str]:
    if not LONG:
        yield from SHORT
        return
    for when in ("before", "after"):
        for function, most in OF_RUN.items():
            yield from (f"{function}:{when}:{nth}" for nth in range(1, most + 1))
        yield from (f"{function}:{when}:1" for function in BESIDE)
    yield from (f"call:{nth}" for nth in range(1, MODEL_STEPS + 1))
    yield from IN_TOOLS


@pytest.mark.parametrize("death", list(deaths()))
async def test_a_run_whose_worker_is_killed_anywhere_is_done_once(ward: Ward, death: str) -> None:
    run = await ward.start()
    assert await ward.killed(run, death), "it did not come to that"
    async with ward.another():
        await ward.ended(run, 60)
    await ward.require_done_once(run)


SEEDS = {"builtin": 200, "pydantic_ai": 100}


@pytest.mark.long
@pytest.mark.parametrize(
    ("ward", "seed"), [(loop, seed) for loop, seeds in SEEDS.items() for seed in range(seeds)], indirect=["ward"]
)
async def test_a_run_whose_workers_are_killed_at_random_is_done_once(ward: Ward, seed: int) -> None:
    dice = random.Random(seed)
    run, died = await ward.start(), 0
    for _ in range(dice.randint(1, 3)):
        function = dice.choice([*OF_RUN, "call", "tool"])
        if function == "call":
            death = f"call:{dice.randint(1, 3)}"
        elif function == "tool":
            death = dice.choice(IN_TOOLS)
        else:
            death = f"{function}:{dice.choice(['before', 'after'])}:{dice.randint(1, 4)}"
        if not await ward.killed(run, death):
            break
        died += 1
    async with ward.another():
        await ward.ended(run, 60)
    await ward.require_done_once(run, died)


@pytest.fixture(scope="module", params=BOTH_LOOPS)
async def mortal(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Ward, Path]]:
    """A server whose postmaster is killed."""
    async with own_server("agents") as (server, _), recorder() as sandbox:
        made = Ward(
            Cluster(str(server.socket_dir), 5432), "agents", tmp_path_factory.mktemp("home"), sandbox, request.param
        )
        await made.prepare()
        yield made, server.data_dir


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("function", "most"), OF_RUN.items())
async def test_a_run_whose_database_is_killed_goes_on_with_the_same_worker(
    mortal: tuple[Ward, Path], function: str, most: int, when: str
) -> None:
    ward, data = mortal
    run = await ward.start()
    running = ward.worker(VANILLA_SAAS_DEBUG_EXIT_AT=f"{function}:{when}:{min(most, 2)}:stop")
    try:
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(ward.answer(run))
            await running.stands()
            answering.cancel()
        await kill_postgresql(data)
        async with ward.operator():
            running.send(signal.SIGCONT)
        await ward.ended(run, 90, lambda: running.err)
        assert await running.stop() == 0, running.err
    finally:
        await running.end()
    assert "Traceback" not in running.err
    await ward.require_done_once(run)
