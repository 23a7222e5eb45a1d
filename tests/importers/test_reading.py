"""Every format from a file, and every kind of bad file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.importers import read_log

CSV = "step,loss,learning_rate,note\n1,3.0,0.1,a\n2,nan,0.1,b\n3,,0.1,c\n5,inf,0.1,d\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text", [CSV, CSV.replace(",", ";"), CSV.replace(",", "\t"), "\ufeff" + CSV, CSV.replace("\n", "\r\n"), CSV[:-1]]
)
def test_csv(tmp_path: Path, text: str) -> None:
    log = read_log(write(tmp_path, "log.dat", text))  # told by its content
    curve = log.runs[0].curve("loss")
    assert (log.format, log.notes, log.runs[0].name) == ("CSV", (), "log")
    assert curve.steps.tolist() == [1, 2, 5]  # an empty cell is no value, NaN and inf are
    np.testing.assert_equal(curve.values, [3.0, np.nan, np.inf])


@pytest.mark.parametrize(
    "name", ["step", "Step", "global_step", "_step", "iteration", "Iteration", "train/global_step"]
)
def test_step_columns(tmp_path: Path, name: str) -> None:
    log = read_log(write(tmp_path, "log.csv", f"loss,{name}\n1.5,10\n1.25,20\n"))
    assert log.runs[0].curve("loss").steps.tolist() == [10, 20]
    assert log.columns() == ["loss"]


def test_row_numbers_stand_for_steps(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "log.csv", "loss\n1.5\n1.25\n"))
    assert log.runs[0].curve("loss").steps.tolist() == [0, 1]
    assert "no step column" in log.notes[0]


def test_jsonl_with_a_cut_off_last_line(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "train": {"loss": 2.5}},
        {"step": 2, "eval": {"loss": 9}},
        {"step": 3, "train": {"loss": None}},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 4, "train": {"lo'
    log = read_log(write(tmp_path, "log.jsonl", text))
    assert log.format == "JSONL"
    assert log.notes == ("line 4, the last, is cut off and was left out",)
    assert log.runs[0].curve("train/loss").values.tolist() == [2.5]
    assert log.runs[0].curve("eval/loss").steps.tolist() == [2]


def test_json_list_of_records(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "log.json", '[{"step": 1, "loss": "NaN"}, {"step": 2, "loss": 1}]'))
    np.testing.assert_equal(log.runs[0].curve("loss").values, [np.nan, 1])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "run,step,loss\nx,1,10\ny,1,20\nx,2,11\ny,2,21\ny,3,22\n"),
        ("a.jsonl", "".join(f'{{"run": "{r}", "step": {s}, "loss": {v}}}\n' for r, s, v in
                            [("x", 1, 10), ("y", 1, 20), ("x", 2, 11), ("y", 2, 21), ("y", 3, 22)])),
        ("w.csv", '"Step","x - train/loss","x - train/loss__MIN","y - train/loss"\n1,10,0,20\n2,11,0,21\n3,"",,22\n'),
        ("w2.csv", '"Step","x - train/loss","x - _step","y - train/loss"\n1,10,7,20\n2,11,8,21\n3,"","",22\n'),
    ],
)  # fmt: skip
def test_several_runs_are_never_mixed(tmp_path: Path, name: str, text: str) -> None:
    log = read_log(write(tmp_path, name, text))
    found = {run.name: run.curve(column) for run, column in log.select("loss")}
    assert {key: curve.steps.tolist() for key, curve in found.items()} == {"x": [1, 2], "y": [1, 2, 3]}
    assert {key: curve.values.tolist() for key, curve in found.items()} == {"x": [10, 11], "y": [20, 21, 22]}
    assert any("__MIN" in note for note in log.notes) == (name == "w.csv")


def test_rows_that_name_no_run_are_said(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "a.csv", "run,step,loss\nx,1,10\n,1,20\n"))
    assert [run.name for run in log.runs] == ["x", ""]
    assert log.notes == ("1 rows, first line 3, name no run in 'run': a run called ''",)


def test_wandb_chart_over_time(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "w.csv", '"Wall Time","x - loss","x - _step"\n0.5,1,10\n0.9,2,30\n'))
    assert log.format == "W&B CSV"
    assert log.runs[0].curve("loss").steps.tolist() == [10, 30]
    log = read_log(write(tmp_path, "v.csv", '"Wall Time","x - loss"\n0.5,1\n0.9,2\n'))
    assert log.runs[0].curve("loss").steps.tolist() == [0, 1]
    assert "the number of the row (not 'Wall Time') stands for the step" in log.notes[0]


def test_csv_with_a_cut_off_last_row(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "a.csv", "step,loss\n1,2\n2"))
    assert log.notes == ("line 3, the last, is cut off and was left out",)
    assert log.runs[0].curve("loss").steps.tolist() == [1]


STATE = {"global_step": 20, "log_history": [{"step": 10, "loss": 2.0, "epoch": 0.5}, {"step": 20, "loss": 1.0}]}


def test_checkpoint_and_output_folders(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write(tmp_path / f"checkpoint-{step}", "trainer_state.json", json.dumps(STATE | {"best": step}))
    log = read_log(tmp_path)
    assert log.path.parent.name == "checkpoint-10"
    assert log.notes == ("the log of checkpoint-10, the last of 2 checkpoints",)
    assert read_log(tmp_path / "checkpoint-9").runs[0].curve("loss").values.tolist() == [2, 1]


BAD = {
    "a.csv": [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("1,2\n3,4\n", "line 1 has numbers only; a header"),
        ("step,loss,loss\n1,2,3\n", "header has 'loss' twice"),
        ("step,loss\n1,2\n2,3,4\n3,4\n", "line 3 has 3 cells, the header 2"),
        ("step,loss\nfirst,2\n", "step column 'step': 'first' at line 2 is not a number"),
        ("dear diary it went well\n", "no header of a CSV; known: CSV, JSONL"),
    ],
    "a.jsonl": [
        ('{"step": 1}\nfoo\n{"step": 2}\n', "line 2 is not JSON"),
        ('{"step": 1}\n[1]\n', "line 2 is list, not an object"),
        ('{"step": 1, "lo', "JSON that is cut off or damaged .* line 1"),
        ('{"best": 1,\n "x": 2}', "JSON with keys best, x, which is no log"),
        ("[1, 2]", "JSON with a list, which is no log"),
    ],
    "trainer_state.json": [
        (json.dumps(STATE, indent=1)[:-20], "JSON that is cut off or damaged .* line 1?[0-9]"),
        ('{"log_history": []}', "log_history is empty"),
        ('{"log_history": 3}', "log_history is not a list of entries"),
    ],
}


@pytest.mark.parametrize(("name", "text", "match"), [(n, *case) for n, cases in BAD.items() for case in cases])
def test_bad_files(tmp_path: Path, name: str, text: str, match: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(UsageError, match=match) as raised:
        read_log(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\x00\x00", b"\x1f\x8b\x08junk\xff", "step,loss".encode("utf-16")])
def test_binary_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "log.csv").write_bytes(data)
    with pytest.raises(UsageError, match=r"a binary file .or text that is not UTF-8.; known: CSV"):
        read_log(tmp_path / "log.csv")


def test_nothing_there(tmp_path: Path) -> None:
    write(tmp_path, "metrics.csv", CSV)
    with pytest.raises(UsageError, match=r"no such file or folder. Did you mean 'metrics.csv'"):
        read_log(tmp_path / "metric.csv")
    with pytest.raises(UsageError, match=r"no trainer_state.json and no TensorBoard events"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("step,loss\n1,2\n2,oops\n3,4\n", "column 'loss' of a: 'oops' at line 3 is not a number"),
        ("step,loss\n1,2\n,3\n", "no step at line 3"),
        ("step,loss\n1,2\n\n3,3\n2,4\n", "step 2 at line 5 comes after step 3"),
    ],
)
def test_bad_cells_are_named_when_they_are_wanted(tmp_path: Path, text: str, match: str) -> None:
    run = read_log(write(tmp_path, "a.csv", text)).runs[0]
    with pytest.raises(UsageError, match=match):
        run.curve("loss")


def test_lists_are_no_numbers(tmp_path: Path) -> None:
    run = read_log(write(tmp_path, "a.jsonl", '{"step": 1, "loss": [1, 2]}\n{"step": 2, "loss": [3, 4]}\n')).runs[0]
    with pytest.raises(UsageError, match=r"'\[1, 2\]' at line 1 is not a number"):
        run.curve("loss")
