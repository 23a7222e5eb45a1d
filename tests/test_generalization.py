from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landscape.errors import UsageError
from landscape.generalization import generalization_gap
from landscape.loss import ratio_mean


def table(*rows: tuple[int, str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["step", "split", "loss", "standard_error"])


def test_the_gap_is_eval_minus_probe_with_added_variances() -> None:
    frame = generalization_gap(
        table((10, "eval", 2.5, 0.3), (0, "probe", 4.0, 0.1), (0, "eval", 3.5, 0.0), (10, "probe", 2.0, 0.4))
    )
    assert list(frame.columns) == ["step", "train_loss", "eval_loss", "gap", "standard_error"]
    assert frame["step"].dtype == np.int64
    np.testing.assert_allclose(frame.to_numpy(), [[0, 4.0, 3.5, -0.5, 0.1], [10, 2.0, 2.5, 0.5, 0.5]])


ODD_TABLES: dict[str, tuple[pd.DataFrame, list[list[float]]]] = {
    "one split only": (table((0, "eval", 1.0, 0.1), (5, "probe", 1.0, 0.1)), []),
    "other splits": (table((0, "eval", 2.0, 0.1), (0, "probe", 1.0, 0.1), (0, "test", 9.0, 9.0)), [[0, 1.0]]),
    "repeated": (table((0, "eval", 9.0, 0.1), (0, "eval", 2.0, 0.1), (0, "probe", 1.0, 0.1)), [[0, 1.0]]),
    "diverged": (
        table((0, "eval", math.inf, math.nan), (0, "probe", math.inf, math.nan), (1, "eval", math.nan, 0.1),
              (1, "probe", 1.0, 0.1), (2, "eval", math.inf, math.nan), (2, "probe", 1.0, 0.1)),
        [[0, math.nan], [1, math.nan], [2, math.inf]],
    ),
    "empty": (table(), []),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_TABLES)
def test_tables_with_something_odd(name: str) -> None:
    evaluations, expected = ODD_TABLES[name]
    frame = generalization_gap(evaluations)
    np.testing.assert_array_equal(frame[["step", "gap"]].to_numpy().tolist(), expected)


def test_its_standard_error_covers_the_true_gap() -> None:
    """Over redrawn example sets, the gap is off by its standard error on average (root mean square)."""
    generator = np.random.default_rng(0)
    ratios: list[float] = []
    for _ in range(200):
        rows: list[Any] = []
        for split, mean in (("probe", 1.0), ("eval", 1.3)):
            counts = generator.integers(1, 9, 60)
            losses = counts * (mean + 0.4 * generator.standard_normal(60))
            result = ratio_mean(*map(_tensor, (losses, counts)))
            rows.append((0, split, result.value, result.standard_error))
        frame = generalization_gap(table(*rows))
        ratios.append(float((frame["gap"].iloc[0] - 0.3) / frame["standard_error"].iloc[0]))
    assert np.sqrt(np.mean(np.square(ratios))) == pytest.approx(1, abs=0.15)


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(values)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UsageError, match="no column 'standard_error' among step, split, loss"):
        generalization_gap(table((0, "eval", 1.0, 0.1)).drop(columns="standard_error"))
