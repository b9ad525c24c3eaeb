"""Cells of the ablation: their recipes, and their tables."""

from __future__ import annotations

import json
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablations import SPEC, accuracy_table, config_of, main, print_tables, table
from gpt2_mt.cli import main as command
from tests import toy

TEACHER = ["*=checkpoint"]


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
        configs = [config_of(spec, one, stage, 1, TEACHER) for stage in stages]
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


@pytest.mark.parametrize("file", sorted(SPEC.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_every_spec_can_be_read(file: Path) -> None:
    spec = tomllib.loads(file.read_text(encoding="utf-8"))
    names = [one["name"] for one in spec["cells"]]
    assert {name for of in spec["tables"].values() for name in of} <= set(names)
    for one in spec["cells"]:
        if "like" in one:
            assert one["like"] in names
        else:
            config_of(spec, one, "finetune", 1, TEACHER)


SPEC_OF_A_PAIR_UNSEEN = """
seeds = [1]
sets = ["toy"]
unseen = ["de-fr"]
tables = { transfer = ["without", "through"] }
base = { model = "test", batch_tokens = 512, data = { languages = ["en", "de", "fr"] } }
finetune = { steps = 2 }

[[cells]]
name = "without"
finetune = { data = { directions = ["en-*", "*-en"] } }

[[cells]]
name = "through"
like = "without"
via = { "de-fr" = "en" }
"""


def test_a_pair_unseen_is_scored_directly_and_through_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write(tmp_path / "toy")
    tests, tokenizer = tmp_path / "toy" / "tests", tmp_path / "tokenizer"
    commands = ["train", "tokenizer", "--corpus", str(tmp_path / "toy"), "--languages", "en,de,fr",
                "--vocabulary", "700", "--out", str(tokenizer)]  # fmt: skip
    assert command(commands) == 0
    (tmp_path / "spec.toml").write_text(SPEC_OF_A_PAIR_UNSEEN)
    common = ["--out", str(tmp_path / "out"), "--spec", str(tmp_path / "spec.toml")]
    where = ["--corpus", str(tmp_path / "toy"), "--tests", str(tests), "--limit", "3",
             "--tokenizer", str(tokenizer / "tokenizer.json"), "--threads", "1"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["ablations", "run", *where, *common])
    assert main() == 0
    asked = {}
    for name in ("without", "through"):
        found = json.loads((tmp_path / "out" / f"{name}-1" / "results.json").read_text())
        asked[name] = {f"{row['source']}-{row['target']}" for row in found["scores"]}
    assert asked["through"] == asked["without"] == {"en-de", "de-en", "en-fr", "fr-en", "de-fr"}
    monkeypatch.setattr("sys.argv", ["ablations", "table", *common])
    assert main() == 0
    assert "| through | 1 |" in capsys.readouterr().out
