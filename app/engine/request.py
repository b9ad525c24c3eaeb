"""What enters and leaves the engine: requests and events, in token ids only.

A caller submits a `Request` with a `listener`; the engine's thread calls the listener with any
number of `Token` events and then exactly one `Finished` or `Failed`. A beam search tells all tokens
of its best hypothesis at once, at the end. `Decoder` is what the engine asks of a model: the ONNX
Runtime session in production, a fake in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import AppError

FinishReason = Literal["stop", "length", "cancelled"]
Array = NDArray[np.float32]
INTERACTIVE = 8  # sequences; a job of more is batch


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The ids that alone may come in a sequence's output, ascending, of how many there are."""

    ids: NDArray[np.int64]
    vocabulary: int

    def spread(self, logits: Array) -> Array:
        """Theirs, in their places among those of the whole vocabulary, which are -inf."""
        whole = np.full(self.vocabulary, -np.inf, np.float32)
        whole[self.ids] = logits
        return whole


Only = Sequence[Candidates | None]  # of each row; without any it has the whole vocabulary


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0: off.

    To the logits come, in this order: `logit_bias` (id, what is added), `repetition_penalty`
    (CTRL's, over prompt and output), `frequency_penalty` times how often a token is in the output
    and `presence_penalty` if it is (OpenAI's); then what is forbidden: end ids before `min_tokens`,
    and with `no_repeat_ngram` n > 0 what would make n tokens in a row come in the output more than
    `ngram_repeats` times, or than in the prompt if that is more. Then `temperature`, `top_k`,
    `top_p`, `min_p` (a share of the likeliest token's probability), and one draw from the seed's
    stream. `logprobs`: how many alternatives are told at each position.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    no_repeat_ngram: int = 0
    ngram_repeats: int = 1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Beam:
    """A search by beam; see `app.engine.beam` for what exactly it finds.

    `size` hypotheses live side by side, each in a slot; the `best` best are told. With
    `early_stopping` the search ends with `size` finished ones; without, when no live one can
    still come into the best. With `branch` they part at the first token, `size` different ones,
    and each goes on alone, greedily: the alternatives at that position.
    """

    size: int
    length_penalty: float = 1.0
    early_stopping: bool = True
    best: int = 1
    branch: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds spent waiting for a slot, reading the prompt, and generating."""

    queue_s: float
    prefill_s: float
    decode_s: float


class Token(NamedTuple):  # made for every row of every step: a dataclass takes twice as long
    id: int
    # Natural log, of the model's own distribution (before sampling options); 0 where it was forced.
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest ids, best first, as many as asked for


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One result of a beam search; forced ids stand first, each with log-probability 0."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the ids; an end token's is in the score only
    score: float
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    timing: Timing
    hypotheses: tuple[Hypothesis, ...] = ()  # of a beam search, best first


@dataclass(frozen=True, slots=True)
class Failed:
    error: AppError


Event = Token | Finished | Failed


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence. `end_ids` stop it (they are not reported); `deadline` is `time.monotonic()`.

    The output begins with the `forced` ids: read with the prompt, told as tokens, and counted by
    every rule on the output (`max_tokens`, `min_tokens`, repeats), as if they had been chosen.
    With `candidates` all others are left out as if they were not in the vocabulary: probabilities
    are those among the candidates. Forced ids need not be among them. One that is `batch` gives way
    as those of a large job do: it is a part of one that is submitted later. Requests of one `job`
    share its turns, whenever they were submitted; without one, those submitted together do.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    listener: Callable[[Event], None]
    end_ids: frozenset[int]
    sampling: Sampling = Sampling()
    deadline: float | None = None
    forced: tuple[int, ...] = ()
    beam: Beam | None = None
    candidates: Candidates | None = None
    batch: bool = False
    job: Hashable = None

    @property
    def slots(self) -> int:
        """How many slots it takes."""
        return 1 if self.beam is None else self.beam.size


class LazyLogits(Protocol):
    """Of each row the best comes at once, all of it when asked: it is on a device, say."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Array: ...

    def best(self) -> tuple[NDArray[np.int64], list[float]]:
        """As `app.engine.sampling.greedy`."""


class HostLogits(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
    """Logits (n, vocabulary) in memory; `sums` (n,) of exp(logit - largest), where they are known.

    What is cut out of it does not know them.
    """

    sums: NDArray[np.float32] | None

    def __array_finalize__(self, source: object) -> None:
        self.sums = None


Logits = Array | HostLogits | LazyLogits  # (n, vocabulary)


class Decoder(Protocol):
    """A causal decoder over a pool of KV slots. Called by one thread only.

    The same tokens give bit-identical logits in any slot and any company. A call that raises may
    have written only the positions that it was asked to write, so it can be repeated. Returned
    logits are read before the next call.
    """

    slots: int
    spare: int  # slots behind these that only `move` reaches
    capacity: int  # tokens a slot holds, prompt and output together
    vocabulary: int
    lists: bool  # whether requests may have candidates

    def prefill(self, first: int, prompts: Sequence[Sequence[int]], start: int = 0) -> Logits:
        """Read fresh prompts into slots first, first+1, ...; logits of each last position.

        Returns (len(prompts), vocabulary). Prompts may differ in length. With an even `start`, one
        prompt is read on: what is given follows the `start` tokens that the slot holds.
        """

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> Logits:
        """One token for each of the slots 0..n-1; `lengths` (n,) tokens are in the cache before.

        Returns (n, vocabulary); afterwards the cache holds lengths + 1 tokens.
        """

    def prefill_among(
        self, first: int, prompts: Sequence[Sequence[int]], only: Only, start: int = 0
    ) -> Logits:
        """As `prefill`, but of a row with candidates all others' logits are -inf.

        Theirs have the same bits whatever the candidates of others and its own are.
        """

    def decode_among(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], only: Only
    ) -> Logits:
        """As `decode`, with logits as of `prefill_among`."""

    def move(self, source: int, target: int, length: int, start: int = 0) -> None:
        """Copy the cached positions start..length-1 of slot `source` to those of slot `target`.

        What stands before `start` is the same in both; the source keeps what it has.
        """
