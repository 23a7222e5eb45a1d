"""The order in which a run sees its training examples: a function of the data's size and ``data_seed`` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from landscape.store.arrays import read_order
from landscape.store.atomic import replacing


def data_order(num_examples: int, data_seed: int, length: int) -> np.ndarray:
    """The first ``length`` example indices, (length,) int64: one fresh permutation an epoch, end to end.

    Optimizer steps take consecutive slices, so that a step may straddle two epochs and always has the full number of
    examples; and accumulation of k and a batch of k times the size see the same examples in every step.
    """
    epochs = -(-length // num_examples)
    permutations = [np.random.default_rng([data_seed, epoch]).permutation(num_examples) for epoch in range(epochs)]
    return np.concatenate(permutations)[:length].astype(np.int64)


def stored_order(folder: Path, num_examples: int, data_seed: int, length: int) -> np.ndarray:
    """`data_order`, kept once for all runs that share it, and from then on read back rather than drawn."""
    path = folder / f"n{num_examples}-seed{data_seed}.npy"
    known = read_order(path) if path.exists() else np.empty(0, np.int64)
    if len(known) >= length:
        return known[:length]
    epochs = -(-length // num_examples)
    order = data_order(num_examples, data_seed, epochs * num_examples)
    order[: len(known)] = known
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.save(temporary, order, allow_pickle=False)
    return order[:length]
