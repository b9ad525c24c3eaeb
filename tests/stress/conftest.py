"""The report of all stress tests, and servers that each test starts for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.stress.processes import Process
from tests.stress.report import Report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    made = Report(ROOT / "build" / "stress.md")
    yield made
    made.write()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`start(name=value)`: settings of `gpt2-mt serve`; ended with the test."""
    with ExitStack() as stack:

        def started(**settings: Any) -> Process:
            return stack.enter_context(Process(tmp_path / "stderr", **settings))

        yield started
