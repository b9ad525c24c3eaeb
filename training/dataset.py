"""The shards that a run reads: made once from its sources, for all runs that read the same.

A recipe, sources and test sets flow in; training and validation shards flow out, with a report of
what was dropped. Their folder has a mark of all that they depend on, written last.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path

from tokenizers import Tokenizer

from training.config import RunConfig
from training.corpus import RULES, Cleaner, LeakCheck, Source, files_of
from training.errors import CorpusError
from training.shards import FORMAT, Shard, prepare

DONE, REPORT = "done", "corpus.txt"


def shards_of(
    config: RunConfig, sources: Sequence[Source], tokenizer: Tokenizer, digest: str, folder: Path,
    test_folders: Sequence[Path], shared: Path | None = None,
) -> tuple[list[Shard], list[Shard]]:  # fmt: skip
    """The shards of the run in `folder`: training, validation; made anew when data, tokenizer or
    test sets differ. `digest` is the tokenizer's.

    With `shared` they lie there, for other runs too. Raises CorpusError when they differ and the
    run has steps behind it.
    """
    mark = _mark(config, sources, digest, test_folders)
    data = folder / "shards"
    before = _marked(data)
    if before != mark:
        if before and (folder / "last").exists():
            raise CorpusError(
                f"{folder}: corpus, test sets or tokenizer are not those the run was started with; "
                "use another folder for another run"
            )

        def make(place: Path) -> None:
            cleaner = Cleaner(LeakCheck.of_folders(list(test_folders)), config.data.languages,
                              config.data.min_score)  # fmt: skip
            prepare(list(sources), tokenizer, digest, cleaner, place, config.data.valid_examples)
            (place / REPORT).write_text(cleaner.report.table() + "\n", encoding="utf-8")

        if data.is_symlink():
            data.unlink()
        if shared is None:
            _make(data, mark, make)
        else:
            common = shared / mark[:24]
            with _alone(common):
                if _marked(common) != mark:
                    _make(common, mark, make)
            if data.exists():
                shutil.rmtree(data)
            data.symlink_to(os.path.relpath(common.resolve(), folder.resolve()), True)
    shutil.copyfile(data / REPORT, folder / REPORT)
    stems = [data / source.key.replace("/", "_") for source in sources]
    train, valid = (
        [Shard(stem.with_name(f"{stem.name}.{part}.bin")) for stem in stems]
        for part in ("train", "valid")
    )
    return train, valid


def _mark(
    config: RunConfig, sources: Sequence[Source], digest: str, test_folders: Sequence[Path]
) -> str:
    described = [
        RULES, FORMAT, digest, config.data.valid_examples, config.data.languages,
        config.data.min_score,
        [_digest(path) for path in files_of(list(test_folders))],
        [[s.key, *(_digest(p) for p in s.paths)] for s in sources],
    ]  # fmt: skip
    return sha256(json.dumps(described).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "blake2b").hexdigest()


def _marked(data: Path) -> str:
    done = data / DONE
    return done.read_text(encoding="utf-8") if done.exists() else ""


def _make(data: Path, mark: str, make: Callable[[Path], None]) -> None:
    data.mkdir(parents=True, exist_ok=True)
    (data / DONE).unlink(missing_ok=True)  # from here on the folder is of no use until it is whole
    make(data)
    (data / DONE).write_text(mark, encoding="utf-8")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While one process makes a folder, others that want the same wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
