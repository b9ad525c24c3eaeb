"""Teachers: checkpoints of any size that a student learns from, by direction or language of text.

The recipe's `distil.teachers` and the run's directions and languages flow in; checked checkpoints
flow out, whose weights are read when they are first needed. Their words are what training.words
keeps on disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import load_checkpoint
from training.config import DistilConfig
from training.errors import CheckpointError, ConfigError
from training.model import GPT, MaskMode, ModelConfig


@dataclass
class Teacher:
    """A checkpoint folder; `digest` names its weights. `model()` reads them once."""

    folder: Path
    device: torch.device
    config: ModelConfig
    mask: MaskMode
    digest: str
    meta: dict[str, Any]
    _model: GPT | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: Path, device: torch.device) -> Teacher:
        """Raises CheckpointError for a folder that is no checkpoint."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            file = folder / "meta.json"
            meta = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            with (folder / "model.safetensors").open("rb") as handle:
                digest = file_digest(handle, "sha256").hexdigest()
            sizes = ModelConfig.from_hugging_face(config)
        except (OSError, ValueError, ConfigError) as error:
            raise CheckpointError(f"distil.teachers: {folder}: {error}") from None
        return cls(folder, device, sizes, meta.get("mask", "causal"), digest, meta)

    def model(self) -> GPT:
        if self._model is None:
            model, _ = load_checkpoint(self.folder)
            self._model = model.to(self.device).eval().requires_grad_(False)
        return self._model

    def require(self, way: str) -> None:
        """Raises ConfigError unless the teacher knows the direction or language."""
        pairs = ["-".join(pair) for pair in self.meta.get("pairs", [])]
        knows = pairs if "-" in way else list(self.meta.get("languages", [way]))
        if way not in knows:
            raise ConfigError(
                f"distil.teachers: {self.folder} was not trained for {way}; "
                f"it knows {', '.join(knows) or 'no direction'}"
            )


def open_teachers(
    config: DistilConfig, ways: Sequence[str], tokenizer_file: Path, device: torch.device
) -> dict[str, Teacher]:
    """The teacher of each way (a direction or a language of text) that a glob matches.

    Raises ConfigError for a glob that matches nothing, a teacher that does not know its way, or
    one whose vocabulary is not the run's.
    """
    for glob in config.teachers:
        if not any(fnmatchcase(way, glob) for way in ways):
            raise ConfigError(
                f"distil.teachers.{glob!r}: matches nothing; the run has {', '.join(ways)}"
            )
    opened: dict[str, Teacher] = {}
    found: dict[str, Teacher] = {}
    for way in ways:
        folder = next((f for g, f in config.teachers.items() if fnmatchcase(way, g)), None)
        if folder is None:
            continue
        if folder not in opened:
            opened[folder] = Teacher.open(Path(folder), device)
            require_vocabulary(opened[folder], tokenizer_file)
        opened[folder].require(way)
        found[way] = opened[folder]
    return found


def require_vocabulary(teacher: Teacher, tokenizer_file: Path) -> None:
    """Raises ConfigError naming both files unless teacher and student read the same tokens.

    A reserved entry that has got a name since is no difference.
    """
    theirs = teacher.folder / "tokenizer.json"
    mine, other = (_vocabulary(path) for path in (tokenizer_file, theirs))
    differs = [i for i in mine[0].keys() | other[0].keys()
               if (a := mine[0].get(i)) != (b := other[0].get(i))
               and not any(str(x).startswith("<|reserved:") for x in (a, b))]  # fmt: skip
    entries = teacher.config.vocabulary
    if differs or mine[1] != other[1] or entries != len(mine[0]):
        raise ConfigError(
            f"distil.teachers: the vocabulary of {theirs} ({entries} entries) is not that of "
            f"{tokenizer_file} ({len(mine[0])} entries); words, hidden and relations need the "
            "same, translations by a teacher (gpt2-mt train teach) do not"
        )


def _vocabulary(tokenizer_file: Path) -> tuple[dict[int, str], list[Any]]:
    """Tokens by id, and the merges."""
    try:
        values = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        tokens = {index: token for token, index in values["model"]["vocab"].items()}
        tokens |= {entry["id"]: entry["content"] for entry in values["added_tokens"]}
        return tokens, values["model"]["merges"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"tokenizer {tokenizer_file}: {error!r}") from None


def thinned(model: GPT, layers: int) -> tuple[GPT, list[int]]:
    """A student of evenly spaced layers of a model, first and last among them, and which they are.

    As DistilBERT (Sanh et al. 2019) starts from its teacher; all other weights are the model's.
    """
    have = model.config.layers
    if layers > have:
        raise ConfigError(
            f"init_layers = 'even': the checkpoint has {have} layers, the recipe's model {layers}"
        )
    taken = [int(i * (have - 1) / max(1, layers - 1) + 0.5) for i in range(layers)]
    student = GPT(replace(model.config, layers=layers))
    state = model.state_dict()
    for name, tensor in student.state_dict().items():
        head, mark, tail = name.partition(".h.")
        if mark:
            place, _, rest = tail.partition(".")
            name = f"{head}.h.{taken[int(place)]}.{rest}"
        tensor.copy_(state[name])
    return student, taken
