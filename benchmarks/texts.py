"""Sentences and prompts to measure with: natural words, lengths as in real traffic, by a seed.

A number and a seed flow in; English sentences flow out, their lengths in words log-normal around 13
(a file of lines can take their place), or prompts as token ids, 12 to 31 of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from app.bundle import Bundle

CLAUSES = (
    "the train to the city leaves at half past seven", "my sister has bought a new house",
    "two children are playing football in the park", "we would like to order a bottle of water",
    "the weather will be cold and rainy tomorrow", "he does not know where his keys are",
    "the government has promised more money for schools", "a man in a red jacket is reading",
    "nobody had expected such a large number of guests", "please close the window",
    "the meeting was moved to next Friday", "an old woman is selling flowers at the market",
    "the museum is closed on Mondays", "they have been living here for twenty years",
    "our company makes small parts for cars and trains", "the doctor told him to rest for a week",
    "she wrote a long letter to her grandmother", "the price of bread has risen again",
    "scientists have found a new kind of fish in the lake", "the dog is running along the beach",
    "you can pay by card or in cash", "the report describes the results of last year",
    "many young people are moving to the north", "the bridge was built in the last century",
    "I have never seen anything like this before", "the teacher explains the exercise once more",
    "it is getting late", "three women are sitting on a bench in front of a church",
    "the new law will come into force in January", "a boy in a blue shirt jumps into the water",
)  # fmt: skip
LINKS = (" and ", ", but ", " because ", ", while ", ", so ")
MEDIAN_WORDS, SPREAD, WORDS = 13.0, 0.45, (3, 45)
PROMPT_TOKENS = (12, 31)
BATCHES = (1, 8, 32)  # rows


def sentences(count: int, seed: int, file: Path | None = None) -> list[str]:
    """So many sentences; of a file, its lines in an order of the seed's, repeated as needed."""
    rng = np.random.default_rng(seed)
    if file is not None:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [lines[i] for i in rng.integers(0, len(lines), count)]
    lengths = rng.lognormal(np.log(MEDIAN_WORDS), SPREAD, count).clip(*WORDS)
    return [_sentence(rng, int(length)) for length in lengths]


def _sentence(rng: np.random.Generator, words: int) -> str:
    """Whole clauses until it is about so many words long."""
    text = CLAUSES[rng.integers(len(CLAUSES))]
    if words < len(text.split()) // 2:
        text = " ".join(text.split()[-max(words, 3) :])
    while len(text.split()) + 4 <= words:
        text += LINKS[rng.integers(len(LINKS))] + CLAUSES[rng.integers(len(CLAUSES))]
    return text[0].upper() + text[1:] + "."


def prompts(bundle: Bundle, count: int, seed: int) -> list[list[int]]:
    """Translation prompts of 12 to 31 tokens: running text between the task's own tokens."""
    tokens, rng = bundle.manifest.tokens, np.random.default_rng(seed)
    codes = sorted(tokens.languages)
    text = " ".join(sentences(4 * count, seed))
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    made, at = [], 0
    for size in rng.integers(PROMPT_TOKENS[0], PROMPT_TOKENS[1] + 1, count):
        head = [tokens.languages[codes[0]].source, tokens.languages[codes[-1]].target]
        body = ids[at : at + int(size) - 3]
        at += len(body)
        made.append([*head, *body, tokens.separator])
    return made
