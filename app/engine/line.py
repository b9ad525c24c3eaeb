"""The waiting line: sequences of many jobs, served in turn, so that no job waits for another's end.

A job is what one request to the server submitted. Its sequences keep their order; the jobs take
turns, one sequence each, so a single sentence behind a thousand waits for a step, not for them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar


class Member(Protocol):
    """What stands in the line: anything hashable that knows its job."""

    job: Hashable

    def __hash__(self) -> int: ...


T = TypeVar("T", bound=Member)


class Line(Generic[T]):
    """Members by job; iteration is in the order of service."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Hashable, OrderedDict[T, None]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, member: T) -> bool:
        return member in self._jobs.get(member.job, ())

    def __iter__(self) -> Iterator[T]:
        turns = [iter(members) for members in self._jobs.values()]
        while turns:
            going = []
            for turn in turns:
                for member in turn:
                    yield member
                    going.append(turn)
                    break
            turns = going

    def next(self, count: int) -> list[T]:
        """The first `count` members; they stay in the line."""
        return list(islice(self, count))

    def add(self, member: T) -> None:
        self._jobs.setdefault(member.job, OrderedDict())[member] = None
        self._size += 1

    def return_first(self, member: T) -> None:
        """Put a member that was served, in vain, before all others."""
        self.add(member)
        self._jobs[member.job].move_to_end(member, last=False)
        self._jobs.move_to_end(member.job, last=False)

    def remove(self, member: T) -> None:
        """Take a member out; raises KeyError if it does not stand in the line."""
        members = self._jobs[member.job]
        del members[member]
        self._size -= 1
        if not members:
            del self._jobs[member.job]

    def serve(self, member: T) -> None:
        """Take a member out and let the other jobs go before its job's next."""
        self.remove(member)
        if member.job in self._jobs:
            self._jobs.move_to_end(member.job)
