"""GPT-2 as published (Radford et al. 2019): learned positions, pre-LayerNorm, tanh GELU, tied head.

Token ids flow in, hidden states flow out; `logits` turns chosen hidden states into scores, so that
a loss on a part of the positions pays for that part only. The attention mask is an argument:
`causal` for language modelling, `prefix` (the first `prefix` tokens of a row see each other) and
`full`. Weights carry the names and layouts of Hugging Face's GPT-2: checkpoints need no renaming.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.errors import ConfigError

MaskMode = Literal["causal", "prefix", "full"]
Cache = list[tuple[Tensor, Tensor]]  # a layer's keys and values, each (batch, heads, time, head)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a GPT-2. `dropout` acts on embeddings, attention outputs and MLP outputs."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    context: int = 512
    dropout: float = 0.0
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocabulary", "layers", "width", "heads", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} = {getattr(self, name)}: must be positive")
        if self.width % self.heads or (self.width // self.heads) % 8:
            raise ConfigError(
                f"model.width = {self.width} over model.heads = {self.heads}: "
                "a head's size must be a whole multiple of 8"
            )

    def to_hugging_face(self) -> dict[str, object]:
        """The content of a `config.json` that `transformers` reads."""
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
            "vocab_size": self.vocabulary, "n_positions": self.context, "n_ctx": self.context,
            "n_embd": self.width, "n_layer": self.layers, "n_head": self.heads, "n_inner": None,
            "activation_function": "gelu_new", "layer_norm_epsilon": self.epsilon,
            "embd_pdrop": self.dropout, "attn_pdrop": 0.0, "resid_pdrop": self.dropout,
            "initializer_range": 0.02, "scale_attn_weights": True, "tie_word_embeddings": True,
            "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32",
        }  # fmt: skip

    @classmethod
    def from_hugging_face(cls, config: dict[str, object]) -> ModelConfig:
        """Read a GPT-2 `config.json`; raises ConfigError for another architecture or activation."""
        for key, wanted in (
            ("model_type", ("gpt2",)),
            ("activation_function", ("gelu_new", "gelu_pytorch_tanh", None)),
            ("scale_attn_by_inverse_layer_idx", (False, None)),
            ("scale_attn_weights", (True, None)),
            ("tie_word_embeddings", (True, None)),
        ):
            if config.get(key) not in wanted:
                raise ConfigError(f"config.json: {key} = {config.get(key)!r} is not supported")
        sizes = {name: _integer(config, key) for name, key in _HF_SIZES.items()}
        if config.get("n_inner") not in (None, 4 * sizes["width"]):
            raise ConfigError(f"config.json: n_inner = {config['n_inner']!r} is not supported")
        return cls(
            **sizes,
            dropout=_number(config, "resid_pdrop", 0.0),
            epsilon=_number(config, "layer_norm_epsilon", 1e-5),
        )


_HF_SIZES = {
    "vocabulary": "vocab_size", "layers": "n_layer", "width": "n_embd", "heads": "n_head",
    "context": "n_positions",
}  # fmt: skip


def _integer(config: dict[str, object], key: str) -> int:
    if key not in config:
        raise ConfigError(f"config.json: {key} is missing")
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"config.json: {key} = {value!r}: must be a whole number")
    return value


def _number(config: dict[str, object], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"config.json: {key} = {value!r}: must be a number")
    return float(value)


PRESETS: dict[str, dict[str, int]] = {
    "test": {"layers": 2, "width": 64, "heads": 2, "context": 128},
    "micro": {"layers": 4, "width": 256, "heads": 4, "context": 512},  # ablations
    "mini": {"layers": 6, "width": 256, "heads": 4, "context": 512},  # hours on two cores
    "small": {"layers": 6, "width": 384, "heads": 6, "context": 512},  # a night on two cores
    "medium": {"layers": 8, "width": 512, "heads": 8, "context": 512},  # one GPU, an hour
    "117M": {"layers": 12, "width": 768, "heads": 12, "context": 1024},  # GPT-2's smallest
}


def preset(name: str, vocabulary: int, **overrides: float) -> ModelConfig:
    """A `ModelConfig` by name, or as `LAYERSxWIDTH/HEADS` with a context of 512; raises
    ConfigError that lists the names there are."""
    values = PRESETS.get(name)
    if shape := re.fullmatch(r"(\d+)x(\d+)/(\d+)", name):
        layers, width, heads = map(int, shape.groups())
        values = {"layers": layers, "width": width, "heads": heads, "context": 512}
    if values is None:
        raise ConfigError(f"model = {name!r}: unknown preset; there are {', '.join(PRESETS)}, "
                          "and shapes as in '6x256/4', layers x width / heads")  # fmt: skip
    return ModelConfig(vocabulary=vocabulary, **{**values, **overrides})  # type: ignore[arg-type]


class Conv1D(nn.Module):
    """GPT-2's linear layer: y = x W + b with W stored (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = Conv1D(config.width, 3 * config.width)
        self.c_proj = Conv1D(config.width, config.width)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(width, dim=-1)
        )  # each (batch, heads, time, head)
        if past is not None:
            k = torch.cat((past[0].to(k.dtype), k), dim=2)
            v = torch.cat((past[1].to(v.dtype), v), dim=2)
        y = attend(q, k, v, mask, causal)
        y = self.c_proj(y.transpose(1, 2).reshape(batch, time, width))
        return dropout(y, self.dropout, self.training), (k, v)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention; all (batch, heads, time, head).

    On a CPU the fused kernel's backward takes four times as long as plain products for rows of 30
    tokens (docs/LOG.md), so training there uses the products.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5  # (batch, heads, time, time)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return mixed


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Zero a share of x and scale up the rest (Srivastava et al. 2014).

    On a CPU eight draws of 1/256 come from each random word: drawing one by one took a tenth of a
    training step. The share is rounded to 1/256 there, the scale accordingly.
    """
    if not training or not share:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    dropped = round(share * 256)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * (kept.to(x.dtype) * (256 / (256 - dropped)))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.width, 4 * config.width)
        self.c_proj = Conv1D(4 * config.width, config.width)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return dropout(y, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, config.epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.width, config.epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, present = self.attn(self.ln_1(x), mask, causal, past)
        x = x + y
        return x + self.mlp(self.ln_2(x)), present


class GPT(nn.Module):
    """The decoder. Parameter names equal those of `transformers`' GPT2LMHeadModel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocabulary, config.width),
                "wpe": nn.Embedding(config.context, config.width),
                "h": nn.ModuleList(Block(config) for _ in range(config.layers)),
                "ln_f": nn.LayerNorm(config.width, config.epsilon),
            }
        )
        self.reset()

    def reset(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), residual projections scaled by depth."""
        residual = 0.02 / (2 * self.config.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith(("wte.weight", "wpe.weight", "c_attn.weight", "c_fc.weight")):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=residual)

    @property
    def device(self) -> torch.device:
        return self.transformer["wte"].weight.device  # type: ignore[return-value]

    def forward(
        self,
        ids: Tensor,
        mask: MaskMode = "causal",
        lengths: Tensor | None = None,
        prefix: Tensor | None = None,
        past: Cache | None = None,
    ) -> tuple[Tensor, Cache]:
        """Hidden states (batch, time, width) after the last LayerNorm, and the cache.

        `ids` (batch, time) are right-padded; `lengths` (batch,) says how much of a row is real,
        needed where padding could be seen (`full`, `prefix`); `prefix` (batch,) is the length of
        the mutually visible part. With `past`, the mask is causal and rows must be equally long.
        """
        time = ids.shape[1]
        start = past[0][0].shape[2] if past is not None else 0
        if start + time > self.config.context:
            raise ConfigError(
                f"{start + time} tokens exceed the model's context of {self.config.context}"
            )
        positions = torch.arange(start, start + time, device=ids.device)
        x = self.transformer["wte"](ids) + self.transformer["wpe"](positions)
        x = dropout(x, self.config.dropout, self.training)
        allowed = attention_mask(mask, time, start, lengths, prefix, ids.device)
        presents: Cache = []
        blocks: Iterable[nn.Module] = self.transformer["h"]  # type: ignore[assignment]
        for i, block in enumerate(blocks):
            x, present = block(x, allowed, allowed is None, past[i] if past is not None else None)
            presents.append(present)
        return self.transformer["ln_f"](x), presents

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., vocabulary) by the tied embedding."""
        return F.linear(hidden, self.transformer["wte"].weight)  # type: ignore[arg-type]

    def parameters_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


def attention_mask(
    mode: MaskMode,
    time: int,
    start: int,
    lengths: Tensor | None,
    prefix: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """Who may look at whom: bool (batch or 1, 1, time, start + time); None means plain causal."""
    if mode == "causal" and start == 0:
        return None  # right padding is never seen by what comes before it
    keys = torch.arange(start + time, device=device)
    queries = keys[start:, None]
    causal = keys <= queries  # (time, start + time)
    if mode == "causal":
        return causal[None, None]
    if lengths is None:
        raise ConfigError(f"mask {mode!r} needs the rows' lengths")
    if mode == "full":
        seen = (keys < lengths[:, None])[:, None].expand(-1, time, -1)
    elif mode == "prefix":
        if prefix is None:
            raise ConfigError("mask 'prefix' needs the prefix lengths")
        seen = causal[None] | (keys < prefix[:, None])[:, None]
    else:
        raise ConfigError(f"mask = {mode!r}: must be causal, prefix or full")
    return (seen | torch.eye(time, start + time, device=device, dtype=torch.bool))[:, None]
