"""The online watch held to account: how often it cries wolf, and how soon it notices a rebound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from landscape.episodes.benchmark import clopper_pearson, draw_recipes
from landscape.episodes.online import THRESHOLD, OnlineWatch, Watch
from landscape.episodes.synthetic import CONFOUNDERS, SyntheticCurve, generate

LOGGED = (1, 5, 10)
"""Steps that one logged value is the mean of, as with a Trainer's ``logging_steps``."""
CELLS = ((4, 0.1), (6, 0.05), (6, 0.1), (6, 0.25), (12, 0.05), (12, 0.1))
"""(amplitude in noise units of a step's loss, duration as a share of the run)."""


def watched(curve: SyntheticCurve, every: int = 1, told: bool = True, threshold: float = THRESHOLD) -> Iterator[Watch]:
    """What the watch says of the mean of every so many steps.

    Args:
        told: whether it hears of resumes and of the learning rate; of the warm-up it always does.
        threshold: in noise units.
    """
    watch = OnlineWatch(curve.warmup_steps, threshold)
    n = len(curve.values) // every * every
    means = curve.values[:n].reshape(-1, every).mean(axis=1)
    steps = curve.steps[every - 1 : n : every]
    rates = curve.learning_rate if told else None
    rates = [None] * len(steps) if rates is None else rates[every - 1 : n : every].tolist()
    resumes = list(curve.resume_steps) if told else []
    for step, mean, rate in zip(steps.tolist(), means.tolist(), rates, strict=True):
        if resumes and step >= resumes[0]:
            resumes.pop(0)
            watch.resume()
        yield watch.update(step, mean, rate)


def highest_score(curve: SyntheticCurve, every: int) -> float:
    """The largest rise that it sees: it warns where that exceeds the threshold."""
    return max(seen.score for seen in watched(curve, every, threshold=math.inf))


def false_alarm_rows(count: int, first: int) -> Iterator[dict[str, Any]]:
    """Runs without an episode in which it warns, by confounder; where marks were told, without them too."""
    for every in LOGGED:
        for k, confounder in enumerate(CONFOUNDERS):
            for told in (True, False) if confounder in ("resume", "restart") else (True,):
                recipes = draw_recipes(count, np.random.default_rng([first, 5, k]), confounder=confounder)
                curves = (generate(recipe, first + 50_000 + s) for s, recipe in enumerate(recipes))
                alarms = sum(any(seen.warning for seen in watched(curve, every, told)) for curve in curves)
                low, high = clopper_pearson(alarms, count)
                yield {
                    "logging_steps": every, "confounder": confounder, "told": told, "curves": count,
                    "rate": alarms / count, "low": low, "upper": high,
                }  # fmt: skip


def delay_rows(count: int, first: int) -> Iterator[dict[str, Any]]:
    """Episodes noticed before they end, and how long after their onset, as a share of the episode and of the run."""
    for every in LOGGED:
        for k, (amplitude, duration) in enumerate(CELLS):
            fixed = {"confounder": "none", "episodes": 1, "amplitude": float(amplitude), "duration": duration}
            late, of_run = [], []
            for s, recipe in enumerate(draw_recipes(count, np.random.default_rng([first, 6, k]), **fixed)):
                curve = generate(recipe, first + 60_000 + s)
                truth = curve.episodes[0]
                warned = (seen.step for seen in watched(curve, every) if seen.warning)
                seen = [step for step in warned if truth.onset <= step <= truth.recovery]
                if seen:
                    late.append((seen[0] - truth.onset) / (truth.recovery - truth.onset))
                    of_run.append((seen[0] - truth.onset) / recipe.points)
            middle, most = np.percentile(late, [50, 90]).tolist() if late else (float("nan"),) * 2
            yield {
                "logging_steps": every, "amplitude": amplitude, "duration": duration, "curves": count,
                "noticed": len(late) / count, "delay": middle, "delay_90": most,
                "delay_of_run": float(np.median(of_run)) if of_run else float("nan"),
            }  # fmt: skip
