"""A support desk whose workers die in every step: one refund, one word to the customer, one charge for each answer."""

import pytest

from tests.conftest import LONG
from tests.orchestration.mortals import MODEL_STEPS, Ward

EACH = ("call:1", "record_turn:after:1") if LONG else ("record_turn:after:1",)
"""How a worker ends that is waiting for an answer, or has one."""
MOST = MODEL_STEPS * len(EACH)
"""One for each answer."""


async def test_a_desk_of_which_every_worker_dies_after_one_answer_comes_to_its_end(ward: Ward) -> None:
    run = await ward.start()
    for died in range(MOST):
        assert await ward.killed(run, EACH[died % len(EACH)]), f"it ended after {died}"
    async with ward.another():
        await ward.ended(run, 60)
    await ward.require_done_once(run, MOST)


@pytest.mark.parametrize("tool", ["stamp", "pay_back", "tell"])
@pytest.mark.long
async def test_a_tool_that_kills_three_workers_does_not_get_a_fourth(ward: Ward, tool: str) -> None:
    run = await ward.start()
    for _ in range(3):
        assert await ward.killed(run, f"tool:{tool}:before")
    async with ward.another(), ward.operator() as operator:
        await ward.ended(run, 60)
        await ward.require_nothing_held(operator)
        states = "select depth, state, stop_reason, error ->> 'code' as code from agent_runs where root_run_id = $1"
        found = [tuple(row) for row in await operator.fetch(f"{states} order by depth", run)]
    lost = ("failed", "failed", "worker_lost")
    # who asked an agent that failed is told so, and goes on
    assert found == ([(0, "completed", "done", None), (1, *lost)] if tool == "stamp" else [
        (0, *lost), (1, "completed", "done", None)])  # fmt: skip
