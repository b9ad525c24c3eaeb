"""The auxiliary objectives of pretraining, each in one place; every one ends in a `Term`.

Hidden states under the full attention mask flow in. Restoring hidden tokens and filling a hole need
no function here: both are the cross-entropy of losses.py at other places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import IGNORED, Batch
from training.losses import BLOCK, Term, cross_entropy_sum


def hidden_tokens(batch: Batch) -> Tensor:
    """Where tokens are hidden for the generator to fill in: flags (batch, time)."""
    return (batch.ids != batch.targets) & (batch.targets != IGNORED)


def filled_in(
    batch: Batch, generator: nn.Module, embedding: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Term]:
    """The batch's ids (batch, time) with the generator's draws for the hidden tokens, and its own
    loss there (Clark et al. 2020). Draws are at temperature 1; no gradient flows through them."""
    hidden = hidden_tokens(batch)
    embedding = embedding.detach()
    states = generator(batch.ids, batch.lengths, embedding)[hidden].float()  # (n, width)
    targets = batch.targets[hidden]
    total = cross_entropy_sum(states, embedding, targets, 0.0, dtype)
    ids = batch.ids.clone()
    with torch.no_grad():
        drawn = [
            torch.multinomial((part.to(dtype) @ embedding.to(dtype).t()).float().softmax(-1), 1)
            for part in states.split(BLOCK)
        ]
        ids[hidden] = torch.cat([targets[:0], *(part[:, 0] for part in drawn)])
    return ids, Term(total, len(targets))


def replaced_term(ids: Tensor, targets: Tensor, hidden: Tensor, head: nn.Module) -> Term:
    """Which tokens are original: `ids` as shown, `targets` as they were (IGNORED: not judged), both
    (batch, time); a replacement that is the same token counts as original."""
    judged = targets != IGNORED
    original = ids[judged] == targets[judged]
    scores = head(hidden[judged])[:, 0].float()
    return _binary(scores, original, base=original.sum())


def next_sentence_term(follows: Tensor, hidden: Tensor, head: nn.Module) -> Term:
    """Whether the second segment follows the first (batch,), by the hidden state of each row's
    first token (Devlin et al. 2019)."""
    return _binary(head(hidden[:, 0])[:, 0].float(), follows)


def _binary(scores: Tensor, truth: Tensor, **tallies: Tensor) -> Term:
    total = F.binary_cross_entropy_with_logits(scores, truth.float(), reduction="sum")
    return Term(total, len(scores), {"accuracy": ((scores > 0) == truth).sum(), **tallies})
