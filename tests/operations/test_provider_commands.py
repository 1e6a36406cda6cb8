"""`vanilla-saas providers` and `models` as processes: a key goes from the operator to the provider and no further."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from typer.testing import CliRunner

from tests.conftest import Cluster, People, Person, migrated_database
from tests.docs.reference import commands
from tests.migrations.tools import Shell
from tests.processes import Finished, Installation, assert_books_are_clean, over
from vanilla_saas.cli import app
from vanilla_saas.database.pool import _prepare

KEY = "sk-operator-4f9aXQ7-not-to-be-seen-anywhere"
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
}


@dataclass
class Place:
    """A database of the module's own, the operator's command line over it, and a server."""

    shell: Shell
    operator: asyncpg.Connection
    commands: Installation
    servers: Installation
    cluster: Cluster

    async def run(self, *arguments: str, given: str = "") -> Finished:
        return await asyncio.to_thread(self.commands.run, *arguments, given=given)


@pytest.fixture(scope="module")
async def place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    home = tmp_path_factory.mktemp("home")
    async with AsyncExitStack() as stack:
        name = await stack.enter_async_context(migrated_database(cluster, "providers"))
        operator = await asyncpg.connect(cluster.url(database=name))
        stack.push_async_callback(operator.close)
        await _prepare(operator)
        servers = over(cluster, name, home)
        admin = Installation(home, **servers.environment | {"DATABASE_URL": cluster.url(database=name)})
        yield Place(Shell(cluster, 18, name), operator, admin, servers, cluster)


@asynccontextmanager
async def provider() -> AsyncIterator[tuple[str, list[dict[str, str]]]]:
    """An HTTP server that answers chat calls: its base address and the headers it has seen."""
    seen: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.json_response(ANSWER)

    application = web.Application()
    application.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", seen
    finally:
        await runner.cleanup()


async def call(url: str, person: Person) -> tuple[int, Any]:
    body = {"model": "gpt-4o-mini", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body, headers=person.headers) as answer,
    ):
        return answer.status, await answer.json()


async def test_a_providers_key_reaches_the_provider_and_nobody_else(place: Place) -> None:
    people = People(place.operator)
    person = await people.user(balance=5000)
    async with provider() as (base_url, seen), place.servers.serving("serve") as running:
        await place.operator.execute("update ai_providers set base_url = $1 where slug = 'openai'", base_url)
        assert (await call(running.url, person))[1]["error"]["code"] == "provider_not_ready"

        stored = await place.run("providers", "set-key", "openai", "--stdin", given=f"{KEY}\n")
        assert stored.code == 0, stored
        listed = await place.run("providers", "list", "--json")
        (row,) = [row for row in json.loads(listed.out) if row["slug"] == "openai"]
        assert (row["has_key"], row["secret_hint"]) == (True, KEY[-4:])

        status, answer = await call(running.url, person)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "yes")
        assert [headers["Authorization"] for headers in seen] == [f"Bearer {KEY}"]
        assert (await people.wallet(person))["available_tokens"] == 5000 - 12

        # a changed secret opens for nobody, and costs nobody anything
        await place.operator.execute("update ai_providers set secret = set_byte(secret, 20, get_byte(secret, 20) # 1)")
        status, answer = await call(running.url, person)
        assert (status, answer["error"]["code"]) == (424, "provider_not_ready")
        assert "providers set-key openai" in answer["error"]["message"]
        assert len(seen) == 1
        wallet = await people.wallet(person)
        assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (5000 - 12, 0)
        assert await running.stop() == 0

    log = Path(place.cluster.host).parents[1] / "server.log"
    texts = {
        "output": stored.out + stored.err + listed.out + listed.err + running.out + running.err,
        "database": await asyncio.to_thread(place.shell.dump),
        "log of the database": log.read_text() if log.exists() else "",
    }
    assert "provider_secret_unreadable" in texts["output"]
    for where, text in texts.items():
        assert KEY not in text, where
        assert KEY.encode().hex() not in text, where
    await assert_books_are_clean(place.operator)

    cleared = await place.run("providers", "clear-key", "openai")
    assert cleared.code == 0, cleared
    assert await place.operator.fetchval("select secret is null from ai_providers where slug = 'openai'")


@pytest.mark.parametrize(
    ("slug", "given", "code"),
    [("nobody", f"{KEY}\n", "not_found"), ("openai", "short\n", "invalid_request"), ("openai", "", "invalid_request")],
)
async def test_a_key_that_cannot_be_stored_is_refused(slug: str, given: str, code: str, place: Place) -> None:
    done = await place.run("providers", "set-key", slug, "--stdin", given=given)
    assert (done.code, done.err.partition(":")[0]) == (1, f"error {code}"), done
    assert KEY not in done.out + done.err
    assert await place.operator.fetchval("select bool_and(secret is null) from ai_providers")


async def test_models_are_synchronised_again_and_again_with_the_same_result(place: Place) -> None:
    statement = "select slug, input_price, output_price, status from ai_models order by slug"
    await place.operator.execute(
        "update ai_models set input_price = 1 where slug = 'gpt-4o-mini';"
        "update ai_models set status = 'disabled' where slug = 'gpt-4.1'"
    )
    first = await place.run("models", "sync", "--json")
    said = json.loads(first.out)
    assert said["added"] > 0
    assert said["updated"] > 0
    assert said["source"].startswith("genai-prices ")
    rows = await place.operator.fetch(statement)
    again = await place.run("models", "sync", "--json")
    assert json.loads(again.out) == said | {"added": 0, "updated": said["added"] + said["updated"]}
    assert await place.operator.fetch(statement) == rows
    by_slug = {row["slug"]: row for row in rows}
    assert by_slug["gpt-4o-mini"]["input_price"] > 1
    assert by_slug["gpt-4.1"]["status"] == "disabled"


async def test_migrating_again_says_that_the_schema_is_current(place: Place) -> None:
    done = await place.run("migrate", "--json")
    assert (done.code, json.loads(done.out)) == (0, {"applied": []}), done


async def test_the_help_of_the_command_names_every_verb(place: Place) -> None:
    done = await place.run("--help")
    assert done.code == 0
    for verb in ("up", "serve", "migrate", "demo", "doctor", "providers", "models"):
        assert f" {verb} " in done.out


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_the_help_of_every_verb_is_a_sentence(path: str) -> None:
    result = CliRunner().invoke(app, [*path.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    (command,) = [command for found, command in commands() if found == path]
    sentence = (command.help or "").strip().partition("\n")[0]
    assert sentence[:1].isupper(), sentence
    assert sentence.endswith((".", ":", ").")), sentence
    assert sentence.split(".")[0][:40] in result.output
