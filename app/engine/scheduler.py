"""Which sequence runs when: a state machine without threads, over the decoder and the slot table.

Sequences go in, one `step` at a time comes out as a `StepReport`: tokens and ends, in order, and
what was measured. A step is either one prefill run (the first waiting sequence enters a free slot,
with others of similar length) or one decode run of all active rows; while both have work, a decode
run follows every few hundred prompt tokens. Long prompts are read in chunks, a run each. If an
interactive sequence finds no slot, that batch sequence gives way which has come least far: it goes
back to the line, once, and starts again from its prompt without telling its tokens twice. A beam
search enters when there are slots for all of its hypotheses, and its rows are copied as these
branch. A run that raises is repeated; if it fails again, the row that makes it fail is found by
running ever smaller prefixes of the batch, and its sequence alone starts again, or fails for good.
No failure leaks a slot.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from app.engine import runs
from app.engine.admission import culprit, fitting, giving_way, similar
from app.engine.invariants import check_state
from app.engine.kv import SlotTable
from app.engine.line import Line
from app.engine.prefixes import PrefixStore
from app.engine.request import (
    Array,
    Decoder,
    Event,
    Failed,
    Finished,
    FinishReason,
    Hypothesis,
    Logits,
    Request,
    Token,
)
from app.engine.sampling import likeliest
from app.engine.sequence import Read, Row, Sequence, StepReport, choose_rows
from app.errors import AppError, DeadlineExceeded, EngineFailed

T = TypeVar("T")

_ATTEMPTS = 2  # starts of one sequence before it fails
CHUNK = 64  # tokens of a prompt that are read in one run, even: see `Decoder.prefill`
_PATIENCE = 256  # prompt tokens that running sequences let others read between two of their steps


class Scheduler:
    def __init__(
        self,
        decoder: Decoder,
        *,
        max_prefill_tokens: int = 128,
        chunk: int = CHUNK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decoder = decoder
        self._max_prefill_tokens = max_prefill_tokens
        self._chunk = chunk
        self._clock = clock
        self._waiting: Line[Sequence] = Line()
        self._table: SlotTable[Row] = SlotTable(decoder)
        self._next_deadline = math.inf
        self._taken = 0  # slots that are in use or promised to a search
        self._read = 0  # prompt tokens since the last decode step
        self._reading: deque[Sequence] = deque()  # in rows, with a prompt that is read in part
        self._prefixes = PrefixStore(decoder, chunk) if decoder.spare else None
        self._entered = False  # a waiting sequence did at the last prefill step
        self._report = StepReport()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:  # slots
        return self._taken

    @property
    def cached(self) -> int:  # tokens of all rows
        return int(self._table.lengths(len(self._table)).sum())

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
        patient = self._read < _PATIENCE or len(self._reading) == len(self._table)
        if patient and self._waiting.has_interactive:
            self._make_room()
        line = self._next() if patient else []
        self._entered = bool(line) and not (self._entered and self._reading)
        if self._entered:
            self._prefill(line)
        elif patient and self._reading:
            self._read_on(self._reading[0])
        else:
            self._read = 0
            self._decode()
        self._read += sum(self._report.prefill_runs)
        report, self._report = self._report, StepReport()
        return report

    # Prefill

    def _prefill(self, line: list[Sequence]) -> None:
        """A run of waiting prompts, together no more than `max_prefill_tokens`, or of one."""
        if store := self._prefixes:
            if self._reuse(store, line[0]):
                return
            line = [s for s in line if s is line[0] or not store.knows(s.prefix)]
        group, now = similar(line, self._max_prefill_tokens, self._chunk), self._clock()
        for sequence in group:
            self._waiting.serve(sequence)
            self._report.admitted(sequence, now)
        if not self._prefill_run(group):
            for sequence in group:
                if not self._prefill_run([sequence]):
                    self._fail(sequence, _failed())

    def _make_room(self) -> None:
        """Let batch sequences give way to waiting interactive ones that find no slot."""
        room = self._decoder.slots - self._taken
        leaving = giving_way(self._waiting.interactive(), self._running(), room)
        for sequence in reversed(leaving):
            sequence.gave_way = True
            sequence.attempts -= 1
            self._leave(sequence)
            self._waiting.return_first(sequence)
        self._report.preempted += len(leaving)
        self._sweep()

    def _next(self) -> list[Sequence]:
        """The first waiting sequences, as far as there are free slots for them."""
        room = self._decoder.slots - self._taken
        return fitting(self._waiting, room) if room and self._waiting else []

    def _prefill_run(self, group: list[Sequence]) -> bool:
        first = len(self._table)
        prompts = [sequence.prefix[: self._chunk] for sequence in group]
        run = partial(runs.prefill, self._decoder, first, group, prompts)
        logits = self._try("prefill", run)
        if logits is None:
            return False
        lengths = [len(prompt) for prompt in prompts]
        self._report.prefill_runs.append(sum(lengths))
        self._enter(group, lengths)
        self._accept(first, logits)
        return True

    def _reuse(self, store: PrefixStore, sequence: Sequence) -> bool:
        """Let a sequence enter with the beginning of its prompt copied, if that is kept."""
        prompt, row = sequence.prefix, len(self._table)
        if len(prompt) <= self._chunk:
            return False
        length = self._try("copy", partial(store.copy, prompt, row)) or 0
        self._report.prefix_hits.append(length > 0)
        if length:
            self._waiting.serve(sequence)
            self._report.admitted(sequence, self._clock())
            self._enter([sequence], [length])
        return length > 0

    def _enter(self, group: list[Sequence], lengths: list[int]) -> None:
        """Give sequences the next rows, where so many tokens of their prompts are cached."""
        self._taken += sum(sequence.request.slots for sequence in group)
        self._table.add([sequence.start() for sequence in group], lengths)
        for sequence, length in zip(group, lengths, strict=True):
            sequence.advance(length)
            if sequence.reading:
                self._reading.append(sequence)

    def _read_on(self, sequence: Sequence) -> None:
        """The next chunk of a prompt: its borders, and so its bits, depend on the prompt alone.

        While others decode in between, its row is fed along and writes where the next chunk will.
        """
        row, start = self._table.owners.index(sequence.rows[0]), sequence.read
        part = sequence.prefix[start : start + self._chunk]
        read = partial(runs.prefill, self._decoder, row, [sequence], [part], start)
        run = partial(self._try, "chunk", read)
        if (logits := run()) is None and (logits := run()) is None:
            self._fail(sequence, _failed())
            return self._sweep()
        self._report.prefill_runs.append(len(part))
        self._table.hold(row, start + len(part))
        sequence.advance(len(part))
        if not sequence.reading:
            self._reading.remove(sequence)
            if store := self._prefixes:
                self._try("copy", lambda: store.keep(sequence.prefix, row))
            self._accept(row, logits)

    # Decode

    def _decode(self) -> None:
        while rows := len(self._table):
            if (logits := self._decode_run(rows)) is None:
                logits = self._decode_run(rows)
            if logits is not None:
                self._report.decode_rows = rows
                self._table.grow()
                for sequence in self._reading:
                    self._table.hold(self._table.owners.index(sequence.rows[0]), sequence.read)
                self._accept(0, logits)
                return
            guilty = culprit(lambda count: self._decode_run(count) is None, rows)
            self._retry(self._table.owners[guilty].sequence)
            self._sweep()

    def _decode_run(self, rows: int) -> Logits | None:
        fed = self._table.owners[:rows], self._table.tokens(rows), self._table.lengths(rows)
        return self._try("decode", partial(runs.decode, self._decoder, *fed))

    def _try(self, phase: str, run: Callable[[], T]) -> T | None:
        try:
            return run()
        except Exception as error:
            self._report.failures.append((phase, error))
            return None

    def _accept(self, first: int, logits: Logits) -> None:
        """Choose and take a token for each row from `first` on; rows that end leave the table."""
        rows = self._table.owners[first : first + len(logits)]
        if (chosen := self._try("decode", lambda: choose_rows(rows, logits))) is None:
            for row in rows:
                if not row.left:
                    self._retry(row.sequence)
            return self._sweep()
        ids, logprobs, values = chosen
        now = self._clock()
        self._table.feed(first, ids)
        searched: dict[Sequence, dict[Row, Read]] = {}
        for i, (row, token) in enumerate(zip(rows, ids.tolist(), strict=True)):
            if row.sequence.reading:
                continue
            if row.sequence.search is None:
                self._take(row.sequence, values.get(i), token, logprobs[i], now)
            else:
                searched.setdefault(row.sequence, {})[row] = (values[i], token, logprobs[i])
        for sequence, read in searched.items():
            self._search(sequence, read, now)
        self._sweep()

    def _take(
        self, sequence: Sequence, logits: Array | None, token: int, logprob: float, now: float
    ) -> None:
        """Give a sequence its next token; it leaves its row when it ends or must start again."""
        request, output = sequence.request, sequence.output
        if math.isnan(logprob):
            self._retry(sequence)
            return
        if not output:
            for forced in request.forced:
                self._tell(sequence, Token(forced, 0.0))
        if sequence.generated < len(output):  # started again: these have been told
            if output[sequence.generated] == token:
                sequence.generated += 1
            else:
                self._fail(sequence, _failed())
            return
        self._report.took_token(sequence, now)
        if token in request.end_ids:
            self._finish(sequence, "stop", now)
            return
        count = request.sampling.logprobs
        top = () if logits is None else tuple(likeliest(logits, count, token, logprob))
        self._tell(sequence, Token(token, logprob, top))
        sequence.generated += 1
        if sequence.generated >= sequence.limit:
            self._finish(sequence, "length", now)

    def _search(self, sequence: Sequence, read: dict[Row, Read], now: float) -> None:
        """Take a beam search one token further, and its rows to where its hypotheses now are."""
        search = sequence.search
        assert search is not None
        if any(math.isnan(logprob) for _, _, logprob in read.values()):
            self._retry(sequence)
            return
        self._report.took_token(sequence, now)
        former = [branch.output for branch in search.live]
        parents = search.advance([read[row] for row in sequence.rows])
        if not parents:
            best = search.best[0]
            for token in map(Token, best.ids, best.logprobs):
                self._tell(sequence, token)
            self._finish(sequence, best.reason, now, search.best)
            return
        if self._try("move", partial(sequence.fork, self._table, parents, former)) is None:
            self._retry(sequence)
            return
        for row, branch in zip(sequence.rows, search.live, strict=True):
            self._table.put(self._table.owners.index(row), branch.output[-1])

    def _tell(self, sequence: Sequence, token: Token) -> None:
        sequence.output.append(token.id)
        self._report.events.append((sequence, token))

    def _sweep(self) -> None:
        """Free the rows that were left. Rows that cannot be moved into their slots start again."""
        table = self._table
        at = len(table) - 1  # from the end, so that no row that was left is moved
        while at >= 0:
            left = table.owners[at].left
            if left and self._try("move", partial(table.remove, at)) is None:
                self._retry(table.pop().sequence)
                at = len(table)  # the sequence may have left other rows
            at -= 1

    def _retry(self, sequence: Sequence) -> None:
        """Put an active sequence back at the head of the queue, or fail it: its attempts end."""
        if sequence.attempts >= _ATTEMPTS:
            self._fail(sequence, _failed())
        else:
            self._leave(sequence)
            self._waiting.return_first(sequence)

    def _withdraw(self, sequence: Sequence) -> bool:
        """Take a sequence from queue or table; False when it was in neither."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return True
        if not sequence.rows:
            return False
        self._leave(sequence)
        self._sweep()
        return True

    def _expire(self, now: float) -> None:
        if now < self._next_deadline:
            return
        self._next_deadline = math.inf
        for sequence in [*self._waiting, *self._running()]:
            deadline = sequence.request.deadline
            if deadline is None:
                continue
            if now < deadline:
                self._next_deadline = min(self._next_deadline, deadline)
            elif self._withdraw(sequence):
                tokens = len(sequence.output)
                self._fail(sequence, DeadlineExceeded(f"The deadline passed after {tokens} tokens"))

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        hypotheses: tuple[Hypothesis, ...] = (),
    ) -> None:
        self._end(sequence, Finished(reason, sequence.timing(now), hypotheses))

    def _fail(self, sequence: Sequence, error: AppError) -> None:
        self._end(sequence, Failed(error))

    def _end(self, sequence: Sequence, event: Event) -> None:
        sequence.ended = True
        if sequence.rows:
            self._waiting.refund(sequence, sequence.cost - sequence.used)
        self._leave(sequence)
        self._report.events.append((sequence, event))

    def _leave(self, sequence: Sequence) -> None:
        if sequence.rows:
            self._taken -= sequence.request.slots
            if sequence.reading:
                self._reading.remove(sequence)
            sequence.leave()

    def _running(self) -> list[Sequence]:
        return list(dict.fromkeys(row.sequence for row in self._table.owners))

    def check(self) -> None:
        """Raise AssertionError when the state is inconsistent; tests call it after every step."""
        held = (self._table, self._waiting, self._reading, self._prefixes)
        check_state(*held, self._taken, _ATTEMPTS)


def _failed() -> EngineFailed:
    return EngineFailed("The model failed on this request, and a second attempt did not help")
