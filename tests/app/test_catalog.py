"""Several bundles by name, and a reload that loses nothing and takes nothing bad."""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import app.main
from app.bundle import Bundle
from app.catalog import Catalog
from app.engine.request import Finished, Request, Token
from app.errors import BundleError, SettingsError, UnknownModel
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.settings import Settings
from tests.servers import Server, serve

OPTIONS = ServiceOptions(slots=2, threads=1)


def named(bundle: Bundle, name: str, path: Path) -> Path:
    """A copy of the bundle under another name."""
    shutil.copytree(bundle.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
    return path


@pytest.fixture
def open_() -> Callable[[Path], Service]:
    return lambda path: Service.open(path, OPTIONS, Metrics())


def test_a_reload_waits_for_who_works_with_the_old_one(
    int8_bundle: Bundle, tmp_path: Path, open_: Callable[[Path], Service]
) -> None:
    path = named(int8_bundle, "first", tmp_path / "bundle")
    catalog = Catalog([path], open_, drain_s=5)
    catalog.load()
    old = catalog.first
    assert catalog.reload().unchanged == ("first",) and catalog.first is old
    lease, other = catalog.lease(), catalog.lease("first")
    assert lease.service is other.service is old
    shutil.rmtree(path)
    named(int8_bundle, "second", path)
    assert catalog.reload().replaced == ("second",)
    with pytest.raises(UnknownModel, match="'first'; here are 'second'"):
        catalog.lease("first")
    lease.close()
    lease.close()  # once is enough
    assert old.engine.alive
    other.close()
    old.engine._thread.join(5)
    assert not old.engine.alive
    with catalog.lease() as new:
        assert new.service.engine.alive
    catalog.stop()
    assert not new.service.engine.alive


def test_one_that_nobody_works_with_is_stopped_at_once(
    int8_bundle: Bundle, tmp_path: Path, open_: Callable[[Path], Service]
) -> None:
    path = named(int8_bundle, "first", tmp_path / "bundle")
    catalog = Catalog([path], open_, drain_s=5)
    catalog.load()
    old = catalog.first
    shutil.rmtree(path)
    named(int8_bundle, "second", path)
    catalog.reload()
    assert not old.engine.alive
    catalog.stop()


def test_the_end_waits_for_who_works_who_may_submit_more(
    int8_bundle: Bundle, tmp_path: Path, open_: Callable[[Path], Service]
) -> None:
    catalog = Catalog([int8_bundle.path], open_, drain_s=5)
    catalog.load()
    lease, other = catalog.lease(), catalog.lease()
    ending = threading.Thread(target=catalog.stop, kwargs={"timeout_s": 20})
    ending.start()
    other.close()
    ending.join(0.2)
    events: queue.Queue[object] = queue.Queue()
    lease.service.engine.submit([Request((1, 2), 2, events.put, frozenset())])
    assert [type(events.get(timeout=10)) for _ in range(3)] == [Token, Token, Finished]
    assert ending.is_alive()
    lease.close()
    ending.join(10)
    assert not ending.is_alive() and not lease.service.engine.alive


def test_the_end_does_not_wait_longer_than_it_may(
    int8_bundle: Bundle, tmp_path: Path, open_: Callable[[Path], Service]
) -> None:
    catalog = Catalog([int8_bundle.path], open_, drain_s=5)
    catalog.load()
    lease = catalog.lease()
    catalog.stop(timeout_s=0.05)
    assert not lease.service.engine.alive
    lease.close()


@pytest.mark.parametrize("harm", ["truncate", "remove", "foreign"])
def test_a_bad_bundle_changes_nothing(
    int8_bundle: Bundle, tmp_path: Path, open_: Callable[[Path], Service], harm: str
) -> None:
    paths = [named(int8_bundle, name, tmp_path / name) for name in ("good", "other")]
    catalog = Catalog(paths, open_, drain_s=5)
    catalog.load()
    before = catalog.services
    shutil.rmtree(paths[0])
    named(int8_bundle, "newer", paths[0])  # good itself, but not without the other
    file = paths[1] / "model.onnx"
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "remove":
        file.unlink()
    else:
        (paths[1] / "manifest.json").write_text('{"format": "something else"}')
    with pytest.raises(BundleError, match="manifest.json" if harm == "foreign" else "model.onnx"):
        catalog.reload()
    assert catalog.services == before and all(one.engine.alive for one in before)
    catalog.stop()


def test_two_of_a_name_are_refused(
    int8_bundle: Bundle, tmp_path: Path, open_: Callable[[Path], Service]
) -> None:
    copy = named(int8_bundle, int8_bundle.manifest.name, tmp_path / "copy")
    with pytest.raises(SettingsError, match="copy is named"):
        Catalog([int8_bundle.path, copy], open_, drain_s=5).load()


@pytest.fixture
def two(int8_bundle: Bundle, fp32_bundle: Bundle, tmp_path: Path) -> Iterator[Server]:
    more = named(fp32_bundle, "more", tmp_path / "more")
    settings = Settings(bundle=int8_bundle.path, bundles=str(more), threads=1, slots=2)
    with serve(app.main.create_app(settings)) as running:
        yield running


def test_bundles_by_name_over_http(two: Server, int8_bundle: Bundle) -> None:
    def post(path: str, body: dict[str, object]) -> httpx.Response:
        return two.client.post(path, json=body)

    first = int8_bundle.manifest.name
    told = two.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in told] == [first, "more"]
    text = {"text": "Good morning!", "source": "en", "target": "de"}
    prompt = {"prompt": "The", "max_tokens": 3}
    for path, body in (("/v1/translate", text), ("/v1/generate", prompt)):
        assert post(path, body).json()["model"] == first
        for name in (first, "more"):
            assert post(path, {**body, "model": name}).json()["model"] == name
        refused = post(path, {**body, "model": "none"})
        assert (refused.status_code, refused.json()["param"]) == (404, "model")
    assert post("/v1/completions", {**prompt, "model": "more"}).json()["model"] == "more"
    for name, status in (("more", 200), ("none", 404)):
        data = {"source": "en", "target": "de", "model": name}
        sent = two.client.post("/v1/documents", files={"file": ("a.txt", b"Hello.")}, data=data)
        assert sent.status_code == status, sent.text
    assert two.client.get("/v1/languages?model=more").status_code == 200
    assert two.client.get("/v1/languages?model=none").status_code == 404
    assert two.client.get("/v2/models/more/ready").status_code == 200
    metrics = two.client.get("/metrics").text
    assert "gpt2mt_slots 4.0" in metrics  # of both engines together
    assert all(f'gpt2mt_model_info{{model="{name}"' in metrics for name in (first, "more"))
    assert not any(entry.users for entry in two.app.state.gpt2mt.catalog._entries.values())


def test_a_glossary_may_be_of_any_models_pair(
    int8_bundle: Bundle, fp32_bundle: Bundle, tmp_path: Path
) -> None:
    less = named(int8_bundle, "less", tmp_path / "less")
    manifest = json.loads((less / "manifest.json").read_text())
    manifest["pairs"] = [pair for pair in manifest["pairs"] if pair[1] != "de"]
    (less / "manifest.json").write_text(json.dumps(manifest))
    settings = Settings(bundle=less, bundles=str(fp32_bundle.path), threads=1, slots=2)
    stored = {"source": "en", "target": "de", "entries": {"cat": "Katze"}}
    text = {"text": "A cat.", "source": "en", "target": "de", "glossary": "animals"}
    with serve(app.main.create_app(settings)) as running:
        client = running.client
        assert client.put("/v1/glossaries/animals", json=stored).status_code == 200
        refused = client.put("/v1/glossaries/other", json={**stored, "target": "xx"})
        assert (refused.status_code, refused.json()["param"]) == (422, "target")
        assert client.post("/v1/translate", json=text).json()["param"] == "target"
        more = {**text, "model": fp32_bundle.manifest.name}
        answer = client.post("/v1/translate", json=more)
        assert answer.status_code == 200, answer.text
