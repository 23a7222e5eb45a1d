"""Stores in every state that a page may meet, and what a page says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from streamlit.testing.v1 import AppTest

from landscape.config import RunConfig
from landscape.store import Store
from landscape.store.config_file import write_config
from tests.synthetic_runs import run, sweep, write

PAGES = ("runs", "curves", "snapshot", "episodes", "sharpness", "landscape", "importing", "reproduction")


def empty(path: Path) -> Store:
    return Store.create(path)


def one_run(path: Path) -> Store:
    return write([run(sharp=True, max_steps=60)], path)


def failed_runs(path: Path) -> Store:
    """A failed, a diverged, an interrupted and a queued run, and one whose config is damaged."""
    settings = {"max_steps": 60}
    runs = [
        replace(run(seed=0, **settings), state="failed", error="Traceback\nRuntimeError: out of memory <b>now</b>"),
        run(seed=1, diverges_at=40, **settings),
        replace(run(seed=2, **settings), state="interrupted"),
        run(seed=3, **settings),
    ]
    store = write(runs, path)
    (path / "runs" / runs[3].run_id / "config.yaml").write_text("method: [unclosed")
    queued = run(seed=4, **settings)
    store.add(RunConfig.parse(dict(queued.config)), queued.run_id, {"data": "d" * 16, "model": "m" * 16})
    return store


def not_a_number(path: Path) -> Store:
    """Runs whose losses are NaN from a step on, and one that never had a finite one."""
    runs = [run(seed=0, max_steps=60, sharp=True), run(seed=1, max_steps=60, sharp=True)]
    runs[0].metrics.loc[30:, ["loss_clean", "loss_perturbed", "grad_norm"]] = float("nan")
    runs[1].metrics.loc[:, ["loss_clean", "loss_perturbed"]] = float("nan")
    runs[1].evaluations.loc[:, "loss"] = float("nan")
    runs[0].evaluations.loc[5:, "loss"] = float("inf")
    assert runs[1].sharpness is not None
    runs[1].sharpness.loc[:, "value"] = float("nan")
    return write(runs, path)


def many_runs(path: Path) -> Store:
    """200 runs; copies of a few folders, since writing each would take a minute."""
    runs = sweep(("lora", "mgpo"), (8, 32), (5e-4,), seeds=2)
    runs = [replace(one, metrics=one.metrics.iloc[:40], evaluations=one.evaluations.iloc[:8]) for one in runs]
    store = write(runs, path)
    folders = sorted((path / "runs").iterdir())
    for number in range(200 - len(folders)):
        source = folders[number % len(folders)]
        copy = path / "runs" / f"{source.name}-copy{number}"
        shutil.copytree(source, copy)
        settings = store.get(source.name).config.replace(seed=number + 2)
        write_config(copy / "config.yaml", settings)
    return store


def growing(path: Path) -> Store:
    """A run in progress with a torn last line."""
    data = run(max_steps=200)
    cut = replace(
        data, metrics=data.metrics.iloc[:50], evaluations=data.evaluations.iloc[:10], state="running", step=50
    )
    store = write([cut, run(seed=1, max_steps=200)], path)
    with (path / "runs" / cut.run_id / "attempts" / "1" / "metrics.jsonl").open("a") as file:
        file.write('{"loss_clean":1.0,"st')
    return store


STORES: dict[str, Callable[[Path], Store]] = {
    "empty": empty, "one run": one_run, "failed": failed_runs, "nan": not_a_number, "200 runs": many_runs,
    "growing": growing,
}  # fmt: skip


def words(test: AppTest) -> str:
    """Everything that a page says in text."""
    kinds = (test.markdown, test.caption, test.error, test.warning, test.info, test.title, test.subheader, test.code)
    return "\n".join(str(item.value) for kind in kinds for item in kind)


def crashes(test: AppTest) -> list[str]:
    """Errors that nobody meant: uncaught, or caught at the edge of a part of the page."""
    unmeant = [item.value for item in test.error if "part of the page failed" in item.value]
    return (
        [item.value for item in test.exception] + unmeant + [c.value for c in test.code if "Traceback (most" in c.value]
    )
