"""How long the command line takes to answer: most of it is imports."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import gettempdir

from benchmarks.frame import Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.processes import VANILLA_SAAS, environment

HELP = [*VANILLA_SAAS, "--help"]
FLOOR = "a Python interpreter that starts and ends"


def run(options: Options) -> Result:
    """Interleaved runs of `--help` and of an empty interpreter."""
    helps, bares, processor = [], [], []
    timed(HELP)  # writes the bytecode
    for _ in range(3 if options.quick else 7):
        bares.append(timed([sys.executable, "-c", "pass"]))
        before = _children_cpu_s()
        helps.append(timed(HELP))
        processor.append(_children_cpu_s() - before)
    ratios = {"help_to_interpreter": middle([ours / bare for ours, bare in zip(helps, bares, strict=True)])}
    figures: dict[str, Figure] = {
        "rounds": len(helps),
        "help_s": middle(helps),
        "help_cpu_s": middle(processor),
        "interpreter_s": middle(bares),
    }
    return Result("cli", FLOOR, judge("cli", ratios), figures, {})


def timed(command: list[str]) -> float:
    """Seconds of one run; its output is thrown away."""
    began = time.perf_counter()
    env = environment(Path(gettempdir()) / "vs-benchmark-none")
    subprocess.run(command, check=True, env=env, cwd=gettempdir(), stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
