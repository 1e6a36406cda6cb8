"""Random lives of two wallets, played in PostgreSQL and in the model: same decisions, same amounts, same grants."""

import asyncio
import random
from collections.abc import Iterator

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.internal.conjecture.engine import ConjectureRunner
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import LONG, Cluster, migrated_database
from tests.tokens.life import OBSERVE, Life, Place
from tests.tokens.support import TEST_CLOCK
from vanilla_saas.database.pool import _prepare

STEPS, PARTS = 50, 50 if LONG else 4
LIVES = 1_000_000 // PARTS // STEPS if LONG else 20_000 // PARTS // STEPS
# found lives are shown as they are: shrinking one takes minutes
LIFE = settings(
    max_examples=LIVES,
    stateful_step_count=STEPS,
    phases=[Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DECISIONS = {
    *(f"adjust {name}" for name in ("credit", "debit", "reserve", "release", "adjustment")),
    *(f"adjust {name} VS410" for name in ("credit", "debit", "adjustment")),
    *("adjust debit VS402", "adjust reserve VS402", "adjust debit VS415", "adjust adjustment VS415"),
    *("adjust release VS404", "adjust release VS409", "replayed"),
    *("settle", "settle VS409", "settle part", "settle part VS409", "extend", "extend VS400", "extend VS409"),
    *("grant", "grant VS400", "grant VS410", "void", "void VS409", "join", "level policy", "user policy"),
    *("batch", "batch atomic", "batch atomic VS402", "batch debit refused", "batch reserve", "batch release"),
    *("reaper", "tick", "reset", "locked", "suspended"),
}
"""What a run must have come to, or it would prove less than it says."""


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[Place]:
    with asyncio.Runner() as runner:
        context = migrated_database(cluster, "test_tokens")
        name = runner.run(context.__aenter__())
        url = cluster.url(database=name)

        async def prepare() -> asyncpg.Connection:
            connection = await asyncpg.connect(url, server_settings={"timezone": "UTC"})
            await _prepare(connection)
            await connection.execute(TEST_CLOCK)
            await connection.execute(OBSERVE)
            return connection

        connection = runner.run(prepare())
        yield Place(runner, connection)
        runner.run(connection.close())
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize("part", range(PARTS))
def test_wallets_live_as_the_rules_say(place: Place, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # five of six lives would be an earlier one with a value repeated, and come to half of the decisions
    monkeypatch.setattr(ConjectureRunner, "generate_mutations_from", lambda *_: None)
    number = random.getrandbits(32) if LONG else part
    print(f"seed {number}")
    run_state_machine_as_test(seed(number)(type("LifeHere", (Life,), {"place": place})), settings=LIFE)
    assert place.run(place.books.problems()) == []


def test_the_lives_together_came_to_every_decision(place: Place) -> None:
    print(sorted(place.outcomes.items()))
    assert DECISIONS - set(place.outcomes) == set()
