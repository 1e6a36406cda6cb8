"""Peers: each in its pinned version in a virtual environment of its own, below the user's cache. And LiteLLM's proxy.

It runs without its database: keys and budgets come from `custom_auth`, and nothing is written about a call. That
favours it, because the metered call of this product commits twice to disk.
"""

import contextlib
import os
import secrets
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from platformdirs import user_cache_path

from benchmarks.frame import BenchmarkError
from benchmarks.processes import server

KEY = "sk-benchmark"
AUTH = '''"""Accepts the benchmark's key and gives it a budget."""

from litellm.proxy._types import UserAPIKeyAuth


async def user_api_key_auth(request, api_key):
    if api_key != "sk-benchmark":
        raise ValueError("wrong key")
    return UserAPIKeyAuth(api_key=api_key, user_id="benchmark", max_budget=1000000.0)
'''
CONFIG = """\
model_list:
  - model_name: sandbox-small
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: {base}
      api_key: none
litellm_settings:
  telemetry: false
  request_timeout: 60
general_settings:
  custom_auth: custom_auth.user_api_key_auth
"""


def pinned(name: str) -> dict[str, Any]:
    """What peers.toml says of a peer: package, version, and packages it needs beside."""
    peers: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("peers.toml").read_text())
    return peers[name]


def litellm_version() -> str:
    return str(pinned("litellm")["version"])


def find(name: str, install: bool) -> Path | None:
    """The folder of a peer's commands; None when it is not installed and shall not be.

    Raises BenchmarkError when it cannot be.
    """
    peer = pinned(name)
    folder = user_cache_path("vanilla-saas") / "benchmarks" / f"{name}-{peer['version']}"
    # written last: an installation that was interrupted is none
    complete = folder / "complete"
    if complete.exists() or not install:
        return folder / "bin" if complete.exists() else None
    packages = [f"{peer['package']}=={peer['version']}", *peer.get("beside", [])]
    for step in (
        ["uv", "venv", "--quiet", "--clear", str(folder)],
        ["uv", "pip", "install", "--quiet", "--python", str(folder), *packages],
    ):
        done = subprocess.run(step, check=False, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"{name} cannot be installed: {done.stderr.strip()[-1000:]}")
    complete.touch()
    return folder / "bin"


def find_litellm(install: bool) -> Path | None:
    """Its command, or None; see `find`."""
    folder = find("litellm", install)
    return folder / "litellm" if folder else None


@contextlib.contextmanager
def litellm(command: Path, port: int, upstream_port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Its proxy with one worker in front of the same upstream."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with TemporaryDirectory() as folder:
        (Path(folder) / "custom_auth.py").write_text(AUTH)
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG.format(base=f"http://127.0.0.1:{upstream_port}/v1"))
        # it refuses to start without a strong master key; a local price list, else it fetches one at every start
        env = kept | {
            "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        }
        arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        with server([str(command), *arguments], port, env, Path(folder)) as child:
            yield child
