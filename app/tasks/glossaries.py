"""Glossaries that are kept under names, in a folder of JSON files or in memory only.

A file is written beside its place and then moved there, so that one is never half written; all that
change something take turns. Their number and their terms are bounded, and so are the names, which
are those of the files.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from app.errors import AppError, Exists, InvalidField, SettingsError, UnknownGlossary
from app.text.glossary import Glossary

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$"
MAX_GLOSSARIES, MAX_ENTRIES = 500, 5000
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class StoredGlossary:
    """`title`: what those call it who know it by an id, which is its name here."""

    name: str
    source: str
    target: str
    entries: Mapping[str, str]
    title: str = ""
    created: str = ""  # ISO 8601


class Glossaries:
    """Safe to use from several threads."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._found: dict[str, tuple[StoredGlossary, Glossary]] = {}

    @classmethod
    def open(cls, folder: Path | None) -> Self:
        """Those in the folder, which is made if it is not there."""
        opened = cls(folder)
        if folder is None:
            return opened
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(folder.glob(f"*{_SUFFIX}"))
        except OSError as error:
            raise SettingsError(f"glossaries: {error}", param="glossaries") from None
        for path in paths:
            stored = _read(path)
            opened._found[stored.name] = stored, _glossary(stored)
        return opened

    def all(self) -> list[StoredGlossary]:
        with self._lock:
            return [stored for _, (stored, _) in sorted(self._found.items())]

    def get(self, name: str, param: str = "name") -> StoredGlossary:
        return self._entry(name, param)[0]

    def use(self, name: str, param: str = "glossary") -> Glossary:
        """For a translation."""
        return self._entry(name, param)[1]

    def add(self, stored: StoredGlossary, *, replace: bool = False) -> StoredGlossary:
        """Keep it; under a name that is taken only to `replace` what is there."""
        if not re.match(NAME, stored.name):
            raise InvalidField(
                f"name is {stored.name[:80]!r}: must match {NAME}", param="name"
            )
        glossary = _glossary(stored)
        with self._lock:
            former = self._found.get(stored.name)
            if former and not replace:
                raise Exists(f"there is a glossary {stored.name!r} already", param="name")
            if not former and len(self._found) >= MAX_GLOSSARIES:
                raise InvalidField(
                    f"there are {MAX_GLOSSARIES} glossaries, and no more are kept", param="name"
                )
            if self._folder:
                _write(self._folder, stored)
            self._found[stored.name] = stored, glossary
        return stored

    def remove(self, name: str) -> None:
        with self._lock:
            if name not in self._found:
                raise _unknown(name, "name")
            if self._folder:
                _path(self._folder, name).unlink(missing_ok=True)
            del self._found[name]

    def _entry(self, name: str, param: str) -> tuple[StoredGlossary, Glossary]:
        with self._lock:
            found = self._found.get(name)
        if found is None:
            raise _unknown(name, param)
        return found


def made(
    name: str, source: str, target: str, entries: Mapping[str, str], title: str = ""
) -> StoredGlossary:
    """A new one, of now."""
    return StoredGlossary(
        name, source, target, dict(entries), title, datetime.now(UTC).isoformat(timespec="milliseconds")
    )


def _unknown(name: str, param: str) -> UnknownGlossary:
    return UnknownGlossary(f"there is no glossary {name[:80]!r}", param=param)


def _glossary(stored: StoredGlossary) -> Glossary:
    if not stored.entries:
        raise InvalidField("entries is empty: a glossary has at least one term", param="entries")
    checked = Glossary.of(stored.entries, "entries", MAX_ENTRIES)
    return Glossary(checked.pairs, stored.name, (stored.source, stored.target))


def _path(folder: Path, name: str) -> Path:
    return folder / (name + _SUFFIX)


def _write(folder: Path, stored: StoredGlossary) -> None:
    part = folder / (stored.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(asdict(stored), file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(_path(folder, stored.name))


def _read(path: Path) -> StoredGlossary:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        stored = StoredGlossary(**data)
        texts = [stored.name, stored.source, stored.target, stored.title, stored.created]
        if not all(isinstance(one, str) for one in [*texts, *stored.entries.values()]):
            raise TypeError("a member is not a text")
        if stored.name != path.name.removesuffix(_SUFFIX):
            raise ValueError(f"name is {stored.name!r}")
        _glossary(stored)
    except (OSError, ValueError, TypeError, AttributeError, AppError) as error:
        raise SettingsError(
            f"glossaries: {str(path)!r} cannot be read: {error}", param="glossaries"
        ) from None
    return stored
