"""Bodies of Text Generation Inference's requests."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.api.schemas import Real, StopString, within
from app.tasks.generate import BOUNDS, MAX_STOPS
from app.tasks.inputs import Bounds

MAX_BEST_OF = 8
_ABSENT = ("typical_p", "watermark", "decoder_input_details", "grammar", "adapter_id")


class TgiParameters(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    best_of: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[Real, within(Bounds(0, 5, above=True))] | None = None
    repetition_penalty: Annotated[Real, within(BOUNDS["repetition_penalty"])] = 1.0
    frequency_penalty: Annotated[Real, within(BOUNDS["frequency_penalty"])] = 0.0
    top_k: Annotated[int, within(BOUNDS["top_k"])] | None = None
    top_p: Annotated[Real, within(BOUNDS["top_p"])] | None = None
    do_sample: bool = False
    max_new_tokens: Annotated[int, within(BOUNDS["max_tokens"])] = BOUNDS["max_tokens"].high
    return_full_text: bool = False
    stop: Annotated[list[StopString], Field(max_length=MAX_STOPS)] = []
    truncate: Annotated[int, Field(ge=1)] | None = None
    details: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = Field(
        None, description="Modulo 2**32 the seed of `/v1/generate`."
    )
    top_n_tokens: Annotated[int, within(BOUNDS["logprobs"])] = 0
    typical_p: Any = Field(None, description="As the ones below: must be left out or false.")
    watermark: Any = None
    decoder_input_details: Any = None
    grammar: Any = None
    adapter_id: Any = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}

    @field_validator(*_ABSENT)
    @classmethod
    def _refused(cls, value: Any) -> Any:
        if value:
            raise ValueError("not supported by this server")
        return value

    @property
    def sampling(self) -> bool:
        """As TGI decides it: a temperature of 1 alone does not ask for it."""
        warped = self.temperature not in (None, 1.0)
        return self.do_sample or warped or bool(self.top_k) or self.top_p not in (None, 1.0)


def _sampled() -> TgiParameters:
    return TgiParameters.model_validate({"do_sample": True})


class TgiTokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    inputs: str


class TgiRequest(TgiTokenizeRequest):
    parameters: TgiParameters = Field(
        default_factory=_sampled, description="Left out: sampling until the context is full."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("parameters", 0) is not None:
            return data
        return {name: value for name, value in data.items() if name != "parameters"}

    @property
    def before(self) -> str:
        """What stands before the generated text."""
        return self.inputs if self.parameters.return_full_text else ""


class TgiCompatRequest(TgiRequest):
    stream: bool = False
