"""People's ways through the dashboard, in a headless Chromium; run with ``pytest -m browser``."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.verdicts import COLUMNS
from landscape.cli.dashboard import MOST_UPLOADED as UPLOAD_MEGABYTES
from landscape.config import RunConfig
from landscape.store import Store
from tests.app.browser import BLANK, PATIENCE, TARGET, chromium, serving, settled, watch
from tests.app.example_stores import growing
from tests.app.test_logs import descent, trainer_state

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

DEMO = Path(__file__).resolve().parents[2] / "landscape" / "assets" / "demo-store.zip"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        opened = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journeys")
    with zipfile.ZipFile(DEMO) as archive:
        archive.extractall(folder)
    return folder / "demo"


@pytest.fixture(scope="module")
def url(demo: Path) -> Iterator[str]:
    with serving(demo) as address:
        yield address


@contextlib.contextmanager
def visiting(page: Any, store: Path) -> Iterator[str]:
    """A dashboard of its own for one page, which leaves before the server stops: what it would miss is no error."""
    with serving(store) as address:
        yield address
        page.goto("about:blank")


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of 1280 x 800; the test fails where anything went wrong in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    wrong = watch(opened)
    yield opened
    context.close()
    assert not wrong


PAGES = ("", "curves", "snapshot", "episodes", "sharpness", "landscape", "importing", "reproduction")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_draws(name: str, page: Any, url: str) -> None:
    page.goto(f"{url}/{name}")
    settled(page)
    page.wait_for_function(f"() => ({BLANK})() === 0")
    assert not page.locator('[data-testid="stException"]').count()
    assert not page.get_by_text("This part of the page failed").count()


def counted(demo: Path, fits: Callable[[RunConfig], bool]) -> str:
    """What the sidebar says of a filter that means these runs."""
    configs = [run.config for run in Store.open(demo).runs()]
    found = sum(map(fits, configs))
    assert 0 < found < len(configs)
    return f"{found} of {len(configs)} runs"


def test_a_link_restores_the_view(page: Any, url: str, demo: Path) -> None:
    page.goto(f"{url}/curves?quantity=eval&logy=true&smoothing=0.0&where=rank+%3D%3D+8")
    settled(page)
    axis = page.evaluate("() => document.querySelector('.js-plotly-plot')._fullLayout.yaxis")
    assert axis["type"] == "log"
    assert axis["title"]["text"].startswith("eval loss")
    assert page.get_by_role("textbox", name="Filter runs").input_value() == "rank == 8"
    assert page.get_by_text(counted(demo, lambda config: config.rank == 8)).count() == 1


def test_a_view_makes_its_link(page: Any, url: str) -> None:
    page.goto(f"{url}/curves")
    settled(page)
    page.get_by_role("button", name="Axes", exact=True).click()
    page.get_by_text("Log values").click()
    page.wait_for_url(re.compile("logy=true"), wait_until="commit")
    settled(page)
    page.reload()
    settled(page)
    assert page.evaluate("() => document.querySelector('.js-plotly-plot')._fullLayout.yaxis.type") == "log"


def test_a_click_on_a_curve_opens_the_snapshot(page: Any, url: str) -> None:
    page.goto(f"{url}/curves?where=method+%3D%3D+lora+and+rank+%3D%3D+32+and+lr+%3D%3D+1.75e-2")
    settled(page)
    target = page.evaluate(TARGET, 40)
    page.mouse.move(target["x"] - 3, target["y"] - 3)
    page.mouse.move(target["x"], target["y"])
    page.wait_for_selector(".hoverlayer .hovertext")
    page.mouse.click(target["x"], target["y"])
    page.wait_for_url(re.compile("/snapshot"), wait_until="commit")
    settled(page)
    assert f"run={target['run']}" in page.url
    opened = page.get_by_role("spinbutton", name="Step").input_value()
    assert 1 <= len(target["steps"]) <= 5
    assert opened in {str(step) for step in target["steps"]}


def test_a_link_to_a_run_that_is_not_there(page: Any, url: str) -> None:
    page.goto(f"{url}/snapshot?run=lora-r8-nothing&step=3")
    settled(page)
    assert page.get_by_text("which this store does not have").count() == 1
    page.wait_for_function(f"() => ({BLANK})() === 0")


def test_an_upload_finds_the_planted_episode(page: Any, url: str) -> None:
    page.goto(f"{url}/importing")
    settled(page)
    log = {"name": "trainer_state.json", "mimeType": "application/json", "buffer": trainer_state(descent(True))}
    page.locator('input[type="file"]').set_input_files([log])
    page.get_by_text(re.compile("^1 episode at p = .*: up by")).wait_for()
    settled(page)
    page.wait_for_function(f"() => ({BLANK})() === 0")
    assert page.evaluate("() => document.querySelector('.js-plotly-plot')._fullLayout.shapes.length") >= 2


def test_exports_download_and_parse(page: Any, url: str) -> None:
    page.goto(f"{url}/curves")
    settled(page)
    page.get_by_role("button", name="Export").first.click()
    content = {}
    for kind in ("PNG", "SVG", "PDF", "CSV", "HTML"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        content[kind] = Path(download.value.path()).read_bytes()
        assert download.value.suggested_filename == f"training-loss-clean.{kind.lower()}"
    assert content["PNG"].startswith(b"\x89PNG")
    assert b"<svg" in content["SVG"]
    assert content["PDF"].startswith(b"%PDF")
    assert b"Plotly.newPlot" in content["HTML"]
    rows = list(csv.DictReader(io.StringIO(content["CSV"].decode())))
    assert len(rows) > 12 * 150
    assert all(np.isfinite(float(row["y"])) for row in rows)


def test_the_report_downloads(page: Any, url: str) -> None:
    page.goto(url)
    settled(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="These runs as a report").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert "loss landscape report" in text
    assert text.rstrip().endswith("</html>")


def test_the_filter_by_keyboard(page: Any, url: str, demo: Path) -> None:
    page.goto(url)
    settled(page)
    page.get_by_role("textbox", name="Filter runs").focus()
    page.keyboard.type("method == mgpo")
    page.keyboard.press("Enter")
    page.get_by_text(counted(demo, lambda config: config.method == "mgpo")).wait_for()
    assert "where=method" in page.url
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement !== document.body")


def test_one_webgl_view_and_only_when_asked_for(page: Any, url: str) -> None:
    page.goto(f"{url}/landscape")
    settled(page)
    assert page.locator("canvas").count() == 0
    page.get_by_text("Draw it").click()
    page.wait_for_selector(".js-plotly-plot canvas")
    assert page.locator(".js-plotly-plot .gl-container canvas").count() <= 2


def test_the_dark_theme(browser: Any, url: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark")
    opened = context.new_page()
    opened.goto(f"{url}/curves")
    settled(opened)
    ground = opened.evaluate("() => document.querySelector('.js-plotly-plot')._fullLayout.paper_bgcolor")
    body = opened.evaluate("() => getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    context.close()
    assert (ground, body) == ("#14171c", "rgb(20, 23, 28)")


def test_the_live_page_moves(tmp_path: Path, page: Any) -> None:
    store = growing(tmp_path / "store")
    running = next(item for item in store.runs() if item.status.state == "running")
    lines = running.path / "attempts" / "1" / "metrics.jsonl"
    whole = lines.read_bytes()
    lines.write_bytes(whole[: whole.rfind(b"\n") + 1])
    with visiting(page, store.path) as address:
        page.goto(address)
        settled(page)
        page.get_by_text("step 50 of 200").wait_for()
        page.evaluate("() => { window.untouched = true; }")
        for step in range(51, 81):
            running.set_status(step=step)
        page.get_by_text("step 80 of 200").wait_for()
        assert page.evaluate("() => window.untouched")
        running.set_status(state="done")
        page.get_by_text("✓ done").first.wait_for()


def test_an_empty_store_fills_while_a_sweep_runs(tmp_path: Path, page: Any) -> None:
    store = Store.create(tmp_path / "store")
    with visiting(page, store.path) as address:
        page.goto(address)
        settled(page)
        page.get_by_text("This store has no runs yet").wait_for()
        page.evaluate("() => { window.untouched = true; }")
        sizes = ["--set", "model=tiny", "--set", "task=arithmetic", "--set", "alpha=r", "--set", "max_steps=40"]
        axes = ["--method", "lora", "--rank", "4", "--lr", "1e-3", "--seed", "0..1", "--workers", "1"]
        sweep = subprocess.Popen(
            [sys.executable, "-m", "landscape", "sweep", *axes, *sizes, "--store", str(store.path)],
            stdout=subprocess.DEVNULL,
        )
        try:
            page.get_by_text(re.compile(r"LoRA, r = 4, .*: step \d+ of 40")).first.wait_for(timeout=300_000)
            page.get_by_text("Store store: ✓ 2 done").wait_for(timeout=300_000)
        finally:
            sweep.terminate()
            sweep.wait(timeout=60)
        assert page.evaluate("() => window.untouched")
        settled(page)
        assert page.evaluate(f"() => ({BLANK})()") == 0


def test_texts_of_a_store_do_nothing(tmp_path: Path, page: Any) -> None:
    harm = "<img src=x onerror='window.harmed=1'> [link](javascript:window.harmed=1) $x^2$"
    store = growing(tmp_path / "<b>store")
    broken = next(item for item in store.runs() if item.status.state != "running")
    broken.set_status(state="failed", error=f"Traceback\n{harm}")
    table = ",".join([*COLUMNS]) + "\n" + ",".join([f'"{harm}"'] * len(COLUMNS)) + "\n"
    (store.path / "reproduction.csv").write_text(table)
    with visiting(page, store.path) as address:
        for name in ("", "curves", f"snapshot?run={broken.id}", "reproduction"):
            page.goto(f"{address}/{name}")
            settled(page)
            assert page.locator("img[src=x]").count() == 0
            assert page.locator("a[href^=javascript]").count() == 0
            assert page.get_by_text("<b>store").count() == 1
            assert page.evaluate("() => window.harmed") is None


def test_an_upload_that_is_too_large_is_refused(tmp_path: Path, page: Any, url: str) -> None:
    large = tmp_path / "log.csv"
    with large.open("wb") as file:
        file.truncate((UPLOAD_MEGABYTES + 1) * 2**20)
    page.goto(f"{url}/importing")
    settled(page)
    page.locator('input[type="file"]').set_input_files(large)
    page.get_by_text(re.compile(f"{UPLOAD_MEGABYTES}.*MB or smaller")).wait_for()
    assert page.locator(".js-plotly-plot").count() == 0


def test_the_page_as_a_file(page: Any, url: str) -> None:
    page.goto(f"{url}/sharpness")
    settled(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this page").click()
    path = Path(download.value.path())
    saved = page.context.new_page()
    wrong = watch(saved)
    saved.goto(_as_html(path).as_uri())
    saved.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 6")
    assert saved.evaluate(f"() => ({BLANK})()") == 0
    assert saved.locator("h2").count() >= 4
    assert not wrong


def _as_html(path: Path) -> Path:
    """Playwright saves downloads under names without an extension."""
    copy = path.with_name("saved.html")
    shutil.copy(path, copy)
    return copy


def test_a_queued_analysis_finishes(page: Any, url: str, demo: Path) -> None:
    run = min((item for item in Store.open(demo).runs() if item.streams()), key=lambda item: item.config.rank or 0)
    shutil.rmtree(run.analysis_dir, ignore_errors=True)
    page.goto(f"{url}/snapshot?run={run.id}&step={run.snapshots().steps[-1]}")
    settled(page)
    assert page.get_by_text("Nothing yet.").count() == 1
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_text(re.compile("Sharpness, LoRA.*: (queued|running|done)")).wait_for()
    page.get_by_text(re.compile("Sharpness, LoRA.*: done")).wait_for(timeout=600_000)
    end = time.monotonic() + 60
    while not (run.analysis_dir / "sharpness.parquet").is_file():
        assert time.monotonic() < end
        time.sleep(0.2)
    settled(page)
    assert page.get_by_text("Nothing yet.").count() == 0


def test_the_server_answers_this_machine_only(url: str) -> None:
    import socket

    assert url.startswith("http://127.0.0.1:")
    port = int(url.rsplit(":", 1)[1])
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((str(address), port)) != 0


def test_the_table_of_the_demo(page: Any, url: str) -> None:
    page.goto(url)
    settled(page)
    assert page.locator('[data-testid="stDataFrame"]').count() == 1
    assert page.title() == "Runs · Landscape"
