"""Runs become cells, cells become labels, and tables become finite, sorted series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from landscape.plots.data import cell_labels, finite_trace, format_rate, group, split_series, step_series
from tests.synthetic_runs import run, sweep


def labels(*settings: dict, titled: tuple[str, ...] = ()) -> list[str]:
    cells = list(group([run(**setting) for setting in settings]))
    return list(cell_labels(cells, titled).values())


@pytest.mark.parametrize(
    ("value", "text"),
    [(5e-4, "5e-4"), (2.5e-5, "2.5e-5"), (1e-10, "1e-10"), (3e-3, "3e-3"), (0.5, "0.5"), (1.0, "1"), (0.02, "2e-2")],
)
def test_learning_rates_are_written_as_in_configs(value: float, text: str) -> None:
    assert format_rate(value) == text


def test_only_seeds_share_a_cell() -> None:
    settings = [{"seed": 0}, {"seed": 1}, {"seed": 2, "data_seed": 9}, {"eval_steps": 99}]
    assert [len(runs) for runs in group([run(**setting) for setting in settings]).values()] == [4]


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 16}, {"alpha": 8}, {"learning_rate": 1e-4}, {"method": "mgpo"}, {"weight_decay": 0.1},
        {"per_device_train_batch_size": 4}, {"max_grad_norm": 1.0}, {"warmup_ratio": 0.2}, {"model": "tiny-t5"},
    ],
)  # fmt: skip
def test_whatever_changes_the_result_makes_another_cell(change: dict) -> None:
    assert len(group([run(), run(**change)])) == 2


def test_other_data_makes_another_cell() -> None:
    here, there = (replace(run(), digests={"data": digest, "model": "m"}) for digest in "ab")
    assert len(group([here, there])) == 2
    moved = replace(here, config={**here.config, "data_dir": "/elsewhere"})
    assert len(group([here, moved])) == 1


def test_full_fine_tuning_has_neither_rank_nor_alpha() -> None:
    odd = run(method="full")
    odd = replace(odd, config={**odd.config, "rank": 8, "alpha": 16})
    [cell] = group([odd, run(method="full")])
    assert (cell.rank, cell.alpha) == (None, None)


@pytest.mark.parametrize(
    ("settings", "titled", "expected"),
    [
        ([{}], (), ["LoRA"]),
        ([{}, {"method": "mgpo"}], (), ["LoRA", "LoRA-MGPO"]),
        (
            [{"method": "mgpo"}, {"method": "mgpo", "adapter": "dora"}, {"method": "mgpo", "adapter": "full"}],
            (),
            ["LoRA-MGPO", "mgpo-dora", "mgpo-full"],
        ),
        ([{"rank": 8}, {"rank": 64}], (), ["LoRA  r = 8", "LoRA  r = 64"]),
        ([{"rank": 8}, {"rank": 64}], ("rank",), ["LoRA", "LoRA"]),
        # An alpha that follows from the rank says nothing more.
        ([{"rank": 8, "alpha": "r"}, {"rank": 64, "alpha": "r"}], (), ["LoRA  r = 8", "LoRA  r = 64"]),
        ([{"alpha": 8}, {"alpha": 16}], (), ["LoRA  α = 8", "LoRA  α = 16"]),
        ([{"lr": 1e-4}, {"lr": 1e-3}], (), ["LoRA  lr = 1e-4", "LoRA  lr = 1e-3"]),
        ([{"method": "full"}, {"rank": 4}, {"rank": 8}], (), ["Full FT", "LoRA  r = 4", "LoRA  r = 8"]),
        (
            [{"weight_decay": 0.0}, {"weight_decay": 0.1}],
            (),
            ["LoRA  weight_decay=0.0", "LoRA  weight_decay=0.1"],
        ),
    ],
)  # fmt: skip
def test_labels_name_what_tells_cells_apart(settings: list[dict], titled: tuple[str, ...], expected: list[str]) -> None:
    settings = [{("learning_rate" if key == "lr" else key): value for key, value in s.items()} for s in settings]
    assert labels(*settings, titled=titled) == expected


def test_labels_of_a_sweep_are_distinct() -> None:
    cells = list(group(sweep(rates=(1e-4, 5e-4), ranks=(8, 16))))
    assert len(set(cell_labels(cells).values())) == len(cells) == 10


def test_series_are_finite_sorted_and_last_write_wins() -> None:
    trace = finite_trace(np.array([3, 1, 2, 1, 4.0]), np.array([1, 5, np.nan, 6, np.inf]))
    np.testing.assert_array_equal(trace.x, [1, 3])
    np.testing.assert_array_equal(trace.y, [6, 1])


def test_a_difference_of_columns_and_absent_ones() -> None:
    data = run()
    expected = data.metrics["loss_clean"] - data.metrics["loss_base"]
    np.testing.assert_allclose(step_series(data, "loss_clean", "loss_base").y, expected)
    assert len(step_series(data, "no_such_column").x) == 0
    assert len(step_series(replace(data, metrics=pd.DataFrame()), "loss_clean").x) == 0
    assert len(split_series(replace(data, evaluations=pd.DataFrame()), "eval").x) == 0


def test_infinite_losses_do_not_warn_in_a_difference() -> None:
    data = run()
    blown = data.metrics.assign(loss_clean=np.inf, loss_base=np.inf)
    assert len(step_series(replace(data, metrics=blown), "loss_clean", "loss_base").x) == 0
