"""Tools of the support desk: `VANILLA_SAAS_WORKER_TOOLS='["examples.support_desk.tools"]'` lets workers call them."""

from vanilla_saas.workflows.execution.tools import ToolContext, tool

PAID = {"1001": 40, "1002": 15}
REFUNDS: dict[str, int] = {}
"""By idempotency key: a call that is made again pays nothing more."""


@tool
def order_of(number: str) -> dict[str, int | str]:
    """What was paid for an order, in dollars."""
    return {"number": number, "paid": PAID[number]}


@tool
def refund(number: str, amount: int, context: ToolContext) -> str:
    """Pays an amount back, in dollars."""
    if amount > PAID[number]:
        raise ValueError(f"{amount} is more than was paid for {number}.")
    REFUNDS.setdefault(context.idempotency_key, amount)
    return f"{amount} dollars of order {number} were paid back."
