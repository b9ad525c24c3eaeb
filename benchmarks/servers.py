"""Servers under test, each a process on a free port of this machine: ours and CTranslate2's.

A command flows in; a `Server` that answers flows out, with the seconds it took to be ready.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO

PATIENCE_S = 120.0


def our_command(python: str, bundle: Path, engines: int | None = None) -> list[str]:
    """`gpt2-mt serve`, as the interpreter's environment has it, with as many engines as it
    would take by itself where none are given."""
    start = "import sys; from gpt2_mt.cli import main; sys.exit(main())"
    return [python, "-c", start, "serve", "--log-level", "warning", "--bundle", str(bundle),
            *(["--set", f"engines={engines}"] if engines else [])]  # fmt: skip


def peer_command(place: Path, inter: int, intra: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.ctranslate2_server",
            str(place / "ctranslate2-int8"), str(place / "int8"),
            "--inter", str(inter), "--intra", str(intra)]  # fmt: skip


def layouts(cores: int) -> list[tuple[int, int]]:
    """Workers and threads of each, so that all cores are used."""
    return sorted({(1, cores), (cores, 1)})


class Server(AbstractContextManager["Server"]):
    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str] | None = None,
        errors: IO[bytes] | None = None,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port)], process_group=0,
            env={**os.environ, **(environment or {})}, stderr=errors,
        )  # fmt: skip
        self._wait()
        self.ready_s = time.perf_counter() - began

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident(self) -> float:
        """MB of memory that the process holds now."""
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024 / 1e6

    def stop(self) -> None:
        """Hold it still while another is measured."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}")
            if self._ready():
                return
            time.sleep(0.01)
        self._process.kill()
        raise RuntimeError(f"the server was not ready within {PATIENCE_S:g} s")

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
