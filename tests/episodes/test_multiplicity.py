"""q-values against their definition and a published example."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.episodes.multiplicity import q_values
from landscape.errors import UsageError

# Benjamini and Hochberg (1995), section 4.2: of these 15 the procedure rejects the first four at 0.05.
PUBLISHED = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590,
    1.0000,
]  # fmt: skip


def test_the_published_example() -> None:
    assert (q_values(PUBLISHED) <= 0.05).tolist() == [True] * 4 + [False] * 11


@pytest.mark.parametrize(("procedure", "factor"), [("bh", 1.0), ("by", float((1 / np.arange(1, 41)).sum()))])
def test_rejections_are_those_of_the_step_up_procedure(procedure, factor) -> None:
    p = np.random.default_rng(0).uniform(size=40) ** 3
    q = q_values(p, procedure)
    for level in (0.01, 0.05, 0.2, 0.5):
        passing = [k for k in range(1, 41) if np.sort(p)[k - 1] <= k * level / (40 * factor)]
        cut = np.sort(p)[max(passing) - 1] if passing else -1
        np.testing.assert_array_equal(q <= level, p <= cut)


def test_what_was_not_tested_does_not_count() -> None:
    q = q_values([0.01, np.nan, 0.04])
    np.testing.assert_allclose(q, [0.02, np.nan, 0.04], rtol=1e-12)
    assert len(q_values([])) == 0


def test_the_false_discovery_rate_holds() -> None:
    """Half of 40 hypotheses true: the share of false among those rejected stays below the level."""
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(500):
        p = np.concatenate([rng.uniform(size=20), rng.uniform(size=20) ** 8])
        rejected = q_values(p) <= 0.1
        shares.append(rejected[:20].sum() / max(rejected.sum(), 1))
    assert np.mean(shares) <= 0.05 + 4 * np.std(shares) / np.sqrt(500)  # BH attains level times share of nulls
    assert np.mean(shares) >= 0.05 - 4 * np.std(shares) / np.sqrt(500)


@pytest.mark.parametrize(
    ("values", "procedure", "message"),
    [
        ([0.5, 1.5], "bh", "p_values: 1.5; allowed: 0 to 1"),
        ([-0.1], "bh", "p_values: -0.1"),
        ([0.5], "bonferroni", "procedure: 'bonferroni' is not known; allowed: bh, by"),
    ],
)
def test_errors(values, procedure, message) -> None:
    with pytest.raises(UsageError, match=message):
        q_values(values, procedure)
