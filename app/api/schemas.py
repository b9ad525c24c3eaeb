"""Bodies of the requests and answers of `/v1/*`.

Requests are strict: an unknown field, a string for a number or a number out of range is an error
that names the field. `TAGS` are the names that pydantic puts into error locations for the two
forms of a text; problems leave them out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from app.tasks.generate import BIAS, BOUNDS, MAX_BIASES, MAX_STOP_LENGTH, MAX_STOPS
from app.tasks.glossaries import NAME
from app.tasks.inputs import Bounds
from app.tasks.options import BOUNDS as TRANSLATE_BOUNDS
from app.text.glossary import MAX_TERMS
from app.text.quality import Flag

TAGS = frozenset({"<string>", "<array>", "<name>", "<terms>"})


def within(bounds: Bounds) -> Any:
    """The bounds that the task sets for an option."""
    if bounds.above:
        return Field(gt=bounds.low, le=bounds.high)
    return Field(ge=bounds.low, le=bounds.high)


def _form(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<array>" if isinstance(value, list) else None


_either = Discriminator(
    _form,
    custom_error_type="string_or_array",
    custom_error_message="Input should be a string or an array of strings",
)
Texts = Annotated[Annotated[str, Tag("<string>")] | Annotated[list[str], Tag("<array>")], _either]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
Stops = Annotated[
    Annotated[StopString, Tag("<string>")]
    | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("<array>")],
    _either,
]
Code = Annotated[str, StringConstraints(min_length=1, max_length=35)]
GlossaryName = Annotated[str, StringConstraints(pattern=NAME)]


def _glossary_form(value: Any) -> str | None:
    if isinstance(value, str):
        return "<name>"
    return "<terms>" if isinstance(value, dict) else None


Glossaries = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=100), Tag("<name>")]
    | Annotated[dict[str, str], Field(max_length=MAX_TERMS), Tag("<terms>")],
    Discriminator(
        _glossary_form,
        custom_error_type="object_or_name",
        custom_error_message="Input should be an object of terms or the name of a glossary",
    ),
]
Real = Annotated[float, Field(allow_inf_nan=False)]
Bias = Annotated[Real, within(BIAS)]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
TimeoutS = Annotated[
    Real | None,
    Field(gt=0, description="Seconds until the request is given up with 504."),
]


ModelName = Annotated[
    str | None, Field(description="A name of `/v1/models`; left out: the first of them.")
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TranslateRequest(_Request):
    model: ModelName = None
    text: Texts = Field(
        description="One text or several. Line breaks and the space around sentences are kept; "
        "blank items and texts without letters come back as they are."
    )
    source: Code = Field("auto", description="A language code, or `auto`: detected per text.")
    target: Code = Field(description="A language code.")
    beam: Annotated[int, within(TRANSLATE_BOUNDS["beam"])] = Field(
        1, description="Hypotheses that are followed side by side; 1: greedy."
    )
    length_penalty: Annotated[Real, within(TRANSLATE_BOUNDS["length_penalty"])] = Field(
        1.0,
        description="Of a beam: a log-probability is divided by ((5 + length) / 6) to this power.",
    )
    alternatives: Annotated[int, within(TRANSLATE_BOUNDS["alternatives"])] = Field(
        0, description="At most `beam`: how many of its best translations are told for each text."
    )
    prefix: str = Field(
        "",
        description="What the translation of the (one) text begins with, up to the end of a word.",
    )
    format: Literal["text", "html", "xml"] = Field(
        "text",
        description="With `html` and `xml` tags, attributes, scripts, code and elements with "
        '`translate="no"` come back as they are, in their order. In any format placeholders, URLs, '
        "addresses and emoji do.",
    )
    glossary: Glossaries = Field(
        {},
        description="Terms of the source language and the translations wanted for them, or the "
        "name of a stored glossary of this language pair. With `source` `auto` a stored one is for "
        "texts in its language.",
    )
    retry: bool = Field(
        True, description="Try sentences again, by beam, whose translation is flagged."
    )
    branch: bool = Field(
        False,
        description="The `alternatives` (2 or more) part at the first word, or the first behind "
        "`prefix`, and each goes on greedily; of the first sentence only.",
    )
    stream: bool = Field(False, description="Answer by server-sent events.")
    timeout_s: TimeoutS = None


class DetectRequest(_Request):
    text: Texts = Field(description="One text or several.")


class GlossaryRequest(_Request):
    name: GlossaryName = Field(description="Letters, digits, `.`, `_` and `-`.")
    source: Code = Field(description="A language code.")
    target: Code = Field(description="A language code.")
    entries: dict[str, str] = Field(description="Terms and the translations wanted for them.")


class GlossaryChange(_Request):
    source: Code
    target: Code
    entries: dict[str, str]
    name: GlossaryName | None = Field(None, description="As in the path, or left out.")


class GenerateRequest(_Request):
    model: ModelName = None
    prompt: Texts = Field(description="One prompt or several.")
    max_tokens: Annotated[int, within(BOUNDS["max_tokens"])] = Field(
        128, description="At most the context's rest."
    )
    temperature: Annotated[Real, within(BOUNDS["temperature"])] | None = Field(
        None,
        description="0 takes the likeliest token always. Left out: 0, or 1 if `top_k`, `top_p`, "
        "`min_p`, `seed` or an `n` above 1 asks for sampling.",
    )
    top_k: Annotated[int, within(BOUNDS["top_k"])] | None = Field(None, description="0: off.")
    top_p: Annotated[Real, within(BOUNDS["top_p"])] | None = Field(None, description="1: off.")
    min_p: Annotated[Real, within(BOUNDS["min_p"])] | None = Field(
        None,
        description="Tokens with less than this share of the likeliest one's probability are left "
        "out; 0: off.",
    )
    repetition_penalty: Annotated[Real, within(BOUNDS["repetition_penalty"])] = Field(
        1.0, description="Over prompt and output; 1: off."
    )
    presence_penalty: Annotated[Real, within(BOUNDS["presence_penalty"])] = Field(
        0.0, description="Taken from the logit of every token that is in the output."
    )
    frequency_penalty: Annotated[Real, within(BOUNDS["frequency_penalty"])] = Field(
        0.0, description="Taken from a token's logit as often as it is in the output."
    )
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] = Field(
        {}, description="Token ids (as strings) and what is added to their logits."
    )
    min_tokens: Annotated[int, within(BOUNDS["min_tokens"])] = Field(
        0, description="The model cannot end the text before; a stop string can."
    )
    seed: Annotated[int, within(BOUNDS["seed"])] | None = Field(
        None,
        description="Generation i samples with seed + i (modulo 2**32), as it would alone.",
    )
    stop: Stops | None = Field(None, description="Strings that end the text; they are withheld.")
    logprobs: Annotated[int, within(BOUNDS["logprobs"])] | None = Field(
        None,
        description="Tell every token's log-probability, and those of so many likeliest ones; all "
        "before options change them.",
    )
    n: Annotated[int, within(BOUNDS["n"])] = Field(
        1, description="Generations of each prompt: the first n are of the first one."
    )
    task: Annotated[str, StringConstraints(max_length=64)] = Field(
        "", description="A text-to-text task of the model (`task:` in `/v1/models`): prompts are "
        "its inputs."
    )
    stream: bool = Field(False, description="Answer by server-sent events.")
    timeout_s: TimeoutS = None


class CandidateAnswer(_Answer):
    language: str
    confidence: float = Field(ge=0, le=1)


class DetectedAnswer(CandidateAnswer):
    candidates: list[CandidateAnswer] = Field(description="The likeliest first.")


class DetectAnswer(_Answer):
    detections: list[DetectedAnswer] = Field(description="In the order of the texts.")


class AlternativeAnswer(_Answer):
    text: str
    score: float = Field(description="The log-probability after the length penalty.")


class SentenceQualityAnswer(_Answer):
    score: float | None = Field(
        description="Mean log-probability of a token; of two legs the lower."
    )
    flags: list[Flag]
    lost: list[str] = Field(description="Placeholders and the like, missing or there twice.")
    method: Literal["first", "beam", "segments", "repair"] = Field(
        description="`beam`: tried again; `segments`: put together from parts around what had to "
        "stay; `repair`: a wrong number was replaced."
    )


class GlossaryAnswer(_Answer):
    hits: list[str]
    misses: list[str] = Field(description="Terms in the text whose translation is not in it.")


class QualityAnswer(_Answer):
    """What is known of a translation without a reference; no flag is no proof."""

    score: float | None = Field(description="null if nothing was generated.")
    flags: list[Flag] = Field(description="Of any of the sentences, the gravest first.")
    sentences: list[SentenceQualityAnswer]
    glossary: GlossaryAnswer | None = Field(description="null if none was given.")


class ItemErrorAnswer(_Answer):
    code: str
    detail: str
    param: str | None


class TranslationAnswer(_Answer):
    text: str
    source: str
    detected: DetectedAnswer | None = Field(description="null if the source was given.")
    finish_reason: Literal["stop", "length", "error"]
    truncated: bool = Field(description="true if an output reached its limit and was cut.")
    alternatives: list[AlternativeAnswer] = Field(
        description="Best first, the translation itself among them; none if not asked for."
    )
    quality: QualityAnswer
    error: ItemErrorAnswer | None = Field(
        description="Of an item of an array that cannot be translated; its text is empty."
    )


class StoredGlossaryAnswer(_Answer):
    name: str
    source: str
    target: str
    entries: dict[str, str]


class GlossarySummary(_Answer):
    name: str
    source: str
    target: str
    entry_count: int


class GlossariesAnswer(_Answer):
    glossaries: list[GlossarySummary] = Field(description="By name.")


class UsageAnswer(_Answer):
    prompt_tokens: int
    completion_tokens: int


class TimingAnswer(_Answer):
    """Of the sequence that took longest."""

    queue_s: float
    prefill_s: float
    decode_s: float


class TranslateAnswer(_Answer):
    translations: list[TranslationAnswer]
    usage: UsageAnswer
    timing: TimingAnswer
    model: str


class LikelyToken(_Answer):
    id: int
    text: str = Field(description="Bytes that are no character of their own are U+FFFD.")
    logprob: float = Field(description="Natural logarithm.")


class ScoredToken(LikelyToken):
    top: list[LikelyToken] = Field(description="The likeliest at this place, best first.")


class GenerationAnswer(_Answer):
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: list[ScoredToken] | None = Field(description="null if not asked for.")


class GenerateAnswer(_Answer):
    generations: list[GenerationAnswer]
    usage: UsageAnswer
    timing: TimingAnswer
    model: str


class ModelAnswer(_Answer):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time.")
    created_at: str
    owned_by: Literal["gpt2-mt"] = "gpt2-mt"
    precision: str
    parameters: int
    context: int
    tasks: list[str]
    languages: list[str]
    pairs: list[tuple[str, str]]
    limits: dict[str, int]


class ModelsAnswer(_Answer):
    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class LanguageAnswer(_Answer):
    code: str
    name: str
    targets: list[str]


class LanguagesAnswer(_Answer):
    languages: list[LanguageAnswer]


class KeyUsageAnswer(_Answer):
    name: str
    requests: int
    characters: int
    characters_today: int
    resets_s: float = Field(description="Until midnight UTC.")
    requests_per_minute: int | None = Field(description="null: no limit.")
    characters_per_day: int | None = Field(description="null: no limit.")


class HealthAnswer(_Answer):
    status: Literal["ok"] = "ok"


class FieldProblem(_Answer):
    param: str | None
    code: str
    detail: str


class Problem(_Answer):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    param: str | None = None
    request_id: str
    retry_after_s: int | None = None
    errors: list[FieldProblem] | None = None
