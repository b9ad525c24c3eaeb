"""Pipelines are checked as a whole before anything runs: each error names its stage and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import RunConfig
from training.errors import ConfigError, CorpusError
from training.pipeline import (
    PIPELINES,
    Pipeline,
    check,
    load_pipeline,
    sources_of,
    stage_data,
    stage_recipe,
)
from training.teach import TranslateConfig

GOOD = """
final = "student"

[defaults]
model = "test"
minutes = 3.0
[defaults.optimiser]
name = "muon"
rate = 5e-3
[defaults.data]
languages = ["en", "de"]
max_tokens = 64
weights = { "mono/*" = 0.5, "*" = 1.0 }

[report]
limit = 5

[[stages]]
name = "tokenizer"
kind = "tokenizer"
vocabulary = 512

[[stages]]
name = "pretrained"
kind = "pretrain"

[[stages]]
name = "teacher"
kind = "finetune"
init = "pretrained"
steps = 4
optimiser = { rate = 1e-3 }
data = { directions = ["en-de"] }

[[stages]]
name = "forward"
kind = "translate"
teacher = "teacher"
direction = "en-de"
sources = ["mono/*"]

[[stages]]
name = "student"
kind = "finetune"
adds = ["forward"]
steps = 4
data = { weights = { "*" = 2.0 } }
distil = { words = 0.5, teachers = { "en-de" = "teacher" } }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "good.toml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def recipe_of(pipeline: Pipeline, name: str) -> RunConfig:
    config = pipeline[name].config
    assert isinstance(config, RunConfig)
    return config


def test_stages_are_read_over_the_defaults(file: Path) -> None:
    pipeline = load_pipeline(file)
    assert [s.name for s in pipeline.stages] == [
        "tokenizer", "pretrained", "teacher", "forward", "student"]  # fmt: skip
    assert pipeline.name == "good" and pipeline.final == "student" and pipeline.report.limit == 5
    pretrained, teacher = recipe_of(pipeline, "pretrained"), recipe_of(pipeline, "teacher")
    assert pretrained.stage == "pretrain" and pretrained.minutes == 3.0
    assert (teacher.minutes, teacher.steps) == (0.0, 4), "a stage's bound replaces the defaults'"
    assert (teacher.optimiser.name, teacher.optimiser.rate) == ("muon", 1e-3)
    assert teacher.data.max_tokens == 64 and teacher.data.directions == ("en-de",)
    weights = [list(recipe_of(pipeline, n).data.weights) for n in ("teacher", "student")]
    assert weights == [["mono/*", "*"], ["*"]], "globs are replaced as a whole: order counts"
    assert all(s.tokenizer == "tokenizer" for s in pipeline.stages if s.kind == "finetune")


def test_what_builds_on_what(file: Path) -> None:
    pipeline = load_pipeline(file)
    assert dict(pipeline["student"].references()) == {
        "distil.teachers.en-de": "teacher", "adds.0": "forward", "tokenizer": "tokenizer"
    }  # fmt: skip
    assert pipeline.dependents(["teacher"]) == {"teacher", "forward", "student"}
    assert pipeline.dependents(["student"]) == {"student"}
    assert len(pipeline.dependents(["tokenizer"])) == 5


def test_settings_replace_keys(file: Path) -> None:
    settings = [("student.data.max_tokens", 32), ("defaults.seed", 7), ("report.limit", 9),
                ("teacher.minutes", 1), ("forward.beam", 4)]  # fmt: skip
    pipeline = load_pipeline(file, settings)
    assert recipe_of(pipeline, "student").data.max_tokens == 32
    assert {recipe_of(pipeline, n).seed for n in ("pretrained", "student")} == {7}
    assert recipe_of(pipeline, "teacher").steps == 0, "the other bounds give way"
    assert pipeline.report.limit == 9
    forward = pipeline["forward"].config
    assert isinstance(forward, TranslateConfig) and forward.beam == 4


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('kind = "pretrain"', 'kind = "pretrain"\nstepps = 3', "stage pretrained: stepps: unknown"),
        ('kind = "pretrain"', 'kind = "train"', "stage pretrained: kind = 'train'.*tokenizer, pre"),
        ('kind = "pretrain"', "", "stage pretrained: kind = None"),
        ('name = "pretrained"', "", "stage 2: name = None"),
        ('name = "pretrained"', 'name = "a/b"', "stage 2: name = 'a/b'"),
        ('name = "pretrained"', 'name = "bundle"', "stage 2: name = 'bundle'"),
        ('name = "pretrained"', 'name = "tokenizer"', "name = 'tokenizer' comes twice"),
        ("final = ", "finale = ", "finale: unknown key"),
        ('final = "student"', 'final = "forward"', "final = 'forward': must be one of pretrained"),
        ("[report]\nlimit = 5", "report = 5", "report"),
        ("limit = 5", "limits = 5", "report.limits: unknown key"),
        ("limit = 5", "limit = -1", "limit = -1"),
        ("vocabulary = 512", 'vocabulary = "big"', "stage tokenizer: vocabulary = 'big'"),
        ("vocabulary = 512", "megabytes = 0", "stage tokenizer: megabytes = 0"),
        ("max_tokens = 64", "max_tokens = 2", "stage tokenizer: data.max_tokens = 2"),
        ('init = "pretrained"', 'init = "student"', "stage teacher: init = 'student': comes later"),
        ('init = "pretrained"', 'init = "teacher"', "init = 'teacher': is this stage itself"),
        ('init = "pretrained"', 'init = "tokenizer"', "init = 'tokenizer'.*kind 'tokenizer'"),
        ('init = "pretrained"', 'init = "nowhere"', "init = 'nowhere': is neither"),
        ('init = "pretrained"', "init = 3", "stage teacher: init = 3"),
        ('init = "pretrained"', 'init = "pretrained"\nmodel = "mini"', "of model 'test'.*'mini'"),
        ('teacher = "teacher"', 'teacher = "pretrained"', "stage forward: teacher = 'pretrained'"),
        ('teacher = "teacher"', 'teacher = "student"', "teacher = 'student': comes later"),
        ('teacher = "teacher"', "", "stage forward: teacher: missing"),
        ('direction = "en-de"', 'direction = "en"', "stage forward: direction = 'en'"),
        ('sources = ["mono/*"]', "sources = []", "stage forward: sources is empty"),
        ('sources = ["mono/*"]', 'sources = ["*"]\nbeam = 0', "stage forward: beam = 0"),
        ('adds = ["forward"]', 'adds = ["teacher"]', "student: adds.0 = 'teacher'.*translate"),
        ('adds = ["forward"]', 'adds = ["nowhere"]', "adds.0 = 'nowhere': is neither"),
        ('adds = ["forward"]', 'adds = "forward"', "student: adds = 'forward': must be a list"),
        ('"en-de" = "teacher" }', '"*" = "student" }', r"distil.teachers.\* = 'student': is this"),
        ('"en-de" = "teacher" }', '"*" = "gone" }', r"distil.teachers.\* = 'gone': is neither"),
        ('data = { directions = ["en-de"] }', 'data = { languages = ["fr"] }',
         "stage teacher: data.languages: fr not among those of tokenizer 'tokenizer'"),
        ("final = ", "final ", "pipeline .*good.toml"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(file: Path, old: str, new: str, named: str) -> None:
    assert GOOD.count(old) == 1
    file.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=named):
        load_pipeline(file)


def test_folders_in_place_of_stages(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for key in ("teacher.init", "forward.teacher"):
        with pytest.raises(ConfigError, match="other': has no config.json, so is no checkpoint"):
            load_pipeline(file, [(key, str(folder))])
    (folder / "config.json").touch()
    found = load_pipeline(file, [("teacher.init", str(folder)), ("student.adds", [str(folder)])])
    assert found["teacher"].init == str(folder)
    assert found.dependents(["pretrained"]) == {"pretrained"}
    (folder / "manifest.json").touch()
    with pytest.raises(ConfigError, match="stage forward: teacher = '.*other': is a bundle"):
        load_pipeline(file, [("forward.teacher", str(folder))])


def test_no_stages_and_no_vocabulary_are_errors(file: Path) -> None:
    file.write_text("[defaults]\nseed = 1\n")
    with pytest.raises(ConfigError, match="stages: give at least one"):
        load_pipeline(file)
    file.write_text(GOOD.replace('kind = "tokenizer"\nvocabulary = 512', 'kind = "pretrain"'))
    with pytest.raises(ConfigError, match="stage tokenizer: no stage of kind 'tokenizer' above"):
        load_pipeline(file)


@pytest.mark.parametrize("key", ["nobody.steps", "student", "final.x"])
def test_settings_of_no_stage_are_errors(file: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {key}: must be STAGE.KEY; stages: .*student"):
        load_pipeline(file, [(key, 3)])


def test_an_unknown_pipeline_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nothing'.*cluster, cpu, demo"):
        load_pipeline("nothing")


@pytest.mark.parametrize("name", [p.stem for p in sorted(PIPELINES.glob("*.toml"))])
def test_built_in_pipelines_load(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    general = tmp_path / "build" / "general"  # where multi30k goes on from
    general.mkdir(parents=True)
    (general / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_pipeline(name).final


def test_the_pipeline_for_any_corpus_names_no_file(tmp_path: Path, corpus: Path) -> None:
    check(load_pipeline("own"), corpus)
    (tmp_path / "any.cs-es.tsv").write_text("ano\tsí\n", encoding="utf-8")
    check(load_pipeline("own", [("defaults.data.languages", ["es", "cs"])]), tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ([("student.model", "huge")], ConfigError, "stage student: model = 'huge'"),
        ([("student.data.max_tokens", 500)], ConfigError, "stage student: data.max_tokens = 500"),
        ([("pretrained.data.list", "no.txt")], CorpusError, "stage pretrained: .*no.txt"),
        ([("student.data.weights", {"mono/*": 1.0})], CorpusError, "stage student: pairs with"),
        ([("pretrained.data.weights", {"x": 1.0})], CorpusError, "stage pretrained: sources with"),
        ([("teacher.data.directions", ["en-*", "ed-en"])], CorpusError,
         "stage teacher: data.directions: 'ed-en' matches nothing; .* for de-en, en-de"),
        ([("forward.sources", ["x*"])], CorpusError, r"stage forward: .*no source in en matches x"),
        ([("forward.direction", "fr-de")], CorpusError, "stage forward: .*no source in fr"),
    ],
)  # fmt: skip
def test_models_and_corpora_are_checked(
    file: Path, corpus: Path, settings: list[tuple[str, object]], error: type[Exception], named: str
) -> None:
    check(load_pipeline(file), corpus)
    if settings[0][0].startswith("student.data.weights"):
        settings = [*settings, ("student.adds", [])]  # else pairs may come from there
    with pytest.raises(error, match=named):
        check(load_pipeline(file, settings), corpus)


def test_what_is_translated(file: Path, corpus: Path) -> None:
    """Text and sides of pairs by people, the same lines once."""
    pipeline = load_pipeline(file, [("forward.sources", ["*"])])
    names = [source.key for source in sources_of(pipeline["forward"], corpus)]
    assert names == ["mono/book.en", f"{corpus.name}.de-en"]
    pipeline = load_pipeline(file)
    assert [s.key for s in sources_of(pipeline["forward"], corpus)] == ["mono/book.en"]


def test_a_stage_is_a_recipe_of_its_own(file: Path) -> None:
    assert stage_recipe(f"{file}:pretrained").stage == "pretrain"
    config = stage_recipe(f"{file}:teacher", {"minutes": 1, "data.max_tokens": 32})
    assert (config.minutes, config.steps, config.data.max_tokens) == (1, 0, 32)
    assert stage_data("cpu:tokenizer").weights["pivot_*"] == 0.0
    with pytest.raises(ConfigError, match="no such stage; there are tokenizer, pretrained"):
        stage_recipe(f"{file}:nobody")
    with pytest.raises(ConfigError, match="not a stage that trains a model"):
        stage_recipe(f"{file}:forward")
    with pytest.raises(ConfigError, match="its init = 'pretrained'; give .* --init"):
        stage_recipe(f"{file}:teacher", given=["adds"])
    with pytest.raises(ConfigError, match=r"its adds = \('forward',\); give .* --add"):
        stage_recipe(f"{file}:student", given=["init"])
    with pytest.raises(ConfigError, match="kind 'translate'"):
        stage_data(f"{file}:forward")
