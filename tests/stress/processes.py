"""`gpt2-mt serve` as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.servers import Server

SERVE = [sys.executable, "-c",
         "import sys; from gpt2_mt.cli import main; sys.exit(main())", "serve"]  # fmt: skip
RESTARTED = ["sh", "-c", 'while :; do "$@"; sleep 0.1; done', "sh"]  # a supervisor


class Process(Server):
    """Listens when it is made. `under`: words of a command in front of its own."""

    def __init__(
        self,
        errors: Path,
        under: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        given = {f"GPT2MT_{name.upper()}": str(value) for name, value in settings.items()}
        self._errors = errors
        with errors.open("ab") as stream:
            super().__init__([*under, *SERVE], {**given, **(environment or {})}, stream)
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def __exit__(self, *raised: Any) -> None:
        self.http.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads a group of its own
        super().__exit__(*raised)

    @property
    def errors(self) -> str:
        return self._errors.read_text(encoding="utf-8")

    def metrics(self) -> dict[str, float]:
        text = self.http.get("/metrics").text
        return {k: float(v) for k, v in re.findall(r"^gpt2mt_(\S+) (\S+)$", text, re.M)}

    def metric(self, name: str) -> float:
        return self.metrics().get(name, 0.0)

    def idle(self) -> bool:
        """No sequence waits or runs; the only request is the one that asks."""
        found = self.metrics()
        names = ("queue_depth", "active_slots", "http_requests_in_flight")
        return [found[name] for name in names] == [0, 0, 1]

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> float:
        """Seconds until the condition held; infinite if it did not in time."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                return float("inf")
            time.sleep(0.05)
        return time.monotonic() - began

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def child(self) -> int | None:
        """The server under a supervisor."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        names = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
        return next((pid for pid, words in names.items() if b"gpt2_mt" in words), None)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self, within_s: float) -> int | None:
        """Its status when it has ended; None if it has not in time."""
        self.wait(lambda: self._process.poll() is not None, within_s)
        return self._process.poll()
