"""The commands `gpt2-mt train tokenizer | pretrain | finetune`: arguments in, a run folder out.

Only the standard library is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

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
    parser.add_argument("--corpus", type=Path, required=True, help="folder of corpora")
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
    parser.add_argument("--corpus", type=Path, required=True, help="folder of corpora")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--tests", type=Path, action="append", default=[],
                        help="folder of test sets whose sentences must not be trained on; "
                        "may be repeated")  # fmt: skip
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                        help="replace a key of the recipe, as in --set steps=100")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=train_stage, stage=name)


def train_tokenizer(arguments: argparse.Namespace) -> int:
    from training.config import load_recipe
    from training.corpus import Cleaner, find_sources, read_lines, weight_of
    from training.errors import ConfigError
    from training.tokenizer import balanced_sample, load_tokenizer, report, table
    from training.tokenizer import train_tokenizer as learn

    data = load_recipe(arguments.recipe).data if arguments.recipe else None
    weights, list_file = (data.weights, data.list) if data else ({"*": 1.0}, "")
    named = [code.strip() for code in (arguments.languages or "").split(",") if code.strip()]
    languages = named or list(data.languages if data else ())
    if not languages:
        raise ConfigError("--languages: give codes, or a --recipe that has them")
    if arguments.megabytes <= 0:
        raise ConfigError(f"--megabytes {arguments.megabytes}: must be above 0")
    sets = {stem: _aligned(stem, languages) for stem in arguments.report}
    sources = find_sources(arguments.corpus, languages, list_file)
    cleaner = Cleaner()
    texts = balanced_sample(
        sources, {s.key: weight_of(s, weights) for s in sources}, arguments.megabytes, cleaner
    )
    tokenizer = learn((t for side in texts.values() for t in side), arguments.vocabulary, languages)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "tokenizer.json"
    tokenizer.save(str(file))
    tokenizer = load_tokenizer(file)
    sample = {code: side[:2000] for code, side in texts.items()}
    written = [f"sample\n{table(report(tokenizer, sample, aligned=False))}"]
    for stem, files in sets.items():
        lines = {code: list(read_lines(path)) for code, path in files.items()}
        written.append(f"{stem.name}\n{table(report(tokenizer, lines))}")
    (arguments.out / "report.txt").write_text("\n\n".join(written) + "\n", encoding="utf-8")
    sys.stdout.write("\n\n".join(written) + f"\n\nwrote {file}\n")
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
    import torch

    from training.config import load_recipe
    from training.errors import ConfigError
    from training.stages import start

    if arguments.threads < 0:
        raise ConfigError(f"--threads {arguments.threads}: must be 0 (all cores) or more")
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    config = load_recipe(arguments.recipe, dict(_setting(s) for s in arguments.set))
    if config.stage != arguments.stage:
        raise ConfigError(
            f"recipe {arguments.recipe!r}: is for stage {config.stage!r}, not {arguments.stage!r}"
        )
    checkpoint = start(
        config, arguments.corpus, arguments.out, arguments.tokenizer, arguments.init,
        arguments.tests, arguments.device, progress=not arguments.quiet,
    )  # fmt: skip
    sys.stdout.write((arguments.out / "corpus.txt").read_text(encoding="utf-8"))
    sys.stdout.write(f"wrote {checkpoint}\n")
    return 0


def _setting(text: str) -> tuple[str, Any]:
    """`key=value`, the value in TOML's notation; a bare word is a string."""
    import tomllib

    from training.errors import ConfigError

    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"--set {text}: must be KEY=VALUE")
    try:
        return key, tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key, value
