"""Fixed subsets and label noise: functions of constant seeds, never of a run's seed or of a global generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUBSET_SEED, HOLD_OUT_SEED, NOISE_SEED = 1, 2, 3


def raw_draws(seed: int, count: int) -> np.ndarray:
    """``count`` 64-bit integers from PCG64's raw stream, which stays the same across NumPy versions."""
    return np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)


def permutation(count: int, seed: int) -> np.ndarray:
    """A fixed permutation of range(count)."""
    return np.argsort(raw_draws(seed, count), kind="stable")


def subset(available: int, wanted: int | None) -> list[int]:
    """``wanted`` fixed indices, or all in order. Smaller subsets are contained in larger ones."""
    if wanted is None or wanted >= available:
        return list(range(available))
    return permutation(available, SUBSET_SEED)[:wanted].tolist()


def hold_out(available: int) -> tuple[list[int], list[int]]:
    """(train, eval) indices for a set that has no eval split: a tenth, at most 2,048."""
    held = min(2048, max(1, available // 10))
    order = permutation(available, HOLD_OUT_SEED)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


def noisy_indices(count: int, share: float) -> list[int]:
    """Which of ``count`` training examples get a wrong target: the nearest whole number to the share.

    Those of a smaller share are among those of a larger one.
    """
    return permutation(count, NOISE_SEED)[: round(share * count)].tolist()


def other_labels(labels: Sequence[int], noisy: Sequence[int], num_labels: int) -> list[int]:
    """The labels with each noisy one replaced by one of the others, all equally likely."""
    draws = raw_draws(NOISE_SEED + 1, len(labels))
    changed = list(labels)
    for index in noisy:
        changed[index] = (labels[index] + 1 + int(draws[index]) % (num_labels - 1)) % num_labels
    return changed


def other_targets(targets: Sequence[str], noisy: Sequence[int]) -> list[str]:
    """The targets with each noisy one replaced by another example's that reads differently."""
    draws = raw_draws(NOISE_SEED + 1, len(targets))
    changed = list(targets)
    for index in noisy:
        start = int(draws[index]) % len(targets)
        candidates = (targets[(start + shift) % len(targets)] for shift in range(len(targets)))
        changed[index] = next(target for target in candidates if target != targets[index])
    return changed
