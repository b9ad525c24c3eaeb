"""What enters and leaves the engine: requests and events, in token ids only.

A caller submits a `Request` with a `listener`; the engine's thread calls the listener with any
number of `Token` events and then exactly one `Finished` or `Failed`. `Decoder` is what the engine
asks of a model: the ONNX Runtime session in production, a fake in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import AppError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. `top_k` 0 and `top_p` 1 are off.

    With `no_repeat_ngram` n > 0, any n tokens in a row may come in the output at most
    `ngram_repeats` times, or as often as in the prompt if that is more.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    no_repeat_ngram: int = 0
    ngram_repeats: int = 1


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds spent waiting for a slot, reading the prompt, and generating."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    logprob: float  # natural log, of the model's own distribution (before sampling options)


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    timing: Timing


@dataclass(frozen=True, slots=True)
class Failed:
    error: AppError


Event = Token | Finished | Failed


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence. `end_ids` stop it (they are not reported); `deadline` is `time.monotonic()`."""

    prompt: tuple[int, ...]
    max_tokens: int
    listener: Callable[[Event], None]
    end_ids: frozenset[int]
    sampling: Sampling = Sampling()
    deadline: float | None = None


class Decoder(Protocol):
    """A causal decoder over a pool of KV slots. Called by one thread only.

    The same tokens give bit-identical logits in any slot and any company. A call that raises may
    have written only the positions that it was asked to write, so it can be repeated. Returned
    logits are read before the next call.
    """

    slots: int
    capacity: int  # tokens a slot holds, prompt and output together
    vocabulary: int

    def prefill(self, first: int, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Read fresh prompts into slots first, first+1, ...; logits of each last position.

        Returns (len(prompts), vocabulary). Prompts may differ in length.
        """

    def decode(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """One token for each of the slots 0..n-1; `lengths` (n,) tokens are in the cache before.

        Returns (n, vocabulary); afterwards the cache holds lengths + 1 tokens.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cached positions of slot `source` over slot `target`."""
