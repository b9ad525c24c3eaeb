"""Latency over HTTP against the rate of arrivals, ours and CTranslate2 behind a batching server.

Open loop: requests arrive as a Poisson process of a seed, their lengths as in real traffic
(texts.py, or `--texts FILE`), whether or not those before are answered. Each server is asked at
rising rates; the highest one whose 95th percentile of completion stays under a second is searched
for. Server and client share the machine's cores. Out come load-KIND.json, a table and a plot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.client import Load, arrivals, closed_loop, open_loop, summary
from benchmarks.command import parser, say
from benchmarks.models import prepare
from benchmarks.plots import lines
from benchmarks.servers import Server, layouts, our_command, peer_command
from benchmarks.tables import markdown
from benchmarks.texts import sentences

GOAL_S = 1.0  # of the 95th percentile of completion
STEP = 1.06  # two rates this close are the same
WARM, CLIENTS = 256, 32
Trial = dict[str, float]


def trial(url: str, load: Load, rate: float, options: argparse.Namespace) -> Trial:
    """Some seconds at one rate."""
    times = arrivals(rate, options.seconds, options.seed)
    texts = sentences(len(times), options.seed, options.texts)
    answers = asyncio.run(open_loop(url, load, texts, times))
    last = max(answer.planned + answer.done for answer in answers)
    return {"rate": rate, **summary(answers, max(last, options.seconds))}


def capacity(url: str, load: Load, options: argparse.Namespace) -> float:
    """Requests a second of 32 callers who wait: where the search begins."""
    texts = sentences(WARM, options.seed + 1, options.texts)
    for _ in range(2):  # the first warms up
        answers, seconds = asyncio.run(closed_loop(url, load, texts, CLIENTS))
    return len(answers) / seconds


def highest(ask: Callable[[float], Trial], start: float) -> tuple[float, list[Trial]]:
    """The highest rate that keeps the goal, to within a step, and all trials; 0 if none does."""
    trials = []

    def good(rate: float) -> bool:
        trials.append(ask(rate))
        return trials[-1]["done_p95"] < GOAL_S

    low, high = 0.0, 0.0
    rate = start
    while not (low and high):
        if good(rate):
            low, rate = rate, rate * 1.25
        else:
            high, rate = rate, rate / 1.25
        if rate < start / 10:
            return 0.0, trials
    while high / low > STEP:
        rate = (low * high) ** 0.5
        low, high = (rate, high) if good(rate) else (low, rate)
    return low, trials


def measure(server: Server, load: Load, options: argparse.Namespace) -> dict[str, Any]:
    start = capacity(server.url, load, options)
    say(f"  {start:,.0f} requests/s of {CLIENTS} callers")

    def ask(rate: float) -> Trial:
        found = trial(server.url, load, rate, options)
        say(f"  {rate:7.1f}/s: first p50 {found['first_p50']:.3f} p95 {found['first_p95']:.3f}, "
            f"done p50 {found['done_p50']:.3f} p95 {found['done_p95']:.3f} "
            f"p99 {found['done_p99']:.3f} s, {found['failed']:.0f} failed")  # fmt: skip
        return found

    if options.rates:
        trials = [ask(rate) for rate in options.rates]
        kept = [t["rate"] for t in trials if t["done_p95"] < GOAL_S]
        top = max(kept, default=0.0)
    else:
        top, trials = highest(ask, 0.8 * start)
        asked = {round(t["rate"], 6) for t in trials}
        low = [rate for share in (0.125, 0.25, 0.5) if (rate := share * top) not in asked]
        trials += [ask(rate) for rate in low if rate]
    trials.sort(key=lambda t: t["rate"])
    return {"closed_loop": start, "highest_rate": top, "trials": trials,
            "resident_mb": server.resident()}  # fmt: skip


def table(results: dict[str, Any]) -> str:
    rows = []
    for name, result in results.items():
        for t in result["trials"]:
            cells = [f"{t[f'{what}_p{q}'] * 1000:,.0f}" for what in ("first", "done")
                     for q in (50, 95, 99)]  # fmt: skip
            mark = " (highest)" if t["rate"] == result["highest_rate"] else ""
            rows.append((name, f"{t['rate']:.1f}{mark}", f"{t['requests_per_s']:.1f}",
                         f"{t['tokens_per_s']:,.0f}", *cells, f"{t['failed']:.0f}"))  # fmt: skip
    head = ("server", "arrivals/s", "answers/s", "tokens/s", "first ms p50", "p95", "p99",
            "done ms p50", "p95", "p99", "failed")  # fmt: skip
    ours = max((r["highest_rate"] for name, r in results.items() if name.startswith("ours")),
               default=0.0)  # fmt: skip
    ratios = [f"{name}: {result['highest_rate']:.1f} requests/s with p95 of completion under "
              f"{GOAL_S:g} s" + (f"; our best is {ours / result['highest_rate']:.2f} times that"
                                 if not name.startswith("ours") and ours
                                 and result["highest_rate"] else "")
              for name, result in results.items()]  # fmt: skip
    return markdown(head, rows) + "\n" + "\n".join(f"- {line}" for line in ratios) + "\n"


def draw(results: dict[str, Any], target: Path, title: str) -> None:
    series = {
        f"{name}, {label}": [(t["rate"], 1000 * t[key]) for t in result["trials"]
                             if t[key] < float("inf")]
        for name, result in results.items()
        for key, label in (("done_p50", "p50"), ("done_p95", "p95"))
    }  # fmt: skip
    lines(series, target, "arrivals/s", "ms to completion", title, level=1000 * GOAL_S)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    commands = parser("load", __doc__)
    add = commands.add_argument
    add("--model", default="bundled", help="folder of models (default %(default)s)")
    add("--servers", nargs="+", default=["ours", "CTranslate2"], help="beginnings of names")
    add("--server-python", default=sys.executable, help="interpreter that serves ours")
    add("--kind", choices=("translate", "generate"), default="translate")
    add("--target", default="de", help="language translated to (default %(default)s)")
    add("--tokens", type=int, default=64, help="most tokens generated (default %(default)s)")
    add("--texts", type=Path, help="lines to ask with, in place of made ones")
    add("--rates", type=float, nargs="+", help="only these rates, no search")
    add("--seconds", type=float, default=15.0, help="of a trial (default %(default)s)")
    add("--seed", type=int, default=0)
    return commands.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    place = prepare(options.out / "models", options.model, options.bundle)
    cores = len(os.sched_getaffinity(0))
    commands = {"ours": our_command(options.server_python, place / "int8")}
    if cores > 1:
        commands["ours, 1 engine"] = our_command(options.server_python, place / "int8", 1)
    for inter, intra in layouts(cores):
        commands[f"CTranslate2 {inter} x {intra}"] = peer_command(place, inter, intra)
    load = Load(options.kind, options.target, options.tokens)
    results = {}
    for name, command in commands.items():
        if not name.startswith(tuple(options.servers)):
            continue
        say(name)
        with Server(command) as server:
            results[name] = measure(server, load, options)
    title = f"load-{options.kind}"
    (options.out / f"{title}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (options.out / f"{title}.md").write_text(table(results), encoding="utf-8")
    draw(results, options.out / f"{title}.png", f"{options.kind}, {options.model} model")
    sys.stdout.write(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
