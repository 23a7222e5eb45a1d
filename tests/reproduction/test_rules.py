"""Verdicts against cases whose answer is known in advance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy.stats import studentized_range, ttest_rel

from landscape.reproduction.choice import at_best_rate, capped
from landscape.reproduction.experiment import PaperValue
from landscape.reproduction.rules import Rule
from landscape.reproduction.scores import Paper, score_rows
from landscape.reproduction.ties import largest_difference
from landscape.reproduction.verdict import VERDICTS
from tests.reproduction.builders import record, series

SIX = [1.0, 1.1, 0.9, 1.05, 0.95, 1.2]


def rule(**values: Any) -> Any:
    return TypeAdapter(Rule).validate_python({"quantity": "q", **values})


def compares(**more: Any) -> Any:
    values = {"rule": "compares", "first": "B", "second": "A", "measure": "final_eval", "expect": "lower", **more}
    return rule(**values)


@pytest.mark.parametrize(
    ("shift", "seeds", "expect", "verdict"),
    [
        (-0.5, 6, "lower", "confirmed"),
        (0.5, 6, "lower", "contradicted"),
        (0.5, 6, "higher", "confirmed"),
        (-0.5, 5, "lower", "undecided"),  # 2^-4 > 0.05
        (-0.5, 1, "lower", "undecided"),
    ],
)
def test_a_constant_shift_is_found_as_soon_as_the_seeds_allow(
    shift: float, seeds: int, expect: str, verdict: str
) -> None:
    runs = series("A", "final_eval", SIX[:seeds]) + series("B", "final_eval", [v + shift for v in SIX[:seeds]])
    judged = compares(expect=expect).judge(runs, Paper())
    assert judged.verdict == verdict
    assert judged.value == pytest.approx(shift)
    assert f"p = {2.0 ** (1 - seeds):.2g}" in judged.sentence


def test_differences_of_both_signs_are_not_confirmed() -> None:
    runs = series("A", "final_eval", SIX) + series("B", "final_eval", [v + (-1) ** i * 0.3 for i, v in enumerate(SIX)])
    judged = compares().judge(runs, Paper())
    assert (judged.verdict, "p = 1" in judged.sentence) == ("not confirmed", True)


def test_a_measure_at_its_bound_decides_nothing() -> None:
    runs = [r for name in "AB" for r in series(name, "width", [2.0] * 6)]
    judged = compares(measure="width").judge(runs, Paper())
    assert (judged.verdict, judged.sentence.endswith("every run has the same width.")) == ("undecided", True)
    runs[-1] = record("B", 5, width=1.9)
    assert compares(measure="width").judge(runs, Paper()).verdict == "not confirmed"


def test_pairs_are_of_equal_cells_and_seeds_alone() -> None:
    runs = series("A", "final_eval", SIX, rank=8) + series("B", "final_eval", [v - 1 for v in SIX], rank=16)
    assert compares().judge(runs, Paper()).verdict == "undecided"
    # A seed that one side lacks in one of the cells is left out.
    runs = [r for rank in (8, 16) for r in series("A", "final_eval", SIX, rank=rank)]
    runs += [r for rank in (8, 16) for r in series("B", "final_eval", [v - rank for v in SIX], rank=rank)]
    judged = compares().judge(runs[:-1], Paper())
    assert judged.value == pytest.approx(-12)
    assert "over 5 seeds" in judged.sentence


def test_where_chooses_cells() -> None:
    runs = [r for rank in (8, 16) for r in series("A", "final_eval", SIX, rank=rank)]
    runs += [r for rank in (8, 16) for r in series("B", "final_eval", [v - rank for v in SIX], rank=rank)]
    assert compares(where={"rank": 16}).judge(runs, Paper()).value == pytest.approx(-16)
    assert compares(where={"rank": [8]}).judge(runs, Paper()).value == pytest.approx(-8)


def test_a_diverged_run_counts_as_the_worst() -> None:
    runs = [*series("A", "final_eval", SIX[:2]), record("B", 0, final_eval=0.5), record("B", 1, state="diverged")]
    values = capped(runs, "final_eval")
    assert [values[r.run_id] for r in runs] == [1.0, 1.1, 0.5, 1.1]
    judged = compares().judge(runs, Paper())
    assert "1 of B diverged" in judged.sentence
    assert judged.value == pytest.approx(((0.5 - 1.0) + (1.1 - 1.1)) / 2)
    scores = [record("A", 0, score=60.0), record("A", 1, score=50.0), record("A", 2, state="diverged")]
    assert capped(scores, "score")[scores[2].run_id] == 50.0
    rises = [record("A", 0, rise=0.1), record("A", 1, state="diverged", rise=7.0)]
    assert capped(rises, "rise")[rises[1].run_id] == 7.0


def test_the_best_rate_is_chosen_by_the_other_seeds() -> None:
    # Seed 0 alone would choose 1e-2; the other two prefer 1e-3, and seed 0 prefers it among theirs.
    losses = {1e-3: [1.0, 0.5, 0.5], 1e-2: [0.2, 0.9, 0.9]}
    runs = [r for rate, values in losses.items() for r in series("A", "final_eval", values, learning_rate=rate)]
    chosen = {r.seed: r.learning_rate for r in at_best_rate(runs, "final_eval")}
    assert chosen[0] == 1e-3
    assert chosen[1] == 1e-2  # seeds 0 and 2: 0.75 against 0.55
    runs += [r for rate in losses for r in series("B", "final_eval", [0.1, 0.1, 0.1], learning_rate=rate)]
    judged = compares(at_best="final_eval").judge(runs, Paper())
    assert judged.value == pytest.approx(np.mean([0.1 - 1.0, 0.1 - 0.9, 0.1 - 0.9]))


def test_a_seed_without_all_rates_chooses_nothing() -> None:
    losses = {1e-3: [0.3, 0.3, 9.0], 1e-2: [0.5, 0.5]}
    runs = [r for rate, values in losses.items() for r in series("A", "final_eval", values, learning_rate=rate)]
    assert {r.seed: r.learning_rate for r in at_best_rate(runs, "final_eval")} == {0: 1e-3, 1: 1e-3}


def rebounds(**more: Any) -> Any:
    return rule(**{"rule": "rebounds", "variant": "A", **more})


def runs_of(variant: str, p: list[float], **more: Any) -> list[Any]:
    return [record(variant, s, p_value=v, q_value=v, rise=1 - v, **more) for s, v in enumerate(p)]


@pytest.mark.parametrize(
    ("own", "other", "options", "verdict"),
    [
        ([0.01, 0.02], [], {}, "confirmed"),
        ([0.4, 0.6], [], {}, "not confirmed"),
        ([], [], {}, "undecided"),
        ([0.01, 0.02], [0.5, 0.5], {"expect": False, "against": "B"}, "contradicted"),
        ([0.5, 0.5], [0.01, 0.01], {"expect": False, "against": "B"}, "confirmed"),
        ([0.5, 0.5], [0.5, 0.5], {"expect": False, "against": "B"}, "undecided"),
        ([0.5, 0.5], [], {"expect": False}, "undecided"),
    ],
)
def test_rebounds(own: list[float], other: list[float], options: dict, verdict: str) -> None:
    runs = runs_of("A", own) + runs_of("B", other)
    assert rebounds(**options).judge(runs, Paper()).verdict == verdict


def test_one_run_contradicts_never() -> None:
    # Over 20 cells the only one with a rebound has q = 0.2; the run's own q-value is below the level all the same.
    runs = [r for rank in range(1, 21) for r in runs_of("A", [0.01 if rank == 7 else 0.9], rank=rank)]
    assert rebounds().judge(runs, Paper()).verdict == "not confirmed"
    judged = rebounds(expect=False).judge(runs, Paper())
    assert judged.verdict == "contradicted"
    assert "1 of 20 runs rebound" in judged.sentence


def test_what_a_double_descent_lacks_is_said() -> None:
    kinds = ("episode", "rebound_only", "rebound_only", "divergence", "rebound_only")
    runs = [
        record("A", seed, p_value=p, q_value=p, rise=1.0, episode={"kind": kind, "onset": 3, "p_value": p})
        for seed, (kind, p) in enumerate(zip(kinds, (0.01, 0.01, 0.01, 0.01, 0.9), strict=True))
    ]
    sentence = rebounds().judge(runs, Paper()).sentence
    assert "4 of 5 runs rebound (q ≤ 0.05; 2 without a first descent; 1 without a second one)" in sentence


@pytest.mark.parametrize(
    ("kind", "end", "verdict", "words"),
    [
        ("episode", 0.9, "confirmed", "1 of them fall before and after, 1 of these end below"),
        ("partial", 0.9, "confirmed", "1 of them fall before and after, 1 of these end below"),
        ("episode", 1.1, "not confirmed", "1 of them fall before and after, 0 of these end below"),
        ("rebound_only", 0.9, "not confirmed", "0 of them fall before and after, 0 of these end below"),
    ],
)
def test_a_double_descent_falls_on_both_sides_and_is_not_lost(kind: str, end: float, verdict: str, words: str) -> None:
    numbers = {"final_eval": end, "curve": ((0, 1.0), (100, end)), "rise": 2.0, "episode": {"kind": kind, "onset": 9}}
    runs = [record("LoRA", 0, p_value=1e-4, q_value=2e-4, **numbers), record("LoRA", 1, p_value=0.5, q_value=0.5)]
    judged = rebounds(variant="LoRA", returns=True).judge(runs, Paper())
    assert judged.verdict == verdict
    assert words in judged.sentence
    assert (
        rebounds(variant="LoRA", returns=True).judge(runs[1:], Paper()).sentence
        == "LoRA: 0 of 1 runs rebound (q ≤ 0.05)."
    )


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"final_eval": 1.1, "curve": ((0, 1.0), (100, 1.1))}, True),
        ({"final_eval": 0.9, "curve": ((0, 1.0), (50, 9.0), (100, 0.9))}, False),
        ({"final_eval": 1.1, "curve": ((50, 1.0), (100, 1.1))}, False),  # nothing is known of the beginning
        ({"state": "diverged"}, True),
        ({}, False),
    ],
)
def test_lost_runs(changes: dict[str, Any], lost: bool) -> None:
    assert record(**changes).is_lost is lost


def test_cells_share_the_level() -> None:
    # Of 20 cells one has p = 0.01, which q-values over the cells (0.2) do not let pass.
    runs = [r for rank in range(1, 21) for r in runs_of("A", [0.01 if rank == 7 else 0.9], rank=rank)]
    judged = rebounds().judge(runs, Paper())
    assert judged.verdict == "not confirmed"
    assert "most surely at rank 7" in judged.sentence
    assert rebounds(where={"rank": 7}).judge(runs, Paper()).verdict == "confirmed"


def test_grows() -> None:
    grows = rule(rule="grows", variant="A", axis="rank")
    runs = [record("A", s, rank=r, rise=0.1 * math.log2(r) + 0.01 * s) for s in range(6) for r in (4, 8, 16)]
    judged = grows.judge(runs, Paper())
    assert judged.verdict == "confirmed"
    assert judged.value == pytest.approx(0.1)
    assert grows.judge([r for r in runs if r.rank != 4], Paper()).verdict == "undecided"
    falling = [record("A", s, rank=r, rise=-0.1 * math.log2(r)) for s in range(6) for r in (4, 8, 16)]
    assert grows.judge(falling, Paper()).verdict == "contradicted"


@pytest.mark.parametrize(
    ("first", "verdict"),
    [([1.1, 1.2], "confirmed"), ([1.5, 1.6], "contradicted"), ([1.1, 1.6], "undecided")],
)
def test_ratio(first: list[float], verdict: str) -> None:
    runs = series("A", "seconds", [1.0, 1.0]) + series("B", "seconds", first)
    judged = rule(rule="ratio", first="B", second="A", measure="seconds", paper_value=1.184).judge(runs, Paper())
    assert judged.verdict == verdict
    assert judged.value == pytest.approx(np.mean(first))


def test_peak_memory_is_the_devices_where_there_is_one() -> None:
    assert record(memory={"rss": 7, "cuda": 5}).measure("peak_memory") == 5
    assert record(memory={"rss": 7}).measure("peak_memory") == 7
    assert math.isnan(record().measure("peak_memory"))


def curve(seed: int, bump: float, end: float) -> tuple[tuple[int, float], ...]:
    """Falls from 2 to 1, with a bump at the second evaluation and a rise at the end; seeds differ by a constant."""
    values = [2.0, 2.0 + bump, 1.5, 1.2, 1.0, 1.0 + end]
    return tuple((10 * i, v + 0.1 * seed) for i, v in enumerate(values))


@pytest.mark.parametrize(
    ("bump", "end", "early", "late"),
    [(0.3, 0.2, "confirmed", "confirmed"), (-0.3, -0.2, "contradicted", "contradicted")],
)
def test_rises(bump: float, end: float, early: str, late: str) -> None:
    runs = [record("A", s, curve=curve(s, bump, end)) for s in range(6)]
    for part, verdict, value in (("early", early, bump), ("late", late, end)):
        judged = rule(rule="rises", variant="A", part=part).judge(runs, Paper())
        assert (judged.verdict, judged.value) == (verdict, pytest.approx(value))
        assert rule(rule="rises", variant="A", part=part).judge(runs[:1], Paper()).verdict == "undecided"


@pytest.mark.parametrize("part", ["early", "late"])
def test_noise_alone_does_not_rise(part: str) -> None:
    """White noise about a constant: every seed's own minimum lies below its end."""
    rng = np.random.default_rng(0)
    rises = rule(rule="rises", variant="A", part=part)
    noise = rng.standard_normal((300, 6, 40)).tolist()
    found = [
        rises.judge([record("A", s, curve=tuple(enumerate(row))) for s, row in enumerate(rows)], Paper())
        for rows in noise
    ]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    # 2 · up ≤ 0.05 with 64 patterns is one in 64: 4.7 of 300, and 4 standard deviations above.
    assert sum(one.verdict == "confirmed" for one in found) <= 13
    assert not any(one.verdict == "contradicted" for one in found)


def test_ties() -> None:
    runs = [r for name, score in (("A", 80.0), ("B", 81.5)) for r in series(name, "score", [score, score + 0.1])]
    ties = rule(rule="ties", measure="score", within=2.0, by="score")
    assert ties.judge(runs, Paper()).verdict == "confirmed"
    judged = rule(rule="ties", measure="score", within=1.0, by="score").judge(runs, Paper())
    assert (judged.verdict, judged.value) == ("contradicted", pytest.approx(1.5))
    assert ties.judge(runs[:2], Paper()).verdict == "undecided"
    # A third seed that B lacks, and that was luckier, is in neither mean.
    more = ties.judge([*runs, record("A", 2, score=95.0)], Paper())
    assert more.value == pytest.approx(1.5)
    apart = [record("A", 0, score=80.0), record("B", 1, score=80.0)]
    assert ties.judge(apart, Paper()).verdict == "undecided"


def test_the_interval_of_two_variants_is_that_of_the_paired_t_test() -> None:
    values = np.random.default_rng(0).normal(size=(2, 5)) + np.array([[0.0], [1.0]])
    span, margin, _ = largest_difference(values)
    low, high = ttest_rel(values[1], values[0]).confidence_interval(0.95)
    assert (span - margin, span + margin) == pytest.approx((low, high), rel=1e-6)  # the quantile's own accuracy
    assert largest_difference(values[:, :1])[1] == math.inf


def test_methods_that_tie_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(0)
    quantile = float(studentized_range.ppf(0.95, 10, 9))
    draws = rng.normal(size=(4000, 10, 2)) + rng.normal(size=(4000, 1, 2))  # seeds' luck is shared
    spans = np.ptp(draws.mean(axis=2), axis=1)
    variants, seeds, all_ = (draws.mean(axis=axes, keepdims=True) for axes in (2, 1, (1, 2)))
    margins = quantile * np.sqrt(((draws - variants - seeds + all_) ** 2).sum(axis=(1, 2)) / 9 / 2)
    assert largest_difference(draws[0])[:2] == pytest.approx((spans[0], margins[0]))
    assert abs((spans > margins).mean() - 0.05) <= 4 * math.sqrt(0.05 * 0.95 / 4000)


def test_a_tie_within_the_noise_is_undecided() -> None:
    runs = series("A", "score", [80.0, 80.2]) + series("B", "score", [81.6, 81.4])
    judged = rule(rule="ties", measure="score", within=2.0, by="score").judge(runs, Paper())
    assert judged.verdict == "undecided"
    assert "1.4 points apart (95 % interval 0 to 3.94 by Tukey's test). The bound is 2." in judged.sentence


@pytest.mark.parametrize(
    ("lowest", "edge", "verdict"),
    [
        (70.0, False, "contradicted"),
        (70.0, True, "undecided"),  # beyond the rates that were tried it may be as good as the others
        (80.0, True, "confirmed"),
    ],
)
def test_no_tie_is_denied_for_want_of_rates(lowest: float, edge: bool, verdict: str) -> None:
    best = {"A": 80.0, "B": 80.5, "C": lowest}
    runs = []
    for name, score in best.items():
        losses = (50.0, 60.0, score) if edge and name == "C" else (50.0, score, 60.0)
        for rate, value in zip((1e-4, 1e-3, 1e-2), losses, strict=True):
            runs += series(name, "score", [value, value + 0.1], learning_rate=rate)
    judged = rule(rule="ties", measure="score", within=2.0, by="score").judge(runs, Paper())
    assert judged.verdict == verdict
    assert ("Best at the first or last rate that was tried: C. The others: from A 80.05" in judged.sentence) == edge


@pytest.mark.parametrize(("slope", "verdict"), [(1, "confirmed"), (-1, "contradicted")])
def test_correlates(slope: int, verdict: str) -> None:
    runs = [record(f"V{i}", 0, gap=float(slope * i), width=float(i)) for i in range(10)]
    correlates = rule(rule="correlates", x="width", y="gap", expect="positive")
    judged = correlates.judge(runs, Paper())
    assert (judged.verdict, judged.value) == (verdict, pytest.approx(slope))
    assert correlates.judge(runs[:7], Paper()).verdict == "undecided"
    # Wide and without a gap, because they learned nothing.
    lost = [record(f"V{i}", 0, gap=0.0, width=99.0, metrics={"matthews_correlation": 0.0}) for i in range(8)]
    lost += [record("V9", 0, gap=0.0, width=99.0, final_eval=2.0, curve=((0, 1.0), (9, 2.0)))]
    judged = correlates.judge([*runs, *(replace(run, learning_rate=1e-2) for run in lost)], Paper())
    assert (judged.verdict, judged.value) == (verdict, pytest.approx(slope))
    assert judged.sentence.endswith("Left out: 9 runs that learned nothing.")


def test_correlations_are_not_those_of_the_learning_rate() -> None:
    """Within each rate wider is worse; over all rates together wider is better."""
    runs = [
        record(f"V{i}", 0, learning_rate=rate, width=10.0 * k + i, gap=i - 10.0 * k)
        for k, rate in enumerate((1e-4, 1e-3, 1e-2))
        for i in range(8)
    ]
    judged = rule(rule="correlates", x="width", y="gap", expect="positive").judge(runs, Paper())
    assert (judged.verdict, judged.value) == ("confirmed", pytest.approx(1.0))
    assert "ranked within each learning rate" in judged.sentence


PAPER = tuple(PaperValue(variant=f"V{i}", task="cola", value=70.0 + i, sd=0.5) for i in range(8))


@pytest.mark.parametrize(("sign", "verdict"), [(1, "confirmed"), (-1, "contradicted")])
def test_order(sign: int, verdict: str) -> None:
    runs = [record(f"V{i}", 0, score=50.0 + sign * i) for i in range(8)]
    judged = rule(rule="order").judge(runs, Paper(PAPER))
    assert (judged.verdict, judged.value) == (verdict, pytest.approx(sign))
    assert rule(rule="order").judge(runs[:4], Paper(PAPER)).verdict == "undecided"
    level = [record(f"V{i}", 0, score=50.0) for i in range(8)]
    assert rule(rule="order").judge(level, Paper(PAPER)).verdict == "not confirmed"


def test_the_order_is_of_tasks_with_answers() -> None:
    """On the second task every run gives one class: its equal scores would hide the order."""
    runs = [record(f"V{i}", 0, score=50.0 + i, task="cola") for i in range(8)]
    paper = tuple(PaperValue(variant=f"V{i}", task="mrpc", value=90.0 - 9 * i) for i in range(8))
    same = [record(f"V{i}", 0, score=68.4, task="mrpc", metrics={"matthews_correlation": 0.0}) for i in range(8)]
    judged = rule(rule="order").judge(runs + same, Paper(PAPER + paper))
    assert (judged.verdict, judged.value) == ("confirmed", pytest.approx(1.0))
    assert "over cola" in judged.sentence
    assert rule(rule="order").judge(same, Paper(paper)).verdict == "undecided"


def test_the_best_among_those_that_are_claimed() -> None:
    runs = [r for i in range(3) for r in series(f"V{i}", "score", [50.0 + i + 0.01 * s for s in range(6)])]
    judged = rule(rule="best", variant="V1", among=["V0", "V1"]).judge(runs, Paper())
    assert (judged.verdict, "is number 1 of 2" in judged.sentence) == ("confirmed", True)


def test_a_printed_mean_is_over_all_tasks() -> None:
    paper = Paper((PaperValue(variant="A", task="mean", value=82.0),), tasks=("cola", "mrpc"))
    assert paper.of("A", ["mrpc", "cola"])[0] == 82.0
    assert math.isnan(paper.of("A", ["cola"])[0])


def test_best() -> None:
    runs = [r for i in range(3) for r in series(f"V{i}", "score", [50.0 + i + 0.01 * s for s in range(6)])]
    judged = rule(rule="best", variant="V2").judge(runs, Paper())
    assert (judged.verdict, judged.value) == ("confirmed", pytest.approx(1.0))
    judged = rule(rule="best", variant="V0").judge(runs, Paper())
    assert judged.verdict == "contradicted"
    assert "is number 3 of 3; the best other is V2" in judged.sentence
    assert rule(rule="best", variant="V0").judge(runs[:6], Paper()).verdict == "undecided"


def test_numbers_at_another_scale_are_not_judged() -> None:
    runs = series("V1", "score", [71.0, 71.2]) + series("V5", "score", [60.0, 60.2])
    small = {name: judged for name, _, judged in score_rows(runs, Paper(PAPER))}
    assert {judged.verdict for judged in small.values()} == {"not comparable"}
    whole = {name: judged for name, _, judged in score_rows(runs, Paper(PAPER, same_scale=True))}
    assert {name: judged.verdict for name, judged in whole.items()} == {"V1": "confirmed", "V5": "contradicted"}


def test_every_verdict_is_explained() -> None:
    assert set(VERDICTS) == {"confirmed", "not confirmed", "contradicted", "undecided", "not comparable"}


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"measure: 'final_evl' is not known.*Did you mean 'final_eval'"):
        compares(measure="final_evl")
