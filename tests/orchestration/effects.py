"""Tools of an agent in a process that is killed: what they did is lines of the file EFFECTS, each with its key.

DIE_AT=<tool>:<before|after> kills the process before or after the effect of the first call of that tool.
"""

import os
import signal

from vanilla_saas.workflows.execution.tools import ToolContext, tool


@tool
def find_order(number: int) -> dict[str, int]:
    "Looks an order up."
    return {"number": number, "paid": 40}


@tool
def stamp(note: str, context: ToolContext) -> str:
    "Puts a stamp under a decision."
    return _done("stamp", note, context)


@tool
def pay_back(amount: int, context: ToolContext) -> str:
    "Pays an amount back."
    return _done("pay_back", str(amount), context)


@tool
def tell(text: str, context: ToolContext) -> str:
    "Writes to the customer."
    return _done("tell", text, context)


def _done(name: str, what: str, context: ToolContext) -> str:
    dies = os.environ.get("DIE_AT")
    if dies == f"{name}:before":
        os.kill(os.getpid(), signal.SIGKILL)
    with open(os.environ["EFFECTS"], "a") as file:
        file.write(f"{context.idempotency_key} {name} {what}\n")
    if dies == f"{name}:after":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{name}: {what}"
