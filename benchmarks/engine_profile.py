"""Where a decode step's time goes, and how near it comes to what the machine allows.

The real engine decodes full batches of 1, 8 and 32 rows of a bundle; of each step the time inside
the model's run, in sampling and in the rest of Python flows out, beside the bounds of roofline.py.
`--operators` adds the share of each kind of operator in the run, by ONNX Runtime's own profiler.
Run as `python -m benchmarks.engine_profile --help`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import onnxruntime as ort

from app.bundle import Bundle
from app.engine.engine import Engine
from app.engine.request import Event, Request, Sampling, Token
from app.engine.sampling import choose
from app.engine.session import OnnxDecoder
from app.metrics import Metrics
from app.tasks.attempts import SAMPLING
from benchmarks.command import parser
from benchmarks.roofline import Machine, Work, measure
from benchmarks.tables import markdown
from benchmarks.texts import BATCHES, prompts

GREEDY = Sampling()
SAMPLINGS = {"greedy": GREEDY, "translate": SAMPLING}
TOKENS = 128  # of each row; short rows first, so lengths are those of sentences and paragraphs


@dataclass
class Clock:
    """Spans of the model's runs (with their rows, 0 for a prefill) and of sampling, in order."""

    runs: list[tuple[int, float, float]] = field(default_factory=list)
    sampling: list[tuple[float, float]] = field(default_factory=list)

    def steps(self, rows: int) -> list[tuple[float, float, float]]:
        """Of each decode step with a next one behind: all of it, the run, the sampling."""
        found = []
        for (n, begin, end), (after, following, _) in zip(self.runs, self.runs[1:], strict=False):
            if n == after == rows:
                chosen = sum(b - a for a, b in self.sampling if begin <= a and b <= following)
                found.append((following - begin, end - begin, chosen))
        return found


class _Timed:
    """ONNX Runtime's session with its runs timed; everything else is the session's."""

    def __init__(self, inner: Any, clock: Clock) -> None:
        self._inner, self._clock, self.rows = inner, clock, 0

    def run_with_iobinding(self, binding: Any) -> None:
        begin = time.perf_counter()
        self._inner.run_with_iobinding(binding)
        self._clock.runs.append((self.rows, begin, time.perf_counter()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Decoder(OnnxDecoder):
    """Ours, with a clock between it and the runtime."""

    def watch(self, clock: Clock) -> Any:
        inner = self._session
        self._session = _Timed(inner, clock)  # type: ignore[assignment]
        return inner

    def decode(self, tokens: Any, lengths: Any) -> Any:
        self._session.rows = len(tokens)  # type: ignore[attr-defined]
        try:
            return super().decode(tokens, lengths)
        finally:
            self._session.rows = 0  # type: ignore[attr-defined]


@contextmanager
def _sampling(clock: Clock) -> Iterator[None]:
    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        chosen = choose(*arguments)
        clock.sampling.append((begin, time.perf_counter()))
        return chosen

    with mock.patch("app.engine.sequence.choose", timed):
        yield


def decode(
    decoder: OnnxDecoder, rows: list[list[int]], clock: Clock, sampling: Sampling = GREEDY
) -> None:
    """One batch through the engine, a fixed length."""
    engine, done, left = Engine(decoder, Metrics()), threading.Event(), len(rows)

    def hear(event: Event) -> None:
        nonlocal left
        if not isinstance(event, Token):
            left -= 1
            if not left:
                done.set()

    with _sampling(clock):
        engine.start()
        engine.submit([Request(tuple(r), TOKENS, hear, frozenset(), sampling) for r in rows])
        done.wait()
        engine.stop()


def profile(bundle: Bundle, batch: int, rounds: int, sampling: Sampling) -> dict[str, float]:
    """Medians, in seconds, of a step and its parts."""
    decoder, clock = _Decoder(bundle, slots=max(BATCHES)), Clock()
    inner = decoder.watch(Clock())
    rows = prompts(bundle, batch, seed=0)
    decode(decoder, rows, Clock(), sampling)
    decoder._session = _Timed(inner, clock)  # type: ignore[assignment]
    for _ in range(rounds):
        decode(decoder, rows, clock, sampling)
    whole, run, chosen = (statistics.median(part) for part in zip(*clock.steps(batch), strict=True))
    length = statistics.fmean(map(len, rows)) + TOKENS / 2
    return {"batch": batch, "step": whole, "run": run, "sampling": chosen,
            "rest": max(whole - run - chosen, 0.0), "length": length}  # fmt: skip


def operators(bundle: Bundle, batch: int) -> list[tuple[str, int, float]]:
    """Of decode runs at this batch, by kind of operator: how many a run, and microseconds a run."""
    clock, real = Clock(), ort.SessionOptions
    with tempfile.TemporaryDirectory() as folder:

        def profiling() -> Any:
            options = real()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "run")
            return options

        with mock.patch("onnxruntime.SessionOptions", profiling):
            decoder = _Decoder(bundle, slots=max(BATCHES))
        inner = decoder.watch(clock)
        rows = prompts(bundle, batch, seed=0)
        decode(decoder, rows, clock)
        events = json.loads(Path(inner.end_profiling()).read_text(encoding="utf-8"))
    runs = [e for e in events if e["name"] == "model_run"][-len(clock.runs) :]
    wanted = [r for r, (n, _, _) in zip(runs, clock.runs, strict=True) if n == batch]
    return by_operator(events, [(r["ts"], r["ts"] + r["dur"]) for r in wanted])


def by_operator(
    events: Sequence[dict[str, Any]], spans: Sequence[tuple[float, float]]
) -> list[tuple[str, int, float]]:
    """Of each operator how many kernels and how long in one of the spans; the longest first."""
    counts, times = Counter[str](), Counter[str]()
    kernels = sorted((e for e in events if e["name"].endswith("_kernel_time")), key=_begin)
    at = 0
    for event in kernels:
        while at < len(spans) and spans[at][1] < event["ts"]:
            at += 1
        if at < len(spans) and spans[at][0] <= event["ts"]:
            counts[event["args"]["op_name"]] += 1
            times[event["args"]["op_name"]] += event["dur"]
    return [(name, counts[name] // len(spans), t / len(spans)) for name, t in times.most_common()]


def _begin(event: dict[str, Any]) -> float:
    return float(event["ts"])


def table(found: list[dict[str, float]], work: Work, machine: Machine, precision: str) -> str:
    rows = []
    for f in found:
        batch, step = int(f["batch"]), f["step"]
        bounds = work.bounds(machine, precision, batch, f["length"])
        name = max(bounds, key=lambda key: bounds[key])
        parts = [f"{100 * f[part] / step:.1f} %" for part in ("run", "sampling", "rest")]
        rows.append((batch, f"{1000 * step:.2f}", f"{batch / step:,.0f}", *parts,
                     f"{1000 * bounds['memory']:.2f}", f"{1000 * bounds['arithmetic']:.2f}",
                     f"{bounds[name] / step:.2f} ({name})",
                     f"{bounds[name] / f['run']:.2f}"))  # fmt: skip
    head = ("batch", "step ms", "tokens/s", "model run", "sampling", "other Python",
            "memory bound ms", "arithmetic bound ms", "bound / step", "bound / run")  # fmt: skip
    peaks = (
        f"{work.weight_bytes / 1e6:.1f} MB of weights; {machine.cores} cores: "
        f"{machine.bytes_per_s / 1e9:.1f} GB/s read of a buffer of that size, "
        f"{machine.bytes_per_s_large / 1e9:.1f} of a large one, "
        f"{machine.fp32_per_s / 1e9:,.0f} GFLOP/s fp32, {machine.int8_per_s / 1e9:,.0f} Gop/s int8"
    )
    return f"{markdown(head, rows)}\n{peaks}\n"


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("engine_profile", __doc__)
    add = commands.add_argument
    add("--rounds", type=int, default=5, help="batches of each size (default %(default)s)")
    add("--sampling", choices=SAMPLINGS, default="greedy",
        help="as of which task: plain, or the rules that translations follow")  # fmt: skip
    add("--operators", action="store_true", help="time by operator as well")
    arguments = commands.parse_args(argv)
    bundle = Bundle.open(arguments.bundle)
    work, precision = Work.of(bundle), bundle.manifest.model.precision
    machine = measure(work.weight_bytes)
    found = [profile(bundle, batch, arguments.rounds, SAMPLINGS[arguments.sampling])
             for batch in BATCHES]  # fmt: skip
    name = f"{bundle.manifest.name}-{precision}-{arguments.sampling}"
    text = f"{name}\n\n{table(found, work, machine, precision)}"
    if arguments.operators:
        text += "".join(f"\nbatch {batch}\n\n" + operator_table(operators(bundle, batch))
                        for batch in BATCHES)  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"engine-{name}.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def operator_table(found: list[tuple[str, int, float]]) -> str:
    total = sum(time for _, _, time in found)
    rows = [(name, count, f"{time:,.0f}", f"{100 * time / total:.1f} %")
            for name, count, time in found]  # fmt: skip
    return markdown(("operator", "a run", "microseconds", "share"), rows)


if __name__ == "__main__":
    sys.exit(main())
