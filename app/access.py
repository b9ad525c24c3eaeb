"""Who may ask, and how much: API keys from a file, a rate and a daily quota for each.

A key flows in and its `Caller` flows out; what it spends is counted there, in this process. The
file holds a line a key, `NAME SHA256 REQUESTS_A_MINUTE CHARACTERS_A_DAY` (`-`: no limit), never
the keys themselves; `gpt2-mt keys` writes it. It is read again when it changes; one that cannot
be read then leaves the keys as they were.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from app.errors import KeyMissing, KeysError, KeyWrong, QuotaExceeded, RateLimited

ANONYMOUS = "anonymous"
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DAY_S = 86_400
_LOOK_S = 1.0  # how often the file's time is looked at
log = logging.getLogger("app.access")


@dataclass(frozen=True, slots=True)
class Key:
    """`digest` is the SHA-256 of the key: keys are long and random, so that no salt is needed."""

    name: str
    digest: str
    requests_per_minute: int | None = None
    characters_per_day: int | None = None

    def __str__(self) -> str:
        limits = (self.requests_per_minute, self.characters_per_day)
        return " ".join([self.name, self.digest, *("-" if n is None else str(n) for n in limits)])


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """The keys of a file; raises KeysError with the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"the keys in {path} cannot be read: {error}", param="api_keys") from None
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, 1):
        if not (words := line.partition("#")[0].split()):
            continue
        key = _key(words)
        if key is None or key.name in keys:
            what = "wrong" if key is None else f"a second {key.name!r}"
            raise KeysError(f"{path}, line {number} is {what}: {_FORM}", param="api_keys")
        keys[key.name] = key
    return list(keys.values())


_FORM = "a line is NAME SHA256 REQUESTS_A_MINUTE CHARACTERS_A_DAY, '-' for no limit"


def checked(key: Key) -> Key:
    """The key, if a line of a file can hold it; else KeysError."""
    if _key(str(key).split()) != key:
        raise KeysError(f"{key} cannot be kept: {_FORM}, numbers above 0", param="name")
    return key


def _key(words: list[str]) -> Key | None:
    if len(words) != 4 or not _NAME.fullmatch(words[0]) or not _DIGEST.fullmatch(words[1]):
        return None
    limits = [None if word == "-" else word for word in words[2:]]
    if any(word is not None and not re.fullmatch("[1-9][0-9]{0,14}", word) for word in limits):
        return None
    rate, quota = (None if word is None else int(word) for word in limits)
    return Key(words[0], words[1], rate, quota)


class Caller:
    """One key and what it has spent since the server started.

    Days are those of `clock`, which may be set; rates go by `steady`, which may not.
    """

    def __init__(
        self, key: Key, clock: Callable[[], float], steady: Callable[[], float] = time.monotonic
    ) -> None:
        self.key = key
        self.requests = 0
        self.characters = 0
        self._clock = clock
        self._steady = steady
        self._tokens = float(key.requests_per_minute or 0)
        self._filled = steady()
        self._day = 0
        self._today = 0

    @property
    def today(self) -> int:
        """Characters since midnight UTC."""
        return self._today if self._day == int(self._clock() // _DAY_S) else 0

    @property
    def resets_s(self) -> float:
        """Seconds until midnight UTC."""
        return _DAY_S - self._clock() % _DAY_S

    def admit(self) -> None:
        """Count a request; raises RateLimited. As many as a minute allows may come at once."""
        rate = self.key.requests_per_minute
        if rate is not None:
            now = self._steady()
            passed, self._filled = now - self._filled, now
            self._tokens = min(float(rate), self._tokens + passed * rate / 60)
            if self._tokens < 1:
                wait = (1 - self._tokens) * 60 / rate
                raise RateLimited(f"at most {rate} requests a minute", retry_after_s=wait)
            self._tokens -= 1
        self.requests += 1

    def charge(self, characters: int) -> None:
        """Count characters to be read; raises QuotaExceeded, and counts none then."""
        quota, used = self.key.characters_per_day, self.today
        if quota is not None and used + characters > quota:
            raise QuotaExceeded(
                f"{characters} characters, and {used} of the day's {quota} are used",
                retry_after_s=self.resets_s,
            )
        self._day, self._today = int(self._clock() // _DAY_S), used + characters
        self.characters += characters


class Access:
    """The callers of a server. Without a file everybody is the same one, without limits."""

    def __init__(
        self,
        path: Path | None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._clocks = clock, steady
        self._anonymous = Caller(Key(ANONYMOUS, ""), *self._clocks)
        self._callers: dict[str, Caller] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = -math.inf
        if path is not None:
            self._stamp = _stamp(path)
            self._take(read_keys(path))

    @property
    def closed(self) -> bool:
        """A key is needed."""
        return self._path is not None

    def caller(self, key: str | None) -> Caller:
        """Whose key it is, found in constant time; raises KeyMissing, KeyWrong."""
        if self._path is None:
            return self._anonymous
        self._look(self._path)
        if not key:
            raise KeyMissing("send an API key: Authorization: Bearer KEY", param="Authorization")
        given, found = digest_of(key), None
        for caller in self._callers.values():  # all of them, whichever it is
            if hmac.compare_digest(given, caller.key.digest):
                found = caller
        if found is None:
            raise KeyWrong("the API key is not valid", param="Authorization")
        return found

    def _look(self, path: Path) -> None:
        now = self._clocks[1]()
        if now - self._looked < _LOOK_S:
            return
        self._looked, stamp = now, _stamp(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read_keys(path))
        except KeysError as error:
            log.error("keys stay as they were: %s", error)

    def _take(self, keys: Iterable[Key]) -> None:
        """What a name has spent stays spent, unless its key or limits are others now."""
        old = self._callers
        self._callers = {
            key.name: old[key.name]
            if key.name in old and old[key.name].key == key
            else Caller(key, *self._clocks)
            for key in keys
        }


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
