"""The model: masks, cache, padding and sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.errors import ConfigError
from training.model import GPT, PRESETS, MaskMode, ModelConfig, preset

IDS = torch.tensor([[5, 9, 33, 7, 80, 2, 41, 13]])


def hidden(model: GPT, ids: Tensor, mask: MaskMode = "causal", lengths: list[int] | None = None,
           prefix: list[int] | None = None) -> Tensor:  # fmt: skip
    with torch.no_grad():
        as_tensor = [torch.tensor(x) if x is not None else None for x in (lengths, prefix)]
        return model(ids, mask, *as_tensor)[0]


def changed(ids: Tensor, place: int) -> Tensor:
    other = ids.clone()
    other[:, place] = 60
    return other


def moved(a: Tensor, b: Tensor) -> list[bool]:
    """By position: whether the hidden state differs."""
    return [not torch.allclose(a[0, i], b[0, i], atol=1e-6) for i in range(a.shape[1])]


def test_causal_position_sees_itself_and_the_past_only(model: GPT) -> None:
    assert moved(hidden(model, IDS), hidden(model, changed(IDS, 3))) == [False] * 3 + [True] * 5


def test_prefix_sees_itself_whole_and_the_target_is_causal(model: GPT) -> None:
    base = hidden(model, IDS, "prefix", [8], [4])
    in_prefix = hidden(model, changed(IDS, 3), "prefix", [8], [4])
    in_target = hidden(model, changed(IDS, 4), "prefix", [8], [4])
    assert moved(base, in_prefix) == [True] * 8
    assert moved(base, in_target) == [False] * 4 + [True] * 4


def test_empty_prefix_is_causal(model: GPT) -> None:
    torch.testing.assert_close(
        hidden(model, IDS, "prefix", [8], [0]), hidden(model, IDS), atol=1e-5, rtol=1e-5
    )


def test_full_sees_all_but_the_padding(model: GPT) -> None:
    base = hidden(model, IDS, "full", [6])
    assert moved(base, hidden(model, changed(IDS, 5), "full", [6]))[:6] == [True] * 6
    assert moved(base, hidden(model, changed(IDS, 7), "full", [6]))[:6] == [False] * 6


@pytest.mark.parametrize("mask", ["causal", "prefix", "full"])
def test_right_padding_changes_no_real_position(model: GPT, mask: MaskMode) -> None:
    short = IDS[:, :5]
    batch = torch.cat((IDS, torch.cat((short, torch.zeros(1, 3, dtype=torch.int64)), dim=1)))
    together = hidden(model, batch, mask, [8, 5], [4, 3])
    alone = hidden(model, short, mask, [5], [3])
    torch.testing.assert_close(together[1:, :5], alone, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(together).all()


@pytest.mark.parametrize(("mask", "lengths"), [("causal", None), ("prefix", [7]), ("full", [7])])
def test_the_way_attention_is_computed_for_training_is_the_same(
    model: GPT, mask: MaskMode, lengths: list[int] | None
) -> None:
    of = None if lengths is None else torch.tensor(lengths)
    with_gradients, _ = model(IDS, mask, of, torch.tensor([4]))
    assert with_gradients.requires_grad
    torch.testing.assert_close(
        with_gradients.detach(), hidden(model, IDS, mask, lengths, [4]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("parts", [(3, 5), (5, 1, 1, 1), (1, 4, 3)])
def test_cache_equals_no_cache(model: GPT, parts: tuple[int, ...]) -> None:
    whole, cache, pieces, start = hidden(model, IDS), None, [], 0
    with torch.inference_mode():
        for size in parts:
            piece, cache = model(IDS[:, start : start + size], past=cache)
            pieces.append(piece)
            start += size
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_the_context_is_a_limit_with_and_without_cache(model: GPT) -> None:
    model(torch.ones(1, 24, dtype=torch.int64))
    with pytest.raises(ConfigError, match="25 tokens exceed the model's context of 24"):
        model(torch.ones(1, 25, dtype=torch.int64))
    _, cache = model(torch.ones(1, 24, dtype=torch.int64))
    with pytest.raises(ConfigError, match="context of 24"):
        model(torch.ones(1, 1, dtype=torch.int64), past=cache)


@pytest.mark.parametrize("mask", ["prefix", "full", "banded"])
def test_a_mask_without_its_lengths_is_named(model: GPT, mask: MaskMode) -> None:
    with pytest.raises(ConfigError, match=mask):
        hidden(model, IDS, mask, [8] if mask != "full" else None)


def test_logits_are_tied_to_the_embedding(model: GPT) -> None:
    states = hidden(model, IDS)
    expected = states @ model.transformer["wte"].weight.t()  # type: ignore[operator]
    torch.testing.assert_close(model.logits(states), expected)
    assert not any("lm_head" in name for name in model.state_dict())


def test_initialisation_is_gpt2s(model: GPT) -> None:
    fresh = GPT(ModelConfig(vocabulary=800, layers=8, width=128, heads=4)).state_dict()
    assert fresh["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert fresh["transformer.h.3.mlp.c_proj.weight"].std().item() == pytest.approx(0.005, rel=0.05)
    assert not fresh["transformer.h.3.attn.c_attn.bias"].any()
    assert (fresh["transformer.h.3.ln_1.weight"] == 1).all()


@pytest.mark.parametrize(
    ("name", "entries", "count"),
    [("117M", 50_257, 124_439_808), ("117M", 32_000, 110_418_432), ("test", 512, 141_056)],
)
def test_presets_have_their_published_sizes(name: str, entries: int, count: int) -> None:
    with torch.device("meta"):
        model = GPT(preset(name, entries))
    assert model.parameters_count() == count
    assert model.config.context == (1024 if name == "117M" else 128)


def test_every_preset_is_valid_and_an_unknown_one_is_named() -> None:
    for name in PRESETS:
        assert preset(name, 1000, dropout=0.1).dropout == 0.1
    with pytest.raises(ConfigError, match="model = 'huge'.*117M.*6x256/4"):
        preset("huge", 1000)


def test_a_shape_can_be_written_out() -> None:
    assert preset("6x256/4", 1000) == preset("mini", 1000)
    assert preset("4x320/5", 1000, context=64) == ModelConfig(1000, 4, 320, 5, 64)
    with pytest.raises(ConfigError, match="model.width = 100 over model.heads = 3"):
        preset("4x100/3", 1000)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [({"layers": 0}, "model.layers = 0"), ({"vocabulary": -1}, "model.vocabulary = -1"),
     ({"heads": 3}, "model.heads = 3"), ({"width": 40, "heads": 8}, "model.width = 40")],
)  # fmt: skip
def test_impossible_sizes_are_named(sizes: dict[str, int], named: str) -> None:
    values = {"vocabulary": 10, "layers": 1, "width": 32, "heads": 2, **sizes}
    with pytest.raises(ConfigError, match=named):
        ModelConfig(**values)


def test_dropout_acts_in_training_only(model: GPT) -> None:
    from dataclasses import replace

    wet = GPT(replace(model.config, dropout=0.5))
    wet.load_state_dict(model.state_dict())
    assert torch.equal(hidden(wet.eval(), IDS), hidden(model, IDS))
    assert moved(hidden(wet.train(), IDS), hidden(model, IDS)) == [True] * 8
