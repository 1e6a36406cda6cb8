"""`vanilla-saas workflows run`: a definition or a published workflow is started and watched until it ends."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer
from rich.console import Console, RenderableType
from rich.live import Live

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, TenantSlug, in_parts, tell, tenant_id
from vanilla_saas.logs import configure_logs
from vanilla_saas.settings import Settings
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows import drafts, execution_store, executions
from vanilla_saas.workflows.execution_cli import tell_end, tell_progress
from vanilla_saas.workflows.execution_view import tree
from vanilla_saas.workflows.working import options_of, worker_alone, working

LOOK_S = 0.1
DRAIN_S = 5.0
SUFFIXES = (".yaml", ".yml", ".json")
Answer = dict[str, Any]


InputFields = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME=VALUE", help="A field of the input; a value is YAML. Repeatable."),
]
InputFile = Annotated[
    Path | None,
    typer.Option(help="The input in YAML or JSON; --input overrides its fields.", exists=True, dir_okay=False),
]


def run(
    what: Annotated[
        str, typer.Argument(metavar="FILE_OR_SLUG", help="A definition in YAML or JSON, or a workflow: slug or UUID.")
    ],
    value: InputFields = None,
    input_file: InputFile = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show how it goes until it ends.")] = True,
    version: Annotated[int | None, typer.Option(min=1, help="Of a published workflow; the latest without.")] = None,
    user: Annotated[
        str | None, typer.Option(help="Who pays, and whose a new workflow is: email, external id or UUID (its owner).")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Repeating the command with this key starts nothing more.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Start a workflow and show how it goes; exit code 1 when it fails or is cancelled.

    A file is saved as the draft of the workflow of its name, and published when it has changed. When no worker is
    running, the steps run in this command.
    """
    given = read_input(value or [], input_file)
    path = file_of(what)
    definition = None if path is None else _read(path)

    async def act(connection: asyncpg.Connection, where: Addresses) -> Answer:
        owner = await tenant_id(connection, tenant)
        user_id = (await find_user(connection, tenant, user))[1] if user else None
        name = what if path is None else path.stem
        if definition is not None:
            made = await drafts.publish_this(connection, owner, name, definition, user_id)
            if not made["unchanged"]:
                typer.echo(f"{name} is published: version {made['version']}.", err=True)
        started = await executions.start(
            partial(nullcontext, connection), owner, name, given, version=version, key=key, user_id=user_id
        )
        if not follow:
            return started
        return await follow_to_the_end(connection, where, owner, UUID(started["execution_id"]), as_json)

    tell_run(in_parts(act), follow, as_json)


def tell_run(found: Answer, followed: bool, as_json: bool) -> None:
    """What was started, or of one that was followed the output or the error, and exit code 1 for that."""
    if not followed:
        tell(f"It runs: {found['execution_id']}.", found, as_json)
        return
    if as_json:
        tell_progress(found, True)
    else:
        tell_end(found)
    raise typer.Exit(0 if found["status"] == "succeeded" else 1)


async def follow_to_the_end(
    connection: asyncpg.Connection, where: Addresses, owner: UUID, execution: UUID, quiet: bool
) -> Answer:
    """The execution as it ended, after showing how it went; steps that no worker takes run here."""
    async with worked(connection, where, owner, [execution]):
        return await watched(partial(execution_store.progress, connection, owner, execution), tree, quiet)


@asynccontextmanager
async def worked(
    connection: asyncpg.Connection, where: Addresses, owner: UUID, begun: Sequence[UUID], what: str = "steps"
) -> AsyncIterator[None]:
    """While the block runs, steps that no worker takes run here: of the versions of what has begun."""
    lacking: set[str] = set()
    for execution in begun:
        progress = await execution_store.progress(connection, owner, execution)
        workflow = UUID(progress["workflow_id"]), progress["version"]
        lacking |= set(await execution_store.pools_without_worker(connection, owner, *workflow))
    if not lacking:
        yield
        return
    typer.echo(f"No worker is running: the {what} run here.", err=True)
    settings = Settings()
    configure_logs(settings.model_copy(update={"log_level": "warning"}))
    signer = load_signer(settings)
    options = options_of(settings, pools=tuple(sorted(lacking)))
    async with worker_alone(settings, options, where, signer, drain_s=DRAIN_S) as alone, working(alone):
        yield


def read_input(values: list[str], file: Path | None = None, option: str = "--input") -> Answer:
    """The input that options name. Raises typer.BadParameter."""
    given = drafts.read_value(file.read_bytes().decode(), "json" if file.suffix == ".json" else "yaml") if file else {}
    if not isinstance(given, dict):
        raise typer.BadParameter("An input is an object.", param_hint="--input-file")
    for one in values:
        name, equals, text = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"{one} is not NAME=VALUE.", param_hint=option)
        given[name] = drafts.read_value(text) if text else ""
    return given


def file_of(what: str) -> Path | None:
    """The file that is named where a name might be."""
    return Path(what) if what.endswith(SUFFIXES) or "/" in what else None


def _read(path: Path) -> Answer:
    try:
        return drafts.read_definition(path.read_bytes(), "json" if path.suffix == ".json" else "yaml")
    except FileNotFoundError:
        raise VanillaError("not_found", f"There is no file {path}.") from None


async def watched(
    look: Callable[[], Awaitable[Answer]], drawn: Callable[[Answer], RenderableType], quiet: bool
) -> Answer:
    """What `look` finds when it has ended, after showing how it went."""
    console = Console(stderr=True, highlight=False)
    found = await look()
    live = Live(drawn(found), console=console, auto_refresh=False) if sys.stderr.isatty() and not quiet else None
    with live or nullcontext():
        while found["finished_at"] is None:
            await asyncio.sleep(LOOK_S)
            found = await look()
            if live:
                live.update(drawn(found), refresh=True)
    if not live and not quiet:
        console.print(drawn(found))
    return found
