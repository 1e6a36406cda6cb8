"""The context key is replaced while servers run: no request fails, and the former key ends."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest

from tests.conftest import People, Person
from tests.operations.conftest import OWNER_PASSWORD
from tests.processes import Finished, Installation, eventually
from vanilla_saas.database.context import PLATFORM, ContextSigner, Identity
from vanilla_saas.database.pool import _prepare


@pytest.fixture
async def people(superuser: asyncpg.Connection, port: int) -> AsyncIterator[People]:
    """People of an empty database of its own, made when it is migrated."""
    await superuser.execute("drop database if exists rotated with (force)")
    await superuser.execute("create database rotated owner owner")
    owner = await asyncpg.connect(
        host="127.0.0.1", port=port, user="owner", password=OWNER_PASSWORD, database="rotated"
    )
    await _prepare(owner)
    yield People(owner)
    await owner.close()


@pytest.fixture
def place(port: int, people: People, tmp_path: Path) -> Installation:
    """An installation whose key is in its home, made by the first command that needs it."""
    url = f"postgresql://owner:{quote(OWNER_PASSWORD, safe='')}@127.0.0.1:{port}/rotated"
    return Installation(tmp_path, DATABASE_URL=url, VANILLA_SAAS_POOL_SIZE="8", VANILLA_SAAS_RUN_WORKER="false")


async def run(place: Installation, *arguments: str, **environment: str) -> Finished:
    return await asyncio.to_thread(lambda: place.run(*arguments, **environment))


async def told(place: Installation, *arguments: str, **environment: str) -> dict[str, str]:
    done = await run(place, *arguments, "--json", **environment)
    assert done.code == 0, done
    answer: dict[str, str] = json.loads(done.out)
    return answer


async def asked(session: aiohttp.ClientSession, url: str, person: Person) -> list[int]:
    """A model call on one pool, and a page of rows on the other, under a signed context."""
    body = {"model": "sandbox-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=person.headers) as answer:
        called = answer.status
    async with session.get(f"{url}/api/v1/users", headers=person.headers) as answer:
        return [called, answer.status]


@asynccontextmanager
async def steady(url: str, person: Person) -> AsyncIterator[list[int]]:
    """Requests one after the other for the time of the block; the statuses of all of them."""
    seen: list[int] = []

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                seen.extend(await asked(session, url, person))
                await asyncio.sleep(0.02)  # the processors are the commands' too

    task = asyncio.create_task(ask())
    await eventually(_some(seen))
    try:
        yield seen
        before = len(seen)
        await eventually(_some(seen, before + 4))
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _some(seen: list[int], least: int = 0):  # type: ignore[no-untyped-def]
    async def enough() -> bool:
        return len(seen) > least

    return enough


async def burst(url: str, person: Person) -> None:
    """More requests at once than there are connections."""
    async with aiohttp.ClientSession() as session:
        statuses = await asyncio.gather(*(asked(session, url, person) for _ in range(12)))
    assert {status for pair in statuses for status in pair} == {200}


async def new_connections(superuser: asyncpg.Connection, url: str, person: Person) -> None:
    """Bursts until each pool has opened another connection."""
    began = await superuser.fetchval("select clock_timestamp()")

    async def grown() -> bool:
        await burst(url, person)
        return await superuser.fetchval(
            "select count(distinct usename) = 2 from pg_stat_activity where datname = 'rotated'"
            " and usename in ('vanilla_app', 'vanilla_runtime') and backend_start > $1",
            began,
        )

    await eventually(grown, 60)


async def lets_in(port: int, key: ContextSigner, token_of: ContextSigner) -> bool:
    """Whether the login of one key and a token of another are taken."""
    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=port,
        user="vanilla_app",
        password=key.login_password("vanilla_app"),
        database="rotated",
    )
    token = token_of.sign(Identity(PLATFORM, PLATFORM, "user"))
    try:
        async with connection.transaction():
            await connection.execute("select set_config('vanilla.context', $1, true)", token)
            return await connection.fetchval("select vanilla.claim(3) is not null")
    except asyncpg.PostgresError as error:
        if error.sqlstate == "VS401":
            return False
        raise
    finally:
        await connection.close()


async def test_a_key_file_is_rotated_under_a_running_server_without_a_failed_request(
    place: Installation, people: People, superuser: asyncpg.Connection, port: int
) -> None:
    assert (await run(place, "migrate")).code == 0
    person = await people.user(balance=10_000_000)
    file = place.home / "context.key"
    former = ContextSigner(bytes.fromhex(file.read_text().strip()))
    async with place.serving("serve") as running:
        async with steady(running.url, person) as seen:
            done = await told(place, "context-key", "rotate", "--accept-for", "600")
            assert (done["key_id"], done["former"]) != (former.key_id, former.key_id)
            present = ContextSigner(bytes.fromhex(file.read_text().strip()))
            assert (done["key_id"], done["former"]) == (present.key_id, former.key_id)
            assert file.stat().st_mode & 0o777 == 0o600
            # the former password is refused, its tokens are taken for a bounded time
            with pytest.raises(asyncpg.InvalidPasswordError):
                await lets_in(port, former, former)
            assert await lets_in(port, present, former)
            # the server opens connections with the new one, having looked at the file
            await new_connections(superuser, running.url, person)
            ended = await told(place, "context-key", "expire", former.key_id)
            assert ended["key_id"] == former.key_id
            assert not await lets_in(port, present, former)
            assert await lets_in(port, present, present)
            await burst(running.url, person)
        assert set(seen) == {200}
        assert await running.stop() == 0
    listed = json.loads((await run(place, "context-key", "list", "--json")).out)
    assert [(row["key_id"], row["accepted_until"] == "without end", row["signs_here"]) for row in listed] == [
        (present.key_id, True, True),
        (former.key_id, False, False),
    ]
    log = await people.operator.fetch("select action, details from audit_logs where target_type = 'context_key'")
    assert [(row["action"], row["details"]["key_id"]) for row in log] == [
        ("context_key.installed", present.key_id),
        ("context_key.expired", former.key_id),
        ("context_key.expired", former.key_id),
    ]


@pytest.mark.long
async def test_a_key_in_the_environment_is_rotated_by_restarting_servers_one_by_one(
    place: Installation, people: People, superuser: asyncpg.Connection, port: int
) -> None:
    old = {"VANILLA_SAAS_CONTEXT_KEY": "4d" * 32}
    assert (await run(place, "migrate", **old)).code == 0
    person = await people.user(balance=10_000_000)
    async with place.serving("serve", **old) as first, steady(first.url, person) as seen:
        said = await run(place, "context-key", "rotate", **old)
        assert said.code == 0, said
        given = re.search(r"VANILLA_SAAS_CONTEXT_KEY=([0-9a-f]{64},[0-9a-f]{64})\n", said.out)
        expire = re.search(r"vanilla-saas (context-key expire \w+)\n", said.out)
        assert given, said
        assert expire, said
        both = {"VANILLA_SAAS_CONTEXT_KEY": given[1]}
        present = ContextSigner(bytes.fromhex(given[1].split(",")[0]))
        # a deployment migrates before it starts: the server that is still there goes on opening connections
        assert (await run(place, "migrate", **both)).code == 0
        await new_connections(superuser, first.url, person)
        async with place.serving("serve", **both) as second, steady(second.url, person) as seen_by_second:
            assert set(seen) == {200}
            assert (await run(place, *expire[1].split(), **both)).code == 0
            await new_connections(superuser, second.url, person)
        assert set(seen_by_second) == {200}
    assert set(seen) <= {200, 401, 503}  # the first one was to be stopped before its key was expired
    # migrating with both does not bring the former password back
    assert (await run(place, "migrate", **both)).code == 0
    assert await lets_in(port, present, present)
    async with place.serving("serve", VANILLA_SAAS_CONTEXT_KEY=given[1].split(",")[0]) as last:
        assert set(await _once(last.url, person)) == {200}
    retired = await run(place, "migrate", **old)
    assert (retired.code, retired.err.partition(":")[0]) == (1, "error invalid_state"), retired
    assert "retired" in retired.err


async def _once(url: str, person: Person) -> list[int]:
    async with aiohttp.ClientSession() as session:
        return await asked(session, url, person)


async def test_the_key_that_signs_and_the_last_one_are_not_expired(place: Installation, people: People) -> None:
    assert (await run(place, "migrate")).code == 0
    key = ContextSigner(bytes.fromhex((place.home / "context.key").read_text().strip()))
    for key_id, code in ((key.key_id, "invalid_state"), ("nosuchkey", "not_found")):
        refused = await run(place, "context-key", "expire", key_id)
        assert (refused.code, refused.err.partition(":")[0]) == (1, f"error {code}"), refused
    async with people.operator.transaction():
        await people.operator.execute("set local role vanilla_owner")
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await people.operator.fetchval("select vanilla.expire_context_key($1, now())", key.key_id)
        assert refusal.value.sqlstate == "VS409"


async def test_a_rotation_that_was_cut_short_goes_on(
    place: Installation, people: People, superuser: asyncpg.Connection
) -> None:
    assert (await run(place, "migrate")).code == 0
    person = await people.user(balance=10_000_000)
    file = place.home / "context.key"
    former = file.read_text().strip()
    # killed after the file and before the passwords: both keys are listed, the new one is installed
    between = "6f" * 32
    async with people.operator.transaction():
        await people.operator.execute("set local role vanilla_owner")
        signer = ContextSigner(bytes.fromhex(between))
        await people.operator.fetchval("select vanilla.install_context_key($1, $2)", signer.key_id, signer.key)
    file.write_text(f"{between}\n{former}\n")
    async with place.serving("serve") as running, steady(running.url, person) as seen:
        await told(place, "context-key", "rotate")
        await new_connections(superuser, running.url, person)
        assert len(file.read_text().split()) == 1
    assert set(seen) == {200}
