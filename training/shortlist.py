"""Vocabulary shortlists: which tokens a translation of given source tokens may need.

Pairs of a corpus flow in; one file flows out, which `gpt2-mt export --shortlist` puts into a
bundle. For each target language it has a table (for each source token the likeliest target tokens
by IBM Model 1, all source languages together) and what any sentence may need: the end, the most
frequent tokens, and punctuation and digits that the corpus has. The same corpus gives the same
file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.corpus import Cleaner, Source, first_match, scan
from training.errors import ConfigError, CorpusError
from training.shards import encode
from training.tokenizer import END, load_tokenizer, sha256

FORMAT = 1
_LINKS = 4_000_000  # of source and target tokens that are worked on at a time
_LEAST = 1e-3  # a probability below which a target token is no candidate

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """`pairs`: at most so many of each source, evenly spread; a side longer than `longest` tokens
    is left out. `candidates` of each source token, and `common` ones of each target language."""

    pairs: int = 30_000
    candidates: int = 40
    common: int = 1000
    longest: int = 60
    iterations: int = 5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"--{name} {value}: must be at least 1")


@dataclass(frozen=True)
class Sides:
    """Tokenised pairs of one direction."""

    source: str
    target: str
    sources: list[list[int]]
    targets: list[list[int]]


def make_shortlist(
    corpus: Path, tokenizer_file: Path, out: Path, options: Options,
    languages: Sequence[str] = (), globs: Sequence[str] = ("*",), cleaner: Cleaner | None = None,
) -> str:  # fmt: skip
    """Write the file `out`; returns a table of what it has."""
    tokenizer = load_tokenizer(tokenizer_file)
    known = languages_of(tokenizer)
    if unknown := sorted(set(languages).difference(known)):
        raise ConfigError(f"--languages {unknown[0]}: tokenizer {tokenizer_file} has no tag for it")
    wanted = list(languages) or known
    sources = find_pairs(corpus, wanted, globs)
    sides = list(read_sides(sources, tokenizer, options, cleaner or Cleaner()))
    if not any(side.sources for side in sides):
        raise CorpusError(f"corpus {corpus}: no pair in {', '.join(wanted)} for a shortlist")
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "tokenizer_sha256": np.array(sha256(tokenizer_file)),
        "vocabulary": np.array(tokenizer.get_vocab_size()),
        "pairs": np.array(sorted({f"{s.source}-{s.target}" for s in sides if s.sources})),
    }
    lines = ["target     pairs  common  source tokens  candidates of each"]
    for code in sorted({side.target for side in sides if side.sources}):
        mine = [side for side in sides if side.target == code]
        table = learn(mine, tokenizer, options)
        arrays |= {f"{code}.{name}": array for name, array in table.items()}
        sizes = np.diff(table["offsets"])
        pairs, filled = sum(len(s.sources) for s in mine), int((sizes > 0).sum())
        lines.append(f"{code:<6}  {pairs:8,}  {table['common'].size:6,}  {filled:13,}  "
                     f"{sizes.sum() / max(filled, 1):18.1f}")  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    partial.replace(out)
    return "\n".join(lines)


def find_pairs(corpus: Path, languages: Sequence[str], globs: Sequence[str]) -> list[Source]:
    """The sources of pairs in these languages, by globs over their names."""
    found = [s for s in scan(corpus) if len(s.languages) == 2 and {*s.languages} <= {*languages}]
    for glob in globs:
        if not any(first_match(source, {glob: True}, False) for source in found):
            raise CorpusError(f"--sources {glob}: corpus {corpus} has no such pairs in "
                              f"{', '.join(languages)}")  # fmt: skip
    return [source for source in found if first_match(source, dict.fromkeys(globs, True), False)]


def languages_of(tokenizer: Tokenizer) -> list[str]:
    """Those that the vocabulary has a target tag for."""
    start, end = "<|tgt:", "|>"
    names = (token.content for token in tokenizer.get_added_tokens_decoder().values())
    return [name[len(start) : -len(end)] for name in names if name.startswith(start)]


def read_sides(
    sources: Iterable[Source], tokenizer: Tokenizer, options: Options, cleaner: Cleaner
) -> Iterator[Sides]:
    """Of each source its pairs in each direction that is learnt from it."""
    for source in sources:
        kept = list(cleaner.pairs(source))
        kept = kept[:: -(-len(kept) // options.pairs) or 1]
        first, second = (list(encode(tokenizer, (pair[side] for pair in kept))) for side in (0, 1))
        short = [i for i, pair in enumerate(zip(first, second, strict=True))
                 if min(map(len, pair)) > 0 and max(map(len, pair)) <= options.longest]  # fmt: skip
        left, right = ([side[i] for i in short] for side in (first, second))
        one, other = source.languages
        yield Sides(one, other, left, right)
        if not source.one_way:
            yield Sides(other, one, right, left)


def learn(sides: Sequence[Sides], tokenizer: Tokenizer, options: Options) -> dict[str, Ids]:
    """The arrays of one target language: `common` ids, and of source token i the `ids` from
    `offsets[i]` to `offsets[i + 1]`, which are not common ones."""
    size = tokenizer.get_vocab_size()
    sources = [ids for side in sides for ids in side.sources]
    targets = [ids for side in sides for ids in side.targets]
    common = common_ids(targets, tokenizer, options.common)
    keys, chance = model_one(sources, targets, size, options.iterations)
    given, told = np.divmod(keys, size)
    usual = np.zeros(size, np.bool_)
    usual[common] = True
    used = (given < size) & ~usual[told] & (chance >= _LEAST)
    given, told, chance = given[used], told[used], chance[used]
    order = np.lexsort((told, -chance, given))
    given, told = given[order], told[order]
    rank = np.arange(given.size) - np.searchsorted(given, given)
    given, told = given[rank < options.candidates], told[rank < options.candidates]
    offsets = np.searchsorted(given, np.arange(size + 1)).astype(np.int32)
    told = told[np.lexsort((told, given))]
    return {"common": common, "offsets": offsets, "ids": told.astype(np.uint16)}


def common_ids(targets: Sequence[Sequence[int]], tokenizer: Tokenizer, count: int) -> Ids:
    """The end, the most frequent ids, and all without a letter that the text has."""
    size = tokenizer.get_vocab_size()
    counts = np.bincount(np.concatenate([np.asarray(t) for t in targets]), minlength=size)
    order = np.lexsort((np.arange(size), -counts))[:count]
    found = set(order[counts[order] > 0].tolist()) | {tokenizer.token_to_id(END)}
    found |= {i for i in np.flatnonzero(counts).tolist() if _is_sign(tokenizer.decode([i]))}
    return np.array(sorted(found), np.uint16)


def _is_sign(text: str) -> bool:
    """Neither letters nor a part of a character."""
    return "\ufffd" not in text and not any(c.isalpha() for c in text)


def model_one(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], size: int, iterations: int
) -> tuple[Ids, Floats]:
    """IBM Model 1 by EM from equal chances: keys source * size + target, ascending, and the chance
    of the target given the source. The source `size` is the empty word of every sentence."""
    blocks = list(_blocks(sources, targets, size))
    keys = np.unique(np.concatenate([np.unique(block) for block, _ in blocks]))
    placed = [(np.searchsorted(keys, block).astype(np.int32), firsts) for block, firsts in blocks]
    del blocks
    given = keys // size
    chance = np.ones(keys.size)
    for _ in range(iterations):
        counts = np.zeros(keys.size)
        for place, firsts in placed:
            own = chance[place]
            sums = np.add.reduceat(own, firsts)
            own /= np.repeat(sums, np.diff(firsts, append=own.size))
            counts += np.bincount(place, own, keys.size)
        chance = counts / np.bincount(given, counts, size + 1)[given]
    return keys, chance


def _blocks(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], size: int
) -> Iterator[tuple[Ids, Ids]]:
    """Some pairs at a time: the keys of all links, and where those of each target token begin."""
    links = np.array([(len(s) + 1) * len(t) for s, t in zip(sources, targets, strict=True)])
    block = np.cumsum(links) // _LINKS
    edges = [*np.flatnonzero(np.diff(block, prepend=-1)).tolist(), len(links)]
    for a, b in zip(edges, edges[1:], strict=False):
        told = np.concatenate([np.asarray(t, np.int64) for t in targets[a:b]])
        given = np.concatenate([np.asarray([*s, size], np.int64) for s in sources[a:b]])
        sizes = np.array([len(s) + 1 for s in sources[a:b]])
        lengths = np.array([len(t) for t in targets[a:b]])
        of_token = np.repeat(sizes, lengths)  # how many links each target token has
        firsts = np.cumsum(of_token) - of_token
        begin = np.repeat(np.cumsum(sizes) - sizes, lengths)
        place = np.arange(int(of_token.sum())) - np.repeat(firsts - begin, of_token)
        yield given[place] * size + np.repeat(told, of_token), firsts
