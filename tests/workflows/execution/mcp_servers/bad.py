"""A server by hand, of the protocol of 2025, that does what its tools are called: `bad.py <manner> <mark>`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

MUCH = 100 << 20
SLOW = "^(a+)+$"
OBJECT = {"type": "object"}
TOOLS: dict[str, dict[str, Any]] = {
    "fine": {}, "pid": {}, "silent": {}, "noise": {}, "garbled": {}, "much": {}, "much_id_last": {}, "much_id_lost": {},
    "flood": {}, "endless": {}, "dies": {}, "half": {}, "later": {},
    "input_no_schema": {"inputSchema": {"type": "object", "properties": {"a": {"type": "no such"}}}},
    "input_fetches": {"inputSchema": {"type": "object", "$ref": "http://127.0.0.1:9/schema"}},
    "output_unlike": {"outputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
    "output_lacks": {"outputSchema": OBJECT},
    "output_pattern": {"outputSchema": {"type": "object", "properties": {"a": {"type": "string", "pattern": SLOW}}}},
    "not_a_number": {},
    "nul": {},
}  # fmt: skip
GIVEN = {
    "output_unlike": {"n": "text"},
    "output_pattern": {"a": "a" * 60 + "b"},
    "not_a_number": {"a": float("nan")},
    "nul": {"a": "\0"},
}
lock = threading.Lock()


def write(text: str) -> None:
    with lock:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def answer(request: int, result: Any) -> None:
    write(json.dumps({"jsonrpc": "2.0", "id": request, "result": result}))


def text(said: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}]}


def pieces(first: str, last: str) -> None:
    with lock:
        sys.stdout.write(first)
        for _ in range(MUCH >> 20):
            sys.stdout.write("x" * (1 << 20))
        sys.stdout.write(last + "\n")
        sys.stdout.flush()


def call(request: int, tool: str) -> None:
    match tool:
        case "fine":
            answer(request, text("fine"))
        case "pid":
            answer(request, text(str(os.getpid())))
        case "noise":
            write("Listening on nothing...")
            write("{}")
            write('{"jsonrpc": "2.0", "id": 9999, "result": {}}')
            answer(request, text("heard"))
        case "garbled":
            write(f'{{"jsonrpc": "2.0", "id": {request}, "result": nonsense}}')
        case "half":
            answer(request, {"content": "no list"})
        case "much":
            pieces(f'{{"jsonrpc":"2.0","id":{request},"result":{{"content":[{{"type":"text","text":"', '"}]}}')
        case "much_id_last":
            pieces('{"result":{"content":[{"type":"text","text":"', f'"}}]}},"jsonrpc":"2.0","id":{request}}}')
        case "much_id_lost":
            pieces('{"result":"', f'","id":{request},"more":"{"x" * 10_000}"}}')
        case "flood":
            for n in range(20_000):
                write(json.dumps({"jsonrpc": "2.0", "id": f"s{n}", "method": "sampling/createMessage", "params": {}}))
                write(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * 100}}))
            answer(request, text("flooded"))
        case "endless":
            while True:
                write(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * 100}}))
        case "dies":
            os._exit(3)
        case "later":
            threading.Timer(1.0, lambda: answer(request, text("later"))).start()
        case "silent":
            pass
        case _:
            given = GIVEN.get(tool)
            answer(request, text("given") | ({} if given is None else {"structuredContent": given}))


def listed(cursor: str | None) -> dict[str, Any]:
    if manner == "pages":
        return {"tools": [], "nextCursor": str(int(cursor or 0) + 1)}
    tools = [{"name": name, "inputSchema": OBJECT} | more for name, more in TOOLS.items()]
    if manner == "tools":
        tools = [{"name": f"t{n}", "description": "x" * 100, "inputSchema": OBJECT} for n in range(2000)]
    return {"tools": tools}


manner = sys.argv[1]
child = None
if manner in ("stays", "child"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[2]])
if manner == "dies":
    sys.exit(4)
while manner == "mute":
    time.sleep(600)
for line in sys.stdin:
    message = json.loads(line)
    request, parameters = message.get("id"), message.get("params") or {}
    match message.get("method"):
        case "initialize":
            version = parameters["protocolVersion"]
            said = {
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "b", "version": "1"},
            }
            answer(request, said)
        case "tools/list":
            answer(request, listed(parameters.get("cursor")))
        case "tools/call":
            if manner == "stuck":
                time.sleep(600)
            call(request, parameters["name"])
        case method if request is not None and method:
            error = {"code": -32601, "message": "Method not found"}
            write(json.dumps({"jsonrpc": "2.0", "id": request, "error": error}))
while manner == "stays":
    time.sleep(600)
