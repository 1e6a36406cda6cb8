"""Agents of a tenant's members, and their runs: one that waits for another, that one, and one amid a turn."""

import json
import uuid
from typing import Any

import asyncpg

from tests.isolation.executions import CALL, USAGE, Hands, Step, told

LIMITS = {"tokens": 500, "seconds": 86_400}
TURN = "select vanilla.record_turn($1, $2, $3, $4)"
MAKE = "select vanilla.make_call($1, $2)"

PUT_OUT = """
    with made as (
        insert into contract_calls
            (tenant_id, user_id, run_id, n, task, rule, state, deadline_at, created_at, closed_at)
            select tenant_id, user_id, id, 1, to_jsonb($3::text), 'lowest', 'done', '2199-01-01', now(), now()
            from agent_runs where tenant_id = $1 and id = $2 returning *)
    insert into contract_bids (tenant_id, call_id, user_id, agent_id, version, state, price_tokens, plan, run_id)
        select m.tenant_id, m.id, m.user_id, r.agent_id, r.version, 'done', 7, $3, r.id
        from made m join agent_runs r on r.tenant_id = m.tenant_id and r.parent_run_id = $4"""
"""A task that was put out, and done by whom another run asks something: over, so that nobody is awaited for it."""


def definition(word: str, **more: Any) -> dict[str, Any]:
    """In a pool of its own: nobody else's worker is given its steps."""
    fields = {"name": word, "description": word, "instructions": word, "model": "sandbox-small", "pool": "agents"}
    return fields | {"limits": LIMITS} | more


async def agents_worker(connection: asyncpg.Connection) -> uuid.UUID:
    made: uuid.UUID = await connection.fetchval("select vanilla.register_worker('of agents', '{agents}', 100)")
    await connection.execute("update worker_registry set heartbeat_at = '2199-01-01' where id = $1", made)
    return made


async def run_agents(
    connection: asyncpg.Connection, worker: uuid.UUID, tenant: str, members: list[str], word: str
) -> None:
    for place, member in enumerate(members):
        helper, own = f"{word}-helper-{place}", f"{word}-agent-{place}"
        save = "select save_agent($1, $2, $3, p_user_id => $4, p_tenant_id => $5)"
        await connection.fetchval(save, helper, json.dumps(definition(word)), True, member, tenant)
        for tools in ([], [{"tool": word}]):  # of the second version both runs are
            written = definition(word, tools=tools, delegates=[{"agent": helper}], handoffs=[{"agent": helper}])
            await connection.fetchval(save, own, json.dumps(written), False, member, tenant)
        await _run(connection, _Turns(connection, worker, word), own, helper, member, tenant)
    await connection.execute("update workflow_queue set deadline_at = '2199-01-01' where pool = 'agents'")
    await connection.execute("update workflow_timers set due_at = '2199-01-01' where due_at < '2199-01-01'"
                             " and tenant_id = $1 and kind = 'execution'", tenant)  # fmt: skip
    await connection.execute("delete from webhook_deliveries where tenant_id = $1 and attempts = 0", tenant)


class _Turns(Hands):
    """A worker whose turns are done by hand."""

    def lease(self, step: Step) -> Step:
        keys = ("tenant_id", "execution_id", "n", "item", "lease")
        return {key: step[key] for key in keys} | {"worker": str(self._worker)}

    async def begin(self, step: Step, ref: str) -> Step:
        given = json.dumps({"message": self._word})
        begin = "select vanilla.begin_run($1, $2, $3)"
        return dict(json.loads(await self._connection.fetchval(begin, json.dumps(self.lease(step)), ref, given)))

    async def hold(self, step: Step, run: Step) -> Step:
        """A model call of the run: what settles it."""
        of = json.dumps(self.lease(step) | {"run_id": run["run_id"]})
        admitted = await self._connection.fetchval(CALL, uuid.uuid4(), self._word, of)
        return USAGE | {"hold_id": json.loads(admitted)["hold_id"]}

    async def turn(self, step: Step, run: Step, *calls: tuple[str, Step]) -> None:
        settled = await self.hold(step, run)
        wanted = [{"id": self._word, "name": name, "arguments": given} for name, given in calls]
        answer = {"text": self._word, "calls": wanted}
        await self._connection.fetchval(
            TURN, json.dumps(self.lease(step)), 1, json.dumps([settled]), json.dumps(answer)
        )

    async def make(self, step: Step, n: int) -> None:
        """A call of a tool that the database itself has: the step n of the journal."""
        await self._connection.fetchval(MAKE, json.dumps(self.lease(step)), n)


async def _run(connection: asyncpg.Connection, hands: _Turns, own: str, helper: str, member: str, tenant: str) -> None:
    start = "select start_agent($1, $2, p_idempotency_key => $3, p_user_id => $4, p_tenant_id => $5) ->> 'execution_id'"
    word = hands._word
    given = json.dumps({"message": word})
    asks, turns = [
        await connection.fetchval(start, own, given, f"{word}-{kind}", member, tenant) for kind in ("asks", "turns")
    ]
    steps = {execution: step for (execution, _), step in (await hands.tick()).items()}
    run = await hands.begin(steps[turns], own)
    await hands.turn(steps[turns], run, (word, {"word": word}))
    await hands.hold(steps[turns], run)
    turning = run["run_id"]
    run = await hands.begin(steps[asks], own)
    asked = (f"delegate_to_{helper}", {"message": word})
    shared = ("state_write", {"key": word, "value": {"word": word}, "version": 0})
    made = ("artifact_save", {"name": word, "content": word})
    await hands.turn(steps[asks], run, asked, shared, made)
    for n in (3, 4):
        await hands.make(steps[asks], n)
    (child,) = (await hands.tick(told(steps[asks], "waiting", wait={"kind": "agents"}))).values()
    await hands.begin(child, helper)
    await connection.execute(PUT_OUT, tenant, turning, word, run["run_id"])
