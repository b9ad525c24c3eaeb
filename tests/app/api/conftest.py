"""The running server for tests of its routes, and a client of it."""

from __future__ import annotations

import httpx
import pytest

from tests.servers import Server, fake_server, server

__all__ = ["client", "fake_server", "server"]


@pytest.fixture
def client(server: Server) -> httpx.Client:
    return server.client
