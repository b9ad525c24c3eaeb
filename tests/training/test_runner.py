"""A pipeline's stages run in order, once each; what has changed under them is never passed over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_mt.cli import main
from tests.training.helpers import kill_when, log_of, refusal
from training.distributed import Ranks
from training.errors import ConfigError, CorpusError, TrainingError
from training.pipeline import load_pipeline
from training.results import read_results
from training.runner import Runner, Where
from training.view import View

PIPELINE = """
[defaults]
model = "test"
batch_tokens = 512
precision = "fp32"
checkpoint_minutes = 0.0
dropout = 0.1
[defaults.data]
languages = ["en", "de"]
max_tokens = 64
valid_examples = 8
[report]
limit = 2
[[stages]]
name = "tokenizer"
kind = "tokenizer"
vocabulary = 400
[[stages]]
name = "pretrained"
kind = "pretrain"
steps = 3
[[stages]]
name = "student"
kind = "finetune"
init = "pretrained"
steps = 12
"""
STAGES = ("tokenizer", "pretrained", "student")


class Seen(View):
    """Keeps what it would have shown."""

    def __init__(self) -> None:
        super().__init__({}, quiet=True)
        self.states: dict[str, list[str]] = {}

    def show(self, name: str, state: str) -> None:
        self.states.setdefault(name, []).append(state)

    def last(self) -> dict[str, str]:
        return {name: states[-1] for name, states in self.states.items()}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "tiny.toml"
    path.write_text(PIPELINE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Path, file: Path) -> Path:
    """The folder of a run that nothing disturbed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "out"
    Runner(load_pipeline(file), Where(corpus, out, (corpus / "tests",), "cpu")).run(Seen())
    return out


Go = Callable[..., dict[str, str]]


@pytest.fixture
def out(tmp_path: Path, whole: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(whole, tmp_path / "out", symlinks=True))


@pytest.fixture
def go(corpus: Path, file: Path, out: Path) -> Go:
    """Run the same command on the copy, with changes; what each stage's last state was."""

    def run(settings: list[tuple[str, Any]] = [], redo: tuple[str, ...] = (),  # noqa: B006
            **changes: Any) -> dict[str, str]:  # fmt: skip
        where = replace(Where(corpus, out, (corpus / "tests",), "cpu"), **changes)
        seen = Seen()
        Runner(load_pipeline(file, settings), where, redo).run(seen)
        return seen.last()

    return run


def made(out: Path) -> dict[str, int]:
    return {name: (out / name / "stage.json").stat().st_mtime_ns for name in STAGES}


def test_a_finished_run_is_skipped(go: Go, out: Path) -> None:
    before = made(out)
    assert set(go().values()) == {"done before, skipped"}
    assert made(out) == before


def test_results_of_a_stage(whole: Path) -> None:
    results = read_results(whole / "student")
    assert results["step"] == 12 and results["seconds"] > 0
    rows = {(row["source"], row["target"]): row for row in results["scores"]}
    assert rows.keys() == {("en", "de"), ("de", "en")}
    assert all(r["sentences"] == 2 and "tok:13a" in r["bleu_signature"] for r in rows.values())
    assert "scores" not in read_results(whole / "pretrained")


def test_scores_are_made_anew_when_more_sentences_are_asked_for(go: Go, out: Path) -> None:
    states = go([("report.limit", 3)])
    assert states.pop("scores") == "done"
    assert set(states.values()) == {"done before, skipped"}
    assert {row["sentences"] for row in read_results(out / "student")["scores"]} == {3}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([("student.steps", 13)], "stage student: steps was 12, is now 13.*--redo student"),
        ([("pretrained.optimiser.rate", 0.5)], "stage pretrained: optimiser.rate was 0.001"),
        ([("tokenizer.vocabulary", 410)], "stage tokenizer: vocabulary was 400"),
        ([("student.init", "")], "stage student: .*init was 'pretrained'"),
        ([("student.data.weights", {"mono/*": 1.0, "*": 1.0})], "student: .*order of data.weights"),
        ([("student.kind", "pretrain")], "stage student: .*kind 'finetune'"),
    ],
)
def test_a_change_of_the_recipe_is_refused(
    go: Go, out: Path, settings: list[tuple[str, Any]], named: str
) -> None:
    before = made(out)
    with pytest.raises(ConfigError, match=named):
        go(settings)
    assert made(out) == before


def test_a_change_of_the_corpus_is_refused(go: Go, tmp_path: Path, corpus: Path) -> None:
    other = Path(shutil.copytree(corpus, tmp_path / corpus.name))
    assert set(go(corpus=other).values()) == {"done before, skipped"}, "contents count, not places"
    (other / "mono" / "en" / "book.txt").write_text("Something else.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stage tokenizer: corpus file mono/en/book.txt has cha"):
        go(corpus=other)


def test_a_change_of_the_test_sets_is_refused(go: Go, tmp_path: Path, corpus: Path) -> None:
    tests = Path(shutil.copytree(corpus / "tests", tmp_path / "tests"))
    assert set(go(tests=(tests,)).values()) == {"done before, skipped"}
    (tests / "more.en").write_text("Another sentence.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="stage pretrained: test file more.en is new"):
        go(tests=(tests,))
    with pytest.raises(CorpusError, match="nowhere"):
        go(tests=(tmp_path / "nowhere",))


def test_an_output_that_was_changed_or_removed_is_refused(go: Go, out: Path) -> None:
    weights = out / "pretrained" / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="stage pretrained: its output is not what it wrote"):
        go()
    weights.unlink()
    with pytest.raises(ConfigError, match="stage pretrained: its output is gone"):
        go()


def test_redo_makes_a_stage_and_what_builds_on_it_anew(go: Go, out: Path, whole: Path) -> None:
    before = made(out)
    states = go(redo=("pretrained",))
    assert states["tokenizer"] == "done before, skipped"
    assert states["pretrained"].startswith("done in") and states["student"].startswith("done in")
    after = made(out)
    assert [after[n] > before[n] for n in STAGES] == [False, True, True]
    assert weights_of(out, "student") == weights_of(whole, "student")
    with pytest.raises(ConfigError, match="--redo nobody: no such stage"):
        go(redo=("nobody",))


def test_a_stage_made_anew_by_hand_makes_its_heirs_stale(go: Go, out: Path) -> None:
    """Not noticed before it is made, as its output is not there to compare."""
    shutil.rmtree(out / "pretrained")
    with pytest.raises(ConfigError, match="stage student: .*init = 'pretrained', its output has"):
        go([("pretrained.seed", 5)])


def test_a_folder_of_something_else_is_left_alone(go: Go, out: Path) -> None:
    (out / "student" / "stage.json").unlink()
    with pytest.raises(ConfigError, match="student: was not made by a pipeline"):
        go()
    with pytest.raises(ConfigError, match="student: was not made by a pipeline"):
        go(redo=("student",))
    assert (out / "student" / "checkpoint" / "config.json").exists()


def test_a_run_killed_before_its_record_was_written_begins_anew(
    corpus: Path, file: Path, tmp_path: Path
) -> None:
    runner = Runner(load_pipeline(file), Where(corpus, tmp_path))
    (stage,) = (stage for stage in runner.pipeline.stages if stage.name == "pretrained")
    (tmp_path / "pretrained").mkdir()
    assert runner.state(stage) == "new"
    (tmp_path / "pretrained" / "stage.partial").write_text('{"done"')
    assert runner.state(stage) == "new"
    (tmp_path / "pretrained" / "weights").touch()
    with pytest.raises(ConfigError, match="was not made by a pipeline"):
        runner.state(stage)


def test_one_command_at_a_time(corpus: Path, file: Path, out: Path) -> None:
    first, second = (Runner(load_pipeline(file), Where(corpus, out)) for _ in range(2))
    refused = pytest.raises(TrainingError, match="another command is at work")
    with first.alone(), refused, second.alone():
        pass
    with second.alone():  # and free again
        pass


def test_other_ranks_train_and_make_nothing_else(
    tmp_path: Path, corpus: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second(Ranks):
        def agree(self, value: Any) -> Any:
            return "new"  # what the first rank found

        def wait(self) -> None:
            pass

    trained: list[str] = []
    monkeypatch.setattr("training.runner.start", lambda *a, **_: trained.append(a[2].name))
    out = tmp_path / "out"
    Runner(load_pipeline(file), Where(corpus, out), ranks=Second(1, 2)).run(Seen())
    assert trained == ["pretrained", "student"]
    assert not out.exists()


def weights_of(out: Path, stage: str) -> bytes:
    return (out / stage / "checkpoint" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("moment", "stage"),
    [("pretrained/stage.json", "between"), ("student/last/state.json", "inside")],
)
def test_a_killed_run_goes_on(
    tmp_path: Path, corpus: Path, file: Path, whole: Path, moment: str, stage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = ["train", "run", str(file), "--corpus", str(corpus), "--tests",
               str(corpus / "tests"), "--out", str(out), "--threads", "1", "--device",
               "cpu"]  # fmt: skip
    kill_when(command, lambda: reached(out / moment))
    record = out / "student" / "stage.json"
    assert not (record.exists() and json.loads(record.read_text())["done"]), "killed too late"

    assert main(command) == 0
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(maxsplit=1)[0] for line in shown[:2]] == ["tokenizer", "pretrained"]
    assert all("skipped" in line for line in shown[:2])
    assert "running, 3 of 3" in shown[2] and "done in" in shown[3]
    assert weights_of(out, "student") == weights_of(whole, "student")
    assert [entry["step"] for entry in log_of(out / "student")] == list(range(1, 13))


def reached(path: Path) -> bool:
    """Whether a file is there and, of a stage's record, says done."""
    if path.name != "stage.json":
        return path.exists()
    return path.exists() and bool(json.loads(path.read_text())["done"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--set", "student.stepps=1"], "stage student: stepps: unknown key"),
        (["--set", "steps=1"], "--set steps: must be STAGE.KEY"),
        (["--set", "student"], "--set student: must be KEY=VALUE"),
        (["--redo", "nobody"], "--redo nobody"),
        (["--corpus", "nowhere"], "stage tokenizer: corpus nowhere: no such folder"),
        (["--tests", "nowhere"], "nowhere: no such folder"),
        (["--limit", "-1"], "limit = -1"),
        (["--threads", "-1"], "--threads -1"),
        (["--device", "abacus"], "device = 'abacus'"),
    ],
)
def test_errors_are_one_line_before_anything_runs(
    tmp_path: Path, corpus: Path, file: Path, capsys: pytest.CaptureFixture[str],
    changes: list[str], named: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = ["train", "run", str(file), "--corpus", str(corpus), "--out", str(out), "--device",
               "cpu", "--threads", "1"]  # fmt: skip
    assert named in refusal([*command, *changes], capsys)
    assert not (out / "tokenizer").exists()
