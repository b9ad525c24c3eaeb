"""`gpt2-mt info`: what a bundle is and where it runs, for people or as JSON."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

from app.bundle import Bundle
from app.engine.memory import CacheSize
from app.service import ServiceOptions, planned_cache
from app.settings import Settings

_COMPANY = 3  # rows, to see whether they are alike


def run(args: argparse.Namespace) -> int:
    names = ("bundle", "device", "threads")
    settings = Settings.load({name: getattr(args, name) for name in names})
    logging.basicConfig(level="INFO", format="%(message)s")  # why a device was not taken
    bundle = Bundle.open(settings.bundle)
    cache = planned_cache(bundle, ServiceOptions.of(dict(settings)))
    facts = describe(bundle, cache) | place(bundle, settings)
    text = json.dumps(facts, ensure_ascii=False, indent=2) if args.json else render(facts)
    sys.stdout.write(text + "\n")
    return 0


def describe(bundle: Bundle, cache: CacheSize) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "path": str(bundle.path),
        "created": manifest.created,
        "format_version": manifest.format_version,
        "model": manifest.model.model_dump(),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "languages": dict(manifest.languages),
        "pairs": [list(pair) for pair in manifest.pairs],
        "via": dict(manifest.via),
        "tasks": sorted(manifest.templates),
        "limits": manifest.limits.model_dump(),
        "shortlist": bundle.shortlist_path is not None,
        "kv_memory": {
            "engines": cache.engines,
            "slots": cache.slots,
            "prefix_slots": cache.spare,
            "padding_slots": cache.padding,
            "tokens_per_slot": cache.tokens,
            "bytes_per_token": cache.token_bytes,
            "bytes": cache.bytes,
        },
        "scores": [score.model_dump() for score in manifest.scores],
        "provenance": manifest.provenance.model_dump(),
        "verification": dict(manifest.verification),
    }


def place(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """The device that the server would use, and whether answers are the same at any load there."""
    try:
        from app.engine.placement import open_decoder, same_answers
    except ImportError:  # installed without a runtime: nothing runs, but it can be described
        return {"device": None, "same_answers_at_any_load": None}
    decoder = open_decoder(bundle, settings.device, slots=_COMPANY, threads=settings.threads)
    return {"device": decoder.device, "same_answers_at_any_load": same_answers(decoder)}


def render(facts: dict[str, Any]) -> str:
    model, kv, limits = facts["model"], facts["kv_memory"], facts["limits"]
    cache = CacheSize(
        kv["slots"], kv["tokens_per_slot"], kv["bytes_per_token"], kv["prefix_slots"],
        kv["padding_slots"], kv["engines"],
    )  # fmt: skip
    languages = ", ".join(f"{code} ({name})" for code, name in facts["languages"].items())
    provenance = facts["provenance"]
    rows = [
        ("name", facts["name"]),
        ("path", facts["path"]),
        ("created", facts["created"]),
        (
            "model",
            f"{model['architecture']}, {model['layers']} layers x {model['width']}, "
            f"{model['heads']} heads, vocabulary {model['vocabulary']:,}",
        ),
        ("parameters", f"{model['parameters']:,}"),
        ("precision", model["precision"]),
        ("size", _mega(facts["bytes"])),
        ("tasks", ", ".join(facts["tasks"])),
        ("languages", languages),
        ("pairs", ", ".join("-".join(pair) for pair in facts["pairs"]) or "none"),
        ("in two steps", ", ".join(map(" by ".join, facts["via"].items())) or "none"),
        ("limits", f"{limits['context']} tokens, prompt up to {limits['max_prompt_tokens']}"),
        ("shortlist", "yes" if facts["shortlist"] else "none"),
        ("KV memory", str(cache)),
        ("device", _device(facts["device"], facts["same_answers_at_any_load"])),
        ("stage", provenance["stage"] or "unknown"),
        ("commit", provenance["commit"] or "unknown"),
    ]
    rows += [("corpus", f"{c['name']} ({c['licence']})") for c in provenance["corpora"]]
    lines = [f"{name:<11} {value}" for name, value in rows]
    return "\n".join(lines + _score_table(facts["scores"]))


def _device(device: str | None, same: bool | None) -> str:
    if device is None:
        return "none: onnxruntime is not installed, see the extras cpu and gpu"
    from app.engine.placement import describe as tell

    return tell(device, same)


def _score_table(scores: list[dict[str, Any]]) -> list[str]:
    if not scores:
        return ["scores      none recorded"]
    width = max(len(score["set"]) for score in scores)
    lines = ["", f"{'set':<{width}}  pair   metric  value"]
    for score in scores:
        pair = f"{score['source']}-{score['target']}" if score["target"] else score["source"]
        lines.append(
            f"{score['set']:<{width}}  {pair:<5}  {score['metric']:<6} {score['value']:6.2f}"
        )
    signatures = {(score["metric"], score["signature"]) for score in scores if score["signature"]}
    return lines + [f"{metric}: {signature}" for metric, signature in sorted(signatures)]


def _mega(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
