"""Rebounds of stored runs: the rows are the detector's, kept while their numbers are, and q-values are over the set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from landscape.analysis import episodes as module
from landscape.analysis.episodes import (
    EPISODES_FILE,
    TYPES,
    EpisodeSettings,
    analyze_episodes,
    choose_siblings,
    logged_curve,
    set_q_values,
)
from landscape.episodes import Control, detect_episodes
from landscape.episodes.multiplicity import q_values
from landscape.episodes.rise import largest_rise
from landscape.errors import StoreError, UsageError
from landscape.plots import RunData
from landscape.store import Run, Store
from tests.synthetic_runs import run, write

QUICK = EpisodeSettings(resamples=99)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    runs = [run(rank=64, seed=seed) for seed in range(2)]
    runs += [run(rank=64, seed=seed, method="mgpo") for seed in range(2)]
    runs += [run(rank=128, seed=0, diverges_at=150)]
    return write(runs, tmp_path_factory.mktemp("episodes") / "store")


def one_run(data: RunData, tmp_path: Path) -> Run:
    return write([data], tmp_path / "store").runs()[0]


def find(store: Store, method: str, rank: int, seed: int) -> Run:
    [found] = [r for r in store.runs() if (r.config.method, r.config.rank, r.config.seed) == (method, rank, seed)]
    return found


def test_the_rows_are_the_detectors(store: Store) -> None:
    chosen = find(store, "lora", 64, 0)
    table = analyze_episodes(chosen, QUICK)
    frame = chosen.metrics()
    expected = detect_episodes(
        frame["step"], frame["loss_clean"], learning_rate=frame["learning_rate"], resamples=99, epoch_steps=[120, 240]
    )
    assert list(table) == list(TYPES)
    assert len(table) == len(expected)
    for row, one in zip(table.to_dict("records"), expected, strict=True):
        for key in ("kind", "onset", "peak", "recovery", "amplitude", "excess_area", "p_value"):
            assert row[key] == getattr(one, key)
    rise = largest_rise(frame["step"], frame["loss_clean"])
    assert (table["rise"] == rise.amplitude).all()
    assert (table["run_p_value"] == min(e.p_value for e in expected)).all()
    evaluated = chosen.evaluations()
    assert (table["final_eval"] == evaluated[evaluated["split"] == "eval"]["loss"].iloc[-1]).all()
    assert table["final_train"].iloc[0] == pytest.approx(frame["loss_clean"].iloc[-12:].mean())
    pd.testing.assert_frame_equal(pd.read_parquet(chosen.analysis_dir / EPISODES_FILE)[list(TYPES)], table)


def test_what_is_known_is_not_tested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = one_run(run(), tmp_path)
    first = analyze_episodes(chosen, QUICK)
    calls: list[int] = []
    real = module.detect_episodes
    monkeypatch.setattr(module, "detect_episodes", lambda *a, **k: calls.append(1) or real(*a, **k))
    pd.testing.assert_frame_equal(analyze_episodes(chosen, QUICK), first)
    assert not calls
    analyze_episodes(chosen, EpisodeSettings(resamples=199))
    assert len(calls) == 1
    # Another column joins the table; the first stays.
    analyze_episodes(chosen, EpisodeSettings("grad_norm", resamples=99))
    kept = pd.read_parquet(chosen.analysis_dir / EPISODES_FILE)
    tested = dict(zip(kept["column"], kept["tested_curve"], strict=True))
    assert tested == {"loss_clean": "raw", "grad_norm": "logarithm"}
    asked = analyze_episodes(chosen, EpisodeSettings("grad_norm", resamples=99, logarithm=False))
    assert set(asked["tested_curve"]) == {"raw"}


def test_a_lengthened_run_is_tested_again(tmp_path: Path) -> None:
    data = run()
    chosen = one_run(data, tmp_path)
    before = analyze_episodes(chosen, QUICK)
    attempt = chosen.begin_attempt(resume_step=0)
    for record in data.metrics.iloc[:200].to_dict("records"):
        attempt.log(record)
    attempt.close()
    chosen.set_status(state="running")
    after = analyze_episodes(chosen, QUICK)
    assert (before["points"].iloc[0], after["points"].iloc[0]) == (240, 200)
    assert before["metrics"].iloc[0] != after["metrics"].iloc[0]
    assert len(pd.read_parquet(chosen.analysis_dir / EPISODES_FILE)) == len(after)


def test_a_run_without_candidates_has_a_row(tmp_path: Path) -> None:
    data = run()
    data.metrics["loss_clean"] = 1.0
    [row] = analyze_episodes(one_run(data, tmp_path), QUICK).to_dict("records")
    assert (row["kind"], row["p_value"], row["run_p_value"], row["rise"]) == ("none", 1.0, 1.0, 0.0)


def test_a_diverged_run_counts_with_what_was_tested(store: Store) -> None:
    table = analyze_episodes(find(store, "lora", 128, 0), QUICK)
    lost = table[table["flags"].str.contains("non_finite")]
    assert (lost["p_value"] == 0).any()
    assert (table["run_p_value"] > 0).all()


def test_losses_that_were_skipped_are_no_divergence(tmp_path: Path) -> None:
    data = run(max_steps=480)
    data.metrics.loc[data.metrics["step"] % 2 == 1, "loss_clean"] = np.nan
    table = analyze_episodes(one_run(data, tmp_path), QUICK)
    assert table["points"].iloc[0] == 240
    assert not table["flags"].str.contains("non_finite").any()


def test_evaluations_bring_their_standard_errors(store: Store) -> None:
    chosen = find(store, "lora", 64, 0)
    curve = logged_curve(chosen, "eval")
    assert len(curve.steps) == 25
    assert curve.standard_errors is not None
    np.testing.assert_array_equal(curve.standard_errors, 0.03)
    assert analyze_episodes(chosen, EpisodeSettings("eval", resamples=99))["points"].iloc[0] == 25


def test_epochs_and_warm_up_are_read(tmp_path: Path) -> None:
    data = run()
    data.metrics["learning_rate"] = np.minimum(data.metrics["step"] / 30, 1.0)
    curve = logged_curve(one_run(data, tmp_path), "loss_clean")
    assert curve.epoch_steps == (120.0, 240.0)
    assert curve.warmup_steps == 29.0
    assert curve.base is not None


def test_adjusted_by_the_base_model(store: Store) -> None:
    chosen = find(store, "mgpo", 64, 0)
    raw = analyze_episodes(chosen, QUICK)
    adjusted = analyze_episodes(chosen, EpisodeSettings(adjust="base", resamples=99))
    assert set(adjusted["tested_curve"]) == {"adjusted by base"}
    # The synthetic losses are difficulty + a fifth of its noise: without it the noise's floor is far lower.
    assert adjusted["rise"].iloc[0] < raw["rise"].iloc[0]
    frame = chosen.metrics()
    expected = detect_episodes(
        frame["step"], frame["loss_clean"], learning_rate=frame["learning_rate"], resamples=99,
        epoch_steps=[120, 240], control=Control(frame["loss_base"].to_numpy(), "base"),
    )  # fmt: skip
    assert adjusted["p_value"].tolist() == [e.p_value for e in expected]


def test_siblings_share_the_data_order_and_do_not_rebound(store: Store) -> None:
    runs = store.runs()
    raw = {r.id: analyze_episodes(r, QUICK).to_dict("records") for r in runs}
    for r, p in zip(runs, [0.01, 0.9, 0.9, 0.9, 0.9], strict=True):
        raw[r.id][0]["run_p_value"] = p
    chosen = choose_siblings(runs, raw)
    for r in runs:
        assert {other.config.seed for other in chosen[r.id]} <= {r.config.seed}
        assert r.id not in {other.id for other in chosen[r.id]}
        assert runs[0].id not in {other.id for other in chosen[r.id]}
    subject = find(store, "lora", 64, 1)
    sibling = find(store, "mgpo", 64, 1)
    table = analyze_episodes(subject, EpisodeSettings(adjust="siblings", resamples=99), [sibling])
    assert set(table["tested_curve"]) == {"adjusted by sibling"}
    assert set(table["controls"]) == {sibling.id}


def test_q_values_are_over_the_set(store: Store) -> None:
    runs = store.runs()
    p = [analyze_episodes(r, QUICK)["run_p_value"].iloc[0] for r in runs]
    found = set_q_values(runs, QUICK)
    np.testing.assert_allclose([found[r.id][0] for r in runs], q_values(p))
    np.testing.assert_allclose([found[r.id][1] for r in runs], q_values(p, "by"))
    table = pd.read_parquet(runs[0].analysis_dir / EPISODES_FILE)
    own = table[(table["column"] == "loss_clean") & (table["adjust"] == "none")]
    assert (own["q_value"] == found[runs[0].id][0]).all()
    assert (own["q_runs"] == len(runs)).all()
    smaller = set_q_values(runs[:2], QUICK)
    np.testing.assert_allclose([smaller[r.id][0] for r in runs[:2]], q_values(p[:2]))
    assert set_q_values(runs, EpisodeSettings("loss_perturbed")) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"adjust": "sibling"},
            "adjust: 'sibling' is not known; allowed: base, none, siblings. Did you mean 'siblings'",
        ),
        (
            {"adjust": "base", "column": "grad_norm"},
            "adjust: 'base' is for loss_clean and loss_perturbed, not for column",
        ),
        ({"resamples": 0}, "resamples: 0; allowed: at least 1"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EpisodeSettings(**settings)


def test_what_a_run_lacks(store: Store, tmp_path: Path) -> None:
    chosen = find(store, "lora", 64, 0)
    with pytest.raises(UsageError, match=r"column: 'los_clean' is not known.*Did you mean 'loss_clean'"):
        analyze_episodes(chosen, EpisodeSettings("los_clean"))
    with pytest.raises(StoreError, match="no other run without a rebound shares its data order"):
        analyze_episodes(chosen, EpisodeSettings(adjust="siblings"))
    data = run()
    data.metrics["loss_base"] = np.nan
    with pytest.raises(StoreError, match="no loss_base at every step"):
        analyze_episodes(one_run(data, tmp_path), EpisodeSettings(adjust="base"))


def test_marks_and_ends_of_imported_runs(tmp_path: Path) -> None:
    data = run()
    for column in ("loss_clean", "loss_perturbed"):
        data.metrics.loc[data.metrics["step"] % 2 == 0, column] = np.nan
    chosen = one_run(data, tmp_path)
    (chosen.path / "origin.json").write_text('{"resume_steps": [50.0]}')
    curve = logged_curve(chosen, "loss_clean")
    assert curve.resume_steps == (50.0,)
    np.testing.assert_array_equal(curve.steps, np.arange(1, 240, 2))
    chosen.set_status(state="diverged")
    assert np.isnan(logged_curve(chosen, "loss_clean").values).sum() == 1
