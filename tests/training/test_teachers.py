"""Teachers: which belongs to what, what is refused, and a student that learns from one."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import Recipe
from tests.training.helpers import log_of
from training.checkpoint import load_checkpoint
from training.config import DistilConfig, RunConfig
from training.errors import CheckpointError, ConfigError, CorpusError
from training.model import GPT, ModelConfig
from training.stages import start
from training.teachers import Teacher, open_teachers, thinned
from training.tokenizer import train_tokenizer

Train = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def held_out() -> Any:
    """One line in ten is held out, as the corpus is too small for one in 200."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.shards.hash64", lambda text: zlib.crc32(text.encode()) % 10)
        yield


@pytest.fixture(scope="module")
def teacher(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer_file: Path, recipe: Recipe,
    held_out: None,
) -> Path:  # fmt: skip
    """A checkpoint that translates both ways and is good at it."""
    folder = tmp_path_factory.mktemp("teacher")
    config = recipe(steps=180, batch_tokens=256)
    return start(config, corpus, folder, tokenizer_file, device="cpu", progress=False)


def loss_of(entry: dict[str, Any]) -> float:
    return float(entry["valid/en-de/loss"] + entry["valid/de-en/loss"])


# -- finding teachers


def test_the_first_glob_that_matches_names_the_teacher(
    tmp_path: Path, teacher: Path, tokenizer_file: Path
) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    config = DistilConfig({"*-de": str(other), "*": str(teacher)}, words=0.5)
    found = open_teachers(config, ["de-en", "en-de", "de"], tokenizer_file, CPU)
    assert {way: t.folder for way, t in found.items()} == {
        "de-en": teacher, "en-de": other, "de": teacher
    }  # fmt: skip
    assert found["de-en"] is found["de"] and found["de"].digest == found["en-de"].digest
    model = found["de"].model()
    assert model is found["de"].model() and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    some = open_teachers(DistilConfig({"en-*": str(teacher)}), ["de-en", "en-de"],
                         tokenizer_file, CPU)  # fmt: skip
    assert list(some) == ["en-de"]


def test_unfit_teachers_are_refused(tmp_path: Path, teacher: Path, tokenizer_file: Path) -> None:
    def refused(words: str, glob: str, folder: Path, ways: list[str],
                error: type[Exception] = ConfigError) -> None:  # fmt: skip
        with pytest.raises(error, match=words):
            open_teachers(DistilConfig({glob: str(folder)}), ways, tokenizer_file, CPU)

    refused("'en-zh': matches nothing; the run has en-de, de", "en-zh", teacher, ["en-de", "de"])
    refused("was not trained for en-fr; it knows de-en, en-de", "*", teacher, ["en-fr"])
    refused("was not trained for fr; it knows en, de", "fr", teacher, ["fr"])
    refused("nowhere", "*", tmp_path / "nowhere", ["en-de"], CheckpointError)
    foreign = shutil.copytree(teacher, tmp_path / "foreign")
    train_tokenizer(["other text"], 512, ["en", "de"]).save(str(foreign / "tokenizer.json"))
    refused(
        r"the vocabulary of .*foreign.tokenizer.json .* is not that of .*tokenizer.json", "*",
        foreign, ["en-de"],
    )  # fmt: skip


def test_a_reserved_entry_that_has_got_a_name_is_no_difference(
    tmp_path: Path, teacher: Path, tokenizer_file: Path
) -> None:
    text = tokenizer_file.read_text()
    assert "<|reserved:5|>" in text
    named = tmp_path / "named.json"
    named.write_text(text.replace("<|reserved:5|>", "<|task:x|>"))
    assert open_teachers(DistilConfig({"*": str(teacher)}), ["en-de"], named, CPU)


@pytest.fixture
def train(corpus: Path, tokenizer_file: Path) -> Train:
    """`train(config, folder)`: the checkpoint of a run on the toy corpus or another."""

    def run(config: RunConfig, folder: Path, of: Path = corpus, init: Path | None = None) -> Path:
        return start(config, of, folder, tokenizer_file, init, device="cpu", progress=False)

    return run


# -- learning from them


def test_words_of_a_teacher_teach_more_than_labels(
    tmp_path: Path, corpus: Path, train: Train, recipe: Recipe, teacher: Path,
    held_out: None,
) -> None:  # fmt: skip
    found: dict[str, list[float]] = {"alone": [], "taught": []}
    logs: dict[str, list[dict[str, Any]]] = {}
    taught = {"teachers": {"*": str(teacher)}, "words": 0.9, "top_k": 32}
    for at in (20, 60):  # so few lines that labels alone are soon learnt by heart
        few = tmp_path / f"few{at}"
        few.mkdir()
        for code in ("en", "de"):
            lines = (corpus / f"train.{code}").read_text().splitlines(keepends=True)
            (few / f"train.{code}").write_text("".join(lines[at : at + 20]))
        for name, distil in (("alone", {}), ("taught", taught)):
            folder = tmp_path / f"{name}{at}"
            config = recipe(steps=50, batch_tokens=256, distil=distil)
            train(config, folder, few)
            logs[name] = log_of(folder)
            found[name].append(loss_of(logs[name][-1]))
    assert sum(found["taught"]) < 0.97 * sum(found["alone"])
    for entry in logs["taught"]:
        parts = 0.1 * entry["loss/translation"] + 0.9 * entry["loss/words"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)
    assert "loss/words" not in logs["alone"][0]


def test_hidden_states_and_relations_come_near(
    tmp_path: Path, train: Train, recipe: Recipe, teacher: Path
) -> None:
    distil = {"teachers": {"*": str(teacher)}, "hidden": 1.0, "relations": 1.0,
              "words": 0.5}  # fmt: skip
    config = recipe(steps=12, distil=distil, data={"text_share": 0.3}, mask="prefix")
    train(config, tmp_path)
    log = log_of(tmp_path)
    for name in ("hidden", "relations", "words"):
        values = [entry[f"loss/{name}"] for entry in log]
        assert 0 < values[-1] < 0.9 * values[0]


def test_a_pretrained_student_learns_from_a_language_model(
    tmp_path: Path, train: Train, recipe: Recipe
) -> None:
    first = train(recipe(stage="pretrain", steps=40), tmp_path / "teacher")
    config = recipe(
        stage="pretrain", steps=6, objectives={"causal": 1.0, "masking": 0.5},
        distil={"teachers": {"en": str(first), "de": str(first)}, "words": 0.5, "hidden": 0.5},
    )  # fmt: skip
    train(config, tmp_path / "student")
    for entry in log_of(tmp_path / "student"):
        parts = (0.5 * entry["loss/causal"] + 0.5 * entry["loss/words"]
                 + 0.5 * entry["loss/hidden"] + 0.5 * entry["loss/masking"])  # fmt: skip
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)
    config = recipe(stage="pretrain", steps=1, distil={"teachers": {"en": str(first)},
                                                       "hidden": 1.0})  # fmt: skip
    with pytest.raises(ConfigError, match="need one teacher for all of en, de"):
        train(config, tmp_path / "x")


def test_damaged_words_are_refused(
    tmp_path: Path, train: Train, recipe: Recipe, teacher: Path
) -> None:
    config = recipe(steps=2, distil={"teachers": {"en-de": str(teacher)}, "words": 0.5})

    train(config, tmp_path / "first")
    (file,) = (tmp_path / "first" / "teachers").glob("*.bin")
    data = file.read_bytes()
    shutil.copytree(file.parent, tmp_path / "again" / "teachers")
    copy = tmp_path / "again" / "teachers" / file.name
    copy.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(CorpusError, match="made anew"):
        train(config, tmp_path / "again")
    copy.unlink()
    train(config, tmp_path / "again")
    assert copy.read_bytes() == data


# -- the selective rule


def test_a_direction_is_distilled_while_it_is_behind(
    tmp_path: Path, train: Train, recipe: Recipe, teacher: Path,
    held_out: None,
) -> None:  # fmt: skip
    def run(name: str, margin: float) -> list[dict[str, Any]]:
        config = recipe(
            steps=6, valid_steps=2,
            distil={"teachers": {"en-de": str(teacher)}, "words": 0.5, "selective": True,
                    "margin": margin},
        )  # fmt: skip
        train(config, tmp_path / name)
        return log_of(tmp_path / name)

    behind, ahead = run("behind", 1.0), run("ahead", -200.0)
    for log, on in ((behind, 1), (ahead, 0)):
        assert [e["distil/en-de"] for e in log if "distil/en-de" in e] == [on] * 3
        assert not any("distil/de-en" in e for e in log)
        assert all(0 <= e["valid/en-de/bleu"] <= 100 for e in log if "distil/en-de" in e)
        assert log[1]["valid/en-de/teacher_bleu"] > 20
    assert [e["loss"] for e in behind[:2]] == [e["loss"] for e in ahead[:2]]
    for one, other in zip(behind[2:], ahead[2:], strict=True):
        assert one["loss"] != other["loss"]
        assert other["loss/words"] == pytest.approx(other["loss/translation"], rel=1e-5)
    kept = json.loads((tmp_path / "behind" / "teachers" / "bleu.json").read_text())
    assert list(kept.values()) == [behind[-1]["valid/en-de/teacher_bleu"]]


def test_decisions_are_part_of_the_run(
    tmp_path: Path, train: Train, recipe: Recipe, teacher: Path,
    held_out: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = recipe(
        steps=8, valid_steps=4, dropout=0.1, checkpoint_minutes=0,
        distil={"teachers": {"*": str(teacher)}, "words": 0.5, "selective": True, "margin": -200.0},
    )  # fmt: skip

    train(config, tmp_path / "whole")
    real, count = torch.optim.AdamW.step, 0

    def interrupted(self: Any, *rest: Any) -> Any:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return real(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped")
    state = json.loads((tmp_path / "stopped" / "last" / "state.json").read_text())
    assert state["step"] == 6 and state["distil"]["on"] == {"de-en": False, "en-de": False}
    weights = (teacher / "model.safetensors").read_bytes()
    assert state["distil"]["teachers"]["de-en"] == hashlib.sha256(weights).hexdigest()
    digest = Teacher.open
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "open", lambda *rest: replace(digest(*rest), digest="another"))
        with pytest.raises(CheckpointError, match="last: the teacher .* for de-en is not the one"):
            train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    whole, stopped = log_of(tmp_path / "whole"), log_of(tmp_path / "stopped")
    assert [e["loss"] for e in stopped] == [e["loss"] for e in whole]


def test_a_rule_without_held_out_pairs_is_refused(
    tmp_path: Path, train: Train, recipe: Recipe, teacher: Path
) -> None:
    config = recipe(data={"valid_examples": 0}, distil={
        "teachers": {"en-de": str(teacher)}, "words": 0.5, "selective": True})  # fmt: skip
    with pytest.raises(ConfigError, match="no pair is held out for en-de"):
        train(config, tmp_path)


# -- starting from a teacher's layers


@pytest.mark.parametrize(
    ("have", "layers", "taken"),
    [(12, 6, [0, 2, 4, 7, 9, 11]), (6, 3, [0, 3, 5]), (5, 5, [0, 1, 2, 3, 4]), (4, 2, [0, 3]),
     (4, 1, [0])],
)  # fmt: skip
def test_evenly_spaced_layers(have: int, layers: int, taken: list[int]) -> None:
    model = GPT(ModelConfig(90, have, 16, 2, 16))
    student, found = thinned(model, layers)
    assert found == taken and student.config.layers == layers
    mine, theirs = student.state_dict(), model.state_dict()
    for i, layer in enumerate(taken):
        assert torch.equal(mine[f"transformer.h.{i}.mlp.c_fc.weight"],
                           theirs[f"transformer.h.{layer}.mlp.c_fc.weight"])  # fmt: skip
    assert torch.equal(mine["transformer.wte.weight"], theirs["transformer.wte.weight"])
    x = torch.randint(90, (2, 7))
    expected = theirs["transformer.wte.weight"][x] + theirs["transformer.wpe.weight"][:7]
    for layer in taken:
        expected, _ = model.transformer["h"][layer](expected, None, True, None)  # type: ignore[index]
    expected = model.transformer["ln_f"](expected)
    torch.testing.assert_close(student(x)[0], expected)


def test_a_student_starts_from_its_teachers_layers(
    tmp_path: Path, train: Train, recipe: Recipe, teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from training.model import PRESETS

    monkeypatch.setitem(PRESETS, "one", {**PRESETS["test"], "layers": 1})
    monkeypatch.setitem(PRESETS, "three", {**PRESETS["test"], "layers": 3})
    config = recipe(model="one", steps=1, init_layers="even",
                    optimiser={"name": "adamw", "rate": 1e-9})  # fmt: skip
    made = train(config, tmp_path / "run", init=teacher)
    model, meta = load_checkpoint(made)
    assert meta["init_layers"] == [0] and model.config.layers == 1
    theirs = load_checkpoint(teacher)[0].state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=0)
    for keys, init, words in (
        ({"model": "three"}, teacher, "checkpoint has 2 layers, the recipe's model 3"),
        ({"model": "mini"}, teacher, "checkpoint has 2 layers, the recipe's model 6"),
        ({"model": "test"}, None, "init_layers = 'even': give the checkpoint"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(recipe(init_layers="even", **keys), tmp_path / "x", init=init)
    monkeypatch.setitem(PRESETS, "wide", {**PRESETS["test"], "layers": 1, "width": 96})
    with pytest.raises(ConfigError, match="init .*width=64.* the recipe's model is .*width=96"):
        train(recipe(init_layers="even", model="wide"), tmp_path / "x", init=teacher)
