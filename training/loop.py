"""The training loop, the only one: both stages call it with a learner, a stream and a run folder.

A step draws micro-batches, accumulates the gradients of the learner's terms, each over its
positions in the whole step, clips, steps and logs. The run is bounded by steps, by tokens or by
wall-clock; its state is checkpointed every few
minutes, and a run killed at any instant goes on from its last checkpoint: unless bounded by the
clock, and with the same number of threads, with bit-identical losses.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.averaging import Average
from training.batches import Batch, Cursor, Stream
from training.checkpoint import (
    load_checkpoint,
    load_state,
    recover_folder,
    replacing,
    save_state,
    write_checkpoint,
)
from training.config import RunConfig
from training.distributed import (
    ALONE,
    Ranks,
    collect,
    exchanging,
    load_weights,
    require_even,
    share,
    unsharded,
    whole,
)
from training.errors import CheckpointError, SaveError, TrainingError
from training.learner import LABELS, Learner, step_counts
from training.log import Log
from training.optim import (
    build_optimisers,
    multiplies_bf16,
    optimiser_state,
    rate_factor,
    restore_optimisers,
)

Validate = Callable[[Learner], dict[str, float]]


def autocast(
    config: RunConfig, device: torch.device
) -> tuple[AbstractContextManager[Any], torch.dtype]:
    """bf16 where the processor multiplies it natively, else fp32."""
    if config.precision == "auto":
        dtype = torch.bfloat16 if multiplies_bf16(device) else torch.float32
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
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        require_even(config.accumulate, ranks)
        self.config, self.learner, self.stream, self.folder = config, learner, stream, folder
        self.model = learner.model
        self.meta, self.tokenizer_file, self.validate = meta, tokenizer_file, validate
        self.progress, self.ranks = progress, ranks
        self.device = self.model.device
        self.autocast, _ = autocast(config, self.device)
        self.driven = share(learner, config.parallel, ranks)
        self.weights: dict[str, Tensor] = dict(learner.named_parameters())
        self.average = Average(self.weights, config.ema, config.average)
        self.optimisers = build_optimisers(learner, config.optimiser)
        if config.compile:
            self.model.compile(dynamic=True)
        self.cursor = Cursor()
        self.step, self.elapsed, self.tokens = 0, 0.0, 0

    def train(self) -> Path:
        """Run to the bound; returns the folder of the final checkpoint.

        Raises TrainingError when the run diverges and SaveError when the disk takes no more.
        """
        self._resume()
        config = self.config
        batches = self.stream(self.cursor, self.ranks.rank, self.ranks.world)
        started = saved = time.monotonic()
        before = self.elapsed
        with Log(self.folder, self.step, self._progress(), config.log_steps, self.ranks.first,
                 self.progress) as log:  # fmt: skip
            while not self._done():
                clock = time.monotonic()
                entry = self._one_step(batches)
                now = time.monotonic()
                self.elapsed = self.ranks.agree(before + now - started)
                self.average.update(self._progress())
                entry["elapsed_s"] = round(self.elapsed, 2)
                entry["tokens_per_s"] = round(entry.pop("read") / (now - clock), 1)
                if self.step % config.valid_steps == 0 or self._done():
                    entry.update(self._validated())
                log.write(entry, self._progress())
                if self.ranks.agree(time.monotonic() - saved > 60 * config.checkpoint_minutes):
                    self._save_if_possible()
                    saved = time.monotonic()
        self.save()
        self.ranks.wait()
        return self.folder / "checkpoint"

    def _progress(self) -> float:
        if self.config.steps:
            return self.step / self.config.steps
        if self.config.tokens:
            return self.tokens / self.config.tokens
        return self.elapsed / (60 * self.config.minutes)

    def _done(self) -> bool:
        return self._progress() >= 1

    def _draw(self, batches: Iterator[Batch | None]) -> dict[str, Batch]:
        """This rank's micro-batches of a step, by their address in the run's data."""
        micro = {}
        for _ in range(self.config.accumulate):
            batch = next(batches)
            if batch is not None:
                micro[f"epoch {self.cursor.epoch}, batch {self.cursor.index - 1}"] = batch
        return micro

    def _one_step(self, batches: Iterator[Batch | None]) -> dict[str, Any]:
        config, learner, ranks = self.config, self.learner, self.ranks
        micro = self._draw(batches)
        counts = Counter(ranks.sum(step_counts(learner, list(micro.values()))))
        over = learner.denominators(counts)
        factor = rate_factor(self._progress(), config.optimiser)
        torch.manual_seed(step_seed(config.seed, self.step, ranks.rank))
        learner.train()
        totals: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for i, batch in enumerate(micro.values()):
            with exchanging(self.driven, last=i == len(micro) - 1):
                with self.autocast:
                    terms = self.driven(batch.to(self.device))
                parts = [learner.weights[k] * term.total / over[k] for k, term in terms.items()]
                loss = torch.stack(parts).sum()
                (loss * ranks.world).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            for k, term in terms.items():
                totals[k] = totals.get(k, 0.0) + term.total.detach()
        sums = ranks.sum({k: float(total) for k, total in totals.items()})
        mean = sum(learner.weights[k] * total / over[k] for k, total in sums.items())
        norm = whole(torch.nn.utils.clip_grad_norm_(learner.parameters(), config.optimiser.clip))
        if not (torch.isfinite(norm) and math.isfinite(mean)):
            raise self._diverged(f"loss {mean}, gradient norm {float(norm)}", micro, losses)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        sizes = ranks.sum({"read": sum(b.read for b in micro.values()),
                           "padded": sum(b.padded for b in micro.values())})  # fmt: skip
        read = int(sizes["read"])
        self.tokens += read
        return {
            "step": self.step, "loss": mean,
            **{f"loss/{k}": total / max(1, counts[k]) for k, total in sums.items()},
            "rate": factor, "gradient_norm": float(norm),
            "target_tokens": sum(counts[k] for k in LABELS), "read": read,
            "padding": round(1 - read / sizes["padded"], 4),
            "epoch": self.cursor.epoch,
        }  # fmt: skip

    def _diverged(
        self, figures: str, micro: dict[str, Batch], losses: list[Tensor]
    ) -> TrainingError:
        """The error that names the batches whose loss is no number; their rows are written out."""
        decode = Tokenizer.from_file(str(self.tokenizer_file)).decode
        bad = {}
        for (place, batch), loss in zip(micro.items(), losses, strict=True):
            if not torch.isfinite(loss):
                rows = [ids[:n].tolist() for part in batch.parts
                        for ids, n in zip(part.ids, part.lengths, strict=True)]  # fmt: skip
                texts = [decode(row, skip_special_tokens=False) for row in rows]
                kind = f"{', '.join(part.form for part in batch.parts)} {batch.tag}".rstrip()
                bad[f"{place} ({kind})"] = texts
        named = {place: texts for part in self.ranks.gather(bad) for place, texts in part.items()}
        every = [place for part in self.ranks.gather(list(micro)) for place in part]
        file = self.folder / "diverged.txt"
        if named and self.ranks.first:
            content = [line for place, texts in named.items() for line in (place, *texts, "")]
            file.write_text("\n".join(content), encoding="utf-8")
        where = f"{'; '.join(named)}; see {file.name}" if named else "; ".join(every)
        kept = (self.folder / "last").exists()
        return TrainingError(
            f"step {self.step + 1}: {figures}: the run diverged at {where}; "
            "try a lower optimiser.rate; "
            + ("the last checkpoint is kept" if kept else "no checkpoint had been written")
        )

    def _validated(self) -> dict[str, float]:
        self.learner.eval()
        eager = torch.compiler.set_stance("force_eager")  # or each new shape would be compiled
        with (self.average.in_place(), unsharded(self.driven), torch.inference_mode(),
              self.autocast, eager):  # fmt: skip
            figures = self.ranks.agree(self.validate(self.learner))
        if self.learner.distiller is not None:
            self.learner.distiller.follow(figures)
        return figures

    def _save_if_possible(self) -> None:
        try:
            self.save()
        except SaveError as error:
            _LOG.warning("%s; the run goes on, the checkpoint before is kept", error)

    def save(self) -> None:
        """Write checkpoint and state together, as one folder, in one move.

        With averaging, checkpoint and heads are the averaged ones; the raw weights are state.
        """
        tensors = {"state": optimiser_state(self.learner, self.optimisers, self.ranks)}
        kept = collect({**self.weights, **self.average.tensors}.items(), self.ranks)
        if self.average.tensors:
            tensors["raw"] = collect(self.weights.items(), self.ranks)
        if heads := {k: t for k, t in kept.items() if not k.startswith("model.")}:
            tensors["heads"] = heads
        if not self.ranks.first:
            return
        weights = {k.removeprefix("model."): t for k, t in kept.items() if k.startswith("model.")}
        meta = {**self.meta, "step": self.step, "tokens": self.tokens}
        values = {
            "step": self.step, "elapsed": self.elapsed, "tokens": self.tokens,
            "cursor": asdict(self.cursor), "threads": torch.get_num_threads(),
            "distil": self.learner.distiller.state() if self.learner.distiller else {},
            "ranks": self.ranks.world, "averaged": self.average.taken,
        }  # fmt: skip
        with replacing(self.folder / "last") as new:
            write_checkpoint(new / "checkpoint", self.model, self.tokenizer_file, meta, weights)
            save_state(new, tensors, values)
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
        tensors, values = load_state(last)
        kept = {f"model.{k}": t for k, t in model.state_dict().items()} | tensors.get("heads", {})
        try:
            load_weights(self.weights, tensors.get("raw", kept))
            if "raw" in tensors:
                self.average.restore(kept, values["averaged"])
            restore_optimisers(self.learner, self.optimisers, tensors["state"])
            self.step, self.elapsed = values["step"], values["elapsed"]
            self.tokens, self.cursor = values["tokens"], Cursor(**values["cursor"])
            threads, world = values["threads"], values["ranks"]
            if self.learner.distiller is not None:
                self.learner.distiller.restore(values["distil"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{last}/state.json: {error!r}") from None
        except CheckpointError as error:
            raise CheckpointError(f"{last}: {error}") from None
        if threads != torch.get_num_threads():
            _LOG.warning("the run was started with %d threads and goes on with %d: losses will "
                         "differ in the last digits", threads, torch.get_num_threads())  # fmt: skip
        if world != self.ranks.world:
            _LOG.warning("the run was started with %d ranks and goes on with %d: the same batches, "
                         "but dropout and last digits differ", world, self.ranks.world)  # fmt: skip


_LOG = logging.getLogger(__name__)
