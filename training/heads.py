"""What auxiliary objectives need besides the model: two heads and a small generator.

Hidden states flow in, scores flow out. All of it is trained together with the model, kept beside a
run's state in heads.safetensors, and never part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from training.config import ObjectivesConfig
from training.model import Block, ModelConfig, attention_mask

DEPTH = 2  # layers of the generator


class Generator(nn.Module):
    """A masked language model a quarter as wide as the model (ELECTRA, Clark et al. 2020).

    It reads and writes by the model's embedding, whose gradient does not come from here: what
    either wants of the embedding would pull the other away (DeBERTa V3, He et al. 2021).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        narrow = max(8, config.width // 32 * 8)
        head = config.width // config.heads
        heads = narrow // head if narrow % head == 0 else 1
        small = replace(config, width=narrow, heads=heads, layers=DEPTH)
        self.enter = nn.Linear(config.width, narrow)
        self.positions = nn.Embedding(config.context, narrow)
        self.h = nn.ModuleList(Block(small) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(narrow, config.epsilon)
        self.leave = nn.Linear(narrow, config.width)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        nn.init.normal_(self.enter.weight, std=config.width**-0.5)  # entries are small numbers
        nn.init.normal_(self.leave.weight, std=narrow**-0.5)

    def forward(self, ids: Tensor, lengths: Tensor, embedding: Tensor) -> Tensor:
        """Hidden states (batch, time, width) that `embedding` (vocabulary, width) turns to scores.

        `ids` (batch, time) are seen from all sides, up to `lengths` (batch,).
        """
        time = ids.shape[1]
        places = torch.arange(time, device=ids.device)
        x = self.enter(nn.functional.embedding(ids, embedding.detach())) + self.positions(places)
        seen = attention_mask("full", time, 0, lengths, None, ids.device)
        blocks: Iterable[nn.Module] = self.h
        for block in blocks:
            x, _ = block(x, seen, False, None)
        hidden: Tensor = self.leave(self.norm(x))
        return hidden


def build_heads(model: ModelConfig, config: ObjectivesConfig) -> nn.ModuleDict:
    """Those that the objectives with a weight need; often none."""
    heads = nn.ModuleDict()
    if config.replaced:
        heads["replaced"] = nn.Linear(model.width, 1)
        if config.replacements == "generator":
            heads["generator"] = Generator(model)
    if config.next_sentence:
        heads["next_sentence"] = nn.Linear(model.width, 1)
    return heads
