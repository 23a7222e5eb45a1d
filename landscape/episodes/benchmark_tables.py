"""The benchmark's two main tables, false positives and sensitivity, for any family of curves whose truth is known.

Three families: step losses, gradient norms (on their own scale and as logarithms) and evaluations (with their standard
errors and without). Thresholds are tuned on the development split, whatever split is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from landscape.episodes.benchmark import (
    DEVELOPMENT,
    LENGTHS,
    Detection,
    Detector,
    Generator,
    Outcome,
    counts,
    draw_recipes,
    equal_rate_threshold,
    evaluate,
    f1_difference,
    false_positives,
    ours,
    sensitivity,
)
from landscape.episodes.other_curves import EVALUATIONS, evaluation_curve, gradient_norm_curve, without_errors
from landscape.episodes.rivals import Rival, installed
from landscape.episodes.synthetic import CONFOUNDERS, SyntheticCurve, generate

ALPHA = 0.05
OURS = "landscape"
LOGARITHM, AS_IT_IS, NO_ERRORS = ", logarithm", ", as it is", ", errors not given"
"""Suffixes of a detector's name that say what it was given. Without one ours gets what `landscape detect` gives it: of
gradient norms the logarithm, of evaluations the standard errors."""
FEW, MORE = EVALUATIONS[:3], EVALUATIONS[3:]

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """Curves of one difficulty."""

    amplitude: float
    """Noise units."""
    duration: float
    """Share of the run."""
    episodes: int = 1
    recovered: float = 1.0
    lengths: tuple[int, ...] = ()
    """Points of a curve, where they are not the family's."""

    @property
    def fixed(self) -> dict[str, Any]:
        """What of a recipe it fixes."""
        values = {key: value for key, value in vars(self).items() if key != "lengths"}
        return {"confounder": "none", **values}


@dataclass(frozen=True, eq=False)
class Family:
    """Curves of one kind, what is asked of them and who is asked."""

    name: str
    make: Generator
    lengths: tuple[int, ...]
    detectors: Mapping[str, Rival]
    groups: Mapping[str, Mapping[str, Any]]
    """Curves without an episode by what they have in common: what of a recipe each group fixes."""
    cells: tuple[Cell, ...]
    stream: int
    """Of the random numbers: this one for curves without an episode, the next for the cells."""
    offset: int
    """Of the seeds."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """What of a recipe all curves share."""


CELLS = (
    *(Cell(*c) for c in ((3, 0.1), (4, 0.1), (6, 0.03), (6, 0.05), (6, 0.1), (6, 0.25), (12, 0.01), (12, 0.05))),
    Cell(6, 0.1, episodes=2), Cell(6, 0.1, episodes=3), Cell(6, 0.1, recovered=0.5), Cell(6, 0.1, recovered=0.0),
)  # fmt: skip
_GRADIENT_CELLS = tuple(Cell(*c) for c in ((4, 0.1), (6, 0.05), (6, 0.1), (6, 0.25), (12, 0.05)))
_EVALUATION_CELLS = (
    *(Cell(a, 0.25, lengths=FEW) for a in (6, 12)),
    *(Cell(a, d, lengths=MORE) for a, d in ((4, 0.1), (6, 0.1), (6, 0.25), (12, 0.1))),
)


def detectors() -> dict[str, Rival]:
    """Ours, counting p ≤ 0.05, and the rivals that are installed."""
    return {OURS: Rival(ours, 1 - ALPHA), **installed()}


def families() -> dict[str, Family]:
    """The three kinds of curves by name."""
    known = detectors()
    marks = {name: {"confounder": name} for name in CONFOUNDERS}
    rest = {name: rival for name, rival in known.items() if name != OURS}
    both = {f"{name}{LOGARITHM}": replace(r, detector=_of_logarithms(r.detector)) for name, r in rest.items()} | rest
    norms = {OURS: Rival(of_logarithms, 1 - ALPHA), f"{OURS}{AS_IT_IS}": known[OURS], **both}
    told = {OURS: Rival(of_evaluations, 1 - ALPHA), f"{OURS}{NO_ERRORS}": Rival(_without_errors, 1 - ALPHA), **rest}
    lengths = {f"{points} points": {"points": points} for points in EVALUATIONS}
    plain = {"confounder": "none"}
    all_of_them = (
        Family("step loss", generate, LENGTHS, known, marks, CELLS, 1, 0),
        Family("gradient norm", gradient_norm_curve, LENGTHS, norms, marks, _GRADIENT_CELLS, 11, 200_000),
        Family("evaluation", evaluation_curve, EVALUATIONS, told, lengths, _EVALUATION_CELLS, 21, 300_000, plain),
    )
    return {family.name: family for family in all_of_them}


def _of_logarithms(detector: Detector) -> Detector:
    return lambda curve: detector(replace(curve, values=np.log(curve.values)))


def of_logarithms(curve: SyntheticCurve) -> list[Detection]:
    """Ours, asked for the values' logarithms."""
    return ours(curve, logarithm=True)


def of_evaluations(curve: SyntheticCurve) -> list[Detection]:
    """Ours, told that the points are evaluations."""
    return ours(curve, "evaluation")


def _without_errors(curve: SyntheticCurve) -> list[Detection]:
    return of_evaluations(without_errors(curve))


def null_table(family: Family, count: int, first: int, tuning: int) -> tuple[Table, dict[str, float]]:
    """False positives per group and detector, at documented thresholds and at ones tuned over all groups.

    Also returned: thresholds tuned on the curves without any confounder, which the cells with an episode do not have
    either, so that a rival's threshold there is not raised for any.
    """
    rows: Table = []
    thresholds = {}
    for name, rival in family.detectors.items():
        tuned = equal_rate_threshold(_nulls(family, rival, tuning, DEVELOPMENT), ALPHA)
        plain = "none" if "none" in family.groups else None
        thresholds[name] = equal_rate_threshold(_nulls(family, rival, tuning, DEVELOPMENT, plain), ALPHA)
        pooled: list[Outcome] = []
        for group in family.groups:
            outcomes = _nulls(family, rival, count, first, group)
            pooled += outcomes
            rows.append(_null_row(family, name, group, outcomes, rival.documented, tuned))
        rows.append(_null_row(family, name, "all", pooled, rival.documented, tuned))
    return rows, thresholds


def _nulls(family: Family, rival: Rival, count: int, first: int, group: str | None = None) -> list[Outcome]:
    place = [] if group is None else [sorted(family.groups).index(group)]
    rng = np.random.default_rng([first, family.stream, *place])
    fixed = {**family.fixed, **({} if group is None else family.groups[group])}
    recipes = draw_recipes(count, rng, family.lengths, **fixed)
    return evaluate(rival.detector, recipes, first + family.offset, family.make)


def _null_row(
    family: Family, name: str, group: str, outcomes: list[Outcome], documented: float, tuned: float
) -> dict[str, Any]:
    plain, equal = false_positives(outcomes, documented), false_positives(outcomes, tuned)
    return {
        "family": family.name,
        "detector": name,
        "group": group,
        "curves": plain.curves,
        "rate": plain.rate,
        "low": plain.low,
        "upper": plain.high,
        "rate_tuned": equal.rate,
        "upper_tuned": equal.high,
        "ms": float(np.mean([o.milliseconds for o in outcomes])),
    }


def sensitivity_table(family: Family, count: int, first: int, thresholds: Mapping[str, float]) -> Table:
    """F1, recall and onset error per cell and detector, at equal false-positive rate (ours: p ≤ 0.05).

    `behind` is what ours exceeds the detector by in F1, with the 95 % interval over curves; the last rows pool the
    cells. Ours is the detector that comes first.
    """
    rows: Table = []
    pooled: dict[str, list[np.ndarray]] = {}
    for k, cell in enumerate(family.cells):
        mine = None
        for name, rival in family.detectors.items():
            rng = np.random.default_rng([first, family.stream + 1, k])
            recipes = draw_recipes(count, rng, cell.lengths or family.lengths, **{**family.fixed, **cell.fixed})
            outcomes = evaluate(rival.detector, recipes, first + family.offset + 10_000 + 1000 * k, family.make)
            threshold = rival.documented if name.startswith(OURS) else thresholds[name]
            table = counts(outcomes, threshold)
            mine = table if name == OURS or mine is None else mine
            pooled.setdefault(name, []).append(table)
            loose, strict = sensitivity(outcomes, threshold), sensitivity(outcomes, threshold, 0.5)
            rows.append(
                {"family": family.name, "detector": name, **vars(cell), "curves": count}
                | {"f1": loose.f1, "precision": loose.precision, "recall": loose.recall, "f1_half": strict.f1}
                | {"onset_error": loose.onset_error, "peak_error": loose.peak_error}
                | _behind(mine, table)
                | {"ms": float(np.mean([o.milliseconds for o in outcomes]))}
            )
    for name, tables in pooled.items():
        whole = np.concatenate(tables)
        hits, true, reported = whole.sum(axis=0).tolist()
        rows.append(
            {"family": family.name, "detector": name, "amplitude": "all", "curves": len(whole)}
            | {"f1": 2 * hits / max(true + reported, 1), "precision": hits / max(reported, 1), "recall": hits / true}
            | _behind(np.concatenate(pooled[OURS]), whole)
        )
    return rows


def _behind(ours_: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    difference, low, high = f1_difference(ours_, theirs)
    return {"behind": difference, "behind_low": low, "behind_high": high}
