from collections.abc import AsyncIterator

import pytest

from vanilla_saas.providers.adapters import Upstream, UpstreamClient
from vanilla_saas.providers.sandbox import SandboxServer

KEY = "sk-operator-secret-0123456789"


@pytest.fixture(scope="session")
async def sandbox_server() -> AsyncIterator[SandboxServer]:
    async with SandboxServer() as server:
        yield server


@pytest.fixture
def sandbox(sandbox_server: SandboxServer) -> SandboxServer:
    sandbox_server.counters.reset()
    return sandbox_server


@pytest.fixture(scope="session")
async def client() -> AsyncIterator[UpstreamClient]:
    async with UpstreamClient() as client:
        yield client


@pytest.fixture
def upstream(sandbox: SandboxServer) -> Upstream:
    return Upstream("sandbox", sandbox.url, KEY, "sandbox-small")
