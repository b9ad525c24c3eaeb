"""Translating test sets with a bundle or a checkpoint, and what may be said about the outputs.

Lines go in, one line one sequence without segmentation, through the same decoder and engine that
serve; texts with their finish reasons come out, in order. `evaluate` runs a folder of test sets
through such a translator, scores every direction, writes hypotheses and results into files and
counts outputs that hit the length limit or go round in circles.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from app.bundle import MANIFEST, Bundle, ScoreEntry
from app.engine.engine import Engine
from app.engine.request import Event, Failed, Finished, Request, Token
from app.engine.session import OnnxDecoder
from app.metrics import Metrics
from app.text.tokenizer import TextTokenizer
from export.errors import ExportError

if TYPE_CHECKING:
    from training.scores import TestSet

UNSPACED: Final = frozenset({"zh", "ja", "th"})  # languages whose words are not set apart
NGRAM, REPEATS = 4, 4


@dataclass(frozen=True, slots=True)
class Result:
    text: str
    finish_reason: str


Translate = Callable[[Sequence[str], str, str], list[Result]]


class BundleTranslator:
    """Greedy translation of lines by an engine of its own; a context manager."""

    def __init__(self, bundle: Bundle, *, batch: int = 32, threads: int | None = None) -> None:
        self._tokenizer = TextTokenizer.of(bundle)
        decoder = OnnxDecoder(bundle, slots=batch, threads=threads)
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
                jobs.append(_Job(at, prompt, room))
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
            [Request(job.prompt, job.room, job.listener(done), end_ids) for job in jobs]
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

    def __init__(self, at: int, prompt: tuple[int, ...], room: int) -> None:
        self.at, self.prompt, self.room = at, prompt, room
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


def translate_lines(
    bundle: str | Path | Bundle, lines: Sequence[str], source: str, target: str, *, batch: int = 32
) -> list[Result]:
    """Translate lines with a bundle, greedily."""
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    with BundleTranslator(opened, batch=batch) as translate:
        return translate(lines, source, target)


def goes_in_circles(text: str, language: str) -> bool:
    """Whether one 4-gram (of words; of characters where words are not set apart) comes 4 times."""
    units = list("".join(text.split())) if language in UNSPACED else text.split()
    grams = Counter(tuple(units[i : i + NGRAM]) for i in range(len(units) - NGRAM + 1))
    return any(count >= REPEATS for count in grams.values())


def is_bad(result: Result, language: str) -> bool:
    return result.finish_reason == "length" or goes_in_circles(result.text, language)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a test set in one direction."""

    set: str
    source: str
    target: str
    sentences: int
    bleu: float
    chrf: float
    bad: int
    seconds: float
    bleu_signature: str
    chrf_signature: str

    def entries(self) -> list[ScoreEntry]:
        """As a manifest records them."""
        where = {"set": self.set, "source": self.source, "target": self.target}
        return [
            ScoreEntry(**where, metric="BLEU", value=self.bleu, signature=self.bleu_signature),
            ScoreEntry(**where, metric="chrF", value=self.chrf, signature=self.chrf_signature),
        ]


def evaluate(
    translate: Translate,
    testsets: Iterable[TestSet],
    *,
    limit: int | None = None,
    out: Path | None = None,
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Translate and score every test set; hypotheses and results.json go to `out`."""
    from training.scores import score

    rows = []
    for test in testsets:
        sources, references = list(test.sources)[:limit], list(test.references)[:limit]
        begin = time.monotonic()
        results = translate(sources, test.source, test.target)
        seconds = time.monotonic() - begin
        scores = score([result.text for result in results], references, test.target)
        row = Row(
            set=test.name,
            source=test.source,
            target=test.target,
            sentences=len(results),
            bleu=round(scores.bleu, 2),
            chrf=round(scores.chrf, 2),
            bad=sum(is_bad(result, test.target) for result in results),
            seconds=round(seconds, 1),
            bleu_signature=scores.bleu_signature,
            chrf_signature=scores.chrf_signature,
        )
        rows.append(row)
        progress(row)
        if out is not None:
            _write_hypotheses(out, test.name, row, results)
            _write_results(out, rows)
    return rows


def open_translator(model: str | Path, batch: int) -> tuple[AbstractContextManager[Any], set[str]]:
    """A translator for a bundle or a checkpoint, and the directions ("en-de") it was made for."""
    folder = Path(model)
    if (folder / MANIFEST).is_file():
        bundle = Bundle.open(folder)
        pairs = {f"{a}-{b}" for a, b in bundle.manifest.pairs}
        return BundleTranslator(bundle, batch=batch), pairs
    if not (folder / "meta.json").is_file():
        raise ExportError(f"{str(folder)!r} is neither a bundle nor a checkpoint")
    from training.evaluate import checkpoint_translator  # torch

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    raw = checkpoint_translator(folder, batch)

    def translate(lines: Sequence[str], source: str, target: str) -> list[Result]:
        return [Result(text, reason) for text, reason in raw(lines, source, target)]

    return nullcontext(translate), {f"{a}-{b}" for a, b in meta.get("pairs", [])}


def select(
    testsets: Iterable[TestSet],
    served: Collection[str],
    sets: Sequence[str] = (),
    pairs: Sequence[str] = (),
) -> list[TestSet]:
    """The test sets asked for, of the directions that the model serves."""
    unknown = [pair for pair in pairs if pair not in served]
    if unknown:
        raise ExportError(f"pairs {unknown} are not among the model's: {sorted(served)}")
    chosen = [
        test
        for test in testsets
        if f"{test.source}-{test.target}" in (pairs or served)
        and (not sets or any(test.name == name or test.name.startswith(name) for name in sets))
    ]
    if not chosen:
        raise ExportError(f"no test set for sets {list(sets)} and pairs {sorted(pairs or served)}")
    return chosen


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, with the signatures once below."""
    width = max([3, *(len(row.set) for row in rows)])
    lines = [f"{'set':{width}}  pair   sentences   BLEU   chrF   bad %  seconds"]
    for row in rows:
        bad = 100 * row.bad / max(1, row.sentences)
        lines.append(
            f"{row.set:{width}}  {row.source}-{row.target}  {row.sentences:9}  {row.bleu:5.2f}"
            f"  {row.chrf:5.2f}  {bad:6.2f}  {row.seconds:7.1f}"
        )
    for signature in sorted({s for row in rows for s in (row.bleu_signature, row.chrf_signature)}):
        lines.append(signature)
    return "\n".join(lines)


def _write_hypotheses(out: Path, name: str, row: Row, results: Sequence[Result]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(result.text.replace("\n", " ") + "\n" for result in results)
    (out / f"{name}.{row.source}-{row.target}.hyp").write_text(text, encoding="utf-8")


def _write_results(out: Path, rows: Sequence[Row]) -> None:
    data = {
        "scores": [entry.model_dump() for row in rows for entry in row.entries()],
        "rows": [asdict(row) for row in rows],
    }
    (out / "results.json").write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n")
