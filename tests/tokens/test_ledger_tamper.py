"""The ledger cannot be changed by any role of ours, and who changes it past us is found."""

import asyncpg
import pytest

from tests.conftest import People

COLUMNS = """
select a.attname, format_type(a.atttypid, a.atttypmod) as type from pg_attribute a
where a.attrelid = 'public.user_token_ledger'::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum
"""
OTHER_VALUE = {
    "uuid": "gen_random_uuid()",
    "bigint": "coalesce({0}, 0) + 1",
    "text": "coalesce({0}, '') || 'x'",
    "timestamp with time zone": "{0} + interval '1 microsecond'",
    "bytea": r"coalesce({0}, '\x') || '\x00'",
    "jsonb": """{0} || '{{"edited": true}}'""",
}

RECHAIN = """
do $d$
declare
    v_row public.user_token_ledger;
    v_head bytea := '';
begin
    for v_row in select * from public.user_token_ledger where user_id = '{user}' order by seq loop
        v_head := vanilla.ledger_hash(v_head, v_row);
        update public.user_token_ledger set hash = v_head where user_id = v_row.user_id and seq = v_row.seq;
    end loop;
    update public.user_token_wallets set head = v_head where user_id = '{user}';
end
$d$
"""


@pytest.fixture
async def wallet(operator: asyncpg.Connection, people: People) -> int:
    """The seq of the middle row of a ledger of five or more; its owner is the last person made."""
    person = await people.user()
    for amount in (100, 50, 20):
        await operator.fetchval("select adjust_user_tokens($1, $2, 'debit')", person.identity.user_id, amount)
    await operator.fetchval("select adjust_user_tokens($1, 5, 'credit')", person.identity.user_id)
    seq = (await people.wallet(person))["seq"]
    assert seq >= 5
    return seq - 2


async def test_every_change_of_every_column_is_found(operator: asyncpg.Connection, people: People, wallet: int) -> None:
    columns = await operator.fetch(COLUMNS)
    assert len(columns) == 23
    for column, kind in columns:
        value = {"direction": "'void'", "seq": "seq + 1000"}.get(column) or OTHER_VALUE[kind].format(column)
        for seq in (1, wallet, wallet + 2):
            found = await tampered(
                operator, people, f"update user_token_ledger set {column} = {value} where user_id = $1 and seq = {seq}"
            )
            assert found, (column, seq)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from user_token_ledger where user_id = $1 and seq = 1",
        "delete from user_token_ledger where user_id = $1 and seq = {middle}",
        "delete from user_token_ledger where user_id = $1 and seq = {last}",
        "delete from user_token_ledger where user_id = $1",
        # two rows swapped
        """update user_token_ledger set seq = case seq when {middle} then {last} else {middle} end + 1000
           where user_id = $1 and seq in ({middle}, {last});
           update user_token_ledger set seq = seq - 1000 where user_id = $1 and seq > 1000""",
        # a value that was null becomes the empty one, and back
        "update user_token_ledger set reference_type = '' where user_id = $1 and seq = {middle}",
        "update user_token_wallets set head = sha256(head) where user_id = $1",
        "update user_token_wallets set seq = seq - 1 where user_id = $1",
        "update user_token_wallets set seq = seq + 1 where user_id = $1",
        # a row appended by hand, well linked, but not by the wallet
        """insert into user_token_ledger
           select (jsonb_populate_record(l, jsonb_build_object('seq', l.seq + 1, 'id', gen_random_uuid()))).*
           from user_token_ledger l where user_id = $1 and seq = {last}""",
    ],
)
async def test_rows_that_are_missing_or_out_of_place_are_found(
    operator: asyncpg.Connection, people: People, wallet: int, statement: str
) -> None:
    assert await tampered(operator, people, statement.format(middle=wallet, last=wallet + 2))


@pytest.mark.parametrize(
    ("statement", "problem", "at"),
    [
        ("delete from user_token_ledger where user_id = $1 and seq = {middle}", "rows are missing before it", 1),
        ("update user_token_ledger set amount = amount + 1 where {one}", "the amounts do not add up", 0),
        ("update user_token_ledger set reserved_amount = 1 where {one}", "the amounts do not add up", 0),
        (
            "update user_token_ledger set created_at = created_at + interval '1 day' where {one}",
            "it is older than the row before it",
            1,
        ),
    ],
)
async def test_a_chain_that_was_linked_anew_is_found_where_its_rows_contradict_each_other(
    operator: asyncpg.Connection, people: People, wallet: int, statement: str, problem: str, at: int
) -> None:
    user_id = people.made[-1].identity.user_id
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute("set local session_replication_role = replica")
    await operator.execute(statement.format(middle=wallet, one=f"user_id = $1 and seq = {wallet}"), user_id)
    await operator.execute(RECHAIN.format(user=user_id))
    found = await operator.fetch("select seq, problem from verify_token_ledger($1)", user_id)
    await transaction.rollback()
    assert [tuple(row) for row in found] == [(wallet + at, problem)]


async def test_an_untouched_ledger_verifies(operator: asyncpg.Connection, people: People, wallet: int) -> None:
    assert not await tampered(operator, people, "select 1 from user_token_ledger where user_id = $1")


@pytest.mark.parametrize(
    "statement",
    [
        "update public.user_token_ledger set reason = 'x'",
        "delete from public.user_token_ledger",
        "truncate public.user_token_ledger",
    ],
)
async def test_no_role_of_ours_changes_the_ledger(
    operator: asyncpg.Connection, people: People, wallet: int, statement: str
) -> None:
    roles = await operator.fetch("select rolname from pg_roles where rolname like 'vanilla\\_%' order by 1")
    assert len(roles) >= 8
    before = await operator.fetchval("select count(*) from user_token_ledger where reason <> 'x'")
    for (role,) in roles:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_role(operator, role, statement)
    assert await operator.fetchval("select count(*) from user_token_ledger where reason <> 'x'") == before


async def as_role(operator: asyncpg.Connection, role: str, statement: str) -> None:
    transaction = operator.transaction()
    await transaction.start()
    try:
        await operator.execute(f"set local role {role}")
        await operator.execute(statement)
    finally:
        await transaction.rollback()


async def tampered(operator: asyncpg.Connection, people: People, statement: str) -> bool:
    """Whether verify finds something after a superuser ran the statement; it is undone."""
    user_id = people.made[-1].identity.user_id
    transaction = operator.transaction()
    await transaction.start()
    try:
        await operator.execute("set local session_replication_role = replica")
        for part in statement.split(";"):
            await operator.execute(part, user_id)
        return bool(await operator.fetch("select * from verify_token_ledger()"))
    finally:
        await transaction.rollback()
