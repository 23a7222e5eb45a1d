"""How fast the dashboard is on a large store, measured in Chromium: first page, change of filter, points, memory.

    python experiments/benchmarks/app.py                 # 1,000 runs of 10,000 steps
    python experiments/benchmarks/app.py --store big     # makes the store there, or takes the one that is there
    python experiments/benchmarks/app.py --runs 100 --steps 1000 --out small.json

The store is made of a few distinct runs and links to their files under other settings: what the dashboard reads is as
large as if all were different. All runs were tested for rebounds, and their sharpness is there. Times are from the
request (or the key press) until the page has settled and its charts are drawn, the median over repetitions; "not read
yet" is the first request to a server that just started. Memory is the server's highest. The JSON names the hardware and
the machine's load before and after; the table of docs/app.md is written from it, where it is the committed one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landscape.analysis import analyze_episodes  # noqa: E402
from landscape.analysis.tables import write_table  # noqa: E402
from landscape.config import RunConfig  # noqa: E402
from landscape.store import Store  # noqa: E402
from tests import synthetic_runs  # noqa: E402
from tests.app.browser import chromium, serving, settled  # noqa: E402

BOUNDS = {
    "first page, s": 2.0, "filter on runs, s": 1.0, "filter on curves, s": 1.0, "filter on episodes, s": 1.0,
    "filter on sharpness, s": 1.0, "points in a figure": 50_000, "WebGL views on a page": 1,
    "memory of the server, GB": 1.0,
}  # fmt: skip
RESULT = Path(__file__).parent / "results" / "app-cpu.json"
DOCUMENT = ROOT / "docs" / "app.md"
MARKS = "<!-- Written by experiments/benchmarks/app.py. -->", "<!-- Up to here. -->"
PAGES = ("", "curves", "snapshot", "episodes", "sharpness", "landscape", "importing", "reproduction")
DISTINCT = 6
ANALYSES = ("analysis/episodes.parquet", "analysis/sharpness.parquet")
REPEATS = 5
METHODS, RANKS, RATES = ("lora", "mgpo", "ggpo", "full"), (8, 16, 32, 64, 128), (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)


def make_store(path: Path, runs: int, steps: int) -> Store:
    """A store of so many runs; all but `DISTINCT` are links to the metrics of another."""
    store = Store.create(path)
    sources = []
    for number in range(runs):
        cell, seed = divmod(number, 10)
        settings = {
            "method": METHODS[cell % 4], "rank": RANKS[cell // 4 % 5], "learning_rate": RATES[cell // 20 % 5],
            "seed": seed, "max_steps": steps, "alpha": 16,
        }  # fmt: skip
        if settings["method"] == "full":
            settings |= {"rank": None, "alpha": None}
        run = store.add(RunConfig.parse(settings), f"run-{number:04d}", {"data": "d" * 16, "model": "m" * 16})
        if number < DISTINCT:
            with run.begin_attempt() as attempt:
                for record in records(steps, number):
                    attempt.log(record)
            run.set_status(state="done", step=steps)
            run.compact()
            analyze_episodes(run)
            values = synthetic_runs.sharpness(run.config.model_dump(mode="json"), steps // 12)
            write_table(run.analysis_dir / "sharpness.parquet", values)
            sources.append(run)
            continue
        source = sources[number % DISTINCT]
        for name in ("metrics.parquet", "attempts/1/metrics.jsonl", *ANALYSES):
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source.path / name, run.path / name)
        run.set_status(state="done", step=steps, attempt=1)
    return store


def records(steps: int, seed: int) -> list[dict[str, Any]]:
    """A falling loss with noise, spikes, and an evaluation every tenth of a percent."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, 0.1, steps) + (generator.random(steps) < 0.001) * 5
    rows: list[dict[str, Any]] = []
    for index in range(steps):
        loss = 1 + np.exp(-5 * index / steps) + noise[index]
        rows.append(
            {
                "step": index + 1, "epoch": index / 1000, "tokens": 512 * index, "learning_rate": 1e-4,
                "loss_clean": loss, "loss_perturbed": loss, "loss_base": 2.0 + noise[index], "grad_norm": 1.0,
                "perturbation_norm": 0.0, "adapter_norm": 3.0, "seconds": 0.1,
            }
        )  # fmt: skip
        if (index + 1) % max(1, steps // 1000) == 0:
            evaluation = {"step": index + 1, "loss": loss, "standard_error": 0.02}
            rows += [{**evaluation, "split": split} for split in ("eval", "probe")]
    return rows


def timed(action: Callable[[], None]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def measure(url: str, page: Any) -> dict[str, float]:
    """Everything that has a bound, and what else is worth knowing."""

    def opened(path: str) -> Callable[[], None]:
        def go() -> None:
            page.goto(f"{url}/{path}")
            settled(page)

        return go

    def filtered(text: str) -> Callable[[], None]:
        def go() -> None:
            page.get_by_role("textbox", name="Filter runs").fill(text)
            page.keyboard.press("Enter")
            page.wait_for_function("text => new URL(location).searchParams.get('where') === text", arg=text)
            page.wait_for_timeout(50)  # the address changes a moment before the script starts
            settled(page)

        return go

    def on(name: str, more: str = "") -> float:
        """Change of filter on a page: every one to runs that were not shown before."""
        opened(f"{name}?where=rank+%3D%3D+8{more.replace(' ', '+').replace('=', '%3D')}")()
        return statistics.median(timed(filtered(f"rank == {rank}{more}")) for rank in RANKS[1:])

    found = {"first page, store not read yet, s": timed(opened(""))}
    found["first page, s"] = statistics.median(timed(opened("")) for _ in range(REPEATS))
    found["filter on runs, s"] = on("")
    found["filter on curves, s"] = on("curves", " and lr == 1e-4")
    for name in ("episodes", "sharpness"):
        found[f"{name}, not read yet, s"] = timed(opened(name))
        found[f"filter on {name}, s"] = on(name, " and lr == 1e-4")
    points, views = [], []
    for name in PAGES:
        opened(name)()
        points.append(page.evaluate(POINTS))
        views.append(page.evaluate(VIEWS))
    return found | {"points in a figure": max(points), "WebGL views on a page": max(views)}


POINTS = """() => Math.max(0, ...[...document.querySelectorAll('.js-plotly-plot')].map(
  plot => plot._fullData.reduce((sum, trace) => sum + (trace.x ? trace.x.length : 0), 0)))"""


VIEWS = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(
  plot => plot.querySelector('.gl-container canvas')).length"""
"""Charts that took one of the few WebGL contexts that browsers grant a page."""


def highest(process: psutil.Process) -> float:
    """Most main memory that a process took, GB."""
    path = Path(f"/proc/{process.pid}/status")
    lines = path.read_text().splitlines() if path.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return max([process.memory_info().rss, *peaks]) / 1e9


def machine(before: float) -> dict[str, Any]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "load before": before, "load after": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as the documentation shows it."""
    machine = result["machine"]
    lines = [
        f"{result['runs']:,} runs of {result['steps']:,} steps, in Chromium on the same machine "
        f"({machine['processor']}, {machine['cores']} cores; load {machine['load before']:.1f} before and "
        f"{machine['load after']:.1f} after; {machine['date'][:10]}):", "",
        "| | measured | bound |", "|---|---|---|",
    ]  # fmt: skip
    for name, value in result["found"].items():
        bound = result["bounds"].get(name)
        shown = f"{value:,.0f}" if name.startswith(("points", "WebGL")) else f"{value:.2f}"
        missed = " (missed)" if bound is not None and value > bound else ""
        lines.append(f"| {name} | {shown}{missed} | {'' if bound is None else f'{bound:,g}'} |")
    return "\n".join(lines)


def write_document(result: dict[str, Any]) -> None:
    """Put the table between the document's marks."""
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n\n{table(result)}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--store", type=Path, help="made here before, or made now and kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = options.store or Path(folder) / "store"
        store = Store.open(path) if path.is_dir() else make_store(path, options.runs, options.steps)
        before = os.getloadavg()[0]
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        with serving(store.path) as url:
            found = measure(url, page)
            servers = [child for child in psutil.Process().children() if "streamlit" in " ".join(child.cmdline())]
            found["memory of the server, GB"] = sum(map(highest, servers))
        browser.close()
    result = {
        "runs": options.runs, "steps": options.steps, "found": found, "bounds": BOUNDS, "machine": machine(before),
    }  # fmt: skip
    for name, value in found.items():
        bound = BOUNDS.get(name)
        print(
            f"{name:36} {value:10.2f}" + (f"   bound {bound:g}{'' if value <= bound else '  MISSED'}" if bound else "")
        )
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.out == RESULT:
        write_document(result)
    print(options.out)


if __name__ == "__main__":
    main()
