"""Runs a statement as an attacker and reads everything that comes back: rows, errors with all their fields, notices."""

import asyncio
import base64
import re
from dataclasses import dataclass, field

import asyncpg

from tests.isolation.rows import CANARY, World

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SETTINGS = {"statement_timeout": "300", "lock_timeout": "100"}
STATEMENT_S = 2


@dataclass
class Secrets:
    """What must never be seen: texts, and ids that are in B's rows and in nobody else's."""

    texts: frozenset[str]
    ids: frozenset[str]

    def told_by(self, text: str) -> set[str]:
        lower = text.lower()
        return {t for t in self.texts if t in lower} | (set(UUID.findall(lower)) & self.ids)


async def read_secrets(superuser: asyncpg.Connection, world: World) -> Secrets:
    """B's canary in every spelling a query could give it, hashes and keys, the ids of B that A cannot know."""
    hashes = await superuser.fetch(f"""
        select encode(v, 'hex') as v from (
            select inner_key as v from vanilla.context_keys union select outer_key from vanilla.context_keys
            union select key_hash from public.api_keys where tenant_id <> '{world.a.id}'
            union select token_hash from public.sessions where tenant_id <> '{world.a.id}'
            union select refresh_hash from public.sessions where tenant_id <> '{world.a.id}'
            union select secret from public.ai_providers where secret is not null and tenant_id <> '{world.a.id}') s""")
    columns = [(t.name, c.name) for t in world.tables for c in t.columns if c.type == "uuid" and not t.parent]

    async def ids(condition: str) -> set[str]:
        union = " union ".join(f"select {c}::text as v from {t} where tenant_id {condition}" for t, c in columns)
        return {r["v"] for r in await superuser.fetch(union) if r["v"]}

    known = {world.b.id, world.b.user.id, world.b.admin.id}
    return Secrets(
        frozenset({*spellings(CANARY), *(r["v"] for r in hashes)}),
        frozenset(await ids(f"= '{world.b.id}'") - await ids(f"<> '{world.b.id}'") - known),
    )


def spellings(word: str) -> set[str]:
    """The word, backwards, in hexadecimal, and inside base64 at each of its three alignments; in lower case."""
    inside = {base64.b64encode(b"x" * n + word.encode()).decode()[(0, 2, 3)[n] :].rstrip("=")[:-2] for n in range(3)}
    return {word, word[::-1], word.encode().hex(), *(text.lower() for text in inside)}


@dataclass
class Outcome:
    """`state` is the SQLSTATE of a refusal, empty when the statement ran; `told` all text that came back."""

    state: str
    told: str


@dataclass
class Attacker:
    """A connection of a run-time login. It holds A's valid token, as SQL injected into a request of A does."""

    dsn: str
    token: str
    connection: asyncpg.Connection = None
    notices: list[str] = field(default_factory=list)
    reconnected: int = 0

    async def connect(self) -> "Attacker":
        self.connection = await asyncpg.connect(self.dsn, server_settings=SETTINGS, command_timeout=STATEMENT_S)
        self.connection.add_log_listener(lambda _, notice: self.notices.append(str(vars(notice))))
        return self

    async def close(self) -> None:
        self.connection.terminate()

    async def run(self, statement: str, *, commit: bool = False) -> Outcome:
        """One request: the context is set, the statement runs, and the transaction ends."""
        self.notices.clear()
        state, told = "", ""
        try:
            async with asyncio.timeout(STATEMENT_S):
                await self._begin()
                told = await self._answer(statement)
        except asyncpg.PostgresError as error:
            state, told = error.sqlstate or "?????", str(error.as_dict())
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError, ValueError) as error:
            state, told = "client", f"{type(error).__name__} {error}"
        try:
            await self.connection.execute("commit" if commit and not state else "rollback")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            # a deferred failure, or the attacker ended its own session
            told += str(error)
            if self.connection.is_closed() or isinstance(error, (OSError, asyncpg.InterfaceError, TimeoutError)):
                await self._again()
        return Outcome(state, " ".join([told, *self.notices]))

    async def _begin(self) -> None:
        if self.connection.is_closed():
            await self._again()
        await self.connection.execute("begin")
        try:
            await self.connection.execute(f"select vanilla.set_context('{self.token}')")
        except asyncpg.PostgresError:
            # vanilla_runtime may not, and a session that was made to search elsewhere finds nothing
            await self.connection.execute("rollback; begin")
            await self.connection.execute(f"select pg_catalog.set_config('vanilla.context', '{self.token}', true)")

    async def _answer(self, statement: str) -> str:
        word = statement.split(None, 1)[0].lower()
        if word == "copy" and " to stdout" in statement:
            gathered: list[bytes] = []

            async def keep(data: bytes) -> None:
                gathered.append(data)

            inner = re.fullmatch(r"copy \((.*)\) to stdout.*", statement, re.S)
            if inner:
                await self.connection.copy_from_query(inner[1], output=keep)
            else:
                await self.connection.copy_from_table(statement.split()[1].rpartition(".")[2], output=keep)
            return b"".join(gathered).decode(errors="replace")
        if word in ("select", "table", "values"):
            # as text: the driver has no form for some types
            try:
                rows = await self.connection.fetch(f"select x::pg_catalog.text from ({statement}) x")
            except asyncpg.PostgresSyntaxError:
                rows = await self.connection.fetch(statement)
            return str([row[0] for row in rows])
        if word in ("with", "explain", "show", "fetch", "execute", "insert", "update", "delete"):
            return str([tuple(row) for row in await self.connection.fetch(statement)])
        return await self.connection.execute(statement)

    async def _again(self) -> None:
        self.reconnected += 1
        self.connection.terminate()
        await self.connect()


async def visit(connection: asyncpg.Connection, token: str) -> None:
    """Another tenant's request over this connection: its values are parameters, as in every statement of ours."""
    async with connection.transaction():
        await connection.fetchval("select vanilla.set_context($1)", token)
        found = await connection.fetch("select id, email from public.users where email like '%' || $1 || '%'", CANARY)
        assert len(found) >= 3
        await connection.fetch("select id, name from public.api_keys where name = $1", CANARY)
