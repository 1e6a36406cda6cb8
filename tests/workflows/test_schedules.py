"""Schedules of workflows over HTTP, from Python and on the command line: who sets one, what it is told of."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from tests.conftest import Person, serve, settings_for
from tests.tokens.test_cli import Cli
from tests.tokens.test_routes import get
from tests.workflows.hands import Room, workflow
from tests.workflows.test_executions_cli import vs
from vanilla_saas.app import create_app
from vanilla_saas.client import ApiError, Client

__all__ = ["vs"]

INPUT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
NIGHTLY = {"cron": "30 2 * * *", "time_zone": "Europe/Vienna", "input": {"n": 1}, "catch_up": "all"}


@pytest.fixture(scope="module")
async def address(desk: Room, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with serve(create_app(settings_for(desk.cluster, desk.name, tmp_path_factory.mktemp("home")))) as address:
        yield address


@pytest.fixture(scope="module")
async def http(address: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(address) as session:
        yield session


async def put(http: aiohttp.ClientSession, person: Person, path: str, body: Any, status: int = 200) -> Any:
    async with http.put(f"/api/v1{path}", headers=person.headers, json=body) as answer:
        told = await answer.json()
        assert answer.status == status, told
        return told


async def deleted(http: aiohttp.ClientSession, person: Person, path: str) -> int:
    async with http.delete(f"/api/v1{path}", headers=person.headers) as answer:
        return answer.status


async def test_one_is_set_seen_with_its_times_changed_and_deleted(desk: Room, http: aiohttp.ClientSession) -> None:
    shape = await desk.publish(workflow("a", input=INPUT))
    path = f"/workflows/{shape}/schedules"
    made = await put(http, desk.owner, f"{path}/nightly", NIGHTLY)
    assert {name: made[name] for name in NIGHTLY} == NIGHTLY
    assert (made["user_id"], made["enabled"], made["last_at"]) == (str(desk.owner.identity.user_id), True, None)
    times = [datetime.fromisoformat(time) for time in made["next_times"]]
    assert (len(times), sorted(times)) == (3, times)
    assert (await get(http, desk.owner, path))["data"] == [made]
    preview = await get(
        http, desk.owner, f"/workflows/{shape}/schedule-times", cron="30 2 * * *", time_zone="Europe/Vienna", limit=3
    )
    assert preview["data"] == made["next_times"]
    changed = await put(http, desk.owner, f"{path}/nightly", NIGHTLY | {"enabled": False})
    assert (changed["id"], changed["next_times"]) == (made["id"], [])
    assert await deleted(http, desk.owner, f"{path}/nightly") == 204
    assert await deleted(http, desk.owner, f"{path}/nightly") == 404
    assert (await get(http, desk.owner, path))["data"] == []


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"cron": "61 * * * *"}, 400, "cron"),
        ({"cron": "0 0 30 2 *"}, 400, "cron"),
        ({"cron": "0 0 31 4 *"}, 400, "cron"),
        ({"cron": "30 2 * *"}, 400, "cron"),
        ({"cron": "0 0 2 * * *"}, 400, "cron"),
        ({"time_zone": "Mars/Olympus"}, 400, "time_zone"),
        ({"input": {"n": "x"}}, 422, "input.n"),
        ({"input": {}}, 422, "input"),
        ({"catch_up": "some"}, 400, None),
        ({"crom": "x"}, 400, None),
    ],
)
async def test_what_cannot_be_a_schedule_is_refused_and_nothing_is_written(
    desk: Room, http: aiohttp.ClientSession, change: dict[str, Any], status: int, param: str | None
) -> None:
    shape = await desk.publish(workflow("a", input=INPUT))
    told = await put(http, desk.owner, f"/workflows/{shape}/schedules/nightly", NIGHTLY | change, status)
    assert param is None or told["param"] == param
    assert (await get(http, desk.owner, f"/workflows/{shape}/schedules"))["data"] == []


async def test_schedules_are_of_who_pays_and_of_admins(desk: Room, http: aiohttp.ClientSession) -> None:
    shape = await desk.publish(workflow("a"))
    path = f"/workflows/{shape}/schedules"
    tenant = desk.owner.identity.tenant_id
    scopes, elsewhere = ["read", "chat", "admin"], await desk.people.tenant()
    admin, other = await desk.people.user("admin", tenant_id=tenant, scopes=scopes), await desk.people.user()
    stranger = await desk.people.user("admin", tenant_id=elsewhere, scopes=scopes)
    hourly = {"cron": "0 * * * *"}
    for one in (other, stranger):
        await put(http, one, f"{path}/hourly", hourly, 404)
        await get(http, one, path, 404)
        await get(http, one, f"/workflows/{shape}/schedule-times", 404, cron="0 * * * *")
        assert await deleted(http, one, f"{path}/hourly") == 404
    owner_id = str(desk.owner.identity.user_id)
    made = await put(http, admin, f"{path}/hourly", hourly | {"user_id": owner_id})
    assert made["user_id"] == owner_id
    await put(http, desk.owner, f"{path}/hourly", hourly | {"user_id": str(admin.identity.user_id)}, 403)
    await put(http, admin, f"{path}/admins", hourly)
    assert [row["name"] for row in (await get(http, desk.owner, path))["data"]] == ["hourly"]
    assert [row["name"] for row in (await get(http, admin, path))["data"]] == ["admins", "hourly"]
    assert await deleted(http, desk.owner, f"{path}/admins") == 404
    assert await deleted(http, admin, f"{path}/hourly") == 204


async def test_a_key_that_has_a_budget_sets_none(desk: Room, http: aiohttp.ClientSession) -> None:
    shape = await desk.publish(workflow("a"))
    person = await desk.people.user(tenant_id=desk.owner.identity.tenant_id, scopes=["read"])
    await put(http, person, f"/workflows/{shape}/schedules/x", {"cron": "0 * * * *"}, 403)
    await desk.operator.execute(
        "update api_keys set budget_tokens = 100 where user_id = $1", desk.owner.identity.user_id
    )
    told = await put(http, desk.owner, f"/workflows/{shape}/schedules/x", {"cron": "0 * * * *"}, 403)
    assert told["need"] == "key_without_budget"
    await desk.operator.execute(
        "update api_keys set budget_tokens = null where user_id = $1", desk.owner.identity.user_id
    )


async def test_one_that_sql_has_set_is_shown_with_what_is_wrong(desk: Room, http: aiohttp.ClientSession) -> None:
    shape = await desk.publish(workflow("a"))
    await desk.operator.fetchval("select set_workflow_schedule($1, 'odd', '61 * * * *', 'UTC')", shape)
    [row] = (await get(http, desk.owner, f"/workflows/{shape}/schedules"))["data"]
    assert (row["cron"], row["next_times"]) == ("61 * * * *", [])


async def test_from_python(desk: Room, address: str) -> None:
    shape = await desk.publish(workflow("a"))
    async with Client(address, desk.owner.key) as client:
        made = await client.workflows.set_schedule(shape, "monday", "0 9 * * 1", input={"n": 1}, catch_up="none")
        assert (made["name"], made["catch_up"], len(made["next_times"])) == ("monday", "none", 3)
        assert await client.workflows.schedules(shape) == [made]
        with pytest.raises(ApiError, match="is not a schedule"):
            await client.workflows.set_schedule(shape, "monday", "soon")
        await client.workflows.delete_schedule(shape, "monday")
        assert await client.workflows.schedules(shape) == []


async def test_on_the_command_line(vs: Cli, desk: Room) -> None:
    shape = str(await desk.publish(workflow("a", input=INPUT)))
    command = ("workflows", "schedules")
    told = await vs(*command, "set", shape, "nightly", "30 2 * * *", "--time-zone", "UTC", "--input", "n=3")
    assert "it starts next at" in told.stdout
    assert "02:30 UTC" in told.stdout
    [row] = await vs.json(*command, "list", shape)
    assert (row["name"], row["input"], row["user_id"]) == ("nightly", {"n": 3}, str(desk.owner.identity.user_id))
    assert "nightly" in (await vs(*command, "list", shape)).stdout
    other = await desk.people.user(tenant_id=desk.owner.identity.tenant_id)
    changed = await vs.json(
        *command, "set", shape, "nightly", "0 3 * * *", "--input", "n=4", "--disabled", "--user", other.email
    )
    assert (changed["id"], changed["enabled"], changed["user_id"]) == (row["id"], False, str(other.identity.user_id))
    refused = await vs.refused(*command, "set", shape, "nightly", "0 0 31 2 *", "--input", "n=3")
    assert (refused.name, refused.detail["param"]) == ("invalid_request", "cron")
    assert (await vs.json(*command, "delete", shape, "nightly"))["status"] == "deleted"
    assert (await vs.refused(*command, "delete", shape, "nightly")).name == "not_found"
