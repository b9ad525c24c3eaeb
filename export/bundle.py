"""Checkpoint -> bundle -> checkpoint, each written whole or not at all.

`export_bundle` builds the graph of the asked precision (with scales that the fp32 graph
calibrates), writes model.onnx, tokenizer.json and manifest.json into a temporary directory beside
the target, verifies what it wrote, adds a golden answer and renames it.
`restore_checkpoint` goes back: dequantised tensors in Hugging Face GPT-2 form plus meta.json, so
that training can go on from a bundle; `convert_bundle` is both in one, without torch.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import onnx
from safetensors.numpy import save_file

from app.bundle import (
    MANIFEST,
    MODEL,
    SHORTLIST,
    TOKENIZER,
    Bundle,
    Golden,
    Manifest,
    ScoreEntry,
)
from app.engine.golden import log_probabilities
from app.engine.session import OnnxDecoder
from app.tasks.shortlist import Shortlist
from export.calibrate import calibrate
from export.checkpoint import Checkpoint, load_checkpoint
from export.errors import ExportError, TargetExists
from export.graphs import CacheScale, FloatWeights, Weights, build_graph, listing_names
from export.manifest import Precision, make_manifest
from export.quantize import Int4Weights, Int8Weights, dequantise
from export.verify import greedy, sample_prompts, verify_bundle

KVCache = Literal["int8", "float32"]
GOLDEN_STEPS: Final = 12
# Nats. Sums in another order differ in fp32 by 1e-6, which rounding to 8 bits now and then makes
# a whole step of: between processors with AVX-512 VNNI and with AVX2 the bundled model's int8
# differed by up to 0.075, as much as either does from fp32 (0.15). This finds a kernel that is
# wrong, not one that saturates a little (0.08): no product here can, see `export.quantize`. Int4
# rounds activations and cache as int8 does.
GOLDEN_TOLERANCE: Final = {"fp32": 0.01, "int8": 0.25, "int4": 0.25, "fp16": 0.15}


def export_bundle(
    checkpoint: str | Path,
    target: str | Path,
    *,
    precision: Precision = "int8",
    kv_cache: KVCache = "int8",
    name: str | None = None,
    scores: Sequence[ScoreEntry] = (),
    via: Mapping[str, str] | None = None,
    force: bool = False,
    verify: bool = True,
    oracles: bool = True,
    testset: str | Path | None = None,
    texts: Sequence[str] = (),
    shortlist: Path | None = None,
) -> Bundle:
    """Write the bundle of `checkpoint` at `target`; a bundle that fails verification is not.

    With a `shortlist` (`gpt2-mt train shortlist` makes it) its server can use one.
    `kv_cache` is that of int8 and int4, calibrated on the `texts`.
    `via` says through which language a pair ("de-zh") is translated, where not directly.
    Without `oracles` the bundle is verified against its own fp32 alone. Raises CheckpointError,
    TargetExists and VerificationFailed.
    """
    source = load_checkpoint(checkpoint)
    place = Path(target)
    if shortlist is not None and precision == "fp16":
        raise ExportError(f"--shortlist {str(shortlist)!r}: is for CPUs, not for fp16")
    calibrated = precision in ("int8", "int4") and kv_cache == "int8"
    with _replacing(place, force=force) as folder, tempfile.TemporaryDirectory() as spare:
        reference: Bundle | None = None
        if precision != "fp32" and (verify or calibrated):
            model = build_model(source, "fp32")
            reference = _write(source, model, Path(spare), precision="fp32", name="reference")
        cache = calibrate(source, reference, texts) if reference and calibrated else ()
        bundle = _write(
            source,
            build_model(source, precision, cache, listing=shortlist is not None),
            folder,
            precision=precision,
            name=name or place.resolve().name,
            scores=scores,
            int8_cache=bool(cache),
            shortlist=shortlist,
        )
        manifest = bundle.manifest.model_copy(
            update={"golden": golden_of(bundle), "via": dict(via or {})}
        )
        if verify:
            facts = verify_bundle(
                source, bundle, reference or bundle, testset=testset, texts=texts, oracles=oracles
            )
            manifest = manifest.model_copy(update={"verification": facts})
        _write_manifest(folder, manifest)
        Bundle.open(folder)  # what cannot be opened replaces nothing
    return Bundle.open(place)


def _write(
    source: Checkpoint,
    model: onnx.ModelProto,
    folder: Path,
    *,
    precision: Precision,
    name: str,
    scores: Sequence[ScoreEntry] = (),
    int8_cache: bool = False,
    shortlist: Path | None = None,
) -> Bundle:
    """The files of a bundle, in an empty folder."""
    (folder / MODEL).write_bytes(model.SerializeToString())
    shutil.copyfile(source.path / TOKENIZER, folder / TOKENIZER)
    if shortlist is not None:
        try:
            shutil.copyfile(shortlist, folder / SHORTLIST)
        except OSError as error:
            raise ExportError(f"--shortlist {str(shortlist)!r}: {error.strerror}") from None
    manifest = make_manifest(
        source, folder, precision=precision, name=name, scores=scores, int8_cache=int8_cache
    )
    _write_manifest(folder, manifest)
    bundle = Bundle.open(folder)
    if shortlist is not None:
        Shortlist.read(shortlist, manifest)
    return bundle


def golden_of(bundle: Bundle) -> Golden:
    """What the bundle greedily answers here, and how sure it is of it."""
    prompts = sample_prompts(bundle, ())
    prompt = max(prompts[:12], key=len)
    [trace] = greedy(OnnxDecoder(bundle, slots=1), [prompt], GOLDEN_STEPS)
    return Golden(
        prompt=tuple(prompt),
        ids=tuple(trace.ids),
        log_probabilities=tuple(
            round(value, 4) for value in log_probabilities(trace.logits, trace.ids)
        ),
        tolerance=GOLDEN_TOLERANCE[bundle.manifest.model.precision],
    )


def record_scores(bundle: Bundle, scores: Sequence[ScoreEntry]) -> Bundle:
    """Write scores that were measured with the bundle itself into its manifest."""
    manifest = bundle.manifest.model_copy(update={"scores": tuple(scores)})
    with tempfile.TemporaryDirectory(prefix=".scores.", dir=bundle.path) as folder:
        _write_manifest(Path(folder), manifest)
        os.replace(Path(folder) / MANIFEST, bundle.path / MANIFEST)
    return Bundle.open(bundle.path)


def build_model(
    source: Checkpoint,
    precision: Precision,
    cache: Sequence[CacheScale] = (),
    *,
    listing: bool = False,
) -> onnx.ModelProto:
    """The graph of a precision; `cache` and `listing` as in `export.graphs.build_graph`."""
    tensors = source.tensors
    weights: Weights
    if precision == "int8":
        weights = Int8Weights(tensors, listing)
    elif precision == "int4":
        weights = Int4Weights(tensors, listing)
    else:
        weights = FloatWeights(tensors)
    half = precision == "fp16"
    names = listing_names(precision) if listing else None
    return build_graph(tensors, source.dimensions, weights, half=half, cache=cache, listing=names)


def restore_checkpoint(
    bundle: str | Path | Bundle, target: str | Path, *, force: bool = False
) -> Checkpoint:
    """Write a bundle's (dequantised) weights as a checkpoint directory at `target`.

    A shortlist is no part of a checkpoint: it stays behind.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest, place = opened.manifest, Path(target)
    model = onnx.load(str(opened.model_path))
    tensors = {f"transformer.{name}": value for name, value in dequantise(model).items()}
    with _replacing(place, force=force) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(opened.tokenizer_path, folder / TOKENIZER)
        end = manifest.tokens.end
        inner = tensors["transformer.h.0.mlp.c_fc.bias"].size
        config = _hf_config(manifest, inner, _epsilon(model))
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
        _write_json(folder / "meta.json", _meta(manifest))
        load_checkpoint(folder)  # what is written can be read
    return load_checkpoint(place)


def is_bundle(path: str | Path) -> bool:
    """Or else a checkpoint."""
    return (Path(path) / MANIFEST).is_file() and not (Path(path) / "config.json").is_file()


def convert_bundle(
    bundle: str | Path | Bundle,
    target: str | Path,
    *,
    precision: Precision,
    force: bool = False,
    shortlist: Path | None = None,
    **options: Any,
) -> Bundle:
    """Write a bundle's (dequantised) weights as a bundle of another precision at `target`; for the
    options see `export_bundle`. It keeps its shortlist if no other is given, but for fp16, which
    has none."""
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if shortlist is None and precision != "fp16":
        shortlist = opened.shortlist_path
    options["shortlist"] = shortlist
    if options.get("via") is None:
        options["via"] = opened.manifest.via
    with tempfile.TemporaryDirectory() as spare:
        source = restore_checkpoint(opened, Path(spare) / "checkpoint").path
        return export_bundle(
            source, target, precision=precision, force=force, oracles=False, **options
        )


def _epsilon(model: onnx.ModelProto) -> float:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                return float(f"{attribute.f:.6g}")
    return 1e-5


def _hf_config(manifest: Manifest, inner: int, epsilon: float) -> dict[str, Any]:
    model, end = manifest.model, manifest.tokens.end
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocabulary,
        "n_positions": model.context,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": inner,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": epsilon,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }


def _meta(manifest: Manifest) -> dict[str, Any]:
    provenance = manifest.provenance
    return {
        "format_version": 1,
        "stage": provenance.stage,
        "mask": manifest.model.mask,
        "languages": manifest.languages,
        "pairs": [list(pair) for pair in manifest.pairs],
        "templates": {key: list(pieces) for key, pieces in manifest.templates.items()},
        "corpora": [corpus.model_dump() for corpus in provenance.corpora],
        "config": provenance.config,
        "commit": provenance.commit,
        "tokenizer_sha256": manifest.files[TOKENIZER].sha256,
        "step": 0,
        "restored_from": {"bundle": manifest.name, "precision": manifest.model.precision},
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    _write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


@contextmanager
def _replacing(place: Path, *, force: bool) -> Iterator[Path]:
    """A temporary directory beside `place` that takes its name when the block succeeds."""
    taken = place.is_symlink() or (place.exists() and (not place.is_dir() or any(place.iterdir())))
    if taken and not force:
        raise TargetExists(f"{str(place)!r} exists already; use --force to replace it")
    if taken and not (place / MANIFEST).is_file() and not (place / "config.json").is_file():
        raise TargetExists(f"{str(place)!r} is neither a bundle nor a checkpoint: not replaced")
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if place.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{place.name}.old.", dir=place.parent))
            os.replace(place, old / "old")
            os.replace(folder, place)
            shutil.rmtree(old)
        else:
            os.replace(folder, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
