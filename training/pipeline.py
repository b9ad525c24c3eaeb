"""Pipelines: one TOML of stages in order, from corpus to the final checkpoint, checked as a whole.

A file flows in, stages flow out whose recipes are built and whose references (`init`, `teacher`,
`adds`, `distil.teachers`) are resolved to earlier stages or to folders. Nothing is run here; but
`check` looks at the corpus, so that what cannot work is said before the first stage has begun.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from training.config import (
    BOUNDS,
    RECIPES,
    DataConfig,
    RunConfig,
    assign,
    build,
    load_recipe,
    read_toml,
    require,
)
from training.corpus import (
    Source,
    find_sources,
    require_directions,
    require_languages,
    weight_of,
)
from training.errors import ConfigError, CorpusError
from training.model import preset
from training.stages import INIT
from training.teach import TranslateConfig, texts_to_translate

Kind = Literal["tokenizer", "pretrain", "finetune", "translate"]
PIPELINES = RECIPES / "pipelines"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_TAKEN = ("bundle", "defaults", "figures", "report", "scores", "shards")
_CHECKPOINTS: tuple[Kind, ...] = ("pretrain", "finetune")


@dataclass(frozen=True)
class TokenizerConfig:
    """Of `data` only languages, list and weights count: a source's share of the sample."""

    data: DataConfig
    vocabulary: int = 16384
    megabytes: float = 32.0

    def __post_init__(self) -> None:
        require("above 0", self, ("megabytes",))


@dataclass(frozen=True)
class ReportConfig:
    """`sets` are globs over the names of test sets to score, `limit` sentences of each (0: all),
    `beam` hypotheses at a time; `lowercase` folds case in BLEU, as its signature then says."""

    sets: tuple[str, ...] = ("*",)
    limit: int = 200
    lowercase: bool = False
    beam: int = 1

    def __post_init__(self) -> None:
        require("0 or more", self, ("limit",))
        require("positive", self, ("beam",))


Config = TokenizerConfig | RunConfig | TranslateConfig


@dataclass(frozen=True)
class Stage:
    """`tokenizer` is the stage whose vocabulary a run uses; empty: that of its `init` folder."""

    name: str
    kind: Kind
    config: Config
    init: str = ""
    adds: tuple[str, ...] = ()
    tokenizer: str = ""

    def references(self) -> Iterator[tuple[str, str]]:
        """What the stage names: (key, a stage's name or a folder)."""
        if self.init:
            yield "init", self.init
        if isinstance(self.config, TranslateConfig):
            yield "teacher", self.config.teacher
        if isinstance(self.config, RunConfig):
            for pattern, teacher in self.config.distil.teachers.items():
                yield f"distil.teachers.{pattern}", teacher
        yield from ((f"adds.{i}", name) for i, name in enumerate(self.adds))
        if self.tokenizer:
            yield "tokenizer", self.tokenizer


@dataclass(frozen=True)
class Pipeline:
    name: str
    stages: tuple[Stage, ...]
    final: str
    report: ReportConfig = field(default_factory=ReportConfig)

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def __contains__(self, name: object) -> bool:
        return any(stage.name == name for stage in self.stages)

    def dependents(self, names: Iterable[str]) -> set[str]:
        """The stages named and all that build on them, however far."""
        found = set(names)
        for stage in self.stages:  # in order, so one pass is enough
            if any(name in found for _, name in stage.references()):
                found.add(stage.name)
        return found


def load_pipeline(name: str | Path, settings: Iterable[tuple[str, Any]] = ()) -> Pipeline:
    """Read a pipeline by path, or by name from `training/configs/pipelines`.

    `settings` replace keys as in ("student.data.max_tokens", 64); "defaults.*" and "report.*" too.
    """
    path, values = read_toml("pipeline", name, PIPELINES)
    try:
        return _pipeline(path.stem, values, settings)
    except ConfigError as error:
        raise ConfigError(f"pipeline {path.stem}: {error}") from None


def stage_recipe(
    name: str, overrides: dict[str, Any] | None = None, given: Iterable[str] = ("init", "adds")
) -> RunConfig:
    """A recipe by path, or as `PIPELINE:STAGE` a training stage of a pipeline.

    What the stage builds on is not run: raises ConfigError unless it is among those `given`.
    """
    if ":" not in name or Path(name).is_file():
        return load_recipe(name, overrides)
    stage = _stage_of(name, overrides)
    if not isinstance(stage.config, RunConfig):
        raise ConfigError(f"recipe {name!r}: is not a stage that trains a model")
    for key, option, value in (("init", "--init", stage.init), ("adds", "--add", stage.adds)):
        if value and key not in given:
            raise ConfigError(f"recipe {name!r}: its {key} = {value!r}; give the folder with "
                              f"{option}, or run the stages before it (train run)")  # fmt: skip
    return stage.config


def stage_data(name: str) -> DataConfig:
    """The data of such a recipe, or of a stage that trains a tokenizer."""
    if ":" not in name or Path(name).is_file():
        return load_recipe(name).data
    config = _stage_of(name, None).config
    if isinstance(config, TranslateConfig):
        raise ConfigError(f"recipe {name!r}: is a stage of kind 'translate'")
    return config.data


def _stage_of(name: str, overrides: dict[str, Any] | None) -> Stage:
    file, _, stage = name.rpartition(":")
    settings = [(f"{stage}.{key}", value) for key, value in (overrides or {}).items()]
    found = load_pipeline(file, settings)
    if stage not in found:
        known = ", ".join(s.name for s in found.stages)
        raise ConfigError(f"recipe {name!r}: no such stage; there are {known}")
    return found[stage]


def _pipeline(name: str, values: dict[str, Any], settings: Iterable[tuple[str, Any]]) -> Pipeline:
    for key in values:
        if key not in ("stages", "defaults", "report", "final"):
            raise ConfigError(f"{key}: unknown key; known: stages, defaults, report, final")
    tables = _tables(values.get("stages"))
    defaults, report = _table(values, "defaults"), _table(values, "report")
    places = {"defaults": defaults, "report": report, **tables}
    for key, value in settings:
        stage, _, rest = key.partition(".")
        if stage not in places or not rest:
            raise ConfigError(f"--set {key}: must be STAGE.KEY; stages: {', '.join(places)}")
        assign(places[stage], rest, value)
    stages: list[Stage] = []
    for stage in tables:
        try:
            stages.append(_stage(stage, tables[stage], defaults, stages, set(tables)))
        except ConfigError as error:
            raise ConfigError(f"stage {stage}: {error}") from None
    made = [stage.name for stage in stages if stage.kind in _CHECKPOINTS]
    final = values.get("final", made[-1] if made else "")
    if final not in made:
        raise ConfigError(f"final = {final!r}: must be one of {', '.join(made) or '(none)'}, "
                          "the stages that train a model")  # fmt: skip
    return Pipeline(name, tuple(stages), final, build(ReportConfig, report, "report."))


def _tables(stages: Any) -> dict[str, dict[str, Any]]:
    """The tables of [[stages]] by their names."""
    if not isinstance(stages, list) or not stages or not all(isinstance(s, dict) for s in stages):
        raise ConfigError("stages: give at least one [[stages]] table")
    tables: dict[str, dict[str, Any]] = {}
    for number, values in enumerate(stages, 1):
        name = values.pop("name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
            raise ConfigError(
                f"stage {number}: name = {name!r}: must be of a-z, 0-9, _ and -, "
                f"and none of {', '.join(_TAKEN)}"
            )
        if name in tables:
            raise ConfigError(f"stage {number}: name = {name!r} comes twice")
        tables[name] = values
    return tables


def _table(values: dict[str, Any], key: str) -> dict[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{key} = {table!r}: must be a table")
    return table


def _stage(
    name: str, values: dict[str, Any], defaults: dict[str, Any], before: Sequence[Stage],
    names: set[str],
) -> Stage:  # fmt: skip
    kind = values.pop("kind", None)
    if kind not in get_args(Kind):
        raise ConfigError(f"kind = {kind!r}: must be one of {', '.join(get_args(Kind))}")
    if kind == "translate":
        stage = Stage(name, kind, build(TranslateConfig, values, ""))
    elif kind == "tokenizer":
        data = {**_table(defaults, "data"), **_table(values, "data")}
        stage = Stage(name, kind, build(TokenizerConfig, {**values, "data": data}, ""))
    else:
        init, adds = values.pop("init", ""), values.pop("adds", [])
        if not isinstance(init, str):
            raise ConfigError(f"init = {init!r}: must be a stage's name or a folder")
        if not isinstance(adds, list) or not all(isinstance(item, str) for item in adds):
            raise ConfigError(f"adds = {adds!r}: must be a list of stages or folders")
        config = build(RunConfig, {**_merged(defaults, values), "stage": kind}, "")
        stage = Stage(name, kind, config, init, tuple(adds))
        stage = replace(stage, tokenizer=_tokenizer_of(stage, before))
    for key, target in stage.references():
        _check_reference(stage, key, target, before, names)
    return stage


def _merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A stage's recipe over the defaults. Sections (data, optimiser, ...) merge key by key; tables
    of globs are replaced whole, since in them the order counts."""
    own_bound = any(bound in values for bound in BOUNDS)
    merged = {k: v for k, v in defaults.items() if not (own_bound and k in BOUNDS)}
    hints = get_type_hints(RunConfig)
    sections = {f.name for f in fields(RunConfig) if is_dataclass(hints[f.name])}
    for key, value in values.items():
        if key in sections and isinstance(value, dict):
            value = {**_table(merged, key), **value}
        merged[key] = value
    return merged


def _tokenizer_of(stage: Stage, before: Sequence[Stage]) -> str:
    """The last tokenizer stage above; without one the vocabulary is that of `init`."""
    assert isinstance(stage.config, RunConfig)
    made = [other for other in before if other.kind == "tokenizer"]
    if not made:
        if not stage.init:
            raise ConfigError("no stage of kind 'tokenizer' above it, and no init to take one from")
        return next((s.tokenizer for s in before if s.name == stage.init), "")
    of = made[-1].config
    assert isinstance(of, TokenizerConfig)
    missing = set(stage.config.data.languages) - set(of.data.languages)
    if missing:
        raise ConfigError(f"data.languages: {', '.join(sorted(missing))} not among those of "
                          f"tokenizer {made[-1].name!r}")  # fmt: skip
    return made[-1].name


_WANTED: dict[str, tuple[Kind, ...]] = {
    "init": _CHECKPOINTS, "teacher": ("finetune",), "distil": _CHECKPOINTS,
    "adds": ("translate",), "tokenizer": ("tokenizer",),
}  # fmt: skip


def _check_reference(
    stage: Stage, key: str, target: str, before: Sequence[Stage], names: set[str]
) -> None:
    if target == stage.name:
        raise ConfigError(f"{key} = {target!r}: is this stage itself")
    earlier = {other.name: other for other in before}
    if target in earlier:
        wanted = _WANTED[key.partition(".")[0]]
        if earlier[target].kind not in wanted:
            raise ConfigError(f"{key} = {target!r}: is a stage of kind {earlier[target].kind!r}, "
                              f"must be {' or '.join(wanted)}")  # fmt: skip
        if key == "init":
            _check_init(stage, earlier[target])
    elif target in names:
        raise ConfigError(f"{key} = {target!r}: comes later; stages run in the order of the file")
    elif not Path(target).is_dir():
        raise ConfigError(f"{key} = {target!r}: is neither a stage above nor a folder")
    elif not key.startswith("adds"):
        _check_checkpoint(key, Path(target))


def _check_checkpoint(key: str, folder: Path) -> None:
    if (folder / "manifest.json").exists():
        raise ConfigError(
            f"{key} = {str(folder)!r}: is a bundle; restore its checkpoint with gpt2-mt export "
            "--restore, or add translations that gpt2-mt translate --folder wrote"
        )
    if not (folder / "config.json").exists():
        raise ConfigError(f"{key} = {str(folder)!r}: has no config.json, so is no checkpoint")


def _check_init(stage: Stage, init: Stage) -> None:
    assert isinstance(stage.config, RunConfig) and isinstance(init.config, RunConfig)
    same = stage.config.model in (INIT, init.config.model)
    if stage.config.init_layers == "same" and not same:
        raise ConfigError(f"init = {init.name!r}: is of model {init.config.model!r}, this stage of "
                          f"{stage.config.model!r}; init_layers = 'same'")  # fmt: skip


def check(pipeline: Pipeline, corpus: Path) -> None:
    """Raises ConfigError or CorpusError naming the stage whose model or data cannot be."""
    for stage in pipeline.stages:
        try:
            if isinstance(stage.config, RunConfig):
                model, length = stage.config.model, stage.config.data.max_tokens
                context = length if model == INIT else preset(model, 512).context
                if model == INIT and not stage.init:
                    raise ConfigError(f"model = {model!r}: there is no init")
                if length > context:
                    raise ConfigError(
                        f"data.max_tokens = {length}: the context of model = {model!r} is {context}"
                    )
            sources_of(stage, corpus, [Path(add) for add in stage.adds if add not in pipeline])
        except (ConfigError, CorpusError) as error:
            raise type(error)(f"stage {stage.name}: {error}") from None


def sources_of(stage: Stage, corpus: Path, adds: Iterable[Path] = ()) -> list[Source]:
    """What a stage reads of the corpus and of the folders `adds`; raises CorpusError when a
    language has nothing."""
    config = stage.config
    if isinstance(config, TranslateConfig):
        return texts_to_translate(config, corpus)
    data = config.data
    found = find_sources(corpus, data.languages, data.list, adds, data.tasks)
    found = [source for source in found if weight_of(source, data.weights) > 0]
    if stage.kind != "finetune":
        require_languages(found, data.languages,
                          f"sources with a weight above 0 in corpus {corpus}")  # fmt: skip
    elif not stage.adds and not data.tasks:
        require_languages([s for s in found if len(s.languages) == 2], data.languages,
                          f"pairs with a weight above 0 in corpus {corpus}")  # fmt: skip
        require_directions(found, data.directions)
    return found
