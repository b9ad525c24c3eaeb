"""Line plots of benchmark figures: series of points by name flow in, a PNG flows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    target: Path,
    across: str,
    up: str,
    title: str,
    *,
    level: float | None = None,
) -> None:
    """Both axes logarithmic; `level` is a dashed line, a goal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, points in series.items():
        width = 2.5 if name.startswith("ours") else 1.2
        axes.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=width)
    if level is not None:
        axes.axhline(level, linestyle="--", color="grey")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({x for points in series.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set(xlabel=across, ylabel=up, title=title)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
