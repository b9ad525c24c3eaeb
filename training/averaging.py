"""Averages of weights: over the steps of a run (EMA), over its last snapshots, over checkpoints.

Weights of a run flow in after each step, one smoothed copy of them flows out: what is validated and
what becomes the checkpoint. Averaging the end of a run does the work of a lower rate there
(Polyak & Juditsky 1992; Izmailov et al. 2018); translation models are commonly averaged over their
last checkpoints (Vaswani et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import file_sha256, load_checkpoint, save_checkpoint
from training.distributed import load_weights, local
from training.errors import CheckpointError

START = 0.8  # share of the run after which snapshots are taken


class Average:
    """A smoothed copy of `weights`, which it reads anew at each `update`.

    `ema` is the decay of an exponential moving average; it starts lower, at (1 + n) / (10 + n)
    after n updates, so that the initial weights are soon forgotten. `snapshots` are taken evenly
    over the last fifth of the run and kept as one running mean. One of the two is above 0.
    """

    def __init__(self, weights: Mapping[str, Tensor], ema: float, snapshots: int) -> None:
        self.weights, self.ema, self.snapshots = weights, ema, snapshots
        self.tensors: dict[str, Tensor] = {}  # empty until the first update
        self.taken = 0

    def update(self, progress: float) -> None:
        """To be called after every step, with the share of the run that is done."""
        if self.ema:
            self._mix(1 - min(self.ema, (1 + self.taken) / (10 + self.taken)))
        elif self.taken < int(self.snapshots * (progress - START) / (1 - START) + 1e-9):
            self._mix(1 / (self.taken + 1))

    def _mix(self, share: float) -> None:
        if not self.tensors:
            self.tensors = {name: t.detach().clone() for name, t in self.weights.items()}
        else:
            mine = [local(t) for t in self.tensors.values()]
            torch._foreach_lerp_(mine, [local(t.detach()) for t in self.weights.values()], share)
        self.taken += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the weights are the averaged ones (if there are any yet)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def restore(self, tensors: Mapping[str, Tensor], taken: int) -> None:
        """Go on from whole tensors that were saved after `taken` updates."""
        self.tensors = {name: t.detach().clone() for name, t in self.weights.items()}
        load_weights(self.tensors, tensors)
        self.taken = taken

    @torch.no_grad()
    def _swap(self) -> None:
        for name, mine in self.tensors.items():
            a, b = local(self.weights[name].detach()), local(mine)
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)


def average_checkpoints(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the uniform mean of checkpoints' weights to `out`; returns its meta.json.

    The last folder gives tokenizer and meta. Raises CheckpointError naming the folder that is
    damaged or whose sizes or tokenizer differ from the first one's, or `out` if it is there.
    """
    if out.exists():
        raise CheckpointError(f"{out}: is there already")
    if not folders:
        raise CheckpointError("no checkpoint to average")
    total: dict[str, Tensor] = {}
    origins: list[dict[str, Any]] = []
    first_tokenizer = _tokenizer(folders[0])
    for folder in folders:
        model, meta = load_checkpoint(folder)
        if not origins:
            sizes = model.config
        if model.config != sizes:
            raise CheckpointError(f"{folder}: is {model.config}, {folders[0]} is {sizes}")
        if _tokenizer(folder) != first_tokenizer:
            raise CheckpointError(f"{folder}: its tokenizer.json is not that of {folders[0]}")
        for name, tensor in model.state_dict().items():  # in double: equal weights stay equal
            total[name] = total[name] + tensor if name in total else tensor.double()
        origins.append({"checkpoint": folder.resolve().name, "step": meta.get("step"),
                        "sha256": file_sha256(folder / "model.safetensors")})  # fmt: skip
    meta["averaged"] = origins
    mean = {name: (tensor / len(folders)).float() for name, tensor in total.items()}
    tokenizer_file = folders[-1] / "tokenizer.json"
    save_checkpoint(
        out, model, tokenizer_file if tokenizer_file.exists() else None, meta, weights=mean
    )
    return meta


def _tokenizer(folder: Path) -> str:
    file = folder / "tokenizer.json"
    return file_sha256(file) if file.exists() else ""
