"""`gpt2-mt translate --folder`: a folder of texts and corpora becomes files of translations.

The bundle's engine is the translator, so that a teacher's output is made without torch. Every
`*.txt[.gz]` of the folder, `mono/<source>/*.txt[.gz]`, `train.<source>[.gz]` and the source side of
`NAME.<source>-<other>.tsv[.gz]` flows in; `OUT/NAME.<source>-to-<target>.tsv.gz` flows out: a line,
its translation and the mean log-probability of a token. What a run left finished is not made again.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from app.commands.progress import Progress
from app.errors import InvalidField
from app.service import Service
from app.tasks.job import Deadline
from app.tasks.translate import AUTO, TranslateOptions

_LINES = 256  # are translated together
_PAIR = re.compile(r"(.+)\.([a-z]{2,3})-([a-z]{2,3})\.tsv$")


async def translate_folder(
    service: Service, args: argparse.Namespace, options: TranslateOptions
) -> None:
    source, target = service.translator.pair(args.source, args.target)
    if source == AUTO:
        raise InvalidField("--folder: give the --source language", param="source")
    folder, out = Path(args.folder), Path(args.out)
    files = find_texts(folder, source)
    done = {name: out / f"{name}.{source}-to-{target}.tsv.gz" for name in files}
    out.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()  # a line of several files is translated once
    todo = []
    for name, (path, column) in files.items():
        if done[name].exists():
            seen.update(hash(line.split("\t")[0]) for line in _read(done[name]))
        else:
            todo.append((name, path, column))
    progress = Progress(sum(1 for _, path, _ in todo for _ in _read(path)), "lines")
    try:
        for name, path, column in todo:
            partial = done[name].with_name(done[name].name + ".partial")
            counts = await _file(service, path, column, (source, target), options, partial, seen,
                                 progress)  # fmt: skip
            partial.replace(done[name])
            sys.stderr.write(f"{done[name]}: {counts[0]} lines, {counts[1]} cut and left out\n")
    finally:
        progress.close()
    sys.stderr.write(f"{len(todo)} files written, {len(files) - len(todo)} were there\n")


def find_texts(folder: Path, source: str) -> dict[str, tuple[Path, int]]:
    """By name each file with text in the source language, and the column that it is in."""
    found: dict[str, list[tuple[Path, int, str]]] = {}
    walk = os.walk(folder, followlinks=True)
    for path in sorted(Path(base, name) for base, _, names in walk for name in names):
        parts = path.relative_to(folder).parts
        name = path.name.removesuffix(".gz")
        if match := _PAIR.match(name):
            sides = (match[2], match[3])
            if source in sides:
                found.setdefault(match[1], []).append((path, sides.index(source), name[:-4]))
        elif name == f"train.{source}":
            name = os.path.basename(os.path.abspath(path.parent))
            found.setdefault(name, []).append((path, 0, f"{name}.train"))
        elif name.endswith(".txt") and (len(parts) == 1 or parts[:-1] == ("mono", source)):
            found.setdefault(name[:-4], []).append((path, 0, ".".join((*parts[:-1], name[:-4]))))
    texts: dict[str, tuple[Path, int]] = {}
    for short, files in found.items():
        for path, column, long in files:  # such as tatoeba.en-de and tatoeba.en-fr
            name = short if len(files) == 1 else long
            if name in texts:
                raise InvalidField(
                    f"--folder: {str(texts[name][0])!r} and {str(path)!r} have one name",
                    param="folder",
                )
            texts[name] = path, column
    if not texts:
        raise InvalidField(f"--folder {str(folder)!r}: no text in {source!r}", param="folder")
    return texts


async def _file(
    service: Service, path: Path, column: int, pair: tuple[str, str],
    options: TranslateOptions, partial: Path, seen: set[int], progress: Progress,
) -> tuple[int, int]:  # fmt: skip
    """Translate one file; how many lines were written, and how many were cut."""
    written = cut = 0
    with gzip.open(partial, "wt", encoding="utf-8", newline="\n") as file:
        for block, read in _blocks(path, column, seen):
            if block:
                result = await service.translator.run(
                    block, *pair, Deadline.after(10**9), options=options
                )
                for line, answer in zip(block, result.translations, strict=True):
                    cut += answer.truncated
                    if not answer.truncated:
                        written += 1
                        text, score = " ".join(answer.text.split()), answer.score or 0.0
                        file.write(f"{line}\t{text}\t{score:.4f}\n")
            progress.add(read)
    return written, cut


def _blocks(path: Path, column: int, seen: set[int]) -> Iterator[tuple[list[str], int]]:
    """Lines that were not seen before, some at a time, and how many were read for them."""
    block: list[str] = []
    read = 0
    for number, line in enumerate(_read(path), 1):
        columns = line.split("\t")
        if column >= len(columns):
            raise InvalidField(f"{str(path)!r}, line {number}: no tab", param="folder")
        text = " ".join(columns[column].split())
        read += 1
        if text and hash(text) not in seen:
            seen.add(hash(text))
            block.append(text)
        if len(block) == _LINES:
            yield block, read
            block, read = [], 0
    yield block, read


def _read(path: Path) -> Iterator[str]:
    """Lines of a file; raises InvalidField naming the file and line."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007
                yield line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidField(f"{str(path)!r}, line {number}: {error}", param="folder") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidField(f"{str(path)!r}, after line {number}: {error}", param="folder") from None
