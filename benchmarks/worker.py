"""One engine in a process of its own, asked over pipes, so that none disturbs another.

`python -m benchmarks.worker ENGINE FOLDER OPTIONS` reads a line of JSON for each call, prompts and
a number of tokens, and answers with the ids and the seconds that the call took; before, one line
says that it is ready or what went wrong. `Worker` is the asking side. Between calls a worker is
stopped by signal: what its library's threads do when idle costs the others nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Ids = list[list[int]]


class WorkerFailed(Exception):
    """An engine that cannot be loaded or run; the message is its own last words."""


class Worker:
    def __init__(self, engine: str, folder: Path, options: dict[str, Any], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", engine, str(folder),
                 json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                process_group=0,  # stopped or not, it ends when we do: by SIGHUP, POSIX's rule
            )  # fmt: skip
        self._read()
        self._pause()

    def ask(self, prompts: Ids, tokens: int) -> tuple[Ids, float]:
        """The new ids of each row, and the seconds that they took."""
        assert self._process.stdin is not None
        os.kill(self._process.pid, signal.SIGCONT)
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self._pause()
        return answer["ids"], answer["seconds"]

    def _pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self.close()
            raise WorkerFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(engine: str, folder: Path, options: dict[str, Any]) -> None:
    """Answer on what was standard output; whatever the library prints goes to the errors."""
    from benchmarks.engines import ENGINES

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        generate = ENGINES[engine](folder, **options)
        say({"ready": True})
        for line in sys.stdin:
            call = json.loads(line)
            began = time.perf_counter()
            ids = generate(call["prompts"], call["tokens"])
            say({"seconds": time.perf_counter() - began, "ids": ids})
    except Exception as error:  # whatever a peer raises is told, not hidden
        say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
