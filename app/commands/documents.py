"""`gpt2-mt translate FILE`: documents become files beside them, in another language."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from app.commands.progress import Progress
from app.documents.formats import EXTENSIONS, format_of, translated_name
from app.documents.run import Documents, TranslatedFile
from app.errors import BadDocument, InvalidField
from app.metrics import Metrics
from app.service import Service
from app.tasks.job import Deadline
from app.tasks.options import TranslateOptions
from app.tasks.translate import Translator

_ANY = 10**9


def are_documents(words: Sequence[str]) -> bool:
    """Whether the words name files of known formats, rather than being a text."""
    return bool(words) and all(
        Path(word).suffix.casefold() in EXTENSIONS and not any(map(str.isspace, Path(word).suffix))
        and (Path(word).is_file() or not any(map(str.isspace, word)))
        for word in words
    )  # fmt: skip


def check(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Each file and where its translation goes; refused before any model is loaded."""
    for name in ("alternatives", "prefix", "branch", "file", "folder"):
        if getattr(args, name):
            raise InvalidField(f"--{name}: not with documents", param=name)
    if args.format != "text":
        raise InvalidField("--format: a document has that of its ending", param="format")
    several = bool(args.out) and (len(args.text) > 1 or Path(args.out).is_dir())
    folder = Path(args.out) if several else None
    if folder is not None and not folder.is_dir():
        raise InvalidField(f"--out {args.out!r}: no such folder", param="out")
    plan: list[tuple[Path, Path]] = []
    for word in args.text:
        path = Path(word)
        if not path.is_file():
            raise InvalidField(f"{word!r}: no such file", param="text")
        made = (folder or path.parent) / translated_name(path.name, args.target)
        made = Path(args.out) if args.out and folder is None else made
        if made.exists() and (not args.force or made.samefile(path)):
            raise InvalidField(f"{str(made)!r} is there: --force to overwrite it", param="out")
        if made in [other for _, other in plan]:
            raise InvalidField(f"two files would become {str(made)!r}", param="out")
        plan.append((path, made))
    return plan


async def translate_documents(
    service: Service,
    plan: Sequence[tuple[Path, Path]],
    source: str,
    target: str,
    options: TranslateOptions,
) -> None:
    limits = service.limits
    documents = Documents(Metrics(), _ANY, limits.max_items, limits.max_characters)
    service.translator.pair(source, target, unchanged=True)
    for path, made in plan:
        try:
            result = await _translate(documents, service.translator, path, source, target, options)
        except InvalidField as error:
            if error.param == "file":  # says what is wrong, not yet where
                raise BadDocument(f"{str(path)!r}: {error.detail}") from None
            raise
        partial = made.with_name(made.name + ".partial")
        try:
            partial.write_bytes(result.data)
            partial.replace(made)
        except OSError as error:
            raise InvalidField(f"{str(made)!r}: {error.strerror}", param="out") from None
        sys.stderr.write(f"{made}: {result.items} parts, {result.flagged} of them doubtful\n")


async def _translate(
    documents: Documents,
    translator: Translator,
    path: Path,
    source: str,
    target: str,
    options: TranslateOptions,
) -> TranslatedFile:
    progress: Progress | None = None
    told = 0

    def tell(done: int, whole: int) -> None:
        nonlocal progress, told
        progress = progress or Progress(whole, "parts")
        progress.add(done - told)
        told = done

    try:
        data, form = path.read_bytes(), format_of(path.name)
        ask = (source, target, Deadline.after(_ANY), options)
        return await documents.run(translator, data, form, *ask, tell)
    except OSError as error:
        raise InvalidField(f"{str(path)!r}: {error.strerror}", param="text") from None
    finally:
        if progress:
            progress.close()
