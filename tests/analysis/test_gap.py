"""The generalization gap of a run."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from landscape.analysis import analyze_gap
from landscape.errors import StoreError
from landscape.generalization import generalization_gap
from landscape.store import Run


def test_the_gap_comes_from_the_runs_evaluations(run: Run) -> None:
    frame = analyze_gap(run)
    assert frame["step"].tolist() == [0, 2, 4]
    pd.testing.assert_frame_equal(frame, generalization_gap(run.evaluations()))
    pd.testing.assert_frame_equal(pd.read_parquet(run.analysis_dir / "gap.parquet"), frame)


def test_a_run_without_evaluations_has_no_gap(run: Run) -> None:
    run.begin_attempt().close()
    run.set_status(state="running")
    with pytest.raises(StoreError, match="no step at which both the eval and the probe split were evaluated yet"):
        analyze_gap(run)
    assert not run.analysis_dir.exists()


def test_importing_the_analyses_is_light() -> None:
    code = (
        "import sys, landscape.analysis\n"
        "heavy = [name for name in ('torch', 'transformers', 'pandas', 'scipy') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
