"""How good a checkpoint is: bits per byte and perplexity of text, and translations of test sets.

Shards of held-out text flow in during training, folders of test sets afterwards; figures flow out.
Bits per byte does not depend on the vocabulary: losses in bits over the bytes of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from training.batches import IGNORED, Batch, PairRows, TextRows, way_of
from training.decode import beam
from training.errors import CheckpointError
from training.learner import Learner
from training.losses import Term, cross_entropy_sum
from training.mixture import Documents, Mixture
from training.model import GPT, MaskMode

# As the server translates; a test of export holds the two equal.
NO_REPEAT_NGRAM, NGRAM_REPEATS = 3, 3


def token_bytes(tokenizer: Tokenizer) -> torch.Tensor:
    """Bytes of text that each id stands for (vocabulary,); 0 for special tokens.

    In a byte-level vocabulary each character of a token's name is one byte.
    """
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    sizes = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            sizes[index] = len(token)
    return sizes


@torch.inference_mode()
def losses(
    model: GPT, batches: Iterable[Batch], sizes: torch.Tensor, mask: MaskMode, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """By the batches' tags: mean loss in nats per token, perplexity, and bits per byte."""
    sums: dict[str, list[float]] = {}
    for batch in batches:
        batch = batch.to(model.device)
        hidden, _ = model(batch.ids, mask=mask, lengths=batch.lengths, prefix=batch.prefix)
        chosen = batch.targets != IGNORED
        targets = batch.targets[chosen]
        total = cross_entropy_sum(
            hidden[chosen].float(), model.transformer["wte"].weight, targets, 0.0, dtype  # type: ignore[arg-type]
        )
        entry = sums.setdefault(batch.tag, [0.0, 0.0, 0.0])
        entry[0] += float(total)
        entry[1] += len(targets)
        entry[2] += float(sizes[targets.cpu()].sum())
    return {
        tag: {
            "loss": nats / tokens,
            "perplexity": math.exp(min(nats / tokens, 50.0)),
            "bits_per_byte": nats / math.log(2) / max(1.0, size),
        }
        for tag, (nats, tokens, size) in sums.items()
    }


def valid_batches(
    pairs: PairRows | None, text: dict[str, TextRows], batch_tokens: int, limit: int
) -> list[Batch]:
    """A fixed choice of held-out batches, tagged by direction or language."""
    batches: list[Batch] = []
    if pairs is not None:
        examples = pairs.choose(np.random.default_rng(0))
        by_tag: dict[str, list[np.ndarray]] = {}
        for example in examples:
            tag = way_of(pairs.shards[example[0]], int(example[2]))
            by_tag.setdefault(tag, []).append(example)
        for tag, rows in sorted(by_tag.items()):
            for group in pairs.batches(np.stack(rows[:limit]), batch_tokens):
                batches.append(pairs.collate(group, tag))
    for language, rows_of in sorted(text.items()):
        documents, starts = rows_of.choose(np.random.default_rng(0))
        order = np.arange(min((int(starts[-1]) - 1) // rows_of.width, limit), dtype=np.int64)
        size = max(1, batch_tokens // rows_of.width)
        for i in range(0, len(order), size):
            batches.append(rows_of.collate(documents, starts, order[i : i + size], language))
    return batches


def auxiliary_batches(
    mixture: Mixture, text: dict[str, TextRows], batch_tokens: int, limit: int
) -> list[Batch]:
    """A fixed choice of held-out rows for each auxiliary objective, tagged by language."""
    batches: list[Batch] = []
    for language, rows_of in sorted(text.items()):
        rng = np.random.default_rng(0)
        documents = Documents(rows_of, *rows_of.choose(rng))
        order = np.arange(min(documents.rows, limit))
        size = max(1, batch_tokens // rows_of.width)
        for form in mixture.auxiliary:
            for i in range(0, len(order), size):
                batches.append(mixture.make(form, documents, order[i : i + size], rng, language))
    return batches


@torch.inference_mode()
def auxiliary_figures(
    learner: Learner, batches: Iterable[Batch]
) -> dict[str, dict[str, float]]:
    """By the batches' tags: the mean loss of each objective, such as `masking_loss`, and where
    answers are right or wrong, `replaced_accuracy`, beside the share of originals `replaced_base`.
    """
    sums: dict[str, dict[str, Term]] = {}
    torch.manual_seed(0)  # for the generator's draws
    for batch in batches:
        entry = sums.setdefault(batch.tag, {})
        for name, term in learner(batch.to(learner.model.device)).items():
            entry[name] = entry[name].plus(term) if name in entry else term
    figures: dict[str, dict[str, float]] = {}
    for tag, terms in sums.items():
        figures[tag] = {}
        for name, term in terms.items():
            figures[tag][f"{name}_loss"] = float(term.total) / max(1, term.count)
            for kind, tally in term.tallies.items():
                figures[tag][f"{name}_{kind}"] = float(tally) / max(1, term.count)
    return figures


def flat(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """One level of keys for the log: `valid/en-de/bits_per_byte`."""
    return {f"valid/{t}/{k}": round(v, 5) for t, r in results.items() for k, v in r.items()}


@dataclass(frozen=True)
class Translator:
    """Translates lines, in order; `beam` 1 is greedy, as is the server's default."""

    folder: Path
    model: GPT
    tokenizer: Tokenizer
    template: list[str]
    mask: MaskMode
    batch: int
    beam: int
    length_penalty: float

    def __call__(self, lines: Sequence[str], source: str, target: str) -> list[tuple[str, str]]:
        """(text, finish reason) of each line."""
        return [(text, reason) for text, reason, _ in self.scored(lines, source, target)]

    def scored(
        self, lines: Sequence[str], source: str, target: str
    ) -> list[tuple[str, str, float]]:
        """(text, finish reason, mean log-probability a token, the end included) of each line."""
        prompts = [self._prompt(line, source, target) for line in lines]
        order = sorted(range(len(lines)), key=lambda i: len(prompts[i]))
        results = [("", "", 0.0)] * len(lines)
        context = self.model.config.context
        for start in range(0, len(order), self.batch):
            block = order[start : start + self.batch]
            found = beam(
                self.model, [prompts[i] for i in block],
                [min(3 * len(prompts[i]) + 32, context - len(prompts[i])) for i in block],
                self.beam, self.length_penalty, mask=self.mask,
                no_repeat_ngram=NO_REPEAT_NGRAM, ngram_repeats=NGRAM_REPEATS,
            )  # fmt: skip
            for i, (best,) in zip(block, found, strict=True):
                results[i] = (self.tokenizer.decode(list(best.ids)), best.reason, best.mean)
        return results

    def _prompt(self, line: str, source: str, target: str) -> list[int]:
        ids: list[int] = []
        for piece in self.template:
            if piece == "{text}":
                ids += self.tokenizer.encode(line, add_special_tokens=False).ids
                continue
            index = self.tokenizer.token_to_id(piece.format(source=source, target=target))
            if index is None:
                raise CheckpointError(f"checkpoint {self.folder}: no tag for {source}-{target}")
            ids.append(index)
        return ids


def checkpoint_translator(
    folder: Path, batch: int = 64, beam: int = 1, length_penalty: float = 1.0, task: str = "",
    device: torch.device | None = None,
) -> Translator:  # fmt: skip
    """A translator by a checkpoint, greedy or by beam search, `batch` lines at a time.

    With `task` it does this text-to-text task instead, whatever source and target it is given.
    Raises CheckpointError if the checkpoint is damaged or was not fine-tuned for it.
    """
    from training.checkpoint import load_checkpoint
    from training.tokenizer import load_tokenizer

    model, meta = load_checkpoint(folder)
    model.eval().to(device or torch.device("cpu"))
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    template = meta.get("templates", {}).get(f"task:{task}" if task else "translate")
    if not template:
        name = f"template for the task {task!r}" if task else "translation template"
        raise CheckpointError(f"checkpoint {folder}: meta.json has no {name}")
    mask = meta.get("mask", "causal")
    return Translator(folder, model, tokenizer, template, mask, batch, beam, length_penalty)


def checkpoint_text_loss(folder: Path) -> Callable[[Sequence[str]], tuple[float, int, int]]:
    """A measure of lines, each read as one document: bits, tokens and bytes in all.

    A line and its two end tokens are cut at the context, in tokens and bytes alike.
    """
    from training.checkpoint import load_checkpoint
    from training.tokenizer import load_tokenizer

    model, _ = load_checkpoint(folder)
    model.eval()
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    sizes = token_bytes(tokenizer)

    @torch.inference_mode()
    def measure(texts: Sequence[str]) -> tuple[float, int, int]:
        nats, tokens, size = 0.0, 0, 0
        for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
            row = torch.tensor([[0, *encoding.ids, 0][: model.config.context]])
            row = row.to(model.device)
            hidden, _ = model(row[:, :-1])
            nats += float(F.cross_entropy(model.logits(hidden[0]), row[0, 1:], reduction="sum"))
            tokens += row.shape[1] - 1
            size += int(sizes[row[0, 1:].cpu()].sum())
        return nats / math.log(2), tokens, size

    return measure
