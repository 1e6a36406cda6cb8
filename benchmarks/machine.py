"""The machine of a run, so that figures can be compared; no host name and no path."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.frame import Figure
from vanilla_saas.database.binaries import find_binaries
from vanilla_saas.settings import Settings

LIBRARIES = ("vanilla-saas", "uvicorn", "uvloop", "aiohttp", "asyncpg")


def describe(load_before: float) -> dict[str, Figure]:
    """Cores, memory, versions; the load average before the run and now."""
    facts: dict[str, Figure] = {
        "cores": os.cpu_count() or 0,
        "cpu": _cpu(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": _postgresql(),
    }
    for name in LIBRARIES:
        facts[name] = version(name)
    return facts | {"load_before": round(load_before, 2), "load_after": round(load_average(), 2)}


def load_average() -> float:
    """Of the last minute. Above zero before a run means that somebody else was working."""
    return os.getloadavg()[0]


def resident_mib(pid: int) -> float:
    """Memory of a process that lies in RAM, and of its children."""
    rows = [(child, size) for child, _, size in _processes()]
    family = _family(pid)
    return sum(size for child, size in rows if child in family) / 1024


def family_s(pid: int) -> float:
    """Processor time of a process and of its children, those that have ended too."""
    living = sum(processor_s(child) or 0.0 for child in _family(pid))
    return living + (processor_s(pid, of_children=True) or 0.0)


def _processes() -> list[tuple[int, int, int]]:
    """Of each its id, its parent's and its KiB in RAM."""
    listed = subprocess.run(["ps", "-ax", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    rows = (map(int, line.split()) for line in listed.splitlines())
    return [(pid, parent, size) for pid, parent, size in rows]


def _family(pid: int) -> set[int]:
    rows = _processes()
    family, before = {pid}, 0
    while len(family) > before:
        before = len(family)
        family |= {child for child, parent, _ in rows if parent in family}
    return family


def processor_s(pid: int, of_children: bool = False) -> float | None:
    """Processor time of a process, or of the children it has waited for. None where there is no /proc."""
    try:
        # the name in parentheses may hold spaces
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    user, system = (fields[13], fields[14]) if of_children else (fields[11], fields[12])
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _postgresql() -> str:
    folder = find_binaries(Settings(_env_file=None)).folder
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return said.strip().rpartition(" ")[2]
