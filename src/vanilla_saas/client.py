"""A client of workflows, engines, agents, channels and agreements over HTTP, for asyncio:

    async with Client("http://127.0.0.1:8000", "vsk_...") as client:
        await client.workflows.publish("summarise", definition)
        run = await client.workflows.start("summarise", input={"text": "A long story."})
        async for progress in client.workflows.follow(run.execution_id):
            print(progress["status"])
        print(await client.workflows.result(run.execution_id))
        print(await client.engines.run("summarise", {"text": "A long story."}))

For models any OpenAI client is one: `/v1` of the same address.
"""

from vanilla_saas.client_agents import Agents, Agreements, Channels
from vanilla_saas.client_engines import Begun, Engines
from vanilla_saas.client_http import ApiError, Connection, Progress, WorkflowFailed
from vanilla_saas.client_workflows import Started, Workflows

__all__ = [
    "Agents",
    "Agreements",
    "ApiError",
    "Begun",
    "Channels",
    "Client",
    "Engines",
    "Progress",
    "Started",
    "WorkflowFailed",
    "Workflows",
]


class Client(Connection):
    """One address and one key or session; `async with` opens and closes its connections."""

    def __init__(self, base_url: str, key: str, *, timeout_s: float = 60):
        super().__init__(base_url, key, timeout_s=timeout_s)
        self.workflows = Workflows(self)
        self.engines = Engines(self)
        self.agents = Agents(self)
        self.channels = Channels(self)
        self.agreements = Agreements(self)
