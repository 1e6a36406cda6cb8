"""More calls than a server takes: refused at once with words, never an error of ours."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from tests.conftest import Cluster, People, Person
from tests.processes import assert_books_are_clean, over


async def call(session: aiohttp.ClientSession, url: str, person: Person, script: dict[str, Any]) -> tuple[str, str]:
    """The outcome in a word or two, and Retry-After."""
    messages = [{"role": "user", "content": f"sandbox: {json.dumps(script)}"}]
    body = {"model": "sandbox-small", "max_tokens": 20, "messages": messages}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=person.headers) as answer:
        code = (await answer.json()).get("error", {}).get("code", "answered")
        return f"{answer.status} {code}", answer.headers.get("retry-after", "")


async def test_calls_above_the_limit_are_refused_with_a_time_to_come_back(
    cluster: Cluster, database_name: str, tmp_path: Path, people: People
) -> None:
    person = await people.user(balance=100_000)
    installation = over(cluster, database_name, tmp_path, VANILLA_SAAS_MAX_RUNNING_CALLS="5")
    slow = {"completion_tokens": 20, "latency_ms": 5000}
    async with (
        installation.serving("serve") as running,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        outcomes = Counter(await asyncio.gather(*(call(session, running.url, person, slow) for _ in range(50))))
        assert outcomes == {("200 answered", ""): 5, ("429 saturated", "1"): 45}
        # the places are free again
        quick = {"completion_tokens": 20}
        assert await call(session, running.url, person, quick) == ("200 answered", "")
    assert (await people.wallet(person))["reserved_tokens"] == 0
    await assert_books_are_clean(people.operator)


async def test_one_connection_serves_two_hundred_calls_at_once_without_an_error(
    cluster: Cluster, database_name: str, tmp_path: Path, people: People
) -> None:
    person = await people.user(balance=20 * 100)
    installation = over(cluster, database_name, tmp_path, VANILLA_SAAS_POOL_SIZE="1")
    async with (
        installation.serving("serve") as running,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        script = {"completion_tokens": 20, "latency_ms": 100}
        outcomes = Counter(await asyncio.gather(*(call(session, running.url, person, script) for _ in range(200))))
    codes = {outcome for outcome, _ in outcomes}
    assert codes <= {"200 answered", "402 insufficient_tokens", "429 saturated"}, outcomes
    assert outcomes[("200 answered", "")] > 0
    assert (await people.wallet(person))["reserved_tokens"] == 0
    await assert_books_are_clean(people.operator)
