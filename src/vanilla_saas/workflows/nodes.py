"""The kinds of nodes and their fields. docs/design/workflows.md says what each gives."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from vanilla_saas.workflows.checks import CHECK_FIELDS, Check
from vanilla_saas.workflows.fields import (
    Approver,
    Branch,
    EngineRef,
    Expression,
    ModelName,
    NodeId,
    Ref,
    Schema,
    Seconds,
    Strict,
    Template,
    Title,
)

ErrorClass = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Pool = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Header = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")]


def _refuse(code: str, message: str, field: str) -> PydanticCustomError:
    return PydanticCustomError(code, message, {"field": field})


class Retry(Strict):
    """Attempts with full jitter: a random wait up to initial_ms * 2^n, at most max_ms."""

    attempts: int = Field(3, ge=1, le=100)
    initial_ms: int = Field(500, ge=0, le=3_600_000)
    max_ms: int = Field(60_000, ge=0, le=86_400_000)
    on: list[ErrorClass] = Field(
        ["timeout", "provider_error", "rate_limited"], max_length=50, description="classes of errors worth another try"
    )


class Preference(Strict):
    """Workers whose labels are as `match` says are preferred by `weight`."""

    match: dict[str, JsonValue]
    weight: float = Field(1, gt=0, le=1_000_000)


class Routing(Strict):
    """What the strategy of the pool is told of a step; docs/design/routing.md has the rules of labels."""

    key: Literal["execution", "user", "tenant", "workflow"] = Field(
        "execution", description="whose steps stay together"
    )
    region: str | None = Field(None, min_length=1, max_length=100)
    require: dict[str, JsonValue] | None = Field(None, description="labels that a worker must have")
    prefer: list[Preference] | None = Field(None, min_length=1, max_length=20)


class BaseNode(Strict):
    """What every node has beside the fields of its kind."""

    branches: ClassVar[tuple[str, ...]] = ()

    id: NodeId
    name: Title | None = None
    retry: Retry = Retry()
    pool: Pool = Field("default", description="the workers that may run it")
    routing: Routing | None = Field(None, description="which of them, where the pool has a strategy that holds steps")

    def branch_names(self) -> tuple[str, ...]:
        """What `on` of a connection from this node can be."""
        return self.branches


class Node(BaseNode):
    timeout_s: int = Field(60, ge=1, le=86_400, description="hard deadline of an attempt")


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: Template


class Llm(Strict):
    """A metered call of a model."""

    kind: Literal["llm"]
    model: ModelName
    prompt: Template | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=100)
    system: Template | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    json_schema: Schema | None = Field(None, description="the answer is JSON of this shape, in output.json")

    @model_validator(mode="after")
    def _one(self) -> "Llm":
        if self.prompt is None and self.messages is None:
            raise _refuse("field_missing", "Say prompt or messages.", "prompt")
        if self.prompt is not None and self.messages is not None:
            raise _refuse("fields_exclusive", "Keep prompt or messages; both cannot be sent.", "messages")
        return self


class Prompt(Strict):
    """A text from a template."""

    kind: Literal["prompt"]
    template: Template


class Transform(Strict):
    """A value from an expression."""

    kind: Literal["transform"]
    value: Expression


class Http(Strict):
    """A request to the outside; private addresses are refused."""

    kind: Literal["http"]
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: Template
    headers: dict[Header, Template] = Field({}, max_length=50)
    body: Template | None = None
    allowed_status: list[Annotated[int, Field(ge=100, le=599)]] = Field(
        [], max_length=100, description="none: every 2xx"
    )


class Tool(Strict):
    """A call of a registered tool."""

    kind: Literal["tool"]
    tool: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$")]
    arguments: Expression = "{}"


class Engine(Strict):
    """A run of an engine, of the version that the reference means to the user when it starts."""

    kind: Literal["engine"]
    ref: EngineRef
    input: Expression = "{}"


class Workflow(Strict):
    """A run of another workflow."""

    kind: Literal["workflow"]
    ref: Ref
    input: Expression = "{}"


class Agent(Strict):
    """A run of an agent."""

    kind: Literal["agent"]
    ref: Ref
    input: Expression = "{}"


Item = Annotated[
    Llm | Prompt | Transform | Http | Tool | Engine | Workflow | Agent, Field(discriminator="kind")
]  # fmt: skip
ITEM_KINDS = ("llm", "prompt", "transform", "http", "tool", "engine", "workflow", "agent")


class LlmNode(Node, Llm):
    pass


class PromptNode(Node, Prompt):
    pass


class TransformNode(Node, Transform):
    pass


class HttpNode(Node, Http):
    pass


class ToolNode(Node, Tool):
    pass


class EngineNode(Node, Engine):
    timeout_s: int = Field(3600, ge=1, le=86_400)


class WorkflowNode(Node, Workflow):
    timeout_s: int = Field(3600, ge=1, le=86_400)


class AgentNode(Node, Agent):
    timeout_s: int = Field(3600, ge=1, le=86_400)


class Condition(Node):
    branches = ("true", "false")

    kind: Literal["condition"]
    condition: Expression


class Case(Strict):
    name: Branch
    equals: JsonValue = Field(description="the case is taken when the value equals this; default: its name")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, case: Any) -> Any:
        if isinstance(case, str):
            case = {"name": case}
        return {"equals": case["name"], **case} if isinstance(case, dict) and "name" in case else case


class Switch(Node):
    kind: Literal["switch"]
    value: Expression
    cases: list[Case] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _distinct(self) -> "Switch":
        names = [case.name for case in self.cases]
        if twice := next((name for name in names if names.count(name) > 1 or name == "default"), None):
            why = "default is what is left when no case is taken" if twice == "default" else f"{twice} is there twice"
            raise _refuse("case_name", f"Name the cases differently: {why}.", "cases")
        return self

    def branch_names(self) -> tuple[str, ...]:
        return (*(case.name for case in self.cases), "default")


class Map(Node):
    kind: Literal["map"]
    over: Expression
    max_items: int = Field(1000, ge=1, le=10_000)
    concurrency: int | None = Field(None, ge=1, le=10_000, description="items at the same time")
    item: Item


class Join(Node):
    """Runs when all, any or so many of its predecessors are done; without it a node waits for all."""

    kind: Literal["join"]
    mode: Literal["all", "any", "count"] = "all"
    count: int | None = Field(None, ge=1, le=1000)

    @model_validator(mode="after")
    def _counted(self) -> "Join":
        if (self.mode == "count") != (self.count is not None):
            raise _refuse("fields_exclusive", "Say count with mode: count, and only then.", "count")
        return self


class Wait(Node):
    kind: Literal["wait"]
    seconds: Seconds | None = None
    until: Expression | None = None

    @model_validator(mode="after")
    def _one(self) -> "Wait":
        if (self.seconds is None) == (self.until is None):
            code = "field_missing" if self.seconds is None else "fields_exclusive"
            raise _refuse(code, "Say either seconds or until.", "seconds")
        return self


class Signal(BaseNode):
    """Waits until somebody sends the signal `signal` to the execution."""

    branches = ("received", "expired")

    kind: Literal["signal"]
    signal: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,62}$")]
    timeout_s: Seconds | None = Field(None, description="after it the outcome is expired; none: it waits on")
    schema_: Schema | None = Field(None, alias="schema")


class Approval(Node):
    branches = ("approved", "rejected", "expired")

    kind: Literal["approval"]
    title: Template
    prompt: Template | None = None
    approvers: list[Approver] = Field(min_length=1, max_length=100)
    quorum: int = Field(1, ge=1, le=100)
    deadline_s: Seconds | None = None
    on_deadline: Literal["reject", "approve", "escalate"] | None = Field(
        None, description="none: the outcome is expired"
    )
    escalate_to: list[Approver] | None = Field(None, min_length=1, max_length=100)
    of: Expression | None = Field(None, description="the value that is shown")
    edit: Schema | None = Field(None, description="what of the value may be changed, and into what")

    @model_validator(mode="after")
    def _complete(self) -> "Approval":
        if self.on_deadline is not None and self.deadline_s is None:
            raise _refuse("field_missing", "Say deadline_s, or leave on_deadline out.", "deadline_s")
        if (self.on_deadline == "escalate") != (self.escalate_to is not None):
            message = "Say escalate_to with on_deadline: escalate, and only then."
            raise _refuse("fields_exclusive", message, "escalate_to")
        if self.edit is not None and self.of is None:
            raise _refuse("field_missing", "Say in of what may be edited.", "of")
        return self


class GateRetry(Retry):
    """Beside the attempts of its checks: which node runs again, with `feedback`, and how often."""

    node: NodeId | None = None
    times: int | None = Field(None, ge=1, le=10)


class Gate(Node):
    branches = ("passed", "failed")

    kind: Literal["gate"]
    of: Expression = Field(description="what is checked, `value` for its checks")
    checks: list[Check] = Field(min_length=1, max_length=20)
    threshold: float = Field(1, ge=0, le=1, description="the weighted mean of the scores that passes")
    on_fail: Literal["retry", "branch", "escalate", "stop"] = "stop"
    escalate_to: list[Approver] | None = Field(None, min_length=1, max_length=100)
    retry: GateRetry = GateRetry()

    @model_validator(mode="before")
    @classmethod
    def _one_check(cls, node: Any) -> Any:
        """`check: regex` with its fields beside it is a gate of one check."""
        if not isinstance(node, dict) or "check" not in node:
            return node
        if "checks" in node:
            raise _refuse("fields_exclusive", "Keep check or checks: a check of its own stands in the list.", "check")
        # only a gate has these names; `retry`, `of` and so on stay where they are
        fields = {name: value for name, value in node.items() if name in CHECK_FIELDS}
        return {name: value for name, value in node.items() if name not in CHECK_FIELDS} | {"checks": [fields]}

    @model_validator(mode="after")
    def _complete(self) -> "Gate":
        if self.on_fail == "retry":
            if self.retry.node is None or self.retry.times is None:
                field = "retry.node" if self.retry.node is None else "retry.times"
                raise _refuse("field_missing", "Say which node runs again and how many times.", field)
        elif self.retry.node is not None or self.retry.times is not None:
            raise _refuse("fields_exclusive", "Say node and times with on_fail: retry, and only then.", "retry")
        if (self.on_fail == "escalate") != (self.escalate_to is not None):
            raise _refuse("fields_exclusive", "Say escalate_to with on_fail: escalate, and only then.", "escalate_to")
        return self


KINDS: dict[str, type[BaseNode]] = {
    "llm": LlmNode,
    "prompt": PromptNode,
    "transform": TransformNode,
    "condition": Condition,
    "switch": Switch,
    "map": Map,
    "join": Join,
    "http": HttpNode,
    "tool": ToolNode,
    "engine": EngineNode,
    "workflow": WorkflowNode,
    "agent": AgentNode,
    "wait": Wait,
    "signal": Signal,
    "approval": Approval,
    "gate": Gate,
}
AnyNode = Annotated[
    LlmNode | PromptNode | TransformNode | Condition | Switch | Map | Join | HttpNode | ToolNode | EngineNode
    | WorkflowNode | AgentNode | Wait | Signal | Approval | Gate,
    Field(discriminator="kind"),
]  # fmt: skip
