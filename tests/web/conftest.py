"""A real server with the bundled model, and a headless Chromium that looks at its page.

Each test gets a page of its own, with empty storage. Whatever a test does, the page must ask no
other server, write no error to the console and keep to its content security policy.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from app.main import create_app
from app.settings import Settings
from tests.servers import Server, serve
from tests.web.steps import QUEUE, SLOTS, visit

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
REASON = "no Chromium on PATH (Debian: apt-get install chromium)"
NETWORK = "Failed to load resource"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def site() -> Iterator[Server]:
    """Over the bundled model, with few slots and a short queue."""
    with serve(create_app(Settings(slots=SLOTS, max_queue=QUEUE, threads=1))) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # not of the session: while it is there, its event loop keeps others off this thread
    with sync_playwright() as player:
        launched = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


class Seen:
    """What a page did: requests, and complaints of the console."""

    def __init__(self, page: Page) -> None:
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.network_may_fail = False  # a test that takes the server away expects Chromium's line
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def posts(self, path: str) -> list[Request]:
        return [r for r in self.requests if r.method == "POST" and urlsplit(r.url).path == path]


@pytest.fixture
def seen(page: Page) -> Seen:
    return page.seen  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def page(browser: Browser, site: Server) -> Iterator[Page]:
    context = browser.new_context(locale="en-GB", reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(20_000)
    opened = context.new_page()
    opened.seen = seen = Seen(opened)
    visit(opened, site)
    yield opened
    assert not [c for c in seen.complaints if not (seen.network_may_fail and NETWORK in c)]
    home = f"127.0.0.1:{site.port}"
    urls = [urlsplit(r.url) for r in seen.requests if not r.url.startswith("blob:")]
    assert {url.netloc for url in urls} == {home}
    assert not any(url.query for url in urls)
    site.wait_until_idle()
    context.close()
