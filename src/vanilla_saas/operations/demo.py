"""`vanilla-saas demo`: what the product does, shown with the official openai package over real HTTP."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import uvicorn
from rich.console import Console
from rich.table import Table

from vanilla_saas.database.connection import Addresses, addresses, connect_admin
from vanilla_saas.database.context import ContextSigner, load_signer
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations import (
    demo_agents,
    demo_analytics,
    demo_engines,
    demo_isolation,
    demo_levels,
    demo_person,
    demo_wallet,
    demo_workflows,
)
from vanilla_saas.operations.first_run import DEFAULT_TENANT, make_key
from vanilla_saas.operations.serving import APPLICATION
from vanilla_saas.settings import Settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI

RACERS, AFFORDED = 200, 10
RACE_SCRIPT = orjson.dumps({"latency_ms": 400, "reply": " ".join(["word"] * 60)}).decode()


@dataclass(frozen=True, slots=True)
class _Tourist:
    user_id: UUID
    key: str


def run_demo(settings: Settings, console: Console, url: str | None) -> None:
    """Runs the tour against `url`, a server over the same database, or against one it starts for the time.

    Raises VanillaError when the `openai` package is missing or a figure of the tour is wrong.
    """
    try:
        import openai  # noqa: F401
    except ImportError:
        raise VanillaError(
            "invalid_state", "The tour needs the openai package.", hint="pip install 'vanilla-saas[demo]'"
        ) from None
    signer = load_signer(settings)
    with addresses(settings, signer) as where:
        asyncio.run(_tour(where, signer, console, url))


async def _tour(where: Addresses, signer: ContextSigner, console: Console, url: str | None) -> None:
    await migrate(where.admin, signer)
    operator = await connect_admin(where.admin)
    await operator.set_type_codec(
        "jsonb", encoder=lambda v: orjson.dumps(v).decode(), decoder=orjson.loads, schema="pg_catalog"
    )
    try:
        async with _server(url) as base:
            tourist = await _show(operator, console, base)
        console.rule("5  The wallet in depth", align="left")
        await demo_wallet.show(operator, console, tourist.user_id)
        console.rule("6  Another plan", align="left")
        await demo_levels.show(operator, console, tourist.user_id)
        console.rule("7  Levels in figures", align="left")
        await demo_analytics.show(operator, console, tourist.user_id)
        console.rule("8  A workflow is drawn, and runs", align="left")
        await demo_workflows.show(operator, console, tourist.user_id)
        await demo_workflows.run(operator, where, signer, console, tourist.user_id)
        console.rule("9  An engine is promoted under a run", align="left")
        await demo_engines.show(operator, console, tourist.user_id)
        await demo_engines.examples(operator, where, signer, console, tourist.user_id)
        console.rule("10  A support desk, and a team", align="left")
        await demo_agents.show(operator, where, signer, console, tourist.user_id)
        console.rule("11  Two tenants", align="left")
        await demo_isolation.show(operator, where.app, signer, console)
        console.rule("12  A person leaves", align="left")
        await demo_person.show(operator, console, tourist.user_id)
    finally:
        await operator.close()


@contextlib.asynccontextmanager
async def _server(url: str | None) -> AsyncIterator[str]:
    """The given server, else one on a free port of this process."""
    if url:
        yield url.rstrip("/")
        return
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        server = uvicorn.Server(
            uvicorn.Config(APPLICATION, factory=True, log_level="warning", access_log=False, lifespan="on")
        )
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if task.done():
            await task
            raise VanillaError("internal_error", "The server of the tour did not start.")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def _show(operator: asyncpg.Connection, console: Console, base: str) -> _Tourist:
    from openai import AsyncOpenAI

    tourist = await _arrive(operator)
    async with AsyncOpenAI(base_url=f"{base}/v1", api_key=tourist.key, max_retries=0, timeout=60) as client:
        console.rule("1  A call", align="left")
        await _plain(client, console)
        console.rule("2  A stream", align="left")
        await _stream(client, console)
        await _embeddings(client, console)
        console.rule(f"3  The race: {RACERS} calls at once, a wallet that affords {AFFORDED}", align="left")
        await _race(operator, client, console, tourist)
    console.rule("4  The books", align="left")
    await _books(operator, console, tourist)
    return tourist


async def _arrive(operator: asyncpg.Connection) -> _Tourist:
    """A new user on the default level, with a key."""
    user_id = await operator.fetchval(
        "select create_user($1, p_display_name => 'Tour', p_tenant_id => $2)",
        f"tour-{uuid4().hex[:8]}@localhost",
        DEFAULT_TENANT,
    )
    return _Tourist(user_id, await make_key(operator, user_id, "tour"))


async def _plain(client: "AsyncOpenAI", console: Console) -> None:
    answer = await client.chat.completions.with_raw_response.create(
        model="sandbox-small", messages=[{"role": "user", "content": "What does a token wallet do?"}], max_tokens=60
    )
    parsed = answer.parse()
    console.print(f"   {parsed.choices[0].message.content}")
    held = answer.headers["x-vanilla-reserved-tokens"]
    charged = answer.headers["x-vanilla-charged-tokens"]
    console.print(
        f"   reserved {held} tokens, charged {charged}, available {answer.headers['x-vanilla-available-tokens']}"
    )


async def _stream(client: "AsyncOpenAI", console: Console) -> None:
    stream = await client.chat.completions.create(
        model="sandbox-small",
        messages=[{"role": "user", "content": "Count to five, slowly."}],
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
    )
    console.print("   ", end="")
    async for chunk in stream:
        if chunk.choices:
            console.print(chunk.choices[0].delta.content or "", end="")
        elif chunk.usage:
            console.print(f"\n   usage {chunk.usage.total_tokens} tokens")


async def _embeddings(client: "AsyncOpenAI", console: Console) -> None:
    texts = ["a wallet of tokens", "the wallet of tokens", "rain over green hills"]
    answer = await client.embeddings.create(model="sandbox-embed", input=texts)
    first, *others = (item.embedding for item in answer.data)
    near, far = (sum(a * b for a, b in zip(first, other, strict=True)) for other in others)
    console.print(f"   embeddings: {near:.2f} for like texts, {far:.2f} for others; {answer.usage.total_tokens} tokens")


async def _race(operator: asyncpg.Connection, client: "AsyncOpenAI", console: Console, tourist: _Tourist) -> None:
    from openai import APIStatusError

    request: dict[str, Any] = {
        "model": "sandbox-small",
        "messages": [{"role": "user", "content": f"sandbox: {RACE_SCRIPT}"}],
        "max_tokens": 60,
    }
    probe = await client.chat.completions.create(**request)
    assert probe.usage is not None
    cost = probe.usage.total_tokens
    available = await operator.fetchval(
        "select available_tokens from user_token_wallets where user_id = $1", tourist.user_id
    )
    await operator.fetchval(
        "select adjust_user_tokens($1, $2, 'adjustment', 'tour: a small wallet')",
        tourist.user_id,
        AFFORDED * cost - available,
    )
    console.print(f"   a call costs {cost} tokens, the wallet holds {AFFORDED * cost}")

    async def run() -> int:
        try:
            await client.chat.completions.create(**request)
        except APIStatusError as error:
            return error.status_code
        return 200

    began = time.perf_counter()
    statuses = await asyncio.gather(*(run() for _ in range(RACERS)))
    answered, refused = statuses.count(200), statuses.count(402)
    console.print(f"   {answered} answered, {refused} refused with 402, in {time.perf_counter() - began:.1f} s")
    if (answered, refused) != (AFFORDED, RACERS - AFFORDED):
        raise VanillaError("internal_error", f"The race must end {AFFORDED} to {RACERS - AFFORDED}.")


async def _books(operator: asyncpg.Connection, console: Console, tourist: _Tourist) -> None:
    wallet = await operator.fetchrow("select * from user_token_wallets where user_id = $1", tourist.user_id)
    console.print(
        f"   wallet: available {wallet['available_tokens']}, reserved {wallet['reserved_tokens']},"
        f" debt {wallet['borrowed_tokens']}, spent {wallet['spent_tokens']}"
    )
    table = Table(
        "seq", "direction", "available", "reserved", "charged", box=None, header_style="dim", padding=(0, 2, 0, 1)
    )
    # one call of the race from its reservation to its settlement, whatever came between
    rows = await operator.fetch(
        "select l.* from user_token_ledger l where user_id = $1 and execution_id ="
        " (select execution_id from user_token_ledger where user_id = $1 order by seq desc limit 1) order by seq",
        tourist.user_id,
    )
    for row in rows:
        changes = (f"{row['amount']:+}", f"{row['reserved_amount']:+}", str(row["metadata"].get("actual", "")))
        table.add_row(str(row["seq"]), row["direction"], *changes)
    console.print("   the last call in the ledger:")
    console.print(table)
    faults = await operator.fetch("select * from verify_token_ledger($1)", tourist.user_id)
    faults += await operator.fetch("select * from reconcile_token_wallets() where user_id = $1", tourist.user_id)
    if faults:
        raise VanillaError("internal_error", f"The books are wrong: {faults[0]}")
    console.print(f"   chain verified: {wallet['seq']} entries, and the wallet is their sum")
