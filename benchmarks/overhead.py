"""What HTTP, JSON and text cost: 32 callers over HTTP against the engine alone, in turn.

The same sentences are translated by 32 callers who each wait for their answer, and by the engine
in this process with 32 sequences in flight, from token ids to token ids; tokens a second of both
and their ratio flow out. Callers and server share the cores. The one that is not asked is held
still. Run as `python -m benchmarks.overhead --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from app.engine.request import Event, Failed, Request, Token
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.tasks.attempts import SAMPLING
from app.text.tokenizer import TextTokenizer
from benchmarks.client import Load, closed_loop
from benchmarks.command import parser
from benchmarks.servers import Server, our_command
from benchmarks.tables import Spread
from benchmarks.texts import sentences

CLIENTS = 32


class Alone:
    """The engine with so many sequences in flight, the next one as soon as one ends."""

    def __init__(self, path: Path, texts: Sequence[str], target: str, engines: int | None) -> None:
        service = Service.open(path, ServiceOptions(engines=engines), Metrics())
        bundle, self._engine = service.bundle, service.engine
        self._engine.start()
        tokenizer = TextTokenizer.of(bundle)
        encoded = [tokenizer.encode(text, param="text") for text in texts]
        self._work = [
            (tokenizer.translation_prompt("en", target, ids), 3 * len(ids) + 32) for ids in encoded
        ]
        self._ends = tokenizer.end_ids

    def run(self) -> float:
        """Tokens per second over all texts."""
        work, lock, done = iter(self._work), threading.Lock(), threading.Event()
        tokens, left = 0, len(self._work)

        def hear(event: Event) -> None:  # on the threads of the engines
            nonlocal tokens, left
            with lock:
                if isinstance(event, Token):
                    tokens += 1
                    return
                left = 0 if isinstance(event, Failed) else left - 1
            submit()
            if not left:
                done.set()

        def submit() -> None:
            with lock:
                following = next(work, None)
            if following is not None:
                prompt, limit = following
                self._engine.submit([Request(prompt, limit, hear, self._ends, SAMPLING)])

        began = time.perf_counter()
        for _ in range(CLIENTS):
            submit()
        done.wait()
        return tokens / (time.perf_counter() - began)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    texts, load = sentences(options.texts, 0), Load("translate", options.target)
    alone = Alone(options.bundle, texts, options.target, options.engines)
    speeds: dict[str, list[float]] = {"engine": [], "http": []}
    with Server(our_command(options.server_python, options.bundle, options.engines)) as server:
        for at in range(options.rounds + 1):
            server.stop()
            engine = alone.run()
            server.go_on()
            answers, seconds = asyncio.run(closed_loop(server.url, load, texts, CLIENTS))
            if failed := sum(not answer.ok for answer in answers):
                raise RuntimeError(f"{failed} of {len(answers)} requests failed")
            if at:  # the first round warms up
                speeds["engine"].append(engine)
                speeds["http"].append(sum(answer.tokens for answer in answers) / seconds)
    return speeds


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("overhead", __doc__)
    add = commands.add_argument
    add("--server-python", default=sys.executable, help="interpreter that serves")
    add("--target", default="de", help="language translated to (default %(default)s)")
    add("--texts", type=int, default=640, help="sentences of a round (default %(default)s)")
    add("--rounds", type=int, default=5)
    add("--engines", type=int, help="of the server and alone (default: the server's choice)")
    options = commands.parse_args(argv)
    speeds = measure(options)
    engine, http = (Spread.of(speeds[name]) for name in ("engine", "http"))
    text = (f"{CLIENTS} callers over HTTP {http} tokens/s, the engine alone {engine}: "
            f"{http.median / engine.median:.2f}\n")  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overhead.json").write_text(json.dumps(speeds, indent=1), encoding="utf-8")
    (options.out / "overhead.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
