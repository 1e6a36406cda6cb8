"""The journal as the durability of pydantic-ai: a run that is broken off at every operation does each of them once."""

import ast
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent, durable_exec
from pydantic_ai.models.instrumented import InstrumentationSettings

from tests.orchestration.hands import DONE
from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says
from tests.orchestration.test_runs import approval_of, ended_flow, settled
from tests.orchestration.test_traces import spans
from vanilla_saas.orchestration.journal import Journal
from vanilla_saas.orchestration.pydantic_durability import JournalBackend
from vanilla_saas.workflows.execution.failures import Failure
from vanilla_saas.workflows.execution.steps import Step

__all__ = ["spans"]
LOOPS = BOTH_LOOPS[1:]
SOURCE = Path(__file__).parents[2] / "src" / "vanilla_saas" / "orchestration"
OFTEN = {"attempts": 100, "initial_ms": 1, "max_ms": 1, "on": ["timeout"]}


@dataclass
class Breaks:
    """Breaks pydantic-ai off before and after each operation of an agent, once each, in the middle of its turns."""

    slug: str
    asked: Counter[str] = field(default_factory=Counter)
    """Operations that came to their end, by name; what is given back of the journal too."""
    broken: Counter[str] = field(default_factory=Counter)

    async def execute(self, backend: JournalBackend, execute: Any, name: str, given: dict[str, Any]) -> object:
        steps = sum(step["status"] != "open" for step in backend.state.steps)
        self._once(f"before {name} {steps}")
        answer: object = await execute(backend, name=name, **given)
        self.asked[name] += 1
        self._once(f"after {name} {steps}")
        return answer

    def _once(self, where: str) -> None:
        self.broken[where] += 1
        if self.broken[where] == 1:
            raise Failure("timeout", f"Broken off {where}.")


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaks]:
    made, execute = Breaks(f"a{uuid.uuid4().hex[:10]}"), JournalBackend.execute

    async def broken(backend: JournalBackend, *, name: str, **given: Any) -> object:
        if backend.turns.node.ref != made.slug:
            return await execute(backend, name=name, **given)
        return await made.execute(backend, execute, name, given)

    monkeypatch.setattr(JournalBackend, "execute", broken)
    return made


async def test_what_is_in_the_journal_is_not_done_again_wherever_a_run_is_broken_off(
    desk: Studio, breaks: Breaks, spans: InMemorySpanExporter
) -> None:
    person = await desk.shop.person(balance=1_000_000)
    helper = await desk.save(agent(says("A poem.")))
    turns = (
        calls(("refund", {"amount": 1}), ("look_up", {"name": "Ada"}), ("refund", {"amount": 2})),
        calls((f"delegate_to_{helper}", {"message": "Write"}), ("tick", {})),
        calls(("refund", {"amount": 3}), ("breaks", {})),
        says("Done."),
    )
    tools = ["refund", "look_up", "tick", "breaks"]
    await desk.save(agent(*turns, tools=tools, delegates=[helper]), slug=breaks.slug)
    node = {"id": "a", "kind": "agent", "ref": breaks.slug, "input": "{'message': 'Go'}", "retry": OFTEN}
    flow = await ended_flow(desk, person, {"nodes": [node], "connections": []})
    assert flow["status"] == "succeeded", flow["error"]
    (run,) = await desk.shop.operator.fetch("select * from agent_runs where execution_id = $1", flow["id"])
    steps = await desk.steps(run["id"])
    refunds = [step for step in steps if step["name"] == "refund"]
    assert [DONE[f"{run['id']}:{step['n']}"] for step in refunds] == [["1"], ["2"], ["3"]]
    asked = "select count(*) from ai_executions where user_id = $1"
    assert await desk.shop.operator.fetchval(asked, person.identity.user_id) == run["turns"] + 1 == 5
    # what pydantic-ai calls its units: these names are those of every release
    call = f"{breaks.slug}@1__function_toolset__<agent>.call_tool"
    functions = [*tools, f"delegate_to_{helper}"]
    assert set(breaks.asked) == {f"{breaks.slug}@1__model.request"} | {f"{call}:{name}" for name in functions}
    assert len(breaks.broken) >= 2 * len(steps)
    names = Counter(span.name for span in spans.get_finished_spans())
    assert names["chat sandbox-small"] == 5
    assert [names[f"execute_tool {name}"] for name in tools] == [3, 1, 1, 1]
    await settled(desk, dict(run))


async def test_a_turn_that_is_given_back_has_no_second_span_of_pydantic_ai(desk: Studio) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    person = await desk.shop.person()
    refund = {"tool": "refund", "approval": {"approvers": ["role:admin"]}}
    wanted = calls(("look_up", {"name": "Ada"}), ("refund", {"amount": 3}))
    slug = await desk.save(agent(wanted, says("Done."), tools=["look_up", refund]))
    Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))
    try:
        run_id = await desk.start(person, slug)
        approval = await approval_of(desk, run_id)
        await desk.shop.ask(desk.shop.admin, "decide_approval", approval["id"], "approved")
        run = await desk.ended(run_id)
    finally:
        Agent.instrument_all(False)
    assert run["turns"] == 2
    names = Counter(span.name for span in exporter.get_finished_spans())
    assert (names["chat sandbox-small"], names["execute_tool look_up"]) == (2, 1)


TICKING = calls(("state_read", {"key": "plan"}), completion_tokens=300)
SCHEMA = {"type": "object", "required": ["n"]}
CASES: dict[str, tuple[dict[str, Any], int | None]] = {
    "calls": (
        agent(
            calls(("look_up", {"name": "Ada"}), ("breaks", {}), ("nothing", {}), reply="I look."),
            {"tool_calls": [{"id": "one", "name": "look_up", "arguments": {"name": name}} for name in "ab"]},
            {"tool_calls": [{"name": "look_up", "arguments": "no json"}]},
            says(""),
            tools=["look_up", "breaks"],
        ),
        None,
    ),
    "agents": (
        agent(
            calls(("transfer_to_nobody", {}), ("look_up", {"name": "Ada"})),
            calls(("delegate_to_helper", {"message": "Write"}), ("look_up", {"name": "Bob"})),
            calls(("look_up", {"name": "Cy"}), ("transfer_to_helper", {})),
            says("A story."),
            tools=["look_up"],
            handoffs=["helper"],
            delegates=["helper"],
        ),
        None,
    ),
    "schema": (agent(says("no json"), says("{}"), calls(("look_up", {"name": "Ada"})), output=SCHEMA), None),
    "budget": (agent(TICKING, limits={"turns": 1000}, tools=["state_read"], temperature=0.5), 6000),
}


@pytest.mark.parametrize("case", CASES)
async def test_both_loops_ask_a_model_the_same(desk: Studio, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, asked = Journal.chat, []

    async def recorded(journal: Journal, step: Step, run_id: str, body: Any, *given: Any, **more: Any) -> Any:
        asked.append(orjson.dumps(body, option=orjson.OPT_SORT_KEYS))
        return await chat(journal, step, run_id, body, *given, **more)

    monkeypatch.setattr(Journal, "chat", recorded)
    definition, tokens = CASES[case]
    bodies, ends = [], []
    for loop in BOTH_LOOPS:
        asked.clear()
        await desk.save(agent(says("A poem."), loop=loop), slug="helper")
        slug = await desk.save({**definition, "loop": loop})
        run = await desk.ended(await desk.start(await desk.shop.person(), slug, p_tokens=tokens))
        bodies.append(list(asked))
        ends.append((run["state"], run["stop_reason"], run["turns"]))
    assert len(bodies[0]) > 2
    assert bodies[0] == bodies[1]
    assert ends[0] == ends[1]


def test_of_the_durability_of_pydantic_ai_only_public_names_are_used() -> None:
    found = set()
    for file in SOURCE.glob("pydantic_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pydantic_ai"):
                assert not any(part.startswith("_") for part in node.module.split(".")), node.module
                found |= {name.name for name in node.names if node.module == "pydantic_ai.durable_exec"}
    assert "BaseDurabilityCapability" in found
    assert found <= set(durable_exec.__all__)


async def test_what_the_journal_has_no_place_for_is_not_done() -> None:
    async def body() -> None:
        raise AssertionError("it was done")

    given: dict[str, Any] = {"name": "events", "body": body, "cache_key": (), "config": None}
    with pytest.raises(TypeError, match="no place for: events"):
        await JournalBackend.execute(cast(Any, None), operation_id=durable_exec.EventStreamHandlerId(), **given)


def test_a_worker_imports_it_when_an_agent_asks_for_it() -> None:
    program = "import sys, vanilla_saas.workflows.worker_cli, vanilla_saas.orchestration.loop; "
    program += "print('pydantic_ai' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
