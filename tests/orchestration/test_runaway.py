"""Agents that would never stop, on a budget of 50,000 tokens: each stops for its reason before another call is made."""

import uuid
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.conftest import Cluster
from tests.orchestration.recorder import Recorder, recorder
from tests.orchestration.studio import Studio, agent, calls, says, studio
from vanilla_saas.checks import BOOKS, run_checks

BUDGET = 50_000
Ends = Counter[tuple[int, str, str]]
"""How many runs of a tree ended at which depth, in which state, for which reason."""


class Runaway:
    """A studio whose model calls are counted."""

    def __init__(self, desk: Studio, sandbox: Recorder) -> None:
        self.desk, self.sandbox = desk, sandbox

    async def agents(self, again: bool = False) -> dict[str, str]:
        """Slugs by what the agent does: it asks the other of two, ticks, or asks many."""
        mark = uuid.uuid4().hex[:8]
        a, b, ticks = f"a-{mark}", f"b-{mark}", f"ticks-{mark}"
        save = self.desk.save
        await save(agent(says("")), b)
        for slug, other in ((a, b), (b, a)):
            turn = calls((f"delegate_to_{other}", {"message": "You do it."}))
            await save(agent(turn, delegates=[{"agent": other, "again": again}]), slug)
        endless = calls(("tick", {}), reply="So far I counted.", completion_tokens=700)
        limits = {"turns": 1000, "tool_calls": 1000}
        await save(agent(endless, tools=["tick"], limits=limits), ticks)
        ask = f"delegate_to_{ticks}"
        some = calls(*((ask, {"message": f"Part {n}"}) for n in range(6)))
        many = calls(*((ask, {"message": f"Part {n}"}) for n in range(500)))
        return {
            "each other": a,
            "ticks": ticks,
            "six": await save(agent(some, says("All six."), delegates=[ticks])),
            "many": await save(agent(many, delegates=[ticks])),
        }

    async def chain(self, length: int) -> str:
        """The first of so many agents, of which each asks the next and tells what came of it."""
        mark = uuid.uuid4().hex[:8]
        names = [f"n{n}-{mark}" for n in range(length)]
        await self.desk.save(agent(says("The end.")), names[-1])
        for name, below in zip(names[-2::-1], names[:0:-1], strict=True):
            turns = (calls((f"delegate_to_{below}", {"message": "Go on."})), says("So far it went."))
            await self.desk.save(agent(*turns, delegates=[below]), name)
        return names[0]

    async def require_exact(self, roots: list[uuid.UUID], balance: int) -> None:
        """The wallet lacks what the models cost, nothing is held, no node spent more than it had."""
        operator = self.desk.shop.operator
        user = await operator.fetchval("select user_id from agent_runs where id = $1", roots[0])
        nodes = await operator.fetch(
            "select a.*, r.charged_tokens from agent_runs r join resource_allocations a on a.id = r.allocation_id"
            " where r.root_run_id = any ($1)",
            roots,
        )
        assert {(node["state"], node["held_tokens"], node["carved_tokens"]) for node in nodes} == {("closed", 0, 0)}
        assert all(node["spent_tokens"] + node["overrun_tokens"] <= node["budget_tokens"] for node in nodes)
        spent = sum(node["spent_tokens"] for node in nodes if node["parent_id"] is None)
        assert spent == sum(node["charged_tokens"] for node in nodes)
        columns = "available_tokens, reserved_tokens, borrowed_tokens"
        wallet = await operator.fetchrow(f"select {columns} from user_token_wallets where user_id = $1", user)
        assert tuple(wallet) == (balance - spent, 0, 0)
        turns = "select count(*) from agent_run_steps s join agent_runs r on r.id = s.run_id"
        kept = await operator.fetchval(f"{turns} where s.kind = 'model' and r.root_run_id = any ($1)", roots)
        assert self.sandbox.asked.total() == kept  # none whose answer nobody read
        assert [str(finding) for finding in await run_checks(operator, BOOKS)] == []

    async def ends(self, root: uuid.UUID) -> Ends:
        rows = await self.desk.shop.operator.fetch(
            "select depth, state, stop_reason from agent_runs where root_run_id = $1", root
        )
        return Counter(tuple(row) for row in rows)


@pytest.fixture(scope="module")
async def runaway(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runaway]:
    async with (
        recorder() as sandbox,
        studio(cluster, tmp_path_factory.mktemp("home"), sandbox_url=sandbox.url) as desk,
    ):
        yield Runaway(desk, sandbox)


RAN_OUT = ("completed", "budget_exhausted")
CASES: list[tuple[str, bool, dict[tuple[int, str, str], int]]] = [
    # whoever is on the way to oneself is not asked; the third time that this is the answer is not waited for
    ("each other", False, {(0, "failed", "loop_detected"): 1, (1, "failed", "cycle_refused"): 2}),
    # with leave to ask again the depth ends it, and then that a tree has twenty children
    ("each other", True, {}),
    ("ticks", False, {(0, *RAN_OUT): 1}),
    ("six", False, {(0, "completed", "done"): 1, (1, *RAN_OUT): 6}),
    ("many", False, {(0, "failed", "max_children"): 1}),
]


@pytest.mark.parametrize(("who", "again", "expected"), CASES)
async def test_what_would_never_stop_stops_for_its_reason(
    runaway: Runaway, who: str, again: bool, expected: dict[tuple[int, str, str], int]
) -> None:
    desk = runaway.desk
    person = await desk.shop.person(balance=BUDGET + 1)
    slugs = await runaway.agents(again)
    runaway.sandbox.asked.clear()
    root = await desk.start(person, slugs[who], p_tokens=BUDGET)
    run = await desk.ended(root, 60)
    await runaway.require_exact([root], BUDGET + 1)
    ends = await runaway.ends(root)
    if expected:
        assert ends == expected
    else:
        assert ends.total() == 21, ends
        assert (run["state"], run["stop_reason"]) == ("failed", "max_children")
        assert {stop for _, _, stop in ends} == {"max_depth", "loop_detected", "max_children"}, ends
    if run["stop_reason"] == "budget_exhausted":
        assert run["output"]["text"] == "So far I counted."


CHAIN = 51
"""Agents of which each asks the next: the last would be fifty deep."""
# who begins, how the tree ends, how many calls of models there are, and how many tools were called
EXACT: list[tuple[str, dict[tuple[int, str, str], int], int, int]] = [
    # three turns of the one, of which the third asks what was answered twice, and one of each whom it asked
    ("each other", {(0, "failed", "loop_detected"): 1, (1, "failed", "cycle_refused"): 2}, 5, 0),
    ("same call", {(0, "failed", "loop_detected"): 1}, 3, 2),
    # the fourth below the first may ask nobody; each above is told so and answers
    ("chain", {(n, "completed", "done"): 1 for n in range(4)} | {(4, "failed", "max_depth"): 1}, 9, 0),
    ("many", {(0, "failed", "max_children"): 1}, 1, 0),
]


@pytest.mark.parametrize(("who", "expected", "asked", "tools"), EXACT)
async def test_it_stops_before_the_next_call_and_within_its_budget(
    runaway: Runaway, who: str, expected: dict[tuple[int, str, str], int], asked: int, tools: int
) -> None:
    desk, sandbox = runaway.desk, runaway.sandbox
    person = await desk.shop.person(balance=2 * BUDGET)
    slugs = await runaway.agents()
    slugs["same call"] = await desk.save(agent(calls(("look_up", {"name": "Ada"})), tools=["look_up"]))
    slugs["chain"] = await runaway.chain(CHAIN)
    after = await desk.save(agent(says("I am another.")))
    sandbox.asked.clear()
    root = await desk.start(person, slugs[who], p_tokens=BUDGET)
    run = await desk.ended(root, 60)
    assert (await runaway.ends(root), sandbox.asked.total()) == (expected, asked)
    made = "select count(*) from agent_run_steps s join agent_runs r on r.id = s.run_id"
    tried = f"{made} where s.kind = 'tool' and s.status = 'done' and r.root_run_id = $1"
    assert await desk.shop.operator.fetchval(tried, root) == tools
    assert 0 < await desk.charged(root) <= BUDGET
    assert run["finished_at"] is not None
    # whoever works goes on to what comes later, and asks nothing more for this one
    later = await desk.start(person, after, p_tokens=BUDGET)
    await desk.ended(later)
    assert sandbox.asked.total() == asked + 1
    await runaway.require_exact([root, later], 2 * BUDGET)


async def test_three_at_once_for_one_wallet_stop_each_for_its_reason(runaway: Runaway) -> None:
    desk = runaway.desk
    person = await desk.shop.person(balance=3 * BUDGET)
    plain, again = await runaway.agents(), await runaway.agents(again=True)
    runaway.sandbox.asked.clear()
    wanted = [again["each other"], plain["ticks"], plain["six"]]
    roots = [await desk.start(person, slug, p_tokens=BUDGET) for slug in wanted]
    assert [(await desk.ended(root, 90))["stop_reason"] for root in roots] == [
        "max_children",
        "budget_exhausted",
        "done",
    ]
    await runaway.require_exact(roots, 3 * BUDGET)
