"""Figures for reports and results: lines over steps and bars over groups, as PNG files.

Numbers with labels and units flow in, one file a call flows out. Drawn without pyplot, so nothing
is kept between two figures; colours are Okabe and Ito's, told apart by readers of any sight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Line = tuple[Sequence[float], Sequence[float]]  # x and y
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")
_MANY = 2  # more lines or series than this get a legend outside the axes
_FEW = 16  # bars up to this number carry their values


def curves(
    path: Path, lines: Mapping[str, Line], *, x_label: str, y_label: str, title: str = "",
    spread: Mapping[str, Sequence[float]] | None = None,
) -> Path:  # fmt: skip
    """One line a label; `spread` gives a half-width about it, drawn as a band. NaN leaves a gap."""
    figure, axes = _axes(title, x_label, y_label)
    styles = [(colour, dash) for dash, colour in product(_DASHES, _COLOURS)]
    for i, (label, (x, y)) in enumerate(lines.items()):
        colour, dash = styles[i % len(styles)]
        axes.plot(x, y, dash, color=colour, linewidth=1.5, label=label,
                  marker="." if len(x) < 30 else None)  # fmt: skip
        if spread and label in spread:
            low, high = ([v + sign * s for v, s in zip(y, spread[label], strict=True)]
                         for sign in (-1, 1))  # fmt: skip
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=all(v == int(v) for x, _ in lines.values()
                                                            for v in x)))  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    return _finish(figure, axes, path, len(lines))


def bars(
    path: Path, groups: Sequence[str], series: Mapping[str, Sequence[float]], *, y_label: str,
    title: str = "", spread: Mapping[str, Sequence[float]] | None = None,
) -> Path:  # fmt: skip
    """Bars side by side in each group, one a series; NaN leaves its place empty.

    `spread` gives a half-width about each bar, drawn as an error bar.
    """
    figure, axes = _axes(title, "", y_label, width=max(6.4, 1.5 + 0.22 * len(groups) * len(series)))
    width = 0.8 / max(1, len(series))
    for i, (label, values) in enumerate(series.items()):
        places = [at + (i - (len(series) - 1) / 2) * width for at in range(len(groups))]
        axes.bar(places, values, width, label=label, color=_COLOURS[i % len(_COLOURS)],
                 yerr=(spread or {}).get(label), capsize=2, error_kw={"linewidth": 1})  # fmt: skip
        tops = [v + s for v, s in zip(values, (spread or {}).get(label) or [0.0] * len(values),
                                      strict=True)]  # fmt: skip
        for place, top, value in zip(places, tops, values, strict=True):
            if len(groups) * len(series) <= _FEW and math.isfinite(value):
                axes.annotate(f"{value:.1f}", (place, top), ha="center", va="bottom",
                              xytext=(0, 2), textcoords="offset points", fontsize=7)  # fmt: skip
    axes.set_xticks(range(len(groups)), groups, rotation=45 if len(groups) > 6 else 0,
                    ha="right" if len(groups) > 6 else "center")  # fmt: skip
    return _finish(figure, axes, path, len(series))


def smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and up to `width` - 1 before it."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        means.append(total / min(i + 1, width))
    return means


def _axes(title: str, x_label: str, y_label: str, width: float = 6.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _finish(figure: Figure, axes: Axes, path: Path, labels: int) -> Path:
    if labels > _MANY:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    elif labels > 1:
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def _short(value: float, _: int) -> str:
    """1500000 as 1.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
