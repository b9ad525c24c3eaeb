"""The image, if it was built (`make image`; IMAGE is its name), in a container that may nothing."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docker.containers import USER, Buildah, Docker, container_of

IMAGE = os.environ.get("IMAGE", "gpt2-mt")
MOST_BYTES = 350e6  # above its base
ASK = """
import json, sys, urllib.request as u
body = {body!r}
headers = {{"Content-Type": "application/json"}}
request = u.Request("http://127.0.0.1:8000{path}", body and json.dumps(body).encode(), headers)
print(u.urlopen(request, timeout=60).read().decode())
"""
SIZE = """
import os
print(sum(os.lstat(os.path.join(d, f)).st_size for d, _, fs in os.walk("/venv") for f in fs))
"""
MAY = """
import json, os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def fails(action):
    try: action()
    except OSError: return True
    return False
print(json.dumps({
    "user": os.getuid(),
    "no_write": all(fails(lambda p=p: open(p, "w")) for p in ("/x", "/venv/x", "/var/x")),
    "no_network": fails(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
    "capabilities": status["CapEff"].strip(),
}))
"""
Container = Docker | Buildah


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    made = container_of(IMAGE)
    if made is None:
        pytest.skip(f"neither docker, podman nor buildah with runc has {IMAGE}: make image")
    try:
        made.start()
        yield made
    finally:
        made.close()


def ask(container: Container, path: str, body: Any = None) -> Any:
    return json.loads(container.python(ASK.format(path=path, body=body)))


def test_it_is_ready_in_time_and_answers(container: Container) -> None:
    began = time.monotonic()
    while True:
        try:
            assert ask(container, "/health/ready")["status"] == "ok"
            break
        except subprocess.CalledProcessError:
            assert container.runs() and time.monotonic() - began < 120
            time.sleep(0.2)
    print(f"ready after {time.monotonic() - began:.1f} s")  # noqa: T201
    body = {"text": "Good morning!", "source": "en", "target": "de"}
    assert ask(container, "/v1/translate", body)["translations"][0]["text"]
    body = {"prompt": "The weather", "max_tokens": 8}
    assert ask(container, "/v1/generate", body)["generations"][0]["text"]


def test_it_may_nothing(container: Container) -> None:
    may = json.loads(container.python(MAY))
    assert may == {"user": USER, "no_write": True, "no_network": True, "capabilities": "0" * 16}


def test_it_is_small_and_holds_no_installer(container: Container) -> None:
    size = int(container.python(SIZE))
    print(f"{size / 1e6:.0f} MB above its base")  # noqa: T201
    assert size < MOST_BYTES
    assert container.python("import os; print(os.path.exists('/venv/bin/pip'))").strip() == "False"


def test_labels_and_entry(container: Container) -> None:
    labels = container.config["Labels"]
    assert labels["org.opencontainers.image.title"] == "gpt2-mt"
    assert labels["org.opencontainers.image.version"]
    assert container.config["Entrypoint"] == ["gpt2-mt"]
    assert container.config["User"] == f"{USER}:{USER}"


def test_it_ends_by_sigterm(container: Container) -> None:
    began = time.monotonic()
    assert container.stop() in (0, 143)
    assert time.monotonic() - began < 10
