"""What several training tests share: logs, a process that is killed, batches, a slow loss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_mt.cli import main
from training.batches import IGNORED, Batch, Cursor
from training.decode import forbidden
from training.model import GPT

ROOT = Path(__file__).parents[2]
VARIES = ("elapsed_s", "tokens_per_s")  # the figures that tell of the machine


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder: Path) -> list[dict[str, Any]]:
    """A log without what depends on the machine."""
    return [{k: v for k, v in e.items() if k not in VARIES} for e in log_of(folder)]


def kill_when(command: Sequence[str], ready: Callable[[], bool], pause: float = 0.0) -> None:
    """Start `gpt2-mt COMMAND` and end it by SIGKILL some seconds after `ready`."""
    code = "import sys; from gpt2_mt.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], cwd=ROOT, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


def refusal(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What `gpt2-mt COMMAND` says, in one line, as it ends with status 2."""
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


def nats(model: GPT, row: Sequence[int], places: range) -> float:
    """-log p of row[place] given all before it, one position at a time."""
    total = 0.0
    with torch.no_grad():
        for place in places:
            scores = model.logits(model(torch.tensor([row[:place]]))[0][0, -1])
            total -= float(scores.double().log_softmax(-1)[row[place]])
    return total


@torch.inference_mode()
def greedy_without_cache(
    model: GPT, prompt: Sequence[int], limit: int, end: int = 0, no_repeat_ngram: int = 0,
    ngram_repeats: int = 1,
) -> tuple[list[int], str]:
    """One causal prompt, the whole sequence read anew for each token: slow and obvious."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        hidden, _ = model(torch.tensor([ids], device=model.device))
        logits = model.logits(hidden[0, -1])
        stopped = forbidden(ids[len(prompt) :], prompt, no_repeat_ngram, ngram_repeats)
        logits[stopped] = -torch.inf
        token = int(logits.argmax())
        if token == end:
            return ids[len(prompt) :], "stop"
        ids.append(token)
    return ids[len(prompt) :], "length"


class Batches:
    """A stream of the same few batches again and again, with a cursor."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __call__(self, cursor: Cursor, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        while True:
            cursor.index += 1
            yield self.batches[(cursor.index - 1) % len(self.batches)]


def random_batch(rows: int, seed: int) -> Batch:
    """Rows of 6 to 16 tokens that go up by one, the first three without a loss."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 17, (rows,), generator=generator)
    start = torch.randint(64, 400, (rows, 1), generator=generator)
    ids = start + torch.arange(17)
    real = torch.arange(16) < lengths[:, None]
    targets = torch.where(real & (torch.arange(16) >= 3), ids[:, 1:], IGNORED)
    return Batch(ids[:, :-1] * real, targets, lengths, torch.full((rows,), 4))
