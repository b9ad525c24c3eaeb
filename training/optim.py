"""The optimiser: AdamW, optionally with Muon for the hidden matrices, and the rate's schedule.

Muon (Jordan et al. 2024, `torch.optim.Muon`) orthogonalises the momentum of the matrices inside
the blocks; embeddings, biases and gains always go to AdamW (Loshchilov & Hutter 2019).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import OptimiserConfig


def build_optimisers(model: nn.Module, config: OptimiserConfig) -> dict[str, torch.optim.Optimizer]:
    """Optimisers by name; decay acts on matrices only. Each group keeps its peak as `peak`."""
    hidden: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = ".h." in name and parameter.ndim == 2
        (hidden if inner else matrices if parameter.ndim == 2 else vectors).append(parameter)
    optimisers: dict[str, torch.optim.Optimizer] = {}
    if config.name == "muon":
        optimisers["muon"] = torch.optim.Muon(
            hidden, lr=config.muon_rate, weight_decay=config.weight_decay
        )
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


def rate_factor(progress: float, config: OptimiserConfig) -> float:
    """Share of the peak rate at a share of the budget: linear warmup, then cosine to `final`."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)
    x = (progress - config.warmup) / max(1e-9, 1 - config.warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * x))
