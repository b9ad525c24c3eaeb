"""The optimiser: AdamW, optionally with Muon for the hidden matrices, and the rate's schedule.

Muon (Jordan et al. 2024, `torch.optim.Muon`) orthogonalises the momentum of the matrices inside
the blocks; embeddings, biases and gains always go to AdamW (Loshchilov & Hutter 2019). torch
orthogonalises in bf16, which processors that do not multiply it natively take 60 times as long for
as for fp32: there it is done in fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.config import OptimiserConfig
from training.distributed import Ranks, collect, place_like
from training.errors import CheckpointError

Optimisers = dict[str, torch.optim.Optimizer]


def multiplies_bf16(device: torch.device) -> bool:
    """Whether it does so natively, so that bf16 is worth its rounding."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class SinglePrecisionMuon(torch.optim.Muon):
    """torch's Muon, but for the type of the Newton-Schulz iteration; its state is the same."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            momentum = group["momentum"]
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(grad)
                average = state["momentum_buffer"].lerp_(grad, 1 - momentum)
                update = grad.lerp(average, momentum) if group["nesterov"] else average
                update = orthogonalise(
                    update, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                height, width = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1, height / width)))


def orthogonalise(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """The matrix with singular values of about 1, in its own type: a quintic Newton-Schulz
    iteration (Jordan et al. 2024)."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=epsilon)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def build_optimisers(model: nn.Module, config: OptimiserConfig) -> Optimisers:
    """Optimisers by name; decay acts on matrices only. Each group keeps its peak as `peak`."""
    hidden: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = ".h." in name and parameter.ndim == 2
        (hidden if inner else matrices if parameter.ndim == 2 else vectors).append(parameter)
    optimisers: Optimisers = {}
    if config.name == "muon":
        kind = torch.optim.Muon if multiplies_bf16(hidden[0].device) else SinglePrecisionMuon
        optimisers["muon"] = kind(hidden, lr=config.muon_rate, weight_decay=config.weight_decay)
    else:
        matrices = hidden + matrices
    optimisers["adamw"] = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay},
         {"params": vectors, "weight_decay": 0.0}],
        lr=config.rate, betas=(0.9, config.beta2), eps=1e-8, fused=True,
    )  # fmt: skip
    for optimiser in optimisers.values():
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return optimisers


def optimiser_state(model: nn.Module, optimisers: Optimisers, ranks: Ranks) -> dict[str, Tensor]:
    """Every slot as `optimiser/parameter/slot`, whole, on rank 0; names outlive the slicing."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return collect(
        ((f"{kind}/{names[p]}/{slot}", torch.as_tensor(value))
         for kind, optimiser in optimisers.items()
         for p, slots in optimiser.state.items() for slot, value in slots.items()),
        ranks,
    )  # fmt: skip


def restore_optimisers(
    model: nn.Module, optimisers: Optimisers, tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimiser_state`, on all ranks. A parameter that had no gradient yet has no
    slots; raises CheckpointError if an optimiser has none at all.
    """
    slots: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, name, slot = key.split("/")
        slots.setdefault((kind, name), {})[slot] = tensor
    names = {p: name for name, p in model.named_parameters()}
    for kind, optimiser in optimisers.items():
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        state = {
            index: {slot: place_like(t, p) for slot, t in slots[kind, names[p]].items()}
            for index, p in enumerate(parameters) if (kind, names[p]) in slots
        }  # fmt: skip
        if not state:
            raise CheckpointError(f"nothing for the optimiser {kind}")
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def rate_factor(progress: float, config: OptimiserConfig) -> float:
    """Share of the peak rate at a share of the budget: linear warmup, then cosine to `final`."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)
    x = (progress - config.warmup) / max(1e-9, 1 - config.warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * x))
