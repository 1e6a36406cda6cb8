"""What the tests of backup and restore share: a small installation with rows of every kind, and how it is backed up."""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tests.conftest import DEFAULT_TENANT, TEST_KEY, Cluster
from tests.migrations.tools import Shell
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.operations.backup import Made, make_backup
from vanilla_saas.operations.backup_manifest import Backup, open_backup

SIGNER = ContextSigner(bytes.fromhex(TEST_KEY))


@dataclass
class Copy:
    """A folder of its own with a copy of a backup, for a test that damages it."""

    path: Path

    def opened(self, passphrase: str | None = None) -> Backup:
        return open_backup(self.path, passphrase)


def copy_of(made: Made, folder: Path) -> Copy:
    return Copy(Path(shutil.copytree(made.path, folder / made.path.name)))


async def fill(url: str) -> None:
    """Users with ledgers, log rows that landed in default partitions, odd texts, a null and a secret."""
    connection = await asyncpg.connect(url)
    for name in ("one", "two", "three"):
        user = await connection.fetchval(
            "select create_user($1, p_display_name => $2, p_tenant_id => $3)",
            f"{name}-{uuid.uuid4().hex[:8]}@example.test",
            "it's \\ \u00e4 \u2603 \t\n{}",
            DEFAULT_TENANT,
        )
        for amount in range(1, 6):
            await connection.execute("select adjust_user_tokens($1, $2, 'debit', 'test')", user, amount)
    await connection.execute(
        "insert into ai_executions (tenant_id, created_at, user_id, provider, model, status)"
        " select $1, now() - make_interval(days => n), vanilla.uuid7(), 'p', 'm', 'succeeded'"
        " from generate_series(0, 200, 40) n",
        DEFAULT_TENANT,
    )
    await connection.execute("update ai_providers set secret = '\\x00ff' where slug = 'openai'")
    await connection.close()


async def rows_of(url: str, *tables: str) -> dict[str, list[Any]]:
    connection = await asyncpg.connect(url)
    found = {t: [r[0] for r in await connection.fetch(f"select x::text from {t} x order by 1")] for t in tables}
    await connection.close()
    return found


async def databases(cluster: Cluster) -> set[str]:
    connection = await asyncpg.connect(cluster.url())
    names = {row[0] for row in await connection.fetch("select datname from pg_database")}
    await connection.close()
    return names


async def drop(cluster: Cluster, *names: str | None) -> None:
    connection = await asyncpg.connect(cluster.url())
    for name in filter(None, names):
        await connection.execute(f'drop database if exists "{name}" with (force)')
    await connection.close()


async def back_up(url: str, folder: Path, **more: Any) -> Made:
    return await make_backup(url, folder, **more)


def files_of(folder: Path) -> list[str]:
    """What is in a folder of backups, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


__all__ = ["SIGNER", "Copy", "Shell", "back_up", "copy_of", "databases", "drop", "files_of", "fill", "rows_of"]
