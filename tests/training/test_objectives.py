"""Auxiliary objectives: terms by hand; each of them learns, is resumed and is left behind."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.training.conftest import Recipe
from tests.training.helpers import log_of
from training.batches import IGNORED, Batch, Cursor, Stream, TextRows
from training.corpus import Source
from training.corruption import Vocabulary
from training.evaluate import auxiliary_batches, auxiliary_figures
from training.heads import Generator
from training.learner import Learner, step_counts
from training.loop import Run
from training.mixture import Mixture
from training.model import GPT, ModelConfig
from training.objectives import filled_in, replaced_term
from training.optim import build_optimisers
from training.shards import Shard, write_shard
from training.stages import start

EVERYTHING = {
    "masking": 1.0, "infilling": 0.5, "replaced": 5.0, "next_sentence": 0.1,
    "auxiliary_share": 0.6, "replacements": "generator",
}  # fmt: skip


def learner_of(model: GPT, recipe: Recipe, **objectives: Any) -> Learner:
    return Learner(model, recipe(stage="pretrain", objectives=objectives), torch.float32)


def batch_of(rows: list[list[int]], was: list[list[int]], **keys: Any) -> Batch:
    return Batch(torch.tensor(rows), torch.tensor(was), torch.tensor([len(r) for r in rows]),
                 torch.zeros(len(rows), dtype=torch.int64), **keys)  # fmt: skip


# -- terms by hand


def test_masking_by_hand(model: GPT, recipe: Recipe) -> None:
    learner = learner_of(model, recipe, masking=1.0)
    batch = batch_of([[70, 1, 72, 73], [1, 71, 1, 80]],
                     [[IGNORED, 71, IGNORED, IGNORED], [90, IGNORED, 81, IGNORED]],
                     form="masked")  # fmt: skip
    term = learner(batch)["masking"]
    expected = 0.0
    for ids, targets in zip(batch.ids, batch.targets, strict=True):
        hidden, _ = model(ids[None], mask="full", lengths=torch.tensor([4]))
        for place in range(4):
            if targets[place] != IGNORED:
                expected -= model.logits(hidden[0, place]).log_softmax(-1)[targets[place]].item()
    assert term.total.item() == pytest.approx(expected, rel=1e-5) and term.count == 3
    assert learner.counts(batch) == {"masking": 3}


def test_a_replacement_that_is_the_same_counts_as_original() -> None:
    head = torch.nn.Linear(5, 1)
    hidden = torch.randn(1, 4, 5)
    was = torch.tensor([[70, 71, IGNORED, 73]])
    shown = torch.tensor([[70, 88, 2, 73]])
    term = replaced_term(shown, was, hidden, head)
    chances = torch.sigmoid(head(hidden))[0, :, 0]
    expected = -(chances[0].log() + (1 - chances[1]).log() + chances[3].log())
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-5)
    right = int(chances[0] > 0.5) + int(chances[1] <= 0.5) + int(chances[3] > 0.5)
    assert (term.count, int(term.tallies["base"]), int(term.tallies["accuracy"])) == (3, 2, right)


def test_next_sentence_by_hand(model: GPT, recipe: Recipe) -> None:
    learner = learner_of(model, recipe, masking=1.0, next_sentence=0.1)
    batch = batch_of([[0, 70, 2, 1], [0, 71, 2, 1]], [[IGNORED, IGNORED, IGNORED, 80]] * 2,
                     form="masked", extra={"follows": torch.tensor([True, False])})  # fmt: skip
    term = learner(batch)["next_sentence"]
    hidden, _ = model(batch.ids, mask="full", lengths=batch.lengths)
    scores = learner.heads["next_sentence"](hidden[:, 0])[:, 0]
    expected = -(F.logsigmoid(scores[0]) + F.logsigmoid(-scores[1])).item()
    assert term.total.item() == pytest.approx(expected, rel=1e-5) and term.count == 2
    assert learner.counts(batch) == {"masking": 2, "next_sentence": 2}


def test_the_generator_fills_hidden_places_by_its_chances(model: GPT) -> None:
    generator = Generator(model.config).eval()
    embedding: Tensor = model.transformer["wte"].weight  # type: ignore[assignment]
    rows, was = [[70, 1, 2, 73]] * 4000, [[70, 71, IGNORED, 73]] * 4000
    batch = batch_of(rows, was, form="replaced")
    ids, term = filled_in(batch, generator, embedding, torch.float32)
    kept = torch.tensor([0, 2, 3])
    assert torch.equal(ids[:, kept], batch.ids[:, kept])
    with torch.no_grad():
        states = generator(batch.ids[:1], batch.lengths[:1], embedding)
        logs = model.logits(states[0, 1]).log_softmax(-1)
    assert term.total.item() == pytest.approx(-4000 * logs[71].item(), rel=1e-4)
    shares = torch.bincount(ids[:, 1], minlength=97) / 4000
    assert (shares - logs.exp()).abs().max() < 0.03
    assert term.count == 4000


def test_no_gradient_of_the_generator_reaches_the_model(model: GPT, recipe: Recipe) -> None:
    learner = learner_of(model, recipe, replaced=1.0, replacements="generator")
    batch = batch_of([[70, 1, 72, 1]], [[70, 71, 72, 73]], form="replaced")
    terms = learner(batch)
    assert list(terms) == ["generator", "replaced"] and learner.counts(batch) == {
        "generator": 2, "replaced": 4
    }  # fmt: skip
    terms["generator"].total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    own = learner.heads["generator"].parameters()
    assert all(p.grad is not None and p.grad.any() for p in own)
    learner.zero_grad()
    terms["replaced"].total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or not p.grad.any() for p in learner.heads["generator"].parameters())
    assert model.transformer["wte"].weight.grad.any()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("name", ["test", "mini", "small", "medium", "117M"])
def test_a_generator_is_a_quarter_as_wide(name: str) -> None:
    from training.model import preset

    config = preset(name, 100)
    generator = Generator(config)
    assert generator.enter.weight.shape == (config.width // 4, config.width)


# -- what is off costs nothing


def test_what_is_off_has_no_heads_and_no_part_in_a_batch(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe, model: GPT
) -> None:
    assert not list(learner_of(model, recipe).heads.parameters())
    finetune = Learner(model, recipe(objectives=EVERYTHING), torch.float32)
    assert not list(finetune.heads.parameters())
    start(recipe(stage="pretrain", steps=1), corpus, tmp_path / "run", tokenizer_file,
          device="cpu", progress=False)  # fmt: skip
    (entry,) = log_of(tmp_path / "run")
    assert {k for k in entry if k.startswith("loss")} == {"loss", "loss/causal"}
    assert not (tmp_path / "run" / "last" / "heads.safetensors").exists()


def test_plain_rows_of_a_mixture_have_the_loss_of_plain_text(model: GPT, recipe: Recipe) -> None:
    learner = learner_of(model, recipe, masking=1.0)
    plain = batch_of([[70, 71, 72]], [[71, 72, 73]], form="text")
    masked = batch_of([[70, 1, 72]], [[IGNORED, 71, IGNORED]], form="masked")
    both = Batch(plain.ids, plain.targets, plain.lengths, plain.prefix, form="text",
                 rest=(masked,))  # fmt: skip
    assert learner.counts(both) == {"causal": 3, "masking": 1}
    assert torch.equal(learner(both)["causal"].total, learner(plain)["causal"].total)
    assert torch.equal(learner(both)["masking"].total, learner(masked)["masking"].total)


# -- each one learns


TOPICS = 8
CORPUS = Vocabulary(0, 1, 2, np.arange(64 + 4 * TOPICS) >= 64, np.zeros(64 + 4 * TOPICS, bool))
CORPUS.closing[64:] = True


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    """Documents of one topic each, whose four words come six times, one after the other."""
    folder, source = tmp_path_factory.mktemp("topics"), Source("m", ("en",), ())
    made = []
    for name, count, seed in (("train", 400, 1), ("valid", 60, 2)):
        topics = np.random.default_rng(seed).integers(TOPICS, size=count)
        rows = [(64 + 4 * topic + np.arange(24) // 6).tolist() for topic in topics]
        made.append(write_shard(folder / f"{name}.bin", source, rows, ""))
    return made


def learnt(
    shards: list[Shard], recipe: Recipe, steps: int, tokens: int = 512, **objectives: Any
) -> dict[str, float]:
    """Held-out figures after a few steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = recipe(stage="pretrain", objectives=objectives)
    size = len(CORPUS.ordinary)
    model = GPT(ModelConfig(size, layers=2, width=64, heads=2, context=32))
    learner, mixture = Learner(model, config, torch.float32), Mixture(config.objectives, CORPUS)
    train, valid = (TextRows([shard], [1.0], 0, 32) for shard in shards)
    optimiser = build_optimisers(learner, recipe(optimiser={"name": "adamw"}).optimiser)["adamw"]
    batches = Stream(None, train, tokens, 1, 0.0, mixture)(Cursor())
    for i, batch in enumerate(islice(batches, steps)):
        assert batch is not None
        over = learner.denominators(step_counts(learner, [batch]))
        terms = learner(batch)
        assert {k: t.count for k, t in terms.items()} == learner.counts(batch)
        sum(learner.weights[k] * t.total / over[k] for k, t in terms.items()).backward()
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * min(1.0, (i + 1) / 10)
        optimiser.step()
        optimiser.zero_grad()
    learner.eval()
    return auxiliary_figures(learner, auxiliary_batches(mixture, {"en": valid}, 512, 60))["en"]


@pytest.mark.parametrize(("form", "share"), [("random", 0.7), ("span", 0.96)])
def test_masking_learns(shards: list[Shard], recipe: Recipe, form: str, share: float) -> None:
    figures = learnt(shards, recipe, 60, causal=0.0, masking=1.0, mask_form=form)
    assert figures["masking_loss"] < share * math.log(4 * TOPICS)  # what knowing the words gives


def test_infilling_learns(shards: list[Shard], recipe: Recipe) -> None:
    figures = learnt(shards, recipe, 30, causal=0.0, infilling=1.0)
    assert figures["infilling_loss"] < 0.7 * math.log(4 * TOPICS)


def entropy(base: float) -> float:
    return -base * math.log(base) - (1 - base) * math.log(1 - base)


def test_replaced_tokens_are_told(shards: list[Shard], recipe: Recipe) -> None:
    figures = learnt(shards, recipe, 130, 1024, causal=0.0, replaced=1.0, mask_rate=0.3)
    base = figures["replaced_base"]
    assert 0.68 < base < 0.74
    assert figures["replaced_accuracy"] > base + 0.1
    assert figures["replaced_loss"] < 0.6 * entropy(base)


def test_replacements_of_a_generator_are_told(shards: list[Shard], recipe: Recipe) -> None:
    figures = learnt(shards, recipe, 110, auxiliary_share=0.7, replaced=5.0,
                     replacements="generator")  # fmt: skip
    assert figures["generator_loss"] < 0.9 * math.log(4 * TOPICS)
    assert figures["replaced_base"] > 0.84
    assert figures["replaced_accuracy"] > figures["replaced_base"] + 0.005
    assert figures["replaced_loss"] < 0.92 * entropy(figures["replaced_base"])


@pytest.mark.parametrize("negatives", ["random", "swapped"])
def test_next_sentences_are_told(shards: list[Shard], recipe: Recipe, negatives: str) -> None:
    figures = learnt(shards, recipe, 80, causal=0.0, masking=0.1, next_sentence=1.0,
                     negatives=negatives)  # fmt: skip
    assert figures["next_sentence_accuracy"] > 0.7


# -- a whole run


def test_heads_go_on_exactly_and_stay_out_of_checkpoint_and_bundle(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    config = recipe(stage="pretrain", steps=4, checkpoint_minutes=0, dropout=0.1, accumulate=2,
                    objectives=EVERYTHING, batch_tokens=1024)  # fmt: skip

    def go(folder: str) -> Path:
        start(config, corpus, tmp_path / folder, tokenizer_file, device="cpu", progress=False)
        return tmp_path / folder

    whole, real = go("whole"), Run._one_step

    def killed(self: Run, batches: Any) -> dict[str, Any]:
        if self.step == 2:
            raise KeyboardInterrupt
        return real(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_one_step", killed)
        with pytest.raises(KeyboardInterrupt):
            go("cut")
    cut = go("cut")
    curves = []
    for folder in (whole, cut):
        curves.append([{k: v for k, v in e.items() if k.startswith(("loss", "valid", "grad"))}
                       for e in log_of(folder)])  # fmt: skip
    assert curves[0] == curves[1] and len(curves[0]) == 4
    assert set(curves[0][0]) == {"loss", "gradient_norm", *(f"loss/{k}" for k in (
        "causal", "masking", "infilling", "replaced", "generator", "next_sentence"))}  # fmt: skip
    for file in ("heads.safetensors", "checkpoint/model.safetensors"):
        one, other = (load_file(folder / "last" / file) for folder in (whole, cut))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    heads = load_file(whole / "last" / "heads.safetensors")
    assert {name.split(".")[1] for name in heads} == {"replaced", "next_sentence", "generator"}
    checkpoint = whole / "checkpoint"
    assert not (checkpoint / "heads.safetensors").exists()
    assert all(k.startswith("transformer.") for k in load_file(checkpoint / "model.safetensors"))
