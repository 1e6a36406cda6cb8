"""Random agents end as an oracle of the rules says: the same journal and stop, and who has the word at the end."""

import itertools
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import assume, event, given, note
from hypothesis import strategies as st

from tests.conftest import LONG, Cluster, Person
from tests.orchestration.oracle import FITS, TOOLS, Oracle, Player, TooLong, Turn, Wanted
from tests.orchestration.recorder import Recorder, recorder
from tests.orchestration.studio import Studio, studio
from tests.workflows.proof.support import ours
from vanilla_saas.checks import BOOKS, run_checks
from vanilla_saas.orchestration.definition import AgentDefinition

EXAMPLES = 1000 if LONG else 30
MOST_CALLS = 40
BALANCE = 10**13
RICH = 10**12
"""A budget of which a child's child's child still has more than it needs."""
NAMES = ("ada", "bob", "cyd")


@st.composite
def casts(draw: st.DrawFn) -> dict[str, Player]:
    """Two or three agents. Where several are asked at once no limit is the tree's: who comes first would decide."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    wide = draw(st.booleans())
    some = st.sampled_from(names)
    tool = st.builds(Wanted, st.sampled_from(TOOLS), st.none(), st.sampled_from(["x", "y"]))
    delegate = st.builds(Wanted, st.just("delegate"), some, st.sampled_from(["do", "see"]))
    handoff = st.builds(Wanted, st.just("handoff"), some)
    said = st.builds(Turn, st.sampled_from(["Good.", FITS, '{"n": "x"}']))
    failing = st.builds(Turn, status=st.sampled_from([400, 400, 400, 500]))

    @st.composite
    def asking(draw: st.DrawFn) -> Turn:
        calls = draw(st.lists(st.one_of(tool, tool, delegate, handoff), min_size=1, max_size=3))
        asked = [call for call in calls if call.name == "delegate"]
        return Turn("", tuple(call for call in calls if wide or call not in asked[1:]))

    turn = st.one_of(asking(), asking(), asking(), said, said, *([failing] if draw(st.integers(0, 4)) == 0 else []))
    edges = st.dictionaries(some, st.booleans(), max_size=len(names))

    def limits() -> dict[str, st.SearchStrategy[int]]:
        found = {"turns": st.integers(1, 6), "depth": st.integers(0, 4), "repeats": st.integers(1, 4)}
        if not wide:
            found |= {"requests": st.integers(1, 9), "tool_calls": st.integers(0, 5), "children": st.integers(0, 4)}
        return found

    roomy = {"children": st.just(1000), "tool_calls": st.just(1000)}
    return {
        name: Player(
            name,
            tuple(draw(st.lists(turn, min_size=1, max_size=4))),
            draw(st.frozensets(st.sampled_from(TOOLS))),
            draw(edges),
            draw(edges),
            draw(st.fixed_dictionaries(roomy if wide else {}, optional=limits())),
            draw(st.sampled_from([False, False, True])),
        )
        for name in names
    }


class Stage:
    """A studio with one rich person."""

    def __init__(self, desk: Studio, sandbox: Recorder, person: Person) -> None:
        self.desk, self.sandbox, self.person = desk, sandbox, person
        self.numbers = itertools.count()

    async def run(self, cast: dict[str, Player], tokens: int) -> uuid.UUID:
        """The first of the cast, to its end."""
        mark = next(self.numbers)
        self.slugs = {name: f"{name}-{mark}" for name in cast}
        # who is named must be there: they are saved twice, first without others
        for others in (False, True):
            for player in cast.values():
                made = player.definition(self.slugs)
                document = AgentDefinition.model_validate(made | ({} if others else {"handoffs": [], "delegates": []}))
                save = ("save_agent", self.slugs[player.name], document.document())
                await self.desk.shop.ask(self.desk.shop.admin, *save, p_shared=True)
        self.sandbox.asked.clear()
        run = await self.desk.start(self.person, self.slugs[next(iter(cast))], p_tokens=tokens)
        await self.desk.ended(run, 60)
        return run

    async def seen(self, run_id: uuid.UUID) -> dict[str, Any]:
        """A run as `Played.seen` gives it."""
        operator = self.desk.shop.operator
        names = {slug: name for name, slug in self.slugs.items()}
        run = await operator.fetchrow(
            "select r.*, a.slug, s.slug as speaker from agent_runs r join agents a on a.id = r.agent_id"
            " join agents s on s.id = r.speaker_id where r.id = $1",
            run_id,
        )
        below = await operator.fetch(
            "select s.child_run_id from agent_run_steps s where s.run_id = $1 and s.child_run_id is not null"
            " order by s.n",
            run_id,
        )
        return {
            "agent": names[run["slug"]],
            "speaker": names[run["speaker"]],
            "end": (run["state"], run["stop_reason"]),
            "turns": run["turns"],
            "tool_calls": run["tool_calls"],
            "text": run["output"] and run["output"]["text"],
            "steps": [(s["kind"], self.named(s["name"]), s["status"]) for s in await self.desk.steps(run_id)],
            "below": [await self.seen(row["child_run_id"]) for row in below],
        }

    def named(self, name: str | None) -> tuple[str, str | None] | None:
        """`(name, to whom)` of a call, as the oracle has it."""
        if name is None:
            return None
        for kind, prefix in (("handoff", "transfer_to_"), ("delegate", "delegate_to_")):
            for who, slug in self.slugs.items():
                if name == prefix + slug:
                    return kind, who
        return name, None

    async def require_exact(self, run_id: uuid.UUID, before: int) -> None:
        operator = self.desk.shop.operator
        charged = await operator.fetchval("select sum(charged_tokens) from agent_runs where root_run_id = $1", run_id)
        wallet = await self.desk.shop.room.people.wallet(self.person)
        assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (before - charged, 0)
        open_ = "select count(*) from resource_allocations where state = 'open' or spent_tokens > budget_tokens"
        assert await operator.fetchval(open_) == 0


@pytest.fixture(scope="module")
async def stage(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with (
        recorder() as sandbox,
        studio(cluster, tmp_path_factory.mktemp("home"), sandbox_url=sandbox.url) as desk,
    ):
        yield Stage(desk, sandbox, await desk.shop.person(balance=BALANCE))
        assert [str(one) for one in await run_checks(desk.shop.operator, BOOKS)] == []


async def available(stage: Stage) -> int:
    return int((await stage.desk.shop.room.people.wallet(stage.person))["available_tokens"])


@ours(EXAMPLES)
@given(cast=casts())
async def test_a_run_ends_as_the_oracle_says(stage: Stage, cast: dict[str, Player]) -> None:
    note(repr(cast))
    oracle = Oracle(cast, MOST_CALLS)
    try:
        played = oracle.play(next(iter(cast)))
    except TooLong:
        assume(False)
    event(f"{played.state} {played.stop}")
    before = await available(stage)
    run = await stage.run(cast, RICH)
    assert await stage.seen(run) == played.seen()
    assert stage.sandbox.asked.total() == oracle.asked
    await stage.require_exact(run, before)


@ours(EXAMPLES // 3)
@given(cast=casts(), tokens=st.integers(1, 6000))
async def test_a_poor_run_ends_within_its_budget(stage: Stage, cast: dict[str, Player], tokens: int) -> None:
    try:
        Oracle(cast, MOST_CALLS).play(next(iter(cast)))
    except TooLong:
        assume(False)
    before = await available(stage)
    run = await stage.run(cast, tokens)
    await stage.require_exact(run, before)
    assert before - await available(stage) <= tokens
