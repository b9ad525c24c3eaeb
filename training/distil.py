"""What a student learns from teachers: their words, their hidden states, their attention relations.

Hidden states, keys and values of student and teacher flow in, with the teacher's most probable
tokens; sums of distances over positions flow out. The fused form of the loss of words shares one
product with the loss of labels and never holds more than a block of logits; a test compares it
with the plain form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.batches import IGNORED, Batch, Stream, way_of
from training.config import DistilConfig, RunConfig
from training.errors import CheckpointError, ConfigError
from training.model import GPT, Cache, MaskMode, ModelConfig, attention_mask
from training.teachers import Teacher, open_teachers
from training.words import Keeper, PairTeaching, TextTeaching

BLOCK = 256  # positions whose logits exist at one time


@dataclass(frozen=True)
class Soft:
    """A teacher's most probable tokens at n positions: `ids` and log-probabilities `logs` (n, k).

    A position of which no teacher knows has `logs` of minus infinity: its label stands in.
    """

    ids: Tensor
    logs: Tensor

    @property
    def known(self) -> Tensor:
        return self.logs[:, 0] > -torch.inf  # (n,)

    def at(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Probabilities (n, k) that sum to one at the temperature, 0 where unknown; and the sum
        of p log p of each position (n,)."""
        logs = self.logs.float().masked_fill(~self.known[:, None], 0.0) / temperature
        logs = logs.log_softmax(dim=1)
        known = self.known.float()
        chances = logs.exp()
        return chances * known[:, None], (chances * logs).sum(dim=1) * known


class _FusedWords(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, soft: Soft, share: float,
        temperature: float, smoothing: float, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        narrow = weight.to(dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        labels, words = torch.zeros(2, dtype=torch.float32, device=weight.device)
        chances, entropy = soft.at(temperature)
        parts = share * soft.known.float()[:, None]  # (n, 1)
        for start in range(0, hidden.shape[0], BLOCK):
            rows = slice(start, start + BLOCK)
            h, y, a = hidden[rows].to(dtype), targets[rows, None], parts[rows]
            ids, p, t = soft.ids[rows], chances[rows], temperature
            scores = (h @ narrow.t()).float()  # (block, vocabulary)
            picked = scores.gather(1, ids) / t
            label = -(1 - smoothing) * scores.gather(1, y)
            if smoothing:
                label -= smoothing * scores.mean(dim=1, keepdim=True)
            grad, norm, soft_norm = _probabilities(scores, a, t)
            label += norm
            word = entropy[rows] - (p * (picked - soft_norm)).sum(dim=1)
            labels += label.sum()
            words += torch.where(soft.known[rows], t * t * word, label[:, 0]).sum()
            if smoothing:
                grad -= (1 - a) * (smoothing / weight.shape[0])
            grad.scatter_add_(1, y, (a - 1) * (1 - smoothing))
            grad.scatter_add_(1, ids, -a * t * p)
            narrow_grad = grad.to(dtype)
            hidden_grad[rows] = (narrow_grad @ narrow).to(hidden.dtype)
            weight_grad += (narrow_grad.t() @ h).float()
        ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        ctx.mark_non_differentiable(labels, words)
        return (1 - share) * labels + share * words, labels, words

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grads[0]
        return hidden_grad * scale.to(hidden_grad.dtype), weight_grad * scale, *[None] * 6


def _probabilities(scores: Tensor, a: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """(1 - a) softmax(scores) + a t softmax(scores / t), and the logarithms of both norms.

    In place of the scores, with as few passes over them as can be.
    """
    top = scores.amax(dim=1, keepdim=True)  # (block, 1)
    scores.sub_(top)
    if t == 1:
        norm = scores.exp_().sum(dim=1, keepdim=True)
        return scores.div_(norm), norm.log() + top, norm.log() + top
    soft = (scores / t).exp_()
    soft_norm = soft.sum(dim=1, keepdim=True)
    norm = scores.exp_().sum(dim=1, keepdim=True)
    scores.mul_((1 - a) / norm).addcmul_(soft, a * t / soft_norm)
    return scores, norm.log() + top, soft_norm.log() + top / t


def words_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, soft: Soft, share: float,
    temperature: float = 1.0, smoothing: float = 0.0, dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Sums over positions: (1 - share) labels + share words, and for the log labels and words.

    `labels` is the label-smoothed -log p(target); `words` is T^2 KL(teacher, student), the teacher
    over its k tokens and the student over all, both at temperature T (Hinton et al. 2015; Tan et
    al. 2019), or the loss of the label where no teacher knows better. Only the first sum has
    gradients. hidden (n, width), weight (vocabulary, width), targets (n,); in nats.
    """
    sums: tuple[Tensor, Tensor, Tensor] = _FusedWords.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, soft, share, temperature, smoothing, dtype
    )
    return sums


def hidden_distance(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Sum over real positions of 1 - cosine (DistilBERT, Sanh et al. 2019).

    Both (batch, time, width); real bool (batch, time).
    """
    near = F.cosine_similarity(student[real].float(), teacher[real].float(), dim=-1)
    return (1 - near).sum()


def relation_distance(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, allowed: Tensor,
    real: Tensor,
) -> Tensor:  # fmt: skip
    """KL(teacher, student) of key-key and of value-value relations, summed over real positions.

    Keys and values (batch, heads, time, head) of the last layers, cut anew into `heads` relation
    heads over which the mean is taken, so that widths may differ (MiniLM v2, Wang et al. 2021).
    `allowed` bool (batch or 1, 1, time, time) says who may look at whom; real bool (batch, time).
    """
    total = torch.zeros((), device=real.device)
    for mine, theirs in zip(student, teacher, strict=True):
        p, q = relations(theirs, heads, allowed), relations(mine, heads, allowed)
        rows = (p.exp() * (p - q)).sum(dim=-1).mean(dim=1)  # (batch, time)
        total = total + rows[real].sum()
    return total


def relations(x: Tensor, heads: int, allowed: Tensor) -> Tensor:
    """Logarithms (batch, heads, time, time) of softmax(x x^T / sqrt(size)) a head."""
    batch, _, time, _ = x.shape
    x = x.transpose(1, 2).reshape(batch, time, heads, -1).transpose(1, 2).float()
    scores: Tensor = x @ x.transpose(-1, -2) * x.shape[-1] ** -0.5
    return scores.masked_fill(~allowed, -1e4).log_softmax(dim=-1)


class Distiller:
    """The teachers of a run and its losses besides the labels; `on` says which ways have them.

    A batch names each row's way by its place in `teachers` (-1: none) in extra["way"].
    """

    def __init__(self, config: DistilConfig, mask: MaskMode, teachers: dict[str, Teacher]) -> None:
        self.config, self.mask, self.teachers = config, mask, teachers
        self.on = dict.fromkeys(teachers, True)

    def check(self, student: ModelConfig, max_tokens: int) -> None:
        """Raises ConfigError for sizes of student and teacher that do not go together."""
        config, heads = self.config, self.config.relation_heads
        if config.words and config.top_k > student.vocabulary:
            raise ConfigError(
                f"distil.top_k = {config.top_k}: the vocabulary has {student.vocabulary} entries"
            )
        for teacher in self.teachers.values():
            name, width = f"teacher {teacher.folder}", teacher.config.width
            if teacher.config.context < max_tokens:
                raise ConfigError(
                    f"data.max_tokens = {max_tokens}: the context of {name} is "
                    f"{teacher.config.context}"
                )
            if config.hidden and width != student.width:
                raise ConfigError(
                    f"distil.hidden: the width of {name} is {width}, the student's is "
                    f"{student.width}; distil.relations does without equal widths"
                )
            if config.relations and (width % heads or student.width % heads):
                raise ConfigError(
                    f"distil.relation_heads = {heads}: must divide the width {width} of {name} "
                    f"and the student's {student.width}"
                )

    def follow(self, figures: Mapping[str, float]) -> None:
        """Switch ways on and off as the figures of a validation say (training.judge)."""
        for way, on in self.on.items():
            self.on[way] = bool(figures.get(f"distil/{way}", on))

    def state(self) -> dict[str, Any]:
        """What a run has to remember: which ways are on, and who the teachers are."""
        return {"on": self.on, "teachers": {way: t.digest for way, t in self.teachers.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError if the teachers are not those the run was started with."""
        for way, mark in self.state()["teachers"].items():
            if state["teachers"].get(way) != mark:
                raise CheckpointError(
                    f"the teacher {self.teachers[way].folder} for {way} is not the one that the "
                    "run was started with"
                )
        self.on.update(state["on"])

    def label_weight(self, name: str) -> float:
        """The share of the labels in a term of tokens, the rest being the words'."""
        pairs = name == "translation"
        taught = any(("-" in way) == pairs for way in self.teachers) and name != "task"
        return 1 - self.config.words if taught else 1.0

    def counts(self, batch: Batch) -> dict[str, int]:
        """Positions of each term of a batch, without a forward pass."""
        found = {}
        if "word_ids" in batch.extra:
            found["words"] = int((batch.targets != IGNORED).sum())
        if positions := int(batch.lengths[self._rows(batch)].sum()) if self._online else 0:
            found |= {name: positions for name in ("hidden", "relations")
                      if getattr(self.config, name)}  # fmt: skip
        return found

    def soft(self, batch: Batch, chosen: Tensor) -> Soft:
        """The teachers' words at the chosen positions (batch, time) of a batch that has some."""
        ids, logs = batch.extra["word_ids"][chosen], batch.extra["word_logs"][chosen]
        if batch.form == "pairs":
            off = ~self._taught(batch)[:, None].expand(chosen.shape)[chosen]
            logs = logs.masked_fill(off[:, None], -torch.inf)
        return Soft(ids, logs)

    def distances(self, batch: Batch, hidden: Tensor, cache: Cache) -> dict[str, Tensor]:
        """Sums over the real positions of all rows that have a teacher: "hidden", "relations"."""
        sums: dict[str, Tensor] = {}
        for teacher, rows in self._groups(batch):
            ids = batch.extra.get("original", batch.ids)[rows]
            lengths, prefix, time = batch.lengths[rows], batch.prefix[rows], ids.shape[1]
            with torch.no_grad():
                theirs, states = teacher.model()(ids, teacher.mask, lengths, prefix)
            real = torch.arange(time, device=ids.device) < lengths[:, None]
            if self.config.hidden:
                found = hidden_distance(hidden[rows], theirs, real)
                sums["hidden"] = sums.get("hidden", 0.0) + found
            if self.config.relations:
                allowed = attention_mask(self.mask, time, 0, lengths, prefix, ids.device)
                if allowed is None:
                    allowed = torch.ones(time, time, dtype=torch.bool, device=ids.device).tril()
                keys, values = cache[-1]
                found = relation_distance(
                    (keys[rows], values[rows]), states[-1], self.config.relation_heads, allowed,
                    real,
                )  # fmt: skip
                sums["relations"] = sums.get("relations", 0.0) + found
        return sums

    @property
    def _online(self) -> bool:
        return bool(self.config.hidden or self.config.relations)

    def _taught(self, batch: Batch) -> Tensor:
        """Which rows have a teacher that is on: bool (batch,)."""
        on = torch.tensor([*self.on.values(), False], device=batch.ids.device)
        return on[batch.extra["way"]]

    def _rows(self, batch: Batch) -> Tensor:
        if "way" not in batch.extra:
            return torch.zeros(0, dtype=torch.int64, device=batch.ids.device)
        return self._taught(batch).nonzero()[:, 0]

    def _groups(self, batch: Batch) -> Iterator[tuple[Teacher, Tensor]]:
        """Each teacher with its rows."""
        rows = self._rows(batch).tolist() if self._online else []
        folders = [teacher.folder for teacher in self.teachers.values()]
        by_folder: dict[int, list[int]] = {}
        for row in rows:
            first = folders.index(folders[int(batch.extra["way"][row])])
            by_folder.setdefault(first, []).append(row)
        for first, mine in by_folder.items():
            teacher = list(self.teachers.values())[first]
            yield teacher, torch.tensor(mine, device=batch.ids.device)


def distiller_of(
    config: RunConfig, student: GPT, stream: Stream, tokenizer_file: Path, keeper: Keeper
) -> Distiller | None:
    """Opens the recipe's teachers and has the stream's batches carry what is needed of them.

    None if the recipe distils nothing.
    """
    if not config.distil.on:
        return None
    pairs, text = stream.pairs, stream.text
    ways = dict.fromkeys(
        way_of(shard, i) for shard in (pairs.shards if pairs else ()) if not shard.header.task
        for i in (pairs.directions_of(shard) if pairs else ())
    )  # fmt: skip
    codes = dict.fromkeys(config.data.languages if text else ())
    teachers = open_teachers(
        config.distil, [*sorted(ways), *codes], tokenizer_file, student.device
    )
    distiller = Distiller(config.distil, config.mask, teachers)
    distiller.check(student.config, config.data.max_tokens)
    kept = keeper if config.distil.words else None
    if pairs and ways.keys() & teachers.keys():
        pairs.teaching = PairTeaching(pairs, teachers, kept)
    if text and codes.keys() & teachers.keys():
        text.teaching = TextTeaching(text, teachers, kept)
        if kept is None and text.teaching.way < 0 and not pairs:
            raise ConfigError(
                "distil.teachers: rows of text hold several languages, so hidden and relations "
                f"need one teacher for all of {', '.join(codes)}"
            )
    return distiller
