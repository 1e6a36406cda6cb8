"""A cluster with Supabase's roles for each major version, and a migrated project in it."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from tests.conftest import LONG, Cluster
from tests.migrations.tools import throwaway_server
from tests.supabase.project import ADMIN, Project, make_project, make_roles


# Supabase is at 17; the rest of the suite runs on 18
@pytest.fixture(scope="session", params=[16, *([18] if LONG else [])])
def major(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="session")
def supabase(major: int) -> Iterator[Cluster]:
    with throwaway_server(major, superuser=ADMIN) as cluster:
        make_roles(cluster, major)
        yield cluster


@pytest.fixture(scope="session")
def project(supabase: Cluster, major: int) -> Project:
    """A project whose owner ran every file in the SQL editor."""
    made = make_project(supabase, major)
    made.shell().sequence()
    return made


@pytest.fixture
async def admin(project: Project) -> AsyncIterator[asyncpg.Connection]:
    """The superuser, whom nobody outside Supabase is."""
    connection = await project.connect(ADMIN)
    yield connection
    await connection.close()


@pytest.fixture
async def editor(project: Project) -> AsyncIterator[asyncpg.Connection]:
    """The SQL editor: login postgres."""
    connection = await project.connect("postgres")
    yield connection
    await connection.close()


@pytest.fixture
async def authenticator(project: Project) -> AsyncIterator[asyncpg.Connection]:
    """PostgREST's connection."""
    connection = await project.connect("authenticator")
    yield connection
    await connection.close()


@pytest.fixture
async def auth_admin(project: Project) -> AsyncIterator[asyncpg.Connection]:
    """Supabase Auth's connection."""
    connection = await project.connect("supabase_auth_admin")
    yield connection
    await connection.close()
