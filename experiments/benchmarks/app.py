"""How fast the dashboard is on a large store, measured in Chromium: first page, change of filter, points, memory.

    python experiments/benchmarks/app.py                 # 1,000 runs of 10,000 steps
    python experiments/benchmarks/app.py --runs 100 --steps 1000

The store is made of a few distinct runs and links to their files under other settings: what the dashboard reads is as
large as if all were different. Times are from the request until the page has settled and its charts are drawn, the
median over repetitions; the first one also reads the store for the first time. The JSON names the hardware.
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
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landscape.config import RunConfig  # noqa: E402
from landscape.store import Store  # noqa: E402
from tests.app.browser import chromium, serving, settled  # noqa: E402

BOUNDS = {
    "first page, s": 2.0, "filter on runs, s": 1.0, "filter on curves, s": 1.0, "points in a figure": 50_000,
    "memory of the server, GB": 1.0,
}  # fmt: skip
RESULT = Path(__file__).parent / "results" / "app.json"
DISTINCT = 6
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
            sources.append(run)
            continue
        source = sources[number % DISTINCT]
        (run.path / "attempts" / "1").mkdir(parents=True)
        for name in ("metrics.parquet", "attempts/1/metrics.jsonl"):
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

    cold = timed(opened(""))
    first = statistics.median(timed(opened("")) for _ in range(REPEATS))
    on_runs = statistics.median(timed(filtered(f"rank == {rank}")) for rank in RANKS)
    opened("curves?where=rank+%3D%3D+8+and+lr+%3D%3D+1e-4")()
    on_curves = statistics.median(timed(filtered(f"rank == {rank} and lr == 1e-4")) for rank in (16, 32, 64, 128))
    points = page.evaluate(
        "() => Math.max(...[...document.querySelectorAll('.js-plotly-plot')].map("
        "plot => plot._fullData.reduce((sum, trace) => sum + (trace.x ? trace.x.length : 0), 0)))"
    )
    return {
        "first page, store not read yet, s": cold, "first page, s": first, "filter on runs, s": on_runs,
        "filter on curves, s": on_curves, "points in a figure": points,
    }  # fmt: skip


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = make_store(Path(folder) / "store", options.runs, options.steps)
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        with serving(store.path) as url:
            found = measure(url, page)
            servers = [child for child in psutil.Process().children() if "streamlit" in " ".join(child.cmdline())]
            found["memory of the server, GB"] = sum(child.memory_info().rss for child in servers) / 1e9
        browser.close()
    load = os.getloadavg()[0]
    result = {
        "runs": options.runs, "steps": options.steps, "found": found, "bounds": BOUNDS,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load},
    }  # fmt: skip
    for name, value in found.items():
        bound = BOUNDS.get(name)
        print(
            f"{name:36} {value:10.2f}" + (f"   bound {bound:g}{'' if value <= bound else '  MISSED'}" if bound else "")
        )
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
