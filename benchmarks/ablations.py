"""What each part of the method is worth: many small runs of equal token budget, and their table.

`python -m benchmarks.ablations run --corpus DIR --tests DIR --tokenizer FILE --out DIR` trains and
scores every cell of ablations.toml with every seed; a cell that is done is skipped, one that was
stopped goes on. `table --out DIR --figures DIR` prints Markdown tables and draws them. Cells that
learn from teachers need `--teacher GLOB=CHECKPOINT` (probabilities) and `--teacher-files DIR`
(translations, as one-way files). A cell `like` another has its model and translates `via` others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.config import RunConfig, build

SPEC = Path(__file__).with_suffix(".toml")
Results = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="train and score the cells")
    for name in ("--corpus", "--tests", "--tokenizer"):
        run.add_argument(name, type=Path, required=True)
    run.add_argument("--cells", help="names, separated by commas; default: all")
    run.add_argument("--teacher", action="append", default=[], metavar="GLOB=CHECKPOINT")
    run.add_argument("--teacher-files", type=Path, action="append", default=[])
    run.add_argument("--limit", type=int, default=0, help="sentences of each test set (0: all)")
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--seeds", help="separated by commas; default: those of the spec")
    run.set_defaults(run=run_cells)
    show = commands.add_parser("table", help="print the tables of what is done")
    show.add_argument("--figures", type=Path, help="folder for a figure of each table")
    show.set_defaults(run=print_tables)
    for command in (run, show):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--spec", type=Path, default=SPEC)
    arguments = parser.parse_args()
    arguments.run(arguments)
    return 0


def run_cells(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(arguments.threads)
    spec = tomllib.loads(arguments.spec.read_text(encoding="utf-8"))
    wanted = arguments.cells.split(",") if arguments.cells else [c["name"] for c in spec["cells"]]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in map(int, arguments.seeds.split(",")) if arguments.seeds else spec["seeds"]:
        for cell in spec["cells"]:
            folder = arguments.out / f"{cell['name'].replace(' ', '')}-{seed}"
            if cell["name"] in wanted and not (folder / "results.json").exists():
                results = run_cell(spec, cell, seed, folder, arguments)
                folder.mkdir(exist_ok=True)
                text = json.dumps({"cell": cell["name"], "seed": seed, **results}, indent=2)
                (folder / "results.json").write_text(text + "\n", encoding="utf-8")


def run_cell(
    spec: Results, cell: Results, seed: int, folder: Path, arguments: argparse.Namespace
) -> Results:
    from training.stages import start

    if "like" in cell:  # that cell's model, and another way of translating with it
        checkpoint = folder.with_name(f"{cell['like'].replace(' ', '')}-{seed}") / "finetune"
        scores = scores_of(checkpoint / "checkpoint", arguments.tests, spec, arguments.limit,
                           cell["via"])  # fmt: skip
        return {"scores": scores, "seconds": {}}
    results: Results = {}
    checkpoint = None
    common = (arguments.corpus, arguments.tokenizer, [arguments.tests])
    for stage in ("pretrain", "finetune"):
        if stage == "pretrain" and stage not in cell:
            continue
        teach = cell.get("teach", "") if stage == "finetune" else ""
        config = config_of(spec, cell, stage, seed, arguments.teacher if teach else [])
        adds = arguments.teacher_files if teach in ("sequences", "both") else []
        began = time.monotonic()
        if cell.get("library") == "marian":
            from benchmarks import encoder_decoder

            library = encoder_decoder.run(
                config, *common, folder / stage, spec["sets"], arguments.limit,
                shared=arguments.out / "shards",
            )  # fmt: skip
            return {**library, "seconds": {"finetune": library["seconds"]}}
        checkpoint = start(
            config, common[0], folder / stage, common[1], checkpoint, common[2], adds=adds,
            progress=sys.stderr.isatty(), shared=arguments.out / "shards",
        )  # fmt: skip
        results.setdefault("seconds", {})[stage] = seconds_of(folder / stage, began)
        if stage == "pretrain":
            results["text"] = bits_per_byte(checkpoint, arguments.tests, spec["text_set"])
            results["auxiliary"] = last_validation(folder / stage)
    assert checkpoint is not None
    results["scores"] = scores_of(checkpoint, arguments.tests, spec, arguments.limit)
    return results


def config_of(
    spec: Results, cell: Results, stage: str, seed: int, teachers: Iterable[str]
) -> RunConfig:
    values: Results = {}
    for layer in (spec["base"], spec[stage], cell.get(stage, {}), {"stage": stage, "seed": seed}):
        merge(values, layer)
    if "distil" in values:
        values["distil"]["teachers"] = dict(t.split("=", 1) for t in teachers)
    return build(RunConfig, values, f"{cell['name']}: ")


def merge(values: Results, layer: Results) -> None:
    for key, value in layer.items():
        if isinstance(value, dict):
            merge(values.setdefault(key, {}), value)
        else:
            values[key] = value


def seconds_of(folder: Path, began: float) -> float:
    """Training time by the run's own clock, which a stop and a resume do not disturb."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["elapsed_s"]) if lines else time.monotonic() - began


def last_validation(folder: Path) -> dict[str, float]:
    for line in reversed((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        entry = json.loads(line)
        found = {k: v for k, v in entry.items() if k.startswith("valid/")}
        if found:
            return found
    return {}


def bits_per_byte(checkpoint: Path, tests: Path, name: str) -> dict[str, float]:
    from training.evaluate import checkpoint_text_loss
    from training.scores import lines_of

    measure = checkpoint_text_loss(checkpoint)
    meta = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
    found = {}
    for language, lines in lines_of(tests, meta["languages"], [name], 200).items():
        bits, _, size = measure(lines)
        found[language] = bits / size
    return found


def scores_of(
    checkpoint: Path, tests: Path, spec: Results, limit: int, via: dict[str, str] | None = None
) -> list[Results]:
    """Of the directions that were learnt and of the spec's `unseen`, where a pair in `via` goes
    through another language."""
    from export.routes import routed
    from training.evaluate import checkpoint_translator
    from training.scores import find_sets, score

    translate = routed(checkpoint_translator(checkpoint), via or {})
    meta = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
    asked = {"-".join(pair) for pair in meta["pairs"]} | {*spec.get("unseen", ())}
    rows = []
    for test in find_sets(tests, meta["languages"], spec["sets"], limit):
        if f"{test.source}-{test.target}" in asked:
            outputs = translate(test.sources, test.source, test.target)
            rows.append(score(test, outputs).as_dict())
    return rows


def print_tables(arguments: argparse.Namespace) -> None:
    """Each table of the spec with the cells that are done; its figure goes to `--figures`."""
    done: dict[str, list[Results]] = {}
    for file in sorted(arguments.out.glob("*/results.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        done.setdefault(results["cell"], []).append(results)
    spec = tomllib.loads(arguments.spec.read_text(encoding="utf-8"))
    for title, names in spec["tables"].items():
        cells = {name: done[name] for name in names if name in done}
        if cells:
            sys.stdout.write(f"### {title.capitalize()}\n\n{table(cells)}\n\n")
            if arguments.figures:
                draw(arguments.figures / f"ablation-{title}.png", cells)
    if judged := {name: runs for name, runs in done.items() if accuracies(runs[0])}:
        sys.stdout.write(f"### Accuracy on held-out text\n\n{accuracy_table(judged)}\n\n")
    rows = [row for runs in done.values() for row in runs[0]["scores"]]
    signatures = {row[f"{metric}_signature"] for row in rows for metric in ("bleu", "chrf")}
    sys.stdout.write("".join(f"- `{s}`\n" for s in sorted(signatures)))


def table(cells: dict[str, list[Results]]) -> str:
    directions = directions_of(cells)
    heads = ["cell", "seeds", "seconds", "bits per byte"]
    heads += [f"{d} {m}" for d in directions for m in ("BLEU", "chrF")] + ["mean BLEU"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for name, runs in cells.items():
        line = [name, str(len(runs)), spread([sum(r["seconds"].values()) for r in runs], 0)]
        texts = [statistics.fmean(r["text"].values()) for r in runs if "text" in r]
        line.append(spread(texts, 3) if texts else "")
        line += [spread([figure(r, direction, metric) for r in runs])
                 for direction in directions for metric in ("bleu", "chrf")]  # fmt: skip
        means = [statistics.fmean(row["bleu"] for row in r["scores"]) for r in runs]
        lines.append([*line, spread(means)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracies(results: Results) -> dict[str, list[tuple[float, float]]]:
    """By objective and language (its accuracy, what the commoner answer alone would get)."""
    found: dict[str, list[tuple[float, float]]] = {}
    figures = results.get("auxiliary", {})
    for key, value in figures.items():
        stem, _, kind = key.rpartition("_")
        if kind == "accuracy":
            base = figures.get(f"{stem}_base", 0.5)  # of pairs of segments half are neighbours
            found.setdefault(stem.split("/")[-1], []).append((value, base))
    return found


def accuracy_table(cells: dict[str, list[Results]]) -> str:
    names = list(dict.fromkeys(name for runs in cells.values() for name in accuracies(runs[0])))
    heads = ["cell", *(f"{name.replace('_', ' ')}: {of}" for name in names
                       for of in ("accuracy", "commoner answer"))]  # fmt: skip
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for cell, runs in cells.items():
        line = [cell]
        for name in names:
            of = [accuracies(r).get(name, []) for r in runs]
            line += [spread([100 * statistics.fmean(pair[i] for pair in pairs) for pairs in of])
                     + " %" if all(of) else "" for i in (0, 1)]  # fmt: skip
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(path: Path, cells: dict[str, list[Results]]) -> None:
    from training.plots import bars

    directions = directions_of(cells)
    found = {name: [[figure(r, d, "bleu") for r in runs] for d in directions]
             for name, runs in cells.items()}  # fmt: skip
    bars(
        path, directions, {n: [statistics.fmean(v) for v in of] for n, of in found.items()},
        spread={n: [(max(v) - min(v)) / 2 for v in of] for n, of in found.items()}, y_label="BLEU",
    )  # fmt: skip


def directions_of(cells: dict[str, list[Results]]) -> list[str]:
    rows = [row for runs in cells.values() for row in runs[0]["scores"]]
    return sorted({f"{row['source']}-{row['target']}" for row in rows})


def figure(results: Results, direction: str, metric: str) -> float:
    rows = [r for r in results["scores"] if f"{r['source']}-{r['target']}" == direction]
    return float(rows[0][metric])


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and half the range, where there are several."""
    mean, half = f"{statistics.fmean(values):,.{digits}f}", (max(values) - min(values)) / 2
    return f"{mean} ± {half:.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    raise SystemExit(main())
