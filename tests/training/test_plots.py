"""Figures are files of the right kind whose marks are the values given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from training.plots import bars, curves, smooth


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *arguments: Any, **more: Any) -> None:
        figures.append(self)
        save(self, *arguments, **more)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_curves(tmp_path: Path, drawn: list[Figure]) -> None:
    lines = {"a": ([1, 2, 3], [3.0, 2.0, 1.0]), "b": ([1, 3], [2.0, math.nan]),
             "c": ([1], [0.5])}  # fmt: skip
    path = curves(tmp_path / "new" / "c.png", lines, x_label="step", y_label="loss (nats)",
                  title="t", spread={"a": [0.5, 0.5, 0.5]})  # fmt: skip
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (axes,) = drawn[0].axes
    assert [line.get_label() for line in axes.lines] == ["a", "b", "c"]
    assert list(axes.lines[0].get_ydata()) == [3.0, 2.0, 1.0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("step", "loss (nats)", "t")
    (band,) = axes.collections
    low, high = band.get_datalim(axes.transData).intervaly
    assert (low, high) == (0.5, 3.5)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]


def test_many_curves_stay_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    lines = {f"{i}": ([1, 2], [i, i]) for i in range(20)}
    curves(tmp_path / "c.png", lines, x_label="x", y_label="y")
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[0].lines}
    assert len(looks) == 20


def test_bars(tmp_path: Path, drawn: list[Figure]) -> None:
    path = bars(tmp_path / "b.png", ["en-de", "de-en"],
                {"teacher": [30.0, math.nan], "student": [31.0, 29.5]}, y_label="BLEU",
                spread={"student": [1.0, 0.5]})  # fmt: skip
    assert path.stat().st_size > 1000
    (axes,) = drawn[0].axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights[0] == 30.0 and math.isnan(heights[1]) and heights[2:] == [31.0, 29.5]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["en-de", "de-en"]
    assert [text.get_text() for text in axes.texts] == ["30.0", "31.0", "29.5"]
    teacher, student = axes.patches[0], axes.patches[2]
    assert teacher.get_x() < student.get_x() < teacher.get_x() + 1
    assert axes.get_ylim()[0] == 0, "bars start at 0"


def test_smooth() -> None:
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert smooth([4.0, 2.0], 10) == [4.0, 3.0]
    assert smooth([], 3) == []
