"""A running service over the tiny bundle, and one over a fake decoder that can be held still."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.bundle import Bundle
from app.metrics import Metrics
from app.service import Service, ServiceOptions


@pytest.fixture(scope="session")
def service(fp32_bundle: Bundle) -> Iterator[Service]:
    opened = Service.open(
        fp32_bundle.path, ServiceOptions(slots=16, threads=2, max_characters=20_000), Metrics()
    )
    opened.engine.start()
    yield opened
    opened.engine.stop(drain=False)
