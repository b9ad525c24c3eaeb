"""What each rank of test_distributed runs: the runs named in a JSON file, one after the other.

Started by torchrun with the file's path. A run may be stopped before a step, its folder then
copied; or fail on one rank.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from training.config import RunConfig, build
from training.distributed import joined
from training.loop import Run
from training.stages import start


class Stopped(Exception):
    pass


def go(task: dict[str, Any], paths: dict[str, str]) -> None:
    real = Run._one_step

    def one_step(self: Run, batches: Any) -> dict[str, Any]:
        if self.step == task.get("stop"):
            raise Stopped
        if self.step == task.get("fail") and not self.ranks.first:
            raise RuntimeError("one rank fails")
        return real(self, batches)

    Run._one_step = one_step  # type: ignore[method-assign]
    folder = Path(task["folder"])
    try:
        start(
            build(RunConfig, task["recipe"], ""), Path(paths["corpus"]), folder,
            Path(paths["tokenizer"]), device="cpu", progress=False,
        )  # fmt: skip
    except Stopped:
        if "copy" in task and not Path(task["copy"]).exists():
            shutil.copytree(folder, task["copy"], symlinks=True)
    finally:
        Run._one_step = real  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = json.loads(Path(sys.argv[1]).read_text())
    with joined(torch.device("cpu")) as ranks:
        for task in work["tasks"]:
            with ranks.first_alone():
                pass  # what the last run left is whole
            go(task if ranks.first else {**task, "copy": task["folder"]}, work["paths"])
