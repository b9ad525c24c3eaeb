"""What a run minimises: cross-entropy over the vocabulary at chosen positions.

Hidden states (n, width), the tied embedding (vocabulary, width) and target ids (n,) flow in, a sum
of losses in nats flows out. The fused form never holds more than a block of logits and computes
its gradients on the way forward; a test compares it with the plain form.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512  # positions whose logits exist at one time: 32 MB at 16k entries


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
            log_sum = scores.logsumexp(dim=1)
            picked = scores.gather(1, y).squeeze(1)
            loss = log_sum - (1 - smoothing) * picked
            if smoothing:
                loss = loss - smoothing * scores.mean(dim=1)
            total += loss.sum()
            grad = scores.sub_(log_sum[:, None]).exp_()
            if smoothing:
                grad -= smoothing / entries
            grad.scatter_add_(1, y, torch.full_like(picked, smoothing - 1.0)[:, None])
            narrow_grad = grad.to(dtype)
            hidden_grad[start : start + BLOCK] = (narrow_grad @ narrow).to(hidden.dtype)
            weight_grad += (narrow_grad.t() @ h).float()
        ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grads[0].to(hidden_grad.dtype), weight_grad * grads[0], None, None, None


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Sum over positions of -log p(target), label-smoothed (Szegedy et al. 2016), in nats.

    hidden (n, width), weight (vocabulary, width), targets (n,); products are taken in `dtype`.
    """
    return _FusedLinearCrossEntropy.apply(hidden, weight, targets, smoothing, dtype)  # type: ignore[no-any-return]


def plain_cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0
) -> Tensor:
    """The same, obviously right; what the fused form is tested against."""
    return F.cross_entropy(
        hidden @ weight.t(), targets, reduction="sum", label_smoothing=smoothing
    )
