"""The waiting line: who is next, fair by tokens between jobs, the interactive before the batch.

A job is what one request to the server submitted; its sequences keep their order. Jobs of a class
take turns by deficit round robin (Shreedhar and Varghese 1995): a turn is worth `_QUANTUM` tokens,
of prompts and of output as long as it may become; what is not generated in the end is given back.
Interactive jobs go first. Of the tokens that are given away while batch jobs wait, these have one
in `_SHARE + 1` all the same.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

_QUANTUM = 32
_SHARE = 3  # interactive tokens for one batch token, when both wait


class Member(Protocol):
    """What stands in the line: anything hashable that knows its job, class and tokens."""

    job: Hashable
    batch: bool

    @property
    def cost(self) -> int: ...

    def __hash__(self) -> int: ...


T = TypeVar("T", bound=Member)


class _Job(Generic[T]):
    __slots__ = ("credit", "members")

    def __init__(self) -> None:
        self.members: OrderedDict[T, None] = OrderedDict()
        self.credit = _QUANTUM  # tokens; its turn is over when none are left


class Line(Generic[T]):
    """Members by class and job; iteration is in the order of service."""

    def __init__(self) -> None:
        self._interactive: OrderedDict[Hashable, _Job[T]] = OrderedDict()
        self._batch: OrderedDict[Hashable, _Job[T]] = OrderedDict()
        self._owed = 0  # tokens that interactive jobs got while batch jobs waited
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, member: T) -> bool:
        job = self._jobs(member).get(member.job)
        return job is not None and member in job.members

    def __iter__(self) -> Iterator[T]:
        batch = _turns(self._batch)
        if self._due:
            yield from islice(batch, 1)
        yield from _turns(self._interactive)
        yield from batch

    @property
    def has_interactive(self) -> bool:
        return bool(self._interactive)

    def interactive(self) -> Iterator[T]:
        """The interactive alone, in the order of service."""
        return _turns(self._interactive)

    def add(self, member: T) -> None:
        self._jobs(member).setdefault(member.job, _Job()).members[member] = None
        self._size += 1

    def return_first(self, member: T) -> None:
        """Put a member that was served, in vain, before all others of its class."""
        self.add(member)
        self.refund(member, member.cost)
        jobs = self._jobs(member)
        jobs[member.job].members.move_to_end(member, last=False)
        jobs.move_to_end(member.job, last=False)

    def remove(self, member: T) -> None:
        """Take a member out; raises KeyError if it does not stand in the line."""
        jobs = self._jobs(member)
        members = jobs[member.job].members
        del members[member]
        self._size -= 1
        if not members:
            del jobs[member.job]

    def serve(self, member: T) -> None:
        """Take a member out and charge its job; jobs whose turn is over go to the end."""
        jobs = self._jobs(member)
        while (name := next(iter(jobs))) != member.job and jobs[name].credit <= 0:
            _end_turn(jobs, name)
        jobs[member.job].credit -= member.cost
        self.remove(member)
        if member.job in jobs and jobs[member.job].credit <= 0:
            _end_turn(jobs, member.job)
        if not self._batch:
            self._owed = 0
        elif not member.batch:
            self._owed += member.cost
        elif self._due:
            self._owed -= _SHARE * member.cost

    def refund(self, member: T, tokens: int) -> None:
        """Give back what a served member did not use, if others of its job wait."""
        if job := self._jobs(member).get(member.job):
            job.credit += tokens

    @property
    def _due(self) -> bool:
        return self._owed >= _QUANTUM

    def _jobs(self, member: T) -> OrderedDict[Hashable, _Job[T]]:
        return self._batch if member.batch else self._interactive


def _end_turn(jobs: OrderedDict[Hashable, _Job[T]], name: Hashable) -> None:
    jobs[name].credit += _QUANTUM
    jobs.move_to_end(name)


def _turns(jobs: OrderedDict[Hashable, _Job[T]]) -> Iterator[T]:
    """The members in the order of service, if nothing comes between."""
    fresh = ((job.credit, iter(job.members)) for job in jobs.values())
    again: deque[tuple[int, Iterator[T]]] = deque()
    while turn := next(fresh, None) or (again.popleft() if again else None):
        credit, members = turn
        if credit > 0:
            for member in members:
                yield member
                credit -= member.cost
                if credit <= 0:
                    break
            else:
                continue  # none is left
        again.append((credit + _QUANTUM, members))
