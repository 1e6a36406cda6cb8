"""Statements: their borders, the balances around them, and documents that are written part by part."""

import csv
import io
import uuid
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import asyncpg
import orjson
import pytest

from tests.conftest import People, Person
from tests.tokens.support import START, Books, User
from vanilla_saas.tokens import statement, wallet_store

MICRO, HOUR = timedelta(microseconds=1), timedelta(hours=1)


async def frame(books: Books, user: User, since: datetime | None, until: datetime | None) -> tuple[int, int, int, int]:
    return tuple(
        await books.connection.fetchrow("select * from token_statement_frame($1, $2, $3)", user.id, since, until)
    )


async def seqs(books: Books, user: User, since: datetime | None, until: datetime | None, *part: int) -> list[int]:
    named = ["", ", $4", ", $4, $5"][len(part)]
    rows = await books.connection.fetch(
        f"select seq from token_statement($1, $2, $3{named})", user.id, since, until, *part
    )
    return [row["seq"] for row in rows]


async def hourly(books: Books) -> User:
    """Entries 1 to 5 at START, an hour later twice, two hours later, three hours later."""
    user = await books.user(balance=100)
    for hour, amount in ((1, 10), (1, 20), (2, 30), (3, 40)):
        await books.at(START + hour * HOUR)
        await books.adjust(user, amount, "debit")
    return user


@pytest.mark.parametrize(
    ("since", "until", "expected", "balances"),
    [
        (START - HOUR, START, [], (0, 0)),
        (START - HOUR, START + MICRO, [1], (0, 100)),
        (START, START + HOUR, [1], (0, 100)),  # the end is not included
        (START + HOUR, START + 2 * HOUR, [2, 3], (100, 70)),  # the beginning is
        (START + HOUR + MICRO, START + 2 * HOUR, [], (70, 70)),
        (START + HOUR, START + 2 * HOUR + MICRO, [2, 3, 4], (100, 40)),
        (START, START + 9 * HOUR, [1, 2, 3, 4, 5], (0, 0)),
        (START + 8 * HOUR, START + 9 * HOUR, [], (0, 0)),
    ],
)
async def test_a_statement_begins_with_its_first_moment_and_ends_before_its_last(
    books: Books, since: datetime, until: datetime, expected: list[int], balances: tuple[int, int]
) -> None:
    user = await hourly(books)
    assert await seqs(books, user, since, until) == expected
    after, last, *around = await frame(books, user, since, until)
    assert list(range(after + 1, last + 1)) == expected
    assert tuple(around) == balances
    at = "select token_balance_at($1, $2)"
    assert await books.connection.fetchval(at, user.id, since - MICRO) == balances[0]
    assert await books.connection.fetchval(at, user.id, until - MICRO) == balances[1]


async def test_a_statement_is_read_in_parts(books: Books) -> None:
    user = await hourly(books)
    whole = (START + HOUR, START + 3 * HOUR)
    assert await seqs(books, user, *whole, 0, 2) == [2, 3]
    assert await seqs(books, user, *whole, 3, 2) == [4]
    assert await seqs(books, user, *whole, 4, 2) == []


@pytest.mark.parametrize(("since", "until"), [(None, START), (START, None), (START, START), (START, START - MICRO)])
async def test_a_period_that_is_none_is_refused(books: Books, since: datetime | None, until: datetime | None) -> None:
    user = await hourly(books)
    for call in (seqs, frame):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await call(books, user, since, until)
        assert refused.value.sqlstate == "VS400"


async def test_nobody_has_no_statement(books: Books) -> None:
    nobody = User(uuid.uuid4(), uuid.uuid4(), {})
    for call in (seqs, frame):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await call(books, nobody, START, START + HOUR)
        assert refused.value.sqlstate == "VS404"


# documents --------------------------------------------------------------------------------------------------------
async def fetch(http: aiohttp.ClientSession, person: Person, status: int = 200, **query: Any) -> tuple[bytes, Any]:
    headers = person.headers | ({"accept": query.pop("accept")} if "accept" in query else {})
    async with http.get("/api/v1/statement", headers=headers, params=query) as answer:
        body = await answer.read()
        assert answer.status == status, body
        return body, answer.headers


async def spent(people: People, times: int = 4) -> Person:
    person = await people.user(balance=1000)
    for n in range(times):
        await people.operator.fetchval("select adjust_user_tokens($1, $2, 'debit')", person.identity.user_id, n + 1)
    return person


async def test_the_json_has_the_balances_around_the_entries(http: aiohttp.ClientSession, people: People) -> None:
    person = await spent(people)
    body, headers = await fetch(http, person)
    document = orjson.loads(body)
    wallet = await people.wallet(person)
    assert headers["content-type"] == "application/json"
    assert (document["opening_balance"], document["closing_balance"]) == (0, wallet["available_tokens"])
    assert document["count"] == len(document["entries"]) == wallet["seq"]
    assert document["opening_balance"] + sum(e["amount"] for e in document["entries"]) == document["closing_balance"]
    # a part of it fits to the whole
    third = document["entries"][2]["created_at"]
    body, _ = await fetch(http, person, **{"from": third})
    later = orjson.loads(body)
    assert later["entries"] == document["entries"][2:]
    assert later["opening_balance"] == sum(e["amount"] for e in document["entries"][:2])


@pytest.mark.parametrize("how", [{"format": "csv"}, {"accept": "text/csv"}])
async def test_the_csv_has_the_same_entries_and_a_file_name(
    http: aiohttp.ClientSession, people: People, how: dict[str, str]
) -> None:
    person = await spent(people)
    entries = orjson.loads((await fetch(http, person))[0])["entries"]
    body, headers = await fetch(http, person, **how)
    assert headers["content-type"] == "text/csv; charset=utf-8"
    assert headers["content-disposition"].startswith(f'attachment; filename="statement-{person.identity.user_id}-')
    assert headers["content-disposition"].endswith('.csv"')
    rows = list(csv.DictReader(io.StringIO(body.decode(), newline="")))
    assert [{name: int(row[name]) for name in ("seq", "amount", "available_tokens")} for row in rows] == [
        {name: entry[name] for name in ("seq", "amount", "available_tokens")} for entry in entries
    ]
    assert [datetime.fromisoformat(row["created_at"]) for row in rows] == [
        datetime.fromisoformat(entry["created_at"]) for entry in entries
    ]
    assert all(row["created_at"].endswith("Z") for row in rows)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1+1", "'  =1+1"),
        ("\t=1", "'\t=1"),
        ("\rx", "'\rx"),
        ('a "quoted", text\nof two lines', 'a "quoted", text\nof two lines'),
        ("1-1", "1-1"),
        ("überwiesen", "überwiesen"),
    ],
)
async def test_no_text_of_a_csv_is_a_formula(http: aiohttp.ClientSession, people: People, text: str, cell: str) -> None:
    person = await people.user()
    await people.operator.fetchval(
        "select adjust_user_tokens($1, 5, 'debit', $2, $2, $2)", person.identity.user_id, text
    )
    body, _ = await fetch(http, person, format="csv")
    *_, row = csv.DictReader(io.StringIO(body.decode(), newline=""))
    assert (row["reason"], row["source"], row["reference_type"]) == (cell, cell, cell)
    assert row["amount"] == "-5"  # a figure stays one


@pytest.mark.parametrize("form", ["json", "csv"])
async def test_a_long_statement_is_read_in_parts_and_what_comes_meanwhile_is_left_out(
    http: aiohttp.ClientSession, people: People, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    person = await spent(people, 20)
    last = (await people.wallet(person))["seq"]
    monkeypatch.setattr(statement, "PART", 3)
    parts: list[tuple[int, int]] = []
    real = wallet_store.statement_part

    async def watched(connection: Any, user_id: Any, since: Any, until: Any, after: int, limit: int) -> Any:
        parts.append((after, limit))
        if len(parts) == 2:
            await people.operator.fetchval("select adjust_user_tokens($1, 1, 'debit')", user_id)
        return await real(connection, user_id, since, until, after, limit)

    monkeypatch.setattr(wallet_store, "statement_part", watched)
    until = "2100-01-01T00:00:00Z"
    body, _ = await fetch(http, person, format=form, until=until, **{"from": "2000-01-01T00:00:00Z"})
    if form == "json":
        document = orjson.loads(body)
        found = [entry["seq"] for entry in document["entries"]]
        assert document["closing_balance"] == document["entries"][-1]["available_tokens"]
    else:
        found = [int(row["seq"]) for row in csv.DictReader(io.StringIO(body.decode(), newline=""))]
    assert found == list(range(1, last + 1))
    assert max(limit for _, limit in parts) == 3
    assert len(parts) == -(-last // 3)


async def test_a_statement_is_ones_own_or_of_ones_tenant(http: aiohttp.ClientSession, people: People) -> None:
    person = await spent(people)
    other = await people.user()
    admin = await people.user("admin", scopes=["read", "admin"])
    stranger = await people.user("admin", await people.tenant(), scopes=["read", "admin"])
    of = {"user_id": str(person.identity.user_id)}
    await fetch(http, admin, **of)
    for outsider in (other, stranger):
        theirs = orjson.loads((await fetch(http, outsider, 404, **of))[0])
        nobody = orjson.loads((await fetch(http, outsider, 404, user_id=str(uuid.uuid4())))[0])
        assert theirs["detail"] == nobody["detail"]
    await fetch(http, await people.user(scopes=["chat"]), 403)


@pytest.mark.parametrize(
    "query",
    [
        {"format": "pdf"},
        {"from": "2026-01-01"},  # of which zone?
        {"from": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
        {"until": "yesterday"},
    ],
)
async def test_a_malformed_statement_is_refused(
    http: aiohttp.ClientSession, people: People, query: dict[str, str]
) -> None:
    body, _ = await fetch(http, await people.user(), 400, **query)
    assert orjson.loads(body)["code"] == "invalid_request"


@pytest.mark.parametrize("until", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
async def test_a_statement_reaches_to_the_ends_of_time(http: aiohttp.ClientSession, people: People, until: str) -> None:
    body, _ = await fetch(
        http, await people.user(), **{"from": "0001-01-01T00:00:00Z", "until": "9999-12-31T23:59:59Z"}
    )
    assert orjson.loads(body)["count"] > 0
    await fetch(http, await people.user(), until=until, status=400 if until.startswith("0001") else 200)


async def test_a_balance_is_that_of_a_moment(http: aiohttp.ClientSession, people: People) -> None:
    person = await spent(people)
    entries = orjson.loads((await fetch(http, person))[0])["entries"]
    for entry in entries:
        async with http.get("/api/v1/balance", headers=person.headers, params={"at": entry["created_at"]}) as answer:
            assert (await answer.json())["balance"] == entry["available_tokens"]
