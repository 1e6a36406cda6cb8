"""Research by twelve agents side by side, of which eight are enough: a judge reads, the others are cancelled."""

import asyncio
import json
import uuid
from collections import Counter
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.orchestration.studio import Studio, agent, calls, says
from tests.orchestration.test_traces import spans
from tests.processes import eventually
from vanilla_saas.checks import BOOKS, run_checks

__all__ = ["spans"]

WORKERS, ENOUGH = 12, 8
BUDGET = 5_000
SLOW_MS = 60_000


async def research(desk: Studio, score: float) -> dict[str, Any]:
    """A flow of twelve agents, of which four look something up and then think for a minute, and a judge's mark."""
    nodes: list[dict[str, Any]] = []
    for n in range(WORKERS):
        turns = [
            calls(("look_up", {"name": f"Part {n}"}), ("artifact_save", {"name": "part", "content": f"Part {n}."})),
            says(f"Part {n}.", latency_ms=SLOW_MS * (n < WORKERS - ENOUGH)),
        ]
        slug = await desk.save(agent(*turns, tools=["look_up", "artifact_save"], limits={"tokens": BUDGET}))
        nodes.append({"id": f"part_{n}", "kind": "agent", "ref": slug, "input": "{'message': input.topic}"})
    mark = json.dumps({"score": score, "feedback": "", "suggestions": []})
    judge = "sandbox: " + json.dumps({"reply": mark})
    nodes += [
        {"id": "parts", "kind": "join", "mode": "count", "count": ENOUGH},
        {"id": "text", "kind": "transform", "value": "steps.parts.output.map(id, steps.parts.output[id].text)"},
        {
            "id": "judge",
            "kind": "gate",
            "check": "judge",
            "model": "sandbox-small",
            "prompt": "{% raw %}" + judge + "{% endraw %}",
            "of": "steps.text.output",
            "on_fail": "stop",
        },
    ]
    connections = [{"from": f"part_{n}", "to": "parts"} for n in range(WORKERS)]
    connections += [{"from": "parts", "to": "text"}, {"from": "text", "to": "judge"}]
    return {"nodes": nodes, "connections": connections, "output": "steps.text.output"}


async def ended(desk: Studio, execution: uuid.UUID) -> dict[str, Any]:
    async with asyncio.timeout(40):
        while (found := await desk.shop.room.execution(execution))["finished_at"] is None:
            await asyncio.sleep(0.05)
    return found


async def require_traced(desk: Studio, spans: InMemorySpanExporter, run_id: uuid.UUID, *, cut_off: bool) -> None:
    """Every step that stands in the journal has one span in the run's trace, below one of the run."""

    async def told() -> list[ReadableSpan]:
        found = [span for span in spans.get_finished_spans() if format(span.context.trace_id, "032x") == run_id.hex]
        return found if any(span.name.startswith("invoke_agent") for span in found) else []

    tree = await eventually(told)  # of one that is cancelled when its worker has heard of it
    made = [span for span in tree if span.name.startswith(("chat", "execute_tool"))]
    names = Counter(span.name for span in made)
    begun = {span.context.span_id for span in tree if span.name.startswith("invoke_agent")}
    assert {span.parent.span_id for span in made} <= begun
    done = [step for step in await desk.steps(run_id) if step["status"] == "done"]
    expected = Counter("chat sandbox-small" if s["kind"] == "model" else f"execute_tool {s['name']}" for s in done)
    if cut_off:  # it was asking the model
        names["chat sandbox-small"] = min(names["chat sandbox-small"], expected["chat sandbox-small"])
    assert names == expected


@pytest.mark.parametrize(("score", "status"), [(1, "succeeded"), (0.25, "failed")])
async def test_eight_of_twelve_are_read_and_the_others_give_their_budgets_back(
    desk: Studio, spans: InMemorySpanExporter, score: float, status: str
) -> None:
    balance = 200_000
    person = await desk.shop.person(balance=balance)
    flow = await desk.shop.flow(await research(desk, score), person)
    started = await desk.shop.ask(person, "start_workflow", flow, {"topic": "Wells"})
    execution = uuid.UUID(started["execution_id"])
    found = await ended(desk, execution)
    assert found["status"] == status, found
    if status == "succeeded":
        assert sorted(found["output"]) == sorted(f"Part {n}." for n in range(WORKERS - ENOUGH, WORKERS))
        # what they put together is what each of the eight has kept
        kept = "select a.content from run_artifacts a join agent_runs r on r.id = a.run_id where r.execution_id = $1"
        parts = await desk.shop.operator.fetch(f"{kept} and r.state = 'completed'", execution)
        assert sorted(row["content"] for row in parts) == sorted(found["output"])
    runs = await desk.shop.operator.fetch(
        "select r.id, r.state, r.stop_reason, r.charged_tokens, a.state as budget, a.spent_tokens, a.held_tokens"
        " from agent_runs r join resource_allocations a on a.id = r.allocation_id where r.execution_id = $1",
        execution,
    )
    ways = Counter((run["state"], run["stop_reason"]) for run in runs)
    assert ways == {("completed", "done"): ENOUGH, ("canceled", "canceled"): WORKERS - ENOUGH}
    assert {(run["budget"], run["held_tokens"]) for run in runs} == {("closed", 0)}
    for run in runs:
        await require_traced(desk, spans, run["id"], cut_off=run["state"] == "canceled")
    # what they had read before they were cancelled is paid
    assert all(run["spent_tokens"] == run["charged_tokens"] > 0 for run in runs)
    wallet = await desk.shop.room.people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (balance - found["charged_tokens"], 0)
    assert found["charged_tokens"] > sum(run["charged_tokens"] for run in runs)  # the judge too
    assert [str(one) for one in await run_checks(desk.shop.operator, BOOKS)] == []
