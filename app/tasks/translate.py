"""Texts in, translations out, in order, with their layout and with word of their quality.

A request's texts become a plan of items and pieces (`app.tasks.plan`), all pieces of all items go
to the engine together, what is flagged goes there again (`app.tasks.rounds`), and the outputs are
put back between what was not translated (`app.tasks.live`). Nothing is cut silently: a piece whose
output reached the limit makes its item `truncated`. By beam search an item can have several
translations: the first is made of the best one of each piece, the next of the second best, ...
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from app.bundle import Manifest
from app.engine.request import Timing, Token
from app.metrics import Metrics
from app.tasks.attempts import Attempts
from app.tasks.inputs import TaskLimits, free
from app.tasks.job import Deadline, EngineLike, Usage
from app.tasks.live import Drafted, LiveTranslation, Translated, Translation
from app.tasks.options import BOUNDS, PLAIN, TranslateOptions
from app.tasks.plan import AUTO, Plan, Planner
from app.tasks.rounds import Rounds
from app.tasks.shortlist import Shortlist
from app.tasks.streams import Draft
from app.text.detect import Detection, Detector
from app.text.glossary import Glossary
from app.text.protect import is_private
from app.text.tokenizer import TextTokenizer

__all__ = ["AUTO", "BOUNDS", "PLAIN", "TranslateOptions", "TranslateResult", "Translation",
           "Translator"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class TranslateResult:
    translations: list[Translation]
    usage: Usage
    timing: Timing


class Translator:
    """The task `translate` over an engine, a tokenizer and a bundle's pairs.

    Without `retry` nothing is tried again, whatever a request says.
    """

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: TextTokenizer,
        detector: Detector,
        manifest: Manifest,
        limits: TaskLimits,
        metrics: Metrics,
        retry: bool = True,
        shortlist: Shortlist | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._planner = Planner(tokenizer, detector, manifest, limits)
        self._limits = limits
        self._metrics = metrics
        self._retry = retry
        self._attempts = Attempts(tokenizer, limits, shortlist)
        self._charge: Callable[[int], None] = free

    def pair(self, source: str, target: str, unchanged: bool = False) -> tuple[str, str]:
        """The offered codes that are meant; `auto` stays what it is."""
        return self._planner.pair(source, target, unchanged)

    def leads(self, source: str, target: str) -> bool:
        """Whether texts can be translated from one offered code to another."""
        return self._planner.leads(source, target)

    def detect(self, text: str, target: str) -> Detection:
        """The language of a text that is to be translated, or is in the target language already."""
        return self._planner.ranked(text, target)[0]

    def check_glossary(self, glossary: Glossary, source: str, target: str) -> None:
        """Raises InvalidField if it is not of this pair."""
        self._planner.check_glossary(glossary, source, target)

    def suits(self, glossary: Glossary, source: str) -> bool:
        """Whether the glossary is for texts in the language that was detected."""
        return self._planner.suits(glossary, source)

    def metered(self, charge: Callable[[int], None]) -> Translator:
        """The same, with the characters of each request told before it is worked on."""
        other = copy.copy(self)
        other._charge = charge
        return other

    def prepaid(self, characters: int) -> Translator:
        """The same, with the characters of all of its requests told now."""
        self._charge(characters)
        return self.metered(free)

    async def run(
        self,
        texts: str | Sequence[str],
        source: str,
        target: str,
        deadline: Deadline,
        progress: Callable[[int, int], None] | None = None,
        options: TranslateOptions = PLAIN,
        *,
        param: str = "text",
        unchanged: bool = False,
        each: bool = False,
    ) -> TranslateResult:
        """Translate; `progress` is called with the pieces done and the pieces in all.

        Errors name the texts `param`. With `unchanged`, blank texts alone and a language into
        itself are no error: such texts come back as they are. With `each`, a text of several that
        cannot be translated is a translation with an error.
        """
        live = await self.start(
            texts, source, target, deadline, options, progress=progress, param=param,
            unchanged=unchanged, each=each, drafts=False,
        )  # fmt: skip
        translations = [
            event.translation async for event in live.events() if isinstance(event, Translated)
        ]
        return TranslateResult(translations, live.usage, live.timing)

    async def start(
        self,
        texts: str | Sequence[str],
        source: str,
        target: str,
        deadline: Deadline,
        options: TranslateOptions = PLAIN,
        *,
        progress: Callable[[int, int], None] | None = None,
        param: str = "text",
        unchanged: bool = False,
        each: bool = False,
        drafts: bool = True,
    ) -> LiveTranslation:
        """As `run`, told while it is made; with `drafts` also what the model is writing, where it
        writes a plain text and no beam searches."""
        plan = await self._planner.plan(
            texts, source, target, options, param, unchanged, each, self._charge
        )
        retry = self._retry and options.retry
        drafted: list[Draft] = []
        if drafts and options.search is None and options.format == "text":
            drafted = [self._draft(plan, i) for i in range(len(plan.pieces))]

        def hear(i: int, token: Token) -> None:
            drafted[i].push(token.id)

        rounds = Rounds(
            self._engine, self._attempts, plan.pieces, options, self._limits, deadline, retry,
            hear if drafted else None, progress,
        )  # fmt: skip
        return LiveTranslation(plan, rounds, drafted, retry, self._metrics)

    async def stream(
        self,
        text: str,
        source: str,
        target: str,
        deadline: Deadline,
        options: TranslateOptions = PLAIN,
    ) -> AsyncIterator[str]:
        """The translation of one text, in order, as it becomes certain."""
        live = await self.start(text, source, target, deadline, options)
        whole = told = ""
        async for event in live.events():
            if isinstance(event, Translated):
                whole = event.translation.text
            else:
                whole = whole[: event.start] + event.text
                if isinstance(event, Drafted) and not event.firm:
                    continue
            yield whole[len(told) :]
            told = whole

    def _draft(self, plan: Plan, i: int) -> Draft:
        plain = not any(map(is_private, plan.pieces[i].text.text))
        detokenizer = self._tokenizer.detokenizer() if plain else None
        return Draft(detokenizer, partial(plan.written, i))
