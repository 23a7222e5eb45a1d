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
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from landscape.store import Store  # noqa: E402
from tests.app.browser import chromium, serving, settled  # noqa: E402

DEMO = ROOT / "landscape" / "assets" / "demo-store.zip"
LONGEST = 1900
MOST_BYTES = 150_000
WIDTH, HEIGHT = 1280, 800
SHOWN = "lora-r32-lr0.0175-s1-"
"""Beginning of the id of the run on the Snapshot page."""


def addresses(store: Path) -> dict[str, str]:
    """Path of each page, as it is worth seeing."""
    run = next(run for run in Store.open(store).runs() if run.id.startswith(SHOWN))
    pages = ("curves", "episodes", "sharpness", "landscape", "importing", "reproduction")
    last = int(run.snapshots().steps[-1])
    return {"runs": "", "snapshot": f"snapshot?run={run.id}&step={last}", **{name: name for name in pages}}


def log(store: Path) -> Any:
    """The losses of the run that is shown as somebody's CSV."""
    run = next(run for run in Store.open(store).runs() if run.id.startswith(SHOWN))
    metrics = run.metrics()
    lines = [f"{step},{loss}\n" for step, loss in zip(metrics["step"], metrics["loss_clean"], strict=True)]
    return {"name": "my-run.csv", "mimeType": "text/csv", "buffer": "".join(["step,loss\n", *lines]).encode()}


def save(content: bytes, target: Path) -> None:
    """As a PNG of 160 colors, in a third of the bytes.

    The most frequent colors stay what they are, so that a small point has its method's own; the others, of gradients
    and the edges of letters, are chosen to cover the rest.
    """
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    found: Any = picture.getcolors(1 << 24)
    exact = [color for _, color in sorted(found, reverse=True)[:112]]
    spread = picture.quantize(48, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).getpalette() or []
    palette = np.array([*exact, *np.array(spread[: 3 * 48]).reshape(-1, 3)], dtype=np.int32)
    # By hand, as Pillow looks colors up in a coarse grid, where white is not quite white.
    pixels = np.asarray(picture, dtype=np.int32)
    codes, places = np.unique(pixels @ [1 << 16, 1 << 8, 1], return_inverse=True)
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    nearest = np.array([np.abs(palette - color).sum(axis=1).argmin() for color in colors], dtype=np.uint8)
    result = Image.fromarray(nearest[places].reshape(pixels.shape[:2]), "P")
    result.putpalette(palette.astype(np.uint8).tobytes())
    result.save(target, optimize=True)
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
        # By its name alone: the pages show it in commands.
        with serving(Path(store.name), store.parent) as url:
            for theme in options.themes.split(","):
                page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme)
                for name, path in chosen.items():
                    page.goto(f"{url}/{path}")
                    settled(page)
                    if name == "importing":
                        page.locator('input[type="file"]').set_input_files([log(store)])
                        page.wait_for_selector(".js-plotly-plot")
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
