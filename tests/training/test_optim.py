"""The rate's schedule, and which optimiser moves which parameter."""

from __future__ import annotations

import math

import pytest
import torch

from training.config import OptimiserConfig
from training.model import GPT
from training.optim import SinglePrecisionMuon, build_optimisers, orthogonalise, rate_factor


def test_rate_rises_to_the_peak_and_falls_to_the_final_share() -> None:
    config = OptimiserConfig(warmup=0.1, final=0.02)
    curve = [rate_factor(i / 1000, config) for i in range(1001)]
    assert curve[0] == pytest.approx(1e-3) and curve[50] == pytest.approx(0.5)
    assert max(curve) == curve[100] == 1.0
    assert curve[550] == pytest.approx(0.02 + 0.98 / 2)  # half way down the cosine
    assert curve[325] == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert curve[1000] == pytest.approx(0.02)
    assert curve[:101] == sorted(curve[:101]) and curve[100:] == sorted(curve[100:], reverse=True)
    assert max(abs(a - b) for a, b in zip(curve, curve[1:], strict=False)) < 0.011  # no jump


def test_rate_outside_the_budget_and_without_warmup() -> None:
    config = OptimiserConfig(warmup=0.0, final=0.1)
    assert rate_factor(0.0, config) == 1.0
    assert rate_factor(-1.0, config) == 1.0
    assert rate_factor(1.5, config) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_belongs_to_one_group(model: GPT, name: str) -> None:
    optimisers = build_optimisers(model, OptimiserConfig(name=name, weight_decay=0.3))  # type: ignore[arg-type]
    names = {id(p): n for n, p in model.named_parameters()}
    of: dict[str, tuple[str, float]] = {}
    for kind, optimiser in optimisers.items():
        for group in optimiser.param_groups:
            assert group["peak"] == group["lr"] == (0.02 if kind == "muon" else 1e-3)
            for parameter in group["params"]:
                assert names[id(parameter)] not in of
                of[names[id(parameter)]] = (kind, group["weight_decay"])
    assert of.keys() == set(names.values())
    assert list(optimisers) == (["muon", "adamw"] if name == "muon" else ["adamw"])
    inner = "muon" if name == "muon" else "adamw"
    assert of["transformer.wte.weight"] == of["transformer.wpe.weight"] == ("adamw", 0.3)
    for layer in range(2):
        for matrix in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            assert of[f"transformer.h.{layer}.{matrix}.weight"] == (inner, 0.3)
            assert of[f"transformer.h.{layer}.{matrix}.bias"] == ("adamw", 0.0)
        assert of[f"transformer.h.{layer}.ln_1.weight"] == ("adamw", 0.0)
    assert of["transformer.ln_f.weight"] == of["transformer.ln_f.bias"] == ("adamw", 0.0)


def test_a_step_moves_every_parameter(model: GPT) -> None:
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimisers = build_optimisers(model, OptimiserConfig(name="muon"))
    ids = torch.arange(24)[None]
    model.logits(model(ids)[0]).square().sum().backward()  # type: ignore[no-untyped-call]
    for optimiser in optimisers.values():
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("shape", [(24, 24), (24, 72), (96, 24)])
def test_orthogonalised_singular_values_are_about_1(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalise(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert found.shape == shape and found.dtype == torch.float32
    u, before, v = torch.linalg.svd(matrix, full_matrices=False)
    values = u.T @ found @ v.T  # the singular vectors stay as they are
    assert torch.allclose(values, torch.diag(values.diagonal()), atol=1e-4)
    assert before.max() / before.min() > 1.5
    assert values.diagonal().min() > 0.6 and values.diagonal().max() < 1.3


@pytest.mark.parametrize("nesterov", [True, False])
def test_single_precision_is_torchs_muon_but_for_the_rounding(nesterov: bool) -> None:
    start = [torch.randn(24, 72), torch.randn(96, 24), torch.randn(8, 8)]
    settings = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov}
    sets = []
    for kind in (torch.optim.Muon, SinglePrecisionMuon):
        parameters = [torch.nn.Parameter(one.clone()) for one in start]
        optimiser = kind(parameters, **settings)  # type: ignore[arg-type]
        for step in range(4):
            for i, parameter in enumerate(parameters[:2]):  # the third has no gradient
                shift = torch.Generator().manual_seed(10 * step + i)
                parameter.grad = torch.randn(parameter.shape, generator=shift)
            optimiser.step()
        sets.append((parameters, optimiser.state_dict()))
    (theirs, their_state), (ours, our_state) = sets
    for a, b, before in zip(theirs[:2], ours, start, strict=False):
        assert (a - b).abs().max() < 0.02 * (a - before).abs().max()
    assert torch.equal(ours[2], start[2]) and 2 not in our_state["state"]
    for i in range(2):
        assert torch.equal(our_state["state"][i]["momentum_buffer"],
                           their_state["state"][i]["momentum_buffer"])  # fmt: skip
