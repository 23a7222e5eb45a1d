"""Fixed subsets and label noise."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.data import sampling


def test_raw_draws_are_numpys_documented_stream():
    """PCG64's first outputs for this seed, written down once: they must be the same for every NumPy version."""
    assert sampling.raw_draws(1, 3).tolist() == [9441442522235856127, 17532960557476522086, 2659275481604167885]


@pytest.mark.parametrize("count", [1, 2, 100])
def test_permutation_holds_every_index_once(count):
    assert sorted(sampling.permutation(count, 7).tolist()) == list(range(count))


def test_subsets_are_fixed_and_nested():
    small, large = sampling.subset(100, 10), sampling.subset(100, 40)
    assert large[:10] == small
    assert len(set(large)) == 40
    assert sampling.subset(5, None) == sampling.subset(5, 9) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("count", "held"), [(2, 1), (10, 1), (300, 30), (100_000, 2048)])
def test_hold_out_parts_the_set(count, held):
    train, evaluation = sampling.hold_out(count)
    assert len(evaluation) == held
    assert sorted(train + evaluation) == list(range(count))


def test_noise_takes_the_stated_share_and_a_larger_share_contains_a_smaller():
    assert len(sampling.noisy_indices(200, 0.1)) == 20
    assert set(sampling.noisy_indices(200, 0.1)) < set(sampling.noisy_indices(200, 0.3))
    assert sampling.noisy_indices(200, 0.0) == []


def test_noisy_labels_are_other_labels_equally_often():
    labels = [0] * 30_000
    changed = sampling.other_labels(labels, range(len(labels)), 4)
    counts = np.bincount(changed, minlength=4)
    assert counts[0] == 0
    # Four standard deviations of a binomial with p = 1/3.
    assert np.all(np.abs(counts[1:] - 10_000) < 4 * np.sqrt(30_000 * 2 / 9))


def test_noisy_targets_come_from_examples_that_read_differently():
    targets = ["a", "a", "b", "c", "a"]
    changed = sampling.other_targets(targets, [0, 1, 2, 4])
    assert changed[3] == "c"
    assert all(changed[i] != targets[i] and changed[i] in targets for i in (0, 1, 2, 4))
