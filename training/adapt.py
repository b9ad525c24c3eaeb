"""Training on: any checkpoint goes on with a user's own pairs or running text, in one command.

A checkpoint and a file or folder flow in. Without a test set of the new domain some of its lines
are held out. Out flow a run folder whose checkpoint still knows what the old one knew, and figures
of the old and the new domain before and after, in results.json and as a table.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.checkpoint import load_checkpoint
from training.config import RunConfig, load_recipe
from training.corpus import Cleaner, Source, hash64, read_lines, scan
from training.errors import ConfigError, CorpusError
from training.evaluate import checkpoint_text_loss, checkpoint_translator
from training.results import read_results, write
from training.scores import find_sets, score
from training.stages import start

HELD = 200  # pairs or paragraphs of each source that are held out, but at most a tenth
Figures = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a user asks for; `text` says that the data is running text, in `language`.

    `limit` is how many lines of each test set are scored, 0 for all.
    """

    checkpoint: Path
    data: Path
    out: Path
    text: bool = False
    language: str = ""
    old_tests: Path | None = None
    new_tests: Path | None = None
    limit: int = 100
    settings: dict[str, Any] = field(default_factory=dict)


def adapt(
    request: Request, device: str = "auto", progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> str:  # fmt: skip
    """Train on and compare; returns the table of figures before and after.

    `tell` hears what goes on outside of training.
    Raises ConfigError, CorpusError or CheckpointError naming what cannot be used.
    """
    meta = _meta_of(request.checkpoint)
    corpus = _corpus(request, list(meta.get("languages", {})))
    sources = [s for s in scan(corpus) if len(s.languages) == (1 if request.text else 2)]
    if not sources:
        kind = "running text *.txt[.gz]" if request.text else "pairs NAME.en-de.tsv[.gz]"
        raise CorpusError(f"--data {request.data}: no {kind} in it")
    folders = {"old": request.old_tests, "new": request.new_tests or _hold_out(request, sources)}
    tests = {domain: folder for domain, folder in folders.items() if folder}
    config = _config(request, meta, sources)
    measure = _text_figures if request.text else _pair_figures
    tell(f"figures of {request.checkpoint}")
    before = measure(request.checkpoint, tests, sources, request.limit)
    made = start(
        config, corpus, request.out, request.checkpoint / "tokenizer.json", request.checkpoint,
        list(tests.values()), device, progress,
    )  # fmt: skip
    tell(f"figures of {made}")
    after = measure(made, tests, sources, request.limit)
    rows = [
        {"domain": key[0], "set": key[1], "of": key[2], "before": before.get(key), "after": figures}
        for key, figures in after.items()
    ]
    write(request.out, {**read_results(request.out), "adapted": rows})
    return table(rows, ("perplexity", "bits_per_byte") if request.text else ("bleu", "chrf"))


def _meta_of(checkpoint: Path) -> dict[str, Any]:
    if (checkpoint / "manifest.json").exists():
        raise ConfigError(
            f"{checkpoint} is a bundle: make a checkpoint of it first, by "
            f"`gpt2-mt export --restore {checkpoint} CHECKPOINT`"
        )
    meta = load_checkpoint(checkpoint)[1]
    if not (checkpoint / "tokenizer.json").exists():
        raise ConfigError(f"checkpoint {checkpoint}: no tokenizer.json in it")
    return meta


def _corpus(request: Request, languages: Sequence[str]) -> Path:
    """The data as a corpus folder: itself, or one made of a file or of plain text files."""
    data, corpus = request.data, request.out / "corpus"
    if not data.exists():
        raise CorpusError(f"--data {data}: no such file or folder")
    if not request.text:
        if data.is_dir():
            return data
        return _copied([data], corpus)
    if data.is_dir() and (data / "mono").is_dir():
        return data
    code = request.language or (languages[0] if len(languages) == 1 else "")
    if not code:
        raise ConfigError(f"--language: which one is {data} in? There are {', '.join(languages)}")
    files = [data] if data.is_file() else sorted(data.glob("*.txt")) + sorted(data.glob("*.txt.gz"))
    return _copied(files, corpus / "mono" / code) and corpus


def _copied(files: Iterable[Path], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return folder


def _config(request: Request, meta: dict[str, Any], sources: Sequence[Source]) -> RunConfig:
    name = "adapt-pretrain" if request.text else "adapt-finetune"
    codes = {code for source in sources for code in source.languages}
    known = [code for code in meta.get("languages", {}) if code in codes]
    values = {"data.languages": known + sorted(codes.difference(known)), **request.settings}
    if not request.text and "mask" not in values:
        values["mask"] = meta.get("mask", "causal")
    return load_recipe(name, values)


def _hold_out(request: Request, sources: Sequence[Source]) -> Path:
    """Test sets of a part of the data; being test sets, training leaves their lines out."""
    folder = request.out / "held-out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in sources:
        if source.one_way:
            continue
        rows = sorted(_units(source, Cleaner()), key=lambda row: hash64("\t".join(row)))
        held = rows[: min(HELD, len(rows) // 10)]
        if not held:
            raise CorpusError(
                f"{source.paths[0]}: {len(rows)} lines are too few to hold some out; "
                "give --new-tests"
            )
        for i, code in enumerate(source.languages):
            text = "".join(f"{row[i]}\n" for row in held)
            name = f"{source.key.replace('/', '_')}.{code}"
            (folder / name).write_text(text, encoding="utf-8")
    if not any(folder.iterdir()):
        raise CorpusError(f"--data {request.data}: only machine translations; give --new-tests")
    return folder


def _units(source: Source, cleaner: Cleaner) -> Iterator[tuple[str, ...]]:
    if len(source.languages) == 2:
        return cleaner.pairs(source)
    return ((line,) for text in cleaner.documents(source) for line in text.splitlines())


Keyed = dict[tuple[str, str, str], Figures]  # by domain, set, and direction or language


def _pair_figures(
    checkpoint: Path, tests: dict[str, Path], sources: Sequence[Source], limit: int
) -> Keyed:
    """Scores (greedy) in the directions of the data that the checkpoint knows."""
    pairs = {tuple(pair) for pair in load_checkpoint(checkpoint)[1].get("pairs", [])}
    wanted = {w for s in sources for w in (s.languages, s.languages[::-1]) if w in pairs}
    if not wanted:
        return {}
    translate = checkpoint_translator(checkpoint)
    found: Keyed = {}
    for domain, folder in tests.items():
        for test in find_sets(folder, {code for pair in wanted for code in pair}, limit=limit):
            if (test.source, test.target) in wanted:
                outputs = translate(test.sources, test.source, test.target)
                way = f"{test.source}-{test.target}"
                found[domain, test.name, way] = score(test, outputs).as_dict()
    return found


def _text_figures(
    checkpoint: Path, tests: dict[str, Path], sources: Sequence[Source], limit: int
) -> Keyed:
    """Perplexity and bits per byte of test sets `SET.<language>[.gz]`, each line a document."""
    measure, found = checkpoint_text_loss(checkpoint), Keyed()
    codes = sorted({code for source in sources for code in source.languages})
    for domain, folder in tests.items():
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            name, _, code = path.name.removesuffix(".gz").rpartition(".")
            lines = [line for line in read_lines(path) if line][: limit or None]
            if code not in codes or not lines:
                continue
            bits, tokens, size = measure(lines)
            found[domain, name, code] = {
                "perplexity": 2 ** (bits / tokens), "bits_per_byte": bits / max(1, size),
                "bytes": size, "tokens": tokens,
            }  # fmt: skip
    return found


def table(rows: Sequence[dict[str, Any]], figures: Sequence[str]) -> str:
    """Each figure before and after, by domain, set and direction; Markdown."""
    heads = [f"{name} {when}" for name in figures for when in ("before", "after")]
    lines = ["| domain | set | of | " + " | ".join(heads) + " |",
             "|---|---|---|" + "---:|" * len(heads)]  # fmt: skip
    for row in rows:
        cells = [
            f"{row[when][name]:.2f}" if row[when] else "-"
            for name in figures for when in ("before", "after")
        ]  # fmt: skip
        lines.append(f"| {row['domain']} | {row['set']} | {row['of']} | {' | '.join(cells)} |")
    return "\n".join(lines)
