"""A document's units through the translator, some at a time, and the file of what comes back.

One language is detected for all of the document. Portions are bounded by items and characters, and
two are under way at once, so that the slots stay full while one ends and memory does not grow with
the document. Cancelling the work cancels what of it is in the engine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from app.documents.formats import Format
from app.documents.units import Document, Translated, Unit
from app.errors import AppError, QueueFull, TooLong
from app.metrics import Metrics
from app.tasks.job import Deadline
from app.tasks.options import TranslateOptions
from app.tasks.translate import AUTO, Translator
from app.text.glossary import Glossary

_ITEMS, _CHARACTERS = 128, 16_000  # of a portion, unless the request's limits are lower
_TOGETHER = 2  # portions
_READERS = 2
MAX_UNITS = 100_000  # of a document
_PAUSE_S = 0.5  # while the queue is full
_SAMPLE = 4000  # characters that a language is detected by


@dataclass(frozen=True, slots=True)
class TranslatedFile:
    data: bytes
    source: str
    items: int
    flagged: int
    characters: int


class Documents:
    """Translates files; `max_bytes` of one, `together` at a time.

    The other limits are those of one request to a translator.
    """

    def __init__(
        self,
        metrics: Metrics,
        max_bytes: int,
        max_items: int,
        max_characters: int,
        together: int = 4,
    ) -> None:
        self.max_bytes = max_bytes
        self._items = min(_ITEMS, max_items)
        self._characters = min(_CHARACTERS, max_characters)
        self._longest = max_characters
        self._counter = metrics.documents
        self._room = asyncio.Semaphore(together)
        self._readers = asyncio.Semaphore(_READERS)

    async def run(
        self,
        translator: Translator,
        data: bytes,
        form: Format,
        source: str,
        target: str,
        deadline: Deadline,
        options: TranslateOptions,
        progress: Callable[[int, int], None] | None = None,
    ) -> TranslatedFile:
        outcome = "cancelled"
        try:
            async with asyncio.timeout(deadline.left), self._room:
                made = await self._run(
                    translator, data, form, source, target, deadline, options, progress
                )
            outcome = "translated"
            return made
        except TimeoutError:
            outcome = "failed"
            raise deadline.exceeded() from None
        except AppError as error:
            outcome = "refused" if error.status < 500 else "failed"
            raise
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._counter.labels(form.name, outcome).inc()

    async def _run(
        self,
        translator: Translator,
        data: bytes,
        form: Format,
        source: str,
        target: str,
        deadline: Deadline,
        options: TranslateOptions,
        progress: Callable[[int, int], None] | None,
    ) -> TranslatedFile:
        source, target = translator.pair(source, target, unchanged=True)
        translator.check_glossary(options.glossary, source, target)
        if len(data) > self.max_bytes:
            raise TooLong(f"file has {len(data)} bytes, at most {self.max_bytes}", param="file")
        document = await asyncio.shield(asyncio.create_task(self._read(form, data)))
        units = document.units
        if len(units) > MAX_UNITS:
            raise TooLong(
                f"file has {len(units)} parts to translate, at most {MAX_UNITS}", param="file"
            )
        characters = sum(len(unit.text) for unit in units)
        translator = translator.prepaid(characters)
        if source == AUTO:
            sample = await asyncio.to_thread(_sample, units)
            source = translator.detect(sample, target).language
            if not translator.suits(options.glossary, source):
                options = replace(options, glossary=Glossary())
        running: deque[asyncio.Task[list[Translated]]] = deque()
        made: list[Translated] = []

        async def collect(most: int) -> None:
            while len(running) > most:
                made.extend(await running.popleft())
                if progress:
                    progress(len(made), len(units))

        try:
            for start, end in self._portions(units):
                part = units[start:end]
                work = self._portion(translator, part, start, source, target, deadline, options)
                running.append(asyncio.create_task(work))
                await collect(_TOGETHER - 1)
            await collect(0)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        flagged = sum(one.doubtful for one in made)
        written = await asyncio.to_thread(document.write, made)
        return TranslatedFile(written, source, len(units), flagged, characters)

    async def _read(self, form: Format, data: bytes) -> Document:
        """A thread cannot be stopped: its place is free when it has ended, whoever still waits."""
        async with self._readers:
            return await asyncio.to_thread(form.read, data)

    def _portions(self, units: Sequence[Unit]) -> Iterator[tuple[int, int]]:
        """Bounds of portions; one has units of one format only."""
        start = characters = 0
        for i, unit in enumerate(units):
            full = i - start == self._items or characters + len(unit.text) > self._characters
            if i > start and (full or unit.format != units[start].format):
                yield start, i
                start, characters = i, 0
            characters += len(unit.text)
        if start < len(units):
            yield start, len(units)

    async def _portion(
        self,
        translator: Translator,
        units: Sequence[Unit],
        first: int,
        source: str,
        target: str,
        deadline: Deadline,
        options: TranslateOptions,
    ) -> list[Translated]:
        for i, unit in enumerate(units, first + 1):
            if len(unit.text) > self._longest:
                raise TooLong(
                    f"file: paragraph {i} has more than {self._longest} characters", param="file"
                )
        texts = [unit.text for unit in units]
        own = replace(options, format=units[0].format)
        while True:
            try:
                result = await translator.run(
                    texts, source, target, deadline, options=own, param="file", unchanged=True
                )
                made = zip(units, result.translations, strict=True)
                return [Translated(t.text, bool(t.quality.flags) or not unit.fits(t.text))
                        for unit, t in made]  # fmt: skip
            except QueueFull:  # others' sequences will end: a long document can wait
                if deadline.left < _PAUSE_S:
                    raise
                await asyncio.sleep(_PAUSE_S)
            except AppError as error:
                if (error.param or "").startswith("file"):
                    error.param = "file"
                raise


def _sample(units: Sequence[Unit]) -> str:
    parts: list[str] = []
    size = 0
    for unit in units:
        parts.append(unit.plain)
        size += len(parts[-1])
        if size > _SAMPLE:
            break
    return "\n".join(parts)
