"""A tenant whose people and agents talk: channels and agreements by the functions of SQL, and a clock that is moved."""

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from vanilla_saas.database.errors import VanillaError, from_postgres
from vanilla_saas.database.pool import _prepare

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NEVER = timedelta(hours=1)
EMPTY = object()


@dataclass
class Channel:
    id: uuid.UUID
    of: dict[str, uuid.UUID]
    """Its participants by name."""


@dataclass
class Hall:
    """The operator, who may speak for everybody of the tenant."""

    connection: asyncpg.Connection
    tenant: uuid.UUID
    users: dict[str, uuid.UUID]
    now: datetime = START
    sent: int = 0
    names: dict[uuid.UUID, str] = field(default_factory=dict)

    async def at(self, moment: datetime) -> None:
        self.now = moment
        await self.connection.execute("select set_config('vanilla_test.now', $1, false)", moment.isoformat())

    async def later(self, **passed: float) -> None:
        await self.at(self.now + timedelta(**passed))

    async def ask(self, function: str, *arguments: Any, cast: dict[int, str] | None = None, **named: Any) -> Any:
        """A function's answer; a refusal is raised as API and CLI see it."""
        places = [f"${n + 1}{(cast or {}).get(n + 1, '')}" for n in range(len(arguments))]
        places += [f"{name} => ${n + 1 + len(arguments)}" for n, name in enumerate(named)]
        try:
            return await self.connection.fetchval(
                f"select {function}({', '.join(places)})", *arguments, *named.values()
            )
        except asyncpg.PostgresError as error:
            refusal = from_postgres(error)
            if refusal is None:
                raise
            raise refusal from error

    async def open(self, *names: str, kind: str = "group", **more: Any) -> Channel:
        """A channel of Ada's; a participant that is called like a user acts for them, all others for her."""
        participants = [
            {"name": name, "kind": "agent"} | ({"user_id": str(self.users[name])} if name in self.users else {})
            for name in names
        ]
        return await self.open_with(participants, kind, **more)

    async def open_with(self, participants: list[dict[str, Any]], kind: str = "group", **more: Any) -> Channel:
        made = await self.ask("channel_open", "talk", kind, participants, p_user_id=self.users["ada"], **more)
        return Channel(uuid.UUID(made["channel_id"]), {name: uuid.UUID(p) for name, p in made["participants"].items()})

    async def send(
        self,
        channel: Channel,
        sender: str,
        performative: str = "inform",
        body: Any = EMPTY,
        message_id: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        self.sent += 1
        text = json.dumps({} if body is EMPTY else body)  # null is a body too
        return dict(
            await self.ask("channel_send", channel.id, channel.of[sender], performative, text,
                           message_id or f"m{self.sent}", cast={4: "::text::jsonb"}, **more)
        )  # fmt: skip

    async def say(self, channel: Channel, sender: str, performative: str = "inform", **more: Any) -> int:
        """The seq of what is said, which is not refused."""
        answer = await self.send(channel, sender, performative, **more)
        assert "refused" not in answer, answer
        return int(answer["seq"])

    async def receive(
        self, channel: Channel, reader: str, limit: int = 50, lease: timedelta = NEVER
    ) -> list[asyncpg.Record]:
        return list(
            await self.connection.fetch(
                "select * from channel_receive($1, $2, $3, $4)", channel.id, channel.of[reader], limit, lease
            )
        )

    async def ack(self, channel: Channel, reader: str, token: uuid.UUID, seq: int) -> bool:
        return bool(await self.ask("channel_ack", channel.id, channel.of[reader], token, seq))

    async def nack(self, channel: Channel, reader: str, token: uuid.UUID, seq: int, **more: Any) -> str:
        return str(await self.ask("channel_nack", channel.id, channel.of[reader], token, seq, "no", **more))

    async def participant(self, channel: Channel, name: str) -> asyncpg.Record:
        return await self.connection.fetchrow("select * from channel_participants where id = $1", channel.of[name])

    async def channel(self, channel: Channel) -> asyncpg.Record:
        return await self.connection.fetchrow("select * from communication_channels where id = $1", channel.id)

    async def seqs(self, channel: Channel) -> list[int]:
        rows = await self.connection.fetch(
            "select seq from channel_messages where channel_id = $1 order by seq", channel.id
        )
        return [row["seq"] for row in rows]

    async def agree(self, content: dict[str, Any], *parties: str) -> uuid.UUID:
        """An active agreement between users, each a party of their own name."""
        parties = parties or ("ada", "bo")
        made = await self.propose(content, *parties)
        for party in parties[1:]:
            made = await self.respond(made, party)
        assert made["status"] == "active"
        return uuid.UUID(made["agreement_id"])

    async def propose(self, content: dict[str, Any], *parties: str) -> dict[str, Any]:
        parties = parties or ("ada", "bo")
        whose = {party: str(self.users[party]) for party in parties}
        return dict(
            await self.ask("agreement_propose", "deal", whose, parties[0], content, p_user_id=self.users[parties[0]])
        )

    async def respond(
        self, made: dict[str, Any], party: str, decision: str = "accept", content: Any = None
    ) -> dict[str, Any]:
        answer = await self.ask(
            "agreement_respond",
            uuid.UUID(made["agreement_id"]),
            party,
            bytes.fromhex(made["hash"]),
            decision,
            content,
        )
        return dict(answer)

    async def status(self, agreement: uuid.UUID | dict[str, Any]) -> str:
        if isinstance(agreement, dict):
            agreement = uuid.UUID(agreement["agreement_id"])
        read = await self.ask("agreement_read", agreement)
        return str(read["status"])

    async def open_bound(self, agreement: uuid.UUID, *parties: str, **more: Any) -> Channel:
        """A channel held to the agreement, with a participant for each party, and a listener."""
        participants = [
            {"name": p, "kind": "agent", "user_id": str(self.users[p]), "party": p} for p in parties or ("ada", "bo")
        ]
        return await self.open_with([*participants, {"name": "listener"}], p_agreement_id=agreement, **more)


async def hall(connection: asyncpg.Connection) -> Hall:
    """A new tenant with three users and an admin, at START."""
    await _prepare(connection)
    slug = f"t{uuid.uuid4().hex[:10]}"
    tenant = await connection.fetchval("select create_tenant($1, $1)", slug)
    users = {
        name: await connection.fetchval(
            "select create_user($1, $2, p_must_change_password => false, p_tenant_id => $3)",
            f"{name}@{slug}.test",
            "admin" if name == "boss" else "user",
            tenant,
        )
        for name in ("ada", "bo", "cy", "boss")
    }
    made = Hall(connection, tenant, users)
    await made.at(START)
    return made


__all__ = ["EMPTY", "NEVER", "START", "Channel", "Hall", "VanillaError", "hall"]
