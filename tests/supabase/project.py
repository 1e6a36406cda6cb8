"""A Supabase project without Supabase: its roles, its schemas and the statements that its services send."""

import json
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tests.conftest import DEFAULT_TENANT, Cluster
from tests.migrations.tools import Shell

HERE = Path(__file__).parent
ADMIN = "supabase_admin"


@dataclass
class Project:
    """A database as Supabase hands it over, in a cluster of its own."""

    cluster: Cluster
    major: int
    database: str

    def shell(self, user: str = "postgres") -> Shell:
        """psql as that login; the SQL editor's by default."""
        return Shell(self.cluster, self.major, self.database, user, superuser=ADMIN)

    async def connect(self, user: str) -> asyncpg.Connection:
        return await asyncpg.connect(self.cluster.url(user, self.database))


def make_roles(cluster: Cluster, major: int) -> None:
    _run(Shell(cluster, major, "postgres", ADMIN, superuser=ADMIN), HERE / "roles.sql")


def make_project(cluster: Cluster, major: int, owner: str = "postgres") -> Project:
    """A new project's database in a cluster that has the roles."""
    project = Project(cluster, major, f"project_{uuid.uuid4().hex[:10]}")
    admin = Shell(cluster, major, "postgres", ADMIN, superuser=ADMIN)
    admin.statement(f"create database {project.database} owner {owner}")
    _run(project.shell(ADMIN), HERE / "project.sql")
    return project


def _run(shell: Shell, file: Path) -> None:
    done: subprocess.CompletedProcess[str] = shell.file(file)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def claims(user: str | uuid.UUID, tenant: str | uuid.UUID | None = DEFAULT_TENANT, **more: Any) -> dict[str, Any]:
    """What Supabase Auth signs for a user; `more` adds or replaces claims."""
    metadata = {"provider": "email"} | ({"tenant_id": str(tenant)} if tenant else {})
    made: dict[str, Any] = {"sub": str(user), "role": "authenticated", "aud": "authenticated", "app_metadata": metadata}
    return made | {"user_metadata": {}, "exp": int(time.time()) + 3600} | more


@asynccontextmanager
async def request(
    authenticator: asyncpg.Connection, given: dict[str, Any] | None, role: str = "authenticated"
) -> AsyncIterator[asyncpg.Connection]:
    """A transaction as PostgREST opens one for each request: role and claims are set for it in one statement."""
    async with authenticator.transaction():
        await authenticator.execute(
            "select set_config('search_path', 'public, extensions', true), set_config('role', $1, true),"
            " set_config('request.jwt.claims', $2, true), set_config('request.method', 'GET', true)",
            role,
            json.dumps(given) if given is not None else "",
        )
        yield authenticator


async def sign_up(
    auth_admin: asyncpg.Connection, email: str | None, app_metadata: dict[str, Any] | None = None, **more: Any
) -> uuid.UUID:
    """The row that Supabase Auth inserts for a new user."""
    user = uuid.uuid4()
    row = {"id": user, "email": email, "aud": "authenticated", "role": "authenticated"} | more
    row |= {"raw_app_meta_data": json.dumps({"provider": "email"} | (app_metadata or {}))}
    names = ", ".join(row)
    places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
    await auth_admin.execute(f"insert into auth.users ({names}) values ({places})", *row.values())
    return user
