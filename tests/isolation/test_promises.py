"""Every promise holds, in a world where another tenant's rows have the same ids."""

import asyncpg
import pytest

from tests.isolation.promises import broken, prepare
from tests.isolation.promises_of_agents import CASES as AGENTS
from tests.isolation.promises_of_allocations import CASES as ALLOCATIONS
from tests.isolation.promises_of_changes import CASES as CHANGES
from tests.isolation.promises_of_contracts import CASES as CONTRACTS
from tests.isolation.promises_of_engines import CASES as ENGINES
from tests.isolation.promises_of_grants import CASES as GRANTS
from tests.isolation.promises_of_levels import CASES as LEVELS
from tests.isolation.promises_of_orchestration import CASES as ORCHESTRATION
from tests.isolation.promises_of_parts import CASES as PARTS
from tests.isolation.promises_of_payments import CASES as PAYMENTS
from tests.isolation.promises_of_routing import CASES as ROUTING
from tests.isolation.promises_of_runner import CASES as RUNNER
from tests.isolation.promises_of_schedules import CASES as SCHEDULES
from tests.isolation.promises_of_supabase import CASES as SUPABASE
from tests.isolation.promises_of_tenancy import CASES as TENANCY
from tests.isolation.promises_of_tokens import CASES as TOKENS
from tests.isolation.promises_of_webhooks import CASES as WEBHOOKS
from tests.isolation.promises_of_workflows import CASES as WORKFLOWS
from tests.isolation.rows import World


@pytest.mark.parametrize(
    "cases",
    [
        TENANCY,
        TOKENS,
        GRANTS,
        LEVELS,
        CHANGES,
        PAYMENTS,
        PARTS,
        WEBHOOKS,
        WORKFLOWS,
        ROUTING,
        RUNNER,
        ENGINES,
        ALLOCATIONS,
        ORCHESTRATION,
        AGENTS,
        CONTRACTS,
        SCHEDULES,
        SUPABASE,
    ],
    ids=[
        "tenancy",
        "tokens",
        "grants",
        "levels",
        "changes",
        "payments",
        "parts",
        "webhooks",
        "workflows",
        "routing",
        "runner",
        "engines",
        "allocations",
        "orchestration",
        "agents",
        "contracts",
        "schedules",
        "supabase",
    ],
)
async def test_every_promise_holds(world: World, superuser: asyncpg.Connection, cases: list) -> None:
    transaction = superuser.transaction()
    await transaction.start()
    stage = await prepare(superuser, world)
    problems = [problem for case in cases if (problem := await broken(superuser, stage, [case]))]
    await transaction.rollback()
    assert not problems, "\n".join(problems)
