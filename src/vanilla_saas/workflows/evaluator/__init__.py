"""What people wrote is computed in processes of its own: bounded in time and memory, restarted when one ends."""

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson

SECONDS = 1.0
"""What one computation may take; then its process is gone and the next one starts another."""
STARTUP_SECONDS = 20.0
MEMORY_BYTES = 1 << 30
"""Address space of a process, about 150 MiB of it its libraries'."""
REQUEST_BYTES = 8 << 20
PROCESSES = max(2, min(4, os.cpu_count() or 1))


class EvaluatorError(Exception):
    """A code without the prefix of its language, a sentence, and for templates the line."""

    def __init__(self, code: str, message: str, line: int | None = None):
        super().__init__(message)
        self.code, self.message, self.line = code, message, line


class _Process:
    def __init__(self) -> None:
        # neither secrets of the environment nor its file descriptors; -P: nothing from the directory it starts in
        kept = {name: os.environ[name] for name in ("SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "vanilla_saas.workflows.evaluator.process", str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept
            | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=os.path.abspath(os.sep),
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._questions, self._answers = self._child.stdin, self._child.stdout
        self.parent = os.getpid()

    def ask(self, line: bytes) -> bytes | None:
        """The answer, or None when the process ended instead."""
        try:
            self._questions.write(line + b"\n")
            self._questions.flush()
        except BrokenPipeError:
            return None
        return self._answers.readline() or None

    def ended_by_deadline(self) -> bool:
        # faulthandler leaves with 1, an abort or a fault with a signal
        return self._child.wait() == 1

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        self._answers.close()
        with suppress(BrokenPipeError):
            self._questions.close()


class Evaluator:
    """Threads share at most `processes` processes; each is started when it is first needed."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._free: list[_Process] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(processes)

    def ask(self, operation: str, *, seconds: float = SECONDS, **arguments: Any) -> dict[str, Any]:
        """Blocks for at most `seconds` beyond the wait for a process. Raises EvaluatorError."""
        try:
            line = orjson.dumps({"operation": operation, "seconds": seconds, **arguments})
        except (TypeError, RecursionError) as error:
            raise EvaluatorError("type", f"A variable is no JSON: {error}.") from None
        if len(line) > REQUEST_BYTES:
            raise EvaluatorError("too_large", f"Its variables have more than {REQUEST_BYTES:,} bytes.")
        with self._slots:
            process = self._take()
            try:
                answer = process.ask(line)
            except BaseException:
                process.close()  # an answer that nobody reads would be the next question's
                raise
            if answer is None:
                by_deadline = process.ended_by_deadline()
                process.close()
                if by_deadline:
                    raise EvaluatorError("timeout", f"It takes longer than {seconds:g} s.")
                raise EvaluatorError("too_large", "It needs more memory, or is nested deeper, than is allowed.")
            with self._lock:
                self._free.append(process)
        said = orjson.loads(answer)
        if "ok" in said:
            result: dict[str, Any] = said["ok"]
            return result
        raise EvaluatorError(said["code"], said["message"], said["line"])

    def _take(self) -> _Process:
        with self._lock:
            while self._free:
                process = self._free.pop()
                if process.parent == os.getpid():
                    return process  # after a fork both would read one pipe
        return _Process()

    def close(self) -> None:
        with self._lock:
            free, self._free = self._free, []
        for process in free:
            process.close()


_shared = Evaluator()
atexit.register(_shared.close)
ask: Callable[..., dict[str, Any]] = _shared.ask
"""Asks the evaluator of this process."""
