"""What a worker lends to the steps that it computes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vanilla_saas.orchestration.journal import Journal
from vanilla_saas.workflows.attending import OpenWords
from vanilla_saas.workflows.execution.calls import StepCalls
from vanilla_saas.workflows.execution.http_client import HttpClient
from vanilla_saas.workflows.execution.mcp.servers import McpServers
from vanilla_saas.workflows.execution.tools import ToolRegistry


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    output_bytes: int = 1 << 20
    """Of what a step hands on, as JSON."""


@dataclass(frozen=True, slots=True)
class Tooling:
    calls: StepCalls
    http: HttpClient
    tools: ToolRegistry = field(default_factory=ToolRegistry)
    mcp: McpServers = field(default_factory=McpServers)
    agents: Journal | None = None
    """The journal of agents' runs; None: agents do not run here."""
    settings: Limits = Limits()
    now: Callable[[], datetime] = _now
    """The clock that `wait` counts from."""
    words: OpenWords | None = None
    """Where the words go of the model call that ends the run, while they are generated."""
