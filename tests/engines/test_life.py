"""The life of an engine in one piece: offered, copied, tried on a tenth, promoted and taken back under runs, and paid."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest

from tests.conftest import Person, serve, settings_for
from tests.engines.shop import Shop
from tests.tokens.test_routes import get, post
from tests.workflows.hands import workflow
from vanilla_saas.app import create_app

SEED = 5
BOOKS = """
select (select coalesce(sum((l.metadata ->> 'actual')::bigint), 0)::bigint from user_token_ledger l
        where l.direction = 'settle' and l.reference_type = 'workflow_execution' and l.reference_id = any ($1)) as ledger,
    (select coalesce(sum(e.charged_tokens), 0)::bigint from workflow_executions e where e.id = any ($1)) as runs,
    (select coalesce(sum(w.reserved_tokens), 0)::bigint from user_token_wallets w) as held
"""


def version(words: str) -> dict[str, Any]:
    """A flow that waits until it is told to go, and then asks a model."""
    asks = {"model": "sandbox-small", "prompt": words, "max_output_tokens": 50}
    return workflow("s=signal a=llm", "s>a", s={"signal": "go"}, a=asks)


@pytest.fixture(scope="module")
async def http(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[aiohttp.ClientSession]:
    settings = settings_for(floor.room.cluster, floor.room.name, tmp_path_factory.mktemp("home"), run_worker=True)
    async with serve(create_app(settings)) as address, aiohttp.ClientSession(address) as session:
        yield session


async def test_an_engine_from_its_first_version_to_the_last_bill(http: aiohttp.ClientSession, floor: Shop) -> None:
    dice = random.Random(SEED)
    people = [await floor.person("premium") for _ in range(3)]
    by_level, by_user, with_key = people
    outside = await floor.person()
    # v1, which only one level may run; assignments choose it, and permit nobody
    engine = await floor.deploy(version("The first"), access=None)
    premium = await floor.level("premium")
    await floor.ask(floor.admin, "set_level_engine", premium, engine.id, "execute")
    await floor.ask(floor.admin, "assign_engine", engine.id, "level", premium)
    tier = await floor.operator.fetchval("select tier from levels where id = $1", premium)
    await floor.ask(floor.admin, "assign_engine", engine.id, "tier", p_tier=tier)
    for person in (by_user, outside):
        await floor.ask(floor.admin, "assign_engine", engine.id, "user", person.identity.user_id)
    await post(http, outside, "/engines/run", {"ref": engine.slug}, status=404)  # nor is it shown
    begun: dict[uuid.UUID, tuple[Person, int]] = {}

    async def start(who: Person, expected: int, **more: Any) -> dict[str, Any]:
        run, _ = await post(http, who, "/engines/run", {"input": {}, **more}, status=202)
        assert run["version"] == expected
        begun[uuid.UUID(run["execution_id"])] = (who, expected)
        return run

    assert (await start(by_user, 1))["source"] == "user"
    assert (await start(by_level, 1))["source"] in ("level", "tier")
    # a copy of one's own, and a key that runs nothing else
    await floor.ask(by_user, "fork_engine", engine.slug, "mine")
    await start(by_user, 1, ref="my/mine")
    key, key_id = await floor.key(with_key, engine.slug)
    site = Person(with_key.identity, key, key_id)
    assert (await start(site, 1))["source"] == "key"
    # v2 for a tenth, always the same people
    assert await floor.ask(floor.admin, "deploy_engine", engine.slug, await floor.flow(version("The second")))
    await floor.ask(floor.admin, "promote_engine", engine.id, 2, "canary", 10)
    crowd = [*people, *[await floor.person("premium") for _ in range(20)]]
    tried = [(await floor.ask(one, "resolve_engine", p_ref=engine.slug))["version"] for one in crowd]
    assert tried == [(await floor.ask(one, "resolve_engine", p_ref=engine.slug))["version"] for one in crowd]
    assert tried.count(2) < tried.count(1)
    for one, meant in dice.sample(list(zip(crowd, tried, strict=True)), 6):
        await start(one, meant, ref=engine.slug)
    # promoted for all, and taken back, while all of these wait
    await floor.ask(floor.admin, "promote_engine", engine.id, 2)
    await start(by_level, 2, ref=engine.slug)
    await floor.ask(floor.admin, "rollback_engine", engine.id)
    await start(by_level, 1, ref=engine.slug)
    # the key goes, and with it what it had begun
    await floor.ask(with_key, "revoke_api_key", key_id)
    async with asyncio.timeout(1):
        await post(http, site, "/engines/run", {"input": {}}, status=401)
    stopped = [run for run, (who, _) in begun.items() if who is site]
    kept = [run for run in begun if run not in stopped]
    dice.shuffle(kept)
    for run in kept:
        await floor.operator.fetchval("select signal_execution($1, 'go')", run)
    await came_to(http, begun, kept, "succeeded")
    await came_to(http, dict.fromkeys(stopped, (with_key, 1)), stopped, "cancelled")
    # each was charged as the version that it began with, and the report, the runs and the ledger say the same
    books = await floor.operator.fetchrow(BOOKS, list(begun))
    report = await floor.operator.fetch(
        "select * from engine_report($1, '-infinity', 'infinity') order by version", engine.id
    )
    assert books["ledger"] == books["runs"] == sum(row["charged_tokens"] for row in report) > 0
    assert books["held"] == 0
    for row in report:
        mine = [run for run, (_, meant) in begun.items() if meant == row["version"]]
        assert row["runs"] == len(mine)
        assert row["succeeded"] == len([run for run in mine if run in kept])


async def came_to(
    http: aiohttp.ClientSession, begun: dict[uuid.UUID, tuple[Person, int]], runs: Sequence[uuid.UUID], status: str
) -> None:
    for run in runs:
        who, meant = begun[run]
        ended = await get(http, who, f"/engine-runs/{run}", wait_s=20)
        assert (ended["status"], ended["version"]) == (status, meant)
