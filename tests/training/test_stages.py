"""The stages: what a run is made of, what it leaves behind, and what it refuses to start."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import Recipe
from tests.training.helpers import log_of
from training.config import RunConfig
from training.errors import CheckpointError, ConfigError, CorpusError
from training.evaluate import checkpoint_translator
from training.stages import start
from training.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in ten is held out, as the corpus is too small for one in 200."""
    monkeypatch.setattr("training.shards.hash64", lambda text: zlib.crc32(text.encode()) % 10)


def test_fine_tuning_from_a_pretrained_checkpoint(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe, held_out: None
) -> None:
    tests = [corpus / "tests"]
    first = start(
        recipe(stage="pretrain", steps=3), corpus, tmp_path / "pre", tokenizer_file,
        test_folders=tests, device="cpu", progress=False,
    )  # fmt: skip
    assert {k for k in log_of(tmp_path / "pre")[-1] if k.startswith("valid/")} == {
        f"valid/{code}/{figure}" for code in ("en", "de")
        for figure in ("loss", "perplexity", "bits_per_byte")
    }  # fmt: skip
    meta = json.loads((first / "meta.json").read_text())
    assert (meta["stage"], meta["pairs"], list(meta["templates"])) == ("pretrain", [], ["generate"])

    config = recipe(steps=40, dropout=0.1, data={"licences": {"toy": "CC0-1.0"}})
    last = start(config, corpus, tmp_path / "fine", tokenizer_file, first, tests, "cpu", False)
    entry = log_of(tmp_path / "fine")[-1]
    for direction in ("de-en", "en-de"):
        assert entry[f"valid/{direction}/perplexity"] == pytest.approx(
            math.exp(entry[f"valid/{direction}/loss"]), rel=1e-3
        )
    losses = [entry["loss"] for entry in log_of(tmp_path / "fine")]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
    meta = json.loads((last / "meta.json").read_text())
    assert meta["languages"] == {"en": "English", "de": "German"}
    assert meta["pairs"] == [["de", "en"], ["en", "de"]]
    assert meta["corpora"] == [
        {"name": "mono/book.de", "licence": ""}, {"name": "mono/book.en", "licence": ""},
        {"name": "toy.de-en", "licence": "CC0-1.0"},
    ]  # fmt: skip
    assert meta["templates"]["translate"] == [
        "<|src:{source}|>", "<|tgt:{target}|>", "{text}", "<|sep|>",
    ]  # fmt: skip
    assert meta["step"] == 40 and meta["config"]["dropout"] == 0.1 and meta["mask"] == "causal"
    assert (last / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()
    weights = [load_file(c / "model.safetensors")["transformer.wpe.weight"] for c in (first, last)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.nn.functional.cosine_similarity(*(w[:8].flatten() for w in weights), dim=0) > 0.5


def test_without_running_text_the_sides_of_pairs_are_held_out(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe, held_out: None
) -> None:
    pairs_only = shutil.copytree(corpus, tmp_path / "toy", ignore=shutil.ignore_patterns("mono"))
    start(recipe(stage="pretrain", steps=1), pairs_only, tmp_path / "run", tokenizer_file,
          device="cpu", progress=False)  # fmt: skip
    entry = log_of(tmp_path / "run")[-1]
    assert entry["valid/en/bits_per_byte"] > 0 and entry["valid/de/bits_per_byte"] > 0


def test_the_prefix_mask_is_trained_and_written_down(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe, held_out: None
) -> None:
    losses = {}
    for mask in ("causal", "prefix"):
        config = recipe(steps=2, mask=mask, data={"text_share": 0.2})
        checkpoint = start(config, corpus, tmp_path / mask, tokenizer_file, device="cpu",
                           progress=False)  # fmt: skip
        assert json.loads((checkpoint / "meta.json").read_text())["mask"] == mask
        losses[mask] = log_of(tmp_path / mask)[-1]
    assert losses["causal"]["loss"] != losses["prefix"]["loss"]
    assert losses["prefix"]["valid/en/loss"] > 0 and losses["prefix"]["valid/en-de/loss"] > 0


def test_sources_of_no_weight_are_not_read(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe
) -> None:
    config = recipe(steps=1, data={"weights": {"mono/*": 0.0, "*": 1.0}})
    checkpoint = start(config, corpus, tmp_path / "run", tokenizer_file, device="cpu",
                       progress=False)  # fmt: skip
    meta = json.loads((checkpoint / "meta.json").read_text())
    assert [c["name"] for c in meta["corpora"]] == ["toy.de-en"]
    assert "mono" not in (tmp_path / "run" / "corpus.txt").read_text()


def test_test_sentences_are_not_trained_on(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe
) -> None:
    leaky = shutil.copytree(corpus, tmp_path / "toy")
    for code in ("en", "de"):
        with (leaky / f"train.{code}").open("a") as file:
            file.write((corpus / "tests" / f"set.{code}").read_text())
    start(recipe(steps=1), leaky, tmp_path / "run", tokenizer_file, None, [corpus / "tests"],
          "cpu", False)  # fmt: skip
    rows = [x.split("  ") for x in (tmp_path / "run" / "corpus.txt").read_text().splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["source", "read", "kept", "leak: sentence"]
    assert cells[-1] == ["toy.de-en", "260", "240", "20"]


def test_what_cannot_start_is_refused(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe
) -> None:
    def refused(words: str, config: RunConfig, error: type[Exception] = ConfigError,
                **changes: Any) -> None:  # fmt: skip
        arguments = {"corpus": corpus, "tokenizer_file": tokenizer_file, "device": "cpu",
                     "progress": False, **changes}  # fmt: skip
        with pytest.raises(error, match=words):
            start(config, folder=tmp_path / "run", **arguments)

    refused("model = 'huge'", recipe(model="huge"))
    refused("data.max_tokens = 200: the context of model = 'test' is 128",
            recipe(data={"max_tokens": 200}))  # fmt: skip
    refused("device = 'abacus'", recipe(), device="abacus")
    refused("nowhere", recipe(), CorpusError, corpus=tmp_path / "nowhere")
    refused("nowhere", recipe(), CheckpointError, init=tmp_path / "nowhere")
    refused("nowhere: no such folder", recipe(), CorpusError, test_folders=[tmp_path / "nowhere"])
    refused("no example that fits", recipe(data={"max_tokens": 8}), CorpusError)
    for weights, stage, words in (
        ({"mono/*": 1.0}, "finetune", "pairs with a weight above 0 in .*: nothing in de, en"),
        ({"mono/book.en": 1.0}, "pretrain", "sources with a weight above 0 in .*: nothing in de"),
    ):
        refused(words, recipe(stage=stage, data={"weights": weights}), CorpusError)
    refused("data.directions: 'en-ed' matches nothing", recipe(data={"directions": ["en-ed"]}),
            CorpusError)  # fmt: skip
    if not torch.cuda.is_available():
        refused("device = 'cuda'", recipe(), device="cuda")
    english = tmp_path / "english.json"
    train_tokenizer(["text"], 400, ["en"]).save(str(english))
    english.write_text(english.read_text().replace("<|reserved:", "<|taken:"))
    refused("no <.src:de.>, and no reserved entry", recipe(), tokenizer_file=english)


def test_an_unfit_checkpoint_to_start_from_is_refused(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe
) -> None:
    checkpoint = start(recipe(steps=1), corpus, tmp_path / "one", tokenizer_file, device="cpu",
                       progress=False)  # fmt: skip
    other = tmp_path / "other.json"
    train_tokenizer(["text"], 400, ["en", "de"]).save(str(other))
    for config, tokenizer, words in (
        (recipe(), other, "other.json: its tokens are not those of .*tokenizer.json"),
        (recipe(model="mini"), tokenizer_file, "the recipe's model is .*layers=6"),
    ):
        with pytest.raises(ConfigError, match=words):
            start(config, corpus, tmp_path / "two", tokenizer, checkpoint, [], "cpu", False)


ONE_WAY = "forward.en-to-de.tsv"


def test_machine_translations_of_another_folder_are_learnt_in_their_direction(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe, held_out: None,
    toy_lines: dict[str, list[str]],
) -> None:  # fmt: skip
    (tmp_path / "made").mkdir()
    pairs = zip(toy_lines["en"], toy_lines["de"], strict=True)
    lines = [f"{a}\t{b}\t-0.{i % 9}\n" for i, (a, b) in enumerate(pairs)]
    (tmp_path / "made" / ONE_WAY).write_text("".join(lines))
    config = recipe(steps=1, data={"min_score": -0.5, "weights": {"toy": 0.0, "*": 1.0}})
    last = start(config, corpus, tmp_path / "run", tokenizer_file, None, [corpus / "tests"], "cpu",
                 False, adds=[tmp_path / "made"])  # fmt: skip
    meta = json.loads((last / "meta.json").read_text())
    assert meta["pairs"] == [["en", "de"]]
    assert [c["name"] for c in meta["corpora"]][-1] == "forward.en-to-de"
    table = (tmp_path / "run" / "corpus.txt").read_text()
    assert "low score" in table and "leak: sentence" in table
    assert not any(k.startswith("valid/en-de") for k in log_of(tmp_path / "run")[-1])
    with pytest.raises(CorpusError, match="not those the run was started with"):
        start(config, corpus, tmp_path / "run", tokenizer_file, None, [corpus / "tests"], "cpu",
              False, adds=[copied(tmp_path, "also.en-to-de.tsv")])  # fmt: skip


def copied(folder: Path, name: str) -> Path:
    (folder / "other").mkdir()
    shutil.copy(folder / "made" / ONE_WAY, folder / "other" / name)
    return folder / "other"


def test_a_new_language_goes_on_with_an_old_vocabulary(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe
) -> None:
    """What the first run knew stays in the checkpoint of the second, which is told to go on."""
    one = start(recipe(steps=1), corpus, tmp_path / "one", tokenizer_file, device="cpu",
                progress=False)  # fmt: skip
    lines = [f"The dog number {i}\tEl perro n\u00famero {i}\n" for i in range(300)]
    (tmp_path / "es").mkdir()
    (tmp_path / "es" / "dogs.en-es.tsv").write_text("".join(lines))
    config = recipe(model="init", steps=1, data={"languages": ["en", "es"]})
    two = start(config, tmp_path / "es", tmp_path / "two", tokenizer_file, one, [], "cpu", False)
    meta = json.loads((two / "meta.json").read_text())
    assert list(meta["languages"]) == ["en", "de", "es"]
    assert meta["pairs"] == [["de", "en"], ["en", "de"], ["en", "es"], ["es", "en"]]
    before, after = (load_tokenizer(f) for f in (tokenizer_file, two / "tokenizer.json"))
    assert [after.token_to_id(f"<|{side}:es|>") for side in ("src", "tgt")] == [7, 8]
    assert before.id_to_token(7) == "<|reserved:0|>" and after.token_to_id("<|src:de|>") == 4
    text = "El perro: <|src:es|>"
    assert after.encode(text).ids == before.encode(text).ids
    assert checkpoint_translator(two)(["The dog"], "en", "es")[0][1] in ("stop", "length")
    # a third run, given the first tokenizer again, keeps the names of the second
    config = recipe(steps=1, model="init")
    three = start(config, corpus, tmp_path / "three", tokenizer_file, two, [], "cpu", False)
    assert (three / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()


def test_a_corpus_of_which_nothing_is_left_is_named(
    tmp_path: Path, tokenizer_file: Path, recipe: Recipe
) -> None:
    for name, text, words in (
        ("empty", "", "empty/web.en-de.tsv: is empty"),
        ("alike", "one\tone\n", "alike: nothing is left of it; .*corpus.txt"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "web.en-de.tsv").write_text(text)
        with pytest.raises(CorpusError, match=words):
            start(recipe(), folder, tmp_path / f"{name}-run", tokenizer_file, device="cpu",
                  progress=False)  # fmt: skip
    (tmp_path / "bare").mkdir()
    with pytest.raises(CorpusError, match="corpus .*bare: nothing in de, en"):
        start(recipe(), tmp_path / "bare", tmp_path / "bare-run", tokenizer_file, device="cpu",
              progress=False)  # fmt: skip
