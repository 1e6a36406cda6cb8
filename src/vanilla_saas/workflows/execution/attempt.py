"""One attempt of a step: what its texts see, and the ways out of it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.providers.adapters import UpstreamError
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.providers.step_metering import ModelAnswer
from vanilla_saas.workflows import expressions, prompts, schemas
from vanilla_saas.workflows.execution.failures import Failure, of_refusal, of_request, of_text, of_upstream
from vanilla_saas.workflows.execution.plan import Plan
from vanilla_saas.workflows.execution.steps import Step
from vanilla_saas.workflows.execution.tooling import Tooling
from vanilla_saas.workflows.expressions import ExpressionError
from vanilla_saas.workflows.prompts import TemplateError
from vanilla_saas.workflows.schemas import Mismatch, SchemaError


@dataclass(frozen=True)
class Attempt:
    """Its methods raise Failure. `field` names the text in the definition, for who reads the error."""

    step: Step
    plan: Plan
    tooling: Tooling
    calls: list[dict[str, Any]]
    """Settlements of the model calls that were made, in their order."""

    @cached_property
    def names(self) -> Mapping[str, Any]:
        """Every name is there, with null where there is nothing: templates refuse what is not."""
        step = self.step
        return {
            "input": step.input,
            "steps": {**self.plan.nothing_yet, **step.steps},
            "execution": step.execution,
            "item": step.value,
            "index": step.item,
            "value": None,
            "feedback": step.feedback,
        }

    async def compute(self, field: str, expression: str, **more: Any) -> Any:
        """The value of CEL; `more` are names beside, or instead of, the step's own."""
        try:
            return await asyncio.to_thread(expressions.evaluate, expression, {**self.names, **more})
        except ExpressionError as error:
            raise of_text(error, field) from None

    async def compute_object(self, field: str, expression: str) -> dict[str, Any]:
        found = await self.compute(field, expression)
        if not isinstance(found, dict):
            raise wrong_type(field, "an object", found)
        return found

    async def render(self, templates: Mapping[str, str], **more: Any) -> dict[str, str]:
        """The texts of templates, by field; those that take more than names all in one thread."""
        variables = {**self.names, **more}
        plain = {field: prompts.filled(template, variables) for field, template in templates.items()}
        at_once = {field: text for field, text in plain.items() if text is not None}
        if len(at_once) == len(templates):
            return at_once

        def rendered() -> dict[str, str]:
            texts = {}
            for field, template in templates.items():
                if field in at_once:
                    texts[field] = at_once[field]
                    continue
                try:
                    texts[field] = prompts.render(template, variables)
                except TemplateError as error:
                    raise of_text(error, field) from None
            return texts

        return await asyncio.to_thread(rendered)

    async def mismatches(self, field: str, schema: object, instance: object) -> list[Mismatch]:
        try:
            return await schemas.unfit(schema, instance)
        except SchemaError as error:
            raise of_text(error, field) from None

    async def search(self, field: str, pattern: str, text: str) -> bool:
        try:
            return await asyncio.to_thread(schemas.search, pattern, text)
        except SchemaError as error:
            raise of_text(error, field) from None

    async def chat(self, body: Mapping[str, Any], *, aloud: bool = False) -> ModelAnswer:
        """`aloud`: its words go to who waits for the run as they come, if somebody does."""
        say = self.tooling.words() if aloud and self.tooling.words is not None else None
        try:
            return await self.tooling.calls.chat(self.step, body, self.calls, say)
        except (UpstreamError, VanillaError, InvalidRequest) as error:
            raise of_call(error) from None

    async def embed(self, body: Mapping[str, Any]) -> ModelAnswer:
        try:
            return await self.tooling.calls.embed(self.step, body, self.calls)
        except (UpstreamError, VanillaError, InvalidRequest) as error:
            raise of_call(error) from None


def of_call(error: UpstreamError | VanillaError | InvalidRequest) -> Failure:
    """A model call that was refused or failed."""
    if isinstance(error, UpstreamError):
        return of_upstream(error)
    return of_refusal(error) if isinstance(error, VanillaError) else of_request(error)


_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


def wrong_type(field: str, wanted: str, found: object) -> Failure:
    """An expression that gives a value of another kind than its field takes."""
    given = _KINDS.get(type(found), "null")
    return Failure("expression_type", f"{field}: it gives {given} and must give {wanted}.", {"field": field})
