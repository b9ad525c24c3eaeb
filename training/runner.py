"""Runs a pipeline's stages in order, each in its own folder, and skips what is done already.

A pipeline, a corpus and test sets flow in; checkpoints, results and stage.json files flow out. A
stage.json holds the stage's inputs: its recipe, digests of the corpus files and test sets that it
reads, and of the outputs of the stages that it builds on. So a stage is skipped only if nothing it
came from has changed; if something has, its name is said and nothing runs until `redo` is given.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b, file_digest
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

from training.checkpoint import commit
from training.config import RunConfig, differences
from training.corpus import LeakCheck, files_of
from training.distributed import ALONE, Ranks
from training.errors import ConfigError, TrainingError
from training.evaluate import checkpoint_translator
from training.pipeline import Pipeline, Stage, TokenizerConfig, check, sources_of
from training.results import read_metrics, read_results, scores, sets_of, write
from training.stages import find_device, start
from training.teach import TranslateConfig, teach
from training.tokenizer import make_tokenizer
from training.view import View, duration

RECORD, SCORES = "stage.json", "scores"
UNWRITTEN = "stage.partial"  # a record that a killed run did not finish; nothing else is there then
State = Literal["new", "begun", "done"]
Inputs = dict[str, Any]  # label to value or digest


@dataclass(frozen=True)
class Where:
    """The folders of a run and the device it runs on."""

    corpus: Path
    out: Path
    tests: tuple[Path, ...] = ()
    device: str = "auto"


class Runner:
    """`run` carries a pipeline from where its folder stands to its end."""

    def __init__(
        self, pipeline: Pipeline, where: Where, redo: Collection[str] = (), ranks: Ranks = ALONE
    ) -> None:
        self.pipeline, self.where, self.ranks = pipeline, where, ranks
        for name in redo:
            if name not in pipeline:
                known = ", ".join(stage.name for stage in pipeline.stages)
                raise ConfigError(f"--redo {name}: no such stage; there are {known}")
        self.redo = pipeline.dependents(redo)
        self._digests: dict[tuple[Path, int, int], str] = {}

    def folder(self, name: str) -> Path:
        return self.where.out / name

    def checkpoint(self, name: str) -> Path:
        """Of a stage's name or of a folder that is none."""
        return self.folder(name) / "checkpoint" if name in self.pipeline else Path(name)

    def run(self, view: View) -> Path:
        """Run what is not done; returns the final checkpoint's folder.

        Every rank of torchrun calls it: all train together, the first does all else alone.
        """
        if self.ranks.first:
            check(self.pipeline, self.where.corpus)
            files_of(self.where.tests)  # each must be there
            for stage in self.pipeline.stages:  # before anything runs
                if stage.name not in self.redo:
                    self.state(stage)
            for name in self.redo:
                self._clear(name)
        for stage in self.pipeline.stages:
            self._pass(stage, view)
        if self.ranks.first:
            self._score(view)
        self.ranks.wait()
        return self.checkpoint(self.pipeline.final)

    def states(self) -> dict[str, str]:
        """What the view says of each stage before it has been looked at."""
        bound = {s.name: s.config.minutes for s in self.pipeline.stages
                 if isinstance(s.config, RunConfig) and s.config.minutes}  # fmt: skip
        waits = {s.name: f"waiting, {duration(60 * bound[s.name])}" if s.name in bound else
                 "waiting" for s in self.pipeline.stages}  # fmt: skip
        return {**waits, SCORES: "waiting"}

    def _pass(self, stage: Stage, view: View) -> None:
        first = self.ranks.first
        if self.ranks.agree(self.state(stage) if first else "new") == "done":
            view.show(stage.name, "done before, skipped")
            return
        number = [s.name for s in self.pipeline.stages].index(stage.name) + 1
        view.show(stage.name, f"running, {number} of {len(self.pipeline.stages)}")
        folder = self.folder(stage.name)
        record: dict[str, Any] = {}
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            record = {"done": False, "kind": stage.kind, "config": asdict(stage.config),
                      "inputs": self.inputs(stage)}  # fmt: skip
            _write(folder / RECORD, record)
        started = time.monotonic()
        try:
            if first or isinstance(stage.config, RunConfig):
                self._make(stage, folder, view)
        except BaseException as error:
            view.show(stage.name, "stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        if first:
            seconds = time.monotonic() - started
            for entry in read_metrics(folder):
                seconds = max(seconds, entry["elapsed_s"])  # all of a run that was stopped before
            record |= {"done": True, "output": self.output(stage), "seconds": round(seconds, 1),
                       "commit": commit()}  # fmt: skip
            _write(folder / RECORD, record)
            view.show(stage.name, f"done in {duration(seconds)}")
        self.ranks.wait()

    def _make(self, stage: Stage, folder: Path, view: View) -> None:
        config, where = stage.config, self.where
        if isinstance(config, TokenizerConfig):
            sources = sources_of(stage, where.corpus)
            make_tokenizer(sources, config.data.weights, config.data.languages, config.vocabulary,
                           config.megabytes, folder, self._lines(config.data.languages))
        elif isinstance(config, TranslateConfig):
            teach(
                self.checkpoint(config.teacher), sources_of(stage, where.corpus), config.direction,
                folder, config.beam, LeakCheck.of_folders(where.tests), find_device(where.device),
                view.live, config.minutes,
            )  # fmt: skip
        else:
            start(
                self.resolved(config), where.corpus, folder, self.tokenizer_file(stage),
                self.checkpoint(stage.init) if stage.init else None, list(where.tests),
                where.device, progress=view.live, adds=[self._added(name) for name in stage.adds],
                shared=where.out / "shards",
            )  # fmt: skip

    def _lines(self, languages: Sequence[str]) -> dict[str, dict[str, list[str]]]:
        """The test set in most of the languages, the first of those in as many."""
        pairs = list(permutations(languages, 2))
        tests = sets_of(self.where.tests, pairs, self.pipeline.report.sets, 0)
        by_set: dict[str, dict[str, list[str]]] = {}
        for test in tests:
            by_set.setdefault(test.name, {})[test.source] = list(test.sources)
        best = max(by_set, key=lambda name: len(by_set[name]), default="")
        return {best: by_set[best]} if best else {}

    def _score(self, view: View) -> None:
        """Scores of every stage that translates, kept in its results.json."""
        options = self.pipeline.report
        fresh = False
        for stage in self.pipeline.stages:
            if stage.kind != "finetune":
                continue
            folder, checkpoint = self.folder(stage.name), self.checkpoint(stage.name)
            pairs = _read(checkpoint / "meta.json").get("pairs", [])
            tests = sets_of(self.where.tests, pairs, options.sets, options.limit)
            mark = blake2b(repr((self.output(stage), options, tests)).encode(), digest_size=16)
            results = read_results(folder)
            if results.get("scored") == mark.hexdigest():
                continue
            view.show(SCORES, f"running: {stage.name}")
            rows = []
            if tests:
                translate = checkpoint_translator(
                    checkpoint, beam=options.beam, device=find_device(self.where.device)
                )
                rows = scores(translate, tests, options.lowercase)
            write(folder, {**results, "scored": mark.hexdigest(), "scores": rows})
            fresh = True
        view.show(SCORES, "done" if fresh else "done before, skipped")

    def resolved(self, config: RunConfig) -> RunConfig:
        """With folders where the pipeline names stages."""
        teachers = {k: str(self.checkpoint(v)) for k, v in config.distil.teachers.items()}
        return replace(config, distil=replace(config.distil, teachers=teachers))

    def tokenizer_file(self, stage: Stage) -> Path:
        if stage.tokenizer:
            return self.folder(stage.tokenizer) / "tokenizer.json"
        return self.checkpoint(stage.init) / "tokenizer.json"

    def _added(self, name: str) -> Path:
        return self.folder(name) if name in self.pipeline else Path(name)

    def state(self, stage: Stage) -> State:
        """Where a stage stands; raises ConfigError naming what has changed since it was made."""
        folder = self.folder(stage.name)
        if not (folder / RECORD).exists():
            if folder.exists() and any(path.name != UNWRITTEN for path in folder.iterdir()):
                raise ConfigError(f"{folder}: was not made by a pipeline; use another --out")
            return "new"
        record = _read(folder / RECORD)
        if record.get("kind") != stage.kind:
            raise ConfigError(f"stage {stage.name}: {folder} was made by one of kind "
                              f"{record.get('kind')!r}; use another --out, or --redo {stage.name}")
        changes = [f"{key} was {then!r}, is now {now!r}"
                   for key, then, now in differences(record["config"], stage.config)]  # fmt: skip
        changes += _changes(record["inputs"], self.inputs(stage))
        output = self.output(stage) if record.get("done") else ""
        if record.get("done") and output != record.get("output"):
            changes.append("its output is not what it wrote" if output else "its output is gone")
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise ConfigError(
                f"stage {stage.name}: {'; '.join(changes[:3])}{more}. Use another --out, or "
                f"--redo {stage.name} to make it and what builds on it anew"
            )
        return "done" if record.get("done") else "begun"

    def inputs(self, stage: Stage) -> Inputs:
        """All that a stage's output depends on; an output that is not there yet has none."""
        found: Inputs = {"init": stage.init, "adds": list(stage.adds)}
        if not isinstance(stage.config, TranslateConfig):
            found["order of data.weights"] = list(stage.config.data.weights)
        adds = [Path(add) for add in stage.adds if add not in self.pipeline]
        for source in sources_of(stage, self.where.corpus, adds):
            for path in source.paths:
                if path.is_relative_to(self.where.corpus):  # what is added counts as a whole
                    file = path.relative_to(self.where.corpus)
                    found[f"corpus file {file}"] = self._digest(path)
        if stage.kind != "tokenizer":  # whose sample may hold them
            for folder in self.where.tests:
                for path in files_of([folder]):
                    found[f"test file {path.relative_to(folder)}"] = self._digest(path)
        for key, name in stage.references():
            what = f"{key} = {name!r}, its output"
            found[what] = self.output(self.pipeline[name]) if name in self.pipeline else (
                self._digest_all(files_of([Path(name)])))  # fmt: skip
        return found

    def output(self, stage: Stage) -> str:
        """The digest of what a stage hands on; empty if that is not there."""
        folder = self.folder(stage.name)
        if stage.kind == "tokenizer":
            files = [folder / "tokenizer.json"]
        elif stage.kind == "translate":
            files = sorted(folder.glob("*.tsv.gz"))
        else:
            names = ("config.json", "model.safetensors", "tokenizer.json")
            files = [folder / "checkpoint" / name for name in names]
        return self._digest_all(files) if all(f.exists() for f in files) and files else ""

    def _digest_all(self, files: Sequence[Path]) -> str:
        named = "".join(f"{path.name} {self._digest(path)}\n" for path in files)
        return blake2b(named.encode(), digest_size=16).hexdigest()

    def _digest(self, path: Path) -> str:
        facts = path.stat()
        key = (path, facts.st_size, facts.st_mtime_ns)
        if key not in self._digests:
            with path.open("rb") as file:
                self._digests[key] = file_digest(file, "blake2b").hexdigest()[:32]
        return self._digests[key]

    def _clear(self, name: str) -> None:
        folder = self.folder(name)
        if (folder / RECORD).exists():
            shutil.rmtree(folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """To be held while at work: two commands on one folder would spoil each other's stages."""
        self.where.out.mkdir(parents=True, exist_ok=True)
        if not self.ranks.first:
            yield
            return
        with (self.where.out / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(f"{self.where.out}: another command is at work in it") from None
            yield


def _changes(before: Inputs, now: Inputs) -> Iterator[str]:
    """What differs, in words. Outputs that are not there (yet) are no difference."""
    for key in sorted(before.keys() | now.keys()):
        then, value = before.get(key), now.get(key)
        if then == value or value == "" and key.endswith("its output"):
            continue
        if " file " in key or key.endswith("its output"):
            state = "is new" if then is None else "is gone" if value is None else "has changed"
            yield f"{key} {state}"
        else:
            yield f"{key} was {then!r}, is now {value!r}"


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: is not a JSON object")
    return values


def _write(file: Path, values: dict[str, Any]) -> None:
    temporary = file.with_name(UNWRITTEN)
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
