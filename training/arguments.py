"""Arguments that the training commands share, and what they mean.

Only the standard library is imported before a command runs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, required=True, help="folder of corpora")


def add_tests(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--tests", type=Path, action="append", default=[],
                        help=f"folder of test sets {what}; may be repeated")  # fmt: skip


def add_set(parser: argparse.ArgumentParser, form: str, what: str) -> None:
    parser.add_argument("--set", metavar=form, action="append", default=[], help=f"replace {what}")


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """What `gpt2-mt train run` and `gpt2-mt build` take alike."""
    parser.add_argument("pipeline", help="a TOML file, or the name of a built-in pipeline")
    add_corpus(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for stages and report")
    add_tests(parser, "to score on, whose sentences must not be trained on")
    parser.add_argument("--limit", type=int, help="sentences a test set and direction to score "
                        "(default: the pipeline's, 200; 0: all)")  # fmt: skip
    add_set(parser, "STAGE.KEY=VALUE",
             "a key, as in --set student.minutes=30; defaults.KEY and report.KEY too")  # fmt: skip
    parser.add_argument("--redo", metavar="STAGE", action="append", default=[],
                        help="make a stage and all that builds on it anew; may be repeated")
    add_machine(parser)


def set_threads(threads: int) -> None:
    import torch

    from training.errors import ConfigError

    if threads < 0:
        raise ConfigError(f"--threads {threads}: must be 0 (all cores) or more")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks of torchrun on this machine
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // here))


def codes(text: str | None) -> list[str]:
    return [code.strip() for code in (text or "").split(",") if code.strip()]


def setting(text: str) -> tuple[str, Any]:
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
