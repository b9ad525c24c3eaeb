"""Bits per byte against a computation by hand; translations by a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.training.helpers import greedy_without_cache, nats
from training.batches import PairRows, Tags, TextRows
from training.checkpoint import save_checkpoint
from training.corpus import Source
from training.decode import beam
from training.errors import CheckpointError, ConfigError
from training.evaluate import (
    NGRAM_REPEATS,
    NO_REPEAT_NGRAM,
    checkpoint_text_loss,
    checkpoint_translator,
    flat,
    losses,
    token_bytes,
    valid_batches,
)
from training.model import GPT, preset
from training.shards import Shard, encode, write_shard
from training.tokenizer import TRANSLATE

TEXTS = ["Der Lehrer sucht heute den Hund.", "The teacher looks for the dog today.",
         "Nächte 语", "Nights", "Das Kind", "The child sees two birds."]  # fmt: skip


@pytest.fixture
def big(tokenizer: Tokenizer) -> GPT:
    """A model of the toy tokenizer's size, drawn wide."""
    torch.manual_seed(2)
    model = GPT(preset("test", tokenizer.get_vocab_size()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def shard(tokenizer: Tokenizer, tmp_path: Path) -> Shard:
    source = Source("web", ("de", "en"), ())
    return write_shard(tmp_path / "web.bin", source, encode(tokenizer, TEXTS), "")


def test_bytes_of_tokens(tokenizer: Tokenizer) -> None:
    sizes = token_bytes(tokenizer)
    assert len(sizes) == tokenizer.get_vocab_size() and not sizes[:64].any()
    assert (sizes[64:] > 0).all()
    for text in [*TEXTS, "👩🏽‍🚀 <|sep|>"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert int(sizes[ids].sum()) == len(text.encode())


def test_losses_of_pairs_by_hand(
    big: GPT, tokenizer: Tokenizer, shard: Shard, tags: Tags
) -> None:
    rows = PairRows([shard], [1.0], tags, 100)
    batches = valid_batches(rows, {}, 64, 100)
    with torch.inference_mode():
        found = losses(big, batches, token_bytes(tokenizer), "causal", torch.float32)
    assert list(found) == ["de-en", "en-de"]
    for direction, tag in enumerate(found):
        total, tokens, size = 0.0, 0, 0
        for pair in range(3):
            ids, prompt = rows.row(np.array([0, pair, direction]))
            total += nats(big, ids, range(prompt, len(ids)))
            tokens += len(ids) - prompt
            size += len(TEXTS[2 * pair + 1 - direction].encode())
        assert found[tag]["loss"] == pytest.approx(total / tokens, rel=1e-4)
        assert found[tag]["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-3)
        assert found[tag]["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-4)


def test_losses_of_text_by_hand(big: GPT, tokenizer: Tokenizer, shard: Shard) -> None:
    text = TextRows([shard], [1.0], 0, 16)
    batches = valid_batches(None, {"en": text}, 40, 2)
    assert [(b.tag, b.ids.shape[0]) for b in batches] == [("en", 2)]
    found = losses(big, batches, token_bytes(tokenizer), "causal", torch.float32)["en"]
    rows = [[*ids.tolist(), targets[-1].item()] for ids, targets in
            zip(batches[0].ids, batches[0].targets, strict=True)]  # fmt: skip
    total = sum(nats(big, row, range(1, len(row))) for row in rows)
    sizes = token_bytes(tokenizer)
    size = sum(int(sizes[row[1:]].sum()) for row in rows)
    assert found["loss"] == pytest.approx(total / 32, rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-4)


def test_the_batches_held_out_are_the_same_every_time_and_limited(shard: Shard, tags: Tags) -> None:
    rows = PairRows([shard], [1.0], tags, 100)
    one, two = (valid_batches(rows, {}, 64, 2) for _ in range(2))
    assert [b.ids.tolist() for b in one] == [b.ids.tolist() for b in two]
    counts = {tag: sum(len(b.ids) for b in one if b.tag == tag) for tag in ("de-en", "en-de")}
    assert counts == {"de-en": 2, "en-de": 2}
    assert valid_batches(None, {"en": TextRows([shard], [1.0], 0, 5000)}, 64, 2) == []


def test_flat_names_for_the_log() -> None:
    assert flat({"en": {"loss": 1.234567}}) == {"valid/en/loss": 1.23457}
    assert flat({}) == {}


RULE = {"no_repeat_ngram": NO_REPEAT_NGRAM, "ngram_repeats": NGRAM_REPEATS}
META = {"mask": "causal", "templates": {"translate": TRANSLATE}}


def saved(folder: Path, model: GPT, tokenizer_file: Path, meta: dict[str, object]) -> Path:
    save_checkpoint(folder / "checkpoint", model, tokenizer_file, meta)
    return folder / "checkpoint"


@pytest.mark.parametrize("batch", [2, 64])
def test_translations_come_in_the_order_of_the_lines(
    big: GPT, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path, batch: int
) -> None:
    translate = checkpoint_translator(saved(tmp_path, big, tokenizer_file, META), batch=batch)
    lines = [TEXTS[i] for i in (0, 4, 2, 4)] + [""]
    found = translate(lines, "de", "en")
    for line, (text, reason) in zip(lines, found, strict=True):
        prompt = [4, 5, *tokenizer.encode(line, add_special_tokens=False).ids, 2]
        limit = min(3 * len(prompt) + 32, 128 - len(prompt))
        ids, expected = greedy_without_cache(big, prompt, limit, **RULE)
        assert (text, reason) == (tokenizer.decode(ids), expected)
    assert len({text for text, _ in found}) > 2
    assert translate([], "de", "en") == []


@pytest.mark.parametrize(("size", "alpha"), [(1, 1.0), (4, 0.6)])
def test_translations_have_scores_and_may_be_searched_by_beam(
    big: GPT, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path, size: int, alpha: float
) -> None:
    folder = saved(tmp_path, big, tokenizer_file, META)
    translate = checkpoint_translator(folder, 2, beam=size, length_penalty=alpha)
    found = translate.scored(TEXTS[:3], "de", "en")
    assert translate(TEXTS[:3], "de", "en") == [(text, reason) for text, reason, _ in found]
    for line, (text, reason, score) in zip(TEXTS, found, strict=False):
        prompt = [4, 5, *tokenizer.encode(line, add_special_tokens=False).ids, 2]
        limit = min(3 * len(prompt) + 32, 128 - len(prompt))
        (best,), = beam(big, [prompt], [limit], size, alpha, **RULE)
        assert (text, reason) == (tokenizer.decode(list(best.ids)), best.reason)
        whole = [*prompt, *best.ids, *([0] if reason == "stop" else [])]
        expected = -nats(big, whole, range(len(prompt), len(whole))) / (len(whole) - len(prompt))
        assert score == pytest.approx(expected, abs=1e-4)
    if size > 1:
        assert found != checkpoint_translator(folder, 2).scored(TEXTS[:3], "de", "en")


def test_a_tag_in_the_text_is_text(
    big: GPT, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    translate = checkpoint_translator(saved(tmp_path, big, tokenizer_file, META))
    ids = [4, 5, *tokenizer.encode("<|sep|>", add_special_tokens=False).ids, 2]
    assert len(ids) > 6
    expected = greedy_without_cache(big, ids, 3 * len(ids) + 32, **RULE)
    assert translate(["<|sep|>"], "de", "en") == [(tokenizer.decode(expected[0]), expected[1])]


def test_text_is_measured_line_by_line(
    big: GPT, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    measure = checkpoint_text_loss(saved(tmp_path, big, tokenizer_file, META))
    rows = [[0, *tokenizer.encode(t, add_special_tokens=False).ids, 0] for t in TEXTS[:3]]
    bits, tokens, size = measure(TEXTS[:3])
    expected = sum(nats(big, r, range(1, len(r))) for r in rows)
    assert bits == pytest.approx(expected / math.log(2), rel=1e-4)
    assert tokens == sum(len(row) - 1 for row in rows)
    assert size == sum(len(text.encode()) for text in TEXTS[:3])
    assert measure([]) == (0.0, 0, 0)
    assert measure(["x" * 400])[1] == 127  # cut at the context


def test_what_cannot_translate_is_named(big: GPT, tokenizer_file: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path, big, tokenizer_file, META)
    with pytest.raises(CheckpointError, match="no tag for de-ja"):
        checkpoint_translator(folder)(["Hallo"], "de", "ja")
    with pytest.raises(ConfigError, match="exceed the model's context of 128"):
        checkpoint_translator(folder)(["x" * 400], "de", "en")
    (folder / "meta.json").write_text(json.dumps({"templates": {"generate": []}}))
    with pytest.raises(CheckpointError, match="no translation template"):
        checkpoint_translator(folder)
