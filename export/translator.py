"""Lines through an engine of their own, with the decoder that serves.

Lines go in, one line one sequence without segmentation; texts with their finish reasons come out,
in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple

from app.bundle import Bundle
from app.engine.engine import Engine
from app.engine.request import Beam, Candidates, Event, Failed, Finished, Request, Token
from app.engine.session import OnnxDecoder
from app.metrics import Metrics
from app.tasks.attempts import SAMPLING
from app.tasks.shortlist import Shortlist
from app.text.tokenizer import TextTokenizer


class Result(NamedTuple):
    text: str
    finish_reason: str


Translate = Callable[[Sequence[str], str, str], Sequence[tuple[str, str]]]


class BundleTranslator:
    """Translation of lines by an engine of its own, greedy or by beam; a context manager.

    `batch` rows are decoded at a time: of lines, or of the hypotheses of fewer lines.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch: int = 32,
        threads: int | None = None,
        beam: int = 1,
        length_penalty: float = 1.0,
        shortlist: bool = False,
    ) -> None:
        self._shortlist = Shortlist.of(bundle) if shortlist else None
        self._tokenizer = TextTokenizer.of(bundle)
        self._beam = Beam(beam, length_penalty) if beam > 1 else None
        slots = max(batch, beam)
        decoder = OnnxDecoder(bundle, slots=slots, threads=threads, lists=shortlist)
        self._capacity = decoder.capacity
        self._engine = Engine(decoder, Metrics(), max_queue=1)

    def __enter__(self) -> BundleTranslator:
        self._engine.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.stop(drain=False)

    def __call__(self, lines: Sequence[str], source: str, target: str) -> list[Result]:
        jobs: list[_Job] = []
        results: list[Result | None] = [None] * len(lines)
        for at, line in enumerate(lines):
            text = self._tokenizer.encode(line, param=f"line {at + 1}")
            prompt = self._tokenizer.translation_prompt(source, target, text)
            room = min(3 * len(text) + 32, self._capacity - len(prompt))
            if room < 1:
                results[at] = Result("", "length")
            else:
                listed = self._shortlist
                only = listed.candidates(source, target, text) if listed else None
                jobs.append(_Job(at, prompt, room, only))
        jobs.sort(key=lambda job: len(job.prompt))
        self._run(jobs)
        for job in jobs:
            results[job.at] = Result(self._tokenizer.decode(job.ids).strip(), job.reason)
        return [result for result in results if result is not None]

    def _run(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        done = _Countdown(len(jobs))
        end_ids = self._tokenizer.end_ids
        self._engine.submit(
            [
                Request(
                    job.prompt, job.room, job.listener(done), end_ids, SAMPLING, beam=self._beam,
                    candidates=job.only,
                )  # fmt: skip
                for job in jobs
            ]
        )
        done.wait()
        for job in jobs:
            if job.failure is not None:
                raise job.failure


class _Countdown:
    def __init__(self, count: int) -> None:
        self._count = count
        self._ended = threading.Event()

    def one(self) -> None:  # called on the engine's thread only
        self._count -= 1
        if self._count == 0:
            self._ended.set()

    def wait(self) -> None:
        self._ended.wait()


class _Job:
    """One line on its way through the engine."""

    def __init__(
        self, at: int, prompt: tuple[int, ...], room: int, only: Candidates | None
    ) -> None:
        self.at, self.prompt, self.room, self.only = at, prompt, room, only
        self.ids: list[int] = []
        self.reason = ""
        self.failure: Exception | None = None

    def listener(self, done: _Countdown) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            if isinstance(event, Token):
                self.ids.append(event.id)
                return
            if isinstance(event, Finished):
                self.reason = event.reason
            elif isinstance(event, Failed):
                self.failure = event.error
            done.one()

        return listen
