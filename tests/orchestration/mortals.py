"""Workers in processes of their own that are killed in the middle of a run, and what must be true when it has ended."""

import asyncio
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster, People, Person, as_person, serve, settings_for
from tests.orchestration.recorder import Recorder
from tests.orchestration.studio import agent, calls, says
from tests.processes import Running, eventually, over, reached
from tests.workflows.proof.invariants import require_invariants
from vanilla_saas.app import create_app
from vanilla_saas.checks import BOOKS, run_checks
from vanilla_saas.database.exit_at import EXIT_CODE
from vanilla_saas.orchestration.definition import AgentDefinition

ROOT = Path(__file__).parents[2]
TOOLS = "tests.orchestration.effects"
ASKED = {"tool": "pay_back", "approval": {"approvers": ["role:admin"]}}
# turns are counted over the whole conversation, whoever has the word
AGENTS: dict[str, dict[str, Any]] = {
    "auditor": agent(calls(("stamp", {"note": "fair"})), says("It is fair."), tools=["stamp"]),
    "billing": agent(
        says(""),
        says(""),
        calls(("delegate_to_auditor", {"message": "Is 40 fair?"})),
        calls(("pay_back", {"amount": 40})),
        calls(("tell", {"text": "40 are on their way"})),
        says("You have your 40 back."),
        tools=[ASKED, "tell"],
        delegates=["auditor"],
    ),
    "triage": agent(
        calls(("find_order", {"number": 7})),
        calls(("transfer_to_billing", {})),
        tools=["find_order"],
        handoffs=["billing"],
    ),
}
"""A support desk: triage looks and hands over, billing has its decision audited, asks people, pays and tells."""
JOURNAL = [
    (0, "triage", "model", None),
    (0, "triage", "tool", "find_order"),
    (0, "triage", "model", None),
    (0, "triage", "handoff", "transfer_to_billing"),
    (0, "billing", "model", None),
    (0, "billing", "delegate", "delegate_to_auditor"),
    (0, "billing", "model", None),
    (0, "billing", "tool", "pay_back"),
    (0, "billing", "model", None),
    (0, "billing", "tool", "tell"),
    (0, "billing", "model", None),
    (1, "auditor", "model", None),
    (1, "auditor", "tool", "stamp"),
    (1, "auditor", "model", None),
]
MODEL_STEPS = sum(kind == "model" for _, _, kind, _ in JOURNAL)
EFFECTS = {"stamp fair", "pay_back 40", "tell 40 are on their way"}


@dataclass
class Ward:
    """A database with the support desk, whose workers die."""

    cluster: Cluster
    database: str
    home: Path
    sandbox: Recorder
    loop: str
    people: list[Person] = field(default_factory=list)
    bodies: set[str] = field(default_factory=set)
    charged: int = 0
    """What one run asks its models and costs when nothing happens to it."""

    @property
    def effects(self) -> Path:
        return self.home / "effects"

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await reached(dsn=self.cluster.url(database=self.database))
        try:
            yield connection
        finally:
            connection.terminate()

    async def ask(self, who: Person, statement: str, *arguments: Any) -> Any:
        async with self.operator() as operator, as_person(operator, who):
            return await operator.fetchval(statement, *arguments)

    async def prepare(self) -> None:
        """The people and agents, and a run that nothing happens to."""
        async with self.operator() as operator:
            people = People(operator)
            self.people = [await people.user(balance=10_000_000), await people.user("admin")]
        for slug, definition in AGENTS.items():
            document = AgentDefinition.model_validate({"loop": self.loop, **definition}).document()
            await self.ask(self.people[1], "select save_agent($1, $2, p_shared => true)", slug, document)
        run = await self.start()
        async with self.another():
            await self.ended(run, 60)
        await self.require_done_once(run, 0)
        self.bodies = set(self.sandbox.asked)

    async def start(self) -> uuid.UUID:
        self.sandbox.asked.clear()
        self.effects.unlink(missing_ok=True)
        start = "select (start_agent('triage', '{\"message\": \"I want my money back.\"}') ->> 'run_id')::uuid"
        found: uuid.UUID = await self.ask(self.people[0], start)
        return found

    def worker(self, **environment: str) -> Running:
        more = {"VANILLA_SAAS_SANDBOX_URL": self.sandbox.url, "VANILLA_SAAS_WORKER_TOOLS": f'["{TOOLS}"]'}
        more |= {"PYTHONPATH": str(ROOT), "EFFECTS": str(self.effects)} | environment
        return over(self.cluster, self.database, self.home, **more).start("worker", "--name", "mortal")

    @asynccontextmanager
    async def another(self) -> AsyncIterator[None]:
        """A worker that lives, in this process, beside an API."""
        more = {"run_worker": True, "worker_tools": [TOOLS], "sandbox_url": self.sandbox.url}
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("EFFECTS", str(self.effects))
            async with serve(create_app(settings_for(self.cluster, self.database, self.home, **more))):
                yield

    async def killed(self, run: uuid.UUID, death: str) -> bool:
        """A worker that works on the run until it dies as told; False when the run ended before.

        `<function>:<before|after>:<nth>` at a statement, `call:<nth>` in a model call, `tool:<name>:<before|after>` in
        a tool's.
        """
        kind, _, rest = death.partition(":")
        environment: dict[str, str] = {}
        if kind == "tool":
            environment["DIE_AT"] = rest
        elif kind != "call":
            environment["VANILLA_SAAS_DEBUG_EXIT_AT"] = f"{death}:stop"
        had = self.sandbox.asked.total()
        running = self.worker(**environment)
        if kind == "call":
            self.sandbox.at_call = lambda n: _kill_at(running, n - had, int(rest))
        try:
            async with asyncio.TaskGroup() as group:
                answering = group.create_task(self.answer(run))
                dead = await eventually(lambda: self._dead(running, run), 90, lambda: running.err)
                answering.cancel()
            return bool(dead == "dead")
        finally:
            self.sandbox.at_call = None
            if running.process.poll() is None:
                running.send(signal.SIGKILL)
            running.process.wait()
            await running.end()
            async with self.operator() as operator:
                # ten seconds without a heartbeat have passed
                await operator.execute(
                    "update worker_registry set heartbeat_at = heartbeat_at - interval '10 s' where name = 'mortal'"
                )

    async def _dead(self, running: Running, run: uuid.UUID) -> str | None:
        if (code := running.process.poll()) is not None:
            assert code in (-signal.SIGKILL, EXIT_CODE), running.err
            return "dead"
        if Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            running.send(signal.SIGKILL)
            return None
        async with self.operator() as operator:
            ended = "select finished_at < clock_timestamp() - interval '1 s' from agent_runs where id = $1"
            return "ended" if await operator.fetchval(ended, run) else None

    async def answer(self, run: uuid.UUID) -> None:
        """Approves what the run asks, until it is cancelled."""
        asked = (
            "select a.id from workflow_approvals a join agent_runs r on r.execution_id = a.execution_id"
            " where a.status = 'open' and r.id = $1"
        )
        with suppress(asyncio.CancelledError):
            while True:
                with suppress(asyncpg.PostgresError, OSError):
                    async with self.operator() as operator:
                        found = await operator.fetchval(asked, run)
                    if found is not None:
                        await self.ask(self.people[1], "select decide_approval($1, 'approved')", found)
                await asyncio.sleep(0.05)

    async def ended(self, run: uuid.UUID, seconds: float, why: Any = lambda: "the run did not end") -> None:
        async def look() -> bool:
            with suppress(asyncpg.PostgresError, OSError):
                async with self.operator() as operator:
                    return bool(await operator.fetchval("select finished_at from agent_runs where id = $1", run))
            return False

        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self.answer(run))
            await eventually(look, seconds, why)
            answering.cancel()

    def done(self) -> Counter[str]:
        """Effects by key, name and what was done."""
        return Counter(self.effects.read_text().splitlines() if self.effects.exists() else ())

    async def require_done_once(self, run: uuid.UUID, deaths: int = 1) -> None:
        """The run is as one that nothing happened to; at most one call of each death was made again."""
        async with self.operator() as operator:
            found = await operator.fetchrow("select * from agent_runs where id = $1", run)
            output = {name: found["output"][name] for name in ("text", "json", "agent", "turns", "stop_reason")}
            assert (found["state"], output) == (
                "completed",
                {"text": "You have your 40 back.", "json": None, "agent": "billing", "turns": 6, "stop_reason": "done"},
            ), dict(found)
            journal = await operator.fetch(
                "select r.depth, a.slug, s.kind, s.name, s.status, s.charged_tokens from agent_runs r"
                " join agent_run_steps s on s.run_id = r.id join agents a on a.id = s.agent_id"
                " where r.root_run_id = $1 order by r.depth, r.id, s.n",
                run,
            )
            assert [tuple(row)[:4] for row in journal] == JOURNAL
            assert {row["status"] for row in journal} == {"done"}
            ledger = await operator.fetchrow(
                "select count(*) as rows, count(distinct l.metadata ->> 'allocation_hold') as steps,"
                " sum((l.metadata ->> 'actual')::bigint) as charged from agent_runs r"
                " join user_token_ledger l on l.reference_id = r.execution_id and l.direction = 'settle'"
                " where r.root_run_id = $1",
                run,
            )
            charged = await operator.fetchval("select sum(charged_tokens) from agent_runs where root_run_id = $1", run)
            assert tuple(ledger) == (MODEL_STEPS, MODEL_STEPS, charged)
            assert charged == sum(row["charged_tokens"] for row in journal) == (self.charged or charged)
            self.charged = charged
            await self.require_nothing_held(operator)
        effects = self.done()
        assert {line.partition(" ")[2] for line in effects} == EFFECTS
        assert len(effects) == len(EFFECTS), effects
        assert len(self.sandbox.asked) == MODEL_STEPS
        assert not self.bodies or set(self.sandbox.asked) == self.bodies
        again = self.sandbox.repeated + effects.total() - len(effects)
        assert again <= deaths, (self.sandbox.asked, effects)

    async def require_nothing_held(self, operator: asyncpg.Connection) -> None:
        await require_invariants(operator)
        assert await run_checks(operator, BOOKS) == []
        left = await operator.fetchrow(
            "select (select count(*) from resource_allocations where state = 'open'),"
            " (select count(*) from allocation_holds where state = 'open'),"
            " (select count(*) from user_token_holds where state = 'open'),"
            " (select sum(reserved_tokens) from user_token_wallets),"
            " (select sum(overrun_tokens) from resource_allocations),"
            " (select count(*) from workflow_queue), (select count(*) from agent_runs where finished_at is null)"
        )
        assert tuple(left) == (0,) * 7


async def _kill_at(running: Running, n: int, nth: int) -> None:
    if n == nth:
        running.send(signal.SIGKILL)
        running.process.wait()
