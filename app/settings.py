"""The server's settings: one class, read from GPT2MT_* environment variables and overrides.

An unknown GPT2MT_ variable or a value that does not fit is an error naming it. Only `main` and
the commands read settings; everything below receives values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import SettingsError

PREFIX = "GPT2MT_"
Api = Literal["libretranslate", "deepl", "openai", "tgi", "inference_protocol"]
DEFAULT_BUNDLE = Path(__file__).parent / "models" / "default"


class Settings(BaseSettings):
    """Everything that can be set; the environment's names are GPT2MT_ and the field's name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    engine: Literal["local", "ray"] = Field(
        "local", description="ray: replicas on a cluster of Ray; needs the extra ray."
    )
    replicas: int = Field(1, ge=1, le=1024, description="With engine ray; one port for all.")
    bundle: Path = Field(DEFAULT_BUNDLE, description="Directory of the model bundle.")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where the bundle can run on it, else the CPU."
    )
    threads: int | None = Field(None, ge=1, le=256, description="Left out: from the CPU quota.")
    slots: int | None = Field(
        None, ge=1, le=1024, description="Sequences generated side by side. Left out: 32."
    )
    cache_mb: int | None = Field(
        None, ge=1, description="Bound of the KV cache; without slots, as many as fit."
    )
    prefix_slots: int = Field(
        0, ge=0, le=1024, description="Slots that keep beginnings of long prompts; 0: none."
    )
    translation_cache: int = Field(
        0, ge=0, description="Answers of the translation task kept for the same question; 0: none."
    )
    translation_cache_mb: int = Field(16, ge=1, description="Bound of their memory.")
    shortlist: bool = Field(
        False, description="Translate with the bundle's vocabulary shortlist, for speed."
    )
    retry: bool = Field(True, description="Try flagged translations again, by beam.")
    max_queue: int = Field(2048, ge=1, description="Waiting sequences before 503.")
    max_body_bytes: int = Field(1_048_576, ge=1024)
    body_timeout_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="To receive a body; then 408."
    )
    max_items: int = Field(1024, ge=1, description="Texts or prompts in one request.")
    max_characters: int = Field(100_000, ge=1, description="Characters in one request, in all.")
    default_timeout_s: float = Field(120.0, gt=0, allow_inf_nan=False)
    max_timeout_s: float = Field(600.0, gt=0, allow_inf_nan=False)
    drain_s: float = Field(30.0, ge=0, allow_inf_nan=False, description="To finish at shutdown.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    apis: Annotated[tuple[Api, ...], NoDecode] = Field(
        get_args(Api), description="APIs of other servers that are spoken too, with commas between."
    )

    @field_validator("apis", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(
                f"default_timeout_s {self.default_timeout_s:g} is over "
                f"max_timeout_s {self.max_timeout_s:g}"
            )
        if self.replicas > 1 and self.engine == "local":
            raise ValueError(f"replicas is {self.replicas}: more than 1 need engine ray")
        return self

    @classmethod
    def load(
        cls, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> Settings:
        """From the environment; overrides (those that are not None) win."""
        _refuse_unknown(os.environ if environ is None else environ)
        given = {k: v for k, v in (overrides or {}).items() if v is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise _named(error) from None


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    for name in environ:
        if name.upper().startswith(PREFIX):
            field = name[len(PREFIX) :].lower()
            if field not in Settings.model_fields:
                known = ", ".join(PREFIX + f.upper() for f in Settings.model_fields)
                raise SettingsError(f"unknown setting {name}; known are {known}", param=name)


def _named(error: ValidationError) -> SettingsError:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if not field:
        return SettingsError(first["msg"].removeprefix("Value error, "))
    name = f"{field} ({PREFIX}{field.upper()})"
    return SettingsError(f"setting {name} is {first['input']!r}: {first['msg']}", param=field)
