"""Cells of the ablation: their recipes, and their tables."""

from __future__ import annotations

import json
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablations import SPEC, accuracy_table, config_of, print_tables, table


def cell(name: str, seed: int, bleu: float, **more: Any) -> dict[str, Any]:
    rows = [{"source": "en", "target": code, "bleu": bleu + i, "chrf": 2 * bleu,
             "bleu_signature": "b", "chrf_signature": "c"} for i, code in enumerate(("de", "fr"))]
    return {"cell": name, "seed": seed, "seconds": {"finetune": 100.0 * seed}, "scores": rows,
            **more}  # fmt: skip


def test_every_cell_is_a_recipe_of_its_budget() -> None:
    spec = tomllib.loads(SPEC.read_text(encoding="utf-8"))
    names = [one["name"] for one in spec["cells"]]
    assert {name for of in spec["tables"].values() for name in of} <= set(names)
    for one in spec["cells"]:
        stages = ("pretrain", "finetune") if "pretrain" in one else ("finetune",)
        configs = [config_of(spec, one, stage, 1, ["*=checkpoint"]) for stage in stages]
        expected = 750_000 if one["name"] == "none-half" else 1_500_000
        assert sum(config.tokens for config in configs) == expected, one["name"]


def test_mean_and_half_the_range() -> None:
    runs = {"none": [cell("none", 1, 10.0, text={"en": 1.5}), cell("none", 2, 12.0)]}
    head, _, line = table(runs).splitlines()
    assert head.startswith("| cell | seeds | seconds | bits per byte | en-de BLEU | en-de chrF |")
    assert line == ("| none | 2 | 150 ± 50 | 1.500 | 11.0 ± 1.0 | 22.0 ± 2.0 "
                    "| 12.0 ± 1.0 | 22.0 ± 2.0 | 11.5 ± 1.0 |")  # fmt: skip


def test_accuracies_are_means_over_languages_beside_the_commoner_answer() -> None:
    figures = {"valid/en/replaced_accuracy": 0.9, "valid/en/replaced_base": 0.8,
               "valid/de/replaced_accuracy": 0.7, "valid/de/replaced_base": 0.6,
               "valid/en/bits_per_byte": 2.0}  # fmt: skip
    other = {"valid/en/next_sentence_accuracy": 0.75}
    text = accuracy_table({"a": [cell("a", 1, 1.0, auxiliary=figures)],
                           "b": [cell("b", 1, 1.0, auxiliary=other)]})  # fmt: skip
    head, _, first, second = text.splitlines()
    assert head == ("| cell | replaced: accuracy | replaced: commoner answer "
                    "| next sentence: accuracy | next sentence: commoner answer |")  # fmt: skip
    assert first == "| a | 80.0 % | 70.0 % |  |  |"
    assert second == "| b |  |  | 75.0 % | 50.0 % |"


def test_tables_and_figures_of_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("none", 1), ("none", 2), ("prefix", 1)):
        (tmp_path / f"{name}-{seed}").mkdir()
        (tmp_path / f"{name}-{seed}" / "results.json").write_text(json.dumps(cell(name, seed, 9.0)))
    print_tables(Namespace(out=tmp_path, spec=SPEC, figures=tmp_path / "figures"))
    printed = capsys.readouterr().out
    assert "### Architecture" in printed and "| prefix | 1 |" in printed
    assert "Accuracy" not in printed and printed.endswith("- `b`\n- `c`\n")
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found == [f"ablation-{name}.png" for name in ("architecture", "distillation",
                                                         "pretraining")]  # fmt: skip
