"""Workers and routing over HTTP, on the command line and in the console."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.conftest import People, Person
from tests.console.console_support import look, signed_in, submit, super_admin
from tests.tokens.test_cli import Cli, vs
from tests.tokens.test_routes import get, post
from tests.tokens.test_wallet_routes import put

__all__ = ["vs"]
ADMIN = ["read", "chat", "admin"]


@pytest.fixture
async def worker(operator: asyncpg.Connection) -> AsyncIterator[uuid.UUID]:
    """A worker of the platform that has done something."""
    made = await operator.fetchval(
        "select vanilla.register_worker('surface', '{default,gpu}', 8, '{\"gpu\": \"a100\"}', 'eu', '1.2')"
    )
    report = {"finished": 30, "failed": 2, "latency_ms_sum": 3200, "in_flight": 3}
    await operator.fetchval("select vanilla.heartbeat_worker($1, $2)", made, report)
    yield made
    await operator.execute("delete from worker_registry where id = $1", made)


async def tenants_worker(people: People, person: Person) -> uuid.UUID:
    return await people.operator.fetchval(
        "insert into worker_registry (tenant_id, name, pools, capacity, status) values ($1, 'own', '{default}', 4, 'active') returning id",
        person.identity.tenant_id,
    )


async def test_an_admin_sees_and_drains_the_tenants_workers_and_nobody_elses(
    http: aiohttp.ClientSession, people: People, worker: uuid.UUID
) -> None:
    admin = await people.user("admin", await people.tenant(), scopes=ADMIN)
    stranger = await people.user("admin", await people.tenant(), scopes=ADMIN)
    user = await people.user(tenant_id=admin.identity.tenant_id)
    own = await tenants_worker(people, admin)
    [row] = (await get(http, admin, "/workers?status=active", pool="default"))["data"]
    assert (row["id"], row["capacity"], row["health_score"]) == (str(own), 4, 100)
    assert (await get(http, admin, "/workers", pool="gpu"))["data"] == []
    assert (await get(http, stranger, "/workers"))["data"] == []
    drained, _ = await post(http, admin, f"/workers/{own}/drain", {"reason": "old"})
    assert drained["status"] == "draining"
    events = await get(http, admin, f"/workers/{own}/events", limit=1)
    assert [(e["event"], e["reason"], e["actor_id"]) for e in events["items"]] == [
        ("draining", "old", str(admin.identity.user_id))
    ]
    for path in (
        "/workers",
        f"/workers/{own}",
        f"/workers/{own}/events",
        f"/workers/{own}/metrics",
        "/routing/decisions",
    ):
        await get(http, user, path, status=403)
    for other in (own, worker):
        await get(http, stranger, f"/workers/{other}", status=404)
        await post(http, stranger, f"/workers/{other}/drain", {}, status=404)
        await post(http, user, f"/workers/{other}/drain", {}, status=403)
    await people.operator.execute("delete from worker_registry where id = $1", own)


async def test_strategies_are_read_by_all_and_set_by_admins(http: aiohttp.ClientSession, people: People) -> None:
    admin = await people.user("admin", await people.tenant(), scopes=ADMIN)
    user = await people.user(tenant_id=admin.identity.tenant_id)
    body: dict[str, Any] = {
        "kind": "affinity",
        "config": {"prefer": [{"match": {"gpu": "a100"}, "weight": 5}]},
        "explain": True,
    }
    made = await put(http, admin, "/routing/strategies/gpus", body)
    assert (made["slug"], made["own"], made["explain"], made["pool"]) == ("gpus", True, True, None)
    rows = (await get(http, user, "/routing/strategies"))["data"]
    assert (len(rows), [row["slug"] for row in rows if row["own"]]) == (15, ["gpus"])
    await put(http, user, "/routing/strategies/gpus", body, status=403)
    wrong = await put(http, admin, "/routing/strategies/gpus", body | {"config": {"mode": 1}}, status=400)
    assert wrong["detail"] == "affinity has no setting mode"
    await put(http, admin, "/routing/strategies/A b", body, status=400)


async def test_a_decision_is_asked_for_listed_and_explained(http: aiohttp.ClientSession, people: People) -> None:
    admin = await people.user("admin", await people.tenant(), scopes=ADMIN)
    stranger = await people.user("admin", await people.tenant(), scopes=ADMIN)
    candidates = [
        {"id": "gpt", "input_price": 5, "output_price": 15},
        {"id": "mini", "input_price": 1, "output_price": 2},
    ]
    body = {"strategy": "cost", "candidates": candidates, "context": {"input_tokens": 2000, "output_tokens": 500}}
    made, _ = await post(http, admin, "/routing/decisions", body)
    assert (made["chosen"], [row["id"] for row in made["ranking"]]) == ("mini", ["mini", "gpt"])
    told = await get(http, admin, f"/routing/decisions/{made['decision_id']}")
    assert told["replayed"] is True
    assert told["explanation"][2] == "1. mini: 0.003 micros of USD expected."
    assert [row["id"] for row in (await get(http, admin, "/routing/decisions"))["items"]] == [made["decision_id"]]
    await get(http, stranger, f"/routing/decisions/{made['decision_id']}", status=404)
    again, _ = await post(http, admin, "/routing/decisions", body | {"seed": made["seed"]})
    assert again["ranking"] == made["ranking"]
    await post(http, admin, "/routing/decisions", body | {"strategy": "none"}, status=404)


async def test_the_operator_lists_shows_and_drains_workers(vs: Cli, worker: uuid.UUID) -> None:
    [row] = [row for row in await vs.json("workers", "list", "--pool", "gpu") if row["id"] == str(worker)]
    assert (row["name"], row["status"], row["in_flight"]) == ("surface", "active", 3)
    assert "surface" in (await vs("workers", "list", "--status", "active")).stdout
    assert "30 steps finished, 2 failed" in (await vs("workers", "show", str(worker))).stdout
    assert "3 steps to finish" in (await vs("workers", "drain", str(worker), "--reason", "update")).stdout
    events = await vs.json("workers", "events", str(worker))
    assert (events[0]["event"], events[0]["reason"]) == ("draining", "update")
    assert "draining" in (await vs("workers", "events")).stdout
    assert (await vs.refused("workers", "drain", str(uuid.uuid4()))).name == "not_found"


async def test_a_super_admin_looks_at_workers_and_drains_one_in_the_console(
    api: str, people: People, worker: uuid.UUID
) -> None:
    async with signed_in(api, people, await super_admin(people)) as http:
        _, page, _ = await look(http, "/workers")
        assert "surface" in page.text
        assert "3 of 8" in page.text
        _, page, _ = await look(http, f"/workers/{worker}")
        for expected in ("default, gpu", "gpu: a100", "Last hour", "its first heartbeat", "100 ms"):
            assert expected in page.text, expected
        status, _, headers = await submit(http, f"/workers/{worker}/drain", reason="a test")
        assert (status, headers["location"]) == (303, f"/workers/{worker}?notice=drained")
        _, page, _ = await look(http, f"/workers/{worker}?notice=drained")
        assert "The worker drains." in page.text
        assert "a test" in page.text
        assert "/drain" not in page.text
        await people.operator.execute("select vanilla.stop_worker($1)", worker)
        _, page, _ = await look(http, "/workers")
        assert "surface" not in page.text
        _, page, _ = await look(http, "/workers?ended=true")
        assert "surface" in page.text
        status, _, _ = await look(http, f"/workers/{uuid.uuid4()}")
        assert status == 404
    async with signed_in(api, people, await people.user("admin")) as http:
        assert (await look(http, f"/workers/{worker}"))[0] == 403
