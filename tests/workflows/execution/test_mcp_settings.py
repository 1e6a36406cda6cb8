"""The file of MCP servers, the extra, and the command that lists what a worker's tools are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Installation
from tests.workflows.execution.mcp_support import GOOD
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.workflows.execution.mcp.config import HttpServer, StdioServer, read_servers
from vanilla_saas.workflows.execution.mcp.servers import McpServers
from vanilla_saas.workflows.execution.tools import ToolRegistry, tool

TOOLS = """
from vanilla_saas.workflows.execution.tools import tool

@tool
def add(a: int, b: int = 1) -> int:
    "Adds."
    return a + b
"""


def written(folder: Path, servers: object) -> Path:
    path = folder / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    return path


def test_secrets_come_from_the_environment(tmp_path: Path) -> None:
    given = {
        "crm": {"type": "http", "url": "https://${HOST}/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}},
        "files": {"command": "files", "args": ["--as", "${WHO}"], "env": {"A": "${TOKEN}$x"}, "tools": ["read"]},
    }
    environment = {"HOST": "crm.example", "TOKEN": "t${WHO}", "WHO": "me"}
    assert read_servers(written(tmp_path, given), environment) == {
        "crm": HttpServer(url="https://crm.example/mcp", headers={"Authorization": "Bearer t${WHO}"}),
        "files": StdioServer(command="files", args=["--as", "me"], env={"A": "t${WHO}$x"}, tools=["read"]),
    }


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ([], "no object mcpServers"),
        ({"Crm": {"url": "https://x"}}, "Crm"),
        ({"a/b": {"url": "https://x"}}, "a/b"),
        ({"crm": {}}, "url: Field required"),
        ({"crm": {"url": "ftp://hidden"}}, "url: String should match"),
        ({"crm": {"url": "https://x", "header": {}}}, "header: Extra inputs"),
        ({"crm": {"url": "https://x", "headers": {"A": "hidden\n"}}}, "headers.A: Value error, has more than one line"),
        ({"crm": {"url": "https://x", "headers": {"A": "${NOT_SET}"}}}, "NOT_SET"),
        ({"crm": {"command": "x", "args": "hidden"}}, "args: Input should be a valid list"),
        ({"crm": "hidden"}, "crm"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_and_no_secret(tmp_path: Path, servers: Any, said: str) -> None:
    with pytest.raises(VanillaError) as refused:
        read_servers(written(tmp_path, servers), {})
    assert said in refused.value.message
    assert "hidden" not in refused.value.message
    assert refused.value.name == "invalid_request"


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text("mcpServers:")
    with pytest.raises(VanillaError, match=r"mcp\.json is no JSON"):
        read_servers(tmp_path / "mcp.json", {})
    with pytest.raises(FileNotFoundError):
        read_servers(tmp_path / "nothing.json", {})


def test_a_python_tool_cannot_have_the_name_of_a_server_s() -> None:
    with pytest.raises(ValueError, match="mcp/crm/find"):
        ToolRegistry([tool(name="mcp/crm/find")(written)])


async def test_without_servers_nothing_is_opened() -> None:
    async with McpServers() as servers:
        assert servers.names() == []


def run(text: str) -> str:
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPEN = """
import asyncio, sys
from vanilla_saas.workflows.execution.mcp.config import HttpServer
from vanilla_saas.workflows.execution.mcp.servers import McpServers
from vanilla_saas.database.errors import VanillaError
import vanilla_saas.workflows.working

async def open(servers):
    async with McpServers(servers):
        pass
"""


def test_the_package_is_imported_by_a_worker_with_servers_alone() -> None:
    assert run(OPEN + "asyncio.run(open({})); print('mcp' in sys.modules, 'mcp_types' in sys.modules)") == "False False"
    assert run(OPEN + "asyncio.run(open({'s': HttpServer(url='http://x')})); print('mcp' in sys.modules)") == "True"


def test_without_the_extra_a_worker_with_servers_says_what_to_install() -> None:
    said = run(
        "import sys; sys.modules['mcp'] = None"
        + OPEN
        + "try:\n    asyncio.run(open({'s': HttpServer(url='http://x')}))\n"
        + "except VanillaError as error:\n    print(error.name, error.message, error.hint)"
    )
    assert said == (
        "invalid_state VANILLA_SAAS_MCP_SERVERS names servers, and the package mcp is not installed. "
        "pip install 'vanilla-saas[mcp]'"
    )


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    (tmp_path / "listed_tools.py").write_text(TOOLS)
    servers = {
        "good": GOOD.model_dump(exclude_none=True) | {"tools": ["find", "number"]},
        "gone": {"url": "http://127.0.0.1:9/mcp"},
    }
    return Installation(
        tmp_path,
        PYTHONPATH=str(tmp_path),
        VANILLA_SAAS_WORKER_TOOLS='["listed_tools"]',
        VANILLA_SAAS_MCP_SERVERS=str(written(tmp_path, servers)),
    )


def test_the_tools_of_a_worker_are_listed(installation: Installation) -> None:
    done = installation.run("workflows", "tools")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines == [
        "tool arguments description",
        "add a, b? Adds.",
        "mcp/good/find email, limit? Looks a customer up.",
        "mcp/good/number",
    ]
    assert "The MCP server gone" in done.err
    assert done.code == 1


def test_and_as_json_with_their_schemas(installation: Installation) -> None:
    found = {row["tool"]: row for row in json.loads(installation.run("workflows", "tools", "--json").out)}
    assert found["add"]["parameters"]["required"] == ["a"]
    assert found["mcp/good/find"]["parameters"]["properties"]["email"]["pattern"] == "@"
