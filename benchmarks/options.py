"""How a benchmark was asked to run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    quick: bool = False
    peers: bool = False
    """Install the pinned peers when they are missing."""
    no_peers: bool = False
    only: tuple[str, ...] = ()
    """Points to measure, all without it; of benchmarks that have points to choose from."""
