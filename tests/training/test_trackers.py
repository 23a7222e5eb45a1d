"""Each tracker gets every step of every run, also of two runs in one process, and keeps them apart."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.store import Store
from landscape.training import train
from landscape.training.trackers import _PACKAGES, TRACKERS, check_trackers
from tests.training.conftest import QUICK

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SEEDS = (0, 1)


def tensorboard_steps(folder: Path, run_ids: list[str]) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for run_id in run_ids:
        (events,) = (folder / "store" / "runs" / run_id).rglob("events.out.tfevents*")
        log = EventAccumulator(str(events))
        log.Reload()
        found[run_id] = [event.step for event in log.Scalars("train/loss_clean")]
    return found


def wandb_steps(folder: Path, run_ids: list[str]) -> dict[str, list[int]]:
    from landscape.importers import read_log

    found = {}
    for file in (folder / "wandb").glob("offline-run-*/*.wandb"):
        (run,) = read_log(file.parent).runs
        column = next(name for name in run.columns if name.endswith("loss_clean"))
        found[run.name] = [int(step) for step in run.curve(column).steps]
    return found


def mlflow_steps(folder: Path, run_ids: list[str]) -> dict[str, list[int]]:
    found = {}
    for path in (folder / "mlruns").rglob("metrics/*loss_clean"):
        name = (path.parents[1] / "tags" / "mlflow.runName").read_text()
        found[name] = [int(line.split()[2]) for line in path.read_text().splitlines()]
    return found


def trackio_steps(folder: Path, run_ids: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in (folder / "trackio").rglob("*.db"):
        with sqlite3.connect(path) as database:
            for name, text in database.execute("select run_name, metrics from metrics order by step"):
                values = json.loads(text)
                if any(key.endswith("loss_clean") for key in values):
                    found.setdefault(name, []).append(values["train/global_step"])
    return found


@pytest.mark.parametrize("name", TRACKERS)
def test_every_step_of_every_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"pip install {_PACKAGES.get(name, name)}")
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(variable, value)
    for module in [module for module in sys.modules if module.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, module)  # it reads its folder's name when it is imported
    runs = [train(RunConfig.parse({**QUICK, "report_to": [name], "seed": seed}), tmp_path / "store") for seed in SEEDS]
    ids = [run.run_id for run in runs]
    read = {"tensorboard": tensorboard_steps, "wandb": wandb_steps, "mlflow": mlflow_steps, "trackio": trackio_steps}
    assert read[name](tmp_path, ids) == {run_id: [1, 2, 3, 4, 5, 6] for run_id in ids}
    assert {run.status.state for run in Store.open(tmp_path / "store").runs()} == {"done"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlflow", r"report_to: 'mlflow' is not installed; installed: none\. pip install mlflow-skinny"),
        ("wandbb", r"report_to: 'wandbb' is not installed; .* Did you mean 'wandb'\?"),
    ],
)
def test_a_tracker_that_is_not_there_says_how_to_get_it(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", list)
    with pytest.raises(UsageError, match=message):
        check_trackers([name])
