"""Bundles that cannot be trusted: refused at start and at a reload, by file and reason."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from app.settings import DEFAULT_BUNDLE
from tests.stress.bundles import BAD, GOLDEN, bad, copy, link, names
from tests.stress.processes import SERVE, Process
from tests.stress.report import Report

pytestmark = pytest.mark.stress
ASK = {"text": "Where is the station?", "source": "en", "target": "de"}


def said(name: str, text: str) -> bool:
    return all(words in text for words in BAD[name][1]) and "Traceback" not in text


def test_refused_at_start(report: Report, tmp_path: Path) -> None:
    with report.test("bad bundles at start") as check:
        for name in names():
            path = bad(name, tmp_path / name.replace(" ", "-"))
            done = subprocess.run(
                [*SERVE, "--bundle", str(path), "--port", "0"],
                env={**os.environ}, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            lines = [line for line in done.stderr.splitlines() if line]
            check(
                f"{name}: refused, with the file and the reason",
                f"status {done.returncode}, {lines[-1].replace(str(tmp_path), '')[:120]}",
                done.returncode != 0 and said(name, done.stderr),
            )
    if GOLDEN not in names():
        report.left_out("bad bundles", "the bundled model has no golden answer", GOLDEN)


def test_refused_at_a_reload(
    start: Callable[..., Process], report: Report, tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    link(path, copy(DEFAULT_BUNDLE, tmp_path / "good"))
    server = start(bundle=path)
    failed = 'reloads_total{result="failed"}'
    with report.test("bad bundles at a reload") as check:
        before = server.http.post("/v1/translate", json=ASK).json()["translations"]
        for count, name in enumerate(names(), 1):
            seen = len(server.errors)
            link(path, bad(name, tmp_path / name.replace(" ", "-")))
            server.send(signal.SIGHUP)
            server.wait(lambda count=count: server.metric(failed) == count, 30)
            after = server.http.post("/v1/translate", json=ASK).json()["translations"]
            told = server.errors[seen:]
            same = server.metric(failed) == count and after == before
            check(
                f"{name}: the log names it, the old bundle answers",
                "same answers" if same else f"{server.metric(failed):.0f} reloads failed: {told}",
                same and said(name, told),
            )
