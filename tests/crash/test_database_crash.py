"""PostgreSQL is killed under a running load: the server stays, the settlements land, the books are right."""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import pytest

from tests.conftest import LONG, People, Person
from tests.crash.test_gateway_crash import move_clock, request
from tests.processes import Installation, assert_books_are_clean, eventually, new_home, reached
from vanilla_saas.database import postmaster

ROUNDS, CALLERS = (20, 40) if LONG else (3, 20)
ALLOWED = {"503 database_unavailable", "429 saturated"}


@dataclass
class Load:
    """What a running load has seen."""

    url: str
    person: Person
    stopping: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)
    completed: dict[UUID, int] = field(default_factory=dict)
    """Executions whose answer arrived whole, with the total tokens it reported."""

    async def caller(self, number: int, session: aiohttp.ClientSession) -> None:
        """Calls one after the other; every second caller streams."""
        dice = random.Random(number)
        while not self.stopping:
            tokens = dice.randint(5, 30)
            script = {"completion_tokens": tokens, "latency_ms": dice.randint(0, 60)}
            body = request(script, max_tokens=tokens)
            if number % 2:
                script = {"completion_tokens": tokens, "chunk_latency_ms": dice.randint(0, 8)}
                body = request(script, max_tokens=tokens, stream=True, stream_options={"include_usage": True})
            await self._call(session, body)

    async def _call(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=self.person.headers) as answer:
            text = await answer.text()
        if answer.status != 200:
            self.outcomes[f"{answer.status} {json.loads(text)['error']['code']}"] += 1
            await asyncio.sleep(0.02)
            return
        if body.get("stream"):
            assert text.endswith("data: [DONE]\n\n"), text[-300:]
            text = text.split("data: ")[-2]
        self.outcomes["answered"] += 1
        self.completed[UUID(answer.headers["x-vanilla-execution"])] = json.loads(text)["usage"]["total_tokens"]


@pytest.fixture
async def home() -> AsyncIterator[Path]:
    async with new_home() as home:
        yield home


async def operator_of(installation: Installation) -> asyncpg.Connection:
    """A connection as the operator; again while PostgreSQL is coming back."""
    socket_dir = installation.home / "postgresql" / "run"
    return await reached(host=str(socket_dir), user="postgres", database="vanilla_saas")


async def test_killing_postgresql_in_mid_call_loses_no_token_and_charges_nothing_twice(home: Path) -> None:
    installation = Installation(home)
    data = home / "postgresql" / "data"
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    print(f"seed {seed}")
    async with installation.serving("up") as running:
        operator = await operator_of(installation)
        people = People(operator)
        person = await people.user(balance=10_000_000)
        await operator.close()

        load = Load(running.url, person)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            callers = [asyncio.create_task(load.caller(number, session)) for number in range(CALLERS)]
            for _ in range(ROUNDS):
                answered = load.outcomes["answered"]
                wanted = answered + CALLERS

                async def going(wanted: int = wanted) -> bool:
                    for caller in callers:
                        if caller.done():
                            caller.result()
                    return load.outcomes["answered"] >= wanted

                await eventually(going, 90, lambda: f"no answers any more: {load.outcomes}\n{running.err}")
                await asyncio.sleep(dice.uniform(0, 0.3))  # the random moment, not a wait
                os.kill(postmaster.postmaster_pid(data), signal.SIGKILL)
            # and it answers again by itself
            wanted = load.outcomes["answered"] + 2 * CALLERS
            await eventually(lambda: going(wanted), 90, lambda: f"{load.outcomes}\n{running.err}")
            load.stopping = True
            await asyncio.gather(*callers)

        assert running.process.poll() is None
        assert set(load.outcomes) - {"answered"} <= ALLOWED, f"{load.outcomes}\n{running.out}"
        people.operator = operator = await operator_of(installation)
        try:
            await assert_settled(people, person, load)
        finally:
            await operator.close()
        assert await running.stop() == 0
    assert "starting again" in (home / "server.log").read_text()
    assert "Traceback" not in running.err


async def assert_settled(people: People, person: Person, load: Load) -> None:
    """Every answer is charged once; what else is held was admitted for nobody and returns when it expires."""
    operator = people.operator

    async def no_answer_is_unsettled() -> bool:
        return not await operator.fetchval(
            "select count(*) from user_token_holds where state = 'open' and execution_id = any ($1)",
            list(load.completed),
        )

    await eventually(no_answer_is_unsettled, 30)
    rows = await operator.fetch(
        "select id, status, charged_tokens from ai_executions where user_id = $1", person.identity.user_id
    )
    assert len({row["id"] for row in rows}) == len(rows)
    charged = {row["id"]: row["charged_tokens"] for row in rows if row["status"] == "succeeded"}
    assert charged == load.completed
    await move_clock(operator, 12)
    await operator.fetchval("select vanilla.run_maintenance()")
    wallet = await people.wallet(person)
    assert wallet["reserved_tokens"] == 0
    assert wallet["available_tokens"] == 10_000_000 - sum(charged.values())
    await assert_books_are_clean(operator)
