"""A person's data as one document: complete, of one moment, of nobody else, in the memory of one part."""

import json
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.conftest import Cluster, People, Person
from tests.processes import eventually
from tests.tenancy.conftest import Api, MakeMember
from tests.tenancy.test_erasure import erase, plant
from vanilla_saas.database import pool
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy import person_export, store

MANY = 200_000
ADMINS_ONLY = {"user_token_policies", "events", "audit_logs", "engine_assignments"}
SECRET = {"password_hash", "key_hash", "token_hash", "refresh_hash"}
OPEN_TRANSACTIONS = (
    "select count(*) from pg_stat_activity where usename = 'vanilla_app' and datname = current_database()"
    " and xact_start is not null"
)


async def document(database: Database, caller: Person, of: Person | None = None) -> dict[str, Any]:
    """The export as the caller reads it, without HTTP."""
    who = (of or caller).identity.user_id
    async with database.transaction(caller.identity) as connection:
        begun = await store.start_person_export(connection, caller.identity.tenant_id, who)
    async with database.snapshot(caller.identity) as snapshot:
        parts = [part async for part in person_export.document(begun, snapshot.renewed)]
    read: dict[str, Any] = json.loads(b"".join(parts))
    return read


async def test_an_admin_reads_every_table_of_a_person_and_no_secret_and_nobody_else(
    database: Database, people: People, operator: asyncpg.Connection
) -> None:
    tenant = await people.tenant()
    admin, person, other = [await people.user(role, tenant) for role in ("admin", "user", "user")]  # type: ignore[arg-type]
    stranger = await people.user(tenant_id=await people.tenant())
    canary, _ = await plant(operator, person)
    await operator.execute(
        "update users set display_name = 'other-canary' where id = any ($1)",
        [other.identity.user_id, stranger.identity.user_id],
    )
    await operator.fetchval(
        "select adjust_user_tokens(u, 5, 'credit', 'other-canary') from unnest($1::uuid[]) u",
        [other.identity.user_id, stranger.identity.user_id],
    )
    found = await document(database, admin, person)
    assert found["format"] == "vanilla-saas.person/1"
    assert found["user"]["id"] == str(person.identity.user_id)
    assert found["user"]["display_name"].startswith(canary)
    tables = {row[0] for row in await operator.fetch("select relation from vanilla.person_tables()")}
    assert set(found["tables"]) == tables - {"users"}
    assert [name for name, rows in found["tables"].items() if not rows] == []
    columns = {column for rows in [[found["user"]], *found["tables"].values()] for row in rows for column in row}
    assert columns & SECRET == set()
    assert {"available_tokens", "user_agent", "prefix", "hash"} <= columns
    assert [row["seq"] for row in found["tables"]["user_token_ledger"]] == list(
        range(1, len(found["tables"]["user_token_ledger"]) + 1)
    )
    text = json.dumps(found)
    assert "other-canary" not in text
    for somebody in (other, stranger):
        assert str(somebody.identity.user_id) not in text
    # the log says who read it; the row before it is the person's too
    (audit,) = [row for row in found["tables"]["audit_logs"] if row["action"] == "user.exported"]
    assert (audit["actor_id"], audit["target_id"]) == (str(admin.identity.user_id), str(person.identity.user_id))


async def test_a_person_reads_their_own_data_as_far_as_their_role_goes(
    database: Database, people: People, operator: asyncpg.Connection
) -> None:
    person = await people.user(tenant_id=await people.tenant())
    await plant(operator, person)
    found = await document(database, person)
    tables = {row[0] for row in await operator.fetch("select relation from vanilla.person_tables()")}
    assert set(found["tables"]) == tables - {"users"} - ADMINS_ONLY
    assert [name for name, rows in found["tables"].items() if not rows] == []


async def test_whoever_may_not_read_a_person_exports_nothing(
    database: Database, people: People, operator: asyncpg.Connection
) -> None:
    tenant = await people.tenant()
    admin, user, other, gone = [
        await people.user(role, tenant)  # type: ignore[arg-type]
        for role in ("admin", "user", "user", "user")
    ]
    stranger = await people.user("admin", await people.tenant())
    await erase(operator, gone)

    async def refusal(caller: Person, of: Person) -> str:
        with pytest.raises(VanillaError) as refused:
            await document(database, caller, of)
        return str(refused.value.name)

    assert await refusal(user, other) == "forbidden"
    assert await refusal(stranger, user) == "not_found"
    assert await refusal(admin, gone) == "not_found"
    # past the first step every other asks again, and the rows are the policies' to show
    for caller in (other, stranger):
        for table in ("user_token_ledger", "sessions"):
            with pytest.raises(VanillaError) as refused:
                async with database.snapshot(caller.identity) as snapshot:
                    await store.open_person_rows(await snapshot.renewed(), tenant, user.identity.user_id, table)
            assert refused.value.name in ("forbidden", "not_found")
    with pytest.raises(VanillaError) as refused:
        async with database.snapshot(admin.identity) as snapshot:
            await store.open_person_rows(await snapshot.renewed(), tenant, user.identity.user_id, "tenants")
    assert refused.value.name == "not_found"


@pytest.fixture
async def rich(people: People, operator: asyncpg.Connection) -> AsyncIterator[Person]:
    """Somebody with 200,000 executions."""
    person = await people.user(tenant_id=await people.tenant())
    await operator.execute(
        "insert into ai_executions (tenant_id, user_id, provider, model, status, request_id)"
        " select $1, $2, 'p', 'm', 'succeeded', n::text from generate_series(1, $3::integer) n",
        person.identity.tenant_id,
        person.identity.user_id,
        MANY,
    )
    yield person
    await operator.execute("delete from ai_executions where tenant_id = $1", person.identity.tenant_id)


async def test_an_export_of_many_rows_takes_the_memory_of_one_part_and_shows_one_moment(
    database: Database, rich: Person, operator: asyncpg.Connection
) -> None:
    identity = rich.identity
    async with database.transaction(identity) as connection:
        begun = await store.start_person_export(connection, identity.tenant_id, identity.user_id)
    begun["tables"] = ["users", "ai_executions"]
    size = rows = 0
    late = False
    async with database.snapshot(identity) as snapshot:
        tracemalloc.start()
        try:
            async for part in person_export.document(begun, snapshot.renewed):
                size += len(part)
                rows += part.count(b'"request_id"')
                if rows and not late:
                    late = True
                    await operator.execute(
                        "insert into ai_executions (tenant_id, user_id, provider, model, status)"
                        " values ($1, $2, 'late', 'm', 'succeeded')",
                        identity.tenant_id,
                        identity.user_id,
                    )
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert rows == MANY, "what was written meanwhile is in it, or rows are missing"
    assert size > 60_000_000
    assert peak < 4_000_000, f"{peak} bytes at once for a document of {size}"


async def test_a_client_that_goes_away_in_the_middle_leaves_no_open_transaction(
    api: str, rich: Person, operator: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = person_export.document

    async def endless(begun: dict[str, Any], reading: person_export.Reading) -> AsyncIterator[bytes]:
        while True:  # who does not stop it is never done
            async for part in whole(begun, reading):
                yield part

    monkeypatch.setattr(person_export, "document", endless)
    async with aiohttp.ClientSession(api) as http:
        for _ in range(3):  # more than may run at once: each gives back what it took
            answer = await http.get("/api/v1/me/export", headers=rich.headers)
            assert answer.status == 200
            assert answer.headers["content-disposition"] == (
                f'attachment; filename="person-{rich.identity.user_id}.json"'
            )
            await answer.content.readexactly(100_000)
            answer.close()

            async def over() -> bool:
                return await operator.fetchval(OPEN_TRANSACTIONS) == 0

            await eventually(over)


async def test_a_context_is_signed_anew_while_an_export_lasts_and_an_ended_one_fails_it(
    database: Database, people: People, signer: ContextSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = await people.user()
    monkeypatch.setattr(pool, "RENEW_BELOW_S", 61)  # before every statement
    assert (await document(database, person))["user"]["id"] == str(person.identity.user_id)
    tokens = set()
    async with database.snapshot(person.identity) as snapshot:
        before = snapshot.token
        snapshot._sign = lambda: signer.sign(person.identity, 59)
        connection = await snapshot.renewed()
        tokens = {before, snapshot.token, await connection.fetchval("select current_setting('vanilla.context')")}
    assert len(tokens) == 2
    async with database.snapshot(person.identity) as snapshot:
        snapshot.token = signer.sign(person.identity, -1)
        with pytest.raises(VanillaError) as refused:
            await snapshot.renewed()
        assert refused.value.name == "context_invalid"
        snapshot.token = signer.sign(person.identity)
    with pytest.raises(VanillaError) as refused:
        async with database.snapshot(person.identity) as snapshot:
            snapshot.token = signer.sign(person.identity, -1)
    assert refused.value.name == "context_invalid", "what was read last may be short"


async def test_exports_take_no_more_than_a_quarter_of_the_connections(database: Database, people: People) -> None:
    person = await people.user()
    async with database.snapshot(person.identity), database.snapshot(person.identity):
        with pytest.raises(VanillaError) as refused:
            async with database.snapshot(person.identity):
                pass
    assert refused.value.name == "saturated"
    assert (await document(database, person))["user"]


async def test_people_are_exported_and_erased_over_http(call: Api, member: MakeMember, people: People) -> None:
    tenant = await people.tenant()
    admin, user = [await member(role, tenant) for role in ("admin", "user")]
    own = await call("GET", "/me/export", token=user.token)
    assert (own.status, own.body["user"]["id"]) == (200, user.id)
    assert own.headers["cache-control"] == "no-store"
    assert (await call("GET", f"/users/{user.id}/export", token=admin.token)).body["user"]["id"] == user.id
    assert (await call("GET", f"/users/{admin.id}/export", token=user.token)).refusal == (403, "forbidden")
    assert (await call("GET", f"/users/{uuid.uuid4()}/export", token=admin.token)).refusal == (404, "not_found")
    path = f"/users/{user.id}"
    assert (await call("DELETE", path, token=admin.token)).refusal == (400, "invalid_request")
    assert (await call("DELETE", path, token=user.token, params={"reason": "x"})).refusal == (403, "forbidden")
    erased = await call("DELETE", path, token=admin.token, params={"reason": "asked for"})
    assert (erased.status, erased.body["wallet"], erased.body["sessions"]) == (200, "closed", 1)
    assert (await call("DELETE", path, token=admin.token, params={"reason": "x"})).refusal == (404, "not_found")
    assert (await call("GET", "/me/export", token=user.token)).status == 401
    oneself = await call("DELETE", f"/users/{admin.id}", token=admin.token, params={"reason": "x"})
    assert oneself.refusal == (409, "invalid_state")


async def test_a_tenant_is_closed_over_http_with_the_date_of_its_erasure(
    call: Api, member: MakeMember, people: People
) -> None:
    root, tenant = await member("superadmin"), await people.tenant()
    too_long = await call("POST", f"/tenants/{tenant}/close", {"reason": "x", "grace_days": 40_000}, root.token)
    assert too_long.refusal == (400, "invalid_request")
    closed = await call("POST", f"/tenants/{tenant}/close", {"reason": "x", "grace_days": 5}, root.token)
    assert (closed.status, closed.body["status"], closed.body["erased_at"]) == (200, "closed", None)
    assert closed.body["erase_at"] is not None
    opened = await call("PATCH", f"/tenants/{tenant}", {"status": "active"}, root.token)
    assert (opened.body["status"], opened.body["erase_at"]) == ("active", None)


async def test_a_server_of_one_connection_still_exports(
    cluster: Cluster, database_name: str, people: People, signer: ContextSigner
) -> None:
    person = await people.user()
    small = await Database.open(
        cluster.url("vanilla_app", database_name), cluster.url("vanilla_runtime", database_name), signer, size=1
    )
    try:
        assert (await document(small, person))["user"]
    finally:
        await small.close()
