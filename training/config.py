"""Recipes: one short TOML per run becomes frozen dataclasses; an unknown key is an error naming it.

A recipe says what cannot be derived: stage, model preset, budget, data and the optimiser's dials.
Everything is checked here, before any corpus is read.
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from training.errors import ConfigError

Stage = Literal["pretrain", "finetune"]
RECIPES = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class DataConfig:
    """What to read. `weights` maps a glob over source names to passes per epoch; first match wins.

    `list` names a file in the corpus folder with one path a line (relative to itself): only those
    sources, and `mono/`, are read.
    `max_tokens` bounds one example (prompt and target together) and is the length of text rows.
    `text_share` is the part of fine-tuning batches that are plain text, so that generation stays.
    """

    languages: tuple[str, ...]
    list: str = ""
    weights: dict[str, float] = field(default_factory=lambda: {"*": 1.0})
    max_tokens: int = 128
    text_share: float = 0.0
    valid_examples: int = 200


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


@dataclass(frozen=True)
class RunConfig:
    """One training run, bounded by `steps` or by `minutes` of wall-clock (exactly one of them)."""

    stage: Stage
    model: str
    data: DataConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    steps: int = 0
    minutes: float = 0.0
    batch_tokens: int = 4096  # padded tokens of one step, over all accumulated micro-batches
    accumulate: int = 1
    mask: Literal["causal", "prefix"] = "causal"
    label_smoothing: float = 0.0
    dropout: float = 0.0
    seed: int = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    checkpoint_minutes: float = 5.0
    log_steps: int = 10
    valid_steps: int = 500

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.minutes > 0):
            raise ConfigError("give either steps or minutes, one of them above 0")
        for name in ("batch_tokens", "accumulate", "log_steps", "valid_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be positive")
        if not self.data.languages:
            raise ConfigError("data.languages is empty")
        if self.mask == "prefix" and self.stage == "pretrain":
            raise ConfigError("mask = 'prefix' is for stage = 'finetune'")
        for name in ("label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be in [0, 1)")
        if not 0 <= self.data.text_share < 1:
            raise ConfigError(f"data.text_share = {self.data.text_share}: must be in [0, 1)")


def load_recipe(name: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a recipe by path, or by name from `training/configs`; `overrides` replace top keys."""
    path = Path(name)
    if not path.suffix and not path.exists():
        path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(f"recipe {str(name)!r}: no such file; built-in recipes: {known}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path}: {error}") from None
    for key, value in (overrides or {}).items():
        _assign(values, key, value)
    return build(RunConfig, values, "")


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value
    if last in ("steps", "minutes") and not parents:  # the other bound gives way
        values.pop("minutes" if last == "steps" else "steps", None)


def build(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    """A dataclass from a mapping; raises ConfigError naming an unknown, missing or wrong key."""
    known = {f.name: f for f in fields(kind)}
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
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where} = {value!r}: must be a list of strings")
        return tuple(value)
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r}: must be a table")
        return {str(k): float(v) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r}: must be {hint.__name__}")
    return value
