"""The rules by which a claim is judged. Each looks at packed runs alone, and each says which test it made.

A claim that two variants differ is tested on paired seeds by an exact sign-flip test; with n seeds no p-value is below
2^(1-n), so fewer than six seeds leave it undecided. A rebound is tested run by run, Fisher's method joins the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from landscape.episodes.comparison import EXACT_UP_TO, compare_pairs
from landscape.errors import unknown
from landscape.reproduction import scores
from landscape.reproduction.choice import (
    at_best_rate,
    by_cell,
    capped,
    mean_sd,
    paired,
    seed_means,
    select,
)
from landscape.reproduction.rebounds import double_descents, rebounding_cells, seed_averages
from landscape.reproduction.records import MEASURES, Record
from landscape.reproduction.ties import ties
from landscape.reproduction.verdict import ALPHA, Judged, Verdict

Records = Sequence[Record]
UNITS = {
    "rise": "nats", "final_eval": "nats", "final_train": "nats", "gap": "nats", "score": "points", "seconds": "s",
    "peak_memory": "bytes",
}  # fmt: skip


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    quantity: str
    paper_value: float | None = None
    where: dict[str, Any] = {}

    @property
    def named(self) -> tuple[str, ...]:
        """Variants that the rule names."""
        return tuple(value for key in ("variant", "first", "second") if (value := getattr(self, key, None)))

    @property
    def asks_scores(self) -> bool:
        """Whether it says nothing of runs without a score."""
        return "score" in (getattr(self, "measure", None), getattr(self, "by", None))

    @property
    def asks_best_rates(self) -> bool:
        """Whether it says nothing of runs at one learning rate."""
        return bool(getattr(self, "at_best", None)) or getattr(self, "of", None) == "best"

    def is_asked(self, variants: Collection[str], scored: bool, tuned: bool) -> bool:
        """Whether runs of these variants can answer it: with scores or without, at several learning rates or one."""
        present = all(name in variants for name in self.named)
        return present and (scored or not self.asks_scores) and (tuned or not self.asks_best_rates)

    @field_validator("measure", "x", "y", "by", check_fields=False)
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in MEASURES:
            raise unknown("measure", value, MEASURES)
        return value


class Rebounds(_Rule):
    """Does the loss of a variant rebound (or, with ``expect: false``, never)?

    A cell's p-value is Fisher's of its seeds' tests, its q-value over the variant's cells. That a loss never rebounds
    is contradicted by a single run (its q-value over the experiment's runs) and cannot be proven; it counts as
    confirmed where ``against`` rebounds in the same cells and this variant does not.

    ``returns`` asks for a double descent: a run that falls, rises significantly, falls again and ends below the
    held-out loss that it began with.
    """

    rule: Literal["rebounds"]
    variant: str
    expect: bool = True
    against: str | None = None
    returns: bool = False

    @property
    def named(self) -> tuple[str, ...]:
        """Variants that the rule names."""
        return (self.variant, *([self.against] if self.against else []))

    def judge(self, records: Records, _: scores.Paper) -> Judged:
        """See the class."""
        own = [r for r in select(records, self.variant, self.where) if math.isfinite(r.p_value)]
        if not own:
            return Judged("undecided", f"No run of {self.variant} was tested for rebounds.")
        q, said = rebounding_cells(own)
        value, sd = mean_sd([r.rise for r in own])[0], mean_sd(seed_averages(own, "rise"))[1]
        found = q <= ALPHA
        if self.returns:
            return double_descents(own, self.variant, value, sd)
        if self.expect:
            return Judged("confirmed" if found else "not confirmed", said, value, sd)
        if found or any(r.q_value <= ALPHA for r in own):
            single = "" if found else f" One run by itself has q = {min(r.q_value for r in own):.2g}."
            return Judged("contradicted", said + single, value, sd)
        rival = select(records, self.against, self.where) if self.against else []
        cells = by_cell(own)
        other = [r for cell, runs in by_cell(rival).items() if cell in cells
                 for r in runs.values() if math.isfinite(r.p_value)]  # fmt: skip
        if other and rebounding_cells(other)[0] <= ALPHA:
            weak = "That nothing was found is no proof that nothing is there."
            return Judged("confirmed", f"{said} {rebounding_cells(other)[1]} {weak}", value, sd)
        return Judged("undecided", f"{said} Nor does {self.against or 'anything else'}: nothing to prevent.", value, sd)


class Grows(_Rule):
    """Does a measure grow along an axis of the grid? Each seed's slope against the logarithm, tested over seeds."""

    rule: Literal["grows"]
    variant: str
    axis: Literal["rank", "learning_rate"]
    measure: str = "rise"

    def judge(self, records: Records, _: scores.Paper) -> Judged:
        """See the class."""
        own = select(records, self.variant, self.where)
        slopes = []
        for seed in sorted({r.seed for r in own}):
            points = {r.measure(self.axis): r.measure(self.measure) for r in own if r.seed == seed}
            x, y = (np.array(list(part), dtype=float) for part in (points.keys(), points.values()))
            kept = np.isfinite(y) & (x > 0)
            if kept.sum() >= 3:
                slopes.append(float(np.polyfit(np.log2(x[kept]), y[kept], 1)[0]))
        if not slopes:
            return Judged("undecided", f"Fewer than three values of {self.axis} with a {self.measure}.")
        test = compare_pairs(slopes, [0.0] * len(slopes), ALPHA)
        said = f"{test.difference:+.3g}{_unit(self.measure)} a doubling of the {self.axis.replace('_', ' ')}"
        return Judged(_tested(test, 1), f"{said} ({_words(test)}).", *mean_sd(slopes))


class Compares(_Rule):
    """Is a measure lower (higher) for the first variant than for the second, on paired seeds?

    With ``at_best: MEASURE`` each variant is taken at the learning rate that the other seeds prefer by that measure.
    A measure that is the same in every run, at a bound of its own, decides nothing.
    """

    rule: Literal["compares"]
    first: str
    second: str
    measure: str
    expect: Literal["lower", "higher"]
    at_best: str | None = None

    def judge(self, records: Records, _: scores.Paper) -> Judged:
        """See the class."""
        chosen = [r for r in select(records, None, self.where) if r.variant in (self.first, self.second)]
        if self.at_best:
            # One cell: where the best rates differ there would be no pair.
            chosen = [_anywhere(r) for r in at_best_rate(chosen, self.at_best)]
        values = capped(chosen, self.measure)
        test, left, right = paired(select(chosen, self.first), select(chosen, self.second), values)
        if test is None:
            return Judged("undecided", f"No seed has a {self.measure} of both {self.first} and {self.second}.")
        lost = [f"{n} of {v} diverged" for v in (self.first, self.second)
                if (n := sum(r.diverged for r in select(chosen, v)))]  # fmt: skip
        said = (
            f"{self.first} {np.mean(left):.4g}, {self.second} {np.mean(right):.4g}{_unit(self.measure)}: "
            f"difference {test.difference:+.3g} ({_words(test)}{'; ' if lost else ''}{', '.join(lost)})."
        )
        verdict = _tested(test, -1 if self.expect == "lower" else 1)
        if len(left) > 1 and len({*left, *right}) == 1:
            verdict, said = "undecided", f"{said[:-1]}: every run has the same {self.measure}."
        return Judged(verdict, said, *mean_sd([a - b for a, b in zip(left, right, strict=True)]))


class Ratio(_Rule):
    """Is the first variant's cost at most the paper's multiple of the second's (a tenth more is allowed)?

    Judged by every seed's own ratio: all below, all above, or undecided.
    """

    rule: Literal["ratio"]
    first: str
    second: str
    measure: str

    def judge(self, records: Records, _: scores.Paper) -> Judged:
        """See the class."""
        chosen = select(records, None, self.where)
        values = {r.run_id: r.measure(self.measure) for r in chosen}
        _test, left, right = paired(select(chosen, self.first), select(chosen, self.second), values)
        ratios = [a / b for a, b in zip(left, right, strict=True) if b > 0]
        if not ratios or self.paper_value is None:
            return Judged("undecided", f"No seed has a {self.measure} of both {self.first} and {self.second}.")
        limit = 1.1 * self.paper_value
        verdict: Verdict = "undecided"
        if max(ratios) <= limit or min(ratios) > limit:
            verdict = "confirmed" if max(ratios) <= limit else "contradicted"
        said = (
            f"{self.first} {np.mean(left):.4g}, {self.second} {np.mean(right):.4g}{_unit(self.measure)}; "
            f"ratios {', '.join(f'{ratio:.3g}' for ratio in ratios)}; allowed are {limit:.3g}."
        )
        return Judged(verdict, said, *mean_sd(ratios))


class Rises(_Rule):
    """Does the held-out loss rise at first (``early``), or above its minimum at the end (``late``)?

    Which step is the highest of the first third (the lowest of all) is not known beforehand, so all of them are tested
    together: seeds' whole curves of differences change sign, and the largest mean difference is compared with those of
    all sign patterns. The value is unbiased: each seed's difference at the step that the other seeds choose.
    """

    rule: Literal["rises"]
    variant: str
    part: Literal["early", "late"]

    def judge(self, records: Records, _: scores.Paper) -> Judged:
        """See the class."""
        curves = [dict(r.curve) for r in select(records, self.variant, self.where) if len(r.curve) >= 3]
        if len(curves) < 2:
            return Judged("undecided", "Two seeds with evaluations are needed: each step is chosen by the others.")
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        losses = np.array([[curve[step] for step in steps] for curve in curves])
        third = max(2, math.ceil(len(steps) / 3))
        early = self.part == "early"
        rises = losses[:, 1:third] - losses[:, :1] if early else losses[:, -1:] - losses[:, :-1]
        others = [np.delete(rises, seed, axis=0).mean(axis=0).argmax() for seed in range(len(rises))]
        value, sd = mean_sd([row[k] for row, k in zip(rises, others, strict=True)])
        up, down, smallest = largest_rise_test(rises)
        where = "above the first evaluation" if early else "above its minimum at the end"
        few = f"; {len(rises)} seeds cannot give less than {smallest:.2g}" if smallest > ALPHA else ""
        said = f"{value:+.3g} nats {where} (sign-flip test of all steps over {len(rises)} seeds, p = {up:.2g}{few})."
        verdict: Verdict = "undecided" if smallest > ALPHA else "not confirmed"
        if min(up, down) <= ALPHA:
            verdict = "confirmed" if up <= ALPHA else "contradicted"
        return Judged(verdict, said, value, sd)


class Ties(_Rule):
    """After tuning, do the variants tie: do their means lie within ``within`` of each other?

    Judged by the 95 % interval of the largest difference over the seeds that all variants have. A variant whose best
    rate is the first or last that was tried may be better beyond it: what hangs on it is undecided.
    """

    rule: Literal["ties"]
    by: str = "final_eval"
    measure: str
    within: float

    def judge(self, records: Records, _: scores.Paper) -> Judged:
        """See the class."""
        tried = select(records, None, self.where)
        return ties(tried, self.by, self.measure, self.within, _unit(self.measure))


class Correlates(_Rule):
    """Do two measures rise together (``positive``) or against each other, over cells (means over seeds)?

    Spearman's correlation with a bootstrap interval over variants, cells ranked within their learning rate;
    ``of: best`` takes each variant's best rate alone.
    """

    rule: Literal["correlates"]
    x: str
    y: str
    expect: Literal["positive", "negative"]
    of: Literal["cells", "best"] = "cells"
    by: str = "final_eval"

    def judge(self, records: Records, _: scores.Paper) -> Judged:
        """See the class."""
        chosen = select(records, None, self.where)
        runs = at_best_rate(chosen, self.by) if self.of == "best" else chosen
        return scores.correlation(runs, self.x, self.y, 1 if self.expect == "positive" else -1, self.of == "cells")


class Best(_Rule):
    """Is a variant's score the highest of all, or of those ``among`` which it is claimed to be?

    Tested against the best other, on paired seeds over all tasks.
    """

    rule: Literal["best"]
    variant: str
    among: tuple[str, ...] = ()
    asks_scores: ClassVar[bool] = True

    def judge(self, records: Records, _: scores.Paper) -> Judged:
        """See the class."""
        chosen = [r for r in select(records, None, self.where) if not self.among or r.variant in self.among]
        values = capped(chosen, "score")
        means = {}
        for name in dict.fromkeys(r.variant for r in chosen):
            own = select(chosen, name)
            means[name] = mean_sd(list(seed_means(own, values, by_cell(own)).values()))[0]
        rivals = {name: mean for name, mean in means.items() if name != self.variant and math.isfinite(mean)}
        if not rivals or not math.isfinite(means.get(self.variant, math.nan)):
            return Judged("undecided", f"No score of {self.variant} and another variant in the same cells.")
        rival = max(rivals, key=lambda name: rivals[name])
        test, left, right = paired(select(chosen, self.variant), select(chosen, rival), values)
        place = 1 + sum(mean > means[self.variant] for mean in rivals.values())
        said = f"{self.variant} {means[self.variant]:.4g} is number {place} of {len(means)}; the best other is {rival} "
        said += f"with {rivals[rival]:.4g}"
        if test is None:
            return Judged("undecided", f"{said}; no seed has both.")
        sd = mean_sd([a - b for a, b in zip(left, right, strict=True)])[1]
        return Judged(_tested(test, 1), f"{said} ({_words(test)}).", test.difference, sd)


class Order(_Rule):
    """Does the paper's order of the variants come back? Spearman's correlation with its permutation p-value."""

    rule: Literal["order"]
    asks_scores: ClassVar[bool] = True

    def judge(self, records: Records, paper: scores.Paper) -> Judged:
        """See the class."""
        return scores.order(select(records, None, self.where), paper)


Rule = Annotated[
    Rebounds | Grows | Compares | Ratio | Rises | Ties | Correlates | Best | Order, Field(discriminator="rule")
]


def largest_rise_test(rises: np.ndarray) -> tuple[float, float, float]:
    """Two-sided p-values of differences (seeds, steps): that some step's mean is above 0, that every one's is below,
    and the smallest that so many seeds can give.

    The first compares the largest mean over steps with those of all 2^n sign patterns of the seeds (single-step max-T:
    Westfall and Young 1993), the second is the largest of the steps' own p-values.
    """
    n = len(rises)
    if n <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], size=(2**EXACT_UP_TO, n))
        signs[0] = 1
    means = signs @ rises / n
    slack = 2.0**-40 * float(np.abs(rises).max())
    # A step that every seed has below 0 is no candidate; with other signs it would hide those that are.
    open_steps = (rises >= 0).any(axis=0)
    most = means[:, open_steps].max(axis=1) if open_steps.any() else np.zeros(1)
    up = float((most >= most[0] - slack).mean())
    down = float((means <= means[0] + slack).mean(axis=0).max())
    return min(1.0, 2 * up), min(1.0, 2 * down), 2.0 ** (1 - n)


def _tested(test: Any, sign: int) -> Verdict:
    """What an exact test says of a difference that should have this sign."""
    if test.p_value <= ALPHA:
        return "confirmed" if sign * test.difference > 0 else "contradicted"
    return "undecided" if test.too_few else "not confirmed"


def _unit(measure: str) -> str:
    """With the space before it; nothing where a number has none."""
    return f" {UNITS[measure]}" if measure in UNITS else ""


def _words(test: Any) -> str:
    seeds = f"{test.pairs} seed{'s' * (test.pairs != 1)}"
    few = f", and {seeds} cannot give less than {test.smallest_p:.2g}" if test.too_few else ""
    level = f"{100 * test.level:.3g} % interval {test.low:+.3g} to {test.high:+.3g}; " if not test.too_few else ""
    return f"{level}exact sign-flip test over {seeds}, p = {test.p_value:.2g}{few}"


def _anywhere(record: Record) -> Record:
    """The run without its learning rate in its place."""
    from dataclasses import replace

    return replace(record, place={key: value for key, value in record.place.items() if key != "learning_rate"})
