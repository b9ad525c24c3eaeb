"""What the commands of the serving benchmarks have in common: their arguments and their notes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.settings import DEFAULT_BUNDLE


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """With a folder for results and a bundle; `name` is the module's."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--out", type=Path, default=Path("build/bench"),
        help="folder for tables and figures (default: %(default)s)",
    )  # fmt: skip
    made.add_argument(
        "--bundle", type=Path, default=DEFAULT_BUNDLE, help="(default: the bundled model)"
    )
    return made


def say(text: str) -> None:
    """To the errors, at once: results alone go to standard output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
