"""The learner: its terms against slow obvious sums, their counts, and gradients over batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.conftest import Recipe
from tests.training.helpers import nats
from training.batches import IGNORED, Batch
from training.learner import Learner, source_targets, step_counts
from training.model import GPT

ROWS = [[3, 5, 9, 11, 2, 50, 51, 0], [4, 6, 9, 2, 70, 0], [3, 5, 12, 13, 14, 15, 2, 8, 9, 0]]
PROMPTS = [5, 4, 7]


def some_batch(chosen: list[int], **keys: object) -> Batch:
    """Rows of tags, source, separator (2), target and end, by hand."""
    rows, prompts = [ROWS[i] for i in chosen], [PROMPTS[i] for i in chosen]
    width = max(map(len, rows)) - 1
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full_like(ids, IGNORED)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row) - 1] = torch.tensor(row[:-1])
        targets[i, prompt - 1 : len(row) - 1] = torch.tensor(row[prompt:])
    lengths = torch.tensor([len(row) - 1 for row in rows])
    return Batch(ids, targets, lengths, torch.tensor(prompts), **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_sum_over_micro_batches_is_one_batch(model: GPT, recipe: Recipe, mask: str) -> None:
    source = 0.3 if mask == "causal" else 0.0
    learner = Learner(model, recipe(mask=mask, label_smoothing=0.1, source_loss=source),
                      torch.float32)  # fmt: skip

    def gradients(groups: list[list[int]]) -> tuple[float, list[Tensor]]:
        model.zero_grad()
        batches = [some_batch(group) for group in groups]
        over = learner.denominators(step_counts(learner, batches))
        whole = 0.0
        for batch in batches:
            terms = learner(batch)
            assert {k: t.count for k, t in terms.items()} == learner.counts(batch)
            loss = sum(learner.weights[k] * t.total / over[k] for k, t in terms.items())
            loss.backward()
            whole += float(loss.detach())
        return whole, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, parts = gradients([[0, 1, 2]]), gradients([[1], [0, 2]])
    assert whole[0] == pytest.approx(parts[0], rel=1e-5)
    for a, b in zip(whole[1], parts[1], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_translation_and_source_one_position_at_a_time(model: GPT, recipe: Recipe) -> None:
    learner = Learner(model, recipe(source_loss=0.5), torch.float32)
    assert learner.weights["translation"] == 1.0 and learner.weights["source"] == 0.5
    terms = learner(some_batch([0, 1, 2]))
    targets = source = 0.0
    for row, prompt in zip(ROWS, PROMPTS, strict=True):
        targets += nats(model, row, range(prompt, len(row)))
        source += nats(model, row, range(2, prompt - 1))
    assert terms["translation"].total.item() == pytest.approx(targets, rel=1e-5)
    assert terms["source"].total.item() == pytest.approx(source, rel=1e-5)
    assert (terms["translation"].count, terms["source"].count) == (3 + 2 + 3, 2 + 1 + 4)


def test_the_source_is_what_stood_there_before_noise() -> None:
    batch = some_batch([0, 1, 2])
    noisy = batch.ids.clone()
    noisy[:, 2] = 1
    batch = some_batch([0, 1, 2], extra={"original": batch.ids})
    batch.ids[:] = noisy
    targets = source_targets(batch)
    assert targets[0].tolist()[:4] == [IGNORED, 9, 11, IGNORED]
    assert [row[row != IGNORED].tolist() for row in targets] == [
        row[2 : prompt - 1] for row, prompt in zip(ROWS, PROMPTS, strict=True)
    ]


@pytest.mark.parametrize(
    ("stage", "form", "name"),
    [("pretrain", "text", "causal"), ("finetune", "text", "text"),
     ("finetune", "pairs", "translation"), ("finetune", "task", "task")],
)  # fmt: skip
def test_terms_by_form(model: GPT, recipe: Recipe, stage: str, form: str, name: str) -> None:
    learner = Learner(model, recipe(stage=stage), torch.float32)
    batch = some_batch([0, 2], form=form)
    assert list(learner(batch)) == [name] and learner.counts(batch) == {name: 6}


def test_text_and_pairs_of_a_step_weigh_alike_by_position(model: GPT, recipe: Recipe) -> None:
    learner = Learner(model, recipe(source_loss=0.5), torch.float32)
    counts = {"translation": 30, "text": 10, "source": 7, "words": 30, "hidden": 0}
    assert learner.denominators(counts) == {
        "translation": 40, "text": 40, "source": 7, "words": 40, "hidden": 1,
    }  # fmt: skip
