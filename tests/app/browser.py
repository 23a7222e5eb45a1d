"""The dashboard in a real Chromium: a server of its own, and pages that are looked at when they have settled."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from landscape.cli.dashboard import HOST, STORE_VARIABLE, command

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"
PATIENCE = 120_000
"""Milliseconds: a loaded machine is slow, and a journey that waits for what it needs loses nothing."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OWN = ("_stcore/health", "_stcore/host-config")
"""What Streamlit looks for under the path of a page before it finds it at the root: 404s that mean nothing."""


def chromium() -> str:
    """The browser of the system; an error where there is none, since these tests were asked for."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise RuntimeError("no Chromium here: apt-get install chromium (these tests do not download one)")
    return found


@contextlib.contextmanager
def serving(store: Path, folder: Path | None = None) -> Iterator[str]:
    """The address of a dashboard of a store, as ``landscape app`` starts it in a folder."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, STORE_VARIABLE: str(store)}
    process = subprocess.Popen(
        command(MAIN, port, browser=False), env=environment, stdout=subprocess.DEVNULL, cwd=folder
    )
    url = f"http://{HOST}:{port}"
    try:
        end = time.monotonic() + PATIENCE / 1000
        while True:
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the dashboard did not start (exit code {process.poll()})") from None
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def watch(page: Any) -> list[str]:
    """A list that fills with what goes wrong in the page: script errors, failed requests, errors on the console."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"page error: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}") if _foreign(request) else None)
    page.on("console", lambda message: wrong.append(message.text) if _is_error(message) else None)
    return wrong


def _foreign(request: Any) -> bool:
    """Anything that is not asked of this server: a page must work without a network."""
    return HOST not in request.url and not request.url.startswith(("data:", "blob:"))


def _is_error(message: Any) -> bool:
    where = str((message.location or {}).get("url", ""))
    return message.type == "error" and not any(part in where for part in _OWN)


def settled(page: Any) -> None:
    """Wait until the page's script has run and its charts are drawn."""
    page.wait_for_selector("h1", timeout=PATIENCE)
    page.wait_for_function(_SETTLED, timeout=PATIENCE)


_SETTLED = """() => {
  const app = document.querySelector('[data-testid="stApp"]');
  if (!app || app.dataset.testScriptState !== 'notRunning') return false;
  if (document.querySelector('[data-testid="stSkeleton"]')) return false;
  return [...document.querySelectorAll('[data-testid="stPlotlyChart"]')].every(
    box => box.querySelector('.js-plotly-plot .main-svg'));
}"""

BLANK = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(plot => {
  const drawn = plot.querySelectorAll(
    '.scatterlayer path, .contourlayer path, .heatmaplayer image, .shapelayer path, .gl-container canvas');
  return !plot._fullData || !(plot._fullData.length + plot._fullLayout.shapes.length) || !drawn.length;
}).length"""
"""How many charts of the page have nothing in them."""

TARGET = """index => {
  const plot = document.querySelector('.js-plotly-plot');
  const trace = plot._fullData.find(item => item.name === 'click');
  const layout = plot._fullLayout;
  const x = layout['xaxis' + trace.xaxis.slice(1)], y = layout['yaxis' + trace.yaxis.slice(1)];
  const box = plot.getBoundingClientRect();
  const place = i => [x._offset + x.c2p(x.d2c(trace.x[i])), y._offset + y.c2p(y.d2c(trace.y[i]))];
  const [left, top] = place(index);
  const isUnder = i => Math.hypot(place(i)[0] - left, place(i)[1] - top) <= trace.marker.size;
  return {
    x: box.left + left, y: box.top + top, run: trace.customdata[index][0],
    steps: [...trace.x.keys()].filter(isUnder).map(i => trace.customdata[i][1]),
  };
}"""
"""Where a click opens a snapshot, of which run, and of which steps: points a few pixels apart lie under one click."""
