"""The trace of a tree of runs: one for all of it, a span for each step, and no words of anybody."""

from collections import Counter

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.orchestration.mortals import JOURNAL, Ward
from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says
from tests.orchestration.test_runs import approval_of
from vanilla_saas import tracing

CANARY = "zebra-canary"
LOOPS = BOTH_LOOPS


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter


async def test_a_tree_is_one_trace_with_a_span_for_each_step(desk: Studio, spans: InMemorySpanExporter) -> None:
    person = await desk.shop.person(balance=1_000_000)
    helper = await desk.save(agent(calls(("look_up", {"name": CANARY})), says(CANARY), tools=["look_up"]))
    refund = {"tool": "refund", "approval": {"approvers": ["role:admin"]}}
    turns = (calls((f"delegate_to_{helper}", {"message": CANARY})), calls(("refund", {"amount": 3})), says(CANARY))
    boss = await desk.save(agent(*turns, tools=[refund], delegates=[helper]))
    run_id = await desk.start(person, boss, CANARY)
    approval = await approval_of(desk, run_id)
    await desk.shop.ask(desk.shop.admin, "decide_approval", approval["id"], "approved")
    await desk.ended(run_id)
    tree = [span for span in spans.get_finished_spans() if format(span.context.trace_id, "032x") == run_id.hex]
    names = Counter(span.name for span in tree)
    # the run waited twice: for the other agent, and for people. Its steps stand once all the same.
    assert names["chat sandbox-small"] == 5
    assert (names["execute_tool look_up"], names["execute_tool refund"]) == (1, 1)
    assert (names[f"invoke_agent {boss}"], names[f"invoke_agent {helper}"]) == (3, 1)
    begun = {span.context.span_id for span in tree if span.name.startswith("invoke_agent")}
    steps = [span for span in tree if span.name.startswith(("chat", "execute_tool"))]
    assert {span.parent.span_id for span in steps} <= begun
    said = "".join(span.to_json() for span in spans.get_finished_spans())
    assert CANARY not in said
    assert person.key not in said


async def test_what_a_worker_did_before_it_was_killed_has_no_second_span(
    ward: Ward, spans: InMemorySpanExporter
) -> None:
    run = await ward.start()
    assert await ward.killed(run, "record_turn:after:3")
    named = "select case s.kind when 'model' then 'chat sandbox-small' else 'execute_tool ' || s.name end as name"
    done = f"{named} from agent_run_steps s join agent_runs r on r.id = s.run_id where r.root_run_id = $1 and s.status = 'done' and s.kind in ('model', 'tool')"
    async with ward.operator() as operator:
        before = Counter(row["name"] for row in await operator.fetch(done, run))
    assert before["chat sandbox-small"] == 3
    async with ward.another():
        await ward.ended(run, 60)
    await ward.require_done_once(run)
    tree = [span for span in spans.get_finished_spans() if format(span.context.trace_id, "032x") == run.hex]
    made = Counter(span.name for span in tree if span.name.startswith(("chat", "execute_tool")))
    names = (
        "chat sandbox-small" if kind == "model" else f"execute_tool {name}"
        for _, _, kind, name in JOURNAL
        if kind in ("model", "tool")
    )
    assert made == Counter(names) - before
