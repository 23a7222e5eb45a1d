from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from landscape.episodes import Control, Episode, detect_episodes
from landscape.episodes.benchmark import Detection, draw_recipes, evaluate, false_positives, ours, sensitivity
from landscape.episodes.results import FLAGS, KINDS
from landscape.episodes.semireal import SemiRealCurve, SharedRuns, semi_real_curve
from landscape.episodes.synthetic import CONFOUNDERS, SHAPES, Recipe, generate
from landscape.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def counted(episodes: list[Episode], alpha: float = 0.05) -> list[Episode]:
    return [e for e in episodes if e.p_value <= alpha]


def hump(n: int, start: int, length: int, height: float, seed: int = 0) -> np.ndarray:
    """A falling curve of noise 0.1 with one raised cosine."""
    x = np.arange(n)
    v = (x - start) / length
    bump = np.where((v > 0) & (v < 1), 0.5 - 0.5 * np.cos(2 * np.pi * v), 0)
    return 1 + np.exp(-x / (0.1 * n)) + height * bump + 0.1 * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("points", [300, 1000, 20_000])
def test_finds_one_rebound_and_its_ends(shape: str, points: int) -> None:
    curve = generate(Recipe(points, "exponential", "white", "none", shape, 1, amplitude=10, duration=0.1), 3)
    found = counted(detect_episodes(curve.steps, curve.values))
    assert len(found) == 1
    truth, one = curve.episodes[0], found[0]
    assert one.kind == "episode"
    assert abs(one.onset - truth.onset) < 0.015 * points
    assert abs(one.recovery - truth.recovery) < 0.05 * points
    assert one.amplitude == pytest.approx(10, rel=0.25)
    assert one.duration == one.recovery - one.onset
    assert one.excess_area > 0


def test_sizes_of_a_rebound() -> None:
    found = counted(detect_episodes(np.arange(2000), hump(2000, 1000, 200, 1.0)))
    assert len(found) == 1
    one = found[0]
    assert one.amplitude == pytest.approx(1, rel=0.15)
    assert one.amplitude_noise == pytest.approx(10, rel=0.25)
    assert one.amplitude_relative == pytest.approx(1, rel=0.2)  # The descent was 1 too.
    assert one.excess_area == pytest.approx(100, rel=0.15)  # Half of height times length.
    assert one.second_descent_gain == pytest.approx(0, abs=0.1)


def test_kinds() -> None:
    n = 1000
    x, noise = np.arange(n), 0.1 * np.random.default_rng(1).standard_normal(n)
    fall = 2 * np.exp(-x / 60)
    ramp = np.clip((x - 500) / 50, 0, 1)
    cases = {
        "divergence": fall + ramp,
        "partial": fall + ramp - 0.5 * np.clip((x - 600) / 50, 0, 1),
        "rebound_only": np.clip(x / 100, 0, 1) - 0.95 * np.clip((x - 200) / 100, 0, 1),
    }
    for kind, clean in cases.items():
        found = counted(detect_episodes(x, clean + noise))
        assert [e.kind for e in found] == [kind]
    assert "right_censored" in counted(detect_episodes(x, cases["divergence"] + noise))[0].flags


def test_two_episodes() -> None:
    curve = generate(Recipe(1500, "power", "ar0.5", "none", "cosine", 2, amplitude=10, duration=0.1), 5)
    found = sorted(counted(detect_episodes(curve.steps, curve.values)), key=lambda e: e.onset)
    assert len(found) == 2
    for one, truth in zip(found, curve.episodes, strict=True):
        assert abs(one.onset - truth.onset) < 0.02 * 1500


@pytest.mark.parametrize("episodes", [2, 3])
def test_rebounds_do_not_hide_one_another(episodes: int) -> None:
    curve = generate(Recipe(1000, "exponential", "ar0.5", "none", "cosine", episodes, amplitude=6, duration=0.1), 2)
    found = sorted(counted(detect_episodes(curve.steps, curve.values)), key=lambda e: e.onset)
    assert len(found) == episodes
    for one, truth in zip(found, curve.episodes, strict=True):
        assert abs(one.peak - truth.peak) < 0.05 * 1000


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_two_levels_are_no_rebounds(share: float) -> None:
    wrong = 0
    for seed in range(25):
        y = (np.random.default_rng(seed).random(600) < share).astype(float)
        wrong += bool(counted(detect_episodes(np.arange(600), y)))
    assert wrong <= 5  # At a rate of 0.05, 6 or more of 25 have probability 0.001.


def test_spikes_are_in_units_of_the_noise_around_them() -> None:
    n = 200_000
    u = np.arange(n) / n
    scale = np.where(u < 0.5, 1.0, 4.0)
    y = 500 * np.exp(-20 * u) + scale * np.random.default_rng(0).standard_normal(n)
    y[[20_000, 150_000]] += [40, 160]
    units = {e.peak: e.amplitude_noise for e in detect_episodes(np.arange(n), y) if e.kind == "spike"}
    assert units[20_000] == pytest.approx(40, rel=0.35)  # Slow noise is allowed for: √2 at most.
    assert units[150_000] == pytest.approx(40, rel=0.35)


def test_marks_explain_rises() -> None:
    seen = {"resume": "resume", "warmup_hump": "warmup", "restart": "schedule_confounded"}
    for confounder in CONFOUNDERS:
        curve = generate(Recipe(1000, "exponential", "white", confounder), 11)
        found = detect_episodes(
            curve.steps,
            curve.values,
            curve.warmup_steps,
            learning_rate=curve.learning_rate,
            epoch_steps=curve.epoch_steps,
            resume_steps=curve.resume_steps,
        )
        assert not counted(found), confounder
        if confounder in seen:
            assert any(seen[confounder] in e.flags for e in found), confounder


def test_a_rise_out_of_the_warm_up_counts_if_it_goes_on_after_it() -> None:
    """The warm-up ends at a third of the rise, and after it."""
    y = hump(600, 60, 120, 1.0)
    plain = counted(detect_episodes(np.arange(600), y))[0]
    assert "warmup" not in plain.flags
    found = counted(detect_episodes(np.arange(600), y, warmup_steps=85))
    assert [e.flags for e in found] == [("warmup",)]
    assert (found[0].peak, found[0].recovery) == pytest.approx((plain.peak, plain.recovery), abs=12)
    over = detect_episodes(np.arange(600), y, warmup_steps=130)
    assert not counted(over)
    assert any("warmup" in e.flags for e in over)


def test_what_is_found_without_the_warm_up_is_no_second_episode_of_it() -> None:
    y = hump(600, 60, 120, 2.0)
    found = counted(detect_episodes(np.arange(600), y, warmup_steps=68))
    assert len(found) == 1
    assert found[0].flags == ()


def test_a_logarithm_is_tested_as_such() -> None:
    norms = np.exp(hump(600, 300, 60, 0.8))
    asked = detect_episodes(np.arange(600), norms, logarithm=True)
    assert {e.tested_curve for e in asked} == {"logarithm"}
    taken = detect_episodes(np.arange(600), np.log(norms))
    assert [replace(e, tested_curve="raw") for e in asked] == taken
    assert counted(asked)[0].amplitude == pytest.approx(0.8, rel=0.2)  # A log ratio.


@pytest.mark.parametrize("wrong", [0.0, -2.5])
def test_what_has_no_logarithm_is_named(wrong: float) -> None:
    norms = np.where(np.arange(300) == 40, wrong, 1 + hump(300, 100, 30, 0))
    with pytest.raises(UsageError, match=rf"logarithm: {wrong:g} at step 40 has none; only values above 0 do"):
        detect_episodes(np.arange(300), norms, logarithm=True)
    with pytest.raises(UsageError, match="control: difficulty adds to a loss"):
        detect_episodes(np.arange(300), norms, logarithm=True, control=np.ones(300))


def test_a_bad_batch_is_a_spike_that_does_not_count() -> None:
    y = hump(600, 300, 60, 0)
    y[400] += 5
    found = detect_episodes(np.arange(600), y)
    spike = next(e for e in found if e.kind == "spike")
    assert (spike.peak, spike.p_value, spike.flags) == (400, 1.0, ("bad_batch",))
    assert spike.amplitude == pytest.approx(5, abs=0.4)
    assert not counted(found)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_divergences(bad: float) -> None:
    y = hump(300, 100, 30, 0)
    y[250:] = bad
    first = detect_episodes(np.arange(300), y)[0]
    assert (first.kind, first.p_value, first.onset) == ("divergence", 0.0, 250)
    assert first.flags == ("non_finite", "right_censored")
    y[:] = hump(300, 100, 30, 0)
    y[100] = bad
    found = detect_episodes(np.arange(300), y)
    assert [e.kind for e in found if "non_finite" in e.flags] == ["spike"]
    assert not counted(found)


@pytest.mark.parametrize(
    "values",
    [
        np.full(100, 3.0),
        np.linspace(5, 1, 200),
        np.exp(-np.arange(500) / 50),
        np.round(hump(500, 100, 30, 0), 1),
        np.where(np.arange(200) < 100, 2.0, 1.0),
    ],
    ids=["constant", "line", "exponential", "rounded", "step down"],
)
def test_curves_without_noise_or_rise(values: np.ndarray) -> None:
    assert not counted(detect_episodes(np.arange(len(values)), values))


def test_a_rebound_without_noise_is_found() -> None:
    x = np.arange(1000)
    y = np.exp(-x / 100) + 0.5 * np.exp(-(((x - 600) / 30) ** 2))
    found = counted(detect_episodes(x, y))
    assert len(found) == 1
    assert found[0].peak == pytest.approx(600, abs=5)


def test_scale_offset_and_step_unit_do_not_matter() -> None:
    y = hump(800, 400, 80, 0.6)
    a = detect_episodes(np.arange(800), y)[0]
    b = detect_episodes(10 * np.arange(800) + 7, 1e3 * y - 50)[0]
    assert (b.onset, b.peak, b.recovery) == (10 * a.onset + 7, 10 * a.peak + 7, 10 * a.recovery + 7)
    assert b.amplitude == pytest.approx(1e3 * a.amplitude, rel=1e-6)
    assert b.p_value == pytest.approx(a.p_value, abs=0.01)  # Rounding may move one resample across the score.


def test_the_seed_decides_and_nothing_else() -> None:
    y = hump(600, 300, 60, 0.25)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    runs = [detect_episodes(np.arange(600), y, seed=s) for s in (4, 4)]
    assert repr(runs[0]) == repr(runs[1])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_known_standard_errors_make_it_doubt() -> None:
    y = hump(300, 150, 40, 0.5)
    plain = detect_episodes(np.arange(300), y)[0]
    doubtful = detect_episodes(np.arange(300), y, standard_errors=np.full(300, 0.6))
    assert plain.p_value <= 0.05
    assert not counted(doubtful)


def controlled_curve(seed: int, amplitude: float) -> SemiRealCurve:
    """Noise correlated 0.987 with a sibling's, as measured between real runs, and 0.9 with the base model's."""
    rng = np.random.default_rng(seed)
    difficulty = rng.standard_normal(600)
    noise = [np.sqrt(c) * difficulty + np.sqrt(1 - c) * rng.standard_normal(600) for c in (0.987, 0.987, 0.82)]
    return semi_real_curve(SharedRuns(5 + np.stack(noise[:2]), 5 + noise[2]), amplitude, seed)


def test_a_control_reveals_small_rebounds_and_is_named() -> None:
    one = controlled_curve(seed=7, amplitude=1.0)
    x = np.arange(len(one.values))
    raw, adjusted = (
        detect_episodes(x, one.values),
        detect_episodes(x, one.values, control=Control(one.sibling, "sibling")),
    )
    assert not counted(raw)
    assert [e.tested_curve for e in counted(adjusted)] == ["adjusted by sibling"]
    assert detect_episodes(x, one.values, control=one.base)[0].tested_curve == "adjusted by base"


def test_a_faster_sibling_is_no_rebound() -> None:
    x = np.arange(600)
    noise = np.random.default_rng(2).standard_normal(600)
    slow, fast = 30 * np.exp(-x / 300) + noise, 30 * np.exp(-x / 40) + noise
    assert not counted(detect_episodes(x, slow, control=Control(fast, "sibling")))


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("alpha", 0.0, "alpha: 0.0 must lie"),
        ("resamples", 5, "resamples: 5 must be 19"),
        ("warmup_steps", -1, "warmup_steps: -1 must be 0 or more"),
        ("control", [1.0], "control: 1 values for 300 steps"),
        ("control", [np.nan] * 300, "control: NaN or infinite"),
        ("control", Control([1.0] * 300, "cousin"), "kind 'cousin' is not known"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(keyword: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detect_episodes(np.arange(300), hump(300, 100, 30, 0), **{keyword: value})


@pytest.mark.parametrize("points", [20, 50, 77])
def test_short_curves(points: int) -> None:
    found = detect_episodes(np.arange(points), hump(points, points // 2, points // 4, 1.5))
    assert all(e.kind in KINDS and set(e.flags) <= set(FLAGS) and 0 < e.p_value <= 1 for e in found)
    if points >= 50:
        assert counted(found)
        assert "resolution" in found[0].flags


def test_false_positives_stay_at_the_level() -> None:
    outcomes = evaluate(ours, draw_recipes(120, np.random.default_rng(0)), 500_000)
    # At a rate of 0.05 more than 13 of 120 have probability 0.004.
    assert false_positives(outcomes, 0.95).rate <= 13 / 120


def test_sensitivity_of_the_goal_cell() -> None:
    recipes = draw_recipes(60, np.random.default_rng(1), confounder="none", episodes=1, amplitude=6.0, duration=0.05)
    score = sensitivity(evaluate(ours, recipes, 600_000), 0.95)
    # The goal is 0.90; 60 curves have a standard error of 0.04.
    assert score.f1 >= 0.82
    assert score.onset_error <= 0.01


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys, numpy as np\nfrom landscape.episodes import detect_episodes\n"
        "detect_episodes(np.arange(100), np.random.default_rng(0).standard_normal(100))\n"
        "print([m for m in ('torch', 'transformers', 'scipy.stats', 'scipy.optimize') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_detections_are_ordered_by_significance() -> None:
    found = detect_episodes(np.arange(1000), hump(1000, 500, 100, 1.0))
    assert [e.p_value for e in found] == sorted(e.p_value for e in found)
    assert isinstance(ours(generate(Recipe(300), 0)), list)
    assert Detection(0, 1, 2, 0.5).strength == 0.5
