"""Workflows over HTTP: drafts saved by their owners, versions published and retired, templates to begin from."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from vanilla_saas.tenancy.identity import CurrentCaller, acting
from vanilla_saas.web import SlugOrId
from vanilla_saas.workflows import drafts, store
from vanilla_saas.workflows.definition import json_schema
from vanilla_saas.workflows.models import (
    DefinitionBody,
    Difference,
    InstantiateBody,
    ProblemOf,
    Problems,
    PublishBody,
    Published,
    RetireBody,
    Retired,
    SaveBody,
    Saved,
    Slug,
    Template,
    Templates,
    Version,
    Versions,
    VersionSummary,
    Workflow,
    Workflows,
    WorkflowSummary,
)

router = APIRouter(prefix="/api/v1", tags=["workflows"])
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.get("/workflows")
async def workflows(request: Request, caller: CurrentCaller) -> Workflows:
    """Own ones and those that are shared, by slug; of an admin all of the tenant's."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.workflows(connection, caller.identity.tenant_id)
    return Workflows(data=[WorkflowSummary(**row) for row in rows])


@router.get("/workflows/schema")
async def schema(caller: CurrentCaller) -> dict[str, Any]:
    """JSON Schema of a definition. Graphs, expressions and templates have more rules: POST /workflows/validate."""
    caller.require_scope("read")
    return json_schema()


@router.post("/workflows/validate")
async def validate(request: Request, caller: CurrentCaller, body: DefinitionBody) -> Problems:
    """What is wrong with a definition, by node and field; nothing is written."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        graph = await store.graph_problems(connection, body.definition)
    found = await drafts.every_problem(graph, body.definition)
    return Problems(problems=[ProblemOf(**problem) for problem in found])


@router.get("/workflows/{workflow}")
async def workflow(request: Request, caller: CurrentCaller, workflow: SlugOrId) -> Workflow:
    """A workflow with its draft and what is wrong with it."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, caller.identity.tenant_id, workflow)
        graph = await store.graph_problems(connection, found["draft"])
    wrong = await drafts.every_problem(graph, found["draft"])
    return Workflow(**found, problems=[ProblemOf(**problem) for problem in wrong])


@router.put("/workflows/{slug}")
async def save(request: Request, caller: CurrentCaller, slug: Slug, body: SaveBody) -> Saved:
    """Makes a workflow or saves its draft, however unfinished."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        saved = await store.save(
            connection,
            caller.identity.tenant_id,
            slug,
            body.definition,
            shared=body.shared,
            expected_revision=body.expected_revision,
            user_id=body.user_id,
        )
    saved["problems"] = await drafts.every_problem(saved["problems"], body.definition)
    return Saved(**saved)


@router.post("/workflows/{workflow}/publish")
async def publish(request: Request, caller: CurrentCaller, workflow: SlugOrId, body: PublishBody) -> Published:
    """Freezes the draft as the next version; 422 with every problem when it does not validate."""
    caller.require_scope("chat")
    made = await drafts.publish(
        lambda: acting(request, caller), caller.identity.tenant_id, workflow, body.expected_revision
    )
    return Published(**made)


@router.post("/workflows/{workflow}/retire")
async def retire(request: Request, caller: CurrentCaller, workflow: SlugOrId, body: RetireBody) -> Retired:
    """Nothing starts on a version any more, or on the whole workflow until it is published again."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        found = await store.find(connection, caller.identity.tenant_id, workflow)
        return Retired(**await store.retire(connection, caller.identity.tenant_id, found["id"], body.version))


@router.delete("/workflows/{workflow}", status_code=204)
async def delete(request: Request, caller: CurrentCaller, workflow: SlugOrId) -> None:
    """Deletes a workflow with its versions."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        found = await store.find(connection, caller.identity.tenant_id, workflow)
        await store.delete(connection, caller.identity.tenant_id, found["id"])


@router.get("/workflows/{workflow}/versions")
async def versions(request: Request, caller: CurrentCaller, workflow: SlugOrId) -> Versions:
    """Every version, newest first."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, caller.identity.tenant_id, workflow)
        rows = await store.versions(connection, caller.identity.tenant_id, found["id"])
    return Versions(data=[VersionSummary(**row) for row in rows])


@router.get("/workflows/{workflow}/versions/{version}")
async def version(request: Request, caller: CurrentCaller, workflow: SlugOrId, version: Number) -> Version:
    """A version with its definition."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, caller.identity.tenant_id, workflow)
        return Version(**await store.version(connection, caller.identity.tenant_id, found["id"], version))


@router.get("/workflows/{workflow}/export", response_class=Response)
async def export(
    request: Request,
    caller: CurrentCaller,
    workflow: SlugOrId,
    version: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="left out: the draft")] = None,
) -> Response:
    """The definition as YAML, to be kept in a repository and saved again with PUT or `vanilla-saas workflows save`."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        definition = await store.definition(connection, caller.identity.tenant_id, workflow, version)
    text = await asyncio.to_thread(drafts.as_text, definition)
    return Response(text, media_type="application/yaml")


@router.get("/workflows/{workflow}/diff")
async def diff(
    request: Request,
    caller: CurrentCaller,
    workflow: SlugOrId,
    before: Annotated[int | None, Query(alias="from", ge=1, le=2**31 - 1, description="left out: the draft")] = None,
    after: Annotated[int | None, Query(alias="to", ge=1, le=2**31 - 1, description="left out: the draft")] = None,
) -> Difference:
    """What changed from one version to another, or to the draft."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        old = await store.definition(connection, caller.identity.tenant_id, workflow, before)
        new = await store.definition(connection, caller.identity.tenant_id, workflow, after)
    found = drafts.compare(old, new)
    return Difference(text=found.text(), changes=found.data())


@router.get("/workflow-templates")
async def templates(request: Request, caller: CurrentCaller) -> Templates:
    """Templates of the platform and of the tenant, with their parameters."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.templates(connection, caller.identity.tenant_id)
    return Templates(data=[Template(**row) for row in rows])


@router.post("/workflow-templates/{template}/instantiate")
async def instantiate(request: Request, caller: CurrentCaller, template: SlugOrId, body: InstantiateBody) -> Saved:
    """Makes a workflow of a template; parameters that are left out have their defaults."""
    caller.require_scope("chat")
    made = await drafts.begin(
        lambda: acting(request, caller), caller.identity.tenant_id, template, body.slug, body.parameters,
        shared=body.shared,
    )  # fmt: skip
    return Saved(**made)
