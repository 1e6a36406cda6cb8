"""`vanilla-saas engines compare`: two references run on the same cases, as a user, and compared."""

import asyncio
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.operator import AsJson, TenantSlug, in_parts, show, tell
from vanilla_saas.engines import comparison, store
from vanilla_saas.engines.comparison import SIDES, Answer, Case, CaseError
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows.run_cli import worked

LOOK_S = 0.2
REF = "slug, slug@3, slug@stable, slug@canary, or my/slug."


class OperatorsRuns:
    """Runs of a user, begun and read on the operator's one connection."""

    def __init__(self, connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID):
        self._connection, self._of, self._user_id = connection, tenant_id, user_id
        self._turn = asyncio.Lock()

    async def resolve(self, ref: str) -> Answer:
        return await store.resolve(self._connection, self._of, self._user_id, ref)

    async def overlay(self, copy_id: str) -> Answer:
        rows = await store.copies(self._connection, self._of, self._user_id)
        return next((dict(row["overlay"]) for row in rows if str(row["id"]) == copy_id), {})

    async def start(self, ref: str, given: Answer, key: str | None) -> str:
        async with self._turn:
            started = await store.start(self._connection, self._of, ref, given, key=key, user_id=self._user_id)
        return str(started["execution_id"])

    async def ended(self, execution_id: str) -> Answer:
        while True:
            async with self._turn:
                found = await store.compared(self._connection, self._of, UUID(execution_id))
            if found is not None:
                return found
            await asyncio.sleep(LOOK_S)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=REF)],
    b: Annotated[str, typer.Argument(metavar="B", help=REF)],
    user: Annotated[str, typer.Option(help="Who runs them and pays: email, external id or UUID.")],
    cases_file: Annotated[
        Path, typer.Option("--input", help="The cases: a JSON object a line.", exists=True, dir_okay=False)
    ],
    at_once: Annotated[int, typer.Option(min=1, max=100, help="Runs at the same time.")] = 4,
    name: Annotated[str, typer.Option(help="Of the comparison: under another name everything runs anew.")] = "",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Run two engines, or two versions of one, on the same cases and compare what they came to.

    What a comparison has begun is taken up when it is begun again: a run is found by the name of the comparison, the
    version and the input. Exit code 1 when a run failed or was cancelled, whatever the outputs are.
    When no worker is running, the steps run in this command.
    """
    try:
        cases = comparison.read_cases(cases_file.read_text(encoding="utf-8"))
    except (CaseError, UnicodeDecodeError) as error:
        raise typer.BadParameter(str(error), param_hint="--input") from None

    async def act(connection: asyncpg.Connection, where: Addresses) -> Answer:
        owner, user_id = await find_user(connection, tenant, user)
        runs = OperatorsRuns(connection, owner, user_id)
        sides = await comparison.sides_of(runs, (a, b), cases)
        first = [UUID(await runs.start(side.runs, cases[0].input, side.key(cases[0], name))) for side in sides]
        async with worked(connection, where, owner, first):
            return await comparison.compare(runs, sides, cases, at_once, name)

    try:
        found = in_parts(act)
    except CaseError as error:
        raise typer.BadParameter(str(error), param_hint="A B") from None
    if as_json:
        tell("", found, True)
    else:
        _tell(found, cases)
    raise typer.Exit(0 if all(found[side]["succeeded"] == len(cases) for side in SIDES) else 1)


def _tell(found: Answer, cases: list[Case]) -> None:
    """A row for each case, then the sums."""
    rows: list[dict[str, Any]] = []
    for row in found["cases"]:
        shown: dict[str, Any] = {"line": row["line"]}
        for side in SIDES:
            run = row[side]
            ended = run["status"] if run["reason"] is None else f"{run['status']}: {run['reason']}"
            shown |= {side.upper(): ended, f"{side}_ms": run["ms"], f"{side}_tokens": run["charged_tokens"]}
        rows.append(shown | {"equal": {True: "yes", False: "no", None: ""}[row["equal"]]})
    show(rows, False)
    typer.echo("")
    sums = []
    for side in SIDES:
        all_ = found[side]
        gates = f"{all_['gates_passed']} of {all_['gates']}" if all_["gates"] else ""
        columns = ("succeeded", "failed", "cancelled", "p50_ms", "p95_ms", "charged_tokens", "cost_micros")
        sums.append({"": side.upper(), "ref": all_["ref"], "runs": all_["runs"]} | {c: all_[c] for c in columns}
                    | {"gates_passed": gates})  # fmt: skip
    show(sums, False)
    typer.echo(f"\nEqual outputs: {found['equal']} of {found['compared']} that succeeded on both sides.")
