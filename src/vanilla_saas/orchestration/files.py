"""Agents and teams as files: read with every problem told, and saved for whom they are to be."""

from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.orchestration import drafts, store
from vanilla_saas.orchestration.teams import Plan
from vanilla_saas.workflows import drafts as workflow_drafts
from vanilla_saas.workflows import execution_store
from vanilla_saas.workflows.definition import plain

Answer = dict[str, Any]


def read(path: Path) -> Answer | Plan:
    """The definition of an agent, or the plan of a team: a document that names a pattern.

    Raises VanillaError `not_found`, `invalid_definition` after telling every problem.
    """
    try:
        given = drafts.read(path.read_bytes(), "json" if path.suffix == ".json" else "yaml")
    except FileNotFoundError:
        raise VanillaError("not_found", f"There is no file {path}.") from None
    try:
        return drafts.team(given) if "pattern" in given else drafts.document(given)
    except VanillaError as error:
        for problem in error.detail["problems"]:
            typer.echo(f"{problem['path'] or 'definition'}: {problem['message']} ({problem['code']})", err=True)
        raise


async def save_agent(
    connection: asyncpg.Connection, owner: UUID, slug: str, document: Answer, shared: bool | None, user_id: UUID | None
) -> Answer:
    """Of one that is there its owner's next version; a new one is the only user's when none is named."""
    try:
        await store.find(connection, owner, slug)
        user_id = None
    except VanillaError as error:
        if error.name != "not_found":
            raise
        user_id = user_id or await execution_store.only_user(connection, owner)
    return await store.save(connection, owner, slug, document, shared=shared, user_id=user_id)


async def save_team(
    connection: asyncpg.Connection, owner: UUID, plan: Plan, shared: bool | None, user_id: UUID | None
) -> Answer:
    """Its agents, all or none, and the workflow in which they run: published when it has changed."""
    async with connection.transaction():
        agents = [
            await save_agent(connection, owner, slug, definition.document(), shared, user_id)
            for slug, definition in plan.agents.items()
        ]
    if plan.workflow is not None:
        await workflow_drafts.publish_this(connection, owner, plan.start, plain(plan.workflow), user_id, shared)
    return {"start": plan.start, "is_workflow": plan.workflow is not None, "agents": agents}
