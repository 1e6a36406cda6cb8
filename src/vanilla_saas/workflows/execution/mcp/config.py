"""The file of MCP servers: the form that other clients read, with secrets from the environment.

{"mcpServers": {"crm": {"url": "https://crm.example/mcp", "headers": {"Authorization": "Bearer ${CRM_TOKEN}"}},
                "files": {"command": "files-mcp", "args": ["--read-only"], "env": {"ROOT": "/srv"}}}}
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vanilla_saas.database.errors import VanillaError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_EXPLAINED = "docs/workflows.md shows the file."


def _one_line(value: str) -> str:
    if any(c in value for c in "\r\n\0"):
        raise ValueError("has more than one line")
    return value


class _Server(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tools: list[str] | None = None
    """The tools that definitions may call; None: all that the server has."""

    def allows(self, tool: str) -> bool:
        return self.tools is None or tool in self.tools


class HttpServer(_Server):
    """A server that is reached by streamable HTTP."""

    type: Literal["http", "streamable-http"] = "http"
    url: Annotated[str, Field(pattern=r"^https?://")]
    headers: dict[str, Annotated[str, AfterValidator(_one_line)]] = {}


class StdioServer(_Server):
    """A server that the worker starts as a process of its own, without the worker's environment."""

    type: Literal["stdio"] = "stdio"
    command: Annotated[str, Field(min_length=1)]
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None


Server = HttpServer | StdioServer


def read_servers(path: Path, environment: Mapping[str, str]) -> dict[str, Server]:
    """The servers of the file by name; `${NAME}` in a text is a variable of the environment.

    Raises VanillaError `invalid_request`, and OSError when it cannot be read.
    """
    try:
        given = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise _refused(f"{path} is no JSON: {error}.") from None
    listed = given.get("mcpServers") if isinstance(given, dict) else None
    if not isinstance(listed, dict):
        raise _refused(f"{path} has no object mcpServers.")
    return {name: _server(name, one, environment) for name, one in listed.items()}


def _server(name: str, given: Any, environment: Mapping[str, str]) -> Server:
    if not NAME.fullmatch(name):
        raise _refused(f"The name of the MCP server {name} has other characters than a-z, 0-9, _ and -, or over 32.")
    kind = StdioServer if isinstance(given, dict) and "command" in given else HttpServer
    try:
        return kind.model_validate(_filled(name, given, environment))
    except ValidationError as error:
        # what is wrong with it is said without what it is: it may be a secret
        wrong = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, wrong["loc"]))
        raise _refused(f"The MCP server {name}: {field}: {wrong['msg']}.") from None


def _filled(name: str, value: Any, environment: Mapping[str, str]) -> Any:
    """The value with variables in place of their names."""

    def variable(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise _refused(f"The MCP server {name} needs the environment variable {found[1]}, which is not set.")
        return environment[found[1]]

    if isinstance(value, str):
        return _VARIABLE.sub(variable, value)
    if isinstance(value, dict):
        return {key: _filled(name, one, environment) for key, one in value.items()}
    return [_filled(name, one, environment) for one in value] if isinstance(value, list) else value


def _refused(message: str) -> VanillaError:
    return VanillaError("invalid_request", message, hint=_EXPLAINED)
