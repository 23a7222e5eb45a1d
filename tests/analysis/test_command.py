"""``landscape analyze`` on snapshots: estimates, results, exits."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from landscape.analysis import analyze_trace
from landscape.analysis.questions import QUESTIONS
from landscape.store import Store
from landscape.sweeps.analyses import estimate_analyses, run_analyses
from landscape.sweeps.engines import Event, InlineEngine, Job
from landscape.sweeps.progress import SweepDisplay
from tests.analysis.trained_runs import Stores, edit_json, only_run
from tests.command_line import invoke, payload

CHEAP = ["--num-examples", "2"]
COMMANDS: dict[str, list[str]] = {
    "sharpness": ["--max-matvecs", "2"],
    "trace": ["--num-probes", "2"],
    "density": ["--num-steps", "2", "--num-probes", "1"],
    "layers": ["--group", "block", "--max-matvecs", "1"],
}


@pytest.fixture
def store(stores: Stores, tmp_path: Path) -> Path:
    """Two runs, of which one captured moments, in a store of one's own."""
    path = tmp_path / "store"
    shutil.copytree(stores("moments"), path)
    other = only_run(stores("mgpo"))
    shutil.copytree(other.path, path / "runs" / other.id)
    return path


def runs_by_method(store: Path) -> dict[str, str]:
    return {run.config.method: run.id for run in Store.open(store).runs()}


@pytest.mark.parametrize("command", COMMANDS)
def test_results_of_every_analysis(store: Path, command: str) -> None:
    arguments = ["analyze", command, store, "--where", "method==lora", "--steps", "1,4", *COMMANDS[command], *CHEAP]
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer = payload(result)
    ((run_id, rows),) = answer["results"].items()
    assert sorted({row["step"] for row in rows}) == [1, 4]
    estimate = answer["estimate"]
    assert (estimate["snapshots"], estimate["known"], estimate["runs"]) == (2, 0, 1)
    assert 0 < estimate["seconds"][0] <= estimate["seconds"][1]
    table = pd.read_parquet(store / "runs" / run_id / "analysis" / f"{command}.parquet")
    assert len(table) == len(rows)
    again = invoke(*arguments)
    assert again.exit_code == 0
    assert "0 snapshots of 0 runs to measure (2 are known)" in again.stderr
    assert again.stdout.startswith(f"{run_id}: ")
    assert "at step 1: " in again.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_measures_nothing(store: Path, as_json: bool) -> None:
    arguments = ["--every", 1, "--workers", 0, "--dry-run", *CHEAP, *(["--json"] if as_json else [])]
    result = invoke("analyze", "sharpness", store, *arguments)
    assert result.exit_code == 0, result.output
    if as_json:
        answer = payload(result)
        assert set(answer) == {"store", "estimate", "skipped"}
        assert answer["estimate"]["snapshots"] == 10
    else:
        assert result.stdout.startswith("10 snapshots of 2 runs to measure: about ")
        assert "products a snapshot of about 1.3 gradients; a gradient took " in result.stdout
    assert not list(store.glob("runs/*/analysis"))


def test_preconditioned_sharpness_skips_runs_without_moments(store: Path) -> None:
    ids = runs_by_method(store)
    arguments = ["analyze", "sharpness", store, "--space", "preconditioned", "--max-matvecs", 3, "--workers", 0, *CHEAP]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert f"{ids['lora']}: λ_max at step 1: " in result.stdout
    assert "(stable below 38)" in result.stdout
    assert "skipped (Adam's second moments were not captured" in result.stderr
    assert result.stderr.strip().endswith(ids["mgpo"])
    assert payload(invoke(*arguments, "--json"))["skipped"] == [ids["mgpo"]]


def test_a_space_that_is_undefined_says_where(store: Path) -> None:
    arguments = ["--space", "balanced", "--steps", "0,4", "--where", "method==lora", "--max-matvecs", 2, *CHEAP]
    result = invoke("analyze", "sharpness", store, *arguments)
    assert result.exit_code == 0, result.output
    assert "λ_max at step 4: " in result.stdout
    assert "(undefined at step 0: base_model" in result.stdout


USAGE: list[tuple[str, list[str], str]] = [
    ("sharpness", ["--space", "precond"], "space: 'precond' is not known; allowed: adapter, balanced"),
    ("sharpness", ["--space", "preconditioned", "--where", "method==mgpo"], "train with capture: {moments: true}"),
    ("sharpness", ["--space", "preconditioned", "--steps", "0"], "--steps: no snapshot at step 0; the nearest is 1"),
    ("sharpness", ["--backend", "pyhesian"], "Did you mean 'pyhessian'?"),
    ("sharpness", ["--backend", "pyhessian", "--smallest"], "which: 'smallest' with backend='pyhessian'"),
    ("sharpness", ["--matrix", "fisher"], "matrix: 'fisher' is not known; allowed: ggn, hessian"),
    ("sharpness", ["--tol", "1"], "tol: 1.0; allowed: greater than 0 and less than 1"),
    ("sharpness", ["--every", "2", "--steps", "0"], "give one"),
    ("sharpness", ["--workers", "-1"], "workers: -1 is negative"),
    ("trace", ["--space", "preconditioned"], "'preconditioned' is for sharpness"),
    ("trace", ["--method", "hutch+"], "Did you mean 'hutch++'?"),
    ("density", ["--steps", "7"], "no snapshot at step 7; the nearest is 4"),
    ("layers", ["--group", "tensor"], "group: 'tensor' is not known; allowed: block, module"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), USAGE)
def test_bad_usage_is_one_line(stores: Stores, command: str, arguments: list[str], message: str) -> None:
    name = "mgpo" if "method==mgpo" in arguments else "moments"
    result = invoke("analyze", command, stores(name), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_too_little_memory_is_found_before_anything_is_measured(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.analysis.cost.available_memory", lambda device: 1000)
    result = invoke("analyze", "trace", store, "--where", "method==lora", "--num-probes", 2, *CHEAP)
    assert result.exit_code == 2
    assert "memory: vectors need 0.00 GB in 1 process" in result.stderr
    assert not list(store.glob("runs/*/analysis"))


def test_a_run_that_fails_does_not_stop_the_others(store: Path) -> None:
    ids = runs_by_method(store)
    path = store / "runs" / ids["mgpo"] / "identity.json"
    edit_json(path, lambda values: values["digests"].update(data="other"))
    result = invoke("analyze", "trace", store, "--steps", "4", "--num-probes", 2, "--workers", 0, "--json", *CHEAP)
    assert result.exit_code == 3
    answer = payload(result)
    assert list(answer["results"]) == [ids["lora"]]
    assert "the data is no longer what it was trained on" in answer["errors"][ids["mgpo"]]
    # It is the larger of the two, so it was also the one to be timed.
    assert "the data is no longer" in answer["estimate"]["problems"][ids["mgpo"]]
    assert answer["estimate"]["seconds"] is None


def test_a_damaged_table_costs_only_its_own_run(store: Path) -> None:
    ids = runs_by_method(store)
    path = store / "runs" / ids["mgpo"] / "analysis" / "trace.parquet"
    path.parent.mkdir()
    path.write_bytes(b"nonsense")
    result = invoke("analyze", "trace", store, "--steps", "4", "--num-probes", 2, "--workers", 0, *CHEAP)
    assert result.exit_code == 3
    assert f"{ids['lora']}: trace at step 4: " in result.stdout
    assert "trace.parquet is damaged" in result.stderr
    assert path.read_bytes() == b"nonsense"


def test_the_largest_run_with_something_to_measure_is_timed(store: Path) -> None:
    ids = runs_by_method(store)
    options: dict[str, Any] = {"num_probes": 2, "num_examples": 2}

    def timed(steps: dict[str, list[int]]) -> list[str]:
        arguments = {
            run_id: {"store": str(store), "run_id": run_id, "steps": steps.get(method, [])}
            for method, run_id in ids.items()
        }
        return [probe.run_id for probe in estimate_analyses("trace", arguments, options, InlineEngine()).probes]

    assert timed({"lora": [1], "mgpo": [1]}) == [ids["mgpo"]]  # of rank 4, the other of rank 2
    assert timed({"lora": [1]}) == [ids["lora"]]
    assert timed({}) == []


@pytest.mark.parametrize("fails", [False, True])
def test_one_run_on_a_terminal_has_a_bar_over_its_snapshots(
    store: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    run_id = runs_by_method(store)["lora"]
    terminal = Console(stderr=True, force_terminal=True, highlight=False, width=200)
    monkeypatch.setattr("landscape.cli.along_runs.stderr", lambda quiet: terminal)
    if fails:
        (store / "runs" / run_id / "identity.json").write_text('{"digests": {}}')
    result = invoke("analyze", "trace", store, "--where", "method==lora", "--steps", "1,4", "--num-probes", 2, *CHEAP)
    if fails:
        assert result.exit_code == 3
        assert f"failed {run_id}: landscape.errors.StoreError: run {run_id}: the data is no longer" in result.stderr
    else:
        assert "trace: 100%" in result.stderr
        assert "2/2" in result.stderr


def test_progress_counts_the_snapshots_of_runs_under_way(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs with 1 and 2 snapshots to measure, the second is half done at the tick."""
    ids, told = runs_by_method(store), []
    options = {"num_probes": 2, "num_examples": 2}
    question = QUESTIONS["trace"](**options)
    steps = {ids["lora"]: [4], ids["mgpo"]: [0, 4]}
    arguments = {run_id: {"store": str(store), "run_id": run_id, "steps": kept} for run_id, kept in steps.items()}

    class Ticking:
        num_workers = 2

        def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
            yield from (Event("started", job.key) for job in jobs)
            yield Event("finished", ids["lora"], error="failed")
            analyze_trace(Store.open(store).get(ids["mgpo"]), [4], **options)
            yield Event("tick")
            yield Event("finished", ids["mgpo"], result=[])

        def close(self) -> None: ...

    monkeypatch.setattr(SweepDisplay, "due", lambda self: True)
    monkeypatch.setattr(SweepDisplay, "running", lambda self, steps: told.append(steps))
    shown = StringIO()
    run_analyses("trace", "", arguments, Ticking(), Console(file=shown, width=200), question)
    assert told == [{ids["mgpo"]: 1}]
    assert f"{ids['mgpo']}  snapshot 2" in shown.getvalue()
