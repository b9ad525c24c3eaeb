"""Which sequence runs when: a state machine without threads, over the decoder and the slot table.

Sequences go in, one `step` at a time comes out as a `StepReport`: tokens and ends, in order, and
what was measured. A step is either prefill runs (waiting sequences enter free slots, jobs in turn,
with others of similar length) or one decode run of all active rows; while both have work, a decode
run follows every few hundred prompt tokens. A run that raises is repeated; if it fails again, the
row that makes it fail is found by running ever smaller prefixes of the batch, and that row alone
starts again from its prompt, without telling its tokens twice, or fails for good. No failure leaks
a slot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.engine.kv import SlotTable
from app.engine.line import Line
from app.engine.request import (
    Decoder,
    Event,
    Failed,
    Finished,
    FinishReason,
    Request,
    Timing,
    Token,
)
from app.engine.sampling import Sampler, choose
from app.errors import AppError, DeadlineExceeded, EngineFailed

_ATTEMPTS = 2  # starts of one sequence before it fails
_PATIENCE = 256  # prompt tokens that running sequences let others read between two of their steps
_RUN_TOKENS = 8  # what a prefill run costs beyond its tokens, in tokens: padding that pays


class Sequence:
    """A request on its way: `output` has been told to the listener, `generated` of it is cached."""

    __slots__ = (
        "admitted_at", "attempts", "ended", "first_at", "generated", "job", "limit", "output",
        "request", "sampler", "submitted_at", "token_at",
    )

    def __init__(
        self, request: Request, capacity: int, now: float, job: Hashable = None
    ) -> None:
        self.request = request
        self.job = id(self) if job is None else job  # sequences of one job take turns with others
        self.limit = min(request.max_tokens, capacity - len(request.prompt))
        self.output: list[int] = []
        self.generated = 0
        self.sampler: Sampler | None = None
        self.attempts = 0
        self.ended = False
        self.submitted_at = now
        self.admitted_at: float | None = None
        self.first_at: float | None = None
        self.token_at = now

    def start(self) -> None:
        options = self.request.sampling
        plain = options.temperature == 0.0 and options.repetition_penalty == 1.0
        plain = plain and not options.no_repeat_ngram
        self.sampler = None if plain else Sampler(options, self.request.prompt)
        self.generated = 0
        self.attempts += 1

    @property
    def choice(self) -> tuple[Sampler, NDArray[np.int64]] | None:
        if self.sampler is None:
            return None
        if self.request.sampling.repetition_penalty == 1.0:
            return self.sampler, np.empty(0, np.int64)
        tokens = [*self.request.prompt, *self.output[: self.generated]]
        return self.sampler, np.array(tokens, np.int64)

    def timing(self, now: float) -> Timing:
        admitted = now if self.admitted_at is None else self.admitted_at
        first = now if self.first_at is None else self.first_at
        return Timing(admitted - self.submitted_at, first - admitted, now - first)


@dataclass(slots=True)
class StepReport:
    """What one step did: events in order, then figures for the metrics."""

    events: list[tuple[Sequence, Event]] = field(default_factory=list)
    queue_times: list[float] = field(default_factory=list)
    first_token_times: list[float] = field(default_factory=list)
    token_intervals: list[float] = field(default_factory=list)
    prefill_runs: list[int] = field(default_factory=list)  # prompt tokens of each
    decode_rows: int = 0
    failures: list[tuple[str, Exception]] = field(default_factory=list)  # phase, what was raised


class Scheduler:
    def __init__(
        self,
        decoder: Decoder,
        *,
        max_prefill_tokens: int = 2048,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decoder = decoder
        self._max_prefill_tokens = max_prefill_tokens
        self._clock = clock
        self._waiting: Line[Sequence] = Line()
        self._table: SlotTable[Sequence] = SlotTable(decoder)
        self._next_deadline = math.inf
        self._read = 0  # prompt tokens since the last decode step
        self._report = StepReport()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._table)

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._table.owners or self._report.events)

    def add(self, request: Request) -> Sequence:
        return self.enqueue(Sequence(request, self._decoder.capacity, self._clock()))

    def enqueue(self, sequence: Sequence) -> Sequence:
        self._waiting.add(sequence)
        if sequence.request.deadline is not None:
            self._next_deadline = min(self._next_deadline, sequence.request.deadline)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence wherever it is; told by the next step. Nothing if it has ended."""
        if self._withdraw(sequence):
            self._finish(sequence, "cancelled", self._clock())

    def step(self) -> StepReport:
        """One prefill or decode step, as far as there is work."""
        self._expire(self._clock())
        patient = not self._table.owners or self._read < _PATIENCE
        if self._waiting and self._table.free and patient:
            self._prefill()
            self._read += sum(self._report.prefill_runs)
        else:
            self._read = 0
            self._decode()
        report, self._report = self._report, StepReport()
        return report

    # Prefill

    def _prefill(self) -> None:
        """Runs of waiting prompts, together no more than `max_prefill_tokens`, or one prompt."""
        budget = self._max_prefill_tokens
        while self._table.free and (group := self._group(budget)):
            now = self._clock()
            for sequence in group:
                self._waiting.serve(sequence)
                if sequence.admitted_at is None:
                    sequence.admitted_at = now
                    self._report.queue_times.append(now - sequence.submitted_at)
                sequence.start()
            budget -= len(group) * max(len(s.request.prompt) for s in group)
            if not self._prefill_run(group):
                for sequence in group:
                    if not self._prefill_run([sequence]):
                        self._fail(sequence, _failed())

    def _group(self, budget: int) -> list[Sequence]:
        """The first waiting sequence and, of the next in line, those of similar length."""
        line = self._waiting.next(self._table.free)
        if not line:
            return []
        size = len(line[0].request.prompt)
        if size > budget and budget < self._max_prefill_tokens:
            return []  # the first prompt of a step may exceed the budget alone
        group, longest = line[:1], size
        for other in sorted(line[1:], key=lambda s: abs(len(s.request.prompt) - size)):
            length, rows = len(other.request.prompt), len(group)
            high = max(longest, length)
            padding = high * (rows + 1) - longest * rows - length  # that this prompt would add
            if padding <= _RUN_TOKENS and high * (rows + 1) <= budget:
                group.append(other)
                longest = high
        return group

    def _prefill_run(self, group: list[Sequence]) -> bool:
        first = len(self._table)
        prompts = [sequence.request.prompt for sequence in group]
        logits = self._try("prefill", lambda: self._decoder.prefill(first, prompts))
        if logits is None:
            return False
        lengths = [len(prompt) for prompt in prompts]
        self._report.prefill_runs.append(sum(lengths))
        self._table.add(group, lengths)
        self._accept(first, logits)
        return True

    # Decode

    def _decode(self) -> None:
        while rows := len(self._table):
            logits = self._decode_run(rows)
            if logits is None:
                logits = self._decode_run(rows)
            if logits is not None:
                self._report.decode_rows = rows
                self._table.grow()
                self._accept(0, logits)
                return
            row = self._guilty(rows)
            self._retry(self._table.owners[row])
            self._release(row)

    def _decode_run(self, rows: int) -> NDArray[np.float32] | None:
        tokens, lengths = self._table.tokens(rows), self._table.lengths(rows)
        return self._try("decode", lambda: self._decoder.decode(tokens, lengths))

    def _guilty(self, rows: int) -> int:
        """The last row of the shortest prefix that fails, by bisection; all rows together do.

        A run that succeeds writes what the repeated run will write again, so it harms nothing.
        """
        passing, failing = 0, rows
        while failing - passing > 1:
            middle = (passing + failing) // 2
            if self._decode_run(middle) is None:
                failing = middle
            else:
                passing = middle
        return failing - 1

    # What both share

    def _try(
        self, phase: str, run: Callable[[], NDArray[np.float32]]
    ) -> NDArray[np.float32] | None:
        try:
            return run()
        except Exception as error:
            self._report.failures.append((phase, error))
            return None

    def _accept(self, first: int, logits: NDArray[np.float32]) -> None:
        """Choose and take a token for each row from `first` on; rows that end leave the table."""
        owners = self._table.owners[first:]
        ids, logprobs = choose(logits, [sequence.choice for sequence in owners])
        now = self._clock()
        self._table.feed(first, ids)
        gone = [
            first + i
            for i, (sequence, token) in enumerate(zip(owners, ids.tolist(), strict=True))
            if not self._take(sequence, token, logprobs[i], now)
        ]
        for row in reversed(gone):  # from the end, so that no row of `gone` is moved
            self._release(row)

    def _take(self, sequence: Sequence, token: int, logprob: float, now: float) -> bool:
        """Give a sequence its next token; False when it leaves its slot."""
        if math.isnan(logprob):
            self._retry(sequence)
            return False
        if sequence.generated < len(sequence.output):  # started again: these have been told
            if sequence.output[sequence.generated] != token:
                self._fail(sequence, _failed())
                return False
            sequence.generated += 1
            return True
        if token in sequence.request.end_ids:
            self._time_token(sequence, now)
            self._finish(sequence, "stop", now)
            return False
        self._time_token(sequence, now)
        sequence.output.append(token)
        sequence.generated += 1
        self._report.events.append((sequence, Token(token, logprob)))
        if sequence.generated >= sequence.limit:
            self._finish(sequence, "length", now)
            return False
        return True

    def _time_token(self, sequence: Sequence, now: float) -> None:
        if sequence.first_at is None:
            sequence.first_at = now
            self._report.first_token_times.append(now - sequence.submitted_at)
        else:
            self._report.token_intervals.append(now - sequence.token_at)
        sequence.token_at = now

    def _release(self, row: int) -> None:
        """Free a row. When its slot cannot be filled, the rows that cannot move start again."""
        while True:
            try:
                self._table.remove(row)
                return
            except Exception as error:
                self._report.failures.append(("move", error))
                self._retry(self._table.pop())

    def _retry(self, sequence: Sequence) -> None:
        """Put an active sequence back at the head of the queue, or fail it: its attempts end."""
        if sequence.attempts >= _ATTEMPTS:
            self._fail(sequence, _failed())
        else:
            self._waiting.return_first(sequence)

    def _withdraw(self, sequence: Sequence) -> bool:
        """Take a sequence from queue or table; False when it was in neither."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return True
        row = self._table.row(sequence)
        if row is None:
            return False
        self._release(row)
        return True

    def _expire(self, now: float) -> None:
        if now < self._next_deadline:
            return
        self._next_deadline = math.inf
        for sequence in [*self._waiting, *self._table.owners]:
            deadline = sequence.request.deadline
            if deadline is None:
                continue
            if now < deadline:
                self._next_deadline = min(self._next_deadline, deadline)
            elif self._withdraw(sequence):
                tokens = len(sequence.output)
                self._fail(sequence, DeadlineExceeded(f"The deadline passed after {tokens} tokens"))

    def _finish(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        self._end(sequence, Finished(reason, sequence.timing(now)))

    def _fail(self, sequence: Sequence, error: AppError) -> None:
        self._end(sequence, Failed(error))

    def _end(self, sequence: Sequence, event: Event) -> None:
        sequence.ended = True
        self._report.events.append((sequence, event))

    def check(self) -> None:
        """Raise AssertionError when the state is inconsistent; tests call it after every step."""
        self._table.check()
        active, rows = self._table.owners, len(self._table)
        tokens, lengths = self._table.tokens(rows).tolist(), self._table.lengths(rows).tolist()
        for sequence, token, length in zip(active, tokens, lengths, strict=True):
            assert sequence not in self._waiting, "both waiting and active"
            assert 0 < sequence.generated <= len(sequence.output) < sequence.limit
            assert token == sequence.output[sequence.generated - 1], "the wrong token is fed"
            assert length == len(sequence.request.prompt) + sequence.generated - 1
        for sequence in [*self._waiting, *active]:
            assert not sequence.ended, "an ended sequence holds a place"
            assert sequence.attempts <= _ATTEMPTS


def _failed() -> EngineFailed:
    return EngineFailed("The model failed on this request, and a second attempt did not help")
