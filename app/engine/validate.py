"""What the engine can run: a request that it cannot is refused before it is queued.

`validate` raises InvalidField, or TooLong, that names the field as users of the tasks know it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import fields

import numpy as np

from app.engine.request import Beam, Candidates, Decoder, Request, Sampling
from app.errors import InvalidField, TooLong


def validate(request: Request, decoder: Decoder) -> None:
    size, forced, capacity = len(request.prompt), len(request.forced), decoder.capacity
    if size == 0:
        raise InvalidField("The prompt has no token", param="prompt")
    if size + 1 > capacity:
        raise TooLong(f"{size} prompt tokens; the limit is {capacity - 1}", param="prompt")
    if size + forced + 1 > capacity:
        raise TooLong(
            f"prefix has {forced} tokens behind {size} of the prompt; the limit is {capacity - 1}",
            param="prefix",
        )
    for name, ids in (("prompt", request.prompt), ("prefix", request.forced)):
        if not _known(ids, decoder):
            raise InvalidField(f"A token id of {name} is outside of the vocabulary", param=name)
    if request.max_tokens < 1:
        raise InvalidField(f"max_tokens is {request.max_tokens}: below 1", param="max_tokens")
    if request.max_tokens <= forced:
        raise InvalidField(
            f"max_tokens is {request.max_tokens}: {forced} tokens are forced", param="max_tokens"
        )
    _validate_sampling(request.sampling, decoder)
    if request.beam is not None:
        _validate_beam(request.beam, request.sampling, decoder.slots)
    if request.candidates is not None:
        _validate_candidates(request.candidates, decoder)


def _known(ids: Collection[int], decoder: Decoder) -> bool:
    return not ids or (min(ids) >= 0 and max(ids) < decoder.vocabulary)


def _validate_sampling(options: Sampling, decoder: Decoder) -> None:
    for name, valid in (
        ("temperature", 0.0 <= options.temperature < math.inf),
        ("top_k", options.top_k >= 0),
        ("top_p", 0.0 <= options.top_p <= 1.0),
        ("min_p", 0.0 <= options.min_p <= 1.0),
        ("repetition_penalty", 0.0 < options.repetition_penalty < math.inf),
        ("presence_penalty", math.isfinite(options.presence_penalty)),
        ("frequency_penalty", math.isfinite(options.frequency_penalty)),
        ("no_repeat_ngram", options.no_repeat_ngram >= 0),
        ("ngram_repeats", options.ngram_repeats >= 1),
        ("min_tokens", options.min_tokens >= 0),
        ("logprobs", options.logprobs >= 0),
    ):
        if not valid:
            value = getattr(options, name)
            raise InvalidField(f"{name} is {value}: out of range", param=name)
    for token, value in options.logit_bias:
        if not _known([token], decoder):
            raise InvalidField(
                f"logit_bias has the id {token}: there are {decoder.vocabulary}",
                param="logit_bias",
            )
        if not math.isfinite(value):
            raise InvalidField(f"logit_bias of {token} is {value}", param="logit_bias")


def _validate_beam(beam: Beam, options: Sampling, slots: int) -> None:
    if not 1 <= beam.size <= slots:
        raise InvalidField(f"beam is {beam.size}: this server has {slots} slots", param="beam")
    if not 1 <= beam.best <= beam.size:
        raise InvalidField(
            f"alternatives is {beam.best}: must be 1 to beam, which is {beam.size}",
            param="alternatives",
        )
    if not math.isfinite(beam.length_penalty):
        raise InvalidField(
            f"length_penalty is {beam.length_penalty}: out of range", param="length_penalty"
        )
    usable = Sampling(
        no_repeat_ngram=options.no_repeat_ngram,
        ngram_repeats=options.ngram_repeats,
        min_tokens=options.min_tokens,
    )
    for field in fields(Sampling):
        if getattr(options, field.name) != getattr(usable, field.name):
            raise InvalidField(f"{field.name} cannot go with a beam", param=field.name)


def _validate_candidates(candidates: Candidates, decoder: Decoder) -> None:
    ids = candidates.ids
    if not decoder.lists:
        raise InvalidField("This engine takes no candidates", param="candidates")
    if candidates.vocabulary != decoder.vocabulary:
        raise InvalidField(
            f"candidates are of {candidates.vocabulary} ids: there are {decoder.vocabulary}",
            param="candidates",
        )
    if ids.ndim != 1 or ids.dtype != np.int64 or not ids.size or (np.diff(ids) <= 0).any():
        raise InvalidField("candidates are not ascending ids, at least one", param="candidates")
    if not _known((int(ids[0]), int(ids[-1])), decoder):
        raise InvalidField(
            f"candidates have the id {ids[-1] if ids[0] >= 0 else ids[0]}: there are "
            f"{decoder.vocabulary}",
            param="candidates",
        )
