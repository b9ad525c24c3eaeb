from tests.app.test_cli import run

__all__ = ["run"]
