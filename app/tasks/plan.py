"""From a request's texts to items and pieces for the model.

Each text is an item: its language is detected if asked for, and it is cut into pieces that the
model can take. Where a request wants an answer for each item, one that cannot be translated is an
item with its error, and its neighbours are as they would be without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from app.bundle import Manifest
from app.errors import InvalidField, TooLong, UnknownLanguage
from app.tasks.inputs import INLINE_CHARACTERS, TaskLimits, check_each, check_texts, names
from app.tasks.languages import served
from app.tasks.options import TranslateOptions
from app.tasks.pieces import Item, Piece, Unit, bare, lay_out, read
from app.text.chinese import (
    SIMPLIFIED,
    TRADITIONAL,
    Variant,
    certain,
    is_traditional,
    known_as,
    offered,
    variants,
)
from app.text.detect import Detection, Detector
from app.text.glossary import Glossary
from app.text.protect import Protected
from app.text.quality import readable, scripts_of
from app.text.segment import translatable
from app.text.tokenizer import TextTokenizer

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """`target` as it is asked for, `language` as the model knows it."""

    target: str
    language: str
    variant: Variant | None
    options: TranslateOptions
    prefix: tuple[int, ...]
    begin: str  # what the prefix is in the model's output
    items: list[Item] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    def written(self, number: int, output: str, growing: bool = False) -> str:
        """An output of piece `number` as the target is written; of a growing one what is certain.

        The prefix stays as it was given.
        """
        if self.variant is None:
            return output
        begin = self.begin if self.pieces[number].forced else ""
        if not output.startswith(begin):
            return "" if growing else self.variant.from_model(output)
        rest = output[len(begin) :]
        rest = self.variant.from_model(rest[: certain(rest)] if growing else rest)
        return self.options.prefix.strip() + rest if begin else rest


class Planner:
    """Plans for a tokenizer and a bundle's pairs."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        detector: Detector,
        manifest: Manifest,
        limits: TaskLimits,
    ) -> None:
        self._tokenizer = tokenizer
        self._detector = detector
        self._languages = manifest.languages
        self._offered = offered(manifest.languages)
        self._variants = variants(manifest.languages)
        self._pairs = frozenset(manifest.pairs)
        self._via = manifest.via
        self._scripts = scripts_of(manifest.languages)
        self._limits = limits

    def pair(self, source: str, target: str, unchanged: bool = False) -> tuple[str, str]:
        """The offered codes that are meant; `auto` stays what it is."""
        ends = {t for _, t in self._pairs}
        targets = sorted(code for code in self._offered if self._known(code) in ends)
        found = served(target, targets)
        if found is None:
            raise UnknownLanguage(
                f"target {target!r} is not served; served are {_listed(targets)}", param="target"
            )
        sources = [code for code in self._offered if self.leads(code, found, unchanged)]
        origin = AUTO if source.casefold() == AUTO else served(source, sources)
        if origin is None:
            raise UnknownLanguage(
                f"source {source!r} is not served for target {target!r}; "
                f"served are {_listed([AUTO, *sources])}",
                param="source",
            )
        return origin, found

    async def plan(
        self,
        texts: str | Sequence[str],
        source: str,
        target: str,
        options: TranslateOptions,
        param: str,
        unchanged: bool,
        each: bool,
        charge: Callable[[int], None],
    ) -> Plan:
        """See `Translator.start`."""
        source, target = self.pair(source, target, unchanged)
        self.check_glossary(options.glossary, source, target)
        if options.search and options.beam > self._limits.slots:  # before a first leg, without one
            raise InvalidField(
                f"beam is {options.beam}: this server has {self._limits.slots} slots", param="beam"
            )
        each = each and not isinstance(texts, str)
        items: Sequence[str | InvalidField]
        check = check_each if each else check_texts
        items = check(texts, self._limits, param)
        if not unchanged and not any(isinstance(i, InvalidField) or i.strip() for i in items):
            raise InvalidField(f"{param} is empty: there is nothing to translate", param=param)
        fields = names(texts, param)
        if options.prefix and not isinstance(texts, str):
            raise InvalidField("prefix belongs to one text: text is an array", param="prefix")
        check_texts(options.prefix, self._limits, "prefix")
        work = (items, fields, source, target, options, each)
        size = sum(len(item) for item in items if isinstance(item, str))
        charge(size)
        if size + len(options.prefix) > INLINE_CHARACTERS:
            return await asyncio.to_thread(self._plan, *work)
        return self._plan(*work)

    def ranked(self, text: str, target: str) -> list[Detection]:
        """The languages that a text may be in which is to be translated, or is in the target
        language already: it is answered unchanged then."""
        goal = self._known(target)
        among = [c for c in self._languages if (c, goal) in self._pairs or c == goal]
        return self._detector.ranked(text, among)

    def _known(self, code: str) -> str:
        return known_as(code, self._languages)

    def leads(self, source: str, target: str, unchanged: bool = False) -> bool:
        """Whether there is a way; between the scripts of Chinese it needs no model."""
        ends = self._known(source), self._known(target)
        same = unchanged or (source in self._variants) != (target in self._variants)
        return ends in self._pairs or (same and ends[0] == ends[1])

    def check_glossary(self, glossary: Glossary, source: str, target: str) -> None:
        """A stored one is of this pair."""
        if glossary.languages is None:
            return
        wanted = [self._known(code) for code in glossary.languages]
        given = [self._known(source), self._known(target)]
        if wanted[1] != given[1] or (source != AUTO and wanted[0] != given[0]):
            raise InvalidField(
                f"glossary {glossary.name!r} is from {glossary.languages[0]!r} to "
                f"{glossary.languages[1]!r}, the request from {source!r} to {target!r}",
                param="glossary",
            )

    def suits(self, glossary: Glossary, source: str) -> bool:
        """Whether it is for texts in that language; a stored one is for its own only."""
        languages = glossary.languages
        return languages is None or self._known(languages[0]) == self._known(source)

    def _plan(
        self,
        items: Sequence[str | InvalidField],
        fields: Sequence[str],
        source: str,
        target: str,
        options: TranslateOptions,
        each: bool,
    ) -> Plan:
        variant = self._variants.get(target)
        # Words bring the space before them: one behind the prefix would belong to the next word.
        begin = options.prefix.strip()
        begin = variant.to_model(begin) if variant else begin
        prefix = self._tokenizer.encode(begin, param="prefix")
        begin = self._tokenizer.decode(prefix).strip()
        plan = Plan(target, self._known(target), variant, options, tuple(prefix), begin)
        for item, param in zip(items, fields, strict=True):
            plan.items.append(self._item_or_error(item, param, source, plan, each))
        if prefix and not plan.pieces:
            raise InvalidField("prefix is given, and text needs no translation", param="prefix")
        return plan

    def _item_or_error(
        self, item: str | InvalidField, param: str, source: str, plan: Plan, each: bool
    ) -> Item:
        begin = len(plan.pieces)
        try:
            if isinstance(item, InvalidField):
                raise item
            return self._item(item, param, source, plan)
        except InvalidField as error:
            if not each:
                raise
            if begin and isinstance(item, str):  # too many before it, or too much by itself?
                self._alone(item, param, source, plan, error)
            del plan.pieces[begin:]
            return Item("", "" if source == AUTO else source, (), False, (), error)

    def _alone(
        self, text: str, param: str, source: str, plan: Plan, error: InvalidField
    ) -> None:
        """Raise the error if the text has it only in this company."""
        try:
            self._item(text, param, source, replace(plan, items=[], pieces=[]))
        except InvalidField:
            return
        raise error

    def _item(self, text: str, param: str, source: str, plan: Plan) -> Item:
        parts = read(text, plan.options.format, param)
        words = " ".join(bare(p, p.text) for p in parts if isinstance(p, Protected))
        candidates = []
        if source == AUTO:
            candidates = self.ranked(words, plan.language)
            source = candidates[0].language
        script = self._variants.get(source)
        if source == SIMPLIFIED and self._variants and is_traditional(words):
            script = self._variants[TRADITIONAL]
        glossary = self._glossary(source, script, plan)
        units = tuple(
            part
            if isinstance(part, str)
            else self._unit(part, param, (self._known(source), script, glossary), plan)
            for part in parts
        )
        item = Item(text, source, tuple(candidates), plan.options.format != "text", units)
        if self._known(source) == plan.language and bool(script) != bool(plan.variant):
            return _rewritten(item, parts, script, plan.variant)
        return item

    def _readable(self, piece: str) -> bool:
        """Whether it has words, and in a script that the model knows."""
        return translatable(piece) and readable(piece, self._scripts)

    def _glossary(self, source: str, script: Variant | None, plan: Plan) -> Glossary:
        """The request's, as the model reads and writes it; a stored one for its language only."""
        found = plan.options.glossary
        if not self.suits(found, source):
            return Glossary()
        variant = plan.variant
        if found.languages:  # its terms may be in another script than the request's texts
            script, variant = (
                one or self._variants.get(code)
                for one, code in zip((script, variant), found.languages, strict=True)
            )
        if found.pairs and (script or variant):
            return found.scripted(_way(script), _way(variant))
        return found

    def _unit(
        self, text: Protected, param: str, origin: tuple[str, Variant | None, Glossary], plan: Plan
    ) -> Unit:
        source, script, glossary = origin
        convert = _way(script)
        overhead = self._tokenizer.overhead("translate")
        # a third for the source leaves twice as much for the output
        limit = min(
            (self._limits.context - overhead) // 3, self._limits.max_prompt_tokens - overhead
        )
        most = max(self._limits.max_pieces // plan.options.beam, 1)
        layout = lay_out(text, source, lambda piece: self._tokenizer.count(convert(piece)) <= limit)
        numbers: list[int | None] = []
        for piece in layout.pieces:
            if (source, plan.language) not in self._pairs or not self._readable(piece):
                numbers.append(None)
                continue
            numbers.append(len(plan.pieces))
            forced = () if plan.pieces else plan.prefix
            own = Protected(convert(piece), text.spans)
            tokens = self._tokenizer.count(bare(own, own.text))
            languages = source, plan.language
            via = self._via.get(f"{source}-{plan.language}")
            plan.pieces.append(Piece(own, param, languages, tokens, forced, glossary, via))
            if len(plan.pieces) > most:
                raise TooLong(
                    f"{param} has more than {most} sentences and lines in all", param=param
                )
        return Unit(text, layout, tuple(numbers))


def _way(variant: Variant | None) -> Callable[[str], str]:
    return variant.to_model if variant else str


def _rewritten(
    item: Item, parts: Sequence[str | Protected], source: Variant | None, target: Variant | None
) -> Item:
    """The item in the other script of its language."""
    to, of = _way(source), target.from_model if target else str
    raw = "".join(
        part if isinstance(part, str) else part.restore(of(to(part.text)), item.escape)
        for part in parts
    )
    return replace(item, raw=raw)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(repr(value) for value in values) or "none"
