"""Bodies and answers of the workflow routes."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class ProblemOf(BaseModel):
    """What is wrong with a definition, and where."""

    node: str | None = Field(description="id of the node; null: the workflow itself")
    field: str = Field(description="path with dots, in the node or else in the definition")
    code: str = Field(description="stable name of the rule")
    message: str = Field(description="what to do")


class Problems(BaseModel):
    problems: list[ProblemOf]


class DefinitionBody(BaseModel):
    definition: dict[str, Any] = Field(description="as GET /api/v1/workflows/schema describes it; may be unfinished")


class SaveBody(DefinitionBody):
    shared: bool | None = Field(None, description="for all of the tenant to read; left out: as it was")
    expected_revision: int | None = Field(
        None, ge=0, description="the revision one began from; 409 when it is another by now. 0: only when there is none"
    )
    user_id: UUID | None = Field(None, description="whose it is to be; admins only")


class Saved(BaseModel):
    id: UUID
    slug: str
    revision: int
    problems: list[ProblemOf]


class WorkflowSummary(BaseModel):
    id: UUID
    slug: str
    name: str
    description: str
    user_id: UUID = Field(description="the owner")
    shared: bool
    status: Literal["active", "retired"]
    revision: int = Field(description="counts saves of the draft")
    latest_version: int | None = Field(description="the newest that is not retired")
    created_at: datetime
    updated_at: datetime


class Workflow(WorkflowSummary):
    draft: dict[str, Any]
    problems: list[ProblemOf] = Field(description="of the draft")


class Workflows(BaseModel):
    data: list[WorkflowSummary]


class PublishBody(BaseModel):
    expected_revision: int | None = Field(None, ge=1, description="the revision one has looked at")


class Published(BaseModel):
    id: UUID
    version: int
    hash: str = Field(description="SHA-256 of the definition, hexadecimal")
    unchanged: bool = Field(description="the draft was the latest version already")


class RetireBody(BaseModel):
    version: int | None = Field(None, ge=1, description="left out: the whole workflow, until it is published again")


class Retired(BaseModel):
    id: UUID
    version: int | None
    latest_version: int | None


class VersionSummary(BaseModel):
    version: int
    state: Literal["published", "retired"]
    hash: str
    published_at: datetime
    published_by: UUID | None
    retired_at: datetime | None


class Version(VersionSummary):
    definition: dict[str, Any]


class Versions(BaseModel):
    data: list[VersionSummary]


class Difference(BaseModel):
    """From one definition to another: `nodes_changed` says each field with its value before and after."""

    text: str = Field(description="for people, a line for each change; empty: none")
    changes: dict[str, Any]


class Template(BaseModel):
    slug: str
    name: str
    description: str
    parameters: dict[str, Any] = Field(description="JSON Schema of an object; a default makes a parameter optional")
    definition: dict[str, Any]
    own: bool = Field(description="the tenant's own, not the platform's")


class Templates(BaseModel):
    data: list[Template]


class InstantiateBody(BaseModel):
    slug: Slug = Field(description="name of the new workflow")
    parameters: dict[str, Any] = {}
    shared: bool = False
