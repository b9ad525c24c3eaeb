"""Losses of distillation against plain forms, and what a batch of several teachers has of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import distil
from training.batches import IGNORED, Batch
from training.config import DistilConfig, RunConfig
from training.distil import (
    Distiller,
    Soft,
    hidden_distance,
    relation_distance,
    words_loss,
)
from training.errors import ConfigError
from training.learner import Learner
from training.model import GPT, ModelConfig
from training.teachers import Teacher

V = 61


def plain_words_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, soft: Soft, share: float,
    temperature: float = 1.0, smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What the fused form should give, obviously right."""
    scores = hidden @ weight.t()
    label = F.cross_entropy(scores, targets, reduction="none", label_smoothing=smoothing)
    student = (scores / temperature).log_softmax(dim=1).gather(1, soft.ids)
    logs = soft.logs.to(scores.dtype).masked_fill(~soft.known[:, None], 0.0)
    teacher = (logs / temperature).log_softmax(dim=1)
    word = temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=1)
    word = torch.where(soft.known, word, label)
    mixed = (1 - share) * label + share * word
    return mixed.sum(), label.sum(), word.sum()


def some_soft(rows: int, k: int, unknown: int = 0) -> Soft:
    logs, ids = torch.randn(rows, V).mul(2).log_softmax(dim=1).topk(k)
    if unknown:
        logs[::unknown] = -torch.inf
    return Soft(ids, logs)


def with_gradients(form: Any, hidden: Tensor, weight: Tensor, *rest: Any) -> list[Tensor]:
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    sums = form(h, w, *rest)
    (sums[0] * 0.37).backward()
    assert h.grad is not None and w.grad is not None
    return [*(s.detach() for s in sums), h.grad, w.grad]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.6])
@pytest.mark.parametrize("unknown", [0, 3, 1])  # no, every third, every position has no teacher
def test_fused_equals_plain(
    smoothing: float, share: float, temperature: float, unknown: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(distil, "BLOCK", 16)
    hidden, weight = torch.randn(37, 24), torch.randn(V, 24) * 0.3
    rest = (torch.randint(V, (37,)), some_soft(37, 5, unknown), share, temperature, smoothing)
    fused = with_gradients(words_loss, hidden, weight, *rest)
    plain = with_gradients(plain_words_loss, hidden, weight, *rest)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_all_words_are_the_full_divergence() -> None:
    hidden, weight, targets = torch.randn(9, 8), torch.randn(V, 8), torch.randint(V, (9,))
    teacher = torch.randn(9, V).log_softmax(dim=1)
    logs, ids = teacher.topk(V)
    for temperature in (1.0, 3.0):
        _, labels, words = words_loss(hidden, weight, targets, Soft(ids, logs), 0.5, temperature)
        p = (teacher / temperature).softmax(dim=1)
        q = (hidden @ weight.t() / temperature).log_softmax(dim=1)
        full = temperature**2 * F.kl_div(q, p, reduction="sum")
        torch.testing.assert_close(words, full, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            labels, F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
        )


def test_a_teacher_that_is_sure_of_the_label_is_the_label() -> None:
    hidden, weight, targets = torch.randn(9, 8), torch.randn(V, 8), torch.randint(V, (9,))
    soft = Soft(targets[:, None], torch.zeros(9, 1))
    mixed, labels, words = words_loss(hidden, weight, targets, soft, 0.7)
    torch.testing.assert_close(words, labels)
    torch.testing.assert_close(mixed, labels)


def test_hidden_distance() -> None:
    student, real = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    real[1, 3:] = False
    assert float(hidden_distance(student, 3 * student, real)) == pytest.approx(0, abs=1e-5)
    assert float(hidden_distance(student, -student, real)) == pytest.approx(16, abs=1e-4)
    elsewhere = student.clone()
    elsewhere[1, 3:] = torch.randn(2, 8)
    assert float(hidden_distance(student, elsewhere, real)) == pytest.approx(0, abs=1e-5)


def plain_relations(x: Tensor, heads: int, row: int, place: int) -> Tensor:
    """Of one position to itself and all before, one head at a time (heads, place + 1)."""
    flat = x[row].transpose(0, 1).flatten(1)  # (time, width)
    parts = flat.chunk(heads, dim=1)
    return torch.stack([
        (p[: place + 1] @ p[place] / p.shape[1] ** 0.5).softmax(dim=0) for p in parts
    ])  # fmt: skip


def test_relations_are_the_plain_ones_for_any_widths() -> None:
    student = torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)  # width 16
    teacher = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)  # width 24
    real = torch.arange(6) < torch.tensor([[6], [4]])
    allowed = torch.ones(6, 6, dtype=torch.bool).tril()
    found = relation_distance(student, teacher, 4, allowed, real)
    expected = 0.0
    for mine, theirs in zip(student, teacher, strict=True):
        for row, place in real.nonzero().tolist():
            p, q = (plain_relations(x, 4, row, place) for x in (theirs, mine))
            expected += float((p * (p / q).log()).sum(dim=1).mean())
    assert expected > 1
    assert float(found) == pytest.approx(expected, rel=1e-4)
    same = relation_distance(teacher, teacher, 4, allowed, real)
    assert float(same) == pytest.approx(0, abs=1e-5)


# -- several teachers


def make(seed: int, width: int = 32, context: int = 24, vocabulary: int = 97) -> Teacher:
    torch.manual_seed(seed)
    config = ModelConfig(vocabulary, 2, width, 2, context)
    model = GPT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.15)
    return Teacher(Path(f"t{seed}"), model.device, config, "causal", str(seed), {}, model)


def some_batch(ways: list[int]) -> Batch:
    lengths = torch.tensor([9, 5, 7, 9])[: len(ways)]
    ids = torch.randint(3, 97, (len(ways), 9))
    places = torch.arange(9)
    targets = torch.where((places >= 3) & (places < lengths[:, None]), ids, IGNORED)
    return Batch(ids, targets, lengths, lengths * 0 + 4, extra={"way": torch.tensor(ways)})


def test_each_row_is_compared_with_its_own_teacher(model: GPT) -> None:
    teachers = {"de-en": make(1), "en-de": make(2), "en-fr": make(1)}
    distiller = Distiller(DistilConfig({"*": "x"}, hidden=1.0, relations=1.0), "causal", teachers)
    batch = some_batch([0, 1, -1, 2])
    hidden, cache = model(batch.ids, lengths=batch.lengths)
    sums = distiller.distances(batch, hidden, cache)
    assert distiller.counts(batch) == {"hidden": 23, "relations": 23}
    expected = {"hidden": 0.0, "relations": 0.0}
    for row, way in ((0, "de-en"), (1, "en-de"), (3, "en-fr")):
        n = int(batch.lengths[row])
        ids = batch.ids[row : row + 1, :n]
        with torch.no_grad():
            mine, states = model(ids)
        theirs, teacher_states = teachers[way].model()(ids)
        real, causal = torch.ones(1, n, dtype=torch.bool), torch.ones(n, n, dtype=torch.bool).tril()
        expected["hidden"] += float(hidden_distance(mine, theirs, real))
        expected["relations"] += float(
            relation_distance(states[-1], teacher_states[-1], 4, causal, real)
        )
    assert {k: float(v.detach()) for k, v in sums.items()} == pytest.approx(expected, rel=1e-4)
    for total in sums.values():
        assert total.requires_grad
    distiller.on["en-de"] = False
    assert distiller.counts(batch) == {"hidden": 18, "relations": 18}
    assert float(distiller.distances(batch, hidden, cache)["hidden"].detach()) < expected["hidden"]
    distiller.on = dict.fromkeys(distiller.on, False)
    assert distiller.counts(batch) == {} == distiller.distances(batch, hidden, cache)


def test_the_teacher_itself_is_at_no_distance() -> None:
    teacher = make(1)
    config = DistilConfig({"*": "x"}, hidden=1.0, relations=1.0)
    distiller = Distiller(config, "prefix", {"en-de": replace(teacher, mask="prefix")})
    batch = some_batch([0, 0, 0, 0])
    hidden, cache = teacher.model()(batch.ids, "prefix", batch.lengths, batch.prefix)
    for total in distiller.distances(batch, hidden, cache).values():
        assert float(total) == pytest.approx(0, abs=1e-4)


def test_words_of_a_direction_that_is_off_are_labels() -> None:
    distiller = Distiller(DistilConfig({"*": "x"}, words=0.5), "causal", {"a-b": make(1)})
    batch = some_batch([0, 0])
    extra = {"word_ids": torch.ones(2, 9, 3, dtype=torch.int64), "word_logs": torch.zeros(2, 9, 3)}
    batch = replace(batch, extra=batch.extra | extra)
    chosen = batch.targets != IGNORED
    assert distiller.counts(batch) == {"words": 8}
    assert distiller.soft(batch, chosen).known.all()
    distiller.on["a-b"] = False
    assert not distiller.soft(batch, chosen).known.any()
    assert distiller.soft(replace(batch, form="text"), chosen).known.all()


@pytest.mark.parametrize(
    ("keys", "teacher", "words"),
    [
        ({"hidden": 1.0}, make(1, width=48), "t1 is 48, the student's is 32"),
        ({"relations": 1.0, "relation_heads": 3}, make(1, width=48), "relation_heads = 3: .* 48 "),
        ({"words": 0.5}, make(1, context=16), "max_tokens = 20: the context of teacher t1 is 16"),
        ({"words": 0.5, "top_k": 98}, make(1), "top_k = 98: the vocabulary has 97"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(
    model: GPT, keys: dict[str, Any], teacher: Teacher, words: str
) -> None:
    distiller = Distiller(DistilConfig({"*": "x"}, **keys), "causal", {"en-de": teacher})
    with pytest.raises(ConfigError, match=words):
        distiller.check(model.config, 20)


def test_gradients_of_a_learner_are_those_of_the_weighted_sum(
    model: GPT, recipe: Callable[..., RunConfig]
) -> None:
    """The loop divides each term by its denominator; labels and words come by one product."""
    config = recipe(label_smoothing=0.1, distil={
        "teachers": {"*": "x"}, "words": 0.6, "temperature": 2.0, "relations": 0.3})  # fmt: skip
    distiller = Distiller(config.distil, "causal", {"en-de": make(1), "de-en": make(2)})
    learner = Learner(model, config, torch.float32, distiller)
    batch = some_batch([0, 1, -1, 0])
    logs, ids = torch.randn(4, 9, 97).log_softmax(dim=-1).topk(7)
    logs[2] = -torch.inf
    batch = replace(batch, extra=batch.extra | {"word_ids": ids, "word_logs": logs})
    counts = learner.counts(batch)
    terms = learner(batch)
    assert {name: term.count for name, term in terms.items()} == counts
    over = learner.denominators(counts)
    loss = torch.stack([learner.weights[k] * t.total / over[k] for k, t in terms.items()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    hidden, cache = model(batch.ids, lengths=batch.lengths)
    chosen = batch.targets != IGNORED
    weight: Any = model.transformer["wte"].weight
    mixed, _, _ = plain_words_loss(hidden[chosen], weight, batch.targets[chosen],
                                   Soft(ids[chosen], logs[chosen]), 0.6, 2.0, 0.1)  # fmt: skip
    near = distiller.distances(batch, hidden, cache)["relations"]
    expected = mixed / int(chosen.sum()) + 0.3 * near / counts["relations"]
    expected.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4)
