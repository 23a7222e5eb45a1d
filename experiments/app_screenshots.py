"""Pictures of the dashboard's pages on the demo store, as the documentation shows them.

    python experiments/app_screenshots.py [--out docs/images] [--themes light,dark] [--store FOLDER]

Needs Chromium and Playwright. Pages are 1280 wide and as long as they are, at most `LONGEST`.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from landscape.store import Store  # noqa: E402
from tests.app.browser import chromium, serving, settled  # noqa: E402

DEMO = ROOT / "landscape" / "assets" / "demo-store.zip"
LONGEST = 1900
MOST_BYTES = 150_000
WIDTH, HEIGHT = 1280, 800


def addresses(store: Path) -> dict[str, str]:
    """Path of each page, as it is worth seeing."""
    run = next((run.id for run in Store.open(store).runs() if run.id.startswith("lora-r32-lr0.0175-")), "")
    pages = ("curves", "episodes", "sharpness", "landscape", "importing", "reproduction")
    return {"runs": "", "snapshot": f"snapshot?run={run}&step=105", **{name: name for name in pages}}


def save(content: bytes, target: Path) -> None:
    """As a PNG of 96 colors, which text and lines look the same in, in a third of the bytes."""
    picture = Image.open(io.BytesIO(content)).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    picture.save(target, optimize=True)
    if target.stat().st_size > MOST_BYTES:
        sys.exit(f"{target} has {target.stat().st_size} bytes; at most {MOST_BYTES}: make the page shorter")


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--themes", default="light")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--pages", help="only these, with commas between")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = options.store
        if store is None:
            zipfile.ZipFile(DEMO).extractall(folder)
            store = Path(folder) / "demo"
        chosen = addresses(store)
        if options.pages:
            chosen = {name: chosen[name] for name in options.pages.split(",")}
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        with serving(store) as url:
            for theme in options.themes.split(","):
                page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme)
                for name, path in chosen.items():
                    page.goto(f"{url}/{path}")
                    settled(page)
                    length = page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollHeight")
                    page.set_viewport_size({"width": WIDTH, "height": max(HEIGHT, min(length, LONGEST))})
                    settled(page)
                    page.wait_for_timeout(800)  # charts follow the new height with an animation
                    target = options.out / f"app-{name}{'' if theme == 'light' else '-' + theme}.png"
                    save(page.screenshot(), target)
                    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
                    print(target, flush=True)
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
