"""Teams: agents and the pattern in which they work, in one document that becomes agents and, for some, a workflow.

    name: newsroom
    pattern: sequential
    agents:
      researcher: {model: sandbox-small, instructions: "Find facts."}
      writer: {model: sandbox-small, instructions: "Write an article of what you are given."}

Of a team `newsroom` the agents are saved as `newsroom-researcher` and `newsroom-writer`, and what is started is the
workflow `newsroom`; of the other patterns than sequential and concurrent it is an agent. Nothing else knows of teams.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from vanilla_saas.orchestration.definition import AgentDefinition, Chat, Contract, Edge
from vanilla_saas.workflows.definition import Definition
from vanilla_saas.workflows.fields import ObjectSchema, Strict

Pattern = Literal["sequential", "concurrent", "handoff", "manager", "group_chat", "contract_net"]
MESSAGE: Mapping[str, Any] = {
    "type": "object",
    "properties": {"message": {"type": "string", "minLength": 1}},
    "required": ["message"],
}
CHAT = "chat"
"""The name of a group chat that nobody leads, among the agents of its team."""
_NAME = re.compile(r"[a-z0-9_-]{1,19}")
MANAGE = """\
You lead these agents: {members}. Make a plan, give each part of it to the agent that fits, look at what comes back,
change the plan where it has to be changed, and answer yourself when it is done.

"""


class Team(Strict):
    """One that cannot be made says why: pydantic's ValidationError."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,19}$", description="slug of what is started, and of its agents' names"
    )
    title: str | None = Field(None, min_length=1, max_length=200)
    pattern: Pattern
    agents: dict[str, AgentDefinition] = Field(min_length=1, max_length=50, description="in their order")
    lead: str | None = Field(None, description="who begins (handoff) or manages (manager); left out: the first")
    join: Literal["all", "any"] | int = Field(
        "all", description="concurrent: how many are waited for; the rest is cancelled"
    )
    merge: str | None = Field(None, description="concurrent: the agent that makes one answer of all")
    floor: Literal["round_robin", "manager", "bid"] = Field("round_robin", description="group_chat: who speaks next")
    rounds: int = Field(3, ge=1, le=100, description="group_chat: messages of each member, then it is over")
    until: str | None = Field(None, min_length=1, max_length=200, description="group_chat: words that end it")
    budget_tokens: int | None = Field(None, ge=1, le=10**12, description="of the whole team")
    input: ObjectSchema = Field(dict(MESSAGE), description="JSON schema of what the team is given")

    @model_validator(mode="after")
    def _known(self) -> "Team":
        for field in ("lead", "merge"):
            name = getattr(self, field)
            if name is not None and name not in self.agents:
                raise ValueError(f"{field} names {name}, which is not one of the agents")
        if isinstance(self.join, int) and not 1 <= self.join <= len(self._workers()):
            raise ValueError(f"join counts 1 to {len(self._workers())} agents")
        for name in self.agents:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the agent {name} has a name of more than a-z, 0-9, _ and hyphens, or than 19 characters"
                )
        if self._calls_others() and self.agents[self.lead or next(iter(self.agents))].engine is not None:
            raise ValueError(f"the lead of the pattern {self.pattern} calls the others; give it a model, not an engine")
        if self.pattern == "group_chat" and all(one.engine is not None for one in self.agents.values()):
            raise ValueError("at least one agent of a group chat has a model")
        if self.pattern in ("sequential", "concurrent"):
            self._refuse_same_nodes()
        if self.pattern == "group_chat" and self.floor != "manager" and CHAT in self.agents:
            raise ValueError(f"{CHAT} is what the team itself is called; call the agent something else")
        return self

    def _refuse_same_nodes(self) -> None:
        names: dict[str, str] = {}
        for name in self.agents:
            if (other := names.setdefault(_id(name), name)) != name:
                raise ValueError(f"{other} and {name} would be one node; call one of them something else")

    def _calls_others(self) -> bool:
        return self.pattern in ("manager", "contract_net") or (self.pattern == "group_chat" and self.floor == "manager")

    def _workers(self) -> list[str]:
        return [name for name in self.agents if name != self.merge]

    def slug(self, name: str) -> str:
        return f"{self.name}-{name}"


@dataclass(frozen=True)
class Plan:
    """What a team becomes."""

    agents: Mapping[str, AgentDefinition]
    """By slug, in the order in which they are saved: who is turned to before who turns to them."""
    start: str
    """The slug of the workflow or agent that is started."""
    workflow: Definition | None


def plan(team: Team) -> Plan:
    """The agents of a team, with whom they may turn to, and the workflow in which they run."""
    lead = team.lead or next(iter(team.agents))
    if team.pattern == "handoff":
        made = {team.slug(name): _with(team, one, handoffs=_others(team, name)) for name, one in team.agents.items()}
        return Plan(made, team.slug(lead), None)
    if team.pattern == "manager":
        members = [name for name in team.agents if name != lead]
        made = {team.slug(name): team.agents[name] for name in members}
        words = MANAGE.format(members=", ".join(members)) + team.agents[lead].instructions
        edges = [Edge(agent=team.slug(name), again=True) for name in members]
        manager = _with(team, team.agents[lead], delegates=edges).model_copy(update={"instructions": words})
        return Plan(made | {team.slug(lead): manager}, team.slug(lead), None)
    if team.pattern == "contract_net":
        bidders = [name for name in team.agents if name != lead]
        made = {team.slug(name): team.agents[name] for name in bidders}
        own = team.agents[lead].contract
        terms = {} if own is None else own.model_dump(exclude={"bidders"})
        contract = Contract(bidders=[Edge(agent=team.slug(name)) for name in bidders], **terms)
        manager = _with(team, team.agents[lead].model_copy(update={"contract": contract}))
        return Plan(made | {team.slug(lead): manager}, team.slug(lead), None)
    if team.pattern == "group_chat":
        return _chat(team, lead)
    made = {team.slug(name): one for name, one in team.agents.items()}
    return Plan(made, team.name, Definition.model_validate(_flow(team)))


def _chat(team: Team, lead: str) -> Plan:
    """With a manager's floor the lead gives the word, else all are members of a chat that nobody leads."""
    members = [name for name in team.agents if team.floor != "manager" or name != lead]
    edges = [Edge(agent=team.slug(name)) for name in members]
    chat = Chat(members=edges, floor=team.floor, rounds=team.rounds, until=team.until)
    if team.floor == "manager":
        slug, group = team.slug(lead), team.agents[lead]
    else:
        words = "Here several agents talk with each other."
        model = next(one.model for one in (team.agents[lead], *team.agents.values()) if one.model is not None)
        slug, group = team.slug(CHAT), AgentDefinition(instructions=words, model=model)
    turns = min(2 * team.rounds * len(members) * (1 + len(members)), 1000)
    limits = group.limits.model_copy(update={"turns": max(turns, group.limits.turns)})
    made = {team.slug(name): team.agents[name] for name in members}
    group = _with(team, group.model_copy(update={"limits": limits, "chat": chat}))
    return Plan(made | {slug: group}, slug, None)


def _others(team: Team, name: str) -> list[Edge]:
    """An agent that says itself whom it hands over to hands over to nobody else; one with an engine to nobody."""
    if team.agents[name].engine is not None:
        return []
    own = team.agents[name].handoffs
    if own:
        return [
            Edge(agent=team.slug(edge.agent), again=edge.again) if edge.agent in team.agents else edge for edge in own
        ]
    return [Edge(agent=team.slug(other)) for other in team.agents if other != name]


def _with(team: Team, agent: AgentDefinition, **edges: list[Edge]) -> AgentDefinition:
    limits = agent.limits
    if team.budget_tokens is not None:
        limits = limits.model_copy(update={"tokens": team.budget_tokens})
    return agent.model_copy(update={**edges, "limits": limits})


def _flow(team: Team) -> dict[str, Any]:
    nodes = list(_chain(team)) if team.pattern == "sequential" else list(_fan(team))
    flow = {
        "name": team.title or team.name,
        "input": team.input,
        "nodes": [node for node, _ in nodes],
        "connections": [{"from": before, "to": node["id"]} for node, after in nodes for before in after],
        "output": f"steps.{nodes[-1][0]['id']}.output",
    }
    return flow | ({} if team.budget_tokens is None else {"budget_tokens": team.budget_tokens})


def _chain(team: Team) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each is given what the one before it said."""
    before: list[str] = []
    for name in team.agents:
        given = "input" if not before else f"{{'message': steps.{before[0]}.output.text}}"
        yield _node(team, name, given), before
        before = [_id(name)]


def _fan(team: Team) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """All are given the same; who merges is given the answers of those that were waited for."""
    workers = team._workers()
    for name in workers:
        yield _node(team, name, "input"), []
    join = {"mode": "count", "count": team.join} if isinstance(team.join, int) else {"mode": team.join}
    yield {"id": "answers", "kind": "join", **join}, [_id(name) for name in workers]
    if team.merge is not None:
        yield _node(team, team.merge, "{'task': input, 'answers': steps.answers.output}"), ["answers"]


def _node(team: Team, name: str, given: str) -> dict[str, Any]:
    return {"id": _id(name), "kind": "agent", "name": name, "ref": team.slug(name), "input": given}


def _id(name: str) -> str:
    """The id of an agent's node; ids begin with a letter and have no hyphens."""
    return "agent_" + name.replace("-", "_")
