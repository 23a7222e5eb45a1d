"""Other people's curves in a store: what is kept, what stays unknown, and that doing it twice changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.figures import load_runs, render
from landscape.importers import read_log
from landscape.importers.runs import ORIGIN_FILE, import_log, read_origin
from landscape.report import write_report
from landscape.store import Run, Store
from tests.command_line import invoke, payload
from tests.importers.write_data import DATA, STEPS, loss

STEP = np.arange(1, 101)
LOSS = 1 + np.exp(-STEP / 20) + 0.01 * np.random.default_rng(0).standard_normal(100)


def log_file(folder: Path, name: str = "log.csv", **columns: object) -> Path:
    """A CSV; cells that are None are empty."""
    cells = {"step": STEP.tolist(), "loss": LOSS.tolist(), **columns}
    rows = [",".join("" if c is None else str(c) for c in row) for row in zip(*cells.values(), strict=True)]
    path = folder / name
    path.write_text("\n".join([",".join(cells), *rows]) + "\n")
    return path


def only_run(store: Path) -> Run:
    (run,) = Store.open(store).runs()
    return run


def every_tenth(values: np.ndarray) -> list[object]:
    return [value if step % 10 == 0 else None for step, value in zip(STEP, values.tolist(), strict=True)]


def test_columns_come_under_the_stores_names(tmp_path: Path) -> None:
    path = log_file(
        tmp_path,
        **{
            "train/grad_norm": (2 * LOSS).tolist(),
            "lr": (1e-3 / STEP).tolist(),
            "epoch": (STEP / 50).tolist(),
            "eval_loss": every_tenth(3 * LOSS),
            "eval_loss_stderr": every_tenth(0.1 * LOSS),
            "eval_accuracy": every_tenth(0.5 / LOSS),
            "val/perplexity": every_tenth(5 * LOSS),
            "rewards/chosen": (7 * LOSS).tolist(),
        },
    )
    (done,) = import_log(read_log(path), tmp_path / "store")
    run = only_run(tmp_path / "store")
    metrics, evaluations = run.metrics(), run.evaluations()
    assert (done.run_id, done.new, done.state, done.step, done.notes) == (run.id, True, "done", 100, ())
    assert (run.status.state, run.status.step, run.status.max_steps) == ("done", 100, 100)
    for column, wanted in {
        "step": STEP, "loss_clean": LOSS, "loss_perturbed": LOSS, "grad_norm": 2 * LOSS, "learning_rate": 1e-3 / STEP,
        "epoch": STEP / 50, "rewards/chosen": 7 * LOSS,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(metrics[column].to_numpy(), wanted, err_msg=column)
    assert set(evaluations["split"]) == {"eval"} if "split" in evaluations else True
    for column, wanted in {
        "step": STEP, "loss": 3 * LOSS, "standard_error": 0.1 * LOSS, "accuracy": 0.5 / LOSS, "perplexity": 5 * LOSS,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(evaluations[column].to_numpy(), wanted[9::10], err_msg=column)
    assert done.columns["eval loss"] == "eval_loss"
    assert done.columns["grad_norm"] == "train/grad_norm"


def test_what_nobody_said_is_null(tmp_path: Path) -> None:
    import_log(read_log(log_file(tmp_path)), tmp_path / "store")
    config = only_run(tmp_path / "store").config
    assert isinstance(config, RunConfig)
    values = config.model_dump(mode="json")
    known = {key: value for key, value in values.items() if value is not None}
    words = dict.fromkeys(("method", "model", "task"), "unknown")
    assert known == {**words, "max_steps": 100, "imported": True, "name": "log"}
    assert set(RunConfig.model_fields) < set(values)
    assert config.learning_rate is None
    stored = yaml.safe_load((only_run(tmp_path / "store").path / "config.yaml").read_text())
    assert stored == values


def test_settings_that_are_given_go_before_those_of_the_log(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (first, second) = import_log(
        read_log(DATA / "wandb"), store, settings={"rank": 4, "alpha": "2r", "method": "lora", "task": "gsm8k"}
    )
    config = Store.open(store).get(first.run_id).config
    assert (config.method, config.task, config.rank, config.alpha) == ("lora", "gsm8k", 4, 8)
    assert (config.learning_rate, config.seed, config.lr_scheduler_type) == (5e-4, 3, "linear")
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (8, None)
    assert "name" not in config.model_dump(exclude_none=True)  # the seed tells it apart
    origin = read_origin(Store.open(store).get(first.run_id))
    assert origin is not None
    assert origin["from_log"] == ["learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "seed"]
    other = Store.open(store).get(second.run_id).config
    assert (other.seed, other.learning_rate, other.model_dump()["name"]) == (None, None, "first run (bbbb2222)")


def test_an_adapter_beside_the_trainers_state(tmp_path: Path) -> None:
    history = [{"step": int(s), "loss": float(v)} for s, v in zip(STEP, LOSS, strict=True)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    adapter = {"peft_type": "LORA", "r": 32, "lora_alpha": 64, "base_model_name_or_path": "some/model"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    import_log(read_log(tmp_path), tmp_path / "store")
    config = only_run(tmp_path / "store").config
    assert (config.rank, config.alpha, config.model, config.method) == (32, 64, "some/model", "unknown")
    (tmp_path / "adapter_config.json").write_text("{")
    assert read_log(tmp_path).notes == ("adapter_config.json is not JSON and was left out",)


def test_a_setting_of_the_log_that_is_none_of_ours_stays_unknown(tmp_path: Path) -> None:
    history = [{"step": int(s), "loss": float(v)} for s, v in zip(STEP, LOSS, strict=True)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (tmp_path / "adapter_config.json").write_text('{"r": -3, "lora_alpha": "many"}')
    (done,) = import_log(read_log(tmp_path), tmp_path / "store")
    assert done.notes == (
        "rank: '-3' of the log is not understood and stays unknown",
        "alpha: 'many' of the log is not understood and stays unknown",
    )


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    store, path = tmp_path / "store", log_file(tmp_path)
    (first,) = import_log(read_log(path), store)
    files = {item: item.read_bytes() for item in first.path.rglob("*") if item.is_file()}
    moved = path.rename(tmp_path / "elsewhere.csv").rename(tmp_path / "log.csv")
    (again,) = import_log(read_log(moved), store)
    assert (again.run_id, again.new) == (first.run_id, False)
    assert {item: item.read_bytes() for item in first.path.rglob("*") if item.is_file()} == files
    assert len(import_log(read_log(path), store, settings={"rank": 8})) == 1  # other settings: another run
    path.write_text(path.read_text() + "101,1.0\n")
    import_log(read_log(path), store)
    assert len(Store.open(store).runs()) == 3


def test_an_import_that_was_interrupted_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, path = tmp_path / "store", log_file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "compact", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_log(read_log(path), store)
    assert only_run(store).status.state == "queued"
    (done,) = import_log(read_log(path), store)
    assert done.new
    assert only_run(store).status.state == "done"
    assert len(only_run(store).metrics()) == 100


def test_origin(tmp_path: Path) -> None:
    import hashlib

    path = log_file(tmp_path)
    path.write_text(path.read_text() + "51,7.0\n52,7.0\n")  # a resume from step 50
    import_log(read_log(path), tmp_path / "store")
    run = only_run(tmp_path / "store")
    assert read_origin(run) == {
        "source": "log.csv",
        "format": "CSV",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "run": "log",
        "from_log": [],
        "columns": {"loss_clean": "loss", "loss_perturbed": "loss"},
        "resume_steps": [51.0],
        "notes": ["resumed at step 51: 50 earlier values of loss were logged again; the last ones count"],
    }
    assert run.metrics()["step"].tolist() == list(range(1, 53))
    (run.path / ORIGIN_FILE).unlink()
    assert read_origin(run) is None


@pytest.mark.parametrize("method", [None, "lora", "mgpo"])
def test_a_loss_at_perturbed_weights_is_not_the_clean_one(tmp_path: Path, method: str | None) -> None:
    sets = ["--set", f"method={method}"] if method else []
    result = invoke("import", log_file(tmp_path), "--store", tmp_path / "store", *sets)
    assert result.exit_code == 0, result.stderr
    metrics = only_run(tmp_path / "store").metrics()
    assert metrics["loss_perturbed"].notna().all()
    assert metrics["loss_clean"].notna().all() == (method != "mgpo")


def test_a_diverged_run(tmp_path: Path) -> None:
    (done,) = import_log(read_log(log_file(tmp_path, loss=[*LOSS[:-1].tolist(), "nan"])), tmp_path / "store")
    assert done.state == only_run(tmp_path / "store").status.state == "diverged"


def test_figures_report_and_status_show_imported_runs_beside_ours(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for seed in (0, 1):
        path = log_file(tmp_path, f"{seed}.csv", eval_loss=every_tenth(LOSS))
        import_log(read_log(path), store, settings={"method": "lora", "rank": 16, "seed": seed, "learning_rate": 1e-3})
    import_log(read_log(log_file(tmp_path, "stranger.csv", eval_loss=every_tenth(LOSS))), store)
    import_log(read_log(log_file(tmp_path, "another.csv")), store)
    loaded = load_runs(store)
    assert (len(loaded.runs), loaded.unreadable) == (4, ())
    # Seeds of one setting are replicates; runs of unknown settings are none of each other.
    cells = sorted(sum(run.cell == other.cell for other in loaded.runs) for run in loaded.runs)
    assert cells == [1, 1, 2, 2]
    assert render(store, "mgpo1", tmp_path / "figures", ["csv"]).files[0].exists()
    page = write_report(store, tmp_path / "report.html").read_text()
    assert "imported from logs" in page
    rows = payload(invoke("status", store, "--json"))
    assert rows["counts"] == {"done": 4}
    assert len(payload(invoke("status", store, "--where", "seed>=0", "--json"))["runs"]) == 2
    assert len(payload(invoke("status", store, "--where", "method==unknown and rank==null", "--json"))["runs"]) == 2


@pytest.mark.parametrize(
    ("columns", "options", "match"),
    [
        ({"loss": ["x", *LOSS[1:]]}, [], "column 'loss' of log: 'x' at line 2 is not a number"),
        ({"step": (STEP + 0.5).tolist()}, [], "column 'loss' of log: step 1.5 is no whole number from 0"),
        ({"step": (-STEP[::-1]).tolist()}, [], "step -100 is no whole number from 0"),
        ({"step": [5, 3, *STEP[2:]]}, [], "step 3 at line 3 comes after step 5"),
        ({}, ["--column", "los"], "--column: 'los' is not known; allowed: loss. Did you mean 'loss'?"),
        ({}, ["--run", "lag"], "--run: 'lag' is not known; allowed: log"),
        ({}, ["--set", "rank=-1"], "rank: -1: Input should be greater than or equal to 1"),
        ({}, ["--set", "rnak=1"], "unknown config key 'rnak'. Did you mean 'rank'?"),
        ({}, ["--set", "alpha=2r"], "alpha: '2r' is a rule; it needs a rank"),
        ({}, ["--set", "max_steps=3"], "--set max_steps: an imported run has no such setting"),
        ({"run": ["a", "b"] * 50}, ["--name", "x"], "--name: the log has 2 runs; choose one with --run"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, columns: dict, options: list[str], match: str) -> None:
    store = tmp_path / "store"
    result = invoke("import", log_file(tmp_path, **columns), "--store", store, *options)
    assert result.exit_code == 2
    assert match in result.stderr
    assert not store.exists()


def test_no_loss_at_all(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,accuracy\n1,0.5\n")
    with pytest.raises(UsageError, match=r"run 'log': no training or evaluation loss among its columns .accuracy."):
        import_log(read_log(tmp_path / "log.csv"), tmp_path / "store")


def test_a_side_column_that_is_no_curve_is_left_out_and_said(tmp_path: Path) -> None:
    (done,) = import_log(read_log(log_file(tmp_path, note=["words"] * 100)), tmp_path / "store")
    assert done.notes == ("left out: column 'note' of log: 'words' at line 2 is not a number.",)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 500, "..", "", "/", "späte Läufe: №1", "con\x00"])
def test_a_name_never_leaves_the_store(tmp_path: Path, name: str) -> None:
    (done,) = import_log(read_log(log_file(tmp_path)), tmp_path / "store", name=name)
    assert done.path.parent == tmp_path / "store" / "runs"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["log.csv", "store"]


def test_the_command(tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = invoke("import", DATA / "wandb", "--store", store)
    assert result.exit_code == 0
    assert "imported: first run, done at step 40: imported-first-run-" in result.stdout
    assert "note: first run (bbbb2222): left out: column 'note'" in result.stdout
    again = payload(invoke("import", DATA / "wandb", "--store", store, "--json"))
    assert [(run["name"], run["new"], run["state"]) for run in again["runs"]] == [
        ("first run", False, "done"),
        ("first run (bbbb2222)", False, "done"),
    ]
    metrics = Store.open(store).get(again["runs"][0]["run_id"]).metrics()
    assert metrics["loss_clean"].tolist() == [loss(step, 0) for step in range(1, STEPS + 1)]
