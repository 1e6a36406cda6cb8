"""The tour's wallet: a grant that lapses, a hold settled in part, and a ledger rewritten by one who may do anything."""

import asyncio
from uuid import UUID

import asyncpg
from rich.console import Console

from vanilla_saas.database.errors import VanillaError

PROMOTION, SPENT, LASTS_S = 500, 120, 0.4
HOLD, PART, REST = 300, 120, 90
STOLEN = 1_000_000
FORGE = """
with changed as (
    update user_token_ledger set amount = amount + $2, available_after = available_after + $2
        where user_id = $1 and seq = 1 returning grant_id)
update user_token_grants set amount = amount + $2, remaining = remaining + $2 where id in (select grant_id from changed)
"""
CARRY = "update user_token_ledger set available_after = available_after + $2 where user_id = $1 and seq > 1"
PAY_OUT = "update user_token_wallets set available_tokens = available_tokens + $2 where user_id = $1"
# the whole chain anew, as somebody would who knows how it is made
RELINK = """
do $do$
declare
    v_row public.user_token_ledger;
    v_head bytea := '';
begin
    for v_row in select * from public.user_token_ledger
        where user_id = current_setting('tour.user_id')::uuid order by seq
    loop
        v_head := vanilla.ledger_hash(v_head, v_row);
        update public.user_token_ledger set hash = v_head where user_id = v_row.user_id and seq = v_row.seq;
    end loop;
    update public.user_token_wallets set head = v_head where user_id = current_setting('tour.user_id')::uuid;
end $do$
"""


async def show(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    """Raises VanillaError `internal_error` when a figure is wrong or the tampering is not found."""
    await _lapse(operator, console, user_id)
    await _parts(operator, console, user_id)
    await _tampering(operator, console, user_id)


async def _lapse(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    await operator.fetchval(
        "select grant_user_tokens($1, $2, 'promo', p_expires_at => vanilla.clock() + make_interval(secs => $3),"
        " p_priority => 0, p_reason => 'tour')",
        user_id,
        PROMOTION,
        LASTS_S,
    )
    await operator.fetchval("select adjust_user_tokens($1, $2, 'debit', 'tour')", user_id, SPENT)
    async with asyncio.timeout(30):
        while not await operator.fetchval("select refresh_token_wallet($1)", user_id):
            await asyncio.sleep(0.05)
    lapsed = await operator.fetchrow(
        "select seq, -amount as amount, reason from user_token_ledger"
        " where user_id = $1 and direction = 'expire' order by seq desc limit 1",
        user_id,
    )
    _must(lapsed is not None and lapsed["amount"] == PROMOTION - SPENT, "What was left of the promotion must lapse.")
    console.print(
        f"   {PROMOTION} promotional tokens, {SPENT} spent: entry {lapsed['seq']}, '{lapsed['reason']}',"
        f" took back {lapsed['amount']}"
    )


async def _parts(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    await operator.fetchval("select adjust_user_tokens($1, $2, 'credit', 'tour')", user_id, HOLD)
    held = await operator.fetchval("select adjust_user_tokens($1, $2, 'reserve', 'tour')", user_id, HOLD)
    settle = "select settle_user_tokens($1, $2, 'tour', p_final => $3)"
    part = await operator.fetchval(settle, held["hold_id"], PART, False)
    last = await operator.fetchval(settle, held["hold_id"], REST, True)
    back = last["available_tokens"] - part["available_tokens"]
    _must((part["reserved_tokens"], back) == (HOLD - PART, HOLD - PART - REST), "A part must leave the rest held.")
    console.print(
        f"   a hold of {HOLD}: {PART} charged and {part['reserved_tokens']} still held, then {REST} charged"
        f" and {back} back"
    )


async def _tampering(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    """In a transaction that is undone: the tour leaves right books."""
    anchor = [
        dict(row) | {"tenant_id": str(row["tenant_id"]), "user_id": str(row["user_id"])}
        for row in await operator.fetch(
            "select tenant_id, user_id, seq, encode(hash, 'hex') as hash from token_ledger_anchor() where user_id = $1",
            user_id,
        )
    ]
    transaction = operator.transaction()
    await transaction.start()
    try:
        await operator.execute(FORGE, user_id, STOLEN)
        verify = "select seq, problem from verify_token_ledger($1) order by seq"
        first = await operator.fetch(verify, user_id)
        _must(bool(first), "verify must find a changed entry.")
        console.print(f"   a superuser adds {STOLEN} to entry 1: verify finds entry {first[0]['seq']},")
        console.print(f"     '{first[0]['problem']}'")
        for statement in (CARRY, PAY_OUT):
            await operator.execute(statement, user_id, STOLEN)
        await operator.fetchval("select set_config('tour.user_id', $1, true)", str(user_id))
        await operator.execute(RELINK)
        chain = await operator.fetch(verify, user_id)
        books = await operator.fetch("select problem from reconcile_token_wallets() where user_id = $1", user_id)
        found = await operator.fetch("select seq, problem from verify_token_anchor($1)", anchor)
        _must(bool(found), "The anchor must convict a rewritten chain.")
        console.print(
            f"   then rewrites the whole chain, wallet and grant: verify finds {len(chain)}, reconcile {len(books)},"
        )
        console.print(f"     the anchor kept elsewhere: entry {found[0]['seq']}, '{found[0]['problem']}'")
    except asyncpg.InsufficientPrivilegeError as error:
        console.print(f"   the ledger cannot even be altered by this login: {error}")
    finally:
        await transaction.rollback()


def _must(holds: bool, sentence: str) -> None:
    if not holds:
        raise VanillaError("internal_error", sentence)
