"""What a vocabulary shortlist costs and gains: BLEU and tokens/s without and with it, in turn.

A bundle that was exported with one and a folder of test sets flow in; two tables flow out: of each
direction BLEU, the mean number of candidates and the share of the references' tokens among them;
of each batch size the medians of tokens/s (those of the texts that come out).
Run as `python -m benchmarks.shortlist --bundle BUNDLE --tests testsets`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.bundle import Bundle
from app.tasks.shortlist import Shortlist
from app.text.tokenizer import TextTokenizer
from benchmarks.command import parser, say
from benchmarks.tables import Spread, markdown
from benchmarks.texts import BATCHES
from export.evaluate import select
from export.translator import BundleTranslator
from training.scores import TestSet, score


def coverage(bundle: Bundle, test: TestSet) -> tuple[float, float]:
    """Mean number of candidates, and the share of the references' tokens that are among theirs."""
    tokenizer, shortlist = TextTokenizer.of(bundle), Shortlist.of(bundle)
    sizes, among, total = [], 0, 0
    for source, reference in zip(test.sources, test.references, strict=True):
        ids = tokenizer.encode(source, param="source")
        only = shortlist.candidates(test.source, test.target, ids)
        wanted = tokenizer.encode(reference, param="reference")
        total += len(wanted)
        if only is None:
            sizes.append(bundle.manifest.model.vocabulary)
            among += len(wanted)
        else:
            sizes.append(only.ids.size)
            among += int(np.isin(wanted, only.ids).sum())
    return statistics.fmean(sizes), among / total


def quality(bundle: Bundle, tests: Sequence[TestSet], threads: int | None) -> str:
    rows = []
    with (
        BundleTranslator(bundle, threads=threads) as off,
        BundleTranslator(bundle, threads=threads, shortlist=True) as on,
    ):
        for test in tests:
            say(f"BLEU of {test.name} {test.source}-{test.target}")
            bleu = []
            for translate in (off, on):
                found = translate(test.sources, test.source, test.target)
                bleu.append(score(test, found).bleu)
            size, share = coverage(bundle, test)
            rows.append((f"{test.name} {test.source}-{test.target}", len(test.sources),
                         *(f"{value:.2f}" for value in bleu), f"{bleu[1] - bleu[0]:+.2f}",
                         f"{size:,.0f}", f"{100 * share:.2f} %"))  # fmt: skip
    head = ("direction", "sentences", "BLEU off", "on", "difference", "candidates",
            "of reference tokens")  # fmt: skip
    return markdown(head, rows)


def speed(bundle: Bundle, tests: Sequence[TestSet], threads: int | None, rounds: int) -> str:
    count, rows = TextTokenizer.of(bundle).count, []
    for batch in BATCHES:
        speeds: dict[bool, list[float]] = {False: [], True: []}
        with (
            BundleTranslator(bundle, batch=batch, threads=threads) as off,
            BundleTranslator(bundle, batch=batch, threads=threads, shortlist=True) as on,
        ):
            for turn in range(rounds + 1):
                say(f"speed, batch {batch}, round {turn} of {rounds}")
                for listed, translate in ((False, off), (True, on)):
                    begin = time.perf_counter()
                    results = [result for test in tests
                               for result in translate(test.sources, test.source, test.target)]
                    taken = time.perf_counter() - begin
                    if turn:  # the first warms up
                        speeds[listed].append(sum(count(r.text) for r in results) / taken)
        ratios = [b / a for a, b in zip(speeds[False], speeds[True], strict=True)]
        rows.append((batch, Spread.of(speeds[False]), Spread.of(speeds[True]),
                     f"{statistics.median(ratios):.2f}"))  # fmt: skip
    return markdown(("batch", "tokens/s off", "on", "ratio"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("shortlist", __doc__)
    add = commands.add_argument
    add("--tests", type=Path, required=True, help="folder of test sets")
    add("--sets", nargs="+", default=[], help="names of sets (default: all)")
    add("--pairs", nargs="+", default=[], help="directions such as en-de (default: all)")
    add("--limit", type=int, help="sentences of a set and direction (default: all)")
    add("--sentences", type=int, default=64, help="of each, for speed (default %(default)s)")
    add("--rounds", type=int, default=5, help="turns of each batch size (default %(default)s)")
    add("--threads", type=int, help="(default: from the CPU quota)")
    arguments = commands.parse_args(argv)
    bundle = Bundle.open(arguments.bundle)
    served = {f"{a}-{b}" for a, b in bundle.manifest.pairs}
    where = (arguments.tests, served, arguments.sets, arguments.pairs)
    tests = select(*where, arguments.limit)
    some = select(*where, arguments.sentences)
    name = f"{bundle.manifest.name}-{bundle.manifest.model.precision}"
    text = f"{name}\n\n{quality(bundle, tests, arguments.threads)}\n"
    text += speed(bundle, some, arguments.threads, arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"shortlist-{name}.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
