"""Translations as `/v1` tells them: in one answer, or by events while they are made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from app.api.problems import detail
from app.api.schemas import (
    AlternativeAnswer,
    CandidateAnswer,
    DetectedAnswer,
    GlossaryAnswer,
    ItemErrorAnswer,
    QualityAnswer,
    SentenceQualityAnswer,
    TimingAnswer,
    TranslateAnswer,
    TranslationAnswer,
    UsageAnswer,
)
from app.engine.request import Timing
from app.tasks.job import Usage
from app.tasks.live import Drafted, LiveTranslation, Sentence, Translation
from app.tasks.report import Quality, SentenceQuality
from app.tasks.translate import TranslateResult
from app.text.detect import Detection

_LEAST = 0.001  # confidence of a candidate that is told


def answer_of(result: TranslateResult, model: str, glossary: bool) -> TranslateAnswer:
    return TranslateAnswer(
        translations=[_translation(one, glossary) for one in result.translations],
        usage=usage_of(result.usage),
        timing=timing_of(result.timing),
        model=model,
    )


async def events_of(
    live: LiveTranslation, model: str, glossary: bool, drafts: bool
) -> AsyncIterator[dict[str, Any]]:
    """Without `drafts` what is between sentences is not told by itself either."""
    async for event in live.events():
        if isinstance(event, Drafted):
            if drafts:
                yield {
                    "type": "token",
                    "index": event.index,
                    "sentence": event.sentence,
                    "offset": event.start,
                    "text": event.text,
                }
        elif isinstance(event, Sentence):
            yield _sentence_event(event)
        else:
            told = _translation(event.translation, glossary).model_dump()
            yield {"type": "translation", "index": event.index, **told}
    yield {
        "type": "done",
        "usage": usage_of(live.usage).model_dump(),
        "timing": timing_of(live.timing).model_dump(),
        "model": model,
    }


def detected_of(candidates: Sequence[Detection]) -> DetectedAnswer | None:
    """The first, with those that are not out of the question."""
    if not candidates:
        return None
    first = candidates[0]
    return DetectedAnswer(
        language=first.language,
        confidence=first.confidence,
        candidates=[
            CandidateAnswer(language=one.language, confidence=one.confidence)
            for one in candidates
            if one is first or one.confidence >= _LEAST
        ],
    )


def usage_of(usage: Usage) -> UsageAnswer:
    return UsageAnswer(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


def timing_of(timing: Timing) -> TimingAnswer:
    return TimingAnswer(
        queue_s=round(timing.queue_s, 6),
        prefill_s=round(timing.prefill_s, 6),
        decode_s=round(timing.decode_s, 6),
    )


def _sentence_event(event: Sentence) -> dict[str, Any]:
    start, end = event.source
    return {
        "type": "sentence",
        "index": event.index,
        "sentence": event.sentence,
        "source": {"start": start, "end": end},
        "target": {"start": event.start, "end": event.start + len(event.text)},
        "text": event.text,
        "quality": _sentence(event.quality).model_dump(),
    }


def _translation(result: Translation, glossary: bool) -> TranslationAnswer:
    error = result.error
    return TranslationAnswer(
        text=result.text,
        source=result.source,
        detected=detected_of(result.candidates),
        finish_reason=result.finish_reason,
        truncated=result.truncated,
        alternatives=[
            AlternativeAnswer(text=one.text, score=one.score) for one in result.alternatives
        ],
        quality=_quality(result.quality, glossary),
        error=ItemErrorAnswer(code=error.code, detail=detail(error), param=error.param)
        if error
        else None,
    )


def _quality(found: Quality, glossary: bool) -> QualityAnswer:
    return QualityAnswer(
        score=found.score,
        flags=list(found.flags),
        sentences=[_sentence(one) for one in found.sentences],
        glossary=GlossaryAnswer(hits=list(found.hits), misses=list(found.misses))
        if glossary
        else None,
    )


def _sentence(one: SentenceQuality) -> SentenceQualityAnswer:
    return SentenceQualityAnswer(
        score=one.score, flags=list(one.flags), lost=list(one.lost), method=one.method
    )
