"""What runs say together: cells, comparisons that stay exact after their choice of cells, axes and sentences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import combine_pvalues

from landscape.episodes.multiplicity import q_values
from landscape.episodes.sweep import (
    MethodComparison,
    Outcome,
    axis_outcomes,
    cell_outcomes,
    compare_methods,
    fisher,
    run_q_values,
)
from landscape.episodes.verdicts import axis_verdict, cells_verdict, comparison_verdict

BASE = Outcome("id", "lora", 8, 1e-3, None, 0, "done", 0.5, 0.1, 1.0, math.nan, 1.0)


def outcomes(
    seeds: int = 6, rates: tuple[float, ...] = (1e-3, 1e-2), methods: tuple[str, ...] = ("lora", "mgpo")
) -> list[Outcome]:
    """LoRA rebounds at the highest rate, by 0.5 more than the other methods do; the final loss is lowest there."""
    rng = np.random.default_rng(0)
    runs = []
    for method in methods:
        for rank in (8, 16, 32, 64):
            for rate in rates:
                for seed in range(seeds):
                    rebounds = method == "lora" and rate == max(rates)
                    luck = 0.01 * float(rng.standard_normal())
                    runs.append(
                        replace(
                            BASE, run_id=f"{method}{rank}{rate}{seed}", method=method, rank=rank, learning_rate=rate,
                            seed=seed, p_value=0.0005 if rebounds else 0.6, rise=0.1 + luck + 0.5 * rebounds,
                            rise_area=2 + luck + 10 * rebounds, final_loss=2 - (rate == max(rates)) + luck,
                        )
                    )  # fmt: skip
    return runs


def only(found: list[MethodComparison], **wanted: Any) -> MethodComparison:
    [one] = [c for c in found if all(getattr(c, key) == value for key, value in wanted.items())]
    return one


def test_outcomes_are_read_from_configs_and_rows() -> None:
    config = {"method": "mgpo", "rank": 8, "learning_rate": 1e-3, "train_examples": None, "seed": 3}
    shared = {"run_p_value": 0.01, "rise": 0.3, "rise_area": 4.0, "final_eval": math.nan, "final_train": 0.7}
    rows = [{"amplitude": math.inf, **shared}, {"amplitude": 0.25, **shared}]
    one = Outcome.of("a", config, "done", rows)
    assert (one.method, one.rank, one.seed, one.p_value, one.amplitude, one.final_loss) == (
        "mgpo",
        8,
        3,
        0.01,
        0.25,
        0.7,
    )
    assert math.isnan(Outcome.of("a", config, "diverged", rows).final_loss)
    assert Outcome.of("a", {**config, "method": "full"}, "done", rows).rank is None


def test_fisher() -> None:
    p = np.random.default_rng(0).uniform(size=7)
    assert fisher(p.tolist()) == pytest.approx(combine_pvalues(p).pvalue, rel=1e-8)
    assert fisher([1.0, 1.0]) == 1.0


def test_cells() -> None:
    runs = outcomes()
    runs[0] = replace(runs[0], state="diverged")
    cells = cell_outcomes(runs)
    assert len(cells) == 16
    first = cells[0]
    own = [o.rise for o in runs if (o.method, o.rank, o.learning_rate) == ("lora", 8, 1e-3)]
    assert (first.method, first.rank, first.learning_rate, first.runs, first.diverged) == ("lora", 8, 1e-3, 6, 1)
    assert first.rise == pytest.approx(np.mean(own))
    assert first.rise_sd == pytest.approx(np.std(own, ddof=1))
    np.testing.assert_allclose([c.q_value for c in cells], q_values([c.p_value for c in cells]))
    assert {(c.method, c.learning_rate) for c in cells if c.rebounding} == {("lora", 1e-2)}


def test_the_cells_that_decide() -> None:
    one = only(compare_methods(outcomes()), setting="fixed", measure="rise")
    assert (one.first, one.second, one.cells, one.result.pairs) == ("mgpo", "lora", 4, 6)
    assert one.rebounding == (0, 24)
    assert one.result.difference == pytest.approx(-0.5, abs=0.02)
    assert one.result.p_value == 2 / 2**6
    for kind in (True, False):
        rows = [c for c in compare_methods(outcomes()) if (c.setting == "cell") == kind]
        np.testing.assert_allclose([c.q_value for c in rows], q_values([c.result.p_value for c in rows]))
    assert not [c for c in compare_methods([replace(o, p_value=0.6) for o in outcomes()]) if c.setting == "fixed"]


def test_each_cell_and_each_ones_best_rate() -> None:
    found = compare_methods(outcomes())
    cell = only(found, setting="cell", measure="rise_area", rank=16, learning_rate=1e-3)
    assert abs(cell.result.difference) < 0.05
    best = only(found, setting="best", measure="rise")
    assert best.cells == 4
    assert best.result.difference == pytest.approx(-0.5, abs=0.02)  # both are best where LoRA rebounds
    better_low = [replace(o, final_loss=1 / o.final_loss) for o in outcomes()]
    assert abs(only(compare_methods(better_low), setting="best", measure="rise").result.difference) < 0.02
    assert not [c for c in compare_methods(outcomes(rates=(1e-3,))) if c.setting == "best"]


def test_a_seed_that_one_method_lacks_is_left_out() -> None:
    runs = [o for o in outcomes() if not (o.method == "mgpo" and o.seed == 2)]
    assert {c.result.pairs for c in compare_methods(runs)} == {5}
    assert all(c.result.too_few for c in compare_methods(runs))


def test_best_rates_are_chosen_among_seeds_that_have_all() -> None:
    runs = [o for o in outcomes() if not (o.learning_rate == 1e-3 and o.seed >= 3)]
    found = compare_methods(runs)
    assert only(found, setting="best", measure="rise").result.pairs == 3
    assert only(found, setting="fixed", measure="rise").result.pairs == 6


def test_choosing_the_cells_keeps_the_test_exact() -> None:
    """Methods that do not differ: the smaller its p-value the larger a run's rise, so the choice looks at the data."""
    rng, p_values = np.random.default_rng(2), []
    template = [o for o in outcomes() if o.rank == 8]
    for _ in range(400):
        sizes = rng.exponential(size=len(template))
        runs = [replace(o, rise=x, p_value=math.exp(-4 * x)) for o, x in zip(template, sizes, strict=True)]
        p_values += [c.result.p_value for c in compare_methods(runs) if (c.setting, c.measure) == ("fixed", "rise")]
    share = np.mean(np.array(p_values) <= 0.0625)
    assert len(p_values) > 300
    assert share <= 0.0625 + 2 * np.sqrt(0.0625 * 0.9375 / len(p_values))
    assert share > 0.02


def test_three_methods_are_compared_with_lora_first() -> None:
    found = compare_methods(outcomes(methods=("mgpo", "ggpo", "lora")))
    pairs = list(dict.fromkeys((c.first, c.second) for c in found if c.setting != "cell"))
    assert pairs == [("ggpo", "lora"), ("mgpo", "lora"), ("mgpo", "ggpo")]
    # Neither of the last two rebounds anywhere.
    assert not [c for c in found if c.setting == "fixed" and c.second == "ggpo"]


def test_axes() -> None:
    found = axis_outcomes(outcomes(rates=(1e-4, 1e-3, 1e-2)))
    kinds = {(a.method, a.axis, a.at_best) for a in found}
    assert kinds == {(m, *kind) for m in ("lora", "mgpo") for kind in (
        ("rank", False), ("rank", True), ("learning_rate", False)
    )}  # fmt: skip
    [fixed] = [a for a in found if (a.method, a.axis, a.at_best) == ("lora", "rank", False) and a.fixed[0][1] == 1e-2]
    assert fixed.result.positions.tolist() == [8, 16, 32, 64]
    assert fixed.result.means == pytest.approx(np.zeros(4), abs=0.02)
    np.testing.assert_allclose([a.q_value for a in found], q_values([a.result.p_value for a in found]))
    lost = [replace(o, final_loss=math.nan) if o.seed == 0 else o for o in outcomes()]
    assert {a.lost for a in axis_outcomes(lost) if not a.at_best} == {4}


def test_a_peak_along_rank_is_found() -> None:
    runs = [replace(o, final_loss=o.final_loss + 0.3 * (o.rank == 16)) for o in outcomes()]
    for one in axis_outcomes(runs):
        assert (one.result.before, one.result.peak) == (8, 16)
        assert one.q_value <= 0.05
        assert one.result.amplitude == pytest.approx(
            math.log(1.15 if ("learning_rate", 1e-3) in one.fixed else 1.3), abs=0.02
        )
        assert "rises and falls again at 8 → 16" in axis_verdict(one)


def test_full_fine_tuning_has_no_rank_axis() -> None:
    runs = [replace(o, rank=None, method="full") for o in outcomes(rates=(1e-4, 1e-3, 1e-2)) if o.rank == 8]
    assert {a.axis for a in axis_outcomes(runs)} == {"learning_rate"}


def test_sentences() -> None:
    runs = outcomes()
    found = compare_methods(runs)
    sentence = comparison_verdict(only(found, setting="fixed", measure="rise"))
    assert sentence.startswith("mgpo lowers the largest rise of the loss against lora in the 4 cells in which")
    assert "exact sign-flip test over 6 seeds, p = 0.031, q = 0.031; 0 of 24 runs rebound against 24 of 24" in sentence
    alone = replace(only(found, setting="fixed", measure="rise"), q_value=0.2)
    assert "q = 0.2, which is not significant among all the comparisons; 0 of 24" in comparison_verdict(alone)
    few = compare_methods([o for o in runs if o.seed < 5])
    assert "5 seeds cannot give a p-value below 0.0625" in comparison_verdict(
        only(few, setting="fixed", measure="rise")
    )
    same = only(found, setting="cell", measure="rise", rank=8, learning_rate=1e-3)
    assert comparison_verdict(same).startswith("No difference between mgpo and lora is shown in the largest rise")
    swapped = [replace(o, method={"lora": "mgpo", "mgpo": "lora"}[o.method]) for o in runs]
    assert comparison_verdict(only(compare_methods(swapped), setting="fixed", measure="rise")).startswith("mgpo raises")
    assert cells_verdict(cell_outcomes(runs), "lora") == (
        "lora: 24 of 48 runs rebound (q ≤ 0.05), in 4 of 8 cells their p-values combined do."
    )
    [line, *_] = [a for a in axis_outcomes(runs) if not a.at_best]
    assert "along rank (learning_rate 0.001): no second descent shown (p = " in axis_verdict(line)
    assert f"a peak of {100 * math.expm1(line.result.detectable):.2g} % would be found 4 times in 5" in axis_verdict(
        line
    )


SIZES = (8, 16, 32, 64, 128)


@pytest.mark.parametrize(
    ("losses", "found"),
    [((1.0, 1.2, 2.0, 1.1, 0.8), True), ((2.0, 1.6, 1.2, 0.9, 0.8), False), ((1.0, 0.8, 0.7, 1.0, 1.4), False)],
    ids=["peak", "falls", "valley"],
)
def test_along_the_number_of_training_examples(losses: tuple[float, ...], found: bool) -> None:
    rng = np.random.default_rng(8)
    runs = [
        replace(BASE, run_id=f"{size}{seed}", train_examples=size, seed=seed, final_loss=loss * rng.lognormal(0, 0.03))
        for size, loss in zip(SIZES, losses, strict=True)
        for seed in range(5)
    ]
    [line] = axis_outcomes(runs)
    assert (line.axis, line.at_best, line.lost) == ("train_examples", False, 0)
    assert line.result.positions.tolist() == list(SIZES)
    assert (line.result.p_value <= 0.05) == found
    sentence = axis_verdict(line)
    assert sentence.startswith("lora along number of training examples (rank 8, learning_rate 0.001): ")
    if found:
        assert (line.result.before, line.result.peak, line.result.after) == (8, 32, 128)
        means = {
            size: np.mean([math.log(run.final_loss) for run in runs if run.train_examples == size]) for size in SIZES
        }
        higher = max(means[8], means[128])  # of the two troughs
        assert line.result.amplitude == pytest.approx(means[32] - higher, rel=1e-8)
        assert "the final loss rises and falls again at 8 → 32 → 128" in sentence
    # Sizes are no methods' cells: each is compared with its like.
    assert [cell.train_examples for cell in cell_outcomes(runs)] == list(SIZES)


def test_q_values_by_run() -> None:
    runs = outcomes()
    q = run_q_values(runs)
    assert [q[o.run_id] for o in runs] == q_values([o.p_value for o in runs]).tolist()


def test_skewed_losses_near_divergence_are_no_fall() -> None:
    """Log-normal losses of one median, scattered more at each higher rank."""
    rng, alarms, lines = np.random.default_rng(5), [], outcomes(rates=(1e-3,), methods=("lora",))
    for _ in range(100):
        runs = [replace(o, final_loss=math.exp(0.02 * (o.rank or 0) * rng.standard_normal())) for o in lines]
        alarms.append(axis_outcomes(runs)[0].result.p_value <= 0.05)
    assert np.mean(alarms) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)
