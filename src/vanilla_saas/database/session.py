"""A pooled connection on which no transaction finds anything of the one before it (docs/design/database.md)."""

from types import TracebackType
from typing import Any

import asyncpg

_RESET = (
    # first what could keep the rest from running: a role, a timeout
    "reset session authorization; reset all; close all; unlisten *; discard temp; discard sequences;"
    " select pg_catalog.pg_advisory_unlock_all();"
)
_RESET_SHARED = f"{_RESET} deallocate all;"
_CLEAN = "SELECT 0"


class SessionConnection(asyncpg.Connection):  # type: ignore[misc]
    """Begins transactions and, in one round trip, ends them and clears what they left.

    A statement prepared in SQL can take the name of one of the driver's, so names are compared at every end.
    """

    def get_reset_query(self) -> str:
        return ""

    async def is_lent(self) -> bool:
        """Whether a pooler stands between: it makes up the process id that it tells."""
        found: str = await self.execute(f"select where pg_catalog.pg_backend_pid() <> {self.get_server_pid()}")
        return found != _CLEAN

    async def begin(
        self, token: str, request_id: str, client_ip: str, *, read_only: bool, shared: bool, snapshot: bool = False
    ) -> None:
        """Opens a transaction that acts as the token says; a `snapshot` sees the database as it is now, to its end.

        `shared`: a pooler lends this session to others between transactions, so what they left is cleared first.
        The token is a parameter: the text of a statement can be read by every session of the same login.
        """
        kind = f"{' isolation level repeatable read' if snapshot else ''}{' read only' if read_only else ''}"
        await self.execute(f"{_RESET_SHARED if shared else ''} begin{kind}")
        await self.fetchval(
            "select vanilla.set_context($1), pg_catalog.set_config('vanilla.request_id', $2, true),"
            " pg_catalog.set_config('vanilla.client_ip', $3, true)",
            token,
            request_id,
            client_ip,
        )

    async def end(self, command: str, *, shared: bool) -> None:
        """`commit` or `rollback`; clears the session. A connection that cannot be cleared is closed."""
        ending = f"{_RESET_SHARED} select limit 0" if shared else _RESET + self._find_replaced_statements()
        try:
            clean = await self.execute(f"{command}; {ending}") == _CLEAN
        except BaseException:
            self.terminate()
            raise
        if not clean:
            self.terminate()

    def _find_replaced_statements(self) -> str:
        """Selects one row when a statement was prepared in SQL, or one that the driver counts on is gone."""
        names = [statement.name for statement in self._stmt_cache.iter_statements()]
        return (
            # the function, not the view over it: a quarter less
            " select from pg_catalog.pg_prepared_statement() having bool_or(from_sql)"
            f" or count(*) filter (where name = any ('{{{','.join(names)}}}')) < {len(names)}"
        )

    def transaction(self, **options: Any) -> Any:
        """Inside `begin` and `end` a savepoint; the driver does not know of their transaction."""
        if self._top_xact is None and self.is_in_transaction():
            return _Savepoint(self)
        return super().transaction(**options)


class _Savepoint:
    """What asyncpg's Transaction is inside another."""

    def __init__(self, connection: SessionConnection):
        self._connection = connection
        self._name = connection._get_unique_id("savepoint")

    async def start(self) -> None:
        await self._connection.execute(f"savepoint {self._name}")

    async def commit(self) -> None:
        await self._connection.execute(f"release savepoint {self._name}")

    async def rollback(self) -> None:
        await self._connection.execute(f"rollback to savepoint {self._name}")

    async def __aenter__(self) -> "_Savepoint":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (self.rollback() if kind else self.commit())
