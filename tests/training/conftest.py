"""Fixtures of the training tests: a tiny generated corpus, a tokenizer and a recipe for it."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tests.toy import LANGUAGES, sentences
from tests.training.helpers import Batches, random_batch
from training.batches import Batch, Tags
from training.config import RunConfig, build
from training.learner import Learner
from training.loop import Run, autocast
from training.model import GPT, ModelConfig, preset
from training.tokenizer import load_tokenizer, train_tokenizer

CODES = ("en", "de")
VOCABULARY = 512


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy_lines() -> dict[str, list[str]]:
    """260 aligned toy sentences in English and German, each once."""
    lines = sentences()
    random.Random(3).shuffle(lines)
    return {code: [line[LANGUAGES.index(code)] for line in lines[:260]] for code in CODES}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, toy_lines: dict[str, list[str]]) -> Path:
    """A corpus folder: 240 aligned lines, some running text, and a test set of 20 other lines."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    (folder / "tests").mkdir(parents=True)
    for code, lines in toy_lines.items():
        (folder / "mono" / code).mkdir(parents=True)
        (folder / f"train.{code}").write_text("\n".join(lines[:240]) + "\n", encoding="utf-8")
        (folder / "tests" / f"set.{code}").write_text(
            "\n".join(lines[240:]) + "\n", encoding="utf-8"
        )
        text = "\n".join(x + ("\n" if i % 4 == 3 else "") for i, x in enumerate(lines[:240]))
        (folder / "mono" / code / "book.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer_file(
    tmp_path_factory: pytest.TempPathFactory, toy_lines: dict[str, list[str]]
) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    texts = [line for side in toy_lines.values() for line in side]
    train_tokenizer(texts, VOCABULARY, CODES).save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(bytes)`: the folder of a new file system of that size."""
    places = []

    def make(size: int) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting a small file system is not allowed here")
        places.append(place)
        return place

    yield make
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def tags() -> Tags:
    return Tags(0, 2, {"en": 3, "de": 4}, {"en": 5, "de": 6})


@pytest.fixture
def model() -> GPT:
    """Two layers, drawn wide enough that every part of it moves the logits."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocabulary=97, layers=2, width=32, heads=2, context=24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """`recipe(key=value, data={...})`: a small fine-tuning run with some keys replaced."""

    def make(**changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "stage": "finetune", "model": "test", "steps": 6, "batch_tokens": 512,
            "precision": "fp32", "checkpoint_minutes": 60.0, "valid_steps": 1000,
            "optimiser": {"name": "muon", "rate": 5e-3},
            "data": {"languages": list(CODES), "max_tokens": 64, "valid_examples": 8},
        }  # fmt: skip
        for key, value in changes.items():
            values[key] = {**values[key], **value} if key in ("data", "optimiser") else value
        if values.get("minutes"):
            values.pop("steps", None)
        return build(RunConfig, values, "")

    return make


@pytest.fixture
def make_run(
    tmp_path: Path, tokenizer_file: Path, recipe: Recipe
) -> Callable[..., Run]:
    """`make_run(name, batches, validate, key=value)`: a run over a few batches, not yet begun."""

    def make(
        name: str = "run", batches: list[Batch] | None = None, validate: Any = None, **keys: Any
    ) -> Run:
        config = recipe(**keys)
        torch.manual_seed(4)
        model = GPT(preset("test", 512, dropout=config.dropout))
        stream = Batches(batches or [random_batch(8, seed) for seed in range(3)])
        _, dtype = autocast(config, model.device)
        return Run(config, Learner(model, config, dtype), stream, tmp_path / name, {},  # type: ignore[arg-type]
                   tokenizer_file, validate or (lambda learner: {}), progress=False)  # fmt: skip

    return make
