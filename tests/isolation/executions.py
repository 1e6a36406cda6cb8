"""Executions of a tenant's members in every state that lasts, made through the functions of the runner."""

import json
import uuid
from typing import Any

import asyncpg

LONG_S = 100_000_000
"""Three years: nothing of it is due while the suite runs."""
NODES = ("ask", "hear", "nap", "draft", "judged", "judge", "each", "sub", "late", "busy", "idle", "asked", "meet")
"""Nodes of the workflow that waits for everything, numbered from 1."""
HELD = ("judge", "busy")
"""Those that a worker has at the end."""

CALL = "select vanilla.admit_call(null, null, null, 'sandbox-small', 10, 10, 10, 1, $1, false, '2 days', null, $2, $3)"
USAGE = {"status": "succeeded", "input": 5, "output": 5, "cached": 0, "reasoning": 0, "estimated": False}

Step = dict[str, Any]


def waits_for_everything(word: str) -> dict[str, Any]:
    """A workflow whose first nodes wait, each for something else, or are with a worker."""
    kinds = {"ask": "approval", "hear": "signal", "nap": "wait", "draft": "llm", "judged": "gate", "judge": "gate",
             "each": "map", "sub": "workflow", "busy": "llm"}  # fmt: skip
    more: dict[str, dict[str, Any]] = {
        "each": {"over": "[]", "max_items": 3},
        "judge": {"on_fail": "retry", "retry": {"node": "draft", "times": 1}},
        "idle": {"value": "steps.draft.output"},
        "meet": {"kind": "join", "mode": "any"},
        "late": {"retry": {"attempts": 3, "initial_ms": 1000, "max_ms": 60000}},
    }
    nodes = [
        {"id": name, "kind": kinds.get(name, "transform"), "timeout_s": LONG_S, "value": word} | more.get(name, {})
        for name in NODES
    ]
    after = {"draft": ("judged", "judge", "meet"), "ask": ("asked",)}
    connections = [
        {"from": one, "to": other} | ({"on": "approved"} if one == "ask" else {})
        for one, others in after.items()
        for other in others
    ]
    return {
        "name": word,
        "nodes": nodes,
        "connections": connections,
        "concurrency": {"key": word},
        "estimate_tokens": 300,
        "max_duration_s": LONG_S,
    }


class Hands:
    """A worker whose steps are done by hand."""

    def __init__(self, connection: asyncpg.Connection, worker: uuid.UUID, word: str):
        self._connection, self._worker, self._word = connection, worker, word

    async def tick(self, *done: Step, claim: bool = True) -> dict[tuple[str, str], Step]:
        """Tells outcomes; what it is given then, by execution and node."""
        tick = "select vanilla.tick_worker($1, $2::jsonb, $3)"
        answer = await self._connection.fetchval(tick, self._worker, json.dumps(done), 1000 if claim else 0)
        return {(step["execution_id"], step["node"]): step for step in json.loads(answer)["steps"]}

    async def call(self, step: Step, settled: bool) -> Step:
        """A model call of a step: what settles it."""
        key = {name: step[name] for name in ("tenant_id", "execution_id", "n", "item", "lease")}
        key["worker"] = str(self._worker)
        admitted = await self._connection.fetchval(CALL, uuid.uuid4(), self._word, json.dumps(key))
        return USAGE | {"hold_id": json.loads(admitted)["hold_id"]} if settled else {}


def told(step: Step, outcome: str, **fields: Any) -> Step:
    keys = ("lease", "tenant_id", "execution_id", "n", "item", "node")
    return {key: step[key] for key in keys} | {"outcome": outcome} | fields


async def run_workflows(
    connection: asyncpg.Connection, worker: uuid.UUID, tenant: str, members: list[str], word: str
) -> None:
    """Of each member: an execution that waits for everything, one that waits for its place, one that the first has
    started, one that succeeded and one that failed."""
    await connection.execute("select set_workflow_share($1, 5, 1000)", uuid.UUID(tenant))
    for place, member in enumerate(members):
        flows = []
        for kind, definition in (
            ("part", {"name": word, "nodes": [{"id": "one", "kind": "transform", "value": word}]}),
            ("run", waits_for_everything(word)),
        ):
            saved = "select save_workflow($1, $2, p_user_id => $3, p_tenant_id => $4) ->> 'id'"
            flow = await connection.fetchval(saved, f"{word}-{kind}-{place}", json.dumps(definition), member, tenant)
            await connection.fetchval("select publish_workflow($1)", flow)
            flows.append(flow)
        scheduled = "select set_workflow_schedule($1, $2, '0 2 * * *', 'UTC', $3, p_user_id => $4, p_tenant_id => $5)"
        await connection.fetchval(scheduled, flows[0], word, json.dumps({"word": word}), member, tenant)
        await _run(connection, Hands(connection, worker, word), *flows, f"{word}-part-{place}", word)
    # nothing is due, whoever ticks; and no server takes what webhooks were told meanwhile
    await connection.execute(
        "update workflow_timers set due_at = '2199-01-01' where tenant_id = $1 and kind = 'retry'", tenant
    )
    await connection.execute("update workflow_schedules set next_at = '2199-01-01' where tenant_id = $1", tenant)
    await connection.execute("delete from webhook_deliveries where tenant_id = $1 and attempts = 0", tenant)


async def _run(connection: asyncpg.Connection, hands: Hands, part: str, run: str, ref: str, word: str) -> None:
    start = "select start_workflow($1, $2, p_idempotency_key => $3) ->> 'execution_id'"
    value = json.dumps({"word": word})
    first, _second = [await connection.fetchval(start, run, value, f"{word}-{nr}") for nr in range(2)]
    done, failed = [await connection.fetchval(start, part, value, None) for _ in range(2)]
    await connection.fetchval("select signal_execution($1, 'early', $2)", first, json.dumps(word))
    tells = "select set_task_notification($1, $2, $3, $3, $4, 'x')"
    await connection.fetchval(tells, first, uuid.uuid4(), word, f"https://{word}.test")
    given = await hands.tick()
    outcomes = []
    for (execution, node), step in given.items():
        if node == "$start":
            outcomes.append(told(step, "go", key=word, limit=1))
        elif execution == done:
            outcomes.append(told(step, "succeeded", output=word))
        elif execution == failed:
            outcomes.append(told(step, "failed", error={"code": "tool_failed", "message": word}))
        else:
            outcomes.append(told(step, "handed_back"))  # of another member
    given = await hands.tick(*outcomes)
    of = {node: step for (execution, node), step in given.items() if execution == first}
    rest = [told(step, "handed_back") for (execution, _), step in given.items() if execution != first]
    asks = {"kind": "approval", "title": word, "prompt": word, "subject": {"text": word, "more": word},
            "edit": {"properties": {"text": {}}}, "approvers": ["role:user"], "quorum": 3, "deadline_s": LONG_S,
            "on_deadline": "escalate", "escalate_to": ["role:admin"]}  # fmt: skip
    waits = {
        "ask": asks,
        "hear": {"kind": "signal", "name": "word", "timeout_s": LONG_S},
        "nap": {"kind": "timer", "due_at": "2199-01-01T00:00:00Z"},
        "sub": {"kind": "execution", "ref": ref, "input": json.loads(value)},
    }
    await hands.call(of["busy"], settled=False)
    again = await hands.tick(
        *rest,
        *(told(of[node], "waiting", wait=wait, state={"word": word}) for node, wait in waits.items()),
        told(of["draft"], "succeeded", output=word, calls=[await hands.call(of["draft"], settled=True)]),
        told(of["each"], "items", items=[word, word], concurrency=1),
        told(
            of["late"], "failed", error={"code": "tool_failed", "message": word, "retryable": True}, retry_after_s=3600
        ),
        told(of["idle"], "handed_back"),
    )
    passed = {
        "passed": True,
        "score": 1,
        "threshold": 0.5,
        "feedback": word,
        "suggestions": [word],
        "metrics": {"word": word},
    }
    await hands.tick(
        *(
            told(step, "gate", **passed) if node == "judged" else told(step, "handed_back")
            for (execution, node), step in again.items()
            if (execution, node) != (first, "judge")
        ),
        claim=False,
    )


async def vote(connection: asyncpg.Connection, voters: dict[str, str], word: str) -> None:
    """Each member decides on the other's approval: `voters` are tokens by the user whose approval it is."""
    for owner, token in voters.items():
        approval = await connection.fetchval(
            "select id from workflow_approvals where user_id = $1 and status = 'open'", uuid.UUID(owner)
        )
        async with connection.transaction():
            await connection.fetchval("select set_config('vanilla.context', $1, true)", token)
            await connection.fetchval(
                "select decide_approval($1, 'approved', $2, $3)",
                approval,
                word,
                json.dumps({"text": word, "more": word}),
            )
