"""`vanilla-saas worker`: a process that runs steps of workflows."""

from typing import Annotated

import typer

from vanilla_saas import event_loop
from vanilla_saas.settings import Settings
from vanilla_saas.workflows.working import options_of, work


def worker(
    pools: Annotated[
        list[str] | None, typer.Option("--pools", help="Pool to take steps from; may be given again (default).")
    ] = None,
    capacity: Annotated[int | None, typer.Option(min=1, max=10_000, help="Steps at the same time [20].")] = None,
    labels: Annotated[list[str] | None, typer.Option("--labels", help="name=value; may be given again.")] = None,
    region: Annotated[str, typer.Option(help="Where it runs, for strategies that look at it.")] = "",
    name: Annotated[str | None, typer.Option(help="How it is listed (host:process).")] = None,
) -> None:
    """Run steps of workflows until stopped; SIGTERM lets what runs end, or hands it back.

    Several of them share the work, on any number of machines. A worker that dies is noticed within 15 seconds, and
    what it had is run by others.
    """
    settings = Settings()
    found = dict(label.partition("=")[::2] for label in labels or [])
    options = options_of(
        settings, name=name, pools=tuple(pools) if pools else None, capacity=capacity, labels=found, region=region
    )
    event_loop.run(work(settings, options))
