"""Reference decoding in torch: greedy search over a batch of prompts, with and without a cache.

Prompts of unlike length flow in as lists of ids, new ids and a finish reason flow out. It serves
evaluation of checkpoints and is what the faster engine is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training.errors import ConfigError
from training.model import GPT, Cache, MaskMode


@torch.inference_mode()
def greedy(
    model: GPT, prompts: Sequence[Sequence[int]], limits: Sequence[int], end: int = 0,
    mask: MaskMode = "causal", no_repeat_ngram: int = 0,
    ngram_repeats: int = 1,
) -> list[tuple[list[int], str]]:  # fmt: skip
    """Most probable next token until `end` or the row's limit; ("stop" or "length") as reason.

    Prompts of one length share a batch with a cache. With `no_repeat_ngram` n > 0 any n tokens in
    a row may come in the output `ngram_repeats` times, or as often as in the prompt if that is
    more. Raises ConfigError for an empty prompt.
    """
    results: list[tuple[list[int], str]] = [([], "length")] * len(prompts)
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigError(f"prompt {i} is empty")
        by_length.setdefault(len(prompt), []).append(i)
    for rows in by_length.values():
        outputs = _greedy_equal(
            model, [prompts[i] for i in rows], [limits[i] for i in rows], end, mask,
            (no_repeat_ngram, ngram_repeats),
        )  # fmt: skip
        for i, output in zip(rows, outputs, strict=True):
            results[i] = output
    return results


def _greedy_equal(
    model: GPT, prompts: list[Sequence[int]], limits: list[int], end: int, mask: MaskMode,
    repeats: tuple[int, int],
) -> list[tuple[list[int], str]]:  # fmt: skip
    """The same for prompts of one length, so that no row needs padding."""
    ids = torch.tensor([list(p) for p in prompts], device=model.device)
    lengths = torch.full((len(prompts),), ids.shape[1], device=model.device)
    hidden, cache = model(ids, mask=mask, lengths=lengths, prefix=lengths)
    rows = list(range(len(prompts)))
    outputs: list[list[int]] = [[] for _ in prompts]
    reasons = ["length"] * len(prompts)
    while rows:
        logits = model.logits(hidden[:, -1])
        for place, row in enumerate(rows):
            logits[place, forbidden(outputs[row], prompts[row], *repeats)] = -torch.inf
        chosen = logits.argmax(dim=-1).tolist()
        going = []
        for place, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            if token == end:
                reasons[row] = "stop"
            elif len(outputs[row]) < limits[row]:
                outputs[row].append(token)
                if len(outputs[row]) < limits[row]:
                    going.append(place)
        if not going:
            break
        cache = _keep(cache, going) if len(going) < len(rows) else cache
        rows = [rows[place] for place in going]
        last = torch.tensor([[outputs[row][-1]] for row in rows], device=model.device)
        hidden, cache = model(last, past=cache)
    return list(zip(outputs, reasons, strict=True))


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


def _keep(cache: Cache, rows: list[int]) -> Cache:
    return [(keys[rows], values[rows]) for keys, values in cache]


@torch.inference_mode()
def greedy_without_cache(
    model: GPT, prompt: Sequence[int], limit: int, end: int = 0, no_repeat_ngram: int = 0,
    ngram_repeats: int = 1,
) -> tuple[list[int], str]:
    """One causal prompt, the whole sequence read anew for each token: slow and obvious."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        hidden, _ = model(torch.tensor([ids], device=model.device))
        logits = model.logits(hidden[0, -1])
        stopped = forbidden(ids[len(prompt) :], prompt, no_repeat_ngram, ngram_repeats)
        logits[stopped] = -torch.inf
        token = int(logits.argmax())
        if token == end:
            return ids[len(prompt) :], "stop"
        ids.append(token)
    return ids[len(prompt) :], "length"
