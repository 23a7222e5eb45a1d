"""Many runs from one grid: planned, deduplicated, run by an engine, resumable from the store alone."""

from landscape.sweeps.plan import Cell, SweepPlan, plan_sweep
from landscape.sweeps.runner import SweepResult, run_sweep

__all__ = ["Cell", "SweepPlan", "SweepResult", "plan_sweep", "run_sweep"]
