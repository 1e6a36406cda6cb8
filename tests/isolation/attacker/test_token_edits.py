"""No text is believed but a token that was signed, however near it is to one."""

import os
import random
from collections.abc import AsyncIterator
from itertools import islice

import asyncpg
import pytest

from tests.conftest import LONG
from tests.isolation.attacker.token_edits import EDITS, edits, other_algorithms
from tests.isolation.rows import World

COUNT = 1_000_000 if LONG else 20_000
BATCH = 20_000
SEED = int(os.environ.get("VANILLA_SAAS_SEED", "0")) or 7

TRY = """
create schema attacker;
grant usage on schema attacker to vanilla_app;
create function attacker.believed(p_tokens text[], out token text, out claims text, out refusal text)
returns setof record language plpgsql as $f$
begin
    foreach token in array p_tokens loop
        claims := null;
        begin
            perform vanilla.set_context(token);
            claims := concat_ws('.', vanilla.claim(3), vanilla.claim(4), vanilla.claim(5), vanilla.claim(6));
            refusal := null;
            return next;
        exception when others then
            -- one way to be refused, whatever the bytes
            if sqlstate <> 'VS401' or sqlerrm <> 'context refused' then
                refusal := sqlstate || ' ' || sqlerrm;
                return next;
            end if;
        end;
    end loop;
end
$f$;
"""
"""As a role of our own would try them: each in a block that catches the refusal, many in one statement."""


@pytest.fixture
async def trier(superuser: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A connection as vanilla_app that has attacker.believed; gone at the end, as all it did."""
    transaction = superuser.transaction()
    await transaction.start()
    await superuser.execute(TRY)
    await superuser.execute("set local role vanilla_app")
    yield superuser
    await transaction.rollback()


async def _believed(connection: asyncpg.Connection, tokens: list[str]) -> list[tuple[str, str, str]]:
    rows = await connection.fetch("select * from attacker.believed($1)", tokens)
    return [(r["token"], r["claims"], r["refusal"]) for r in rows]


async def test_no_edit_of_a_token_is_believed(trier: asyncpg.Connection, world: World) -> None:
    good = world.a.token(world.signer, world.a.admin, lifetime_s=7200)
    other = world.b.token(world.signer, world.b.user, lifetime_s=7300)
    signed = {good: ".".join(good.split(".")[2:6]), other: ".".join(other.split(".")[2:6])}
    assert await _believed(trier, [good, other]) == [(t, claims, None) for t, claims in signed.items()]
    made = edits(SEED, COUNT, good, other)
    tried = 0
    while batch := list(islice(made, BATCH)):
        assert await _believed(trier, batch) == []
        tried += len(batch)
    print(f"{tried} edits of two tokens, seed {SEED}: all refused")
    assert tried == COUNT
    assert len(await _believed(trier, [good])) == 1


async def test_every_kind_of_edit_is_made_and_refused(trier: asyncpg.Connection, world: World) -> None:
    good = world.a.token(world.signer, world.a.admin)
    other = world.b.token(world.signer, world.b.user, lifetime_s=700)
    dice = random.Random(SEED)
    for edit in EDITS:
        made = {edit(dice, good, other) for _ in range(200)} - {good, other, ""}
        assert made, edit.__name__
        assert await _believed(trier, sorted(made)) == [], edit.__name__


async def test_every_single_character_of_a_token_counts(trier: asyncpg.Connection, world: World) -> None:
    good = world.a.token(world.signer, world.a.admin)
    flipped = [good[:at] + ("0" if c != "0" else "1") + good[at + 1 :] for at, c in enumerate(good)]
    shortened = [good[:at] + good[at + 1 :] for at in range(len(good))]
    cased = [good[:at] + c.swapcase() + good[at + 1 :] for at, c in enumerate(good) if c.swapcase() != c]
    assert await _believed(trier, [*flipped, *shortened, *cased]) == []


async def test_no_other_algorithm_is_believed(trier: asyncpg.Connection, world: World) -> None:
    good = world.a.token(world.signer, world.a.admin)
    tokens = list(other_algorithms(world.signer, good))
    assert len(tokens) > 30
    assert good not in tokens
    assert await _believed(trier, tokens) == []
