"""Engines as files: the flow, how it is deployed, and which name means it; applied again, nothing differs."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import store
from vanilla_saas.engines.models import Access, Alias, Mode, Slug
from vanilla_saas.workflows import drafts

Answer = dict[str, Any]


class EngineFile(BaseModel):
    """An engine with its flow, a definition or a template with values; its workflow has the engine's slug."""

    model_config = ConfigDict(extra="forbid")

    slug: Slug
    name: str | None = None
    description: str | None = None
    workflow: dict[str, Any] | None = None
    template: str | None = None
    values: Answer = Field({}, alias="set")
    mode: Mode = "parallel"
    at_once: int | None = Field(None, ge=1, le=1000)
    parameters: Answer = {}
    output: Answer | None = None
    default_access: Access | None = None
    alias: Alias = "stable"
    weight: int | None = Field(None, ge=0, le=100)

    @model_validator(mode="after")
    def _one_flow(self) -> "EngineFile":
        if (self.workflow is None) == (self.template is None):
            raise ValueError("say either workflow or template")
        if self.values and self.template is None:
            raise ValueError("set is of a template")
        if (self.alias == "canary") != (self.weight is not None):
            raise ValueError("a canary has a weight, stable has none")
        return self


def read(path: Path) -> EngineFile:
    """Raises VanillaError `invalid_definition` naming every place that does not fit."""
    document = drafts.read_value(path.read_bytes(), "json" if path.suffix == ".json" else "yaml")
    try:
        return EngineFile.model_validate(document)
    except ValidationError as error:
        problems = [
            {"path": ".".join(map(str, one["loc"])), "code": one["type"], "message": one["msg"]}
            for one in error.errors(include_url=False, include_input=False)
        ]
        hint = "; ".join(": ".join(filter(None, (one["path"], one["message"]))) for one in problems)
        raise VanillaError("invalid_definition", f"{path} is no engine", {"problems": problems}, hint) from error


async def apply(connection: asyncpg.Connection, tenant_id: UUID, file: EngineFile, user_id: UUID | None) -> Answer:
    """Publishes, deploys and promotes what differs; a new workflow is the user's, the only one's when none is named.

    The answer is that of `deploy_engine` with `changed`: whether anything did. Raises VanillaError as those do.
    """
    definition = file.workflow
    if file.template is not None:
        definition = await drafts.instance(partial(nullcontext, connection), tenant_id, file.template, file.values)
    assert definition is not None
    before = await _found(connection, tenant_id, file.slug)
    flow = await drafts.publish_this(connection, tenant_id, file.slug, definition, user_id)
    made = await store.deploy(
        connection, tenant_id, file.slug, UUID(flow["id"]), name=file.name, description=file.description,
        mode=file.mode, at_once=file.at_once, parameters=file.parameters, output=file.output,
    )  # fmt: skip
    found = await store.find(connection, tenant_id, file.slug)
    if file.default_access not in (None, found["default_access"]):
        await store.change(connection, tenant_id, found["id"], default_access=file.default_access)
    meant = {alias["alias"]: (alias["version"], alias["weight"]) for alias in found["aliases"]}
    wanted = made["version"], 100 if file.weight is None else file.weight
    # what everybody has is no canary
    if meant.get(file.alias) != wanted and meant["stable"][0] != made["version"]:
        await store.promote(connection, tenant_id, found["id"], made["version"], file.alias, file.weight)
    return made | {"changed": await _found(connection, tenant_id, file.slug) != before}


async def _found(connection: asyncpg.Connection, tenant_id: UUID, slug: str) -> Answer | None:
    try:
        return await store.find(connection, tenant_id, slug) | {"updated_at": None}
    except VanillaError as error:
        if error.name != "not_found":
            raise
        return None
