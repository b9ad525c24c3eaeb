"""The bundle's shortlist: of a source text's ids, those that its translation may need.

The file (`gpt2-mt train shortlist` writes it) has a table for each target language; it is checked
against the bundle's manifest when it is read, and BundleError names the array that is wrong. A
translation may use what is common in its language, the likely translations of its source's ids, and
these ids themselves. Directions that the shortlist was not learnt for have the whole vocabulary.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.bundle import SHORTLIST, TOKENIZER, Bundle, Manifest
from app.engine.request import Candidates
from app.errors import BundleError

FORMAT: Final = 1
_Table = Mapping[str, NDArray[Any]]
_KINDS: Final = {"common": "u2", "offsets": "i4", "ids": "u2"}


class Shortlist:
    """Candidates of a request, by its direction and the ids of its source text."""

    def __init__(
        self, vocabulary: int, pairs: Sequence[str], tables: Mapping[str, _Table]
    ) -> None:
        """Of each target language `common` ids, and of source id i `ids` from `offsets[i]` on."""
        self._vocabulary = vocabulary
        self._pairs = frozenset(pairs)
        self._tables = {code: (t["ids"], t["offsets"].tolist()) for code, t in tables.items()}
        self._common: dict[str, NDArray[np.bool_]] = {}
        for code, table in tables.items():
            self._common[code] = np.zeros(vocabulary, np.bool_)
            self._common[code][table["common"]] = True

    @classmethod
    def of(cls, bundle: Bundle) -> Shortlist:
        path = bundle.shortlist_path
        if path is None:
            raise BundleError(f"{bundle.manifest.name!r} has no {SHORTLIST}", param="files")
        return cls.read(path, bundle.manifest)

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> Shortlist:
        """From a file that must have been made for the manifest's tokenizer."""
        arrays = _load(path)
        size = manifest.model.vocabulary
        for name, wanted in (
            ("format", FORMAT),
            ("tokenizer_sha256", manifest.files[TOKENIZER].sha256),
            ("vocabulary", size),
        ):
            found = arrays[name].item() if name in arrays and arrays[name].ndim == 0 else None
            if found != wanted:
                raise _wrong(path, name, f"is {found!r}, the bundle needs {wanted!r}")
        pairs = arrays.get("pairs", np.zeros(0))
        if pairs.ndim != 1 or pairs.dtype.kind != "U" or not pairs.size:
            raise _wrong(path, "pairs", "is not a list of directions such as en-de")
        tables = {}
        for code in sorted({str(pair).partition("-")[2] for pair in pairs}):
            tables[code] = {n: arrays.get(f"{code}.{n}", np.zeros(())) for n in _KINDS}
            _check(path, code, tables[code], size, manifest.tokens.end)
        return cls(size, [str(pair) for pair in pairs], tables)

    def candidates(self, source: str, target: str, ids: Sequence[int]) -> Candidates | None:
        """None: this direction has no shortlist."""
        if f"{source}-{target}" not in self._pairs:
            return None
        marked = self._common[target].copy()
        told, offsets = self._tables[target]
        for token in set(ids):
            marked[told[offsets[token] : offsets[token + 1]]] = True
            marked[token] = True
        return Candidates(np.flatnonzero(marked), self._vocabulary)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("not an .npz file")
        with file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _wrong(path, SHORTLIST, f"cannot be read: {error}") from None


def _check(path: Path, code: str, table: _Table, size: int, end: int) -> None:
    for name, kind in _KINDS.items():
        if table[name].ndim != 1 or table[name].dtype != np.dtype(kind):
            raise _wrong(path, f"{code}.{name}", f"is missing, or not a row of {np.dtype(kind)}")
    offsets, ids = table["offsets"], table["ids"]
    ends = offsets.size == size + 1 and (int(offsets[0]), int(offsets[-1])) == (0, ids.size)
    if not ends or (np.diff(offsets) < 0).any():
        raise _wrong(path, f"{code}.offsets", "do not divide the ids among the vocabulary")
    for name in ("common", "ids"):
        if table[name].size and (largest := int(table[name].max())) >= size:
            raise _wrong(path, f"{code}.{name}", f"has id {largest}: the vocabulary has {size}")
    if end not in table["common"]:
        raise _wrong(path, f"{code}.common", f"lacks the end, id {end}")


def _wrong(path: Path, name: str, what: str) -> BundleError:
    return BundleError(f"shortlist {str(path)!r}: {name} {what}", param=name)
