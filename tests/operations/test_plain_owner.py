"""DATABASE_URL of a plain owner on a server that listens on TCP and asks for passwords: the usual hosted database."""

import asyncio

import aiohttp
import asyncpg

from tests.conftest import People
from tests.operations.conftest import KEYS, OWNER_PASSWORD
from tests.processes import Installation, assert_books_are_clean
from vanilla_saas.database.pool import _prepare


async def call(url: str, key: str) -> int:
    body = {"model": "sandbox-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}) as answer,
    ):
        return answer.status


async def test_a_plain_owner_migrates_serves_and_rotates_the_context_key(
    installation: Installation, superuser: asyncpg.Connection, port: int
) -> None:
    early = await asyncio.to_thread(installation.run, "serve")
    assert (early.code, early.err.partition(":")[0]) == (1, "error database_unavailable"), early
    assert "vanilla-saas migrate" in early.err

    migrated = await asyncio.to_thread(installation.run, "migrate")
    assert migrated.code == 0, migrated
    logins = await superuser.fetch(
        "select rolname, rolcanlogin, rolsuper, rolbypassrls, rolpassword ~ '^SCRAM-SHA-256' as scram from pg_authid"
        " where rolname in ('vanilla_app', 'vanilla_runtime') order by 1"
    )
    assert [tuple(row) for row in logins] == [
        ("vanilla_app", True, False, False, True),
        ("vanilla_runtime", True, False, False, True),
    ]

    owner = await asyncpg.connect(host="127.0.0.1", port=port, user="owner", password=OWNER_PASSWORD, database="hosted")
    await _prepare(owner)
    people = People(owner)
    person = await people.user()
    async with installation.serving("serve") as running:
        assert await call(running.url, person.key) == 200
        users = await superuser.fetch(
            "select distinct usename from pg_stat_activity where datname = 'hosted' and pid <> pg_backend_pid()"
        )
        assert {row["usename"] for row in users} == {"owner", "vanilla_app", "vanilla_runtime"}

        # rotation: documented in docs/design/database.md
        rotated = {"VANILLA_SAAS_CONTEXT_KEY": KEYS["after"]}
        wrong = await asyncio.to_thread(lambda: installation.run("serve", **rotated))
        assert (wrong.code, wrong.err.partition(":")[0]) == (1, "error database_unavailable"), wrong
        assert "vanilla-saas migrate" in wrong.err
        again = await asyncio.to_thread(lambda: installation.run("migrate", **rotated))
        assert (again.code, again.out) == (0, "The schema is current.\n"), again
        async with installation.serving("serve", **rotated) as renewed:
            assert await call(renewed.url, person.key) == 200
            # the process with the former key goes on with the connections it has
            assert await call(running.url, person.key) == 200
            assert await renewed.stop() == 0
        assert await running.stop() == 0
    await assert_books_are_clean(owner)
    await owner.close()


async def test_a_login_that_may_not_make_roles_is_told_what_it_lacks(
    installation: Installation, superuser: asyncpg.Connection, port: int
) -> None:
    await superuser.execute("create role poor login nosuperuser nocreaterole password 'poor'")
    await superuser.execute("create database poorly owner poor")
    url = f"postgresql://poor:poor@127.0.0.1:{port}/poorly"
    done = await asyncio.to_thread(lambda: installation.run("migrate", DATABASE_URL=url))
    assert (done.code, done.err.partition(":")[0]) == (1, "error forbidden"), done
    assert "CREATEROLE" in done.err
    assert "Traceback" not in done.err
