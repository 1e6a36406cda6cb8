"""Two pools and the only ways through them: a transaction with a context, or one call of a runtime function."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any, cast

import asyncpg
import orjson

from vanilla_saas import metrics, tracing
from vanilla_saas.database.connection import Addresses, login_connector, unreachable
from vanilla_saas.database.context import PLATFORM, ContextSigner, Identity, expired
from vanilla_saas.database.errors import VanillaError, from_postgres
from vanilla_saas.database.exit_at import EXIT_AT
from vanilla_saas.database.schema import refuse_changed_files
from vanilla_saas.database.session import SessionConnection
from vanilla_saas.settings import Settings

ACQUIRE_TIMEOUT_S = 5.0
RENEW_BELOW_S = 40
"""A snapshot's context is signed again when it has less time left than this."""
_BROKEN = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InternalClientError, OSError)
"""Errors after which a connection is not used again."""


async def _prepare(connection: asyncpg.Connection) -> None:
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name,
            encoder=lambda value: orjson.dumps(value).decode(),
            decoder=orjson.loads,
            schema="pg_catalog",
        )


class Database:
    """`app` acts for people under row-level security; `runtime` may only execute the hot functions."""

    def __init__(
        self,
        app: asyncpg.Pool,
        runtime: asyncpg.Pool,
        signer: ContextSigner,
        *,
        runtime_dsn: str,
        shared: bool = False,
        size: int = 10,
    ):
        self._app = app
        self._runtime = runtime
        self._signer = signer
        self._runtime_dsn = runtime_dsn
        self._snapshots = asyncio.Semaphore(max(size // 4, 1))
        self.shared = shared
        """Whether a pooler lends the sessions of `app` to others between transactions."""

    @classmethod
    async def open(
        cls,
        app_dsn: str,
        runtime_dsn: str,
        signer: ContextSigner,
        *,
        size: int = 10,
        allow_superuser: bool = False,
        transaction_pooling: bool = False,
    ) -> "Database":
        """Connects both pools; refuses logins that row-level security does not bind, and a database that is not ours.

        A pooler in between is noticed; `transaction_pooling` is for one that hides.
        Raises VanillaError `database_unavailable`, `forbidden`, `invalid_state`, `context_invalid`.
        """
        pools: list[asyncpg.Pool] = []
        shared: list[bool] = []
        try:
            for dsn in (app_dsn, runtime_dsn):
                pool, lent = await _open_pool(dsn, size, signer, transaction_pooling)
                pools.append(pool)
                shared.append(lent)
                if not allow_superuser:
                    await _refuse_unsafe_login(pools[-1])
            await _refuse_strange_database(pools[0], signer)
        except BaseException:
            for pool in pools:
                pool.terminate()
            raise
        return cls(pools[0], pools[1], signer, runtime_dsn=runtime_dsn, shared=shared[0], size=size)

    @classmethod
    async def configured(
        cls, where: Addresses, settings: Settings, signer: ContextSigner, *, size: int | None = None
    ) -> "Database":
        """`open` as the settings say; `size` is theirs unless it is given. Raises VanillaError as `open` does."""
        return await cls.open(
            where.app,
            where.runtime,
            signer,
            size=settings.pool_size if size is None else size,
            allow_superuser=settings.allow_superuser,
            transaction_pooling=settings.transaction_pooling,
        )

    async def close(self) -> None:
        """Waits for statements under way, at most ten seconds."""
        try:
            await asyncio.wait_for(asyncio.gather(self._app.close(), self._runtime.close()), 10)
        except TimeoutError:
            self._app.terminate()
            self._runtime.terminate()

    @asynccontextmanager
    async def transaction(
        self, identity: Identity | None, *, request_id: str = "", client_ip: str = "", read_only: bool = False
    ) -> AsyncIterator[asyncpg.Connection]:
        """A transaction of the app pool that acts as `identity`; with None it sees nothing.

        Raises VanillaError for every refusal of the database, and `context_invalid` after 60 s, when all is undone.
        """
        with tracing.span("transaction", "client", {"db.system.name": "postgresql"}):
            async with self._transaction(identity, request_id, client_ip, read_only) as connection:
                yield connection

    @asynccontextmanager
    async def _transaction(
        self, identity: Identity | None, request_id: str, client_ip: str, read_only: bool
    ) -> AsyncIterator[asyncpg.Connection]:
        token = self._signer.sign(identity) if identity else ""
        async with self._begun(token, request_id, client_ip, read_only=read_only) as connection:
            yield connection
            if token and expired(token):
                # policies see nobody in a token that has ended: what was read last may be short, so nothing counts
                raise VanillaError("context_invalid", "The transaction outlived its context; nothing was changed.")

    @asynccontextmanager
    async def snapshot(self, identity: Identity) -> AsyncIterator["Snapshot"]:
        """A read-only transaction of the app pool that sees one moment and may outlast a context, for long reads.

        It keeps its connection for as long as its reader takes, so at most a quarter of the pool is lent so.
        Raises VanillaError as `transaction` does, and `saturated` when that many are under way.
        """
        if self._snapshots.locked():
            raise VanillaError("saturated", "Other exports are under way.", {"retry_after_s": 10})
        token = self._signer.sign(identity)
        async with self._snapshots, self._begun(token, "", "", read_only=True, snapshot=True) as connection:
            taken = Snapshot(connection, token, lambda: self._signer.sign(identity))
            yield taken
            taken.require_context()

    @asynccontextmanager
    async def _begun(
        self, token: str, request_id: str, client_ip: str, *, read_only: bool, snapshot: bool = False
    ) -> AsyncIterator[asyncpg.Connection]:
        """A transaction as the token says, committed at the end of the block and undone when that raises."""
        async with translated_errors(), _acquired(self._app, "app") as connection:
            end = connection.end  # of the session itself: the pool takes its handle away when the session is lost
            try:
                await connection.begin(
                    token, request_id, client_ip, read_only=read_only, shared=self.shared, snapshot=snapshot
                )
                yield connection
            except BaseException:
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await end("rollback", shared=self.shared)
                raise
            await end("commit", shared=self.shared)

    async def call(self, statement: str, *arguments: object) -> Any:
        """The value of one statement on the runtime pool: `select vanilla.<function>(...)`, one round trip."""
        with _traced(statement):
            return await self._call(statement, *arguments)

    async def _call(self, statement: str, *arguments: object) -> Any:
        async with translated_errors(), _acquired(self._runtime, "runtime") as connection:
            if EXIT_AT is None:
                return await connection.fetchval(statement, *arguments)
            EXIT_AT.passes("before", statement, arguments)
            value = await connection.fetchval(statement, *arguments)
            EXIT_AT.passes("after", statement, arguments)
            return value

    @asynccontextmanager
    async def session(self) -> AsyncIterator[asyncpg.Connection]:
        """A transaction of the runtime pool, for what holds a lock between its statements."""
        async with translated_errors(), _acquired(self._runtime, "runtime") as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def listener(self, channel: str, heard: Callable[[str], None]) -> AsyncIterator["asyncio.Future[None]"]:
        """Hears the channel's notifications on a connection of its own; the future ends when that is lost.

        Behind a pooler that lends sessions nothing is heard (`shared`).
        """
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            heard(str(payload))

        def ended(_connection: object) -> None:
            if not lost.done():
                lost.set_result(None)

        async with translated_errors():
            # not of the pool: it would be lent for good
            connection = await login_connector(self._runtime_dsn, self._signer)(self._runtime_dsn, timeout=10)
            try:
                connection.add_termination_listener(ended)
                await connection.add_listener(channel, tell)
                yield lost
            finally:
                connection.remove_termination_listener(ended)
                connection.terminate()

    async def call_row(self, statement: str, *arguments: object) -> asyncpg.Record:
        """The one row of a statement on the runtime pool."""
        with _traced(statement):
            return await self._call_row(statement, *arguments)

    async def _call_row(self, statement: str, *arguments: object) -> asyncpg.Record:
        async with translated_errors(), _acquired(self._runtime, "runtime") as connection:
            return cast(asyncpg.Record, await connection.fetchrow(statement, *arguments))


class Snapshot:
    """The connection of `Database.snapshot`; `renewed` is asked before every statement."""

    def __init__(self, connection: asyncpg.Connection, token: str, sign: Callable[[], str]):
        self._connection = connection
        self.token = token
        self._sign = sign

    def require_context(self) -> None:
        """Policies see nobody in a token that has ended: what was read last may be short.

        Raises VanillaError `context_invalid`.
        """
        if expired(self.token):
            raise VanillaError("context_invalid", "A statement outlived its context; what it read is not complete.")

    async def renewed(self) -> asyncpg.Connection:
        """The connection, with a context that has most of its minute before it. Raises VanillaError."""
        self.require_context()
        if expired(self.token, RENEW_BELOW_S):
            self.token = self._sign()
            await self._connection.fetchval("select vanilla.set_context($1)", self.token)
        return self._connection


def _traced(statement: str) -> AbstractContextManager[Any]:
    """The statement is a constant of the program: what a request sends is its parameter."""
    name = statement.removeprefix("select ").partition("(")[0][:60]
    return tracing.span(name, "client", {"db.system.name": "postgresql", "db.query.text": statement})


@asynccontextmanager
async def translated_errors() -> AsyncIterator[None]:
    """Turns database and connection errors into VanillaError; anything unknown passes through to be logged."""
    try:
        yield
    except asyncpg.PostgresError as error:
        known = from_postgres(error)
        if known is None:
            raise
        raise known from None
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise VanillaError("database_unavailable", "The database does not answer; nothing was charged.") from error


@asynccontextmanager
async def _acquired(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
    began = time.perf_counter()
    try:
        connection = await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
    except TimeoutError:
        metrics.POOL_SATURATED.labels(name).inc()
        raise VanillaError("saturated", "All database connections are busy.", {"retry_after_s": 1}) from None
    metrics.POOL_WAIT.labels(name).observe(time.perf_counter() - began)
    in_use = metrics.POOL_IN_USE.labels(name)
    in_use.inc()
    try:
        yield connection
    except _BROKEN:
        # its end may still be on the way: whoever gets it next would find it in the middle of a statement
        with suppress(asyncpg.InterfaceError):  # the pool has noticed and taken it away
            connection.terminate()
        raise
    finally:
        in_use.dec()
        await pool.release(connection)


class _PoolerFoundError(asyncpg.InterfaceError):  # type: ignore[misc]
    """The connection is to a pooler, behind which nothing that is prepared by name may be used."""


async def _open_pool(dsn: str, size: int, signer: ContextSigner, shared: bool) -> tuple[asyncpg.Pool, bool]:
    """The pool, and whether its sessions are shared with others."""

    async def init(connection: asyncpg.Connection) -> None:
        if not shared and await connection.is_lent():
            raise _PoolerFoundError("a pooler stands before the database")
        async with connection.transaction():  # or a pooler spreads the statements over sessions
            await _prepare(connection)
            await _refuse_other_version(connection)

    try:
        pool = await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=size,
            connection_class=SessionConnection,
            init=init,
            connect=login_connector(dsn, signer),
            timeout=10,
            statement_cache_size=0 if shared else 100,
        )
    except _PoolerFoundError:
        return await _open_pool(dsn, size, signer, True)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise unreachable(
            error,
            "Run vanilla-saas migrate: it makes the run-time logins, whose passwords come from the context key.",
        ) from None
    return pool, shared


async def _refuse_other_version(connection: asyncpg.Connection) -> None:
    """A process meets the schema of another release when a database was restored or reloaded under it.

    Files after the base may be newer: they keep what this release calls.
    """
    if await connection.fetchval("select to_regprocedure('vanilla.schema_files()') is not null"):
        refuse_changed_files(await connection.fetchval("select vanilla.schema_files()"))


async def _refuse_strange_database(app: asyncpg.Pool, signer: ContextSigner) -> None:
    """A request would fail in a database without the schema, or one that does not know our key."""
    async with app.acquire() as connection, connection.transaction():
        if await connection.fetchval("select to_regprocedure('vanilla.set_context(text)') is null"):
            raise VanillaError(
                "invalid_state", "The database is not migrated.", hint="Run vanilla-saas migrate, or vanilla-saas up."
            )
        token = signer.sign(Identity(PLATFORM, PLATFORM, "user"))
        await connection.execute("select set_config('vanilla.context', $1, true)", token)
        try:
            await connection.fetchval("select vanilla.claim(3)")
        except asyncpg.PostgresError as error:
            if error.sqlstate != "VS401":
                raise
            raise VanillaError(
                "context_invalid",
                "The database does not know this context key.",
                hint="Run vanilla-saas migrate with it, or put the former key back.",
            ) from None


async def _refuse_unsafe_login(pool: asyncpg.Pool) -> None:
    row = await pool.fetchrow(
        "select r.rolname, r.rolsuper, r.rolbypassrls, pg_has_role(r.oid, 'vanilla_owner', 'member') as owner"
        " from pg_roles r where r.rolname = session_user"
    )
    if row["rolsuper"] or row["rolbypassrls"] or row["owner"]:
        raise VanillaError(
            "forbidden",
            f"The login {row['rolname']} is not bound by row-level security, so requests are not served as it.",
            hint="Let `vanilla-saas migrate` make vanilla_app and vanilla_runtime, or set VANILLA_SAAS_APP_URL and"
            " VANILLA_SAAS_RUNTIME_URL; --allow-superuser overrides.",
        )
