"""The selective rule: a direction is distilled only while the student is behind its teacher.

Held-out pairs and the student flow in at each validation; BLEU of both on the same sentences
decides (Tan et al. 2019: below the teacher's plus a margin). A teacher translates them once and its
BLEU is kept in a file of the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.batches import PairRows, Tags, way_of
from training.config import RunConfig
from training.decode import greedy
from training.distil import Distiller
from training.errors import ConfigError
from training.model import GPT, MaskMode
from training.scores import TestSet, score
from training.shards import Shard
from training.words import digest

LIMIT = 200  # sentences a direction
ROWS = 64  # that are decoded together


class Judge:
    """Called with the student it returns figures to log, `distil/en-de` among them: 1 or 0."""

    def __init__(
        self, distiller: Distiller, held: PairRows, tokenizer: Tokenizer, file: Path
    ) -> None:
        self.distiller, self.tokenizer, self.file = distiller, tokenizer, file
        self.rows: dict[str, list[tuple[list[int], list[int]]]] = {}
        for example in held.choose(np.random.default_rng(0)):
            way = way_of(held.shards[example[0]], int(example[2]))
            mine = self.rows.setdefault(way, []) if way in distiller.teachers else []
            if len(mine) < LIMIT:
                ids, prompt = held.row(example)
                mine.append((ids[:prompt], ids[prompt:-1]))
        for way in distiller.teachers:
            if "-" in way and not self.rows.get(way):
                raise ConfigError(
                    f"distil.selective: no pair is held out for {way}; raise data.valid_examples"
                )
        self.teachers = self._teachers()

    def __call__(self, student: GPT) -> dict[str, float]:
        figures: dict[str, float] = {}
        for way in self.rows:
            bleu = self.bleu(student, self.distiller.mask, way)
            on = bleu < self.teachers[way] + self.distiller.config.margin
            figures |= {f"valid/{way}/bleu": bleu, f"valid/{way}/teacher_bleu": self.teachers[way],
                        f"distil/{way}": int(on)}  # fmt: skip
        return figures

    def _teachers(self) -> dict[str, float]:
        """Each direction's BLEU of its teacher, from the file or made and written there."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        found = {}
        for way, rows in self.rows.items():
            teacher = self.distiller.teachers[way]
            mark = digest(teacher.digest, teacher.mask, rows)
            if mark not in kept:
                kept[mark] = self.bleu(teacher.model(), teacher.mask, way)
            found[way] = kept[mark]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".partial")
        temporary.write_text(json.dumps(kept), encoding="utf-8")
        temporary.replace(self.file)
        return found

    def bleu(self, model: GPT, mask: MaskMode, way: str) -> float:
        """BLEU of greedy outputs on the held-out pairs of a direction, in 0..100."""
        source, target = way.split("-")
        prompts = [prompt for prompt, _ in self.rows[way]]
        references = tuple(self.tokenizer.decode(answer) for _, answer in self.rows[way])
        outputs = [(self.tokenizer.decode(ids), reason)
                   for ids, reason in _translations(model, prompts, mask)]  # fmt: skip
        test = TestSet("held-out", source, target, ("",) * len(references), references)
        return score(test, outputs).bleu


def _translations(
    model: GPT, prompts: Sequence[list[int]], mask: MaskMode
) -> list[tuple[list[int], str]]:
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[tuple[list[int], str]] = [([], "")] * len(prompts)
    for start in range(0, len(order), ROWS):
        block = order[start : start + ROWS]
        limits = [min(2 * len(prompts[i]) + 16, model.config.context - len(prompts[i]))
                  for i in block]  # fmt: skip
        outputs = greedy(model, [prompts[i] for i in block], limits, mask=mask)
        for i, output in zip(block, outputs, strict=True):
            found[i] = output
    return found


def judge_of(
    config: RunConfig, distiller: Distiller | None, valid: Sequence[Shard], tags: Tags,
    tokenizer: Tokenizer, file: Path,
) -> Judge | None:  # fmt: skip
    """The judge of a run over the pairs that it holds out; None unless the recipe is selective."""
    if distiller is None or not config.distil.selective:
        return None
    shards = [shard for shard in valid if len(shard.header.languages) == 2]
    data = config.data
    held = PairRows(shards, [1.0] * len(shards), tags, data.max_tokens, data.directions)
    return Judge(distiller, held, tokenizer, file)
