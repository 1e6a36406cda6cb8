"""The tool that the agents of the benchmark call."""

from vanilla_saas.workflows.execution.tools import tool


@tool
def look_up(n: int) -> dict[str, int | str]:
    "Looks a customer up."
    return {"n": n, "plan": "pro"}
