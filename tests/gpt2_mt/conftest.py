"""The running server that the client is tested against."""

from tests.servers import fake_server, server

__all__ = ["fake_server", "server"]
