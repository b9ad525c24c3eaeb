"""The manifest of a checkpoint's bundle: what `app.bundle.Manifest` tells, from where it is known.

A checkpoint and the folder that already holds the bundle's other files flow in, the manifest flows
out, without what only the finished bundle shows (verification, a golden answer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from tokenizers import Tokenizer

from app.bundle import (
    FORMAT,
    FORMAT_VERSION,
    MODEL,
    SHORTLIST,
    TOKENIZER,
    Corpus,
    FileEntry,
    LanguageTokens,
    Limits,
    Manifest,
    ModelSpec,
    Provenance,
    ScoreEntry,
    Tokens,
    sha256_of,
)
from export.checkpoint import Checkpoint
from export.errors import CheckpointError
from export.graphs import graph_names, listing_names

Precision = Literal["fp32", "int8", "int4", "fp16"]
END, MASK, SEPARATOR = "<|endoftext|>", "<|mask|>", "<|sep|>"
RESERVED: Final = re.compile(r"<\|reserved:\d+\|>")


def make_manifest(
    source: Checkpoint,
    folder: Path,
    *,
    precision: Precision,
    name: str,
    scores: Sequence[ScoreEntry] = (),
    int8_cache: bool = False,
) -> Manifest:
    d, meta = source.dimensions, source.meta
    corpora = tuple(
        Corpus(name=str(c["name"]), licence=str(c["licence"])) for c in meta.get("corpora", [])
    )
    templates = {key: tuple(pieces) for key, pieces in meta["templates"].items()}
    # A quarter of the context is kept for the output.
    room = max(1, d.context * 3 // 4)
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        files={
            file: FileEntry(sha256=sha256_of(folder / file), bytes=(folder / file).stat().st_size)
            for file in (MODEL, TOKENIZER, SHORTLIST)
            if (folder / file).is_file()
        },
        model=ModelSpec(
            architecture="gpt2",
            layers=d.layers,
            heads=d.heads,
            width=d.width,
            head_size=d.head_size,
            vocabulary=d.vocabulary,
            context=d.context,
            parameters=source.parameters,
            precision=precision,
            mask="causal",
        ),
        graph=graph_names(
            half=precision == "fp16",
            int8_cache=int8_cache,
            multiple=2 if precision in ("int8", "int4") else 1,
            listing=listing_names(precision) if (folder / SHORTLIST).is_file() else None,
        ),
        tokens=special_ids(source.path / TOKENIZER, list(meta["languages"])),
        templates=templates,
        languages=meta["languages"],
        pairs=tuple((a, b) for a, b in meta.get("pairs", [])) if "translate" in templates else (),
        limits=Limits(context=d.context, max_prompt_tokens=room),
        scores=tuple(scores),
        provenance=Provenance(
            corpora=corpora,
            licences=tuple(sorted({corpus.licence for corpus in corpora})),
            config=meta.get("config", {}),
            commit=str(meta.get("commit", "")),
            stage=str(meta["stage"]),
        ),
    )


def special_ids(path: Path, languages: Sequence[str]) -> Tokens:
    """The special ids by their names in tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(path))

    def identify(token: str) -> int:
        found: int | None = tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointError(f"{str(path)!r}: special token {token!r} is missing")
        return found

    added = tokenizer.get_added_tokens_decoder()
    return Tokens(
        end=identify(END),
        mask=identify(MASK),
        separator=identify(SEPARATOR),
        languages={
            code: LanguageTokens(
                source=identify(f"<|src:{code}|>"), target=identify(f"<|tgt:{code}|>")
            )
            for code in languages
        },
        reserved=tuple(
            sorted(i for i, token in added.items() if RESERVED.fullmatch(token.content))
        ),
    )
