"""The console commands `gpt2-mt export`, `gpt2-mt build` and `gpt2-mt evaluate`.

Only the standard library is imported here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.routes import Routes
    from training.scores import Scores

_PRECISIONS = ("fp32", "int8", "int4", "fp16")
_PRECISION_HELP = "int8, int4 (smallest) and fp32 are for CPUs, fp16 is for GPUs"
_EXPORT_EXAMPLE = """examples:
  gpt2-mt export runs/base/checkpoint bundles/base
  gpt2-mt export runs/base/checkpoint bundles/base --testset testsets --scores results.json
  gpt2-mt export bundles/base bundles/base-gpu --precision fp16
  gpt2-mt export --restore bundles/base checkpoints/base
"""
_BUILD_EXAMPLE = """examples:
  gpt2-mt build cpu --corpus corpus --tests testsets --out runs/cpu
  gpt2-mt build my.toml --corpus corpus --tests testsets --out runs/my --set student.minutes=30
"""
_EVALUATE_EXAMPLE = """examples:
  gpt2-mt evaluate app/models/default testsets
  gpt2-mt evaluate runs/base/checkpoint testsets --pairs en-de,de-en --limit 200 --out results

Test sets are files <set>.<language>, or .gz of them, line by line translations of each other.
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    export = commands.add_parser(
        "export",
        help="turn a checkpoint into a bundle, or back",
        description="Turn a checkpoint into a bundle that serves, after verifying that it answers\n"
        "as the checkpoint does; or a bundle into one of another precision, without torch; or,\n"
        "with --restore, a bundle into a checkpoint.",
        epilog=_EXPORT_EXAMPLE,
        formatter_class=raw,
    )
    add = export.add_argument
    add("source", metavar="CHECKPOINT",
        help="checkpoint or bundle directory (with --restore: bundle)")  # fmt: skip
    add("target", metavar="BUNDLE", help="directory to write (with --restore: checkpoint)")
    add("--restore", action="store_true", help="bundle -> checkpoint, dequantised")
    add("--precision", choices=_PRECISIONS, default="int8",
        help=f"{_PRECISION_HELP} (default: %(default)s)")  # fmt: skip
    add("--kv-cache", choices=("int8", "float32"), default="int8",
        help="of int8 and int4: int8, calibrated on --text, takes a quarter of the memory "
        "(default: %(default)s)")  # fmt: skip
    add("--name", help="name of the bundle (default: that of its directory)")
    add("--testset", metavar="DIR", type=Path,
        help="folder of test sets on which int8 may lose 0.3 BLEU at most, int4 1.0; "
        "without one, bits per byte are compared")  # fmt: skip
    add("--text", metavar="FILE", type=Path,
        help="lines of text to calibrate and compare on "
        "(default: a few built-in sentences)")  # fmt: skip
    add("--scores", metavar="FILE", type=Path,
        help="results.json of `gpt2-mt evaluate`, to be recorded in the manifest")  # fmt: skip
    add("--pivoted", metavar="FILE", type=Path,
        help="results.json of `gpt2-mt evaluate --pivot LANGUAGE`: pairs that score better there "
        "than in --scores (of `--pivot none`) are translated through that language")  # fmt: skip
    add("--shortlist", metavar="FILE", type=Path,
        help="of `gpt2-mt train shortlist`: lets a server translate with it")  # fmt: skip
    add("--force", action="store_true", help="replace what is at the target")
    export.set_defaults(run=run_export)

    from training.arguments import add_pipeline_arguments

    build = commands.add_parser(
        "build",
        help="go through a pipeline and export its model as a bundle",
        description="Go through all stages of a pipeline, as `gpt2-mt train run` does, then\n"
        "export the final checkpoint to OUT/bundle, verify it and score it with the engine.",
        epilog=_BUILD_EXAMPLE,
        formatter_class=raw,
    )
    add_pipeline_arguments(build)
    build.add_argument("--precision", choices=_PRECISIONS, default="int8",
                       help=f"{_PRECISION_HELP} (default: %(default)s)")
    build.set_defaults(run=run_build)

    evaluate = commands.add_parser(
        "evaluate",
        help="translate and score test sets with a bundle or a checkpoint",
        description="Translate a folder of test sets, greedily or by beam, and score every\n"
        "direction (sacreBLEU's BLEU and chrF) and how outputs behave; then perplexity and bits\n"
        "per byte of the sets' lines (the first 100 of each) in each language. A bundle needs no\n"
        "torch, a checkpoint does.",
        epilog=_EVALUATE_EXAMPLE,
        formatter_class=raw,
    )
    add = evaluate.add_argument
    add("model", metavar="MODEL", type=Path, help="bundle or checkpoint directory")
    add("testdir", metavar="TESTDIR", type=Path, help="folder of test sets")
    add("--sets", type=_names, default=[], help="names of sets, comma-separated (default: all)")
    add("--pairs", type=_names, default=[], help="directions such as en-de,de-en")
    add("--limit", type=_positive, help="sentences per set and direction (default: all)")
    add("--batch", type=_positive, default=32,
        help="sequences at a time (default: %(default)s; not with --served)")  # fmt: skip
    add("--beam", type=_positive, default=1,
        help="size of the beam search; 1 is greedy (default: %(default)s)")  # fmt: skip
    add("--length-penalty", type=float, default=1.0,
        help="exponent of GNMT's length normalisation of beams (default: %(default)s)")  # fmt: skip
    add("--lowercase", action="store_true", help="fold case in BLEU, as published Multi30k scores")
    add("--shortlist", action="store_true", help="use the bundle's shortlist")
    add("--served", action="store_true",
        help="as the server answers: sentence by sentence, doubtful ones again by beam")
    add("--pivot", metavar="LANGUAGE",
        help="translate through this language where it is neither source nor target; none: "
        "directly (default: as the bundle says)")  # fmt: skip
    add("--out", type=Path, help="folder for hypotheses and results.json")
    evaluate.set_defaults(run=run_evaluate)


def run_export(args: argparse.Namespace) -> int:
    from export.bundle import convert_bundle, export_bundle, is_bundle, restore_checkpoint

    if args.restore:
        restored = restore_checkpoint(args.source, args.target, force=args.force)
        _say(f"{restored.path}: checkpoint of {restored.parameters:,} parameters")
        return 0
    via, scores = _routes(args)
    export = convert_bundle if is_bundle(args.source) else export_bundle
    bundle = export(
        args.source,
        args.target,
        precision=args.precision,
        kv_cache=args.kv_cache,
        name=args.name,
        scores=scores,
        via=via,
        force=args.force,
        testset=args.testset,
        texts=read_texts(args.text) if args.text else (),
        shortlist=args.shortlist,
    )
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    _say(f"{bundle.path}: {args.precision} bundle of {size / 1e6:.1f} MB, verified")
    for key, value in bundle.manifest.verification.items():
        _say(f"  {key}: {value}")
    return 0


def _routes(args: argparse.Namespace) -> Routes:
    """What --scores and --pivoted say for the manifest."""
    from export.errors import ExportError
    from export.routes import Routes, compare, recorded

    if args.scores is None:
        if args.pivoted is not None:
            raise ExportError("--pivoted is compared with --scores, which is missing")
        return Routes(None, ())
    return recorded(args.scores) if args.pivoted is None else compare(args.scores, args.pivoted)


def run_build(args: argparse.Namespace) -> int:
    from export.build import BUNDLE, build_bundle
    from training.cli import opened_runner
    from training.report import write_report
    from training.view import View

    with opened_runner(args) as runner:
        first = runner.ranks.first
        with View({**runner.states(), BUNDLE: "waiting"}, args.quiet or not first) as view:
            runner.run(view)
            if first:
                built = build_bundle(runner, args.precision, view)
        if first:
            report = write_report(runner.pipeline, args.out, built.rows, [built.section()])
            _say(f"wrote {built.bundle.path}\nwrote {report}")
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    from export.errors import ExportError
    from export.evaluate import evaluate, evaluate_text, open_translator, select
    from export.likelihood import table as text_table
    from export.routes import routed, ways
    from training.behaviour import table as behaviour_table
    from training.scores import table

    if args.served and args.pivot:
        raise ExportError("--pivot: not with --served, which goes as the bundle says")
    opened, served = open_translator(
        args.model, args.batch, args.beam, args.length_penalty, args.shortlist, args.served
    )
    if served or args.pairs:  # a model that was only pretrained does not translate
        tests = select(args.testdir, served, args.sets, args.pairs, args.limit)
        via = ways(args.model, served, args.pivot)
        with opened as translate:
            translator = translate if args.served else routed(translate, via)
            rows = evaluate(
                translator, tests, lowercase=args.lowercase, via=via, out=args.out,
                served=args.served, progress=_progress,
            )  # fmt: skip
        _say(table(rows) + "\n")
        seen = ((r.set, r.source, r.target, r.behaviour) for r in rows)
        _say(behaviour_table((a, b, c, d) for a, b, c, d in seen if d) + "\n")
    _say(text_table(evaluate_text(args.model, args.testdir, args.sets, args.limit, args.out)))
    return 0


def read_texts(path: Path, limit: int = 500) -> list[str]:
    """The first lines of a text file."""
    from export.errors import ExportError

    try:
        with path.open(encoding="utf-8") as file:
            return [line.rstrip("\n") for line in itertools.islice(file, limit)]
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"text file {str(path)!r} cannot be read: {error}") from None


def _progress(scores: Scores, seconds: float) -> None:
    sys.stderr.write(
        f"{scores.set} {scores.source}-{scores.target}: {scores.sentences} sentences in "
        f"{seconds:.1f} s, {scores.bleu:.2f} BLEU\n"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
