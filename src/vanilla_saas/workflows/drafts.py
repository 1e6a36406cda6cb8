"""What a person does with a definition, whoever asks: look for problems, publish, compare, begin from a template.

Rules of the graph are the database's (`validate_workflow`); fields, expressions and templates are checked here.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import ValidationError

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.workflows import documents, execution_store, store
from vanilla_saas.workflows.definition import Definition, dump_yaml, plain
from vanilla_saas.workflows.diff import Difference, difference
from vanilla_saas.workflows.documents import DocumentError, Format, parse
from vanilla_saas.workflows.library import WorkflowTemplate, instantiate
from vanilla_saas.workflows.problems import DefinitionError, Problem, problems
from vanilla_saas.workflows.shape import shape_problems

Transaction = Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]
"""Begins one: what is checked in between takes seconds, and no transaction waits for it."""


def read_definition(text: str | bytes, format: Format) -> dict[str, Any]:
    """The object that a text of JSON or YAML is. Raises VanillaError `invalid_definition`."""
    document = read_value(text, format)
    if not isinstance(document, dict):
        raise _refusal([Problem(None, "", "wrong_type", "Write an object with name, nodes and connections.")])
    return document


def read_value(text: str | bytes, format: Format = "yaml") -> Any:
    """The value that a text of YAML or JSON is. Raises VanillaError `invalid_definition`."""
    try:
        return parse(text, format)
    except DocumentError as error:
        raise _refusal([Problem(None, "", error.code, error.message)]) from error


def as_text(definition: dict[str, Any]) -> str:
    """YAML as a person would write it, without defaults; one that is unfinished as it is."""
    try:
        return dump_yaml(Definition.model_validate(definition))
    except ValidationError:
        return documents.dump_yaml(definition)


async def every_problem(graph: list[dict[str, Any]], definition: object) -> list[dict[str, Any]]:
    """Those of the graph, as the database told them, then those of fields and languages; empty: it can be published.

    It may take seconds, in a thread: no transaction should wait for it.
    """
    told = {(problem["node"], problem["field"]) for problem in graph}
    found = await asyncio.to_thread(problems, definition)
    return graph + [asdict(problem) for problem in found if (problem.node, problem.field) not in told]


async def publish(
    transaction: Transaction, tenant_id: UUID, name: str, expected_revision: int | None = None
) -> dict[str, Any]:
    """Publishes the draft that was checked and no other, with every default written out: what a version means does not
    depend on the release that runs it. Raises VanillaError `invalid_definition` with every problem, `invalid_state`.
    """
    async with transaction() as connection:
        found = await store.find(connection, tenant_id, name)
        graph = await store.graph_problems(connection, found["draft"])
    if wrong := await every_problem(graph, found["draft"]):
        raise VanillaError(
            "invalid_definition", "the workflow does not validate", {"problems": wrong}, wrong[0]["message"]
        )
    definition = plain(Definition.model_validate(found["draft"]))
    async with transaction() as connection:
        revision = expected_revision or found["revision"]
        return await store.publish(connection, tenant_id, found["id"], revision, definition)


async def publish_this(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    slug: str,
    definition: dict[str, Any],
    user_id: UUID | None,
    shared: bool | None = None,
) -> dict[str, Any]:
    """Makes the latest version of a workflow a definition, that of a file; a new one is the user's, or the only user's.

    Raises VanillaError as `publish` does.
    """
    try:
        found = await store.find(connection, tenant_id, slug)
    except VanillaError as error:
        if error.name != "not_found":
            raise
        new_for = user_id or await execution_store.only_user(connection, tenant_id)
        await store.save(connection, tenant_id, slug, definition, shared=shared, user_id=new_for)
    else:
        if found["draft"] != definition or shared not in (None, found["shared"]):
            await store.save(connection, tenant_id, slug, definition, shared=shared)
    return await publish(lambda: nullcontext(connection), tenant_id, slug)


def compare(before: dict[str, Any], after: dict[str, Any]) -> Difference:
    """What changed. Raises VanillaError `invalid_definition` when one of them is unfinished."""
    read = []
    for document in (before, after):
        try:
            read.append(Definition.model_validate(document))
        except ValidationError as error:
            raise _refusal(list(shape_problems(document, error))) from error
    return difference(*read)


async def begin(
    transaction: Transaction,
    tenant_id: UUID,
    template: str,
    slug: str,
    parameters: Mapping[str, Any],
    *,
    shared: bool = False,
    user_id: UUID | None = None,
) -> dict[str, Any]:
    """Makes a workflow of a template. Raises VanillaError `invalid_definition`; `invalid_state`: the slug is taken."""
    definition = await instance(transaction, tenant_id, template, parameters)
    async with transaction() as connection:
        return await store.save(
            connection, tenant_id, slug, definition, shared=shared, expected_revision=0, user_id=user_id
        )


async def instance(
    transaction: Transaction, tenant_id: UUID, template: str, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The definition that a template makes of parameters. Raises VanillaError `invalid_definition`."""
    async with transaction() as connection:
        row = await store.template(connection, tenant_id, template)
    fields = {name: row[name] for name in ("slug", "name", "description", "parameters", "definition")}
    try:
        return plain(await asyncio.to_thread(instantiate, WorkflowTemplate.model_validate(fields), parameters))
    except DefinitionError as error:
        raise _refusal(error.problems) from error


def _refusal(found: list[Problem]) -> VanillaError:
    return VanillaError(
        "invalid_definition",
        "the workflow does not validate",
        {"problems": [asdict(problem) for problem in found]},
        str(found[0].message),
    )
