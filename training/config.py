"""Recipes: one short TOML per run becomes frozen dataclasses; an unknown key is an error naming it.

A recipe says what cannot be derived: stage, model preset, budget, data and the optimiser's dials.
Everything is checked here, before any corpus is read.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from training.errors import ConfigError

K = TypeVar("K")
Stage = Literal["pretrain", "finetune"]
BOUNDS = ("steps", "tokens", "minutes")
RECIPES = Path(__file__).parent / "configs"
_RULES: dict[str, Callable[[float], bool]] = {
    "0 or more": lambda x: 0 <= x < math.inf,
    "0 or less": lambda x: -math.inf < x <= 0,
    "above 0": lambda x: 0 < x < math.inf,
    "positive": lambda x: x >= 1,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "in (0, 1)": lambda x: 0 < x < 1,
    "in [0, 1]": lambda x: 0 <= x <= 1,
    "at least 8": lambda x: x >= 8,
    "a number": math.isfinite,
}


def require(rule: str, config: object, names: Iterable[str], where: str = "") -> None:
    """Raises ConfigError naming the first of the config's fields that breaks a rule."""
    for name in names:
        value = getattr(config, name)
        if not _RULES[rule](value):
            raise ConfigError(f"{where}{name} = {value}: must be {rule}")


@dataclass(frozen=True)
class DataConfig:
    """What to read. `weights` maps a glob over source names to passes per epoch; first match wins.

    `list` names a file in the corpus folder with one path a line (relative to itself): only those
    sources, and `mono/`, are read.
    `max_tokens` bounds one example (prompt and target together) and is the length of text rows.
    `text_share` is the part of fine-tuning batches that are plain text, so that generation stays.
    `directions` are globs over "en-de"; empty means every direction of every pair.
    `tasks` are the names of text-to-text tasks to learn besides (files `*.task-<name>.tsv[.gz]`).
    `source_noise` is the share of source tokens that training hides behind `<|mask|>`.
    `min_score` drops machine translations whose mean log-probability a token is lower.
    `licences` maps globs in the same way to what the checkpoint's meta.json says of a source.
    """

    languages: tuple[str, ...]
    list: str = ""
    weights: dict[str, float] = field(default_factory=lambda: {"*": 1.0})
    max_tokens: int = 128
    text_share: float = 0.0
    valid_examples: int = 200
    directions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    source_noise: float = 0.0
    min_score: float = -100.0
    licences: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.languages:
            raise ConfigError("data.languages is empty")
        for code in self.languages:
            if self.languages.count(code) > 1:
                raise ConfigError(f"data.languages: {code!r} comes twice")
        for pattern, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ConfigError(f"data.weights.{pattern!r} = {weight}: must be 0 or more")
        require("at least 8", self, ("max_tokens",), "data.")
        require("0 or more", self, ("valid_examples",), "data.")
        require("in [0, 1)", self, ("text_share", "source_noise"), "data.")
        require("0 or less", self, ("min_score",), "data.")


@dataclass(frozen=True)
class ObjectivesConfig:
    """Weights of what pretraining minimises, each a mean over its own positions; 0 is off.

    `causal`: next token. `masking`: restore tokens behind `<|mask|>`, full attention mask.
    `infilling`: fill in the middle, causal mask (Bavarian et al. 2022). `replaced`: tell original
    from replaced tokens (ELECTRA, Clark et al. 2020), full mask. `next_sentence`: does the second
    segment follow the first (BERT, Devlin et al. 2019), on the rows of masking and replacement.
    `auxiliary_share` of a batch's rows serve the other forms than causal, in equal parts.
    """

    causal: float = 1.0
    masking: float = 0.0
    infilling: float = 0.0
    replaced: float = 0.0
    next_sentence: float = 0.0
    auxiliary_share: float = 0.25
    mask_rate: float = 0.15
    mask_form: Literal["random", "span"] = "random"
    replacements: Literal["random", "generator"] = "random"
    negatives: Literal["random", "swapped"] = "random"

    def __post_init__(self) -> None:
        weights = ("causal", "masking", "infilling", "replaced", "next_sentence")
        require("0 or more", self, weights, "objectives.")
        require("in (0, 1)", self, ("auxiliary_share", "mask_rate"), "objectives.")
        if not any(getattr(self, name) for name in weights[:-1]):
            raise ConfigError("objectives: one of causal, masking, infilling, replaced must be on")
        if self.next_sentence and not (self.masking or self.replaced):
            raise ConfigError(
                f"objectives.next_sentence = {self.next_sentence}: works on the rows of "
                "objectives.masking or objectives.replaced; switch one of them on"
            )


@dataclass(frozen=True)
class DistilConfig:
    """Learning from teachers besides the labels; `teachers` maps globs over directions ("en-de",
    "*-fr") or languages of text ("zh") to checkpoint folders, the first match counts.

    `words` is the weight a of a T^2 KL(teacher, student) + (1 - a) labels over the teacher's
    `top_k` tokens at `temperature` T (Tan et al. 2019). `hidden` and `relations` weigh the distance
    of last hidden states and of key and value relations (MiniLM v2, Wang et al. 2021).
    With `selective` a direction is distilled only while the student's BLEU on held-out pairs is
    below its teacher's plus `margin`.
    """

    teachers: dict[str, str] = field(default_factory=dict)
    words: float = 0.0
    temperature: float = 1.0
    top_k: int = 8
    hidden: float = 0.0
    relations: float = 0.0
    relation_heads: int = 4
    selective: bool = False
    margin: float = 1.0

    def __post_init__(self) -> None:
        require("in [0, 1]", self, ("words",), "distil.")
        require("0 or more", self, ("hidden", "relations"), "distil.")
        require("above 0", self, ("temperature",), "distil.")
        require("positive", self, ("top_k", "relation_heads"), "distil.")
        require("a number", self, ("margin",), "distil.")
        if (self.words or self.hidden or self.relations) and not self.teachers:
            raise ConfigError("distil.teachers is empty: name at least one checkpoint folder")

    @property
    def on(self) -> bool:
        return bool(self.words or self.hidden or self.relations)


@dataclass(frozen=True)
class OptimiserConfig:
    """`muon` orthogonalises the updates of the hidden matrices and leaves the rest to AdamW."""

    name: Literal["adamw", "muon"] = "adamw"
    rate: float = 1e-3
    muon_rate: float = 0.02
    weight_decay: float = 0.01
    warmup: float = 0.03  # share of the budget
    final: float = 0.02  # share of the peak rate at the end
    clip: float = 1.0
    beta2: float = 0.98

    def __post_init__(self) -> None:
        require("above 0", self, ("rate", "muon_rate", "clip"), "optimiser.")
        require("in [0, 1)", self, ("warmup", "final", "beta2"), "optimiser.")
        require("0 or more", self, ("weight_decay",), "optimiser.")


@dataclass(frozen=True)
class RunConfig:
    """One training run, bounded by `steps`, `tokens` or `minutes` of wall-clock (exactly one).

    `source_loss` weighs a causal loss on the source side of pairs (causal mask only).
    `ema` is the decay of an exponential moving average of the weights, `average` a number of
    snapshots of the last fifth of the run to average; either becomes the checkpoint.
    `init_layers` = "even" lets `--init` be a deeper model of the same width, every k-th layer of
    which is taken. `parallel` says how the ranks of torchrun share the work.
    """

    stage: Stage
    model: str
    data: DataConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    distil: DistilConfig = DistilConfig()
    steps: int = 0
    tokens: int = 0
    minutes: float = 0.0
    batch_tokens: int = 4096  # padded tokens of one step, over all accumulated micro-batches
    accumulate: int = 1
    mask: Literal["causal", "prefix"] = "causal"
    label_smoothing: float = 0.0
    dropout: float = 0.0
    source_loss: float = 0.0
    ema: float = 0.0
    average: int = 0
    init_layers: Literal["same", "even"] = "same"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    seed: int = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    checkpoint_minutes: float = 5.0
    log_steps: int = 10
    valid_steps: int = 500

    def __post_init__(self) -> None:
        bounds = (self.steps, self.tokens, self.minutes)
        if min(bounds) < 0 or sum(bound > 0 for bound in bounds) != 1:
            raise ConfigError(
                f"steps = {self.steps}, tokens = {self.tokens}, minutes = {self.minutes}: "
                "give one of them, above 0"
            )
        require("positive", self, ("batch_tokens", "accumulate", "log_steps", "valid_steps"))
        require("0 or more", self, ("checkpoint_minutes", "source_loss"))
        require("in [0, 1)", self, ("label_smoothing", "dropout", "ema"))
        if self.batch_tokens // self.accumulate < self.data.max_tokens:
            raise ConfigError(
                f"batch_tokens = {self.batch_tokens} over accumulate = {self.accumulate}: "
                f"cannot hold one example of data.max_tokens = {self.data.max_tokens}"
            )
        if self.mask == "prefix" and self.stage == "pretrain":
            raise ConfigError("mask = 'prefix' is for stage = 'finetune'")
        if self.source_loss and self.mask == "prefix":
            raise ConfigError(f"source_loss = {self.source_loss}: needs mask = 'causal'")
        if self.average < 0 or (self.average and self.ema):
            raise ConfigError(
                f"average = {self.average}, ema = {self.ema}: give one of them, 0 or more"
            )
        if self.stage == "pretrain" and self.data.tasks:
            raise ConfigError("data.tasks are for stage = 'finetune'")


def load_recipe(name: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a recipe by path, or by name from `training/configs`; `overrides` replace top keys."""
    values = read_toml("recipe", name, RECIPES)[1]
    for key, value in (overrides or {}).items():
        assign(values, key, value)
    return build(RunConfig, values, "")


def read_toml(kind: str, name: str | Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A file by path, or by the name of one in `folder`, and what it says.

    Raises ConfigError that calls it a `kind` and lists those there are.
    """
    path = Path(name)
    if not path.suffix and not path.is_file():
        path = folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise ConfigError(f"{kind} {str(name)!r}: no such file; built-in {kind}s: {known}")
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError is a ValueError
        raise ConfigError(f"{kind} {path}: {error}") from None


def differences(before: dict[str, Any], now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys of a config whose values differ from those written down: (key, then, now).

    A key that the run did not know yet counts with its default.
    """
    old, new = (flat(json.loads(json.dumps(asdict(c))))
                for c in (build(type(now), before, ""), now))  # fmt: skip
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{where}{key}.")
        else:
            found[f"{where}{key}"] = value
    return found


def assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{dotted}: {parent} is not a table")
    values[last] = value
    if last in BOUNDS and not parents:  # the other bounds give way
        for other in set(BOUNDS) - {last}:
            values.pop(other, None)


def build(kind: type[K], values: dict[str, Any], where: str) -> K:
    """A dataclass from a mapping; raises ConfigError naming an unknown, missing or wrong key."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}{key}: unknown key; known: {', '.join(known)}")
    ready = {}
    for name, item in known.items():
        if name in values:
            ready[name] = _convert(hints[name], values[name], f"{where}{name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{where}{name}: missing")
    return kind(**ready)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r}: must be a table")
        return build(hint, value, f"{where}.")  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where} = {value!r}: must be one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where} = {value!r}: must be a list of strings")
        return tuple(value)
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r}: must be a table")
        item = get_args(hint)[1]
        return {str(k): _convert(item, v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r}: must be {hint.__name__}")
    return value
