"""The training loop, the only one: both stages call it with a learner, a stream and a run folder.

A step draws micro-batches, accumulates the gradients of the learner's terms, each over its
positions in the whole step, clips, steps and logs. The run is bounded by steps, by tokens or by
wall-clock; its state is checkpointed every few
minutes, and a run killed at any instant goes on from its last checkpoint: unless bounded by the
clock, and with the same number of threads, with bit-identical losses.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm  # type: ignore[import-untyped]

from training.batches import Batch, Cursor, Stream
from training.checkpoint import (
    load_checkpoint,
    load_state,
    recover_folder,
    replace_folder,
    save_checkpoint,
    save_state,
)
from training.config import RunConfig
from training.errors import CheckpointError, TrainingError
from training.learner import Learner, step_counts
from training.optim import build_optimisers, rate_factor

Validate = Callable[[Learner], dict[str, float]]


def autocast(
    config: RunConfig, device: torch.device
) -> tuple[AbstractContextManager[Any], torch.dtype]:
    """bf16 where the processor multiplies it natively, else fp32."""
    if config.precision == "auto":
        native = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        dtype = torch.bfloat16 if native else torch.float32
    else:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    if dtype == torch.float32:
        return nullcontext(), dtype
    return torch.autocast(device.type, dtype), dtype


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """What the random draws of a step (dropout, samples) start from: no state need be stored."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


class Run:
    """One run: `train` carries it from where its folder stands to its bound."""

    def __init__(
        self, config: RunConfig, learner: Learner, stream: Stream, folder: Path,
        meta: dict[str, Any], tokenizer_file: Path, validate: Validate, progress: bool = True,
    ) -> None:  # fmt: skip
        self.config, self.learner, self.stream, self.folder = config, learner, stream, folder
        self.model = learner.model
        self.meta, self.tokenizer_file, self.validate = meta, tokenizer_file, validate
        self.progress = progress
        self.device = self.model.device
        self.autocast, _ = autocast(config, self.device)
        self.optimisers = build_optimisers(learner, config.optimiser)
        if config.compile:
            self.model.compile(dynamic=True)
        self.cursor = Cursor()
        self.step, self.elapsed, self.tokens = 0, 0.0, 0

    def train(self) -> Path:
        """Run to the bound; returns the folder of the final checkpoint."""
        self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "metrics.jsonl"
        truncate_log(log, self.step)
        batches = self.stream(self.cursor)
        board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        bar = tqdm(total=1000, unit="‰", disable=not self.progress, bar_format=_BAR,
                   initial=self._permille())  # fmt: skip
        started = saved = time.monotonic()
        before = self.elapsed
        with log.open("a", encoding="utf-8", buffering=1) as file:
            while not self._done():
                clock = time.monotonic()
                entry = self._one_step(batches)
                now = time.monotonic()
                self.elapsed = before + now - started
                entry["tokens_per_s"] = round(entry.pop("read") / (now - clock), 1)
                if self.step % self.config.valid_steps == 0 or self._done():
                    entry.update(self._validated())
                file.write(json.dumps(entry) + "\n")
                often = self.step % self.config.log_steps == 0
                for key, value in entry.items():
                    if key.startswith("valid/") or often and key.startswith(_BOARD):
                        board.add_scalar(key, value, self.step)
                bar.set_postfix_str(f"loss {entry['loss']:.3f}, {entry['tokens_per_s']:,.0f} tok/s")
                bar.update(self._permille() - bar.n)
                if time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
        bar.close()
        board.close()
        self.save()
        return self.folder / "checkpoint"

    def _progress(self) -> float:
        if self.config.steps:
            return self.step / self.config.steps
        if self.config.tokens:
            return self.tokens / self.config.tokens
        return self.elapsed / (60 * self.config.minutes)

    def _permille(self) -> int:
        return min(1000, int(1000 * self._progress()))

    def _done(self) -> bool:
        return self._progress() >= 1

    def _one_step(self, batches: Iterator[Batch]) -> dict[str, Any]:
        config, learner = self.config, self.learner
        micro = [next(batches) for _ in range(config.accumulate)]
        counts = step_counts(learner, micro)
        over = learner.denominators(counts)
        factor = rate_factor(self._progress(), config.optimiser)
        torch.manual_seed(step_seed(config.seed, self.step))
        learner.train()
        totals: dict[str, Tensor] = {}
        for batch in micro:
            with self.autocast:
                terms = learner(batch.to(self.device))
            loss = sum(learner.weights[k] * term.total / over[k] for k, term in terms.items())
            loss.backward()  # type: ignore[no-untyped-call,union-attr]
            for k, term in terms.items():
                totals[k] = totals.get(k, 0.0) + term.total.detach()
        sums = {k: float(total) for k, total in totals.items()}
        mean = sum(learner.weights[k] * total / over[k] for k, total in sums.items())
        norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), config.optimiser.clip)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"step {self.step + 1}: loss {mean}, gradient norm {float(norm)}: the run "
                f"diverged at epoch {self.cursor.epoch}, batch {self.cursor.index - 1}; "
                "try a lower optimiser.rate"
            )
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        read = sum(int(b.lengths.sum()) for b in micro)
        self.tokens += read
        return {
            "step": self.step, "loss": mean,
            **{f"loss/{k}": total / max(1, counts[k]) for k, total in sums.items()},
            "rate": factor, "gradient_norm": float(norm),
            "target_tokens": counts.total(), "read": read,
            "padding": round(1 - read / sum(b.ids.numel() for b in micro), 4),
            "elapsed_s": round(self.elapsed, 2), "epoch": self.cursor.epoch,
        }  # fmt: skip

    def _validated(self) -> dict[str, float]:
        self.learner.eval()
        eager = torch.compiler.set_stance("force_eager")  # or each new shape would be compiled
        with torch.inference_mode(), self.autocast, eager:
            return self.validate(self.learner)

    def save(self) -> None:
        """Write checkpoint and state together, as one folder, in one move."""
        meta = {**self.meta, "step": self.step, "tokens": self.tokens}
        whole = self.folder / "last.partial"
        shutil.rmtree(whole, ignore_errors=True)  # of a save that was killed
        save_checkpoint(whole / "checkpoint", self.model, self.tokenizer_file, meta)
        values = {
            "step": self.step, "elapsed": self.elapsed, "tokens": self.tokens,
            "cursor": asdict(self.cursor), "threads": torch.get_num_threads(),
            "distil": self.learner.distiller.on if self.learner.distiller else {},
        }  # fmt: skip
        save_state(whole, self.optimisers, values)
        replace_folder(whole, self.folder / "last")
        link = self.folder / "checkpoint"
        if not link.is_symlink():
            link.symlink_to(Path("last") / "checkpoint")

    def _resume(self) -> None:
        last = self.folder / "last"
        if not recover_folder(last):
            return
        model, meta = load_checkpoint(last / "checkpoint")
        if model.config != self.model.config:
            raise CheckpointError(
                f"{last}: its model is {model.config}, the run asks for {self.model.config}"
            )
        key = "tokenizer_sha256"
        if meta.get(key) != self.meta.get(key):
            raise CheckpointError(f"{last}: was trained with another tokenizer ({key} differs)")
        self.model.load_state_dict(model.state_dict())
        values = load_state(last, self.optimisers)
        try:
            self.step, self.elapsed = values["step"], values["elapsed"]
            self.tokens, self.cursor = values["tokens"], Cursor(**values["cursor"])
            threads = values["threads"]
            if self.learner.distiller is not None:
                self.learner.distiller.on.update(values["distil"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{last}/state.json: {error!r}") from None
        if threads != torch.get_num_threads():
            _LOG.warning("the run was started with %d threads and goes on with %d: losses will "
                         "differ in the last digits", threads, torch.get_num_threads())  # fmt: skip


_LOG = logging.getLogger(__name__)
_BOARD = ("loss", "rate", "gradient_norm", "tokens_per_s")
_BAR = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}, {postfix}"


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
