"""What the loop drives: the model, its auxiliary heads, and the terms that a run minimises.

A batch flows in, and out flow the terms that its form has a part in, each a sum in nats over its
positions. The loop divides by the positions of the whole step, so that neither the number of
micro-batches nor that of ranks changes a loss. Only `model` is kept when training is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.batches import IGNORED, Batch
from training.config import RunConfig
from training.distil import Distiller, words_loss
from training.heads import build_heads
from training.losses import Term, cross_entropy_sum
from training.model import GPT, MaskMode
from training.objectives import filled_in, hidden_tokens, next_sentence_term, replaced_term

AUXILIARY = {"masked": "masking", "infilling": "infilling", "replaced": "replaced"}  # by form
POOLED = ("translation", "text", "task")  # their positions weigh alike; the data set their shares
LABELS = ("causal", "masking", "infilling", *POOLED, "source")  # terms whose positions have a label


class Learner(nn.Module):
    """`weights` has each term's weight; products of the losses are taken in `dtype`."""

    def __init__(
        self, model: GPT, config: RunConfig, dtype: torch.dtype, distiller: Distiller | None = None
    ) -> None:
        super().__init__()
        self.model, self.config, self.dtype = model, config, dtype
        self.distiller = distiller
        objectives = config.objectives
        self.heads = (
            build_heads(model.config, objectives).to(model.device)
            if config.stage == "pretrain" else nn.ModuleDict()
        )  # fmt: skip
        self.weights = {
            "causal": objectives.causal, "masking": objectives.masking,
            "infilling": objectives.infilling, "replaced": objectives.replaced,
            "generator": 1.0, "next_sentence": objectives.next_sentence,
            "translation": 1.0, "source": config.source_loss, "text": 1.0, "task": 1.0,
        }  # fmt: skip
        if distiller is not None:
            distil, whole = config.distil, config.objectives.causal
            for name in ("causal", *POOLED):
                self.weights[name] *= distiller.label_weight(name)
            self.weights |= {
                "words": distil.words * (whole if config.stage == "pretrain" else 1.0),
                "hidden": distil.hidden, "relations": distil.relations,
            }  # fmt: skip

    def counts(self, batch: Batch) -> dict[str, int]:
        """Positions of each term of a batch, without a forward pass."""
        found: Counter[str] = Counter()
        for part in batch.parts:
            found.update(self._counts(part))
        return dict(found)

    def _counts(self, batch: Batch) -> dict[str, int]:
        name = self._name(batch)
        found = {name: _count(batch.targets)}
        if batch.form in AUXILIARY:
            if batch.form == "replaced" and "generator" in self.heads:
                found["generator"] = int(hidden_tokens(batch).sum())
            if "follows" in batch.extra:
                found["next_sentence"] = len(batch.ids)
            return found
        if name == "translation" and self.config.source_loss:
            found["source"] = _count(source_targets(batch))
        if self.distiller is not None:
            found |= self.distiller.counts(batch)
        return found

    def forward(self, batch: Batch) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        for part in batch.parts:
            found = self._corrupted(part) if part.form in AUXILIARY else self._next_tokens(part)
            for name, term in found.items():
                terms[name] = terms[name].plus(term) if name in terms else term
        return terms

    def _next_tokens(self, batch: Batch) -> dict[str, Term]:
        name = self._name(batch)
        hidden, cache = self.model(
            batch.ids, mask=self.config.mask, lengths=batch.lengths, prefix=batch.prefix
        )  # (batch, time, width)
        if "word_ids" in batch.extra:
            terms = self._words(name, hidden, batch)
        else:
            terms = {name: self._tokens(hidden, batch.targets)}
        if name == "translation" and self.config.source_loss:
            terms["source"] = self._tokens(hidden, source_targets(batch))
        if self.distiller is not None:
            counts = self.distiller.counts(batch)
            sums = self.distiller.distances(batch, hidden, cache)
            terms |= {key: Term(total, counts[key]) for key, total in sums.items()}
        return terms

    def _corrupted(self, batch: Batch) -> dict[str, Term]:
        """The auxiliary objectives, all but infilling under the full mask."""
        terms: dict[str, Term] = {}
        ids, name = batch.ids, self._name(batch)
        if name == "replaced" and "generator" in self.heads:
            weight: Tensor = self.model.transformer["wte"].weight  # type: ignore[assignment]
            ids, terms["generator"] = filled_in(batch, self.heads["generator"], weight, self.dtype)
        mask: MaskMode = "causal" if name == "infilling" else "full"
        hidden, _ = self.model(ids, mask=mask, lengths=batch.lengths)  # (batch, time, width)
        if name == "replaced":
            terms[name] = replaced_term(ids, batch.targets, hidden, self.heads["replaced"])
        else:
            terms[name] = self._tokens(hidden, batch.targets)
        if "follows" in batch.extra:
            follows, head = batch.extra["follows"], self.heads["next_sentence"]
            terms["next_sentence"] = next_sentence_term(follows, hidden, head)
        return terms

    def denominators(self, counts: Mapping[str, int]) -> dict[str, int]:
        """What each term's total over a step is divided by, given the step's counts."""
        pooled = sum(counts.get(name, 0) for name in POOLED)
        shared = (*POOLED, "words") if pooled else ()
        return {k: max(1, pooled if k in shared else count) for k, count in counts.items()}

    def _name(self, batch: Batch) -> str:
        if batch.form == "text":
            return "causal" if self.config.stage == "pretrain" else "text"
        return {"pairs": "translation", "task": "task", **AUXILIARY}[batch.form]

    def _tokens(self, hidden: Tensor, targets: Tensor) -> Term:
        """Cross-entropy at the positions that have a target; both (batch, time, ...)."""
        chosen = targets != IGNORED
        weight: Tensor = self.model.transformer["wte"].weight  # type: ignore[assignment]
        targets = targets[chosen]
        total = cross_entropy_sum(
            hidden[chosen].float(), weight, targets, self.config.label_smoothing, self.dtype
        )
        return Term(total, len(targets))

    def _words(self, name: str, hidden: Tensor, batch: Batch) -> dict[str, Term]:
        """Labels and the teachers' words, by one product with the vocabulary."""
        assert self.distiller is not None
        chosen, distil = batch.targets != IGNORED, self.config.distil
        weight: Tensor = self.model.transformer["wte"].weight  # type: ignore[assignment]
        targets = batch.targets[chosen]
        mixed, labels, words = words_loss(
            hidden[chosen].float(), weight, targets, self.distiller.soft(batch, chosen),
            distil.words, distil.temperature, self.config.label_smoothing, self.dtype,
        )  # fmt: skip
        # the gradients of both come by way of `words`: both are divided by the same count
        words = words + (mixed - mixed.detach()) / distil.words
        return {name: Term(labels, len(targets)), "words": Term(words, len(targets))}


def step_counts(learner: Learner, batches: list[Batch]) -> Counter[str]:
    """Positions of each term in all micro-batches of a step."""
    counts: Counter[str] = Counter()
    for batch in batches:
        counts.update(learner.counts(batch))
    return counts


def source_targets(batch: Batch) -> Tensor:
    """Next tokens within the source of each row `<src> <tgt> source <sep> target`; else IGNORED."""
    ids = batch.extra.get("original", batch.ids)
    places = torch.arange(ids.shape[1] - 1, device=ids.device)
    inside = (places >= 1) & (places < batch.prefix[:, None] - 2)
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = torch.where(inside, ids[:, 1:], IGNORED)
    return targets


def _count(targets: Tensor) -> int:
    return int((targets != IGNORED).sum())
