"""Settings: the environment, overrides, errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import SettingsError
from app.settings import DEFAULT_BUNDLE, Settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GPT2MT_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = Settings.load()
    assert (settings.port, settings.device, settings.bundle) == (8000, "auto", DEFAULT_BUNDLE)
    assert DEFAULT_BUNDLE.parts[-3:] == ("app", "models", "default")


def test_the_environment_and_what_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2MT_PORT", "9000")
    monkeypatch.setenv("GPT2MT_SLOTS", "8")
    settings = Settings.load({"port": 9001, "bundle": "/b", "host": None})
    assert (settings.port, settings.slots, settings.bundle) == (9001, 8, Path("/b"))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("GPT2MT_PROT", "1", "unknown setting GPT2MT_PROT"),
        ("GPT2MT_PORT", "many", r"port \(GPT2MT_PORT\) is 'many'"),
        ("GPT2MT_PORT", "70000", "65535"),
        ("GPT2MT_SLOTS", "0", "slots"),
        ("GPT2MT_CACHE_MB", "0", "cache_mb"),
        ("GPT2MT_DEVICE", "tpu", "device.*tpu"),
        ("GPT2MT_DRAIN_S", "nan", "drain_s"),
        ("GPT2MT_DEFAULT_TIMEOUT_S", "700", "max_timeout_s 600"),
    ],
)
def test_errors_name_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, match: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=match):
        Settings.load()


def test_an_unknown_override_is_an_error() -> None:
    with pytest.raises(SettingsError, match="colour"):
        Settings.load({"colour": "red"})
