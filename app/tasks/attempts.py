"""Ways to translate one piece, and which of their results is taken.

The first attempt has stand-ins for protected words. What comes out is judged; where it is flagged,
the same is searched by beam, with other stand-ins too, and the result with the least grave flags is
taken, the former of two alike. If protected words are still lost, the text between them is
translated part by part, so that they always survive. Numbers that are merely wrong are put right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.engine.request import Beam, Finished, Hypothesis, Request, Sampling, Token
from app.tasks.inputs import TaskLimits
from app.tasks.job import unheard
from app.tasks.pieces import Piece, bare
from app.tasks.shortlist import Shortlist
from app.text import numbers
from app.text.protect import Builder, Protected, Span, is_private, public
from app.text.quality import FLAGS, Flag, flags, in_order, unlooped
from app.text.segment import spaced, translatable
from app.text.standins import Masked, mask, segments, unmask
from app.text.tokenizer import TextTokenizer

Method = Literal["first", "beam", "segments"]
# Greedy; a translation that falls into a loop would otherwise run to its limit. Three times are
# free and the source's own repetitions are followed: numbers and emoji repeat their tokens rightly.
SAMPLING = Sampling(no_repeat_ngram=3, ngram_repeats=3)
_STOPS = ".!?。！？…"


@dataclass(frozen=True, slots=True)
class Attempt:
    """`parts` are literal text and what goes to the model, in turn; `text` explains both.

    A piece that goes through another language has two legs: of the second, `middle` goes to the
    model, what the first has made of those parts.
    """

    piece: int
    text: Protected
    parts: tuple[str | Masked, ...]
    method: Method
    leg: int = 0
    middle: tuple[str, ...] = ()
    cut: bool = False  # the first leg was
    score: float | None = None  # of the first leg

    def sent(self) -> list[str]:
        """Texts for the model."""
        return list(self.middle) or [part.text for part in self.parts if isinstance(part, Masked)]


@dataclass(frozen=True, slots=True)
class Candidate:
    text: Protected
    output: str  # with private characters
    method: Method
    score: float | None  # mean log-probability of a token, of the weaker leg
    tokens: int
    flags: tuple[Flag, ...]
    lost: tuple[str, ...]  # protected words that are missing or there twice
    hits: frozenset[str]  # terms of the glossary
    misses: frozenset[str]
    repaired: bool = False
    hypotheses: tuple[tuple[str, float], ...] = ()  # outputs and their scores, best first

    @property
    def rank(self) -> tuple[object, ...]:
        """Less is better."""
        return len(self.lost), len(self.misses), [flag in self.flags for flag in FLAGS]


class Attempts:
    """Makes attempts for pieces, requests for attempts, and candidates of what they bring."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        limits: TaskLimits,
        shortlist: Shortlist | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._shortlist = shortlist
        self._limits = limits

    def first(self, i: int, piece: Piece) -> Attempt:
        masked = mask(piece.text, piece.languages[0])
        if masked is None:
            return self.parted(i, piece)
        return Attempt(i, piece.text, (masked,), "first")

    def again(self, i: int, piece: Piece, found: Candidate) -> list[Attempt]:
        """By beam: as before, with other stand-ins, with stand-ins for numbers and terms too."""
        source = piece.languages[0]
        ways = [(piece.text, 0)]
        if found.lost:
            ways.append((piece.text, 1))
        if found.misses or "numbers" in found.flags:
            ways.append((self._more(piece, found), 0))
        masked = [(text, mask(text, source, turn)) for text, turn in ways]
        return [Attempt(i, text, (one,), "beam") for text, one in masked if one]

    def parted(self, i: int, piece: Piece) -> Attempt:
        """The text between protected words alone."""
        parts: list[str | Masked] = []
        wide = spaced(piece.languages[1]) and not spaced(piece.languages[0])
        for number, part in enumerate(segments(piece.text)):
            if number % 2:
                parts.append(part)
                continue
            body = part.strip()
            masked = None
            if translatable(body):
                masked = mask(Protected(body, piece.text.spans), piece.languages[0])
            if masked is None:
                parts.append(part)
                continue
            start = part.index(body)
            parts += (part[:start] or " " * (wide and number > 0), masked)
            last = number == 2 * sum(map(piece.text.is_word, piece.text.text))
            parts.append(part[start + len(body) :] or " " * (wide and not last))
        return Attempt(i, piece.text, tuple(parts), "segments")

    def requests(self, attempt: Attempt, piece: Piece, beam: Beam | None) -> list[Request]:
        """Of the attempt's leg; the search by beam and what the output begins with are the last's.
        """
        requests: list[Request] = []
        languages, last = piece.legs[attempt.leg], not self.goes_on(attempt, piece)
        for text in attempt.sent():
            ids = self._tokenizer.encode(text, param=piece.param)
            prompt = self._tokenizer.translation_prompt(*languages, ids)
            forced = piece.forced if last and not requests else ()
            # a weak model goes on from a part of a sentence, and what loops is not worth more
            wide = attempt.method == "first" or not last
            free = 3 * len(ids) + 32 if wide else 2 * len(ids) + 8
            room = min(free + len(forced), self._limits.context - len(prompt))
            listed = self._shortlist
            among = listed.candidates(*languages, ids) if listed else None
            requests.append(
                Request(prompt, room, unheard, self._tokenizer.end_ids, SAMPLING, forced=forced,
                        beam=beam if last else None, candidates=among)  # fmt: skip
            )
        return requests

    def goes_on(self, attempt: Attempt, piece: Piece) -> bool:
        """Whether another leg follows."""
        return attempt.leg + 1 < len(piece.legs)

    def onward(
        self, attempt: Attempt, piece: Piece, told: Sequence[tuple[Sequence[Token], Finished]]
    ) -> Attempt:
        """The next leg from what the last has brought, as far as there is room for it."""
        most = (self._limits.context - self._tokenizer.overhead("translate")) // 2
        middle, cut = [], attempt.cut
        for text, (tokens, end) in zip(attempt.sent(), told, strict=True):
            ids = [token.id for token in tokens]
            cut = cut or end.reason == "length" or len(ids) > most
            found = self._output(attempt, text, ids[:most])
            middle.append(found or text)
        score = _mean([token.logprob for tokens, _ in told for token in tokens])
        return replace(attempt, leg=attempt.leg + 1, middle=tuple(middle), cut=cut, score=score)

    def _output(self, attempt: Attempt, sent: str, ids: Sequence[int]) -> str:
        text = public(self._tokenizer.decode(ids)).strip()
        if attempt.method == "segments" and sent[-1:] not in _STOPS:
            return text.rstrip(_STOPS)
        return text

    def candidates(
        self, attempt: Attempt, piece: Piece, told: Sequence[tuple[Sequence[Token], Finished]]
    ) -> list[Candidate]:
        """One for each hypothesis, best first; of several requests one of their best."""
        if len(told) == 1 and told[0][1].hypotheses:
            (_, end), = told
            return [
                self._candidate(
                    attempt, piece, [(h.ids, h.logprobs)], attempt.cut or h.reason == "length"
                )
                for h in end.hypotheses
            ]
        ran = [([t.id for t in tokens], [t.logprob for t in tokens]) for tokens, _ in told]
        cut = attempt.cut or any(end.reason == "length" for _, end in told)
        return [self._candidate(attempt, piece, ran, cut)]

    def _candidate(
        self,
        attempt: Attempt,
        piece: Piece,
        told: Sequence[tuple[Sequence[int], Sequence[float]]],
        cut: bool,
    ) -> Candidate:
        outputs = zip(attempt.sent(), told, strict=True)
        parts: list[str] = []
        for part in attempt.parts:
            if isinstance(part, str):
                parts.append(part)
                continue
            sent, (ids, _) = next(outputs)
            parts.append(unmask(part, self._output(attempt, sent, ids)).text)
        logprobs = [value for _, values in told for value in values]
        means = attempt.score, _mean(logprobs[len(piece.forced) :])  # what was given is certain
        score = min((mean for mean in means if mean is not None), default=None)
        found = Candidate(attempt.text, "".join(parts), attempt.method, score,
                          len(logprobs), (), (), frozenset(), frozenset())  # fmt: skip
        return self._judged(found, piece, cut)

    def _judged(self, found: Candidate, piece: Piece, cut: bool) -> Candidate:
        output = bare(found.text, found.output)
        lost = _lost(piece.text, found.output)
        hits, misses = piece.glossary.check(piece.bare, output)
        signs = {*flags(piece.bare, output, piece.languages, (piece.tokens, found.tokens),
                        found.score, cut)}  # fmt: skip
        if lost:
            signs.add("spans")
        if misses:
            signs.add("glossary")
        return replace(found, flags=in_order(signs), lost=lost, hits=frozenset(hits - misses),
                       misses=frozenset(misses))  # fmt: skip

    def repaired(self, found: Candidate, piece: Piece, loops: bool) -> Candidate:
        """With its wrong numbers put right, if it is plain which are meant; with `loops` without
        its endless repetition first."""
        return self._numbered(self._unlooped(found, piece) if loops else found, piece)

    def _unlooped(self, found: Candidate, piece: Piece) -> Candidate:
        """What is far too long as well; its flags stay, for what is left is no whole translation.
        Marks and protected words, and what the output was to begin with, are never taken out."""
        if "repetition" not in found.flags or not {"truncated", "length"} & {*found.flags}:
            return found
        left = None if piece.forced else unlooped(found.text.text, found.output)
        if left is None or _privates(left) != _privates(found.output):
            return found
        again = self._judged(replace(found, output=left, repaired=True), piece, False)
        return replace(again, flags=in_order({*found.flags, *again.flags}))

    def _numbered(self, found: Candidate, piece: Piece) -> Candidate:
        if "numbers" not in found.flags or found.text is not piece.text:
            return found

        def right(output: str) -> str | None:
            return numbers.repaired(piece.text.text, output, piece.languages)

        output = right(found.output)
        if output is None:
            return found
        left = tuple(flag for flag in found.flags if flag != "numbers")
        others = tuple((right(text) or text, score) for text, score in found.hypotheses)
        return replace(found, output=output, flags=left, hypotheses=others, repaired=True)

    def _more(self, piece: Piece, found: Candidate) -> Protected:
        """The piece with the missing numbers and terms protected as well."""
        text = piece.text.text
        places: list[tuple[int, int, Span]] = []
        if found.misses:
            places += [(start, end, Span(target, "term"))
                       for start, end, target in piece.glossary.find(text)]  # fmt: skip
        if "numbers" in found.flags:
            places += [(n.start, n.end, Span(n.localised(piece.languages), "number"))
                       for n in numbers.find(text, piece.languages[0])]  # fmt: skip
        builder = Builder(piece.param, piece.text.spans)
        at = 0
        for start, end, span in sorted(places, key=lambda place: place[:2]):
            if start >= at:
                builder.text(text[at:start])
                builder.text(builder.private(span))
                at = end
        builder.text(text[at:])
        return builder.done()


def scored(candidates: Sequence[Candidate], hypotheses: Sequence[Hypothesis]) -> Candidate:
    """The first that keeps all protected words, else the first; with all others that do."""
    kept = [i for i, one in enumerate(candidates) if not one.lost] or list(range(len(candidates)))
    found = tuple((candidates[i].output, hypotheses[i].score) for i in kept) if hypotheses else ()
    return replace(candidates[kept[0]], hypotheses=found)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _privates(text: str) -> list[str]:
    return [char for char in text if is_private(char)]


def _lost(text: Protected, output: str) -> tuple[str, ...]:
    there = Counter(output)
    return tuple(
        text.span(char).raw for char in text.text if text.is_word(char) and there[char] != 1
    )
