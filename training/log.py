"""The figures of a run: metrics.jsonl, TensorBoard and the progress bar.

One entry a step flows in. Ranks but the first write nothing. A log that a killed run left half
written is cut where the run goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm  # type: ignore[import-untyped]

from training.errors import SaveError

_BOARD = ("loss", "rate", "gradient_norm", "tokens_per_s")
_BAR = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}, {postfix}"


class Log:
    """Opens the logs of `folder` after `step` steps; TensorBoard hears of every `often`-th step.

    Raises SaveError when the disk takes no more.
    """

    def __init__(
        self, folder: Path, step: int, progress: float, often: int, on: bool, bar: bool
    ) -> None:
        self.often, self.on = often, on
        self.path = folder / "metrics.jsonl"
        if not on:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            truncate_log(self.path, step)
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise SaveError(f"{self.path}: could not be written: {error}") from None
        self.bar = tqdm(total=1000, unit="‰", disable=not bar, bar_format=_BAR, leave=None,
                        initial=_permille(progress))  # fmt: skip

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        if self.on:
            self.bar.close()
            self.board.close()
            self.file.close()

    def write(self, entry: dict[str, Any], progress: float) -> None:
        if not self.on:
            return
        step = entry["step"]
        try:
            self.file.write(json.dumps(entry) + "\n")
            for key, value in entry.items():
                if key.startswith("valid/") or step % self.often == 0 and key.startswith(_BOARD):
                    self.board.add_scalar(key, value, step)
        except OSError as error:
            raise SaveError(f"{self.path}: could not be written: {error}") from None
        self.bar.set_postfix_str(f"loss {entry['loss']:.3f}, {entry['tokens_per_s']:,.0f} tok/s")
        self.bar.update(_permille(progress) - self.bar.n)


def _permille(progress: float) -> int:
    return min(1000, int(1000 * progress))


def truncate_log(log: Path, step: int) -> None:
    """Drop the lines after `step` and a half-written last one: a resumed run writes them anew."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    temporary = log.with_suffix(".partial")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(log)
