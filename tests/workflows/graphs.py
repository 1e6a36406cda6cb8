"""Definitions that hypothesis draws: valid ones with a random graph, and any JSON at all."""

from typing import Any

from hypothesis import strategies as st

from vanilla_saas.workflows import documents
from vanilla_saas.workflows.definition import Definition
from vanilla_saas.workflows.documents import Format

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NUMBER = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-(2**52), 2**52, allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
RETRIES = st.fixed_dictionaries(
    {}, optional={"attempts": st.integers(1, 100), "initial_ms": st.integers(0, 1000), "on": st.just(["timeout"])}
)
ROUTING = st.fixed_dictionaries(
    {},
    optional={
        "key": st.sampled_from(["user", "tenant"]),
        "region": st.just("eu"),
        "require": st.just({"gpu": ["a", "b"]}),
    },
)


@st.composite
def nodes(draw: st.DrawFn, name: str, before: list[str]) -> dict[str, Any]:
    """A node whose expressions speak of nodes in `before`."""
    step = f"steps.{draw(st.sampled_from(before))}.output" if before else "input.x"
    value = st.sampled_from([step, f"{{'v': {step}}}", "1e3", "yes", "'on'", "execution.id", "'é\\n'"])
    template = st.sampled_from([f"{{{{ {step} }}}}", "no", "2024-01-01", "a: b\n# c\n", "-\n\n 1", "~", "0x1F", "1e3"])
    value = value.filter(lambda text: text != "yes")
    kind = draw(
        st.sampled_from(["llm", "prompt", "transform", "condition", "switch", "map", "join", "http", "wait", "signal"])
    )
    fields: dict[str, Any] = {
        "llm": {
            "model": "sandbox-small",
            "prompt": draw(template),
            "temperature": draw(st.sampled_from([0, 1.0, 0.25])),
        },
        "prompt": {"template": draw(template)},
        "transform": {"value": draw(value)},
        "condition": {"condition": "input.x == 1"},
        "switch": {"value": draw(value), "cases": [{"name": "a", "equals": draw(JSON)}, "b"]},
        "map": {"over": draw(value), "item": {"kind": "transform", "value": "item"}},
        "join": {"mode": "count", "count": draw(st.integers(1, 5))},
        "http": {"url": draw(template), "headers": {"X-A": draw(template)}, "allowed_status": [200, 404]},
        "wait": {"seconds": draw(st.integers(1, 100))},
        "signal": {"signal": "paid", "schema": {"default": None, "examples": [draw(JSON)]}},
    }[kind]
    common = draw(
        st.fixed_dictionaries(
            {}, optional={"retry": RETRIES, "pool": st.just("gpu"), "name": TEXT.filter(len), "routing": ROUTING}
        )
    )
    return {"id": name, "kind": kind, **fields, **common}


@st.composite
def definitions(draw: st.DrawFn, most: int = 6) -> dict[str, Any]:
    """A definition without problems: connections lead from earlier to later nodes, all hang together."""
    names = draw(
        st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), min_size=1, max_size=most, unique=True)
    )
    links = [
        {"from": names[draw(st.integers(0, n - 1))], "to": name} for n, name in enumerate(names) if n
    ]  # fmt: skip
    found = []
    for name in names:
        source = next((link["from"] for link in links if link["to"] == name), None)
        found.append(draw(nodes(name, [source] if source else [])))
    optional = {
        "description": TEXT,
        "input": st.just({"type": "object", "properties": {"x": {"default": None}}}),
        "output": st.just(f"steps.{names[-1]}.output"),
        "concurrency": st.just({"key": "input.x", "limit": 2}),
        "priority": st.integers(0, 9),
        "estimate_tokens": st.integers(0, 10**6),
    }
    return {"name": "Drawn", "nodes": found, "connections": links, **draw(st.fixed_dictionaries({}, optional=optional))}


def load(text: str | bytes, format: Format) -> Definition:
    """The definition of a text that is known to be one."""
    return Definition.model_validate(documents.parse(text, format))
