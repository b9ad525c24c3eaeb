"""The console command `gpt2-mt`: mounts the commands of the three packages, lazily.

Arguments flow in; each command's module is light until it runs. The only file above all packages.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import app.cli
import export.cli
import training.cli


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt2-mt",
        description="From your own corpora to a monitored translation and generation service.",
        epilog="example:\n  gpt2-mt translate --target de 'Good morning!'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gpt2-mt {version('gpt2-mt')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for package in (training.cli, export.cli, app.cli):
        package.register(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; user errors end with status 2 and one line, an interrupt with 130."""
    chosen = build_parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {error}: this command needs an extra; see README, Installing\n")
        return 2
    except Exception as error:
        if not getattr(error, "user_error", False):
            raise
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # torchrun's; each says it
        rank = f" (rank {os.environ['RANK']})" if several else ""
        sys.stderr.write(f"error{rank}: {error}\n")
        return 2
