"""Tokens per second beside other engines: same weights, prompts, lengths and cores, asked in turn.

Two models (models.py), greedy, 32 new tokens after prompts of 12 to 31, batches of 1, 8 and 32.
Each variant of an engine lives in its own process, stopped while others are asked (A B A B ...);
a whole call is timed, start-up is not. Every peer runs with each of the options below and stands in
the ratios with its best. Out come results.json, a table and two plots for each model; the share of
ids equal to our fp32's shows that all compute the same model.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from app.bundle import Bundle
from benchmarks.command import parser, say
from benchmarks.models import MODELS, prepare
from benchmarks.plots import lines
from benchmarks.servers import layouts
from benchmarks.tables import Spread, agreement, best, markdown
from benchmarks.texts import BATCHES, prompts
from benchmarks.worker import Ids, Worker, WorkerFailed

TOKENS = 32
CALLS = 4  # prompts of a turn at least: that many calls at batch 1
REFERENCE, MAIN = "ours fp32", "ours int8"
PACKAGES = ("onnxruntime", "ctranslate2", "transformers", "torch", "optimum", "optimum-onnx",
            "llama-cpp-python", "onnxruntime-genai")  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """An engine with options; of each family the best variant counts."""

    family: str
    detail: str
    engine: str
    form: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.family}, {self.detail}" if self.detail else self.family


def variants(cores: int) -> list[Variant]:
    """All of them; thread layouts are those that use all cores."""
    made = [Variant(f"ours {p}", "", "ours", p, {"threads": cores}) for p in ("int8", "fp32")]
    options: dict[str, Any] = {"threads": 1, "engines": cores}
    if cores > 1:
        made.append(Variant(MAIN, f"{cores} engines", "ours", "int8", options))
    for precision in ("int8", "fp32"):
        for inter, intra in layouts(cores):
            options = {"inter": inter, "intra": intra}
            made.append(Variant(f"CTranslate2 {precision}", f"{inter} x {intra} threads",
                                "ctranslate2", f"ctranslate2-{precision}", options))  # fmt: skip
    for precision, detail, key, value in (
        ("fp32", "sdpa", "attention", "sdpa"),
        ("fp32", "eager", "attention", "eager"),
        ("fp32", "static cache", "cache", "static"),
        ("bf16", "sdpa", "dtype", "bfloat16"),
    ):
        options = {"threads": cores, key: value}
        made.append(Variant(f"transformers {precision}", detail, "transformers", "checkpoint",
                            options))  # fmt: skip
    for precision in ("fp32", "int8"):
        for bound in (False, True):
            options = {"threads": cores, "binding": bound}
            made.append(Variant(f"optimum {precision}", "bound" if bound else "", "optimum",
                                f"optimum-{precision}", options))  # fmt: skip
    for precision, form in (("fp32", "llama-fp32"), ("Q8_0", "llama-q8")):
        for flash in (False, True):
            options = {"threads": cores, "flash": flash, "half": precision != "fp32"}
            made.append(Variant(f"llama.cpp {precision}", "flash attention" if flash else "",
                                "llama_cpp", form, options))  # fmt: skip
    made.append(Variant("onnxruntime-genai fp32", "", "genai", "genai-fp32", {}))
    return made


Asked = dict[str, tuple[Variant, Worker]]  # by the variant's name


def start(place: Path, wanted: Iterable[Variant], logs: Path) -> Asked:
    """A process for each variant whose form is there; the others are told with their reason."""
    workers: Asked = {}
    logs.mkdir(parents=True, exist_ok=True)
    for at, variant in enumerate(wanted):
        if not (place / variant.form).exists():
            say(f"  {variant.name}: not installed")
            continue
        log = logs / f"{place.name}-{at}.log"
        try:
            worker = Worker(variant.engine, place / variant.form, variant.options, log)
            workers[variant.name] = (variant, worker)
        except WorkerFailed as error:
            say(f"  {variant.name}: {error}")
    return workers


@contextmanager
def running(place: Path, wanted: Iterable[Variant], logs: Path) -> Iterator[Asked]:
    """`start`, and an end to all of them."""
    workers = start(place, wanted, logs)
    try:
        yield workers
    finally:
        for _, worker in workers.values():
            worker.close()


def turns(rows: Ids, batch: int) -> list[Ids]:
    """The calls of one turn."""
    return [rows[i * batch : (i + 1) * batch] for i in range(max(1, CALLS // batch))]


def turn(worker: Worker, calls: list[Ids], tokens: int = TOKENS) -> tuple[Ids, float]:
    """All new ids, and new tokens per second."""
    answers = [worker.ask(call, tokens) for call in calls]
    ids = [row for rows, _ in answers for row in rows]
    return ids, sum(map(len, ids)) / sum(seconds for _, seconds in answers)


def measure(
    workers: Asked, rows: Ids, rounds: int, batches: Sequence[int] = BATCHES,
    tokens: int = TOKENS, reference: str = REFERENCE,
) -> dict[str, Any]:  # fmt: skip
    """Speeds of each variant by batch, in turn; a variant that fails is left out from there on."""
    results: dict[str, Any] = {
        name: {**asdict(variant), "tokens_per_s": {}} for name, (variant, _) in workers.items()
    }
    alive = {name: worker for name, (_, worker) in workers.items()}
    for batch in batches:
        calls, answers = turns(rows, batch), dict[str, Ids]()
        for at in range(rounds + 1):
            for name, worker in list(alive.items()):
                try:
                    answers[name], speed = turn(worker, calls, tokens)
                except WorkerFailed as error:
                    say(f"  {name}, batch {batch}: {error}")
                    del alive[name]
                    continue
                if at:  # the first round warms up
                    of = results[name]["tokens_per_s"].setdefault(batch, [])
                    of.append(round(speed, 1))
        for name, ids in answers.items():
            if reference in answers:
                equal, share = agreement(ids, answers[reference])
                results[name].setdefault("agreement", {})[batch] = [equal, len(ids), share]
        say(f"  batch {batch}: " + ", ".join(
            f"{name} {Spread.of(results[name]['tokens_per_s'][batch]).median:,.0f}"
            for name in alive))  # fmt: skip
    return results


def families(results: dict[str, Any], batch: int) -> dict[str, tuple[str, Spread]]:
    """Of each family the best variant's name and speed."""
    found: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        if speeds := result["tokens_per_s"].get(batch):
            found.setdefault(result["family"], {})[name] = Spread.of(speeds).median
    chosen = {family: best(of) for family, of in found.items()}
    return {
        family: (name, Spread.of(results[name]["tokens_per_s"][batch]))
        for family, name in chosen.items()
    }


def ratio_table(results: dict[str, Any]) -> str:
    """Our int8 over each family's best variant, and who that was."""
    chosen = {batch: families(results, batch) for batch in BATCHES}
    rows = []
    for family in dict.fromkeys(result["family"] for result in results.values()):
        cells: list[str] = []
        for batch in BATCHES:
            name, speed = chosen[batch].get(family, ("", None))
            ours = chosen[batch].get(MAIN)
            detail = results[name]["detail"] if name else ""
            cells.append(f"{speed}{f', {detail}' if detail else ''}" if speed else "-")
            cells.append(f"{ours[1].median / speed.median:.2f}" if ours and speed else "-")
        rows.append((family, *cells))
    head = [h for b in BATCHES for h in (f"batch {b}: tokens/s (quartiles)", "int8 ours / it")]
    return markdown(("engine", *head), rows)


def variant_table(results: dict[str, Any]) -> str:
    """Every variant that was tried, and how many of its ids are our fp32's."""
    rows = []
    for name, result in results.items():
        speeds = [result["tokens_per_s"].get(batch) for batch in BATCHES]
        equal, of, share = result.get("agreement", {}).get(BATCHES[-1], (0, 0, 0.0))
        rows.append((name, *(str(Spread.of(s)) if s else "-" for s in speeds),
                     f"{equal} of {of}", f"{100 * share:.1f} %"))  # fmt: skip
    head = ("variant", *(f"batch {b}" for b in BATCHES), "rows equal", "ids before a difference")
    return markdown(head, rows)


def draw(results: dict[str, Any], place: Path, title: str) -> None:
    """Tokens/s and seconds a call against the batch."""
    speeds: dict[str, list[tuple[float, float]]] = {}
    delays: dict[str, list[tuple[float, float]]] = {}
    for batch in BATCHES:
        for family, (_, speed) in families(results, batch).items():
            speeds.setdefault(family, []).append((batch, speed.median))
            delays.setdefault(family, []).append((batch, 1000 * batch * TOKENS / speed.median))
    lines(speeds, place / f"{title}-tokens.png", "rows in a batch", "tokens/s", f"{title}")
    lines(delays, place / f"{title}-latency.png", "rows in a batch",
          f"ms for {TOKENS} tokens a row", f"{title}")  # fmt: skip


def facts() -> dict[str, Any]:
    """What was measured on, and with which versions."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"processor": processor(), "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(), "versions": installed}  # fmt: skip


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("peers", __doc__)
    add = commands.add_argument
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add("--only", nargs="+", default=[], help="beginnings of names of variants")
    add("--rounds", type=int, default=7, help="turns of each variant (default %(default)s)")
    arguments = commands.parse_args(argv)
    everything: dict[str, Any] = {"machine": facts(), "models": {}}
    for name in arguments.models:
        say(name)
        place = prepare(arguments.out / "models", name, arguments.bundle)
        wanted = [v for v in variants(len(os.sched_getaffinity(0)))
                  if not arguments.only or v.name.startswith(tuple(arguments.only))]  # fmt: skip
        rows = prompts(Bundle.open(place / "int8"), max(*BATCHES, CALLS), seed=0)
        with running(place, wanted, arguments.out / "logs") as workers:
            results = measure(workers, rows, arguments.rounds)
        everything["models"][name] = results
        text = f"{ratio_table(results)}\n{variant_table(results)}"
        (arguments.out / f"peers-{name}.md").write_text(text, encoding="utf-8")
        draw(results, arguments.out, f"peers-{name}")
        sys.stdout.write(f"\n{name}\n\n{text}")
    text = json.dumps(everything, indent=1)
    (arguments.out / "peers.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
