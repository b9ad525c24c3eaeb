"""Tokens per second of our loop beside a plain transformers one: same weights, data, precision.

Sizes of a model and of batches flow in; both loops train in turn, A B A B, and the medians of real
(not padded) tokens per second and their ratio flow out, as JSON. The peer is what
`transformers.Trainer` does for a GPT2LMHeadModel by default: shuffled rows padded to the longest of
their batch, as many rows as ours have on average, full logits, its own loss, AdamW (with
torch >= 2.8 the Trainer's is fused too; `--peer-optimiser plain` for the older default). Its
attention is the faster one: products on a CPU, the fused kernel on a GPU.
With `--kind text` rows are full and every position has a loss; on a GPU model FLOPs utilisation is
told as well. Run as `python -m benchmarks.training_speed --help`; needs the extra `export`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from training.batches import IGNORED, Batch, PairRows, Tags
from training.config import RunConfig, build
from training.corpus import Source
from training.learner import Learner
from training.loop import Run, autocast
from training.model import GPT, preset
from training.shards import Shard, write_shard
from training.tokenizer import SPECIAL

Row = tuple[list[int], int]  # ids, and how many of them are the prompt
Step = Callable[[], tuple[int, float]]  # one training step: real tokens read, FLOPs needed
TAGS = Tags(0, 2, {"en": 3, "de": 4}, {"en": 5, "de": 6})


def synthetic(folder: Path, vocabulary: int, pairs: int, seed: int) -> Shard:
    """Pairs as long as image captions, about 15 tokens a side: rows of 34 tokens; ids by Zipf."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(14.2), 0.35, (pairs, 2)).round(), 3, 60).astype(int)
    lengths[:, 1] = np.clip((lengths[:, 0] * rng.lognormal(0, 0.15, pairs)).round(), 3, 60)
    ids = SPECIAL + rng.zipf(1.2, int(lengths.sum())) % (vocabulary - SPECIAL)
    sequences = (part.tolist() for part in np.split(ids, np.cumsum(lengths.ravel())[:-1]))
    return write_shard(folder / "pairs.bin", Source("pairs", ("en", "de"), ()), sequences, "")


def pair_data(
    shards: Sequence[Shard], batch_tokens: int, max_tokens: int
) -> tuple[Iterator[Batch], list[Row]]:
    """Our batches without end, and all the rows that they are made of."""
    pairs = PairRows(shards, [1.0] * len(shards), TAGS, max_tokens)
    examples = pairs.choose(np.random.default_rng(0))

    def batches() -> Iterator[Batch]:
        rng = np.random.default_rng(1)
        while True:
            groups = pairs.batches(pairs.choose(rng), batch_tokens)
            for i in rng.permutation(len(groups)):
                yield pairs.collate(groups[i])

    return batches(), [pairs.row(example) for example in examples]


def text_data(
    vocabulary: int, batch_tokens: int, width: int
) -> tuple[Iterator[Batch], list[Row]]:
    """Full rows of `width` tokens, each position with a loss."""
    rng = np.random.default_rng(0)
    rows = rng.integers(SPECIAL, vocabulary, (256, width + 1))
    size = max(1, batch_tokens // width)
    lengths = torch.full((size,), width)

    def batches() -> Iterator[Batch]:
        while True:
            ids = torch.from_numpy(rows[rng.integers(0, len(rows), size)])
            targets = ids[:, 1:].contiguous()
            yield Batch(ids[:, :-1], targets, lengths, lengths * 0, "en", "text")

    return batches(), [(row[:-1].tolist(), 1) for row in rows]  # it reads its labels too


def flops_of(model: GPT) -> Callable[[torch.Tensor, int], float]:
    """Of a step on rows of these lengths with so many losses: what a forward and a backward need.

    Six a parameter and token in the blocks, the same in the head where there is a loss, and twelve
    a layer, width and seen key in attention, of which the causal mask needs half.
    """
    c = model.config
    inner = sum(p.numel() for n, p in model.named_parameters() if ".h." in n and p.ndim == 2)

    def count(lengths: torch.Tensor, targets: int) -> float:
        tokens, squares = float(lengths.sum()), float(lengths.double().square().sum())
        head = c.vocabulary * c.width * targets
        return 6 * (inner * tokens + head + c.layers * c.width * squares)

    return count


def our_loop(config: RunConfig, model: GPT, batches: Iterator[Batch], folder: Path) -> Step:
    _, dtype = autocast(config, model.device)
    run = Run(config, Learner(model, config, dtype), None, folder, {}, folder / "none",  # type: ignore[arg-type]
              validate=lambda learner: {}, progress=False)  # fmt: skip
    count = flops_of(model)

    def step() -> tuple[int, float]:
        batch = next(batches)
        entry = run._one_step(iter([batch]))
        return entry["read"], count(batch.lengths, entry["target_tokens"])

    return step


def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Right-padded to the longest row; -100 on prompts and padding."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels, seen = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        seen[i, : len(row)] = 1
        labels[i, prompt : len(row)] = ids[i, prompt : len(row)]
    return {"input_ids": ids, "attention_mask": seen, "labels": labels}


def peer_loop(config: RunConfig, model: GPT, rows: list[Row], size: int, fused: bool) -> Step:
    attention = "eager" if model.device.type == "cpu" else "sdpa"
    sizes = GPT2Config(  # type: ignore[no-untyped-call]
        **model.config.to_hugging_face(), attn_implementation=attention  # type: ignore[arg-type]
    )
    peer = GPT2LMHeadModel(sizes)  # type: ignore[no-untyped-call]
    peer.load_state_dict({**model.state_dict(), "lm_head.weight": model.transformer["wte"].weight})
    peer.to(model.device)  # type: ignore[arg-type]
    if config.compile:
        peer.compile()
    amp, _ = autocast(config, model.device)
    optimiser = torch.optim.AdamW(peer.parameters(), lr=config.optimiser.rate, fused=fused or None)
    loader: Any = DataLoader(rows, size, shuffle=True, collate_fn=collate, drop_last=True)  # type: ignore[arg-type]
    batches = (batch for _ in iter(int, 1) for batch in loader)
    count = flops_of(model)

    def step() -> tuple[int, float]:
        peer.train()
        batch = {key: value.to(model.device) for key, value in next(batches).items()}
        with amp:
            loss = peer(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), config.optimiser.clip)
        optimiser.step()
        optimiser.zero_grad()
        lengths = batch["attention_mask"].sum(dim=1) - 1  # the last token is a label only
        return int(lengths.sum()), count(lengths, int((batch["labels"] != IGNORED).sum()))

    return step


def timed(step: Step, steps: int, device: torch.device) -> tuple[float, float]:
    """Real tokens and FLOPs a second over some steps."""
    begin, tokens, flops = time.perf_counter(), 0, 0.0
    for _ in range(steps):
        read, needed = step()
        tokens, flops = tokens + read, flops + needed
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    return tokens / seconds, flops / seconds


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device, entries = torch.device(arguments.device), arguments.vocabulary
    torch.manual_seed(0)
    sizes = preset(arguments.model, entries, dropout=arguments.dropout)
    text = arguments.kind == "text"
    width = min(arguments.length or (sizes.context if text else 128), sizes.context)
    config = build(RunConfig, {
        "stage": "pretrain" if text else "finetune", "model": arguments.model, "steps": 10**6,
        "batch_tokens": max(width, arguments.batch_tokens), "dropout": arguments.dropout,
        "compile": arguments.compile, "precision": arguments.precision,
        "data": {"languages": ["en", "de"], "max_tokens": width},
    }, "")  # fmt: skip
    model = GPT(sizes).to(device)
    if text:
        batches, rows = text_data(entries, config.batch_tokens, width)
        size = max(1, config.batch_tokens // width)
    else:
        shards = [Shard(path) for path in sorted(arguments.shards.glob("*.train.bin"))] \
            if arguments.shards else [synthetic(folder, entries, 20_000, 0)]  # fmt: skip
        batches, rows = pair_data(shards, config.batch_tokens, width)
        mean = statistics.fmean(len(ids) - 1 for ids, _ in rows)
        size = round(statistics.fmean(next(batches).read for _ in range(50)) / mean)
    fused = arguments.peer_optimiser == "fused"
    loops = {"peer": peer_loop(config, model, rows, size, fused),
             "ours": our_loop(config, model, batches, folder)}  # fmt: skip
    if arguments.only:
        loops = {arguments.only: loops[arguments.only]}
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    work: dict[str, list[float]] = {name: [] for name in loops}
    for step in loops.values():
        timed(step, arguments.warmup, device)
    for _ in range(arguments.rounds):
        for name, step in loops.items():
            speed, flops = timed(step, arguments.steps, device)
            speeds[name].append(round(speed, 1))
            work[name].append(flops)
            sys.stderr.write(f"{name}: {speed:,.0f} tokens/s\n")
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    results: dict[str, Any] = {
        "model": arguments.model, "vocabulary": entries, "kind": arguments.kind,
        "parameters": model.parameters_count(), "batch_tokens": config.batch_tokens,
        "peer_rows": size, "mean_row": round(statistics.fmean(len(r) - 1 for r, _ in rows), 1),
        "threads": torch.get_num_threads(), "device": str(device),
        "precision": str(autocast(config, device)[1]), "torch": torch.__version__,
        "tokens_per_s": speeds, "median": middle,
    }  # fmt: skip
    if len(middle) == 2:
        results["ratio"] = round(middle["ours"] / middle["peer"], 3)
    if device.type == "cuda":
        results["device"] = torch.cuda.get_device_name(device)
        results["peak_tflops"] = arguments.peak_tflops
        results["utilisation"] = {
            name: round(statistics.median(values) / (arguments.peak_tflops * 1e12), 4)
            for name, values in work.items()
        }
    return results


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_speed", description=__doc__, formatter_class=raw,
        epilog="examples:\n  python -m benchmarks.training_speed --model micro --vocabulary 8192\n"
        "  python -m benchmarks.training_speed --device cuda --model 117M --vocabulary 32768 "
        "--kind text --batch-tokens 65536 --compile --only ours",
    )  # fmt: skip
    add = parser.add_argument
    add("--model", default="micro", help="preset (default %(default)s)")
    add("--vocabulary", type=int, default=8192, help="entries (default %(default)s)")
    add("--kind", choices=("pairs", "text"), default="pairs", help="what rows are made of")
    add("--batch-tokens", type=int, default=4096, help="padded tokens (default %(default)s)")
    add("--length", type=int, default=0, help="longest row (default: 128, the context for text)")
    add("--shards", type=Path, help="a run's folder of shards in en and de, for real pairs")
    add("--dropout", type=float, default=0.1, help="of both models (default %(default)s)")
    add("--precision", choices=("auto", "bf16", "fp32"), default="bf16")
    add("--compile", action="store_true", help="torch.compile, both loops")
    add("--peer-optimiser", choices=("fused", "plain"), default="fused")
    add("--only", choices=("ours", "peer"), help="no comparison")
    add("--rounds", type=int, default=5, help="turns of each loop (default %(default)s)")
    add("--steps", type=int, default=10, help="steps in a turn (default %(default)s)")
    add("--warmup", type=int, default=3, help="steps before (default %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    add("--peak-tflops", type=float, default=989.0,
        help="dense bf16 peak of the GPU (default %(default)s, an H100's)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder))
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
