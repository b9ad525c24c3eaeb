"""Pairs that are translated through a third language: which, and how they score.

A manifest's `via` names the language for each such pair ("de-zh": "en"). `routed` makes a
translator keep to it, `compare` finds it from the results of two evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.bundle import MANIFEST, Bundle, ScoreEntry
from export.errors import ExportError
from export.translator import Translate

NONE = "none"  # of `--pivot`: every pair directly


class Routes(NamedTuple):
    via: dict[str, str] | None  # None: nothing is known of them
    scores: tuple[ScoreEntry, ...]  # of each pair as it is translated then


def routed(translate: Translate, via: Mapping[str, str]) -> Translate:
    """The pairs ("de-zh") in `via` in two steps, through the language named there."""

    def run(lines: Sequence[str], source: str, target: str) -> Sequence[tuple[str, str]]:
        through = via.get(f"{source}-{target}")
        if through is None:
            return translate(lines, source, target)
        middle = translate(lines, source, through)
        sent = [text or line for (text, _), line in zip(middle, lines, strict=True)]  # as served
        ends = translate(sent, through, target)
        return [
            (text, "length" if first == "length" else reason)
            for (_, first), (text, reason) in zip(middle, ends, strict=True)
        ]

    return run


def ways(model: Path, served: Collection[str], pivot: str | None) -> dict[str, str]:
    """Which pairs go through which language: those of the bundle, or, where they can, all
    through `pivot`; none for "none"."""
    if pivot == NONE:
        return {}
    if pivot is None:
        known = (model / MANIFEST).is_file()
        return dict(Bundle.open(model).manifest.via) if known else {}
    found = {}
    for pair in served:
        source, target = pair.split("-", 1)
        if {f"{source}-{pivot}", f"{pivot}-{target}"} <= set(served):
            found[pair] = pivot
    if not found:
        raise ExportError(f"--pivot {pivot}: no pair of {sorted(served)} can go through it")
    return found


def recorded(path: Path) -> Routes:
    """The scores in a results.json, or a bare list of them, and the routes that they are of."""
    found = _read(path)
    return Routes(found["via"] or None, tuple(found["scores"]))


def compare(direct: Path, through: Path) -> Routes:
    """From two results.json, the second of `evaluate --pivot LANGUAGE`: the pairs that score
    higher through the other language, by mean BLEU and by mean chrF over the sets of both, and
    the scores of all pairs, each as it is translated then."""
    one, two = _read(direct), _read(through)
    if one["via"]:
        raise ExportError(f"{str(direct)!r} has pairs that go through another language: "
                          "measure it with `evaluate --pivot none`")  # fmt: skip
    if not two["via"]:
        raise ExportError(f"{str(through)!r} is not of `evaluate --pivot LANGUAGE`")
    former = {(r["set"], r["source"], r["target"]): r for r in one["rows"]}
    gains: dict[str, list[tuple[float, float]]] = {}
    for row in two["rows"]:
        key, pair = (row["set"], row["source"], row["target"]), f"{row['source']}-{row['target']}"
        if key not in former or pair not in two["via"]:
            continue
        then = former[key]
        for name in ("sentences", "bleu_signature", "chrf_signature"):
            if then[name] != row[name]:
                raise ExportError(f"{str(through)!r}: {row['set']} {pair} has {name} {row[name]!r},"
                                  f" in {str(direct)!r} it is {then[name]!r}")  # fmt: skip
        gain = row["bleu"] - then["bleu"], row["chrf"] - then["chrf"]
        gains.setdefault(pair, []).append(gain)
    better = [pair for pair, of in sorted(gains.items())
              if all(sum(by_metric) > 0 for by_metric in zip(*of, strict=True))]  # fmt: skip
    via = {pair: two["via"][pair] for pair in better}
    direct_scores = [s for s in one["scores"] if f"{s.source}-{s.target}" not in via]
    routed_scores = [s for s in two["scores"] if f"{s.source}-{s.target}" in via]
    return Routes(via, (*direct_scores, *routed_scores))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, list):
            data = {"scores": data}
        scores = [ScoreEntry.model_validate(entry) for entry in data["scores"]]
        found = {"via": {**data.get("via", {})}, "rows": [*data.get("rows", [])], "scores": scores}
        served = bool(data.get("served"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"scores file {str(path)!r} cannot be read: {error}") from None
    if served:  # would be compared with the scores of lines by themselves
        raise ExportError(f"{str(path)!r} is of `evaluate --served`: measure it without")
    return found
