"""The suite sees what it is for: broken policies, grants, keys and functions, made one at a time and rolled back."""

import hashlib
import os
import time
from collections import Counter

import asyncpg

from tests.isolation.matrix import rolled_back, run_matrix
from tests.isolation.mutants import Mutant, mutants
from tests.isolation.rows import World
from tests.isolation.static import CHECKS

LONG = os.environ.get("VANILLA_SAAS_LONG") == "1"
SAMPLE = 120
CONTEXTS = {"none", "user", "admin"}


async def _static(connection: asyncpg.Connection) -> list[str]:
    return [f"{name}: {line}" for name, check in CHECKS.items() for line in await check(connection)]


async def _matrix(connection: asyncpg.Connection, world: World, mutant: Mutant) -> list[str]:
    if not mutant.tables:
        return []
    return (await run_matrix(connection, world, [world.table(t) for t in mutant.tables], only=CONTEXTS)).violations


def _chosen(every: list[Mutant]) -> list[Mutant]:
    """All, or a sample of every kind that is the same in each run."""
    if LONG:
        return every
    ordered = sorted(every, key=lambda m: hashlib.sha256(str(m).encode()).digest())
    share = SAMPLE / len(every)
    quota = {kind: max(2, round(count * share)) for kind, count in Counter(m.kind for m in every).items()}
    chosen = []
    for mutant in ordered:
        if quota[mutant.kind]:
            quota[mutant.kind] -= 1
            chosen.append(mutant)
    return chosen


async def test_nearly_every_broken_schema_is_caught(world: World, superuser: asyncpg.Connection) -> None:
    transaction = superuser.transaction()
    await transaction.start()
    assert await _static(superuser) == []
    every = await mutants(superuser, world)
    assert len(every) > 500
    chosen = _chosen(every)
    survivors: list[Mutant] = []
    unseen: list[Mutant] = []
    started = time.perf_counter()
    for mutant in chosen:
        async with rolled_back(superuser, "mutant"):
            await superuser.execute(mutant.statement)
            seen = bool(await _matrix(superuser, world, mutant))
            if not seen and not await _static(superuser):
                survivors.append(mutant)
            if mutant.visible and not seen:
                unseen.append(mutant)
    assert await _static(superuser) == []
    await transaction.rollback()
    score = 1 - len(survivors) / len(chosen)
    listed = "\n".join(str(m) for m in survivors)
    print(f"{len(chosen)} of {len(every)} mutants, {score:.1%} caught, {time.perf_counter() - started:.0f} s\n{listed}")
    assert score >= 0.99, listed
    # what leaks a row must be seen by trying, not only by reading the catalog
    assert unseen == [], "\n".join(str(m) for m in unseen)
