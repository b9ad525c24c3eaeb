"""The bundles that are served, by name, and their exchange while requests run.

Paths flow in, a `Lease` on one service flows out: whoever works holds one. `reload` opens what has
changed on disk beside what runs; if all of it is good the new services take the names, and an old
one is stopped when the last lease on it has ended. If anything is wrong nothing changes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from app.bundle import Bundle
from app.errors import NotReady, SettingsError, UnknownModel
from app.service import Service

log = logging.getLogger("app.catalog")


class _Entry:
    """A started service and how many work with it; guarded by the catalog's lock."""

    def __init__(self, path: Path, service: Service) -> None:
        self.path = path
        self.service = service
        self.users = 0
        self.retired = False

    @property
    def name(self) -> str:
        return self.service.bundle.manifest.name

    def matches(self, bundle: Bundle) -> bool:
        return self.service.bundle.manifest == bundle.manifest


class Lease:
    """The right to work with a service until `close`."""

    def __init__(self, service: Service, end: Callable[[], None]) -> None:
        self.service = service
        self._end: Callable[[], None] | None = end

    def close(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Names of the bundles that a reload replaced or found as they were."""

    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]


class Catalog:
    """`open_` makes a service of a bundle's directory, ready to start."""

    def __init__(
        self, paths: Sequence[Path], open_: Callable[[Path], Service], drain_s: float
    ) -> None:
        self._paths = tuple(paths)
        self._open = open_
        self._drain_s = drain_s
        self._lock = threading.Lock()
        self._leases = 0
        self._all_ended = threading.Condition(self._lock)
        self._reloading = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def load(self) -> None:
        """Open and start them all; raises what is wrong with the first that is bad."""
        self._entries = {entry.name: entry for entry in self._opened({})}

    def reload(self) -> Reloaded:
        """Exchange the bundles that are others on disk now; raises, and changes nothing, if one is
        bad. Blocks while they are opened."""
        with self._reloading:
            old = {entry.path: entry for entry in self._entries.values()}
            entries = self._opened(old)
            with self._lock:
                self._entries = {entry.name: entry for entry in entries}
                gone = [entry for entry in old.values() if entry not in entries]
                for entry in gone:
                    entry.retired = True
                idle = [entry for entry in gone if not entry.users]
            for entry in idle:
                self._stop(entry)
            kept = [entry for entry in entries if entry in old.values()]
            return Reloaded(
                tuple(entry.name for entry in entries if entry not in kept),
                tuple(entry.name for entry in kept),
            )

    def _opened(self, running: dict[Path, _Entry]) -> list[_Entry]:
        entries: list[_Entry] = []
        try:
            for path in self._paths:
                entry = running.get(path)
                if entry is None or not entry.matches(Bundle.open(path)):
                    entry = _Entry(path, self._open(path))
                if any(entry.name == other.name for other in entries):
                    raise SettingsError(
                        f"{path} is named {entry.name!r}, as another bundle is", param="bundles"
                    )
                entries.append(entry)
                if running.get(path) is not entry:
                    entry.service.detector.load()
                    entry.service.engine.start()
        except BaseException:
            for entry in entries:
                if running.get(entry.path) is not entry:
                    entry.service.engine.stop(drain=False)
            raise
        return entries

    @property
    def services(self) -> list[Service]:
        """All of them, the one that answers where none is named first."""
        return [entry.service for entry in self._entries.values()]

    @property
    def first(self) -> Service:
        return self.services[0]

    def lease(self, name: str | None = None, *, param: str = "model") -> Lease:
        """On the bundle of that name, or the first; raises UnknownModel, NotReady."""
        with self._lock:
            if name is None:
                entry = next(iter(self._entries.values()))
            elif name in self._entries:
                entry = self._entries[name]
            else:
                known = ", ".join(map(repr, self._entries))
                raise UnknownModel(
                    f"there is no model {name[:60]!r}; here are {known}", param=param
                )
            if not entry.service.engine.alive:
                raise NotReady("the engine has stopped", retry_after_s=30)
            entry.users += 1
            self._leases += 1
        return Lease(entry.service, lambda: self._release(entry))

    def _release(self, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            self._leases -= 1
            if not self._leases:
                self._all_ended.notify_all()
            last = entry.retired and not entry.users
        if last:  # the caller may be the event loop, which must not wait for a thread
            threading.Thread(target=self._stop, args=[entry], daemon=True).start()

    def _stop(self, entry: _Entry) -> None:
        entry.service.engine.stop(drain=True, timeout_s=self._drain_s)
        log.info("%s, replaced, has ended", entry.name)

    def stop(self, drain: bool = True, timeout_s: float = 0.0) -> None:
        """Stop every engine, see `Engine.stop`; draining, when no lease is left or time is up.

        Until then who holds one may submit more: a translation's second tries, say.
        """
        end = time.monotonic() + timeout_s
        if drain:
            with self._lock:
                self._all_ended.wait_for(lambda: not self._leases, timeout_s)
        left = max(0.0, end - time.monotonic())
        threads = [
            threading.Thread(target=service.engine.stop, args=[drain, left])
            for service in self.services
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
