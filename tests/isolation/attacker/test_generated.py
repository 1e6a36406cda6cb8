"""Whatever SQL is injected into a request of A: nothing of B comes back, nothing of B or of the platform changes."""

import os
import random
import time
from collections import Counter
from contextlib import suppress

import asyncpg
import pytest

from tests.conftest import LONG
from tests.isolation.attacker.conftest import Prey
from tests.isolation.attacker.generator import Generator, read_catalog
from tests.isolation.attacker.watch import Attacker, visit
from tests.isolation.catalog import LOGINS

SECONDS = float(os.environ.get("VANILLA_SAAS_ATTACK_SECONDS", "200" if LONG else "3.4"))
"""Of each login; in ordinary runs ten seconds for the three."""
SEED = int(os.environ.get("VANILLA_SAAS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
VISIT_EVERY, CHECK_EVERY = 40, 200


@pytest.mark.parametrize("login", LOGINS)
async def test_no_generated_statement_reads_or_changes_what_is_not_its_tenants(prey: Prey, login: str) -> None:
    world = prey.world
    print(f"{login}: VANILLA_SAAS_SEED={SEED} tries the same statements again")
    make = Generator(SEED, await read_catalog(prey.superuser, login), world, login)
    dice = random.Random(SEED)
    attacker = await Attacker(prey.cluster.url(login, prey.name), "").connect()
    neighbour = await asyncpg.connect(prey.cluster.url(login, prey.name))
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    end = time.monotonic() + SECONDS
    since: list[str] = []
    while time.monotonic() < end and not problems:
        attacker.token = world.a.token(world.signer, dice.choice((world.a.admin, world.a.user)))
        statement = make.statement()
        since.append(statement)
        outcome = await attacker.run(statement, commit=dice.random() < 0.3)
        outcomes[outcome.state or "ran"] += 1
        if told := prey.secrets.told_by(outcome.told):
            problems.append(f"{statement}\n  tells {told}: {outcome.told[:500]}")
        if outcome.state == "22012" and "case when" in statement and world.b.id in statement:
            problems.append(f"{statement}\n  an oracle: a row of b is seen")
        count = outcomes.total()
        if count % VISIT_EVERY == 0:
            await _visits(attacker, neighbour, login, prey)
        if count % CHECK_EVERY == 0:
            if not await prey.intact():
                problems.append("changed by one of:\n" + "\n".join(since))
            since.clear()
            await prey.revive()
    await attacker.close()
    await neighbour.close()
    if not await prey.intact():
        problems.append("changed by one of:\n" + "\n".join(since))
    await prey.revive()
    common = ", ".join(f"{state} {n}" for state, n in outcomes.most_common(8))
    print(f"{login}: {outcomes.total()} statements in {SECONDS:.0f} s, {attacker.reconnected} sessions lost; {common}")
    assert not problems, f"seed {SEED}\n" + "\n".join(problems)
    # an attack that is always a syntax error proves nothing
    assert outcomes.total() > 20
    assert outcomes["ran"] > outcomes.total() / 10
    assert outcomes["42601"] < outcomes.total() / 5


async def _visits(attacker: Attacker, neighbour: asyncpg.Connection, login: str, prey: Prey) -> None:
    """B comes by, in a session beside the attacker's and, as a pool would have it, in the very same."""
    b = prey.world.b
    if login == "vanilla_runtime":
        assert await neighbour.fetchval("select vanilla.key_identity($1)", b.admin.key_hash)
        return
    await visit(neighbour, b.token(prey.world.signer, b.admin))
    # what the attacker has set there may stop it
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, AssertionError):
        await visit(attacker.connection, b.token(prey.world.signer, b.admin))


async def test_the_same_statements_of_a_superuser_are_seen_to_leak(prey: Prey) -> None:
    """The watch and the generator are good for something: without policies the first tells within a few statements."""
    catalog = await read_catalog(prey.superuser, "postgres")
    make = Generator(11, catalog, prey.world, "postgres")
    attacker = await Attacker(
        prey.cluster.url(database=prey.name), prey.world.a.token(prey.world.signer, prey.world.a.admin)
    ).connect()
    told = []
    for _ in range(200):
        outcome = await attacker.run(make.query())
        if prey.secrets.told_by(outcome.told):
            told.append(outcome)
    await attacker.close()
    assert len(told) > 20
    assert await prey.intact()
