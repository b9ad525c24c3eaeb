"""The server's settings: one class, read from GPT2MT_* environment variables and overrides.

An unknown GPT2MT_ variable or a value that does not fit is an error naming it. Only `main` and
the commands read settings; everything below receives values.
"""

from __future__ import annotations

import json
import os
import tomllib
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
    bundles: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Directories of more bundles, served by their names, with commas between."
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where the bundle can run on it, else the CPU."
    )
    threads: int | None = Field(
        None, ge=1, le=256, description="Of each engine. Left out: its share of the CPU quota."
    )
    engines: int | None = Field(
        None, ge=1, le=64, description="Side by side on a CPU, with the slots between them. Left "
        "out: 2 for a small model on an even number of cores, unless threads or prefix_slots are "
        "given, memory leaves a beam too few slots, or engine is ray; else 1."
    )  # fmt: skip
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
    glossaries: Path | None = Field(
        None, description="Directory of stored glossaries. Left out: in memory, until the end."
    )
    max_queue: int = Field(2048, ge=1, description="Waiting sequences before 503.")
    max_body_bytes: int = Field(1_048_576, ge=1024)
    max_document_bytes: int = Field(
        8_388_608, ge=1024, description="Of a document that is uploaded to be translated."
    )
    body_timeout_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="To receive a body; then 408."
    )
    max_items: int = Field(1024, ge=1, description="Texts or prompts in one request.")
    max_characters: int = Field(100_000, ge=1, description="Characters in one request, in all.")
    default_timeout_s: float = Field(120.0, gt=0, allow_inf_nan=False)
    max_timeout_s: float = Field(600.0, gt=0, allow_inf_nan=False)
    drain_s: float = Field(30.0, ge=0, allow_inf_nan=False, description="To finish at shutdown.")
    api_keys: Path | None = Field(
        None, description="File of API keys, made by `gpt2-mt keys`. Left out: nobody needs one."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Web pages of other origins that may call, with commas between; *: any."
    )
    page: bool = Field(True, description="Serve the web page at /.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = Field("text", description="json: an object a line.")
    apis: Annotated[tuple[Api, ...], NoDecode] = Field(
        get_args(Api), description="APIs of other servers that are spoken too, with commas between."
    )

    @field_validator("apis", "bundles", "cors_origins", mode="before")
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
        if self.engines and self.engines > 1 and self.device == "cuda":
            raise ValueError(f"engines is {self.engines}: more than 1 are for CPUs")
        if self.replicas > 1 and self.engine == "local":
            raise ValueError(f"replicas is {self.replicas}: more than 1 need engine ray")
        return self

    @classmethod
    def load(
        cls,
        overrides: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        file: str | Path | None = None,
    ) -> Settings:
        """Overrides (those that are not None), else the environment, else a file of TOML."""
        environ = os.environ if environ is None else environ
        _refuse_unknown(environ)
        given = {k: v for k, v in (overrides or {}).items() if v is not None}
        if file is not None:
            set_there = {name[len(PREFIX) :].lower() for name in environ if _ours(name)}
            given = {k: v for k, v in read_file(file).items() if k not in set_there} | given
        try:
            return cls(**given)
        except ValidationError as error:
            raise _named(error) from None

    def told(self, overrides: Mapping[str, Any], file: str | Path | None) -> str:
        """All settings as TOML, each with where it is from; what is left out is a comment."""
        given = {name for name, value in overrides.items() if value is not None}
        there = {name[len(PREFIX) :].lower() for name in os.environ if _ours(name)}
        written = read_file(file) if file is not None else {}
        lines = []
        for name, value in self:
            source = "default"
            if name in given:
                source = "command line"
            elif name in there:
                source = "environment"
            elif name in written:
                source = str(file)
            start = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
            lines.append(f"{start}  # {source}\n")
        return "".join(lines)


def read_file(path: str | Path) -> dict[str, Any]:
    """The settings of a TOML file: one table, the names those of `Settings`."""
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings in {path} cannot be read: {error}") from None
    for name in found:
        if name not in Settings.model_fields:
            known = ", ".join(Settings.model_fields)
            raise SettingsError(f"{path}: unknown setting {name}; known are {known}", param=name)
    return found


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def _ours(name: str) -> bool:
    return name.upper().startswith(PREFIX)


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    for name in environ:
        if _ours(name):
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
