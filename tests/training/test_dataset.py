"""Shards that several runs share: made once for those that read the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from training import dataset
from training.config import RunConfig
from training.corpus import find_sources
from training.dataset import shards_of
from training.errors import CorpusError
from training.shards import Shard
from training.tokenizer import load_tokenizer, sha256

Recipe = Callable[..., RunConfig]
Made = tuple[list[Shard], list[Shard]]


@pytest.fixture
def make(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Made]:
    counts: list[Path] = []
    prepare = dataset.prepare

    def counted(*arguments: object) -> Made:
        counts.append(Path(str(arguments[4])))
        return prepare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "prepare", counted)

    def made(config: RunConfig, name: str, where: Path = corpus, shared: bool = True) -> Made:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        sources = find_sources(where, config.data.languages)
        return shards_of(config, sources, load_tokenizer(tokenizer_file), sha256(tokenizer_file),
                         folder, [], tmp_path / "shards" if shared else None)  # fmt: skip

    made.counts = counts  # type: ignore[attr-defined]
    return made


def same(one: Made, other: Made) -> bool:
    return all(
        a.tokens.tobytes() == b.tokens.tobytes() and a.header == b.header
        for mine, theirs in zip(one, other, strict=True) for a, b in zip(mine, theirs, strict=True)
    )  # fmt: skip


def test_runs_that_read_the_same_share(
    make: Callable[..., Made], recipe: Recipe, tmp_path: Path
) -> None:
    alone = make(recipe(), "alone", shared=False)
    first, second = make(recipe(), "first"), make(recipe(steps=99, seed=4), "second")
    assert same(alone, first) and same(first, second)
    assert len(make.counts) == 2  # type: ignore[attr-defined]
    assert (tmp_path / "first" / "shards").resolve() == (tmp_path / "second" / "shards").resolve()
    reports = {(tmp_path / n / "corpus.txt").read_text() for n in ("alone", "first", "second")}
    assert len(reports) == 1
    make(recipe(data={"valid_examples": 1}), "third")
    assert len(make.counts) == 3  # type: ignore[attr-defined]
    assert (tmp_path / "third" / "shards").resolve() != (tmp_path / "first" / "shards").resolve()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("first", "shards"):
        (tmp_path / name).rename(moved / name)
    assert (moved / "first" / "shards" / "done").exists(), "links are relative"


def test_runs_at_the_same_time_wait_for_one(make: Callable[..., Made], recipe: Recipe) -> None:
    threads = [Thread(target=make, args=(recipe(), f"run{i}")) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(make.counts) == 1  # type: ignore[attr-defined]


def test_another_corpus_leaves_the_shards_of_others(
    make: Callable[..., Made], recipe: Recipe, corpus: Path, tmp_path: Path
) -> None:
    first = make(recipe(), "first")
    make(recipe(), "second")
    other = shutil.copytree(corpus, tmp_path / "elsewhere" / "toy")
    train = other / "train.de"
    train.write_text(train.read_text().replace("Hund", "Haus"))
    assert not same(first, make(recipe(), "second", other))
    assert same(first, make(recipe(), "first"))
    (tmp_path / "first" / "last").mkdir()  # it has steps behind it
    with pytest.raises(CorpusError, match="not those the run was started with"):
        make(recipe(), "first", other)
    assert same(first, make(recipe(), "first"))
