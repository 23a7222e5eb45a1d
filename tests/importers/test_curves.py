"""Steps logged again, out of order or not at all; what a run knows beside its loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.importers import Column, Log, LogCurve, LogCurves


def run(steps: list[float], name: str = "a", **columns: list[float]) -> LogCurves:
    rows = np.arange(len(steps))
    made = {key.replace("__", "/"): Column(rows, np.array(values, float)) for key, values in columns.items()}
    return LogCurves(name, np.array(steps, float), rows + 2, made)


def loss_at(steps: list[float]) -> LogCurve:
    return run(steps, loss=[float(i) for i in range(len(steps))]).curve("loss")


@pytest.mark.parametrize(
    ("steps", "kept", "values", "resumes"),
    [
        ([1, 2, 3], [1, 2, 3], [0, 1, 2], ()),
        ([1, 2, 3, 4, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 4, 5, 6, 7], (2,)),
        ([1, 2, 3, 3, 4], [1, 2, 3, 4], [0, 1, 3, 4], (3,)),
        ([1, 2, 3, 2, 3, 4, 3, 4, 5], [1, 2, 3, 4, 5], [0, 3, 6, 7, 8], (2, 3)),
        ([1, 2, 1, 2], [1, 2], [2, 3], (1,)),
    ],
)
def test_last_pass(steps: list[float], kept: list[float], values: list[float], resumes: tuple[float, ...]) -> None:
    curve = loss_at(steps)
    assert curve.steps.tolist() == kept
    assert curve.values.tolist() == values
    assert curve.resume_steps == resumes
    assert bool(curve.notes) == bool(resumes)


def test_equal_values_that_come_twice_are_no_resume() -> None:
    curve = run([1, 1, 2, 2, 3], loss=[5, 5, float("nan"), float("nan"), 3]).curve("loss")
    assert curve.steps.tolist() == [1, 2, 3]
    assert curve.resume_steps == ()
    assert curve.notes == ("2 values of loss are there twice",)


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ([1, 3, 2, 4], "step 2 at line 4 comes after step 3 and was not logged before: sort"),
        ([1, 2, 0, 3], "step 0 at line 4 comes after step 2"),
        ([1, float("nan"), 2], "no step at line 3"),
        (sorted([*range(9), *range(9)]), "step 5 at line 13 is there with several values.*several runs"),
    ],
)
def test_steps_out_of_order(steps: list[float], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        loss_at(steps)


def test_a_resume_seen_in_another_column_counts() -> None:
    steps = [1, 2, 3, 4, 2, 3, 4]
    log = LogCurves(
        "a",
        np.array(steps, float),
        np.arange(7),
        {"loss": Column(np.arange(7), np.arange(7.0)), "eval": Column(np.array([1, 3, 6]), np.arange(3.0))},
    )
    assert log.curve("eval").resume_steps == (2, 4)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([0.5, 1.5, 2.5, 2.75, 2.9, 3.0], (1.5, 2.5)),  # crossings of 1 and 2, by hand; the end begins none
        ([0, 0, 0, 1, 1, 1], (4.0,)),
        ([0, 1, 2, 3, 4, 5], ()),
        ([3, 2, 1, 1, 1, 1], ()),
    ],
)
def test_epochs_begin(epochs: list[float], expected: tuple[float, ...]) -> None:
    curve = run([1, 2, 3, 4, 5, 6], loss=[1.0] * 6, epoch=epochs).curve("loss")
    assert curve.epoch_steps == pytest.approx(expected)


def test_learning_rate_is_interpolated_to_the_steps_of_the_curve() -> None:
    log = LogCurves(
        "a",
        np.array([10.0, 20, 25, 30]),
        np.arange(4),
        {"eval_loss": Column(np.array([2]), np.array([1.0])), "lr": Column(np.array([0, 1, 3]), np.array([1, 2, 4.0]))},
    )
    rate = log.curve("eval_loss").learning_rate
    assert rate is not None
    assert rate.tolist() == [3.0]


def test_standard_errors_of_an_evaluation() -> None:
    log = run([1, 2, 3], eval_loss=[3, 2, 1], eval_loss_stderr=[0.1, 0.2, 0.3])
    errors = log.curve("eval_loss").standard_errors
    assert errors is not None
    assert errors.tolist() == [0.1, 0.2, 0.3]
    holed = run([1, 2, 3], eval_loss=[3, 2, 1], eval_loss_stderr=[0.1, float("nan"), 0.3]).curve("eval_loss")
    assert holed.standard_errors is None
    assert "eval_loss_stderr is not known at every step" in holed.notes[0]


def test_control_needs_every_step() -> None:
    log = LogCurves(
        "a",
        np.array([1.0, 2, 3]),
        np.arange(3),
        {"loss": Column(np.arange(3), np.ones(3)), "loss_base": Column(np.array([0, 2]), np.ones(2))},
    )
    with pytest.raises(UsageError, match=r"--control: 'loss_base' has no value at 1 steps, first 2\."):
        log.curve("loss", "loss_base")
    with pytest.raises(UsageError, match=r"--control: 'los_base' is not known.*Did you mean 'loss_base'"):
        log.curve("loss", "los_base")


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (["loss", "train__loss"], "loss", "loss"),
        (["Loss", "x"], "loss", "Loss"),
        (["train__loss", "eval__loss"], "loss", "train/loss"),
        (["eval__loss"], "loss", "eval/loss"),
        (["loss_clean", "loss_base"], "loss", "loss_clean"),
        (["train_loss", "lr"], "loss", "train_loss"),
        (["eval__loss"], "eval/LOSS", "eval/loss"),
        (["a"], "loss", None),
    ],
)
def test_what_a_column_name_means(names: list[str], wanted: str, expected: str | None) -> None:
    columns: dict[str, Any] = {name: [1.0] for name in names}
    assert run([1], **columns).match(wanted) == expected


def test_a_name_that_can_mean_several() -> None:
    with pytest.raises(UsageError, match="'loss' can mean a/loss, b/loss; give one"):
        run([1], a__loss=[1], b__loss=[1]).match("loss")


def test_select() -> None:
    runs = (run([1], "first", loss=[1]), run([1], "second", other=[1]))
    log = Log(path=None, format="", runs=runs)  # type: ignore[arg-type]
    assert [(one.name, name) for one, name in log.select("loss")] == [("first", "loss")]
    with pytest.raises(UsageError, match=r"--run: 'frist' is not known; allowed: first, second. Did you mean 'first'"):
        log.select("loss", "frist")
    with pytest.raises(UsageError, match=r"--column: 'othr' is not known; allowed: loss, other. Did you mean 'other'"):
        log.select("othr")
