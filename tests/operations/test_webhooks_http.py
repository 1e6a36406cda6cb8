"""Events and webhooks over the API and as commands."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import orjson
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.conftest import TEST_KEY, Cluster, People, Person, migrated_database, serve, settings_for
from tests.operations.webhook_support import BOX, Hooks, Receiver
from tests.processes import eventually
from vanilla_saas.app import create_app
from vanilla_saas.cli import app as commands
from vanilla_saas.settings import Settings

Call = Callable[..., Awaitable[tuple[int, Any]]]
ADMIN_SCOPES = ["chat", "read", "admin"]


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    """Of its own: what other tests left to be delivered would come first."""
    async with migrated_database(cluster) as name:
        yield name


@pytest.fixture
def test_settings(cluster: Cluster, database_name: str, tmp_path: Path) -> Settings:
    return settings_for(cluster, database_name, tmp_path, webhooks_to_private=True)


@pytest.fixture
async def admin(people: People) -> Person:
    return await people.user("admin", await people.tenant(), ADMIN_SCOPES)


@pytest.fixture
def call(http: aiohttp.ClientSession) -> Call:
    """A request as a person: status and body."""

    async def send(person: Person, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with http.request(method, f"/api/v1{path}", json=body, headers=person.headers) as answer:
            return answer.status, await answer.json(content_type=None) if answer.status != 204 else None

    return send


async def _make(call: Call, admin: Person, url: str, **more: Any) -> dict[str, Any]:
    status, made = await call(admin, "POST", "/webhooks", {"url": url} | more)
    assert status == 201, made
    return dict(made)


async def _log(call: Call, admin: Person, hook: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
    status, page = await call(admin, "GET", f"/webhooks/{hook['id']}/deliveries{query}")
    assert status == 200, page
    return list(page["items"])


async def test_a_webhook_is_made_tested_read_changed_and_deleted(
    call: Call, admin: Person, hooks: Hooks, receiver: Receiver
) -> None:
    hook = await _make(call, admin, receiver.url, event_types=["token.*"], description="billing")
    assert hook["secret"].startswith("whsec_")
    status, test = await call(admin, "POST", f"/webhooks/{hook['id']}/test")
    assert status == 202

    async def delivered() -> Any:
        return [row for row in await _log(call, admin, hook) if row["state"] == "delivered"]

    (row,) = await eventually(delivered)
    assert (row["id"], row["event_type"], row["cause"]) == (test["delivery_id"], "webhook.test", "test")
    receiver.requests[0].verify(hook["secret"])
    _, one = await call(admin, "GET", f"/webhooks/{hook['id']}/deliveries/{row['id']}")
    assert [(tried["attempt"], tried["status_code"]) for tried in one["tries"]] == [(1, 200)]
    sent = receiver.requests[0].event
    told = [datetime.fromisoformat(event.pop("timestamp")) for event in (one["event"], sent)]
    assert told[0] == told[1], "with or without the last zero of the microseconds"
    assert one["event"] == sent, "listed in the form in which it was sent"
    _, read = await call(admin, "GET", f"/webhooks/{hook['id']}")
    assert read == {name: value for name, value in hook.items() if name != "secret"}
    _, changed = await call(admin, "PATCH", f"/webhooks/{hook['id']}", {"event_types": ["*"], "concurrency": 1})
    assert (changed["event_types"], changed["concurrency"], changed["description"]) == (["*"], 1, "billing")
    status, _ = await call(admin, "DELETE", f"/webhooks/{hook['id']}")
    assert status == 204
    assert (await call(admin, "GET", f"/webhooks/{hook['id']}"))[0] == 404
    actions = await hooks.operator.fetch(
        "select action from audit_logs where target_id = $1 order by id", uuid.UUID(hook["id"])
    )
    assert [row["action"] for row in actions] == ["webhook.created", "webhook.updated", "webhook.deleted"]


async def test_events_are_listed_newest_first_page_by_page(call: Call, admin: Person, people: People) -> None:
    for n in range(5):
        await people.operator.fetchval(
            "select adjust_user_tokens($1, $2, 'credit', 'x')", admin.identity.user_id, n + 1
        )
    await people.operator.fetchval("select set_wallet_status($1, 'locked', 'x')", admin.identity.user_id)
    seen, cursor = [], ""
    while True:
        _, page = await call(admin, "GET", f"/events?type=token.granted&limit=2{cursor}")
        seen += [event["data"]["amount"] for event in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == [5, 4, 3, 2, 1]
    _, newest = await call(admin, "GET", "/events?limit=1")
    assert newest["items"][0]["type"] == "token.status_changed"


async def test_events_and_webhooks_of_another_tenant_are_not_there(
    call: Call, admin: Person, people: People, hooks: Hooks, receiver: Receiver
) -> None:
    theirs = await hooks.make(receiver.url, "token.*")
    await hooks.credit(theirs)
    (delivery,) = await hooks.deliveries(theirs)
    assert (await call(admin, "GET", "/webhooks"))[1]["items"] == []
    assert str(theirs.tenant_id) not in str(await call(admin, "GET", "/events"))
    base = f"/webhooks/{theirs.id}"
    for method, path, body in (
        ("GET", base, None),
        ("PATCH", base, {"status": "disabled"}),
        ("DELETE", base, None),
        ("POST", f"{base}/rotate-secret", {}),
        ("POST", f"{base}/test", None),
        ("GET", f"{base}/deliveries", None),
        ("GET", f"{base}/deliveries/{delivery['id']}", None),
        ("POST", f"{base}/deliveries/{delivery['id']}/redeliver", None),
    ):
        status, problem = await call(admin, method, path, body)
        assert (status, problem["code"]) == (404, "not_found"), (method, path)
        absent, other = await call(admin, method, path.replace(str(theirs.id), str(uuid.uuid4())), body)
        assert (absent, other["detail"]) == (404, problem["detail"]), "told apart from one that does not exist"
    assert (await hooks.endpoint(theirs))["status"] == "active"


async def test_a_delivery_is_not_found_under_another_webhook(
    call: Call, admin: Person, hooks: Hooks, receiver: Receiver
) -> None:
    one, other = [await _make(call, admin, receiver.url) for _ in range(2)]
    _, test = await call(admin, "POST", f"/webhooks/{one['id']}/test")
    path = f"/webhooks/{other['id']}/deliveries/{test['delivery_id']}"
    assert (await call(admin, "GET", path))[0] == 404
    assert (await call(admin, "POST", f"{path}/redeliver"))[0] == 404


async def test_a_user_and_a_key_without_admin_are_refused(call: Call, people: People) -> None:
    tenant = await people.tenant()
    for person in (await people.user("user", tenant), await people.user("admin", tenant, ["chat", "read"])):
        for method, path, body in (
            ("GET", "/events", None),
            ("GET", "/events/types", None),
            ("GET", "/webhooks", None),
            ("POST", "/webhooks", {"url": "https://example.com/"}),
        ):
            status, problem = await call(person, method, path, body)
            assert (status, problem["code"], problem["need"]) == (403, "forbidden", "admin"), path


async def test_a_rotated_secret_is_shown_once_and_signs_beside_the_former(
    call: Call, admin: Person, hooks: Hooks, receiver: Receiver
) -> None:
    hook = await _make(call, admin, receiver.url)
    status, fresh = await call(admin, "POST", f"/webhooks/{hook['id']}/rotate-secret", {"keep_hours": 1})
    assert status == 200
    await call(admin, "POST", f"/webhooks/{hook['id']}/test")

    async def arrived() -> bool:
        return bool(receiver.requests)

    await eventually(arrived)
    receiver.requests[0].verify(hook["secret"])
    receiver.requests[0].verify(fresh["secret"])
    _, read = await call(admin, "GET", f"/webhooks/{hook['id']}")
    assert read["previous_secret_until"] == fresh["previous_secret_until"]
    assert fresh["secret"] not in str(read)


async def test_a_secret_is_kept_only_as_ciphertext_of_its_row(
    call: Call, admin: Person, hooks: Hooks, receiver: Receiver
) -> None:
    hook = await _make(call, admin, receiver.url)
    stored = await hooks.operator.fetchval("select secret from webhook_endpoints where id = $1", uuid.UUID(hook["id"]))
    assert hook["secret"].encode() not in stored
    assert BOX.decrypt(admin.identity.tenant_id, uuid.UUID(hook["id"]), stored) == hook["secret"]


async def test_a_closed_delivery_is_redelivered(call: Call, admin: Person, hooks: Hooks, receiver: Receiver) -> None:
    hook = await _make(call, admin, receiver.url)
    _, first = await call(admin, "POST", f"/webhooks/{hook['id']}/test")

    async def delivered(count: int) -> bool:
        return len(await _log(call, admin, hook, "?state=delivered")) == count

    await eventually(lambda: delivered(1))
    status, again = await call(admin, "POST", f"/webhooks/{hook['id']}/deliveries/{first['delivery_id']}/redeliver")
    assert (status, again["delivery_id"] != first["delivery_id"]) == (202, True)
    await eventually(lambda: delivered(2))
    assert [row["cause"] for row in await _log(call, admin, hook)] == ["redelivery", "test"]
    assert await _log(call, admin, hook, "?state=dead") == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"url": "nowhere-at-all"}, "url"),
        ({"url": "https://user:secret@example.com/"}, "url"),
        ({"url": "https://example.com/", "event_types": ["token.unheard_of"]}, "event_types"),
        ({"url": "https://example.com/", "event_types": ["nothing.*"]}, "event_types"),
        ({"url": "https://example.com/", "event_types": []}, "event_types"),
        ({"url": "https://example.com/", "concurrency": 0}, "concurrency"),
        ({"url": "https://example.com/", "description": "é" * 300}, None),
    ],
)
async def test_a_webhook_that_cannot_be_is_refused_with_the_name_of_what_is_wrong(
    call: Call, admin: Person, body: dict[str, Any], param: str | None
) -> None:
    status, problem = await call(admin, "POST", "/webhooks", body)
    assert (status, problem["code"], problem.get("param")) == (400, "invalid_request", param)
    assert (await call(admin, "GET", "/webhooks"))[1]["items"] == []


async def test_a_tenant_has_at_most_twenty_webhooks_also_when_they_are_made_at_once(
    call: Call, admin: Person, hooks: Hooks
) -> None:
    body = {"url": "https://example.com/"}
    made = await asyncio.gather(*(call(admin, "POST", "/webhooks", body) for _ in range(24)))
    assert sorted(status for status, _ in made) == [201] * 20 + [429] * 4
    problem = next(problem for status, problem in made if status == 429)
    assert (problem["code"], problem["limit"], problem["used"]) == ("limit_reached", 20, 20)


async def test_without_the_setting_a_private_address_is_refused_when_a_webhook_is_made_or_changed(
    admin: Person, cluster: Cluster, database_name: str, tmp_path: Path, hooks: Hooks
) -> None:
    async with (
        serve(create_app(settings_for(cluster, database_name, tmp_path))) as address,
        aiohttp.ClientSession(address, headers=admin.headers) as http,
    ):
        async with http.post("/api/v1/webhooks", json={"url": "https://example.com/"}) as answer:
            made = await answer.json()
        for url in ("http://example.com/", "https://127.0.0.1/", "https://169.254.169.254/"):
            for method, path in (("POST", "/api/v1/webhooks"), ("PATCH", f"/api/v1/webhooks/{made['id']}")):
                async with http.request(method, path, json={"url": url}) as answer:
                    assert (answer.status, (await answer.json())["param"]) == (400, "url")


async def test_the_operator_makes_tests_rotates_disables_and_deletes_a_webhook(
    cluster: Cluster, database_name: str, tmp_path: Path, operator: asyncpg.Connection, people: People, hooks: Hooks
) -> None:
    environment = {
        "DATABASE_URL": cluster.url(database=database_name),
        "VANILLA_SAAS_CONTEXT_KEY": TEST_KEY,
        "VANILLA_SAAS_SECRET_KEY": "c3" * 32,
        "VANILLA_SAAS_HOME": str(tmp_path),
    }
    tenant = await people.tenant()
    slug = await operator.fetchval("select slug from tenants where id = $1", tenant)

    async def run(*arguments: str) -> Result:
        line = ["webhooks", *arguments, "--tenant", slug, "--json"]
        return await asyncio.to_thread(CliRunner().invoke, commands, line, env=environment)

    async def told(*arguments: str) -> Any:
        result = await run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return orjson.loads(result.stdout)

    made = await told("create", "https://example.com/hook", "--event", "token.*", "--event", "webhook.disabled")
    hook_id = uuid.UUID(made["id"])

    async def secret_of(column: str) -> str:
        stored = await operator.fetchval(f"select {column} from webhook_endpoints where id = $1", hook_id)
        return BOX.decrypt(tenant, hook_id, stored)

    assert await secret_of("secret") == made["secret"]
    (row,) = await told("list")
    assert (row["id"], row["event_types"]) == (made["id"], ["token.*", "webhook.disabled"])
    queued = await told("test", made["id"])
    (delivery,) = await told("deliveries", made["id"])
    assert (delivery["id"], delivery["event_type"]) == (queued["delivery_id"], "webhook.test")
    assert (await told("redeliver", delivery["id"]))["delivery_id"] == delivery["id"]
    assert [row["type"] for row in await told("events")] == ["webhook.test"]
    fresh = await told("rotate-secret", made["id"], "--keep-hours", "2")
    assert fresh["secret"] != made["secret"]
    assert (await secret_of("secret"), await secret_of("previous_secret")) == (fresh["secret"], made["secret"])
    assert (await told("disable", made["id"]))["status"] == "disabled"
    assert str((await run("test", made["id"])).exception) == "the webhook is disabled"
    assert (await told("enable", made["id"]))["status"] == "active"
    await told("delete", made["id"])
    assert await told("list") == []
    assert "no webhook" in str((await run("deliveries", made["id"])).exception)
