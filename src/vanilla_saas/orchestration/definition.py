"""What an agent is: instructions, a model or an engine, tools, other agents that it may turn to, limits."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from vanilla_saas.workflows.fields import Approver, EngineRef, ModelName, Schema, Strict, Template

AgentRef = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}(@[1-9][0-9]{0,8})?$")]
"""A slug, and after an @ a version; without one the latest when the run turns to it."""


def _named(given: Any, field: str) -> Any:
    return {field: given} if isinstance(given, str) else given


class Approval(Strict):
    """People who must agree before the tool is called."""

    approvers: list[Approver] = Field(min_length=1, max_length=100)
    quorum: int = Field(1, ge=1, le=100)
    deadline_s: int | None = Field(None, ge=1, le=31_536_000)
    title: str | None = Field(None, min_length=1, max_length=200)


class AgentTool(Strict):
    """A tool of the operator or, as `mcp/<server>/<tool>`, of an MCP server; its name alone is enough."""

    tool: str = Field(min_length=1, max_length=200)
    approval: Approval | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, given: Any) -> Any:
        return _named(given, "tool")


class Edge(Strict):
    """Another agent; its reference alone is enough. Without `again` one that is in the run's path is refused."""

    agent: AgentRef
    again: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_ref(cls, given: Any) -> Any:
        return _named(given, "agent")

    @property
    def slug(self) -> str:
        return self.agent.partition("@")[0]


class Chat(Strict):
    """A group chat: `members` speak, the agent itself only where the floor is the manager's."""

    members: list[Edge] = Field(min_length=2, max_length=20)
    floor: Literal["round_robin", "manager", "bid"] = "round_robin"
    rounds: int = Field(3, ge=1, le=100, description="so many messages for each member, then it is over")
    until: str | None = Field(None, min_length=1, max_length=200, description="a message with these words ends it")


class Contract(Strict):
    """Contract net: the tool `contract_out` puts a task out to bidders; the best bid gets it, at its price."""

    bidders: list[Edge] = Field(min_length=1, max_length=20)
    rule: Literal["lowest", "score"] = Field(
        "lowest", description="the price, or the price by what became of work before"
    )
    bid_s: int = Field(60, ge=1, le=86_400, description="seconds that bids are waited for")
    bid_tokens: int = Field(2000, ge=1, le=10**12, description="what a bid itself may cost")
    most_tokens: int | None = Field(None, ge=1, le=10**12, description="dearer bids are refused")
    accept: Schema | None = Field(None, description="JSON schema of the work; what does not fit goes to the next bid")


class Limits(Strict):
    """What a run may; `requests`, `tool_calls` and `children` hold for its whole tree."""

    tokens: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="for the run and all that it starts, reserved at its start; left out: as calls need, up to 50,000",
    )
    turns: int = Field(20, ge=1, le=1000, description="model calls of the run itself")
    requests: int = Field(200, ge=1, le=100_000)
    tool_calls: int = Field(100, ge=0, le=100_000)
    children: int = Field(20, ge=0, le=10_000)
    depth: int = Field(4, ge=0, le=4, description="how deep agents may delegate below it")
    repeats: int = Field(3, ge=1, le=1000, description="the same call with the same answer is not made so often")
    seconds: int = Field(3600, ge=1, le=86_400)


OF_MODELS = (
    *("model", "fallbacks", "temperature", "max_output_tokens"),
    *("tools", "handoffs", "delegates", "chat", "contract"),
)
"""What an agent with an engine has not: it calls nothing, and which models it asks is the engine's matter."""


class AgentDefinition(Strict):
    name: str | None = Field(None, min_length=1, max_length=200)
    description: str = Field("", max_length=5000, description="what others read who may turn to it")
    instructions: Template
    engine: EngineRef | None = Field(None, description="in place of a model: each turn is a run of it")
    model: ModelName | None = Field(None, validate_default=True)
    fallbacks: list[ModelName] = Field([], max_length=10, description="models that take over while `model` does badly")
    temperature: float | None = Field(None, ge=0, le=2)
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    tools: list[AgentTool] = Field([], max_length=100)
    handoffs: list[Edge] = Field([], max_length=50, description="agents that it may hand the conversation to")
    delegates: list[Edge] = Field([], max_length=50, description="agents that it may give tasks to")
    chat: Chat | None = None
    contract: Contract | None = None
    output: Schema | None = Field(None, description="JSON schema of the answer; left out: a text")
    limits: Limits = Limits()
    loop: Literal["builtin", "pydantic_ai"] = Field("builtin", description="who drives it; pydantic_ai needs the extra")
    pool: str = Field("default", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="the workers that may run it")

    @field_validator(*OF_MODELS)
    @classmethod
    def _beside_engine(cls, given: Any, info: ValidationInfo) -> Any:
        if "engine" not in info.data:
            return given
        if info.data["engine"] is None:
            if info.field_name == "model" and given is None:
                raise PydanticCustomError("field_missing", "Name a model, or an engine.")
        elif given not in (None, []):
            message = "Remove {name}: an agent with an engine has none, and what its flow has is the engine's own."
            raise PydanticCustomError("fields_exclusive", message, {"name": info.field_name})
        return given

    def document(self) -> dict[str, JsonValue]:
        """As it is saved: every default written out, fields without a value left out."""
        return self.model_dump(mode="json", exclude_none=True)
