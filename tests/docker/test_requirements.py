"""What is installed to serve is pinned by hashes and fits what pyproject.toml asks for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

DOCKER = Path(__file__).parents[2] / "docker"
LOCKED = ["serve", "gpu", "derive", "build", "ray"]


def entries(name: str) -> dict[str, list[str]]:
    """Requirement and hashes."""
    text = (DOCKER / f"requirements-{name}.txt").read_text(encoding="utf-8")
    found = {}
    for entry in re.sub(r"\\\n", " ", text).splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", entry)
        found[requirement] = hashes
    return found


@pytest.mark.parametrize("name", LOCKED)
def test_every_package_is_pinned_by_hashes(name: str) -> None:
    found = entries(name)
    assert found
    for requirement, hashes in found.items():
        assert re.fullmatch(r"==[\w.]+", str(Requirement(requirement).specifier)), requirement
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), requirement


def test_the_sets_agree() -> None:
    serve = {Requirement(line).name: line for line in entries("serve")}
    for name in ("gpu", "derive", "ray"):
        other = {Requirement(line).name: line for line in entries(name)}
        for package in serve.keys() & other.keys():
            assert Requirement(serve[package]).specifier == Requirement(other[package]).specifier


def test_another_file_than_was_pinned_is_refused(tmp_path: Path) -> None:
    """With pip itself, on a package made here."""
    wheel = tmp_path / "made-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not what was pinned")
    wanted = tmp_path / "requirements.txt"
    wanted.write_text(f"made==1.0 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--dry-run",
               "--require-hashes", "--find-links", str(tmp_path), "-r", str(wanted)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "DO NOT MATCH THE HASHES" in done.stderr, done.stderr


def test_the_installing_commands_ask_for_hashes() -> None:
    image = (DOCKER.parent / "Dockerfile").read_text(encoding="utf-8")
    installs = [line for line in image.replace("\\\n", " ").splitlines() if "pip" in line]
    for line in installs:
        for command in re.findall(r"pip (?:--python \S+ )?install (.*?)(?:&&|$)", line):
            assert "--require-hashes" in command or "--no-index" in command, command
