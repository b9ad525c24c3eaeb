"""The loop: it learns, its figures are right, and what it keeps is what it learnt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tests.training.helpers import log_of, random_batch
from training import loop
from training.batches import IGNORED, Batch
from training.checkpoint import load_checkpoint
from training.errors import SaveError, TrainingError
from training.learner import Learner
from training.loop import Run, step_seed
from training.optim import rate_factor


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_the_loss_falls(make_run: Callable[..., Run], precision: str, optimiser: str) -> None:
    run = make_run(steps=25, precision=precision, optimiser={"name": optimiser, "rate": 1e-2})
    run.train()
    losses = [entry["loss"] for entry in log_of(run.folder)]
    assert len(losses) == 25
    assert losses[0] == pytest.approx(6.24, abs=0.15)  # log 512
    assert losses[-1] < 0.55 * losses[0]


def test_the_log_says_what_was_done(make_run: Callable[..., Run]) -> None:
    batches = [random_batch(8, seed) for seed in range(3)]
    run = make_run(batches=batches, steps=4, accumulate=2)
    run.train()
    for i, entry in enumerate(log_of(run.folder)):
        micro = [batches[2 * i % 3], batches[(2 * i + 1) % 3]]
        targets = sum(int((b.targets != IGNORED).sum()) for b in micro)
        read = sum(int(b.lengths.sum()) for b in micro)
        assert (entry["step"], entry["target_tokens"]) == (i + 1, targets)
        assert entry["rate"] == rate_factor(i / 4, run.config.optimiser)
        assert entry["padding"] == pytest.approx(1 - read / 256, abs=1e-4)
        assert entry["loss"] == entry["loss/translation"]
        assert entry["gradient_norm"] > 0 and entry["tokens_per_s"] > 0
    assert run.tokens == sum(int(batches[i % 3].lengths.sum()) for i in range(8))


def test_accumulated_micro_batches_are_one_batch(make_run: Callable[..., Run]) -> None:
    whole = random_batch(12, 1)
    cuts = [slice(0, 3), slice(3, 10), slice(10, 12)]
    parts = [Batch(whole.ids[c], whole.targets[c], whole.lengths[c], whole.prefix[c]) for c in cuts]
    runs = [
        make_run("whole", [whole], steps=3, label_smoothing=0.1),
        make_run("parts", parts, steps=3, accumulate=3, label_smoothing=0.1),
    ]
    logs = []
    for run in runs:
        run.train()
        logs.append(log_of(run.folder))
    for one, other in zip(*logs, strict=True):
        assert one["target_tokens"] == other["target_tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


def test_terms_are_weighed_and_logged_one_by_one(make_run: Callable[..., Run]) -> None:
    run = make_run(steps=3, source_loss=0.4, accumulate=3)
    run.train()
    plain = make_run("plain", steps=3, accumulate=3)
    plain.train()
    for entry in log_of(run.folder):
        mean = entry["loss/translation"] + 0.4 * entry["loss/source"]
        assert entry["loss"] == pytest.approx(mean, rel=1e-6)
    first, other = log_of(run.folder)[0], log_of(plain.folder)[0]
    assert first["loss/translation"] == pytest.approx(other["loss"], rel=1e-6)
    assert "loss/source" not in other


def test_draws_of_a_step_depend_on_seed_step_and_rank_alone(make_run: Callable[..., Run]) -> None:
    assert len({step_seed(*key) for key in ((1, 0, 0), (1, 1, 0), (1, 0, 1), (2, 0, 0))}) == 4
    logs = []
    for name in ("one", "two"):
        run = make_run(name, steps=3, dropout=0.3)
        torch.manual_seed(len(logs))  # of no effect
        run.train()
        logs.append([entry["loss"] for entry in log_of(run.folder)])
    assert logs[0] == logs[1]
    other = make_run("other", steps=3, dropout=0.3, seed=2)
    other.train()
    assert [entry["loss"] for entry in log_of(other.folder)] != logs[0]


def test_a_bound_in_tokens(make_run: Callable[..., Run]) -> None:
    run = make_run(tokens=500, steps=0, optimiser={"name": "adamw", "warmup": 0.2})
    run.train()
    read = 0
    for entry in log_of(run.folder):
        assert read < 500 and entry["rate"] == rate_factor(read / 500, run.config.optimiser)
        read = sum(int(run.stream.batches[i % 3].lengths.sum())  # type: ignore[attr-defined]
                   for i in range(entry["step"]))  # fmt: skip
    assert run.tokens == read >= 500


def test_bf16_follows_fp32(make_run: Callable[..., Run]) -> None:
    logs = []
    for precision in ("fp32", "bf16"):
        run = make_run(precision, steps=4, precision=precision)
        assert run.learner.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
        run.train()
        logs.append([entry["loss"] for entry in log_of(run.folder)])
    assert logs[0] != logs[1]
    assert logs[1] == pytest.approx(logs[0], rel=0.02)
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_gradients_are_clipped(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(steps=1, optimiser={"name": "adamw", "clip": 0.01})
    seen: list[float] = []

    def step() -> None:
        squares = [p.grad.square().sum() for p in run.model.parameters() if p.grad is not None]
        seen.append(float(torch.stack(squares).sum().sqrt()))

    monkeypatch.setattr(run.optimisers["adamw"], "step", step)
    run._one_step(run.stream(run.cursor))
    assert seen == [pytest.approx(0.01, rel=1e-3)]


def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(make_run: Callable[..., Run]) -> None:
    run = make_run(steps=5, checkpoint_minutes=0)
    real, count = run._one_step, 0

    def poisoned(batches: Iterator[Batch]) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count == 3:
            with torch.no_grad():
                run.model.transformer["wte"].weight[70] = float("nan")  # type: ignore[operator]
        return real(batches)

    run._one_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="step 3: .* batch 2 .pairs.; see diverged.txt; try"):
        run.train()
    assert json.loads((run.folder / "last" / "state.json").read_text())["step"] == 2


def test_the_batch_that_diverged_is_named_and_written_out(make_run: Callable[..., Run]) -> None:
    batches = [random_batch(8, seed) for seed in range(4)]
    ids = torch.randint(64, 400, (2, 24))
    batches[3] = Batch(ids, ids, torch.tensor([24, 5]), torch.tensor([4, 4]), "en-de")
    run = make_run(batches=batches, steps=5, accumulate=2, checkpoint_minutes=0)
    with torch.no_grad():
        run.model.transformer["wpe"].weight[20] = float("nan")  # only batch 3 is so long
    with pytest.raises(TrainingError, match=r"step 2: loss nan.* at epoch 0, batch 3 .pairs en-de"):
        run.train()
    assert json.loads((run.folder / "last" / "state.json").read_text())["step"] == 1
    decode = Tokenizer.from_file(str(run.tokenizer_file)).decode
    rows = [decode(ids[i, :n].tolist(), skip_special_tokens=False) for i, n in ((0, 24), (1, 5))]
    assert (run.folder / "diverged.txt").read_text() == "\n".join(
        ["epoch 0, batch 3 (pairs en-de)", *rows, ""]
    )


def test_a_gradient_without_bound_is_told_by_the_batches_of_its_step(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(steps=5, accumulate=2)
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *arguments: torch.tensor(float("inf"))
    )
    with pytest.raises(TrainingError, match="norm inf.* at epoch 0, batch 0; epoch 0, batch 1;"):
        run.train()
    assert not (run.folder / "diverged.txt").exists()


def test_validation_comes_in_its_steps_and_at_the_end(make_run: Callable[..., Run]) -> None:
    modes: list[bool] = []

    def validate(learner: Learner) -> dict[str, float]:
        modes.append(learner.training or learner.model.training)
        return {"valid/en/loss": 1.5}

    run = make_run(steps=5, valid_steps=2, validate=validate, dropout=0.3)
    run.train()
    steps = [entry["step"] for entry in log_of(run.folder) if entry.get("valid/en/loss") == 1.5]
    assert steps == [2, 4, 5] and modes == [False] * 3
    assert list((run.folder / "tensorboard").iterdir())
    unseen = make_run("unseen", steps=5, dropout=0.3)
    unseen.train()
    assert [e["loss"] for e in log_of(unseen.folder)] == [e["loss"] for e in log_of(run.folder)]


def test_the_checkpoint_is_where_it_was_promised(make_run: Callable[..., Run]) -> None:
    run = make_run(steps=2)
    checkpoint = run.train()
    assert checkpoint == run.folder / "checkpoint"
    names = {p.name for p in checkpoint.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "meta.json"
    }  # fmt: skip
    assert json.loads((checkpoint / "meta.json").read_text())["step"] == 2
    assert {p.name for p in run.folder.iterdir()} == {
        "last", "checkpoint", "metrics.jsonl", "tensorboard"
    }  # fmt: skip


# -- averaged weights


def weights_of(run: Run) -> Tensor:
    return run.model.transformer["wte"].weight.detach().clone()  # type: ignore[operator]


@pytest.mark.parametrize("keys", [{"ema": 0.8}, {"average": 2}])
def test_the_checkpoint_is_the_average(make_run: Callable[..., Run], keys: dict[str, Any]) -> None:
    seen: list[float] = []

    def validate(learner: Learner) -> dict[str, float]:
        seen.append(float(learner.model.transformer["wte"].weight.sum()))  # type: ignore[operator]
        return {}

    run = make_run(steps=10, valid_steps=7, validate=validate, **keys)
    real, path = run._one_step, []

    def one_step(batches: Iterator[Batch]) -> dict[str, Any]:
        entry = real(batches)
        path.append(weights_of(run))
        return entry

    run._one_step = one_step  # type: ignore[method-assign]
    run.train()
    means = [path[0]]
    for n, now in enumerate(path[1:], start=1):
        decay = min(0.8, (1 + n) / (10 + n))
        means.append(decay * means[-1] + (1 - decay) * now)
    if "average" in keys:  # snapshots after steps 9 and 10; before them there is no average
        means = [*path[:9], (path[8] + path[9]) / 2]
    kept = load_checkpoint(run.folder / "checkpoint")[0].transformer["wte"].weight  # type: ignore[operator]
    torch.testing.assert_close(kept.detach(), means[-1], atol=1e-6, rtol=1e-5)
    assert seen == pytest.approx([float(means[6].sum()), float(means[9].sum())], rel=1e-3)
    assert torch.equal(weights_of(run), path[-1])
    plain = make_run("plain", steps=10)
    plain.train()
    assert torch.equal(weights_of(plain), path[-1])  # the run itself does not feel it


# -- a disk that takes no more


def test_a_full_disk_while_training(
    make_run: Callable[..., Run], small_disk: Callable[[int], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run = make_run(steps=4, checkpoint_minutes=0, optimiser={"name": "adamw"})
    run.folder = small_disk(3_000_000) / "run"  # a state has 1.7 MB
    with pytest.raises(SaveError, match="run/last: could not be written: .*No space left"):
        run.train()
    assert caplog.text.count("No space left") == 3 and "the run goes on" in caplog.text
    assert len(log_of(run.folder)) == 4
    assert {p.name for p in run.folder.iterdir()} == {
        "last", "checkpoint", "metrics.jsonl", "tensorboard"
    }  # fmt: skip
    assert json.loads((run.folder / "last" / "state.json").read_text())["step"] == 1
    load_checkpoint(run.folder / "checkpoint")


def test_a_run_whose_last_save_failed_is_carried_to_its_end(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_run("whole", steps=4)
    whole.train()
    run = make_run(steps=4, checkpoint_minutes=0)
    real = loop.save_state

    def failing(folder: Path, tensors: Any, values: dict[str, Any]) -> None:
        if values["step"] > 2:
            raise OSError(28, "No space left on device")
        real(folder, tensors, values)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", failing)
        with pytest.raises(SaveError):
            run.train()
    again = make_run(steps=4)
    again.train()
    assert torch.equal(weights_of(again), weights_of(whole))
    assert [e["loss"] for e in log_of(again.folder)] == [e["loss"] for e in log_of(whole.folder)]
