"""A request on its way through the scheduler, the rows of the slot table that it holds, and what
one step of the scheduler reports about all of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.engine.beam import BeamSearch
from app.engine.kv import SlotTable
from app.engine.request import Event, Logits, Request, Timing
from app.engine.sampling import Sampler, choose, is_plain


class Sequence:
    """`output` has been told to the listener, `generated` of it is cached."""

    __slots__ = (
        "admitted_at", "attempts", "batch", "ended", "first_at", "gave_way", "generated", "job",
        "limit", "output", "prefix", "read", "reading", "request", "rows", "sampler", "search",
        "submitted_at", "token_at",
    )

    def __init__(
        self,
        request: Request,
        capacity: int,
        now: float,
        job: Hashable = None,
        batch: bool = False,
    ) -> None:
        self.request = request
        self.batch = batch  # waits behind, and gives way to, those that are not
        self.gave_way = False
        self.job = id(self) if job is None else job  # sequences of one job take turns with others
        self.prefix = request.prompt + request.forced  # what is read at once
        self.limit = min(request.max_tokens, capacity - len(request.prompt))
        self.read = 0  # tokens of the prefix that are cached
        self.reading = False  # has a row, and the rest of the prefix is still to be read
        self.output: list[int] = []
        self.generated = 0
        self.sampler: Sampler | None = None
        self.search: BeamSearch | None = None
        self.rows: list[Row] = []  # one while it is active, or one for each live hypothesis
        self.attempts = 0
        self.ended = False
        self.submitted_at = now
        self.admitted_at: float | None = None
        self.first_at: float | None = None
        self.token_at = now

    @property
    def cost(self) -> int:
        """Tokens of its slots, prompt and output, if it runs to its limit."""
        return self.request.slots * (len(self.request.prompt) + self.limit)

    @property
    def used(self) -> int:
        """The same, of what it has got so far."""
        return self.request.slots * (len(self.request.prompt) + self.progress)

    @property
    def progress(self) -> int:
        """Tokens of output, forced ones and all, that its rows hold."""
        return self.generated if self.search is None else self.search.length

    def start(self) -> Row:
        """Begin at the prompt; the row to read it into."""
        self.sampler = self.search = None
        self.read, self.reading = 0, True
        self.generated = len(self.request.forced)
        self.attempts += 1
        self.rows = [Row(self)]
        return self.rows[0]

    def advance(self, tokens: int) -> None:
        """So many more of the prefix have been read; after the last ones the output begins."""
        self.read += tokens
        if self.read < len(self.prefix):
            return
        self.reading = False
        request, options = self.request, self.request.sampling
        rest = (request.prompt, request.forced, request.end_ids)
        if request.beam is not None:
            self.search = BeamSearch(request.beam, options, *rest, self.limit)
        elif not is_plain(options):
            self.sampler = Sampler(options, *rest)

    def leave(self) -> None:
        """Mark its rows as free."""
        for row in self.rows:
            row.left = True
        self.rows, self.reading = [], False

    def fork(
        self, table: SlotTable[Row], parents: list[int], former: list[tuple[int, ...]]
    ) -> list[Row]:
        """Give each hypothesis a row: the first of a parent its parent's, others a copy of it.

        `parents` are places among the rows, `former` the outputs there before. A copy goes over the
        row of one without children, but for what both have in common, or into a reserved slot.
        """
        old, rows = list(self.rows), list[Row]()
        childless = [place for place in range(len(old)) if place not in parents]
        for place in parents:
            row = old[place]
            if row in rows:
                source = table.owners.index(row)
                if childless:
                    other = childless.pop()
                    row = old[other]
                    common = len(self.request.prompt) + _common(former[place], former[other])
                    table.fork(source, table.owners.index(row), row, common)
                else:
                    row = Row(self)
                    table.fork(source, len(table), row, 0)
                    self.rows.append(row)  # at once: the next copy may fail
            rows.append(row)
        for place in childless:
            old[place].left = True
        self.rows = rows
        return rows

    def timing(self, now: float) -> Timing:
        admitted = now if self.admitted_at is None else self.admitted_at
        first = now if self.first_at is None else self.first_at
        return Timing(admitted - self.submitted_at, first - admitted, now - first)

    def check(self, tokens: list[int], lengths: list[int]) -> None:
        """Raise AssertionError if these are not what its rows should feed and hold."""
        if self.reading:
            assert 0 < self.read < len(self.prefix) and lengths == [self.read]
            return
        if self.search is None:
            assert 0 < self.generated <= len(self.output) < self.limit
            outputs = [self.output[: self.generated]]
        else:
            assert not self.output and 0 < len(self.rows) <= self.request.slots
            outputs = [list(branch.output) for branch in self.search.live]
            assert 0 < len(outputs[0]) < self.limit
        assert tokens == [output[-1] for output in outputs], "the wrong token is fed"
        assert lengths == [len(self.request.prompt) + len(output) - 1 for output in outputs]


class Row:
    """The owner of one slot."""

    __slots__ = ("left", "sequence")

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.left = False  # given up; the slot is yet to be filled by another


def choose_rows(
    rows: list[Row], logits: Logits
) -> tuple[NDArray[np.int64], list[float], dict[int, NDArray[np.float32]]]:
    """Each row's token and its log-probability, and the logits of those that need them: they may
    have to come from a device, which may fail."""
    ids, logprobs = choose(logits, [row.sequence.sampler for row in rows])
    needed = (
        i
        for i, row in enumerate(rows)
        if row.sequence.search is not None or row.sequence.request.sampling.logprobs
    )
    return ids, logprobs, {i: logits[i] for i in needed}


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many ids both begin with."""
    pairs = zip(one, other, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(one))


@dataclass(slots=True)
class StepReport:
    """What one step did: events in order, then figures for the metrics."""

    events: list[tuple[Sequence, Event]] = field(default_factory=list)
    queue_times: list[float] = field(default_factory=list)
    first_token_times: list[float] = field(default_factory=list)
    token_intervals: list[float] = field(default_factory=list)
    prefill_runs: list[int] = field(default_factory=list)  # prompt tokens of each
    prefix_hits: list[bool] = field(default_factory=list)  # of prompts longer than a chunk
    decode_rows: int = 0
    preempted: int = 0
    failures: list[tuple[str, Exception]] = field(default_factory=list)  # phase, what was raised

    def admitted(self, sequence: Sequence, now: float) -> None:
        """Its prompt is about to be read."""
        if sequence.admitted_at is None:
            sequence.admitted_at = now
            self.queue_times.append(now - sequence.submitted_at)

    def took_token(self, sequence: Sequence, now: float) -> None:
        if sequence.first_at is None:
            sequence.first_at = now
            self.first_token_times.append(now - sequence.submitted_at)
        else:
            self.token_intervals.append(now - sequence.token_at)
        sequence.token_at = now
