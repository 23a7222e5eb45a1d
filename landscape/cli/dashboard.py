"""``app``: the dashboard in a browser."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.console import JsonOption, errors_as_exits, print_json
from landscape.errors import StoreError, UsageError

STORE_VARIABLE = "LANDSCAPE_APP_STORE"
HOST = "127.0.0.1"
FIRST_PORT, PORTS_TRIED = 8501, 20
MOST_UPLOADED = 64
"""Megabytes that an upload may have."""

_LIGHT = {"backgroundColor": "#ffffff", "secondaryBackgroundColor": "#f4f6f8", "textColor": "#1b1f24"}
_DARK = {"backgroundColor": "#14171c", "secondaryBackgroundColor": "#1d2229", "textColor": "#e8eaed"}
_OPTIONS: dict[str, str] = {
    # Only this machine: a store is nobody else's, and there is no password.
    "server.address": HOST,
    "server.headless": "true",
    "server.maxUploadSize": str(MOST_UPLOADED),
    "server.fileWatcherType": "none",
    "server.showEmailPrompt": "false",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    # An error that no page caught must not print a store's paths.
    "client.showErrorDetails": "none",
    "runner.magicEnabled": "false",
    "theme.paddingTop": "2.5rem",
    "theme.headingFontSizes": '["1.9rem", "1.5rem", "1.2rem", "1.05rem", "1rem", "0.9rem"]',
    "theme.metricValueFontSize": "1.5rem",
    "theme.light.primaryColor": "#0072b2",
    "theme.dark.primaryColor": "#56b4e9",
    **{f"theme.light.{key}": value for key, value in _LIGHT.items()},
    **{f"theme.dark.{key}": value for key, value in _DARK.items()},
}


@errors_as_exits
def app(
    *,
    store: Annotated[Path | None, typer.Argument(help="Folder of the run store (default: a demo).")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help=f"Of the server (default: {FIRST_PORT}, or the next free one).")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Open the dashboard: runs, curves, episodes, sharpness and landscapes in a browser, on this machine only."""
    if importlib.util.find_spec("streamlit") is None:
        raise UsageError("the dashboard needs Streamlit: pip install 'lora-landscape[app]'")
    from landscape.resources import folder

    script = folder("app") / "main.py"
    chosen = _port(port)
    with _store(store) as path:
        url = f"http://{HOST}:{chosen}"
        if as_json:
            print_json({"store": path, "url": url})
        else:
            typer.echo(f"{path}: {url} (Ctrl-C stops it)")
        code = _serve(script, path, chosen, browser)
    if code not in (0, -signal.SIGINT, -signal.SIGTERM, 130, 143):
        raise UsageError(f"the dashboard stopped with exit code {code}")


def command(script: Path, port: int, browser: bool) -> list[str]:
    """What serves the dashboard: Streamlit with our options, which nobody's own configuration can loosen."""
    options = _OPTIONS | {"server.port": str(port), "server.headless": "false" if browser else "true"}
    flags = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(script), *flags]


def _serve(script: Path, store: Path, port: int, browser: bool) -> int:
    process = subprocess.Popen(
        command(script, port, browser), env={**os.environ, STORE_VARIABLE: str(store)}, stdout=subprocess.DEVNULL
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        return 0


@contextlib.contextmanager
def _store(path: Path | None) -> Iterator[Path]:
    """The store, or a copy of the demo's that lives as long as the dashboard: analyses and imports write to it."""
    from landscape.store import Store

    if path is not None:
        yield Store.open(path).path.absolute()
        return
    packed = Path(__file__).resolve().parents[1] / "assets" / "demo-store.zip"
    if not packed.is_file():
        raise StoreError("the demo store is missing from this installation; give a store: landscape app STORE")
    with tempfile.TemporaryDirectory(prefix="landscape-demo-") as folder:
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)
        yield Store.open(Path(folder) / "demo").path


def _port(wanted: int | None) -> int:
    """The port asked for, or the first free one.

    Raises:
        UsageError: it is taken.
    """
    for port in [wanted] if wanted is not None else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do it: a port that was closed a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                reason = error.strerror
                continue
        return port
    tried = f"--port {wanted}" if wanted is not None else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1}"
    raise UsageError(f"{tried}: not free ({reason}); choose another with --port")
