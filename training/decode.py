"""Reference decoding in torch: greedy and beam search over a batch of prompts.

Prompts of unlike length flow in as lists of ids; new ids with finish reason and log-probability
flow out. It serves evaluation of checkpoints and teachers, and is what the faster engine is
compared with. Prompts of one length share a batch with a cache, so that no row needs padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.beam import Hypothesis, Search, Settings
from training.errors import ConfigError
from training.model import GPT, Cache, MaskMode


def greedy(
    model: GPT, prompts: Sequence[Sequence[int]], limits: Sequence[int], end: int = 0,
    mask: MaskMode = "causal", no_repeat_ngram: int = 0, ngram_repeats: int = 1,
) -> list[tuple[list[int], str]]:  # fmt: skip
    """Most probable next token until `end` or the row's limit; ("stop" or "length") as reason.

    A beam of one: `beam` with size 1 gives log-probabilities as well.
    """
    found = beam(model, prompts, limits, 1, 0.0, end, mask, no_repeat_ngram=no_repeat_ngram,
                 ngram_repeats=ngram_repeats)  # fmt: skip
    return [(list(best.ids), best.reason) for (best,) in found]


@torch.inference_mode()
def beam(
    model: GPT, prompts: Sequence[Sequence[int]], limits: Sequence[int], size: int,
    length_penalty: float = 1.0, end: int = 0, mask: MaskMode = "causal", n_best: int = 1,
    early_stopping: bool = True, no_repeat_ngram: int = 0, ngram_repeats: int = 1,
) -> list[list[Hypothesis]]:  # fmt: skip
    """For every prompt its `n_best` best hypotheses, best first; training.beam says which.

    With `no_repeat_ngram` n > 0 any n tokens in a row may come in the output `ngram_repeats`
    times, or as often as in the prompt if that is more. Raises ConfigError for an empty or too
    long prompt and for sizes out of range.
    """
    if not 1 <= n_best <= size or length_penalty < 0:
        raise ConfigError(
            f"beam = {size}, n_best = {n_best}, length_penalty = {length_penalty}: "
            "must be n_best in 1..beam and a penalty of 0 or more"
        )
    settings = Settings(size, length_penalty, n_best, early_stopping, end)
    results = [[Hypothesis((), 0.0, 0.0, "length")] for _ in prompts]
    for rows in _groups(model, prompts, limits):
        searches = {i: Search(settings, limits[i]) for i in rows}

        def step(logits: Tensor, searches: dict[int, Search] = searches) -> tuple[Ids, Ids]:
            norms = logits.logsumexp(dim=-1).tolist()
            going = [(i, search) for i, search in searches.items() if search.live]
            owners = [(i, ids) for i, search in going for ids, _ in search.live]
            for place, (i, ids) in enumerate(owners):
                banned = forbidden(ids, prompts[i], no_repeat_ngram, ngram_repeats)
                logits[place, banned] = -torch.inf
            top = logits.topk(min(size + 1, logits.shape[1]))
            values, tokens = top.values.tolist(), top.indices.tolist()
            keep: list[int] = []
            last: list[int] = []
            first = 0
            for _, search in going:
                places = range(first, first + len(search.live))
                parents = search.advance(
                    [[(token, value - norms[at])
                      for token, value in zip(tokens[at], values[at], strict=True)]
                     for at in places]
                )  # fmt: skip
                keep += [first + parent for parent in parents]
                last += [ids[-1] for ids, _ in search.live]
                first += len(places)
            return keep, last

        _drive(model, [prompts[i] for i in rows], mask, step)
        for i, search in searches.items():
            results[i] = search.finished[:n_best]
    return results


Ids = list[int]


def _groups(
    model: GPT, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> list[list[int]]:
    """The places of prompts of one length, without those that have no room for a token."""
    by_length: dict[int, list[int]] = {}
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt:
            raise ConfigError(f"prompt {i} is empty")
        if len(prompt) > model.config.context:
            raise ConfigError(
                f"prompt {i}: {len(prompt)} tokens exceed the model's context of "
                f"{model.config.context}"
            )
        if limit > 0:
            by_length.setdefault(len(prompt), []).append(i)
    return list(by_length.values())


def _drive(
    model: GPT, prompts: Sequence[Sequence[int]], mask: MaskMode,
    step: Callable[[Tensor], tuple[Ids, Ids]],
) -> None:  # fmt: skip
    """Give `step` the logits (rows, vocabulary) of the next tokens until it keeps no row.

    It answers which of the rows go on, in which order, and each one's token.
    """
    ids = torch.tensor([list(p) for p in prompts], device=model.device)
    lengths = torch.full((len(prompts),), ids.shape[1], device=model.device)
    hidden, cache = model(ids, mask=mask, lengths=lengths, prefix=lengths)
    while True:
        rows = hidden.shape[0]
        keep, tokens = step(model.logits(hidden[:, -1]).float())
        if not keep:
            return
        if keep != list(range(rows)):
            cache = _keep(cache, keep)
        hidden, cache = model(torch.tensor(tokens, device=model.device)[:, None], past=cache)


def _keep(cache: Cache, rows: list[int]) -> Cache:
    return [(keys[rows], values[rows]) for keys, values in cache]


def forbidden(output: Sequence[int], prompt: Sequence[int], n: int, often: int) -> list[int]:
    """Every token that would end an n-gram which has come as often as it may; none if n is 0."""
    if not n or len(output) < n:
        return []
    start = list(output[len(output) - n + 1 :])

    def count(ids: Sequence[int], ngram: list[int]) -> int:
        return sum(list(ids[i : i + n]) == ngram for i in range(len(ids) - n + 1))

    return [
        token
        for token in dict.fromkeys(output)
        if count(output, [*start, token]) >= max(often, count(prompt, [*start, token]))
    ]
