"""A run killed at any instant goes on to the bit-identical curve, or says why it cannot."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import Recipe
from tests.training.helpers import curve, kill_when
from training import checkpoint
from training.config import RunConfig
from training.errors import CheckpointError, ConfigError, CorpusError
from training.loop import Run
from training.stages import start


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def go(corpus: Path, tokenizer_file: Path) -> Callable[..., Path]:
    def run(folder: Path, config: RunConfig, **changes: Any) -> Path:
        arguments = {"corpus": corpus, "tokenizer_file": tokenizer_file, "progress": False,
                     "test_folders": [corpus / "tests"], "device": "cpu", **changes}  # fmt: skip
        return start(config, folder=folder, **arguments)

    return run


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the next run stop as if killed before it takes a step."""
    real = Run._one_step

    def one_step(self: Run, batches: Any) -> dict[str, Any]:
        if self.step == step - 1:
            raise KeyboardInterrupt
        return real(self, batches)

    monkeypatch.setattr(Run, "_one_step", one_step)


def test_kill_minus_nine_and_resume(
    tmp_path: Path, go: Callable[..., Path], corpus: Path, tokenizer_file: Path, recipe: Recipe
) -> None:
    settings = {
        "steps": "50", "dropout": "0.2", "batch_tokens": "256", "accumulate": "2",
        "checkpoint_minutes": "0.0005", "precision": "fp32", "valid_steps": "20",
        "data.text_share": "0.2", "model": "test", "data.max_tokens": "64",
    }  # fmt: skip
    values = [f"--set={key}={value}" for key, value in settings.items()]
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text(
        'stage = "finetune"\nmodel = "test"\nsteps = 1\n[optimiser]\nname = "muon"\nrate = 5e-3\n'
        '[data]\nlanguages = ["en", "de"]\n'
    )

    def command(folder: str) -> list[str]:
        return ["train", "finetune", str(recipe_file), "--corpus", str(corpus), "--tokenizer",
                str(tokenizer_file), "--out", str(tmp_path / folder), "--tests",
                str(corpus / "tests"), "--threads", "1", "--device", "cpu", "--quiet",
                *values]  # fmt: skip

    state = tmp_path / "killed" / "last" / "state.json"
    kill_when(command("killed"), state.exists, random.uniform(0.0, 0.3))
    survived = curve_so_far(tmp_path / "killed")
    assert 0 < survived < 50, "killed too late to prove anything"

    from gpt2_mt.cli import main

    assert main(command("killed")) == 0
    assert main(command("whole")) == 0
    merged, whole = curve(tmp_path / "killed"), curve(tmp_path / "whole")
    assert [entry["step"] for entry in merged] == list(range(1, 51))
    assert merged == whole
    tensors = [(tmp_path / f / "checkpoint" / "model.safetensors").read_bytes()
               for f in ("killed", "whole")]  # fmt: skip
    assert tensors[0] == tensors[1]


def curve_so_far(folder: Path) -> int:
    """Complete lines of a log whose last one may be cut."""
    return (folder / "metrics.jsonl").read_text().count("\n")


@pytest.mark.parametrize(
    ("stage", "optimiser", "more"),
    [("pretrain", "adamw", {"ema": 0.9}), ("finetune", "muon", {"average": 5}),
     ("finetune", "adamw", {})],
)  # fmt: skip
def test_both_stages_resume_bit_identically(
    tmp_path: Path, go: Callable[..., Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch,
    stage: str, optimiser: str, more: dict[str, Any],
) -> None:  # fmt: skip
    config = recipe(
        stage=stage, steps=12, dropout=0.3, checkpoint_minutes=0, precision="bf16",
        label_smoothing=0.1, batch_tokens=1024, optimiser={"name": optimiser},
        data={"weights": {"*": 0.5}}, **more,
    )  # fmt: skip
    go(tmp_path / "whole", config)
    for step in (5, 6, 12):  # over the end of an epoch, and twice in a row
        with monkeypatch.context() as patch:
            interrupted(patch, step)
            with pytest.raises(KeyboardInterrupt):
                go(tmp_path / "cut", config)
    go(tmp_path / "cut", config)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "cut")) == 12
    for file in ("checkpoint/model.safetensors", *(["last/raw.safetensors"] if more else [])):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert curve(tmp_path / "cut")[-1]["epoch"] > 0


def test_a_finished_run_stays_as_it_is(
    tmp_path: Path, go: Callable[..., Path], recipe: Recipe
) -> None:
    config = recipe(steps=3)
    go(tmp_path / "run", config)
    before = curve(tmp_path / "run"), (tmp_path / "run/checkpoint/model.safetensors").read_bytes()
    go(tmp_path / "run", config)
    assert before == (
        curve(tmp_path / "run"), (tmp_path / "run/checkpoint/model.safetensors").read_bytes()
    )  # fmt: skip


class Killed(Exception):
    pass


@pytest.mark.parametrize("instant", range(1, 6))
def test_a_kill_while_saving_loses_a_step_at_most(
    tmp_path: Path, go: Callable[..., Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch,
    instant: int,
) -> None:  # fmt: skip
    """Stops the second save before each of its moves and removals in turn."""
    config = recipe(steps=4, checkpoint_minutes=0)
    go(tmp_path / "whole", config)
    moves = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **keys: Any) -> Any:
            nonlocal moves
            if (tmp_path / "cut" / "last").exists():  # the first save is done
                moves += 1
                if moves == instant:
                    raise Killed
            return real(*arguments, **keys)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(checkpoint, "save_file", counted(checkpoint.save_file))
        with pytest.raises(Killed):
            go(tmp_path / "cut", config)
    left = {p.name for p in (tmp_path / "cut").iterdir()}
    assert left & {"last", "last.old"}
    go(tmp_path / "cut", config)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert not {"last.old", "last.partial"} & {p.name for p in (tmp_path / "cut").iterdir()}


# -- what must be the same


@pytest.fixture
def begun(
    tmp_path: Path, go: Callable[..., Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run with one step behind it."""
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "run", recipe(checkpoint_minutes=0))
    return tmp_path / "run"


@pytest.mark.parametrize("place", ["last", "last.old"])
def test_a_changed_recipe_is_refused_by_its_key(
    begun: Path, go: Callable[..., Path], recipe: Recipe, place: str
) -> None:
    if place == "last.old":
        (begun / "last").rename(begun / "last.old")
    before = (begun / "config.json").read_text()
    for changes, words in (
        ({"steps": 9}, "steps = 6, now 9"),
        ({"optimiser": {"rate": 0.1}}, "optimiser.rate = 0.005, now 0.1"),
        ({"data": {"max_tokens": 32}}, "data.max_tokens = 64, now 32"),
    ):
        with pytest.raises(ConfigError, match=f"was started with {words}; use another folder"):
            go(begun, recipe(checkpoint_minutes=0, **changes))
    assert (begun / "config.json").read_text() == before
    go(begun, recipe(checkpoint_minutes=0))


def test_another_corpus_is_refused_and_a_moved_one_is_not(
    begun: Path, go: Callable[..., Path], recipe: Recipe, corpus: Path, tmp_path: Path
) -> None:
    config = recipe(checkpoint_minutes=0)
    other = shutil.copytree(corpus, tmp_path / "elsewhere" / "toy")
    train = other / "train.de"
    original = train.read_text()
    train.write_text(original.replace("Hund", "Haus", 1))  # as long as before
    for changes in ({"corpus": other}, {"test_folders": []}):
        with pytest.raises(CorpusError, match="not those the run was started with"):
            go(begun, config, **changes)
    train.write_text(original)
    stamp = (begun / "shards" / "done").stat().st_mtime_ns
    go(begun, config, corpus=other)
    assert (begun / "shards" / "done").stat().st_mtime_ns == stamp  # reused


def test_shards_of_a_run_without_steps_are_made_anew(
    go: Callable[..., Path], recipe: Recipe, corpus: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config, run = recipe(steps=1), tmp_path / "run"
    other = shutil.copytree(corpus, tmp_path / "elsewhere" / "toy")
    for code in ("de", "en"):
        lines = (other / f"train.{code}").read_text().splitlines(keepends=True)
        (other / f"train.{code}").write_text("".join(lines[:100]))
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            go(run, config)
    assert (run / "shards" / "done").exists()

    def broken(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("training.shards.encode", broken)
        with pytest.raises(Killed):
            go(run, config, corpus=other)
    assert not (run / "shards" / "done").exists()  # half of them are of the other corpus
    go(run, config)
    rows = [line.split() for line in (run / "corpus.txt").read_text().splitlines()]
    assert ["toy.de-en", "240", "240"] in rows


def test_another_tokenizer_is_refused(
    begun: Path, go: Callable[..., Path], recipe: Recipe, tokenizer_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer.json"
    other.write_text(tokenizer_file.read_text() + "\n")
    with pytest.raises((CheckpointError, CorpusError), match="tokenizer"):
        go(begun, recipe(checkpoint_minutes=0), tokenizer_file=other)
    shutil.rmtree(begun / "shards")  # nothing but the checkpoint remembers
    with pytest.raises(CheckpointError, match="another tokenizer"):
        go(begun, recipe(checkpoint_minutes=0), tokenizer_file=other)


def test_another_number_of_threads_is_said(
    begun: Path, go: Callable[..., Path], recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(2)
    try:
        go(begun, recipe(checkpoint_minutes=0))
    finally:
        torch.set_num_threads(1)
    assert "started with 1 threads and goes on with 2" in caplog.text


@pytest.mark.parametrize("file", ["state.json", "state.safetensors", "checkpoint/config.json"])
def test_damage_is_named(
    begun: Path, go: Callable[..., Path], recipe: Recipe, file: str
) -> None:
    path = begun / "last" / file
    path.write_bytes(b"{}" if file == "state.json" else path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="last"):
        go(begun, recipe(checkpoint_minutes=0))
