"""Tokens per second on a GPU beside transformers, and beside what the memory allows.

The bundled model and a 12 x 768 one with random weights, both as fp16: our engine, and GPT-2 of
transformers with a static cache, which it compiles (torch.compile, CUDA graphs), and with a growing
one. Same weights and prompts, greedy, asked in turn (A B A B ...), each in its own process. A step
reads every weight once, so the bound is the batch times the bandwidth, measured by a copy on the
device, over the weights' bytes; weights that fit into the GPU's cache may beat it.
`--device cpu` goes through all of it without a GPU, for tests: its figures mean nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from app.bundle import Bundle
from app.settings import DEFAULT_BUNDLE
from benchmarks import peers
from benchmarks.command import parser, say
from benchmarks.models import write_large
from benchmarks.peers import Variant, facts, measure, running
from benchmarks.roofline import Work
from benchmarks.tables import Spread, markdown
from benchmarks.texts import PROMPT_TOKENS, prompts
from export.bundle import export_bundle, restore_checkpoint
from export.checkpoint import Dimensions

BATCHES: Final = (1, 8, 32, 128)
TOKENS: Final = 64
OURS: Final = "ours fp16"
MODELS: Final = ("bundled", "117M")
PRESET = Dimensions(
    layers=12, heads=12, width=768, inner=3072, vocabulary=32768, context=1024, epsilon=1e-5
)
COPIED: Final = {"cuda": 2**30, "cpu": 2**24}  # bytes of the buffer
TRIALS: Final = 20


def missing(device: str) -> str | None:
    """What a GPU run lacks here."""
    import onnxruntime
    import torch

    if device != "cuda":
        return None
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime has no CUDAExecutionProvider (onnxruntime-gpu instead of onnxruntime)"
    return None


def bandwidth(device: str) -> float:
    """Bytes read and written per second by the quickest of some copies on the device."""
    import torch

    source = torch.ones(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * source.numel() / min(times)


def prepare(root: Path, name: str, bundle: Path = DEFAULT_BUNDLE) -> Path:
    """The folder of one model: its checkpoint and its fp16 bundle. What is there is kept."""
    place = root / name
    checkpoint = place / "checkpoint"
    if not checkpoint.exists():
        if name == "bundled":
            restore_checkpoint(bundle, checkpoint)
        else:
            write_large(prepare(root, "bundled", bundle) / "checkpoint", checkpoint, PRESET)
    if not (place / "fp16").exists():
        export_bundle(checkpoint, place / "fp16", precision="fp16", name=name, verify=False)
    return place


def variants(device: str, slots: int) -> list[Variant]:
    options: dict[str, Any] = {"dtype": "float16", "device": device, "longest": PROMPT_TOKENS[1]}
    compiled = {**options, "cache": "static"}
    return [
        Variant(OURS, "", "ours", "fp16", {"device": device, "slots": slots}),
        Variant("transformers fp16", "static cache, compiled", "transformers", "checkpoint",
                compiled),
        Variant("transformers fp16", "growing cache", "transformers", "checkpoint", options),
    ]  # fmt: skip


def table(results: dict[str, Any], weight_bytes: int, bytes_per_s: float) -> str:
    """Speeds, ours over each, and the share that each reaches of the bound."""
    batches = sorted(results[OURS]["tokens_per_s"])
    rows = []
    for name, result in results.items():
        cells: list[str] = []
        for batch in batches:
            speeds = result["tokens_per_s"].get(batch)
            if not speeds:  # it failed on the way
                cells += ["-", "-", "-"]
                continue
            speed, bound = Spread.of(speeds), batch * bytes_per_s / weight_bytes
            ours = Spread.of(results[OURS]["tokens_per_s"][batch])
            cells += [str(speed), f"{ours.median / speed.median:.2f}",
                      f"{100 * speed.median / bound:.1f} %"]  # fmt: skip
        equal, of, share = result.get("agreement", {}).get(batches[-1], (0, 0, 0.0))
        rows.append((name, *cells, f"{equal} of {of}, {100 * share:.1f} %"))
    head = [h for b in batches for h in (f"batch {b}: tokens/s", "ours / it", "of the bound")]
    return markdown(("engine", *head, "rows equal to ours, ids before a difference"), rows)


def run(place: Path, device: str, batches: Sequence[int], tokens: int, rounds: int) -> Any:
    """Of one model."""
    bundle = Bundle.open(place / "fp16")
    rows = prompts(bundle, max(*batches, peers.CALLS), seed=0)
    with running(place, variants(device, max(batches)), place / "logs") as workers:
        return measure(workers, rows, rounds, batches, tokens, OURS)


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("gpu", __doc__)
    add = commands.add_argument
    add("--device", choices=COPIED, default="cuda", help="(default: %(default)s)")
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add("--batches", nargs="+", type=int, default=BATCHES, help="(default: %(default)s)")
    add("--tokens", type=int, default=TOKENS, help="new ones a row (default: %(default)s)")
    add("--rounds", type=int, default=7, help="turns of each engine (default: %(default)s)")
    arguments = commands.parse_args(argv)
    if (reason := missing(arguments.device)) is not None:
        say(f"a GPU is needed: {reason}; --device cpu tries the script without one")
        return 2
    speed = bandwidth(arguments.device)
    everything: dict[str, Any] = {
        "machine": {**facts(), "device": device_name(arguments.device), "bytes_per_s": speed},
        "models": {},
    }
    for name in arguments.models:
        say(name)
        place = prepare(arguments.out / "gpu-models", name, arguments.bundle)
        weights = Work.of(Bundle.open(place / "fp16")).weight_bytes
        options = (arguments.batches, arguments.tokens, arguments.rounds)
        results = run(place, arguments.device, *options)
        everything["models"][name] = results
        text = (
            f"{table(results, weights, speed)}\n{weights / 1e6:.1f} MB of weights, "
            f"{speed / 1e9:,.0f} GB/s copied, {everything['machine']['device']}, "
            f"{arguments.tokens} new tokens a row, {arguments.rounds} turns\n"
        )
        (arguments.out / f"gpu-{name}.md").write_text(text, encoding="utf-8")
        sys.stdout.write(f"\n{name}\n\n{text}")
    found = json.dumps(everything, indent=1)
    (arguments.out / "gpu.json").write_text(found + "\n", encoding="utf-8")
    return 0


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU: these figures mean nothing"


if __name__ == "__main__":
    sys.exit(main())
