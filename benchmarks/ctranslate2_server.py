"""CTranslate2 behind a batching FastAPI server, as one would well write it: the peer over HTTP.

Answers the part of our API that the load generator asks: `/v1/translate` with one text and
`/v1/generate` with a prompt, streamed or not. Waiting requests are put together in a batch for the
first worker that is free, after a short window; each of CTranslate2's workers has its own batch.
Run as `python -m benchmarks.ctranslate2_server MODEL BUNDLE`, a converted model and the bundle that
its tokenizer and templates are of.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctranslate2
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from app.bundle import Bundle
from app.text.tokenizer import TextTokenizer

END = None  # of a stream


@dataclass
class Item:
    """One sequence: what to read, how much to write, and where the answer goes."""

    prompt: list[str]
    limit: int
    least: int
    answer: asyncio.Future[list[int]]
    tokens: asyncio.Queue[int | None] | None = field(default=None)  # of a stream


class Batcher:
    """Takes what waits, at most `most` sequences, as soon as a worker is free."""

    def __init__(self, generator: Any, workers: int, most: int, window_s: float, end: int) -> None:
        self._generator, self._most, self._window, self._end = generator, most, window_s, end
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._pool = ThreadPoolExecutor(workers)
        self._tasks = [asyncio.create_task(self._work()) for _ in range(workers)]

    def put(self, item: Item) -> None:
        self._queue.put_nowait(item)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            items = [await self._queue.get()]
            if self._window and self._queue.empty():
                await asyncio.sleep(self._window)
            while len(items) < self._most and not self._queue.empty():
                items.append(self._queue.get_nowait())
            try:
                rows = await loop.run_in_executor(self._pool, self._run, items, loop)
            except Exception as error:
                for item in items:
                    item.answer.set_exception(error)
                continue
            for item, row in zip(items, rows, strict=True):
                if not item.answer.done():
                    item.answer.set_result(row[: item.limit])
                if item.tokens is not None:
                    item.tokens.put_nowait(END)

    def _run(self, items: list[Item], loop: asyncio.AbstractEventLoop) -> list[list[int]]:
        """In a thread of the pool; the library leaves Python's lock while it works."""
        streamed = any(item.tokens is not None for item in items)
        results = self._generator.generate_batch(
            [item.prompt for item in items],
            max_length=max(item.limit for item in items),
            min_length=min(item.least for item in items),
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=self._listener(items, loop) if streamed else None,
        )
        return [result.sequences_ids[0] for result in results]

    def _listener(
        self, items: list[Item], loop: asyncio.AbstractEventLoop
    ) -> Callable[[Any], bool]:
        def hear(step: Any) -> bool:
            item = items[step.batch_id]
            if item.tokens is not None and step.token_id != self._end:
                loop.call_soon_threadsafe(item.tokens.put_nowait, step.token_id)
            return bool(step.step + 1 >= item.limit)  # this row has enough

        return hear


class Translate(BaseModel):
    text: str
    source: str
    target: str


class Generate(BaseModel):
    prompt: str
    max_tokens: int = 128
    min_tokens: int = 0
    stream: bool = False


class Model:
    """Tokenizer, templates and generator; started in the server's event loop."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        bundle = Bundle.open(arguments.bundle)
        self.context, self.end = bundle.manifest.limits.context, bundle.manifest.tokens.end
        self.tokenizer = TextTokenizer.of(bundle)
        words = (arguments.model / "vocabulary.json").read_text(encoding="utf-8")
        self.words: list[str] = json.loads(words)
        self._arguments = arguments

    def start(self) -> None:
        a = self._arguments
        generator = ctranslate2.Generator(
            str(a.model), inter_threads=a.inter, intra_threads=a.intra
        )
        self.batcher = Batcher(generator, a.inter, a.batch, a.window_ms / 1000, self.end)

    def submit(
        self, prompt: Sequence[int], limit: int, least: int = 0, *, stream: bool = False
    ) -> Item:
        loop = asyncio.get_running_loop()
        limit = min(limit, self.context - len(prompt))
        item = Item([self.words[i] for i in prompt], limit, min(least, limit), loop.create_future(),
                    asyncio.Queue() if stream else None)  # fmt: skip
        self.batcher.put(item)
        return item


def create(model: Model) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model.start()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/translate")
    async def translate(body: Translate) -> dict[str, Any]:
        ids = model.tokenizer.encode(body.text, param="text")
        prompt = model.tokenizer.translation_prompt(body.source, body.target, ids)
        found = await model.submit(prompt, 3 * len(ids) + 32).answer
        text = model.tokenizer.decode(found).strip()
        return {"translations": [{"text": text}], "usage": _usage(prompt, found)}

    @app.post("/v1/generate")
    async def generate(body: Generate) -> Any:
        ids = model.tokenizer.encode(body.prompt, param="prompt")
        prompt = model.tokenizer.generation_prompt(ids)
        item = model.submit(prompt, body.max_tokens, body.min_tokens, stream=body.stream)
        if body.stream:
            return StreamingResponse(_events(model, item), media_type="text/event-stream")
        found = await item.answer
        text = model.tokenizer.decode(found)
        return {"generations": [{"text": text}], "usage": _usage(prompt, found)}

    return app


def _usage(prompt: Sequence[int], found: Sequence[int]) -> dict[str, int]:
    return {"prompt_tokens": len(prompt), "completion_tokens": len(found)}


async def _events(model: Model, item: Item) -> AsyncIterator[str]:
    assert item.tokens is not None
    text = model.tokenizer.detokenizer()
    while (token := await item.tokens.get()) is not END:
        yield f"data: {json.dumps({'index': 0, 'text': text.push(token)})}\n\n"
    yield "data: [DONE]\n\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ctranslate2_server")
    add = parser.add_argument
    add("model", type=Path, help="converted model")
    add("bundle", type=Path, help="our bundle of the same weights")
    add("--port", type=int, default=8001)
    add("--inter", type=int, default=2, help="workers (default %(default)s)")
    add("--intra", type=int, default=1, help="threads of each (default %(default)s)")
    add("--batch", type=int, default=32, help="most sequences in a batch (default %(default)s)")
    add("--window-ms", type=float, default=2.0, help="wait for company (default %(default)s)")
    arguments = parser.parse_args(argv)
    app = create(Model(arguments))
    uvicorn.run(app, port=arguments.port, log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
