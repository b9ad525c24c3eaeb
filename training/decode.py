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
) -> list[tuple[list[int], str]]:  # fmt: skip
    """Most probable next token until `end` or the row's limit; ("stop" or "length") as reason.

    Prompts of one length share a batch with a cache; `no_repeat_ngram` n > 0 forbids any n tokens
    in a row of the output to come a second time. Raises ConfigError for an empty prompt.
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
            no_repeat_ngram,
        )  # fmt: skip
        for i, output in zip(rows, outputs, strict=True):
            results[i] = output
    return results


def _greedy_equal(
    model: GPT, prompts: list[Sequence[int]], limits: list[int], end: int, mask: MaskMode,
    no_repeat_ngram: int,
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
            logits[place, repeats(outputs[row], no_repeat_ngram)] = -torch.inf
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


def repeats(output: list[int], n: int) -> list[int]:
    """Every token that would end an n-gram which the output already has; none if n is 0."""
    if not n or len(output) < n:
        return []
    start = output[len(output) - n + 1 :]
    ends = range(n - 1, len(output))
    return [output[end] for end in ends if output[end - n + 1 : end] == start]


def _keep(cache: Cache, rows: list[int]) -> Cache:
    return [(keys[rows], values[rows]) for keys, values in cache]


@torch.inference_mode()
def greedy_without_cache(
    model: GPT, prompt: Sequence[int], limit: int, end: int = 0, no_repeat_ngram: int = 0
) -> tuple[list[int], str]:
    """One causal prompt, the whole sequence read anew for each token: slow and obvious."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        hidden, _ = model(torch.tensor([ids], device=model.device))
        logits = model.logits(hidden[0, -1])
        logits[repeats(ids[len(prompt) :], no_repeat_ngram)] = -torch.inf
        token = int(logits.argmax())
        if token == end:
            return ids[len(prompt) :], "stop"
        ids.append(token)
    return ids[len(prompt) :], "length"
