"""Two ranks of torchrun learn what one process learns, stop and go on, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import Recipe
from tests.training.helpers import ROOT, curve
from tests.training.ranks import go
from training.distributed import ALONE, Ranks, load_weights, require_even
from training.errors import CheckpointError, ConfigError

KINDS = ("ddp", "fsdp")


def torchrun(
    file: Path, tasks: list[dict[str, Any]], paths: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Two ranks of this machine, on CPUs."""
    file.write_text(json.dumps({"tasks": tasks, "paths": paths}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", str(ROOT / "tests" / "training" / "ranks.py"),
               str(file)]  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def task(
    recipe: Recipe, folder: Path, parallel: str, optimiser: str = "adamw", **more: Any
) -> dict[str, Any]:
    config = recipe(
        steps=5, accumulate=4, batch_tokens=512, valid_steps=2, checkpoint_minutes=0.0, ema=0.7,
        source_loss=0.3, optimiser={"name": optimiser, "rate": 5e-3, "clip": 0.5},
        parallel=parallel,
    )  # fmt: skip
    return {"folder": str(folder), "recipe": json.loads(json.dumps(asdict(config))), **more}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("numbers")
    for code, text in (("en", "line number"), ("de", "Zeile mit Nummer")):
        lines = [f"{text} {i}\n" for i in range(1000)]  # a few of them are held out
        (folder / f"train.{code}").write_text("".join(lines))
    return {"corpus": str(folder), "tokenizer": str(tokenizer_file)}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, paths: dict[str, str], recipe: Recipe
) -> Path:
    """Runs `one`, `ddp`, `fsdp`; stopped after three steps and carried on by two ranks in
    `-again`, by one process in `-fewer`.
    """
    folder = tmp_path_factory.mktemp("runs")
    tasks = []
    for kind in KINDS:
        again, fewer = folder / f"{kind}-again", folder / f"{kind}-fewer"
        tasks += [
            task(recipe, folder / kind, kind),
            task(recipe, again, kind, stop=3, copy=str(fewer)), task(recipe, again, kind),
        ]  # fmt: skip
    tasks.append(task(recipe, folder / "fsdp-muon", "fsdp", "muon"))
    done = torchrun(folder / "work.json", tasks, paths)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.set_num_threads(1)
    go(task(recipe, folder / "one", "ddp"), paths)
    go(task(recipe, folder / "one-muon", "ddp", "muon"), paths)
    for kind in KINDS:
        go(task(recipe, folder / f"{kind}-fewer", kind), paths)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_learn_what_one_process_learns(folder: Path, kind: str) -> None:
    one, two = curve(folder / "one"), curve(folder / kind)
    assert [e["step"] for e in one] == [e["step"] for e in two] == [1, 2, 3, 4, 5]
    assert "valid/en-de/loss" in one[1]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-5), b
    assert one[0]["loss"] > one[4]["loss"] + 0.2
    weights = [load_file(folder / f / "checkpoint" / "model.safetensors") for f in ("one", kind)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-5, rtol=1e-3)


def test_muon_works_on_slices(folder: Path) -> None:
    one, two = curve(folder / "one-muon"), curve(folder / "fsdp-muon")
    for a, b in zip(one, two, strict=True):  # it orthogonalises in bf16
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
    assert one[4]["loss"] != curve(folder / "one")[4]["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_go_on_bit_identically(folder: Path, kind: str) -> None:
    assert curve(folder / f"{kind}-again") == curve(folder / kind)
    for file in ("last/state.safetensors", "last/raw.safetensors", "checkpoint/model.safetensors"):
        a, b = ((folder / name / file).read_bytes() for name in (kind, f"{kind}-again"))
        assert a == b, file


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_with_what_two_ranks_began(folder: Path, kind: str) -> None:
    one, fewer = curve(folder / "one"), curve(folder / f"{kind}-fewer")
    for a, b in zip(one, fewer, strict=True):
        assert b == pytest.approx(a, rel=1e-5)


def test_ranks_end_together(tmp_path: Path, paths: dict[str, str], recipe: Recipe) -> None:
    done = torchrun(
        tmp_path / "work.json", [task(recipe, tmp_path / "run", "ddp", fail=2)], paths
    )
    assert done.returncode == 1 and "one rank fails" in done.stderr
    assert len(curve(tmp_path / "run")) == 2
    assert json.loads((tmp_path / "run" / "last" / "state.json").read_text())["step"] == 2


def test_uneven_shares_are_refused(paths: dict[str, str]) -> None:
    for accumulate, world in ((4, 4), (6, 3), (1, 1)):
        require_even(accumulate, Ranks(0, world))
    with pytest.raises(ConfigError, match="accumulate = 6: must be a multiple of 4 ranks"):
        require_even(6, Ranks(0, 4))


def test_one_process_is_all_ranks() -> None:
    assert ALONE.sum({"a": 1.5}) == {"a": 1.5} and ALONE.gather("x") == ["x"]
    assert ALONE.first and ALONE.agree(3) == 3
    with ALONE.first_alone():
        pass


def test_weights_that_do_not_fit_are_named() -> None:
    weights = {"a": torch.zeros(2), "b": torch.zeros(3)}
    load_weights(weights, {"a": torch.ones(2), "b": torch.ones(3)})
    assert weights["b"].tolist() == [1, 1, 1]
    for tensors, words in (
        ({"a": torch.ones(2)}, "b is missing"),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, "c is unknown"),
        ({"a": torch.ones(2), "b": torch.ones(4)}, r"b is \(4,\), the run's is \(3,\)"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_weights(weights, tensors)
