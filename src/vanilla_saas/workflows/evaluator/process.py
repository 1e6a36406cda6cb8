"""The process that computes what people wrote: CEL, templates, JSON schemas, regular expressions.

Native code that runs a stranger's text cannot be interrupted from Python, and what overflows its stack or its memory
takes its process along. So it has one of its own: a request is a line of JSON on stdin, the answer a line on stdout. It
reads no file, has no environment, and ends when its parent does. It imports no other room, so that it starts quickly.
"""

import faulthandler
import os
import sys
from collections.abc import Callable

import orjson

from vanilla_saas.workflows.evaluator import cel, schemas, templates
from vanilla_saas.workflows.evaluator.refused import Answer, Refused

OPERATIONS: dict[str, Callable[..., Answer]] = {
    "compile": cel.compile_expression,
    "evaluate": cel.evaluate_expression,
    "parse": templates.parse_template,
    "render": templates.render_template,
    "check_schema": schemas.check_schema,
    "validate": schemas.validate_instance,
    "search": schemas.search_pattern,
}


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the deadline alone bounds what can be taken
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answer(line: bytes) -> bytes:
    request = orjson.loads(line)
    seconds = request.pop("seconds")
    operation = OPERATIONS[request.pop("operation")]
    # a thread of C, which needs no lock of Python's: it ends the process whatever native code is doing
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)
    try:
        return orjson.dumps({"ok": operation(**request)})
    except Refused as refused:
        return orjson.dumps({"code": refused.code, "message": refused.message, "line": refused.line})
    except (MemoryError, RecursionError, OverflowError, orjson.JSONEncodeError) as error:
        return orjson.dumps(
            {"code": "too_large", "message": f"It is too large ({type(error).__name__}).", "line": None}
        )
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that a library prints is taken for an answer
    _limit_memory(int(sys.argv[1]))
    for line in requests:
        answers.write(answer(line) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
