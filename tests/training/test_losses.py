"""The fused loss against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import losses
from training.losses import cross_entropy_sum


def plain_cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0
) -> Tensor:
    """What the fused form should give, obviously right."""
    return F.cross_entropy(
        hidden @ weight.t(), targets, reduction="sum", label_smoothing=smoothing
    )


def loss_and_gradients(
    fused: bool, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    form = cross_entropy_sum if fused else plain_cross_entropy_sum
    loss = form(h, w, targets, smoothing)
    (loss * 0.37).backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None and w.grad is not None
    return loss.detach(), h.grad, w.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 16, 37])  # less than, equal to and more than a block
def test_fused_equals_plain(
    smoothing: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK", 16)
    hidden, weight = torch.randn(rows, 24), torch.randn(61, 24)
    targets = torch.randint(61, (rows,))
    fused = loss_and_gradients(True, hidden, weight, targets, smoothing)
    plain = loss_and_gradients(False, hidden, weight, targets, smoothing)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_gradient_is_the_slope_of_the_loss() -> None:
    hidden = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 8, 3, 3, 1])
    cross_entropy_sum(hidden, weight, targets, 0.1, torch.float64).backward()  # type: ignore[no-untyped-call]
    for tensor in (hidden, weight):
        direction, step = torch.randn_like(tensor), 1e-2
        values = []
        for sign in (1, -1):
            shifted = tensor.detach() + sign * step * direction
            pair = (shifted, weight) if tensor is hidden else (hidden, shifted)
            values.append(plain_cross_entropy_sum(*pair, targets, 0.1).item())
        assert tensor.grad is not None
        slope = (values[0] - values[1]) / (2 * step)
        assert float((tensor.grad * direction).sum()) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_gradients_the_value_is_the_same(smoothing: float) -> None:
    hidden, weight, targets = torch.randn(700, 8), torch.randn(11, 8), torch.randint(11, (700,))
    with torch.inference_mode():
        value = cross_entropy_sum(hidden, weight, targets, smoothing)
    expected = loss_and_gradients(False, hidden, weight, targets, smoothing)[0]
    torch.testing.assert_close(value, expected)


def test_bf16_products_stay_close() -> None:
    hidden, weight, targets = torch.randn(40, 64), torch.randn(50, 64) * 0.2, torch.arange(40)
    exact = plain_cross_entropy_sum(hidden, weight, targets)
    rough = cross_entropy_sum(hidden, weight, targets, 0.0, torch.bfloat16)
    assert rough.dtype == torch.float32
    assert float(rough) == pytest.approx(float(exact), rel=0.01)
