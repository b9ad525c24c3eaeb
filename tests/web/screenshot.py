"""Makes docs/page.png: `python -m tests.web.screenshot`; other sizes and themes with --all."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from app.main import create_app
from app.settings import Settings
from tests.servers import serve

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (
    "My brother lives in Berlin. The children are playing in the garden. "
    "I would like a cup of tea.\n\nThe meeting is on Monday at 9:30 in room 204."
)
SIZES = {"page": (1200, 940), "phone": (390, 800)}


def shoot(browser: Browser, url: str, path: Path, size: tuple[int, int], theme: str) -> None:
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        locale="en-GB",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(url)
    page.locator("html[data-ready]").wait_for()
    page.get_by_label("To", exact=True).select_option("de")
    page.get_by_label("Text to translate").fill(TEXT)
    page.locator("#copy:enabled").wait_for()
    page.locator("#result [role=button]").nth(2).click()
    page.locator("#alternatives-list .choice").first.wait_for()
    page.screenshot(path=path, full_page=width < 800)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", metavar="DIR", type=Path, help="every size and theme, into here")
    folder = parser.parse_args().all
    with serve(create_app(Settings(slots=8, threads=1))) as server, sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        url = f"http://127.0.0.1:{server.port}/"
        if folder is None:
            shoot(browser, url, DOCS / "page.png", SIZES["page"], "light")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            for name, size in SIZES.items():
                for theme in ("light", "dark"):
                    shoot(browser, url, folder / f"{name}-{theme}.png", size, theme)
        browser.close()


if __name__ == "__main__":
    main()
