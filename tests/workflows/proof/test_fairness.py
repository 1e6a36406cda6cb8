"""Claims are shared among tenants: in turn, by weight, and no place stays empty while there is work."""

import uuid
from collections import Counter

import asyncpg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import LONG, Cluster
from tests.workflows.hands import Hands, Room, workflow
from tests.workflows.proof.support import ours

MOST = 5


@pytest.fixture(scope="module")
async def tenants(desk: Room) -> list[tuple[uuid.UUID, uuid.UUID]]:
    """Tenants, each with a workflow of one step."""
    people = [await desk.people.user(tenant_id=await desk.people.tenant()) for _ in range(MOST)]
    made = [(person.identity.tenant_id, await desk.publish(workflow("a"), person)) for person in people]
    return sorted(made)


async def fill(desk: Room, tenants: list[tuple[uuid.UUID, uuid.UUID]], work: list[int]) -> None:
    await desk.operator.execute("truncate workflow_queue")
    for (_, shape), count in zip(tenants, work, strict=False):
        await desk.operator.execute("select start_workflow($1) from generate_series(1, $2)", shape, count)


async def claim(hands: Hands, n: int) -> list[uuid.UUID]:
    return [uuid.UUID(step.tenant_id) for step in await hands.tick(n=n)]


lives = st.tuples(
    st.lists(st.integers(0, 30), min_size=1, max_size=MOST),
    st.lists(st.integers(1, 4), min_size=MOST, max_size=MOST),
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
)


@ours(60 if LONG else 15)
@given(lives)
@example(([30, 30, 30], [1] * MOST, [10]))
@example(([30, 30], [3, 1] + [1] * 3, [1] * 8))
@example(([30, 2, 30], [1] * MOST, [7, 1, 4]))
async def test_every_tenant_gets_its_share_until_its_work_is_out(
    desk: Room, tenants: list[tuple[uuid.UUID, uuid.UUID]], life: tuple[list[int], list[int], list[int]]
) -> None:
    """Of n claims a tenant gets n * weight / (all weights), less at most one turn, or all of its work."""
    work, weights, sizes = life
    await fill(desk, tenants, work)
    for (tenant, _), weight in zip(tenants, weights, strict=True):
        await desk.operator.fetchval("select set_workflow_share($1, $2)", tenant, weight)
    ids = [tenant for tenant, _ in tenants[: len(work)]]
    got: Counter[uuid.UUID] = Counter()
    async with desk.worker() as hands:
        for size in sizes:
            claimed = await claim(hands, size)
            left = sum(work) - got.total()
            assert len(claimed) == min(size, left), "a place stayed empty while there was work"
            got.update(claimed)
            busy = [n for n in range(len(work)) if work[n]]
            together = sum(weights[n] for n in busy)
            for n in busy:
                turns = got.total() // together
                assert got[ids[n]] >= min(work[n], turns * weights[n]), (dict(got), n)


async def test_with_equal_weights_n_claims_of_k_tenants_give_each_at_least_n_over_k(
    desk: Room, tenants: list[tuple[uuid.UUID, uuid.UUID]]
) -> None:
    for tenant, _ in tenants:
        await desk.operator.fetchval("select set_workflow_share($1, 1)", tenant)
    for k in range(1, MOST + 1):
        for n in (1, k, 2 * k + 1, 23):
            await fill(desk, tenants, [25] * k)
            async with desk.worker() as hands:
                got = Counter(await claim(hands, n))
            assert min([got[tenant] for tenant, _ in tenants[:k]]) >= n // k
            assert max(got.values()) <= n // k + 1


async def test_a_worker_that_takes_one_step_at_a_time_keeps_to_the_weights(
    desk: Room, tenants: list[tuple[uuid.UUID, uuid.UUID]]
) -> None:
    await fill(desk, tenants, [40, 40])
    await desk.operator.fetchval("select set_workflow_share($1, 3)", tenants[0][0])
    await desk.operator.fetchval("select set_workflow_share($1, 1)", tenants[1][0])
    async with desk.worker() as hands:
        got = Counter([(await claim(hands, 1))[0] for _ in range(40)])
    assert got == {tenants[0][0]: 30, tenants[1][0]: 10}


async def test_what_others_are_claiming_is_passed_by(
    desk: Room, tenants: list[tuple[uuid.UUID, uuid.UUID]], cluster: Cluster
) -> None:
    await fill(desk, tenants, [5, 5])
    other = await asyncpg.connect(cluster.url(database=desk.name))
    async with other.transaction():
        await other.execute("select from workflow_queue where tenant_id = $1 for update", tenants[0][0])
        async with desk.worker() as hands:
            assert await claim(hands, 10) == [tenants[1][0]] * 5
    await other.close()
