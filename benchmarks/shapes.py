"""Quality against speed of several shapes of the model: the cells of shapes.toml.

`python -m benchmarks.ablations run --spec benchmarks/shapes.toml` trains them for equal minutes.
Here each is exported (int8) and asked in turn with the others for tokens a second, as peers.py asks
engines. Out come shapes.json and a table. Run as `python -m benchmarks.shapes --cells DIR`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.bundle import Bundle
from benchmarks.command import parser, say
from benchmarks.peers import CALLS, Variant, measure, running
from benchmarks.tables import Spread, markdown
from benchmarks.texts import BATCHES, prompts
from export.bundle import export_bundle


def cells_of(folder: Path) -> dict[str, dict[str, Any]]:
    """By shape what benchmarks.ablations wrote: results, and the folder it is in."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/results.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(results["cell"], {**results, "folder": file.parent})
    return found


def table(cells: dict[str, dict[str, Any]], bundles: dict[str, Bundle], speeds: Any) -> str:
    rows = []
    for shape, results in cells.items():
        manifest = bundles[shape].manifest
        size = sum(file.bytes for file in manifest.files.values()) / 1e6
        means = [statistics.fmean(row[m] for row in results["scores"]) for m in ("bleu", "chrf")]
        log = (results["folder"] / "finetune" / "metrics.jsonl").read_text(encoding="utf-8")
        steps = json.loads(log.splitlines()[-1])["step"]
        tokens = [str(Spread.of(speeds[shape]["tokens_per_s"][batch])) for batch in BATCHES]
        rows.append((shape, f"{manifest.model.parameters / 1e6:.1f}M", f"{size:.1f}",
                     f"{steps:,}", *(f"{mean:.1f}" for mean in means), *tokens))  # fmt: skip
    head = ("layers x width - heads", "parameters", "MB", "steps", "mean BLEU", "mean chrF",
            *(f"tokens/s, batch {batch}" for batch in BATCHES))  # fmt: skip
    return markdown(head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("shapes", __doc__)
    add = commands.add_argument
    add("--cells", type=Path, required=True, help="what benchmarks.ablations wrote")
    add("--rounds", type=int, default=7, help="turns (default %(default)s)")
    arguments = commands.parse_args(argv)
    cells, place = cells_of(arguments.cells), arguments.out / "shapes"
    bundles, variants = {}, []
    for shape, results in cells.items():
        if not (place / shape).exists():
            say(f"{shape}: exporting")
            export_bundle(results["folder"] / "finetune" / "checkpoint", place / shape,
                          precision="int8", verify=False)  # fmt: skip
        bundles[shape] = Bundle.open(place / shape)
        threads = len(os.sched_getaffinity(0))
        variants.append(Variant(shape, "", "ours", shape, {"threads": threads}))
    rows = prompts(next(iter(bundles.values())), max(*BATCHES, CALLS), seed=0)
    with running(place, variants, arguments.out / "logs") as workers:
        speeds = measure(workers, rows, arguments.rounds)
    (arguments.out / "shapes.json").write_text(json.dumps(speeds, indent=1), encoding="utf-8")
    text = table(cells, bundles, speeds)
    (arguments.out / "shapes.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
