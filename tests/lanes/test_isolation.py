"""A short form of tests/isolation: the catalog, the promises, the door, and a sample of the matrix."""

import asyncpg

from tests.conftest import Cluster
from tests.isolation import test_matrix
from tests.isolation.catalog import LOGINS
from tests.isolation.matrix import Report
from tests.isolation.rows import World
from tests.isolation.test_catalog import (
    test_every_table_and_partition_has_a_row_of_each_tenant,
    test_every_table_declares_its_ownership_and_every_partition_none,
)
from tests.isolation.test_context import test_prepared_statements_follow_the_context_from_tenant_to_tenant
from tests.isolation.test_matrix import (
    test_no_foreign_key_reaches_a_row_of_another_tenant,
    test_no_login_reaches_a_row_of_another_tenant,
)
from tests.isolation.test_promises import test_every_promise_holds
from tests.isolation.test_static import test_every_exception_is_still_needed, test_the_catalog_obeys


def test_the_sample_tries_every_relation_with_every_login(report: Report, world: World, sample: set[str]) -> None:
    tried = {(cell.relation, cell.login, cell.context) for cell in report.cells}
    relations = {f"public.{table.name}" for table in world.tables} | {closed.name for closed in world.closed}
    assert tried == {(r, login, c) for r in relations for login in LOGINS for c in sample}


async def test_the_login_of_requests_is_refused_the_same(
    world: World, superuser: asyncpg.Connection, cluster: Cluster, world_name: str
) -> None:
    """Over a connection as the lane makes them: through the pooler where there is one."""
    await test_matrix.test_real_logins_are_refused_the_same_and_nothing_is_left_behind(
        world, superuser, cluster, world_name, "vanilla_app"
    )
