"""Translated files that are fetched by a second request: kept in memory, for a while.

Bounded by number, bytes and age; the oldest goes first. Names cannot be guessed.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

MAX_FILES, MAX_BYTES, MAX_AGE_S = 64, 64 * 2**20, 1800.0


@dataclass(frozen=True, slots=True)
class File:
    name: str
    media_type: str
    data: bytes
    at: float


@dataclass(slots=True)
class Work:
    """A document that is translated in the background, from its upload on."""

    key: str
    at: float
    task: asyncio.Task[None] | None = None  # held, or it would be collected
    error: str = ""
    characters: int = 0
    done: bool = False


class Files:
    def __init__(
        self, number: int = MAX_FILES, size: int = MAX_BYTES, age_s: float = MAX_AGE_S
    ) -> None:
        self._bounds = number, size, age_s
        self._files: OrderedDict[str, File] = OrderedDict()

    def put(self, key: str, name: str, media_type: str, data: bytes) -> None:
        self._files[key] = File(name, media_type, data, time.monotonic())
        self._tidy()

    def get(self, key: str) -> File | None:
        self._tidy()
        return self._files.get(key)

    def _tidy(self) -> None:
        number, size, age_s = self._bounds
        total = sum(len(file.data) for file in self._files.values())
        while self._files:
            oldest = next(iter(self._files.values()))
            young = time.monotonic() - oldest.at <= age_s
            if young and len(self._files) <= number and total <= size:
                return
            total -= len(self._files.popitem(last=False)[1].data)
