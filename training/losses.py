"""Cross-entropy over the vocabulary at chosen positions, what every loss on tokens is made of.

Hidden states (n, width), the tied embedding (vocabulary, width) and target ids (n,) flow in, a sum
of losses in nats flows out. The fused form never holds more than a block of logits and computes
its gradients on the way forward; a test compares it with the plain form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512  # positions whose logits exist at one time: 32 MB at 16k entries


class Term(NamedTuple):  # a tuple, so that DDP and FSDP find the tensors in it
    """One loss of one micro-batch: its sum over `count` positions, in nats.

    `tallies` counts positions of some kind, for figures of held-out text.
    """

    total: Tensor
    count: int  # type: ignore[assignment]
    tallies: Mapping[str, Tensor] = {}

    def plus(self, other: Term) -> Term:
        tallies = {k: self.tallies[k] + other.tallies[k] for k in self.tallies}
        return Term(self.total + other.total, self.count + other.count, tallies)


def _block_loss(scores: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The summed loss of scores (block, vocabulary) and targets (block, 1), and each row's norm.

    Leaves exp(score - largest) in `scores`: one pass over the largest array of a step, not four.
    """
    loss = -(1 - smoothing) * scores.gather(1, targets)
    if smoothing:
        loss -= smoothing * scores.mean(dim=1, keepdim=True)
    top = scores.amax(dim=1, keepdim=True)
    norm = scores.sub_(top).exp_().sum(dim=1, keepdim=True)
    return (loss + norm.log() + top).sum(), norm


class _FusedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float,
                dtype: torch.dtype) -> Tensor:  # fmt: skip
        narrow, entries = weight.to(dtype), weight.shape[0]
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        total = torch.zeros((), dtype=torch.float32, device=weight.device)
        for start in range(0, hidden.shape[0], BLOCK):
            h = hidden[start : start + BLOCK].to(dtype)
            y = targets[start : start + BLOCK, None]
            scores = (h @ narrow.t()).float()  # (block, vocabulary)
            loss, norm = _block_loss(scores, y, smoothing)
            total += loss
            grad = scores.div_(norm)
            if smoothing:
                grad -= smoothing / entries
            grad.scatter_add_(1, y, torch.full_like(norm, smoothing - 1.0))
            narrow_grad = grad.to(dtype)
            hidden_grad[start : start + BLOCK] = (narrow_grad @ narrow).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                weight_grad += (narrow_grad.t() @ h).float()
        ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grads[0]
        return hidden_grad * scale.to(hidden_grad.dtype), weight_grad * scale, None, None, None


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Sum over positions of -log p(target), label-smoothed (Szegedy et al. 2016), in nats.

    hidden (n, width), weight (vocabulary, width), targets (n,); products are taken in `dtype`.
    """
    if not torch.is_grad_enabled():  # a third of the work
        sums = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden.shape[0], BLOCK):
            h, y = hidden[start : start + BLOCK], targets[start : start + BLOCK]
            scores = (h.to(dtype) @ weight.to(dtype).t()).float()
            sums += _block_loss(scores, y[:, None], smoothing)[0]
        return sums
    total: Tensor = _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, smoothing, dtype
    )
    return total


def plain_cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0
) -> Tensor:
    """The same, obviously right; what the fused form is tested against."""
    return F.cross_entropy(
        hidden @ weight.t(), targets, reduction="sum", label_smoothing=smoothing
    )
