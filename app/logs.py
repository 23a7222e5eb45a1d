"""Somebody's training log, tested for rebounds: what the import page shows before anything is kept."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import pandas as pd

from landscape.episodes import Episode, detect_episodes
from landscape.episodes.columns import kind_of, takes_logarithm
from landscape.episodes.sentences import curve_verdict
from landscape.errors import LandscapeError
from landscape.importers import Log, LogCurve, read_log
from landscape.plots import CurveSet
from landscape.plots.episodes import MarkedCurve, episode_curves

MOST_CURVES = 8
"""Runs of one log that are tested and drawn at once."""


@dataclass(frozen=True, eq=False)
class Examined:
    """One run's column and what was found in it; ``reason`` says why it could not be tested."""

    run: str
    column: str
    curve: LogCurve | None
    episodes: tuple[Episode, ...]
    reason: str = ""
    logarithm: bool = False


def read_upload(name: str, content: bytes) -> Log:
    """An uploaded file as a log: kept under a plain name in a folder of its own while it is read.

    Raises:
        UsageError: it is no log; names what is known.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(name).name).lstrip(".") or "log")
        path.write_bytes(content)
        return read_log(path)


def examine(log: Log, column: str, warmup: float, alpha: float, seed: int = 0) -> list[Examined]:
    """The first `MOST_CURVES` runs that have the column, each tested by itself.

    Raises:
        UsageError: no run has such a column; names the nearest.
    """
    tested = []
    for run, name in log.select(column)[:MOST_CURVES]:
        try:
            curve = run.curve(name)
            logarithm = takes_logarithm(name, curve.values)
            episodes = detect_episodes(
                curve.steps, curve.values, warmup, alpha, seed, curve.learning_rate, curve.epoch_steps,
                curve.resume_steps, curve.standard_errors, kind=kind_of(name),
                logarithm=logarithm,
            )  # fmt: skip
        except LandscapeError as error:
            tested.append(Examined(run.name, name, None, (), str(error)))
            continue
        tested.append(Examined(run.name, name, curve, tuple(episodes), logarithm=logarithm))
    return tested


def sentence(one: Examined, alpha: float) -> str:
    """What was found, as ``landscape detect`` says it."""
    if one.curve is None:
        return f"Not tested: {one.reason}"
    said = curve_verdict(one.episodes, one.curve.values, alpha)
    which = " Tested was the logarithm; amplitudes are log ratios." if one.logarithm else ""
    return f"{said[0].upper()}{said[1:]}.{which}"


def episode_table(tested: Sequence[Examined]) -> pd.DataFrame:
    """One row a candidate, most significant first."""
    rows = [
        {
            "run": one.run, "kind": episode.kind, "onset": episode.onset, "peak": episode.peak,
            "recovery": episode.recovery, "amplitude": episode.amplitude, "noise_units": episode.amplitude_noise,
            "p": episode.p_value, "flags": ", ".join(episode.flags),
        }
        for one in tested
        for episode in one.episodes
    ]  # fmt: skip
    return pd.DataFrame(rows).sort_values("p", kind="stable") if rows else pd.DataFrame()


def log_figure(tested: Sequence[Examined], alpha: float, title: str) -> CurveSet:
    """The tested curves with their rebounds shaded."""
    several = len(tested) > 1
    marked = [
        MarkedCurve(one.run if several else "", one.curve.steps, one.curve.values, one.episodes)
        for one in tested
        if one.curve is not None
    ]
    column = tested[0].column if tested else "loss"
    return episode_curves(marked, alpha=alpha, y_label=f"{column}, as logged", title=title)
