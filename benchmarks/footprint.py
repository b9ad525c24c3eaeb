"""How soon the server is ready, and the memory that it holds beside its KV cache.

`gpt2-mt serve` is started some times on a bundle and asked for `/health/ready` until it says so.
Then as many long generations as there are slots fill the whole cache, so that all of it is
resident, and short translations go through; what the process holds beyond what `gpt2-mt info`
states for the cache is told. Run as `python -m benchmarks.footprint --help`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.bundle import Bundle
from app.engine.memory import CacheSize
from app.service import ServiceOptions, planned_cache
from benchmarks.client import Load, closed_loop, session
from benchmarks.command import parser
from benchmarks.servers import Server, our_command
from benchmarks.tables import Spread, markdown
from benchmarks.texts import sentences


async def fill(url: str, cache: CacheSize) -> None:
    """Generations that may not end before every slot is full."""
    room = cache.tokens - 16

    async def one(text: str) -> None:
        body = {"prompt": text, "max_tokens": room, "min_tokens": room}
        async with client.post("/v1/generate", json=body) as response:
            assert response.status == 200, await response.text()

    async with session(url) as client:
        await asyncio.gather(*(one(f"Number {i}") for i in range(cache.slots * cache.engines)))


def measure(python: str, bundle: Path, starts: int) -> dict[str, Any]:
    cache = planned_cache(Bundle.open(bundle), ServiceOptions())
    command = our_command(python, bundle)
    ready = []
    for _ in range(starts - 1):
        with Server(command) as server:
            ready.append(server.ready_s)
    with Server(command) as server:
        ready.append(server.ready_s)
        begun = server.resident()
        asyncio.run(fill(server.url, cache))
        filled = server.resident()
        texts = sentences(500, 0)
        asyncio.run(closed_loop(server.url, Load("translate"), texts, cache.slots * cache.engines))
        loaded = server.resident()
    return {"ready_s": ready, "cache_mb": cache.bytes / 1e6, "resident_begun_mb": begun,
            "resident_filled_mb": filled, "resident_loaded_mb": loaded}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    ready, cache = Spread.of(1000 * s for s in found["ready_s"]), found["cache_mb"]
    rows = [
        ("ready after start, ms: median (quartiles)", str(ready)),
        ("resident when ready, MB", f"{found['resident_begun_mb']:.0f}"),
        ("resident, cache full, MB", f"{found['resident_filled_mb']:.0f}"),
        ("resident after 500 translations more, MB", f"{found['resident_loaded_mb']:.0f}"),
        ("KV cache as stated, MB", f"{cache:.0f}"),
        ("beside the cache, MB", f"{found['resident_loaded_mb'] - cache:.0f}"),
    ]
    return markdown(("", "value"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("footprint", __doc__)
    add = commands.add_argument
    add("--server-python", default=sys.executable, help="interpreter that serves")
    add("--starts", type=int, default=5)
    arguments = commands.parse_args(argv)
    found = measure(arguments.server_python, arguments.bundle, arguments.starts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1)
    (arguments.out / "footprint.json").write_text(text, encoding="utf-8")
    (arguments.out / "footprint.md").write_text(table(found), encoding="utf-8")
    sys.stdout.write(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
