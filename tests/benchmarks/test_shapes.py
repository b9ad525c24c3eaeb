"""Shapes of the model: the cells can be read by the runner, speeds stand beside their scores."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from benchmarks import shapes
from benchmarks.ablations import config_of
from training.model import preset


def test_every_cell_is_a_run_of_a_shape() -> None:
    spec = tomllib.loads(Path(shapes.__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    assert spec["tables"]["shapes"] == [cell["name"] for cell in spec["cells"]]
    for cell in spec["cells"]:
        config = config_of(spec, cell, "finetune", 1, [])
        made = preset(config.model, 1000)
        assert cell["name"] == f"{made.layers}x{made.width}-{made.heads}"


def test_a_table_of_quality_and_speed(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, bleu in (("one", 12.0), ("two", 14.0)):
        folder = tmp_path / "cells" / f"{name}-1"
        shutil.copytree(random_checkpoint, folder / "finetune" / "checkpoint")
        (folder / "finetune" / "metrics.jsonl").write_text('{"step": 1234}\n')
        rows = [{"bleu": bleu, "chrf": 30.0}, {"bleu": bleu + 1, "chrf": 31.0}]
        (folder / "results.json").write_text(json.dumps({"cell": name, "scores": rows}))
    options = ["--cells", tmp_path / "cells", "--out", tmp_path / "out", "--rounds", 1]
    assert shapes.main([str(option) for option in options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("| one |") and "| 1,234 | 12.5 | 30.5 |" in lines[-2]
    assert lines[-1].startswith("| two |") and "| 14.5 |" in lines[-1]
    speeds = json.loads((tmp_path / "out" / "shapes.json").read_text())
    assert all(min(of["tokens_per_s"]["32"]) > 0 for of in speeds.values())
