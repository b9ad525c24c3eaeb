"""The bundle: a directory with manifest.json, tokenizer.json and model.onnx, checked when opened.

The manifest is the only thing that training and serving share: dimensions, graph names, special
ids, prompt templates, languages, limits, scores, provenance travel in it as data. `Bundle.open`
reads it, compares every file with its recorded size and hash and the tokenizer with the model, and
raises `BundleError` naming what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationError
from tokenizers import Tokenizer

from app.errors import BundleError
from app.graph import CacheType, GraphSpec, Part

MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
SHORTLIST: Final = "shortlist.npz"  # optional
FORMAT: Final = "gpt2-mt-bundle"
FORMAT_VERSION: Final = 2  # 2: int4, golden, int8 cache, best_*, shortlist
READABLE: Final = (1, FORMAT_VERSION)
TEMPLATE_FIELDS: Final = {
    "translate": frozenset({"{source}", "{target}", "{text}"}),
}
TEXT_ONLY: Final = frozenset({"{text}"})
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")

Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")]
# "task:case" is the text-to-text task "case"
TemplateName = Annotated[
    str, StringConstraints(pattern=r"^(translate|generate|task:[a-z0-9][a-z0-9_\-]*)$")
]
Pair = tuple[Code, Code]


class FileEntry(Part):
    sha256: Sha256
    bytes: Count


class ModelSpec(Part):
    architecture: Literal["gpt2"]
    layers: Count
    heads: Count
    width: Count
    head_size: Count
    vocabulary: Count
    context: Count
    parameters: Count
    precision: Literal["fp32", "int8", "int4", "fp16"]
    mask: Literal["causal"]


# Of each precision.
CACHES: Final[dict[str, tuple[CacheType, ...]]] = {
    "fp32": ("float32",),
    "int8": ("float32", "int8"),
    "int4": ("float32", "int8"),
    "fp16": ("float16",),
}


class LanguageTokens(Part):
    source: TokenId
    target: TokenId


class Tokens(Part):
    end: TokenId
    mask: TokenId
    separator: TokenId
    languages: dict[Code, LanguageTokens]
    reserved: tuple[TokenId, ...]


class Limits(Part):
    context: Count
    max_prompt_tokens: Count


class ScoreEntry(Part):
    set: str
    source: str
    target: str
    metric: str
    value: float
    signature: str


class Corpus(Part):
    name: str
    licence: str


class Provenance(Part):
    corpora: tuple[Corpus, ...] = ()
    licences: tuple[str, ...] = ()
    config: dict[str, Any] = {}
    commit: str = ""
    stage: str = ""


class Golden(Part):
    """A prompt, its greedy answer, and the log-probability (natural) of each id of it, to be found
    again within `tolerance` wherever the bundle is opened; see `app.engine.golden`."""

    prompt: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    ids: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    log_probabilities: tuple[float, ...]
    tolerance: Annotated[float, Field(gt=0)]


class Manifest(Part):
    format: Literal["gpt2-mt-bundle"]
    format_version: Literal[1, 2]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$")]
    created: str
    files: dict[str, FileEntry]
    model: ModelSpec
    graph: GraphSpec
    tokens: Tokens
    templates: dict[TemplateName, tuple[str, ...]]
    languages: dict[Code, str]
    pairs: tuple[Pair, ...]
    via: dict[str, Code] = {}  # "de-zh": the language through which that is translated better
    limits: Limits
    scores: tuple[ScoreEntry, ...] = ()
    provenance: Provenance = Provenance()
    verification: dict[str, float | int | str | None] = {}
    golden: Golden | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened and checked bundle."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER

    @property
    def shortlist_path(self) -> Path | None:
        return self.path / SHORTLIST if SHORTLIST in self.manifest.files else None

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Bundle:
        """Read and check the bundle in `path`; `verify=False` skips the hashes only."""
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"no bundle at {str(folder)!r}: not a directory", param="path")
        manifest = read_manifest(folder / MANIFEST)
        _check_files(folder, manifest.files, verify)
        _check_model(manifest)
        if (SHORTLIST in manifest.files) != bool(manifest.graph.listing):
            raise _fail("graph.listing", f"{SHORTLIST} and it go together")
        _check_tokens(manifest)
        _check_tokenizer(folder / TOKENIZER, manifest)
        return cls(folder, manifest)


def read_manifest(path: Path) -> Manifest:
    """Parse manifest.json; a wrong format or version is reported before anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{str(path)!r} is missing", param=MANIFEST) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{str(path)!r} cannot be read: {error}", param=MANIFEST) from None
    if not isinstance(data, dict):
        raise BundleError(f"{str(path)!r} is not a JSON object", param=MANIFEST)
    for key, readable in (("format", (FORMAT,)), ("format_version", READABLE)):
        if data.get(key) not in readable or isinstance(data.get(key), bool):
            wanted = " and ".join(repr(value) for value in readable)
            raise BundleError(
                f"{MANIFEST}: {key} is {data.get(key)!r}, this version reads {wanted}", param=key
            )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            what = "unknown key"
        elif first["type"] == "missing":
            what = "missing"
        else:
            what = f"{first['msg']}, got {_shorten(first['input'])}"
        raise BundleError(f"{MANIFEST}: {where}: {what}", param=where) from None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fail(field: str, what: str) -> BundleError:
    return BundleError(f"{MANIFEST}: {field}: {what}", param=field)


def _check_files(folder: Path, files: Mapping[str, FileEntry], verify: bool) -> None:
    for required in (MODEL, TOKENIZER):
        if required not in files:
            raise _fail("files", f"{required} is not listed")
    for name, entry in files.items():
        field = f"files.{name}"
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise _fail("files", f"{name!r} is not a plain file name")
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{str(path)!r} is missing", param=field)
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"{str(path)!r} has {size} bytes, the manifest says {entry.bytes}",
                param=f"{field}.bytes",
            )
        if verify and (digest := sha256_of(path)) != entry.sha256:
            raise BundleError(
                f"{str(path)!r} is damaged: sha256 {digest}, the manifest says {entry.sha256}",
                param=f"{field}.sha256",
            )


def _check_model(manifest: Manifest) -> None:
    model, limits = manifest.model, manifest.limits
    if model.heads * model.head_size != model.width:
        raise _fail(
            "model.head_size",
            f"{model.heads} heads of {model.head_size} are not the width {model.width}",
        )
    if model.head_size % 8:
        raise _fail("model.head_size", f"{model.head_size} is not a multiple of 8")
    if manifest.graph.cache_dtype not in CACHES[model.precision]:
        raise _fail(
            "graph.cache_dtype",
            f"{manifest.graph.cache_dtype} does not fit precision {model.precision}",
        )
    if not 2 <= limits.context <= model.context:
        raise _fail(
            "limits.context", f"{limits.context} is outside 2..{model.context} (model.context)"
        )
    if limits.max_prompt_tokens >= limits.context:
        raise _fail(
            "limits.max_prompt_tokens",
            f"{limits.max_prompt_tokens} leaves no room in limits.context {limits.context}",
        )


def _check_tokens(manifest: Manifest) -> None:
    tokens, vocabulary = manifest.tokens, manifest.model.vocabulary
    named = {"end": tokens.end, "mask": tokens.mask, "separator": tokens.separator}
    for code, ids in tokens.languages.items():
        named[f"languages.{code}.source"] = ids.source
        named[f"languages.{code}.target"] = ids.target
    named |= {f"reserved.{i}": token for i, token in enumerate(tokens.reserved)}
    seen: dict[int, str] = {}
    for name, token in named.items():
        if token >= vocabulary:
            raise _fail(f"tokens.{name}", f"id {token} is outside the vocabulary of {vocabulary}")
        if token in seen:
            raise _fail(f"tokens.{name}", f"id {token} is also tokens.{seen[token]}")
        seen[token] = name
    _check_golden(manifest)
    for code in manifest.languages:
        if code not in tokens.languages:
            raise _fail(f"tokens.languages.{code}", "missing, but languages names it")
    for source, target in manifest.pairs:
        for code in (source, target):
            if code not in manifest.languages:
                raise _fail("pairs", f"{source}-{target}: unknown language {code!r}")
    if manifest.pairs and "translate" not in manifest.templates:
        raise _fail("templates.translate", "missing, but pairs are served")
    _check_via(manifest)


def _check_via(manifest: Manifest) -> None:
    pairs = {f"{source}-{target}": (source, target) for source, target in manifest.pairs}
    for pair, code in manifest.via.items():
        if pair not in pairs:
            raise _fail(f"via.{pair}", "is not one of pairs")
        source, target = pairs[pair]
        for leg in (f"{source}-{code}", f"{code}-{target}"):
            if leg not in pairs or leg in manifest.via:
                raise _fail(f"via.{pair}", f"{leg} is not translated directly")


def _check_golden(manifest: Manifest) -> None:
    golden, model = manifest.golden, manifest.model
    if golden is None:
        return
    if len(golden.log_probabilities) != len(golden.ids):
        raise _fail(
            "golden.log_probabilities",
            f"{len(golden.log_probabilities)} of them for {len(golden.ids)} ids",
        )
    if len(golden.prompt) + len(golden.ids) > manifest.limits.context:
        raise _fail("golden", f"longer than limits.context, {manifest.limits.context}")
    if (largest := max(*golden.prompt, *golden.ids)) >= model.vocabulary:
        raise _fail("golden", f"id {largest} is outside the vocabulary of {model.vocabulary}")


def _check_tokenizer(path: Path, manifest: Manifest) -> None:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise BundleError(f"{str(path)!r} cannot be read: {error}", param=TOKENIZER) from None
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size != manifest.model.vocabulary:
        raise BundleError(
            f"{TOKENIZER} has {size} tokens, the model's vocabulary is "
            f"{manifest.model.vocabulary} (model.vocabulary)",
            param="model.vocabulary",
        )
    tokens = manifest.tokens
    special = [tokens.end, tokens.mask, tokens.separator, *tokens.reserved]
    special += [i for ids in tokens.languages.values() for i in (ids.source, ids.target)]
    added = tokenizer.get_added_tokens_decoder()
    for token in special:
        if token not in added or not added[token].special:
            raise _fail("tokens", f"id {token} is not a special token of {TOKENIZER}")
    for task, pieces in manifest.templates.items():
        _check_template(task, pieces, manifest, tokenizer)


def _check_template(
    task: str, pieces: tuple[str, ...], manifest: Manifest, tokenizer: Tokenizer
) -> None:
    field = f"templates.{task}"
    if pieces.count("{text}") != 1:
        raise _fail(field, f"must hold the piece '{{text}}' once, got {list(pieces)}")
    for piece in pieces:
        for placeholder in _PLACEHOLDER.findall(piece):
            if placeholder not in TEMPLATE_FIELDS.get(task, TEXT_ONLY):
                raise _fail(field, f"unknown placeholder {placeholder} in {piece!r}")
        if piece == "{text}":
            continue
        for code, ids in manifest.tokens.languages.items():
            name = piece.replace("{source}", code).replace("{target}", code)
            token = tokenizer.token_to_id(name)
            if token is None:
                raise _fail(field, f"{name!r} is not a token of {TOKENIZER}")
            if ("{source}" in piece and token != ids.source) or (
                "{target}" in piece and token != ids.target
            ):
                raise _fail(f"tokens.languages.{code}", f"{name!r} has id {token} in {TOKENIZER}")
            if "{" not in piece:
                break
