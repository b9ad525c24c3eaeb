"""The commands `gpt2-mt train tokenizer | pretrain | finetune | adapt | run | ...`.

Only the standard library is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from training.arguments import (
    add_corpus,
    add_machine,
    add_pipeline_arguments,
    add_set,
    add_tests,
    codes,
    set_threads,
    setting,
)

if TYPE_CHECKING:
    from training.runner import Runner

_RAW = argparse.RawDescriptionHelpFormatter


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser(
        "train",
        help="train a tokenizer, pretrain a model, fine-tune it to translation",
        description="Train a tokenizer, pretrain a model, fine-tune it to translation.",
        epilog="example:\n  gpt2-mt train tokenizer --corpus corpus --languages en,de "
        "--out runs/tokenizer",
        formatter_class=_RAW,
    )
    stages = train.add_subparsers(title="stages", metavar="STAGE", required=True)
    _add_tokenizer(stages)
    _add_stage(stages, "pretrain", "learn to model the corpus's languages", "pretrain-cpu")
    _add_stage(stages, "finetune", "learn to translate between all its languages", "finetune-cpu")
    _add_adapt(stages)
    _add_teach(stages)
    _add_run(stages)
    _add_average(stages)
    _add_shortlist(stages)


def _add_tokenizer(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = stages.add_parser(
        "tokenizer",
        help="train one byte-level BPE for all languages",
        description="Train one byte-level BPE on a language-balanced sample and report how well\n"
        "it serves each language.",
        epilog="example:\n  gpt2-mt train tokenizer --corpus corpus --languages en,de,fr,zh "
        "--vocabulary 16384 --out runs/tokenizer",
        formatter_class=_RAW,
    )
    add_corpus(parser)
    parser.add_argument("--languages", help="codes, separated by commas; default: the recipe's")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json")
    parser.add_argument("--vocabulary", type=int, default=16384, help="entries (default 16384)")
    parser.add_argument("--megabytes", type=float, default=32, help="size of the sample (32)")
    parser.add_argument("--recipe", help="take file list, weights and languages from this recipe")
    parser.add_argument("--report", metavar="SET", type=Path, action="append", default=[],
                        help="aligned lines SET.<lang>[.gz] to report on; "
                        "may be repeated")  # fmt: skip
    parser.set_defaults(run=train_tokenizer)


def _add_stage(
    stages: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, recipe: str
) -> None:
    parser = stages.add_parser(
        name,
        help=text,
        description=f"{name.capitalize()}: {text}. A run that was stopped goes on where it stood\n"
        "when the same command is given again.",
        epilog=f"example:\n  gpt2-mt train {name} {recipe} --corpus corpus "
        f"--tokenizer runs/tokenizer/tokenizer.json --out runs/{name} --tests corpus/test",
        formatter_class=_RAW,
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a built-in recipe")
    add_corpus(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--add", metavar="DIR", type=Path, action="append", default=[],
                        help="folder whose sources join the corpus; may be repeated")
    add_tests(parser, "whose sentences must not be trained on")
    add_set(parser, "KEY=VALUE", "a key of the recipe, as in --set steps=100")
    add_machine(parser)
    parser.set_defaults(run=train_stage, stage=name)


def _add_teach(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = stages.add_parser(
        "teach",
        help="write a teacher's translations of a corpus, for a student to learn from",
        description="Write a checkpoint's translations of a corpus as NAME.en-to-de.tsv.gz\n"
        "(source, translation, mean log-probability a token), which a corpus folder may hold.\n"
        "What is done is skipped; a teacher that was stopped goes on where it stood.",
        epilog="example:\n  gpt2-mt train teach runs/teacher/checkpoint --corpus corpus "
        "--direction en-de --out taught",
        formatter_class=_RAW,
    )
    parser.add_argument("checkpoint", type=Path, help="the teacher's checkpoint folder")
    add_corpus(parser)
    parser.add_argument("--direction", required=True, help="as in en-de")
    parser.add_argument("--sources", metavar="GLOB", nargs="+", default=["*"],
                        help="names of sources, as in 'mono/*' (default: all with a side in the "
                        "direction's first language)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for the translations")
    parser.add_argument("--beam", type=int, default=1, help="hypotheses at a time (1: greedy)")
    parser.add_argument("--minutes", type=float, default=0.0,
                        help="stop at this time with a sample of the texts (default: all of them)")
    add_tests(parser, "whose sentences must not be translated")
    add_machine(parser)
    parser.set_defaults(run=train_teach)


def train_teach(arguments: argparse.Namespace) -> int:
    from training.corpus import LeakCheck
    from training.stages import find_device
    from training.teach import TranslateConfig, teach, texts_to_translate

    set_threads(arguments.threads)
    config = TranslateConfig(str(arguments.checkpoint), arguments.direction,
                             tuple(arguments.sources), beam=arguments.beam,
                             minutes=arguments.minutes)  # fmt: skip
    counts = teach(
        arguments.checkpoint, texts_to_translate(config, arguments.corpus), config.direction,
        arguments.out, config.beam, LeakCheck.of_folders(arguments.tests),
        find_device(arguments.device), not arguments.quiet, config.minutes,
    )  # fmt: skip
    for file, tally in counts.items():
        left = "".join(f", {n} {reason}" for reason, n in sorted(tally.items()) if reason != "kept")
        sys.stdout.write(f"wrote {arguments.out / file}: {tally['kept']} translations{left}\n")
    return 0


def _add_average(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = stages.add_parser(
        "average",
        help="average the weights of checkpoints",
        description="Write the mean of checkpoints' weights: of runs that went on from the same\n"
        "checkpoint, or of copies taken along one run.",
        epilog="example:\n  gpt2-mt train average a/checkpoint b/checkpoint --out mean",
        formatter_class=_RAW,
    )
    parser.add_argument("checkpoints", metavar="CHECKPOINT", type=Path, nargs="+",
                        help="checkpoint folder")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="the new checkpoint's folder")
    parser.set_defaults(run=average)


def average(arguments: argparse.Namespace) -> int:
    from training.averaging import average_checkpoints

    average_checkpoints(arguments.checkpoints, arguments.out)
    count = len(arguments.checkpoints)
    sys.stdout.write(f"wrote {arguments.out}: the mean of {count} checkpoints\n")
    return 0


def _add_shortlist(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = stages.add_parser(
        "shortlist",
        help="learn which tokens translations may need",
        description="Learn from pairs which tokens translations need; see export --shortlist.",
        epilog="example:\n  gpt2-mt train shortlist --corpus corpus --tokenizer t.json --out s.npz",
        formatter_class=_RAW,
    )
    add_corpus(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="the file, NAME.npz")
    parser.add_argument("--languages", default="", help="codes, separated by commas; default: all")
    parser.add_argument("--sources", metavar="GLOB", nargs="+", default=["*"], help="(all)")
    for name, value, text in (("pairs", 30_000, "of a source at most, evenly spread"),
                              ("candidates", 40, "target tokens of each source token"),
                              ("common", 1000, "target tokens that may always come")):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value})")
    add_tests(parser, "whose sentences must not be learnt from")
    parser.set_defaults(run=train_shortlist)


def train_shortlist(arguments: argparse.Namespace) -> int:
    from training.corpus import Cleaner, LeakCheck
    from training.shortlist import Options, make_shortlist

    options = Options(arguments.pairs, arguments.candidates, arguments.common)
    cleaner = Cleaner(LeakCheck.of_folders(arguments.tests))
    text = make_shortlist(arguments.corpus, arguments.tokenizer, arguments.out, options,
                          codes(arguments.languages), arguments.sources, cleaner)  # fmt: skip
    sys.stdout.write(f"{text}\nwrote {arguments.out}\n")
    return 0


def _add_adapt(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = stages.add_parser(
        "adapt",
        help="go on with a checkpoint on your own pairs or text",
        description="Go on with a checkpoint on your own translations, or with --text on running\n"
        "text, and compare it before and after on the old and the new domain. Without\n"
        "--new-tests some of your lines are held out.",
        epilog="example:\n  gpt2-mt train adapt runs/finetune/checkpoint --data mine.en-de.tsv "
        "--out runs/mine --old-tests testsets --set minutes=5",
        formatter_class=_RAW,
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder (a bundle: see export)")
    parser.add_argument("--data", type=Path, required=True,
                        help="NAME.en-de.tsv[.gz] or a corpus folder; text: a file or folder")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--text", action="store_true", help="the data is running text")
    parser.add_argument("--language", default="", metavar="CODE", help="of --text")
    parser.add_argument("--old-tests", type=Path, metavar="DIR", help="test sets as before")
    parser.add_argument("--new-tests", type=Path, metavar="DIR", help="test sets of the new domain")
    parser.add_argument("--limit", type=int, default=100,
                        help="lines of each test set and direction to score (100; 0: all)")
    add_set(parser, "KEY=VALUE", "a key of the recipe, as in --set minutes=30")
    add_machine(parser)
    parser.set_defaults(run=train_adapt)


def train_adapt(arguments: argparse.Namespace) -> int:
    from training.adapt import Request, adapt
    from training.errors import ConfigError

    set_threads(arguments.threads)
    if arguments.limit < 0:
        raise ConfigError(f"--limit {arguments.limit}: must be 0 (all) or more")
    names = ("checkpoint", "data", "out", "text", "language", "old_tests", "new_tests", "limit")
    settings = dict(setting(text) for text in arguments.set)
    request = Request(**{name: getattr(arguments, name) for name in names}, settings=settings)

    def tell(text: str) -> None:
        if not arguments.quiet:
            sys.stderr.write(f"{text}\n")

    text = adapt(request, arguments.device, not arguments.quiet, tell)
    sys.stdout.write(f"{text}\nwrote {arguments.out / 'checkpoint'}\n")
    return 0


def _add_run(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = stages.add_parser(
        "run",
        help="go through all stages of a pipeline, from corpus to report",
        description="Go through all stages of a pipeline, from tokenizer to final checkpoint, and\n"
        "write a report. What is done is skipped; a run that was stopped goes on where it stood\n"
        "when the same command is given again.",
        epilog="example:\n  gpt2-mt train run cpu --corpus corpus --tests testsets --out runs/cpu",
        formatter_class=_RAW,
    )
    add_pipeline_arguments(parser)
    parser.set_defaults(run=train_pipeline)


@contextmanager
def opened_runner(arguments: argparse.Namespace) -> Iterator[Runner]:
    """The checked pipeline of a command's arguments, alone in its folder and ready to run."""
    from training.distributed import device_of_rank, joined
    from training.pipeline import load_pipeline
    from training.runner import Runner, Where
    from training.stages import find_device

    settings = [setting(text) for text in arguments.set]
    if arguments.limit is not None:
        settings.append(("report.limit", arguments.limit))
    set_threads(arguments.threads)
    pipeline = load_pipeline(arguments.pipeline, settings)
    where = Where(arguments.corpus, arguments.out, tuple(arguments.tests), arguments.device)
    with joined(device_of_rank(find_device(arguments.device))) as ranks:
        runner = Runner(pipeline, where, arguments.redo, ranks)
        with runner.alone():
            yield runner


def train_pipeline(arguments: argparse.Namespace) -> int:
    from training.report import write_report
    from training.view import View

    with opened_runner(arguments) as runner:
        with View(runner.states(), arguments.quiet or not runner.ranks.first) as view:
            checkpoint = runner.run(view)
        if runner.ranks.first:
            report = write_report(runner.pipeline, arguments.out)
            sys.stdout.write(f"wrote {checkpoint}\nwrote {report}\n")
    return 0


def train_tokenizer(arguments: argparse.Namespace) -> int:
    from training.corpus import find_sources, read_lines
    from training.errors import ConfigError
    from training.pipeline import stage_data
    from training.tokenizer import make_tokenizer

    data = stage_data(arguments.recipe) if arguments.recipe else None
    weights, list_file = (data.weights, data.list) if data else ({"*": 1.0}, "")
    languages = codes(arguments.languages) or list(data.languages if data else ())
    if not languages:
        raise ConfigError("--languages: give codes, or a --recipe that has them")
    if arguments.megabytes <= 0:
        raise ConfigError(f"--megabytes {arguments.megabytes}: must be above 0")
    sets = {stem.name: {code: list(read_lines(path)) for code, path in files.items()}
            for stem in arguments.report for files in [_aligned(stem, languages)]}  # fmt: skip
    sources = find_sources(arguments.corpus, languages, list_file)
    text = make_tokenizer(sources, weights, languages, arguments.vocabulary, arguments.megabytes,
                          arguments.out, sets)  # fmt: skip
    sys.stdout.write(f"{text}\nwrote {arguments.out / 'tokenizer.json'}\n")
    return 0


def _aligned(stem: Path, languages: list[str]) -> dict[str, Path]:
    """The files of an aligned set by language; raises CorpusError if there is none."""
    from training.errors import CorpusError

    files = {c: p for c in languages for e in ("", ".gz")
             if (p := stem.with_name(f"{stem.name}.{c}{e}")).exists()}  # fmt: skip
    if not files:
        raise CorpusError(f"--report {stem}: no file {stem.name}.<language>[.gz]")
    return files


def train_stage(arguments: argparse.Namespace) -> int:
    from training.errors import ConfigError
    from training.pipeline import stage_recipe
    from training.stages import start

    set_threads(arguments.threads)
    given = {"init": arguments.init, "adds": arguments.add}
    config = stage_recipe(arguments.recipe, dict(setting(s) for s in arguments.set),
                          [key for key, value in given.items() if value])  # fmt: skip
    if config.stage != arguments.stage:
        raise ConfigError(
            f"recipe {arguments.recipe!r}: is for stage {config.stage!r}, not {arguments.stage!r}"
        )
    checkpoint = start(
        config, arguments.corpus, arguments.out, arguments.tokenizer, arguments.init,
        arguments.tests, arguments.device, not arguments.quiet, arguments.add,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write((arguments.out / "corpus.txt").read_text(encoding="utf-8"))
        sys.stdout.write(f"wrote {checkpoint}\n")
    return 0
