"""Sequence-level distillation: a teacher's translations of a corpus, as one-way files on disk.

A checkpoint and sources flow in; `NAME.en-to-de.tsv.gz` with source, translation and mean
log-probability a token (natural logarithm) flow out, a form that any other translator can write
too. Who reads them validates them (training.corpus). Finished blocks are kept in a partial file, so
that a stopped teacher goes on where it stood (Kim & Rush 2016).
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from training.config import require
from training.corpus import Cleaner, LeakCheck, Source, first_match, scan
from training.errors import CheckpointError, ConfigError, CorpusError
from training.evaluate import Translator, checkpoint_translator
from training.shards import held_line, held_out
from training.teachers import Teacher
from training.words import digest, saving

BLOCK = 4096  # texts between two writes
BATCH = 128  # texts that are decoded together
FORMAT = 1


@dataclass(frozen=True)
class TranslateConfig:
    """`sources` are globs over the corpus's sources; their side in the direction's first language
    is translated. `list` is as in DataConfig. `minutes` bounds it by the clock (0: all texts are
    translated): each file gets its share and holds a sample, drawn evenly from its texts."""

    teacher: str
    direction: str
    sources: tuple[str, ...]
    list: str = ""
    beam: int = 1
    minutes: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]{2,3}-[a-z]{2,3}", self.direction):
            raise ConfigError(f"direction = {self.direction!r}: must be as in 'en-de'")
        if not self.sources:
            raise ConfigError("sources is empty: name at least one, as in ['*']")
        require("positive", self, ("beam",))
        require("0 or more", self, ("minutes",))

    @property
    def languages(self) -> tuple[str, str]:
        source, target = self.direction.split("-")
        return source, target


def texts_to_translate(config: TranslateConfig, corpus: Path) -> list[Source]:
    """Every source by a person with a side in the language; each file of lines once, if possible as
    pairs of the direction, whose held-out lines must not come back as translations."""
    language = config.languages[0]
    found: dict[tuple[str, Path], Source] = {}
    sources = scan(corpus, config.list)
    for source in sorted(sources, key=lambda s: not set(config.languages).issuperset(s.languages)):
        if language not in source.languages or source.one_way:
            continue
        if first_match(source, dict.fromkeys(config.sources, True), False):
            side = source.languages.index(language) if len(source.paths) > 1 else 0
            found.setdefault((source.name, source.paths[side]), source)
    if not found:
        raise CorpusError(f"corpus {corpus}: no source in {language} matches "
                          f"{', '.join(config.sources)}")  # fmt: skip
    return list(found.values())


def teach(
    checkpoint: Path, sources: Sequence[Source], direction: str, out: Path, beam: int = 1,
    leaks: LeakCheck | None = None, device: torch.device | None = None, progress: bool = True,
    minutes: float = 0.0,
) -> dict[str, Counter[str]]:  # fmt: skip
    """Write one file a source name into `out`; returns what was kept and left out, by file.

    A text is translated once, whatever the number of sources it is in. With `minutes` a stage that
    was stopped has them anew for what is left. Raises CheckpointError for
    a teacher that does not know the direction, SaveError when the disk takes no more.
    """
    language, target = direction.split("-")
    teacher = Teacher.open(checkpoint, device or torch.device("cpu"))
    pairs = ["-".join(pair) for pair in teacher.meta.get("pairs", [])]
    if direction not in pairs:
        known = ", ".join(pairs) or "no direction"
        raise CheckpointError(f"teacher {checkpoint}: not trained for {direction}; it has {known}")
    by_name = {name: texts for name, texts in texts_of(sources, language, leaks).items() if texts}
    if not by_name:
        raise CorpusError(f"nothing in {language} to translate into {target}")
    translator: Translator | None = None
    counts = {}
    end, left = time.monotonic() + 60 * minutes, sum(map(len, by_name.values()))
    for name, texts in sorted(by_name.items()):
        file = out / f"{name.replace('/', '_')}.{language}-to-{target}.tsv.gz"
        bound = [minutes] if minutes else []
        mark = digest(FORMAT, teacher.digest, teacher.mask, beam, direction, texts, *bound)
        done = _report(file, mark)
        share, left = len(texts) / left, left - len(texts)
        if done is None:
            if translator is None:
                translator = checkpoint_translator(
                    checkpoint, BATCH, beam=beam, device=teacher.device
                )
            with saving(file):
                out.mkdir(parents=True, exist_ok=True)
                until = math.inf
                if minutes:
                    random.Random(mark).shuffle(texts)
                    now = time.monotonic()
                    until = now + share * (end - now)
                done = _write(file, texts, translator, (language, target), mark, progress, until)
        counts[file.name] = done
    return counts


def texts_of(
    sources: Sequence[Source], language: str, leaks: LeakCheck | None
) -> dict[str, list[str]]:
    """By source name the texts in a language: clean, each once, none of those held out.

    What is in pairs and in running text counts to the pairs.
    """
    cleaner = Cleaner(leaks)
    found: dict[str, dict[str, None]] = {}
    held: set[str] = set()
    seen: set[str] = set()
    for source in sorted(sources, key=lambda s: len(s.languages) == 1):
        mine = found.setdefault(source.name, {})
        for texts, kept in _units(source, language, cleaner):
            for text in texts:
                if not kept:
                    held.add(text)
                elif text not in seen:
                    seen.add(text)
                    mine[text] = None
    return {name: [text for text in texts if text not in held] for name, texts in found.items()}


def _units(
    source: Source, language: str, cleaner: Cleaner
) -> Iterator[tuple[list[str], bool]]:
    """Texts that belong together, and whether they are trained on."""
    if len(source.languages) == 2:
        side = source.languages.index(language)
        for pair in cleaner.pairs(source):
            yield [pair[side]], not held_out(pair)
    else:
        for document in cleaner.documents(source):
            whole = held_out((document,))
            for line in document.split("\n"):
                yield [line], not (whole or held_line(line))


def _report(file: Path, mark: str) -> Counter[str] | None:
    """What an earlier call counted, if it wrote this very file."""
    try:
        values = json.loads(_beside(file).read_text(encoding="utf-8"))
        return Counter(values["counts"]) if file.exists() and values["mark"] == mark else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _beside(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(".tsv.gz") + ".json")


def _write(
    file: Path, texts: Sequence[str], translator: Translator, direction: tuple[str, str],
    mark: str, progress: bool, until: float,
) -> Counter[str]:  # fmt: skip
    """Block by block, one at least; no other is begun at monotonic time `until`."""
    partial = file.with_name(file.name + ".partial")
    blocks = _finished(partial, mark)
    with (
        partial.open("a", encoding="utf-8") as kept,
        tqdm(total=len(texts), initial=min(len(texts), len(blocks) * BLOCK), unit="text",
             desc=file.name, disable=not progress, leave=None) as bar,
    ):  # fmt: skip
        for start in range(len(blocks) * BLOCK, len(texts), BLOCK):
            if blocks and time.monotonic() >= until:
                break
            block = texts[start : start + BLOCK]
            blocks.append(_translated(block, translator, direction))
            kept.write(json.dumps(blocks[-1], ensure_ascii=False) + "\n")
            kept.flush()
            bar.update(len(block))
    reached = min(len(blocks) * BLOCK, len(texts))
    counts = +Counter({"not reached": len(texts) - reached})
    whole = file.with_name(file.name + ".whole")
    with whole.open("wb") as raw:
        with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:  # the same bytes at any time
            for entry in blocks:
                counts.update({"kept": len(entry["rows"]), **entry["left out"]})
                for text, translation, score in entry["rows"]:
                    packed.write(f"{text}\t{translation}\t{score:.4f}\n".encode())
        raw.flush()
        os.fsync(raw.fileno())
    whole.replace(file)
    report = {"mark": mark, "counts": counts}
    _beside(file).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.unlink()
    return counts


def _finished(partial: Path, mark: str) -> list[dict[str, Any]]:
    """The blocks that an earlier call finished; the file is cut after them."""
    blocks: list[dict[str, Any]] = []
    size = 0
    if partial.exists():
        with partial.open("rb") as file:
            for number, line in enumerate(file):
                if number == 0 and line != f"{mark}\n".encode():
                    break
                try:
                    blocks += [json.loads(line)] if number else []
                except ValueError:  # half a line
                    break
                size += len(line)
        os.truncate(partial, size)
    if not size:
        partial.write_text(f"{mark}\n", encoding="utf-8")
    return blocks


def _translated(
    texts: Sequence[str], translator: Translator, direction: tuple[str, str]
) -> dict[str, Any]:
    """Rows of text, translation and score; and why the others were left out."""
    room = translator.model.config.context - len(translator.template)
    sizes = [len(e.ids) for e in translator.tokenizer.encode_batch(list(texts))]
    fitting = [text for text, size in zip(texts, sizes, strict=True) if size < room]
    rows: list[tuple[str, str, float]] = []
    out = Counter({"too long": len(texts) - len(fitting)})
    outputs = translator.scored(fitting, *direction)
    for text, (translation, reason, score) in zip(fitting, outputs, strict=True):
        folded = " ".join(translation.split())
        if reason == "stop" and folded:
            rows.append((text, folded, round(score, 4)))
        else:
            out["cut" if reason != "stop" else "empty"] += 1
    return {"rows": rows, "left out": +out}
