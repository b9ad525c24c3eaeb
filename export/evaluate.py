"""Translating and scoring test sets with a bundle or a checkpoint.

Lines go in, one line one sequence without segmentation, through the same decoder and engine that
serve; texts with their finish reasons come out, in order. `evaluate` runs a folder of test sets
through such a translator, scores every direction and writes hypotheses and results into files.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from app.bundle import MANIFEST, Bundle, ScoreEntry
from app.engine.engine import Engine
from app.engine.request import Beam, Candidates, Event, Failed, Finished, Request, Token
from app.engine.session import OnnxDecoder
from app.metrics import Metrics
from app.tasks.attempts import SAMPLING
from app.tasks.shortlist import Shortlist
from app.text.tokenizer import TextTokenizer
from export.errors import ExportError
from export.likelihood import TextLoss, measure_of

if TYPE_CHECKING:
    from training.scores import Scores, TestSet


class Result(NamedTuple):
    text: str
    finish_reason: str


Translate = Callable[[Sequence[str], str, str], Sequence[tuple[str, str]]]
IDENTIFIED = ("en", "zh", "de", "fr", "es", "ja", "ru", "cs", "it", "nl", "pt")  # told apart


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


def translate_lines(
    bundle: str | Path | Bundle, lines: Sequence[str], source: str, target: str, *, batch: int = 32
) -> list[Result]:
    """Translate lines with a bundle, greedily."""
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    with BundleTranslator(opened, batch=batch) as translate:
        return translate(lines, source, target)


def evaluate(
    translate: Translate,
    tests: Iterable[TestSet],
    *,
    lowercase: bool = False,
    pivot: str | None = None,
    out: Path | None = None,
    progress: Callable[[Scores, float], None] = lambda scores, seconds: None,
) -> list[Scores]:
    """Translate and score every test set; hypotheses and results.json go to `out`.

    `lowercase` folds case in BLEU, `pivot` is recorded.
    """
    from training.behaviour import observe
    from training.rules import Identifier
    from training.scores import score

    rows: list[Scores] = []
    identifier = Identifier(IDENTIFIED)
    for test in tests:
        begin = time.monotonic()
        results = translate(test.sources, test.source, test.target)
        behaviour = observe(test, results, identifier)
        rows.append(replace(score(test, results, lowercase), behaviour=behaviour))
        progress(rows[-1], time.monotonic() - begin)
        if out is not None:
            _write_hypotheses(out, test, results)
            _write_results(out, rows, pivot)
    return rows


def routed(translate: Translate, via: Mapping[str, str]) -> Translate:
    """The pairs ("de-zh") in `via` in two steps, through the language named there."""

    def run(lines: Sequence[str], source: str, target: str) -> Sequence[tuple[str, str]]:
        through = via.get(f"{source}-{target}")
        if through is None:
            return translate(lines, source, target)
        middle = translate(lines, source, through)
        ends = translate([text for text, _ in middle], through, target)
        return [
            (text, "length" if first == "length" else reason)
            for (_, first), (text, reason) in zip(middle, ends, strict=True)
        ]

    return run


def ways(model: Path, served: Collection[str], pivot: str | None) -> dict[str, str]:
    """Which pairs go through which language: those of the bundle, or, where they can, all
    through `pivot`; none for "none"."""
    if pivot == "none":
        return {}
    if pivot is None:
        known = (model / MANIFEST).is_file()
        return dict(Bundle.open(model).manifest.via) if known else {}
    found = {}
    for pair in served:
        source, target = pair.split("-", 1)
        if {f"{source}-{pivot}", f"{pivot}-{target}"} <= set(served):
            found[pair] = pivot
    if not found:
        raise ExportError(f"--pivot {pivot}: no pair of {sorted(served)} can go through it")
    return found


def better_through(direct: Path, through: Path) -> dict[str, str]:
    """From two results.json, the second of `evaluate --pivot`: the pairs whose mean BLEU over the
    sets of both is higher through the other language, and that language."""
    one, two = (_read_results(path) for path in (direct, through))
    if not (pivot := two["pivot"]):
        raise ExportError(f"{str(through)!r} is not of `evaluate --pivot LANGUAGE`")
    bleu: dict[str, list[tuple[float, float]]] = {}
    former = {(r["set"], r["source"], r["target"]): r["bleu"] for r in one["rows"]}
    for row in two["rows"]:
        key = row["set"], row["source"], row["target"]
        if key in former and pivot not in key[1:]:
            bleu.setdefault(f"{key[1]}-{key[2]}", []).append((former[key], row["bleu"]))
    return {
        pair: pivot for pair, found in sorted(bleu.items())
        if sum(b for _, b in found) > sum(a for a, _ in found)
    }  # fmt: skip


def _read_results(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {"pivot": data.get("pivot"), "rows": [*data["rows"]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"scores file {str(path)!r} cannot be read: {error}") from None


def evaluate_text(
    model: str | Path, folder: Path, sets: Sequence[str] = (), limit: int | None = None,
    out: Path | None = None,
) -> dict[str, TextLoss]:  # fmt: skip
    """Perplexity and bits per byte of the test sets' lines in each of the model's languages."""
    from training.scores import lines_of

    lines = lines_of(folder, languages_of(Path(model)), sets, limit or 100)
    measure = measure_of(model)
    losses = {language: measure(texts) for language, texts in lines.items()}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        data = {
            code: {**loss._asdict(), "perplexity": loss.perplexity, "bits_per_byte": loss.per_byte}
            for code, loss in losses.items()
        }
        (out / "languages.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return losses


def languages_of(folder: Path) -> list[str]:
    """The languages of a bundle or a checkpoint."""
    if (folder / MANIFEST).is_file():
        return list(Bundle.open(folder).manifest.languages)
    if not (folder / "meta.json").is_file():
        raise ExportError(f"{str(folder)!r} is neither a bundle nor a checkpoint")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return list(meta.get("languages", {}))


def open_translator(
    model: str | Path,
    batch: int,
    beam: int = 1,
    length_penalty: float = 1.0,
    shortlist: bool = False,
) -> tuple[AbstractContextManager[Translate], set[str]]:
    """A translator for a bundle or a checkpoint, and the directions ("en-de") it was made for."""
    folder = Path(model)
    if (folder / MANIFEST).is_file():
        bundle = Bundle.open(folder)
        pairs = {f"{a}-{b}" for a, b in bundle.manifest.pairs}
        opened = BundleTranslator(
            bundle, batch=batch, beam=beam, length_penalty=length_penalty, shortlist=shortlist
        )
        return opened, pairs
    if shortlist:
        raise ExportError(f"--shortlist: {str(folder)!r} is no bundle")
    if not (folder / "meta.json").is_file():
        raise ExportError(f"{str(folder)!r} is neither a bundle nor a checkpoint")
    from training.evaluate import checkpoint_translator  # torch

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    pairs = {f"{a}-{b}" for a, b in meta.get("pairs", [])}
    translator = checkpoint_translator(folder, batch, beam=beam, length_penalty=length_penalty)
    return nullcontext(translator), pairs


def select(
    folder: Path,
    served: Collection[str],
    sets: Sequence[str] = (),
    pairs: Sequence[str] = (),
    limit: int | None = None,
) -> list[TestSet]:
    """The test sets asked for, of the directions that the model serves."""
    from training.scores import find_sets

    unknown = [pair for pair in pairs if pair not in served]
    if unknown:
        raise ExportError(f"pairs {unknown} are not among the model's: {sorted(served)}")
    languages = sorted({code for pair in served for code in pair.split("-", 1)})
    wanted = set(pairs or served)
    found = find_sets(folder, languages, sets, limit or 0)
    tests = [test for test in found if f"{test.source}-{test.target}" in wanted]
    if not tests:
        raise ExportError(f"{str(folder)!r} has no test set for {sorted(wanted)}")
    return tests


def entries(scores: Scores) -> list[ScoreEntry]:
    """Scores as a manifest records them."""
    where = {"set": scores.set, "source": scores.source, "target": scores.target}
    return [
        ScoreEntry(**where, metric="BLEU", value=scores.bleu, signature=scores.bleu_signature),
        ScoreEntry(**where, metric="chrF", value=scores.chrf, signature=scores.chrf_signature),
    ]


def _write_hypotheses(out: Path, test: TestSet, results: Sequence[tuple[str, str]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(" ".join(text.splitlines()) + "\n" for text, _ in results)
    (out / f"{test.name}.{test.source}-{test.target}.hyp").write_text(text, encoding="utf-8")


def _write_results(out: Path, rows: Sequence[Scores], pivot: str | None) -> None:
    data: dict[str, object] = {
        "pivot": pivot,
        "scores": [entry.model_dump() for row in rows for entry in entries(row)],
        "rows": [row.as_dict() for row in rows],
    }
    text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
    (out / "results.json").write_text(text, encoding="utf-8")
