"""The import rules: two leaves and one bridge, and inside `app` downwards only.

Read from the source, so that a lazy import inside a function counts as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"app", "training", "export", "gpt2_mt"}
FORBIDDEN = {
    "app": {"training", "export", "gpt2_mt", "torch", "transformers", "optimum", "onnx"},
    "training": {"app", "export", "gpt2_mt", "onnxruntime", "fastapi", "onnx", "transformers"},
    "export": {"gpt2_mt", "fastapi"},
}
# What a module of `app` may import from `app`: only what stands on a lower floor.
FLOORS = [
    {"app.cli"},
    {"app.commands"},
    {"app.main"},
    {"app.api"},
    {"app.catalog"},
    {"app.service"},
    {"app.documents"},
    {"app.tasks"},
    {"app.engine", "app.text"},
    {"app.access", "app.bundle", "app.logs", "app.metrics", "app.settings", "app.tracing"},
    {"app.errors", "app.graph", "app.record"},
]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def floor_of(module: str) -> int:
    for floor, prefixes in enumerate(FLOORS):
        if any(module == p or module.startswith(p + ".") for p in prefixes):
            return floor
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_keep_apart(package: str) -> None:
    for path in modules(package):
        for name in imports(path):
            assert name.split(".")[0] not in FORBIDDEN[package], f"{path.name} imports {name}"


def test_app_imports_downwards_only() -> None:
    for path in modules("app"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name == "__init__.py":
            continue
        mine = floor_of(module)
        room = module.split(".")[:2]
        for name in imports(path):
            if name.split(".")[0] == "app" and name.split(".")[:2] != room:
                assert floor_of(name) > mine, f"{module} imports {name}, which is not below it"


def test_only_main_and_commands_read_settings() -> None:
    allowed = {"main", "commands", "settings"}
    for path in modules("app"):
        if path.relative_to(ROOT / "app").parts[0].removesuffix(".py") not in allowed:
            assert "app.settings" not in set(imports(path)), path


LIGHT = ("app.cli", "export.cli", "training.cli", "training.arguments")


@pytest.mark.parametrize("module", LIGHT)
def test_command_modules_are_light(module: str) -> None:
    """At module level they import the standard library and one another only, so that --help
    answers at once."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            assert name in LIGHT or name.split(".")[0] in sys.stdlib_module_names, name


def test_the_client_needs_httpx_only() -> None:
    for name in ("client", "messages", "retry"):
        for found in imports(ROOT / "gpt2_mt" / f"{name}.py"):
            package = found.split(".")[0]
            ours = found in ("gpt2_mt.messages", "gpt2_mt.retry")
            assert ours or package == "httpx" or package in sys.stdlib_module_names
