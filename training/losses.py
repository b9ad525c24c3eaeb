"""Cross-entropy over the vocabulary at chosen positions, what every loss on tokens is made of.

Hidden states (n, width), the tied embedding (vocabulary, width) and target ids (n,) flow in, a sum
of losses in nats flows out. The fused form never holds more than a block of logits and computes
its gradients on the way forward; a test compares it with the plain form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # positions whose logits exist at one time on a CPU: 8 MB at 16k entries in bf16
_SMALLEST = 1e-38  # a probability that was rounded to 0 costs 87 nats, not infinity


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


def _block_loss(scores: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The summed loss of scores (block, vocabulary) and targets (block, 1); uses `scores` up."""
    loss = -(1 - smoothing) * scores.gather(1, targets)
    if smoothing:
        loss -= smoothing * scores.mean(dim=1, keepdim=True)
    top = scores.amax(dim=1, keepdim=True)
    norm = scores.sub_(top).exp_().sum(dim=1, keepdim=True)
    return (loss + norm.log() + top).sum()


def _blocks(hidden: Tensor) -> Iterator[slice]:
    """Positions to be worked on together: few enough for a CPU's cache, enough for a GPU."""
    size = BLOCK if hidden.device.type == "cpu" else 16 * BLOCK
    return (slice(start, start + size) for start in range(0, hidden.shape[0], size))


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Softmax and gradient in `dtype`, one array of (block, vocabulary) for both.

    The uniform part of label smoothing never touches that array: it is a mean of the embedding for
    the loss and the hidden states' gradient, a sum of hidden states for the embedding's.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float,
                dtype: torch.dtype) -> Tensor:  # fmt: skip
        narrow, mean = weight.to(dtype), weight.float().mean(dim=0)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        total = torch.zeros((), dtype=torch.float32, device=weight.device)
        for rows in _blocks(hidden):
            h, y = hidden[rows].to(dtype), targets[rows, None]
            scores = h @ narrow.t()  # (block, vocabulary)
            own = scores.gather(1, y).float()
            grad = scores.softmax(dim=1)
            loss = -grad.gather(1, y).float().clamp_min(_SMALLEST).log()
            total += loss.sum()
            if smoothing:
                total += smoothing * (own.sum() - (h.float() @ mean).sum())
            grad.scatter_add_(1, y, torch.full_like(y, smoothing - 1.0, dtype=dtype))
            hidden_grad[rows] = (grad @ narrow).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                weight_grad += grad.t() @ h
        if smoothing:
            hidden_grad -= (smoothing * mean).to(hidden.dtype)
            weight_grad -= smoothing / weight.shape[0] * hidden.float().sum(dim=0)
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
        for rows in _blocks(hidden):
            scores = (hidden[rows].to(dtype) @ weight.to(dtype).t()).float()
            sums += _block_loss(scores, targets[rows, None], smoothing)
        return sums
    total: Tensor = _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, smoothing, dtype
    )
    return total
