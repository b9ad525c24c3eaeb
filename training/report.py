"""The report of a pipeline: what each stage read and learnt, and how well it translates.

The folders of the stages flow in, as they lie on disk; report.md and its figures flow out.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import commit
from training.config import RunConfig, flat
from training.pipeline import Pipeline, Stage, TokenizerConfig
from training.plots import Line, bars, curves, smooth
from training.results import read_metrics, read_results, validations
from training.view import duration

Row = dict[str, Any]  # as scores.Scores.as_dict gives them
_PACKAGES = ("torch", "numpy", "tokenizers", "sacrebleu", "onnxruntime")
_POINTS = 1000  # of a curve at most


def write_report(
    pipeline: Pipeline, out: Path, bundle: Sequence[Row] = (), sections: Sequence[str] = ()
) -> Path:
    """Write `out`/report.md and `out`/figures; `bundle` are the rows of the exported model's
    scores, `sections` is Markdown to put before the stages' own parts."""
    figures = out / "figures"
    scored = {stage.name: rows for stage in pipeline.stages
              if (rows := read_results(out / stage.name).get("scores"))}  # fmt: skip
    if bundle:
        scored["bundle"] = list(bundle)
    parts = [f"# {pipeline.name}", _summary(pipeline, out)]
    if scored:
        parts += ["## Scores", *_scores(scored, figures)]
    parts += sections
    for stage in pipeline.stages:
        parts.append(f"## {stage.name}")
        parts += _stage(stage, out / stage.name, figures)
    parts += ["## Where it was made", _environment()]
    file = out / "report.md"
    temporary = file.with_suffix(".partial")
    temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    temporary.replace(file)
    return file


def _summary(pipeline: Pipeline, out: Path) -> str:
    rows = []
    total = 0.0
    for stage in pipeline.stages:
        record = _json(out / stage.name / "stage.json")
        meta = _json(out / stage.name / "checkpoint" / "meta.json")
        figures = read_results(out / stage.name).get("validation", {})
        bits = [f["bits_per_byte"] for f in figures.values() if "bits_per_byte" in f]
        seconds = record.get("seconds", 0.0)
        total += seconds
        rows.append([
            f"**{stage.name}**" if stage.name == pipeline.final else stage.name, stage.kind,
            stage.config.model if isinstance(stage.config, RunConfig) else "",
            f"{meta['step']:,}" if "step" in meta else "",
            f"{meta['tokens']:,}" if "tokens" in meta else "", duration(seconds),
            f"{sum(bits) / len(bits):.3f}" if bits else "",
        ])  # fmt: skip
    head = ["stage", "kind", "model", "steps", "tokens read", "wall-clock",
            "bits per byte, mean of validation"]  # fmt: skip
    return (f"Final stage in bold; {duration(total)} in all.\n\n"
            + _table(head, rows, left=3))  # fmt: skip


def _scores(scored: Mapping[str, Sequence[Row]], figures: Path) -> Iterable[str]:
    """A figure and a table a test set, all stages beside each other, signatures below."""
    names = list(dict.fromkeys(row["set"] for rows in scored.values() for row in rows))
    for name in names:
        of = {stage: {f"{r['source']}-{r['target']}": r for r in rows if r["set"] == name}
              for stage, rows in scored.items()}  # fmt: skip
        of = {stage: rows for stage, rows in of.items() if rows}
        pairs = sorted({pair for rows in of.values() for pair in rows})
        rows = [row for by_pair in of.values() for row in by_pair.values()]
        yield f"### {name}"
        path = bars(
            figures / f"scores-{name}.png", pairs,
            {stage: [r[p]["bleu"] if p in r else float("nan") for p in pairs]
             for stage, r in of.items()},
            y_label="BLEU", title=f"{name}, {rows[0]['sentences']} sentences a direction",
        )  # fmt: skip
        yield _image(path, f"BLEU of {name} by direction")
        cells = [
            [p, *(f"{r[p]['bleu']:.1f} / {r[p]['chrf']:.1f}" if p in r else "-"
                  for r in of.values())]
            for p in pairs
        ]  # fmt: skip
        if common := [p for p in pairs if all(p in by_pair for by_pair in of.values())]:
            cells.append([f"mean of the {len(common)} that all have", *(
                " / ".join(f"{sum(r[p][key] for p in common) / len(common):.1f}"
                           for key in ("bleu", "chrf"))
                for r in of.values()
            )])  # fmt: skip
        yield _table(["BLEU / chrF", *of], cells)
        signatures = {row[key] for row in rows for key in ("bleu_signature", "chrf_signature")}
        yield "\n".join(f"- `{signature}`" for signature in sorted(signatures))


def _stage(stage: Stage, folder: Path, figures: Path) -> Iterable[str]:
    yield f"```toml\n{_recipe(stage)}\n```"
    for file in ("report.txt", "corpus.txt"):  # a tokenizer's, a run's
        if (folder / file).exists():
            yield f"```\n{(folder / file).read_text(encoding='utf-8').rstrip()}\n```"
    if stage.kind == "translate":
        yield _translated(folder)
    entries = list(read_metrics(folder))
    if not entries:
        return
    losses = _losses(entries)
    path = curves(figures / f"{stage.name}-loss.png", losses, x_label="step",
                  y_label="loss (nats per position)", title=f"{stage.name}: training")  # fmt: skip
    yield _image(path, f"training loss of {stage.name}")
    bits: dict[str, tuple[list[float], list[float]]] = {}
    for step, tag, name, value in validations(entries):
        if name == "bits_per_byte":
            x, y = bits.setdefault(tag, ([], []))
            x.append(step)
            y.append(value)
    if bits:
        path = curves(figures / f"{stage.name}-valid.png", bits, x_label="step",
                      y_label="bits per byte", title=f"{stage.name}: validation")  # fmt: skip
        yield _image(path, f"bits per byte of {stage.name} on held-out text")
    results = read_results(folder)
    valid = results.get("validation", {})
    names = list(dict.fromkeys(name for f in valid.values() for name in f))
    if names:
        yield _table(["held-out", *names], [
            [tag, *(f"{f[n]:.4g}" if n in f else "-" for n in names)] for tag, f in valid.items()
        ])  # fmt: skip
        yield "\n".join(f"- {k}: {v}" for k, v in results.get("signatures", {}).items())


def _translated(folder: Path) -> str:
    """What a teacher wrote, and why it left texts out; who learns from it validates it again."""
    counts = {file.name: _json(Path(str(file).removesuffix(".tsv.gz") + ".json")).get("counts", {})
              for file in sorted(folder.glob("*.tsv.gz"))}  # fmt: skip
    reasons = ["kept", *sorted({r for c in counts.values() for r in c} - {"kept"})]
    return _table(["file", *reasons], [
        [name, *(f"{of.get(reason, 0):,}" for reason in reasons)] for name, of in counts.items()
    ])  # fmt: skip


def _losses(entries: Sequence[dict[str, Any]]) -> dict[str, Line]:
    """The loss and, where there are several, its terms; smoothed over a fiftieth of the run."""
    names = list(dict.fromkeys(k for e in entries for k in e if k.startswith("loss/")))
    keys = {"loss": "weighted sum", **{k: k.removeprefix("loss/") for k in names}}
    if len(names) < 2:
        keys = {"loss": names[0].removeprefix("loss/") if names else "loss"}
    lines: dict[str, Line] = {}
    for key, label in keys.items():
        points = [(e["step"], e[key]) for e in entries if key in e]
        every = max(1, len(points) // _POINTS)
        values = smooth([value for _, value in points], max(1, len(points) // 50))
        lines[label] = [step for step, _ in points][::every], values[::every]
    return lines


def _recipe(stage: Stage) -> str:
    """What the stage's recipe says beyond the defaults, one dotted key a line."""
    values = flat(json.loads(json.dumps(asdict(stage.config))))
    if isinstance(stage.config, RunConfig):
        config = stage.config
        plain = RunConfig(config.stage, config.model, type(config.data)(config.data.languages),
                          steps=1)  # fmt: skip
        usual = flat(json.loads(json.dumps(asdict(plain)))) | {"steps": 0}
        always = ("model", "data.languages")
        values = {k: v for k, v in values.items() if k in always or usual.get(k) != v}
    elif isinstance(stage.config, TokenizerConfig):
        read = ("vocabulary", "megabytes", "data.languages", "data.list", "data.weights.")
        values = {k: v for k, v in values.items() if k.startswith(read)}
    values = {"init": stage.init, "adds": list(stage.adds), **values}
    hidden = ("data.licences.", "stage")
    return "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}"
                     for key, value in values.items()
                     if value not in ("", []) and not key.startswith(hidden))  # fmt: skip


def _environment() -> str:
    lines = [
        f"- Commit {commit()}",
        f"- {_processor()}, {len(os.sched_getaffinity(0))} cores, "
        f"{torch.get_num_threads()} threads; {_memory()}",
    ]
    if torch.cuda.is_available():
        lines.append(f"- {torch.cuda.get_device_name()}")
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return "\n".join([*lines, f"- {', '.join(found)}"])


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _image(path: Path, text: str) -> str:
    return f"![{text}](figures/{path.name})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, the columns after the first `left` set right."""
    rule = "|" + "|".join("---" if i < left else "---:" for i in range(len(head))) + "|"
    return "\n".join([_line(head), rule, *(_line(row) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values
