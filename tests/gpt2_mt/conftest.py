"""The running server that the client is tested against, and a client that does not sleep."""

from __future__ import annotations

import pytest

from gpt2_mt import client as module
from tests.servers import fake_server, server

__all__ = ["fake_server", "server", "waits"]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a blocking client would have slept."""
    found: list[float] = []
    monkeypatch.setattr(module, "sleep", found.append)
    return found
