"""One version: the changelog's newest entry is pyproject's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_changelog_and_pyproject_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest[1] == project["version"]


def test_pins_satisfy_the_declared_ranges() -> None:
    """Every direct dependency is pinned in the lock file that the make commands install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locks = {"serve": project["dependencies"] + project["optional-dependencies"]["cpu"],
             "dev": [r for k, v in project["optional-dependencies"].items()
                     if k not in ("gpu", "ray")
                     for r in v] + project["dependencies"]}  # fmt: skip
    for name, requirements in locks.items():
        text = (ROOT / "docker" / f"requirements-{name}.txt").read_text(encoding="utf-8")
        pinned = {line.split("==")[0].lower().replace("_", "-") for line in text.splitlines()}
        for requirement in requirements:
            if requirement.startswith("gpt2-mt["):  # names another extra of ours
                continue
            wanted = re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")
            assert wanted in pinned, f"{wanted} is not in requirements-{name}.txt"


def test_serving_pins_hold_no_training_package() -> None:
    text = (ROOT / "docker" / "requirements-serve.txt").read_text(encoding="utf-8").lower()
    for name in ("torch", "transformers", "optimum", "onnx"):
        assert not re.search(rf"^{name}==", text, re.M)
