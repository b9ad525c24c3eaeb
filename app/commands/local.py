"""`gpt2-mt translate` and `gpt2-mt generate`: the engine in this process, no server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from app.commands.documents import are_documents, check, translate_documents
from app.commands.folder import translate_folder
from app.commands.progress import Progress
from app.errors import InvalidField
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.settings import Settings
from app.tasks.generate import GenerateOptions, default_temperature
from app.tasks.job import Deadline
from app.tasks.report import Quality
from app.tasks.translate import TranslateOptions, TranslateResult, Translation
from app.text.glossary import Glossary
from app.text.quality import FLAGS, Flag

_LINES = 256  # of a batch are translated together
_TOGETHER = 2  # such batches, so that the slots stay full while one ends
_ANY = 10**9


def run_translate(args: argparse.Namespace) -> int:
    if bool(args.text) + bool(args.file) + bool(args.folder) > 1:
        raise InvalidField("give one of text, --file and --folder, not both", param="file")
    documents = are_documents(args.text)
    if bool(args.folder) != bool(args.out) and not documents:
        raise InvalidField("--folder and --out go together", param="out")
    plan = check(args) if documents else []
    options = TranslateOptions(
        args.beam, args.length_penalty, args.alternatives, args.prefix, args.branch,
        args.format, _glossary(args.glossary), not (args.no_retry or args.folder),
    )  # fmt: skip
    if args.folder:
        if args.alternatives:
            raise InvalidField("--alternatives: not with --folder", param="alternatives")
        if not Path(args.folder).is_dir():
            raise InvalidField(f"--folder {args.folder!r}: no such folder", param="folder")
        with _service(args) as service:
            return _run(translate_folder(service, args, options))
    if plan:
        with _service(args) as service:
            return _run(translate_documents(service, plan, args.source, args.target, options))
    if args.file:
        text = _decoded(_bytes_of(args.file), args.file)
        lines, batch = _lines(text), True
    else:
        text = " ".join(args.text) if args.text else _decoded(sys.stdin.buffer.read(), "stdin")
        lines = _lines(text)
        batch = not args.text and len(lines) > 1
    batch = batch and args.format == "text"  # the others are one document
    with _service(args, lone=not batch) as service:
        if batch:
            return _run(_translate_lines(service, lines, args.source, args.target, options))
        return _run(_translate_text(service, text, args.source, args.target, options))


def run_generate(args: argparse.Namespace) -> int:
    temperature = args.temperature
    if temperature is None:
        temperature = default_temperature(args.top_k, args.top_p, args.min_p, args.seed)
    options = GenerateOptions(
        max_tokens=args.max_tokens,
        temperature=temperature,
        top_k=args.top_k or 0,
        top_p=1.0 if args.top_p is None else args.top_p,
        min_p=args.min_p or 0.0,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        min_tokens=args.min_tokens,
        seed=args.seed,
        stop=tuple(args.stop or ()),
        task=args.task,
    )
    given = " ".join(args.prompt)
    prompt = given if args.prompt else _decoded(sys.stdin.buffer.read(), "stdin")
    with _service(args, lone=True) as service:
        return _run(_generate(service, prompt, options))


async def _translate_text(
    service: Service, text: str, source: str, target: str, options: TranslateOptions
) -> None:
    text, translator, deadline = text.rstrip("\r\n"), service.translator, _deadline()
    if not options.alternatives and not options.retry:
        await _print(translator.stream(text, source, target, deadline, options))
        return
    result = await translator.run(text, source, target, deadline, options=options)
    (translation,) = result.translations
    for one in translation.alternatives:
        sys.stdout.write(f"{one.score:.4f}\t{_line(one.text)}\n")
    if not options.alternatives:
        sys.stdout.write(translation.text + "\n")
    sys.stdout.flush()
    _tell(Counter(flag for one in translation.quality.sentences for flag in one.flags),
          set(translation.quality.misses))  # fmt: skip


async def _generate(service: Service, prompt: str, options: GenerateOptions) -> None:
    stream = await service.generator.start(prompt, options, _deadline())
    await _print(chunk.text async for chunk in stream.chunks())


async def _print(parts: AsyncIterator[str]) -> None:
    async for part in parts:
        sys.stdout.write(part)
        sys.stdout.flush()
    sys.stdout.write("\n")


async def _translate_lines(
    service: Service, lines: Sequence[str], source: str, target: str, options: TranslateOptions
) -> None:
    """Line for line; batches overlap, their answers are printed in order."""
    service.translator.pair(source, target)  # also where every line is blank
    progress = Progress(len(lines), "lines")
    running: deque[asyncio.Task[list[Translation | str]]] = deque()
    found: list[Quality] = []
    try:
        for first in range(0, len(lines), _LINES):
            batch = lines[first : first + _LINES]
            work = _batch(service, batch, source, target, options, progress)
            running.append(asyncio.create_task(work))
            if len(running) == _TOGETHER:
                found += _write(await running.popleft())
        while running:
            found += _write(await running.popleft())
    finally:
        for task in running:
            task.cancel()
        progress.close()
    _tell(Counter(flag for quality in found for flag in quality.flags),
          {term for quality in found for term in quality.misses})  # fmt: skip


async def _batch(
    service: Service,
    lines: Sequence[str],
    source: str,
    target: str,
    options: TranslateOptions,
    progress: Progress,
) -> list[Translation | str]:
    """Translations of some lines; blank ones stay as they are where all are blank."""
    if not any(line.strip() for line in lines):
        progress.add(len(lines))
        return list(lines)
    told = 0.0

    def tell(done: int, pieces: int) -> None:
        nonlocal told
        now = len(lines) * done / pieces
        progress.add(now - told)
        told = now

    result: TranslateResult = await service.translator.run(
        list(lines), source, target, _deadline(), tell, options
    )
    progress.add(len(lines) - told)
    return list(result.translations)


def _columns(translation: Translation) -> str:
    """On one line: the translation, or its alternatives between tabs."""
    if not translation.alternatives:
        return translation.text.replace("\n", " ")
    return "\t".join(_line(one.text) for one in translation.alternatives)


def _line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")


def _write(lines: Sequence[Translation | str]) -> list[Quality]:
    """Print lines; what is known of them."""
    for line in lines:
        sys.stdout.write((line if isinstance(line, str) else _columns(line)) + "\n")
    sys.stdout.flush()
    return [line.quality for line in lines if isinstance(line, Translation)]


def _tell(flags: Counter[Flag], misses: set[str]) -> None:
    """What is doubtful, in a line."""
    if flags:
        told = ", ".join(f"{flag} {flags[flag]}" for flag in FLAGS if flags[flag])
        sys.stderr.write(f"doubtful: {told}\n")
    if misses:
        sys.stderr.write(f"terms not translated as wanted: {', '.join(sorted(misses))}\n")


def _glossary(path: str | None) -> Glossary:
    terms: dict[str, str] = {}
    for number, line in enumerate(_lines(_decoded(_bytes_of(path), path)) if path else [], 1):
        source, tab, target = line.rstrip("\r").partition("\t")
        if not tab:
            raise InvalidField(f"--glossary {path!r}, line {number}: no tab", param="glossary")
        terms[source] = target
    return Glossary.of(terms)


@contextlib.contextmanager
def _service(args: argparse.Namespace, lone: bool = False) -> Iterator[Service]:
    """`lone`: a text or prompt alone, which one engine of all threads writes sooner."""
    names = ("bundle", "device", "threads", "shortlist")
    settings = Settings.load({name: getattr(args, name, None) for name in names})
    unbounded = dict.fromkeys(("max_queue", "max_items", "max_characters"), _ANY)
    engines = settings.engines or (1 if lone else None)
    options = ServiceOptions.of({**dict(settings), **unbounded, "engines": engines})
    service = Service.open(settings.bundle, options, Metrics())
    service.engine.start()
    try:
        yield service
    finally:
        service.engine.stop(drain=False)


def _run(work: Coroutine[Any, Any, None]) -> int:
    try:
        asyncio.run(work)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # such as `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _deadline() -> Deadline:
    return Deadline.after(_ANY)


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidField(f"{path!r}: {error.strerror}", param="file") from None


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidField(f"{name} is not UTF-8 (byte {error.start})", param=name) from None
