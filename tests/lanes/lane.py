"""The other servers that the product promises to run on, each in the way that is asked of it."""

from dataclasses import dataclass
from itertools import product

from tests.conftest import LONG, Cluster
from tests.pgbouncer import through
from vanilla_saas.database.context import ContextSigner

LOGINS = ("vanilla_app", "vanilla_runtime")


@dataclass(frozen=True)
class Lane:
    """A major version, who migrates there and how requests come in."""

    major: int
    owner: bool = False
    """Migrated by a NOSUPERUSER CREATEROLE login that owns the database, else by a superuser."""
    pooled: bool = False
    """Requests come through PgBouncer in transaction mode."""

    def __str__(self) -> str:
        return f"{self.major}{' as owner' if self.owner else ''}{' through pgbouncer' if self.pooled else ''}"

    @property
    def migrator(self) -> str:
        return "plain" if self.owner else "postgres"


EVERY = [Lane(*way) for way in product((15, 16, 17, 18), (False, True), (False, True))]
"""The full matrix."""
SHORT = [Lane(15, owner=True), Lane(18, pooled=True)]
"""What continuous integration has time for; the whole suite runs on 18 directly, tests/supabase on 16."""
LANES = EVERY if LONG else SHORT


@dataclass
class LaneCluster(Cluster):
    """A lane's server; the run-time logins enter through its PgBouncer where there is one."""

    lane: Lane
    signer: ContextSigner
    bouncer: Cluster | None = None

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        if self.bouncer and user in LOGINS:
            return through(self.bouncer, user, database, self.signer)
        return super().url(user, database)
