"""Many who send and read one channel at once, send twice, die before they acknowledge, come back too late."""

import asyncio
import random
import uuid
from dataclasses import dataclass, field
from datetime import timedelta

import asyncpg
import pytest

from tests.conftest import LONG
from tests.orchestration.hall import Channel, Hall

TWICE, DIES, LATE = 0.2, 0.1, 0.05
LEASE = timedelta(milliseconds=300)
EFFECTS = """
create table if not exists public.storm_effects (
    place bigint generated always as identity, channel_id uuid, reader text, seq bigint, primary key (channel_id, reader, seq))"""
SEND = "select channel_send($1, $2, 'inform', jsonb_build_object('n', $3::integer), $4)"
RECEIVE = "select lease_token, seq from channel_receive($1, $2, $3, $4)"
ACK = "select channel_ack($1, $2, $3, $4)"
EFFECT = "insert into storm_effects (channel_id, reader, seq) select $1, $2, unnest($3::bigint[])"


@dataclass
class Size:
    producers: int
    each: int
    readers: int
    workers: int

    @property
    def messages(self) -> int:
        return self.producers * self.each


ORDINARY, LARGE = Size(8, 400, 2, 3), Size(32, 3125, 8, 4)


@dataclass
class Storm:
    channel: Channel
    size: Size
    draw: random.Random
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("twice", "died", "late", "lost"), 0))

    async def produce(self, connection: asyncpg.Connection, name: str) -> None:
        for n in range(self.size.each):
            for again in range(2 if self.draw.random() < TWICE else 1):
                await connection.fetchval(SEND, self.channel.id, self.channel.of[name], n, str(n))
                self.counts["twice"] += again

    async def work(self, connection: asyncpg.Connection, reader: str) -> None:
        """One worker of a reader, until everything was read by whichever worker."""
        participant = self.channel.of[reader]
        cursor = "select cursor_seq from channel_participants where id = $1"
        while await connection.fetchval(cursor, participant) < self.size.messages:
            rows = await connection.fetch(RECEIVE, self.channel.id, participant, 50, LEASE)
            if not rows:
                await asyncio.sleep(0.01)
                continue
            if self.draw.random() < DIES:
                self.counts["died"] += 1
                continue
            if self.draw.random() < LATE:
                self.counts["late"] += 1
                await asyncio.sleep(LEASE.total_seconds() * 1.2)
            await self.effect(connection, reader, rows)

    async def effect(self, connection: asyncpg.Connection, reader: str, rows: list[asyncpg.Record]) -> None:
        seqs = [row["seq"] for row in rows]
        try:
            async with connection.transaction():
                await connection.execute(EFFECT, self.channel.id, reader, seqs)
                await connection.fetchval(
                    ACK, self.channel.id, self.channel.of[reader], rows[0]["lease_token"], seqs[-1]
                )
        except asyncpg.PostgresError as error:
            # another worker has done it meanwhile, or may: the lease is what counts, and the whole is undone
            if error.sqlstate not in ("VS409", "23505"):
                raise
            self.counts["lost"] += 1


@pytest.mark.parametrize("size", [ORDINARY, pytest.param(LARGE, marks=pytest.mark.long)], ids=["ordinary", "large"])
async def test_a_storm_loses_nothing_and_doubles_nothing(talk: Hall, clocked_url: str, size: Size) -> None:
    producers = [f"p{n}" for n in range(size.producers)]
    readers = [f"r{n}" for n in range(size.readers)]
    participants = [{"name": p, "reads": False} for p in producers] + [{"name": r} for r in readers]
    # as many attempts as there may be: whoever dies with it says nothing about a message here
    channel = await talk.open_with(participants, "topic", p_limits={"max_attempts": 100})
    await talk.connection.execute(EFFECTS)
    storm = Storm(channel, size, random.Random(1))
    jobs = [(storm.produce, name) for name in producers] + [
        (storm.work, r) for r in readers for _ in range(size.workers)
    ]
    connections = [await asyncpg.connect(clocked_url) for _ in jobs]
    async with asyncio.timeout(3600 if LONG else 120):
        await asyncio.gather(*[job(c, name) for (job, name), c in zip(jobs, connections, strict=True)])
    for connection in connections:
        await connection.close()
    await every_message_is_there_once(talk, channel, size, producers)
    for reader in readers:
        await every_message_had_one_effect(talk, channel.id, reader, size)
    assert min(storm.counts.values()) > 0


async def every_message_is_there_once(talk: Hall, channel: Channel, size: Size, producers: list[str]) -> None:
    assert await talk.seqs(channel) == list(range(1, size.messages + 1))
    rows = await talk.connection.fetch(
        "select sender_id, array_agg((body ->> 'n')::integer order by seq) as said from channel_messages"
        " where channel_id = $1 group by sender_id", channel.id,
    )  # fmt: skip
    assert {row["sender_id"] for row in rows} == {channel.of[p] for p in producers}
    assert all(row["said"] == list(range(size.each)) for row in rows)  # each in its own order
    assert not await talk.connection.fetchval(
        "select count(*) from channel_dead_letters where channel_id = $1", channel.id
    )


async def every_message_had_one_effect(talk: Hall, channel: uuid.UUID, reader: str, size: Size) -> None:
    row = await talk.connection.fetchrow(
        "select count(*), min(seq), max(seq) from storm_effects where channel_id = $1 and reader = $2", channel, reader
    )
    assert tuple(row) == (size.messages, 1, size.messages)
    out_of_order = await talk.connection.fetchval(
        "select count(*) from (select seq - lag(seq) over (order by place) as step from storm_effects"
        " where channel_id = $1 and reader = $2) s where step <> 1", channel, reader,
    )  # fmt: skip
    assert out_of_order == 0
