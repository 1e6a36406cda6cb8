"""Agents. Turns and footprint are in `agent_turns`; here are channels: messages that eight senders say on one of them,
and that a reader takes and acknowledges, against the least SQL that appends an ordered row and moves a cursor.

Each call is a transaction of its own that waits for the disk, by the operator, so that neither side pays a context.
Slices of the floor and of the product alternate. Afterwards every channel must count from 1 without a gap.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import asyncpg

from benchmarks import agent_turns
from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.processes import temporary_home
from benchmarks.wallets import check_durable
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations.first_run import DEFAULT_TENANT
from vanilla_saas.settings import Settings

FLOOR = (
    "a counter row and a log row in one function, a select and a cursor for whoever reads; "
    "of turns a bare loop by httpx, the same agent of pydantic-ai alone, and our own loop with a journal in memory"
)
SENDERS = 8
BODY = json.dumps({"n": 17, "by": "p1", "text": "x" * 200})
SCHEMA = {
    "type": "object",
    "required": ["n", "by"],
    "additionalProperties": False,
    "properties": {
        "n": {"type": "integer", "minimum": 0},
        "by": {"type": "string", "pattern": "^p[0-9]+$"},
        "text": {"type": "string", "maxLength": 1000},
    },
}
USER = "select create_user($1, 'user', p_must_change_password => false, p_tenant_id => $2)"
PROPOSE = "select agreement_propose('bench', $1, 'first', $2, $3, $4)"
ACCEPT = "select agreement_respond($1, 'second', decode($2, 'hex'), 'accept', p_tenant_id => $3)"
OPEN = "select channel_open($1, 'topic', $2, $3, '{}', $4, $5)"
SEND = "select channel_send($1, $2, 'inform', $3, $4, p_tenant_id => $5)"
RECEIVE = "select lease_token, seq from channel_receive($1, $2, $3, '60 s', $4)"
ACK = "select channel_ack($1, $2, $3, $4, $5)"
FLOOR_SEND = "select floor_send(1, $1)"
FLOOR_RECEIVE = "select seq from floor_receive(1, $1)"
FLOOR_ACK = "select floor_ack(1, $1)"
GAPS = """
select count(*) from (select c.id from communication_channels c left join channel_messages m on m.channel_id = c.id
    group by c.id, c.last_seq having count(m.seq) <> c.last_seq or max(m.seq) <> c.last_seq) s
"""
Call = Callable[[asyncpg.Connection, int, int], Awaitable[object]]


def run(options: Options) -> Result:
    """The points that `options.only` names, or all. Raises BenchmarkError for a gap in a channel or wrong books."""
    points = {"channels": channels, "turns": agent_turns.turns, "footprint": agent_turns.footprint}
    if unknown := set(options.only) - set(points):
        raise BenchmarkError(f"there is no point {', '.join(sorted(unknown))}; there are {', '.join(points)}")
    ratios: dict[str, float] = {}
    figures: dict[str, Figure] = {}
    for name, measure in points.items():
        if not options.only or name in options.only:
            more_ratios, more_figures = measure(options.quick)
            ratios |= more_ratios
            figures |= more_figures
    return Result("agents", FLOOR, judge("agents", ratios), figures, {})


def channels(quick: bool) -> tuple[dict[str, float], dict[str, Figure]]:
    """Messages said and read on one channel."""
    with temporary_home() as home:
        settings = Settings(_env_file=None, home=home)
        with addresses(settings, load_signer(settings)) as where:
            return asyncio.run(_measure(where.admin, settings, quick))


async def _measure(url: str, settings: Settings, quick: bool) -> tuple[dict[str, float], dict[str, Figure]]:
    await migrate(url, load_signer(settings))
    connections = [await asyncpg.connect(url) for _ in range(SENDERS)]
    first = connections[0]
    await check_durable(first)
    await first.execute(Path(__file__).with_name("agents_floor.sql").read_text())
    free, bound = await _channels(first)
    sends: dict[str, Call] = {
        "floor": lambda c, _, __: c.fetchval(FLOOR_SEND, BODY),
        "send": _sender(free),
        "send_bound": _sender(bound),
    }
    rounds, seconds = (3, 1.0) if quick else (7, 5.0)
    rates: dict[str, list[float]] = {name: [] for name in sends}
    for number in range(rounds + 1):
        for name, call in sends.items():
            rate = await _rate(connections, call, seconds, number)
            if number:  # the first round fills caches
                rates[name].append(rate)
    reads = {size: await _reads(first, free, size, seconds) for size in (1, 50)}
    if gaps := await first.fetchval(GAPS):
        raise BenchmarkError(f"{gaps} channels have gaps")
    for connection in connections:
        await connection.close()
    ratios = {
        f"{name}_to_floor": middle([one / least for one, least in zip(rates[name], rates["floor"], strict=True)])
        for name in ("send", "send_bound")
    }
    figures: dict[str, Figure] = {f"{name}_per_s": middle(found) for name, found in rates.items()}
    ratios["send_to_1000_per_s"] = middle(rates["send"]) / 1000
    for size, (ours, least) in reads.items():
        ratios[f"read_{size}_to_floor"] = ours / least
        figures |= {f"read_{size}_per_s": ours, f"read_{size}_floor_per_s": least}
    return ratios, figures | {"senders": SENDERS}


async def _channels(connection: asyncpg.Connection) -> tuple[dict[str, str], dict[str, str]]:
    """A channel without and one with an agreement: `id`, and participants by name."""
    users = [await connection.fetchval(USER, f"{name}@bench.test", DEFAULT_TENANT) for name in ("first", "second")]
    parties = json.dumps({"first": str(users[0]), "second": str(users[1])})
    content = json.dumps({"acts": {"inform": {"senders": ["first"], "schema": SCHEMA}}})
    made = json.loads(await connection.fetchval(PROPOSE, parties, content, users[0], DEFAULT_TENANT))
    await connection.fetchval(ACCEPT, UUID(made["agreement_id"]), made["hash"], DEFAULT_TENANT)
    channels = []
    for agreement, party in ((None, {}), (UUID(made["agreement_id"]), {"party": "first"})):
        speakers = [{"name": f"p{n}", "reads": False} | party for n in range(SENDERS)]
        participants = json.dumps([*speakers, {"name": "reader"}])
        opened = await connection.fetchval(OPEN, "bench", participants, agreement, users[0], DEFAULT_TENANT)
        channels.append({"id": json.loads(opened)["channel_id"]} | json.loads(opened)["participants"])
    return channels[0], channels[1]


def _sender(channel: dict[str, str]) -> Call:
    async def send(connection: asyncpg.Connection, sender: int, number: int) -> None:
        where = UUID(channel["id"]), UUID(channel[f"p{sender}"])
        answer = json.loads(await connection.fetchval(SEND, *where, BODY, str(number), DEFAULT_TENANT))
        if answer["seq"] is None or answer["replayed"]:
            raise BenchmarkError(f"not sent: {answer}")

    return send


async def _rate(connections: list[asyncpg.Connection], call: Call, seconds: float, slice_number: int) -> float:
    """Calls a second of all connections together."""
    started = time.perf_counter()

    async def one(sender: int, connection: asyncpg.Connection) -> int:
        done = 0
        while time.perf_counter() - started < seconds:
            await call(connection, sender, slice_number * 10_000_000 + done)
            done += 1
        return done

    done = await asyncio.gather(*(one(*pair) for pair in enumerate(connections)))
    return sum(done) / (time.perf_counter() - started)


async def _reads(
    connection: asyncpg.Connection, channel: dict[str, str], size: int, seconds: float
) -> tuple[float, float]:
    """Messages a second that one reader takes and acknowledges `size` at a time, by the product and by the floor."""
    where = UUID(channel["id"]), UUID(channel["reader"])

    async def ours() -> int:
        rows = await connection.fetch(RECEIVE, *where, size, DEFAULT_TENANT)
        if len(rows) < size:
            return 0
        await connection.fetchval(ACK, *where, rows[0]["lease_token"], rows[-1]["seq"], DEFAULT_TENANT)
        return len(rows)

    async def least() -> int:
        rows = await connection.fetch(FLOOR_RECEIVE, size)
        if len(rows) < size:
            return 0
        await connection.fetchval(FLOOR_ACK, rows[-1]["seq"])
        return len(rows)

    rates = []
    for take in (ours, least):
        started, read = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / 5 and (took := await take()):  # until the log has been read
            read += took
        if not read:
            raise BenchmarkError("nothing was read")
        rates.append(read / (time.perf_counter() - started))
    return rates[0], rates[1]
