"""The loops that a durable turn is held against do what it does."""

import pytest

from benchmarks.agent_loops import HttpxModel, Model, bare, functions_of, in_memory
from benchmarks.agent_turns import TURNS, long_run
from vanilla_saas.providers.sandbox import SandboxServer


@pytest.mark.parametrize("kind", [Model, HttpxModel])
async def test_a_bare_loop_has_all_turns(kind: type[Model]) -> None:
    async with SandboxServer() as sandbox, kind(sandbox.url) as model:
        assert await bare(model, long_run(), await functions_of(long_run()))() == TURNS


@pytest.mark.parametrize("loop", ["builtin", "pydantic_ai"])
async def test_the_products_loop_has_all_turns_without_a_database(loop: str) -> None:
    async with SandboxServer() as sandbox, Model(sandbox.url) as model:
        assert await in_memory(model, long_run(loop=loop))() == TURNS
