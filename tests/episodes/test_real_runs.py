"""Labels of real runs come from the other seeds of their cell and never from the run itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from landscape.episodes.real_runs import RealRuns, labeled, load_real_runs, real_table, save_real_runs
from landscape.errors import UsageError
from tests.benchmark_scripts import BENCHMARKS

COMMITTED = BENCHMARKS / "episodes_real.csv"


def cell(rebound: float, seeds: int = 6, first: int = 0) -> np.ndarray:
    """(seeds, 120) losses that rise by `rebound` from step 50 to 60 and are back at 90."""
    x = np.arange(1, 121)
    mean = 1 + 2 * np.exp(-x / 10) + rebound * np.interp(x, [50, 60, 90], [0, 1, 0])
    return np.stack([mean + 0.05 * np.random.default_rng(first + s).standard_normal(120) for s in range(seeds)])


def runs(**cells: np.ndarray) -> RealRuns:
    names = [name for name, rows in cells.items() for _ in rows]
    return RealRuns(tuple(names), np.concatenate(list(cells.values())), 12)


def test_labels() -> None:
    found = labeled(runs(high=cell(0.6), low=cell(0.0, first=20), between=cell(0.2, first=40)))
    assert [one.label for one in found] == ["rebound"] * 6 + ["none"] * 6 + ["unclear"] * 6
    (truth,) = found[0].curve.episodes
    assert 35 <= truth.onset <= 53  # The lowest point before the rise: noise of 0.02 on a slope of less than that.
    assert abs(truth.peak - 60) <= 4
    assert abs(truth.recovery - 84) <= 5  # Where a fifth of the rise is left.
    assert found[8].curve.episodes == ()


def test_a_runs_own_curve_has_no_part_in_its_label() -> None:
    losses = cell(0.0)
    losses[2] += 3 * np.interp(np.arange(120), [40, 60, 80], [0, 1, 0])
    found = labeled(runs(a=losses))
    assert found[2].label == "none"
    assert found[2].curve.episodes == ()
    assert {one.label for k, one in enumerate(found) if k != 2} == {"unclear"}  # Not all of the others rise.


def test_a_rise_in_the_warmup_is_no_label() -> None:
    x = np.arange(1, 121)
    losses = cell(0.0) + np.interp(x, [3, 8, 13], [0, 2, 0])
    known = RealRuns(("a",) * 6, losses, 12)
    assert {one.label for one in labeled(known)} == {"none"}
    assert {one.label for one in labeled(RealRuns(("a",) * 6, losses, 0))} == {"rebound"}


def test_the_table_counts_what_is_found() -> None:
    rows = real_table(runs(high=cell(0.6), low=cell(0.0, first=20)), 0.05)
    ours = next(row for row in rows if row["detector"] == "landscape" and row["warmup_steps"] == 12)
    assert (ours["with"], ours["without"], ours["unclear"]) == (6, 6, 0)
    assert (ours["found"], ours["false"], ours["recall"], ours["precision"], ours["auc"]) == (6, 0, 1.0, 1.0, 1.0)
    assert {row["warmup_steps"] for row in rows} == {12, 0}


def test_files(tmp_path: Path) -> None:
    known = runs(a=cell(0.1, 3), b=cell(0.2, 3))
    save_real_runs(tmp_path / "runs.csv", known, ["two cells", "in thousandths"])
    again = load_real_runs(tmp_path / "runs.csv")
    assert (again.cells, again.warmup_steps) == (known.cells, 12)
    np.testing.assert_allclose(again.losses, known.losses, atol=0.0005)
    for bad in ("", "# warmup_steps: 3\na,b\n1,2\n3\n", "a,b\n1,2\n", "# warmup_steps: 3\na,b\n1,2,3\n"):
        (tmp_path / "bad.csv").write_text(bad)
        with pytest.raises(UsageError, match="not a file of real runs"):
            load_real_runs(tmp_path / "bad.csv")
    with pytest.raises(UsageError, match="cell a: 2 seeds; 3 or more are needed"):
        labeled(runs(a=cell(0, 2)))


def test_the_committed_runs() -> None:
    known = load_real_runs(COMMITTED)
    assert COMMITTED.stat().st_size <= 200_000
    assert known.losses.shape == (288, 120)
    assert set(Counter(known.cells).values()) == {8}
    assert np.isfinite(known.losses).all()
