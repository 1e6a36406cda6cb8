"""Every python and sql block of the README and the tutorial runs against a fresh installation, in page order."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import asyncpg
import pytest
import yaml

from tests.conftest import TEST_KEY, Cluster, migrated_database, serve, settings_for
from tests.tokens.test_cli import Cli
from vanilla_saas.app import create_app
from vanilla_saas.operations.first_run import DEMO_EMAIL, FirstRun, prepare_first_run
from vanilla_saas.orchestration.teams import Pattern

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/tutorial.md", "docs/workflows.md", "docs/engines.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: str) -> list[tuple[str, str]]:
    """Language and text of each block, in order."""
    return FENCE.findall((ROOT / page).read_text())


@pytest.fixture
async def installation(cluster: Cluster, tmp_path: Path) -> AsyncIterator[tuple[str, str, FirstRun]]:
    """A database as `up` leaves it and a server over it: name, address, secrets."""
    async with migrated_database(cluster, "fences") as name:
        url = cluster.url(database=name)
        first = await prepare_first_run(url, with_demo=True)
        assert first is not None
        async with serve(create_app(settings_for(cluster, name, tmp_path, run_worker=True))) as address:
            yield url, address, first


@pytest.mark.parametrize("page", PAGES)
async def test_the_blocks_of_a_page_run(page: str, installation: tuple[str, str, FirstRun]) -> None:
    url, address, first = installation
    blocks = fences(page)
    python = "\n".join(text for language, text in blocks if language == "python")
    assert python, f"{page} has no python block"
    at = next(place for place, (language, _) in enumerate(blocks) if language == "python")
    connection = await asyncpg.connect(url)
    try:
        for block in _sql(blocks[:at]):
            await connection.execute(block)
        run = await _run_python(python, address, str(first.demo_key))
        assert run.returncode == 0, run.stderr
        for block in _sql(blocks[at:]):
            await connection.execute(block)
        assert await connection.fetch("select * from verify_token_ledger()") == []
        assert await connection.fetch("select * from reconcile_token_wallets()") == []
    finally:
        await connection.close()


async def test_every_team_of_the_page_of_agents_runs(
    installation: tuple[str, str, FirstRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _, _ = installation
    patterns = set()
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("VANILLA_SAAS_HOME", str(tmp_path))
    monkeypatch.setenv("VANILLA_SAAS_CONTEXT_KEY", TEST_KEY)
    for language, text in fences("docs/orchestration.md"):
        if language != "yaml":
            continue
        file = tmp_path / "team.yaml"
        file.write_text(text)
        found = await Cli().json("agents", "run", str(file), "--user", DEMO_EMAIL, "--input", "message=Mushrooms.")
        assert (found.get("state") or found["status"]) in ("completed", "succeeded"), (text, found)
        patterns.add(yaml.safe_load(text)["pattern"])
    assert patterns == set(get_args(Pattern))


def _sql(blocks: list[tuple[str, str]]) -> list[str]:
    return [text for language, text in blocks if language == "sql"]


async def _run_python(text: str, address: str, key: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"VANILLA_SAAS_DEMO_URL": address, "VANILLA_SAAS_DEMO_KEY": key}
    # the README's blocks name the default address
    text = text.replace("http://127.0.0.1:8000", address).replace('"vsk_..."', repr(key))
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=60
    )
