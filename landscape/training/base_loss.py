"""The untouched base model's loss on every training example that a run sees, computed once and shared by runs.

Most of a step loss's noise is the difficulty of its batch: on SmolLM2-135M with GSM8K at batch 4, the losses of two
runs on the same batches correlate 0.987. The base model's loss on the same batch takes that difficulty out.

A loss depends in its last bits on the batch that it was computed in. So that a sweep's numbers do not depend on which
of its runs came first, or was killed when, examples are computed in batches that follow from the data order alone: in
blocks of `BLOCK` positions of it, each with the examples that the order has not shown before. Each order (`data_seed`)
and batch size has its own table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from landscape.config import RunConfig
from landscape.data import Split
from landscape.loss import LossKind, forward_losses
from landscape.store.arrays import read_arrays
from landscape.store.atomic import replacing

BLOCK = 256
"""Positions of the data order that are computed together, or not at all."""


@dataclass(frozen=True)
class BaseLoss:
    """Sums over the labels of each training example: ``nll`` and ``count``, both (examples,); nan: not computed."""

    nll: np.ndarray
    count: np.ndarray

    def of(self, indices: np.ndarray) -> float:
        """Token-weighted mean over these examples; nan where one of them was not computed."""
        return float(self.nll[indices].sum() / self.count[indices].sum())


def base_loss_path(folder: Path, config: RunConfig, model_digest: str, split: Split) -> Path:
    """The cache file for this model, precision and encoded split (its labels, noise included, and its truncation)."""
    key = {
        "model": model_digest,
        "data": split.fingerprint,
        "dtype": config.dtype,
        "bf16": config.bf16,
        "order": config.seed if config.data_seed is None else config.data_seed,
        "batch": config.per_device_eval_batch_size,
    }
    return folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.npz"


def load_base_loss(path: Path, num_examples: int) -> BaseLoss:
    """What is known so far; all nan where nothing is."""
    if path.exists():
        arrays = read_arrays(path)
        if len(arrays["nll"]) == num_examples:
            return BaseLoss(arrays["nll"], arrays["count"])
    return BaseLoss(np.full(num_examples, np.nan), np.full(num_examples, np.nan))


def compute_base_loss(
    path: Path,
    model: nn.Module,
    split: Split,
    indices: np.ndarray,
    kind: LossKind,
    *,
    batch_size: int,
    bf16: bool = False,
    progress: bool = False,
) -> BaseLoss:
    """Fill in the examples among ``indices`` that are missing, and store the table atomically.

    Args:
        model: the base model, before any adapter is attached.
        indices: the data order, whole blocks of it.
    """
    known = load_base_loss(path, len(split))
    chunks = [chunk for chunk in _chunks(split, indices, batch_size) if np.isnan(known.nll[chunk]).any()]
    if not chunks:
        return known
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    nll, count = known.nll.copy(), known.count.copy()
    shown = tqdm(chunks, desc="base loss", disable=not progress, leave=False)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for chunk in shown:
            batch = {key: value.to(device) for key, value in split.collate(chunk.tolist()).items()}
            losses = forward_losses(model, batch, kind)
            nll[chunk] = losses.nll.double().cpu().numpy()
            count[chunk] = losses.count.double().cpu().numpy()
    model.train(training)
    _store(path, nll, count)
    return BaseLoss(nll, count)


def _chunks(split: Split, order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The batches in which these examples are computed, whoever computes them."""
    seen = np.zeros(len(split), dtype=bool)
    for start in range(0, len(order), BLOCK):
        block = np.unique(order[start : start + BLOCK])
        new = block[~seen[block]]
        seen[new] = True
        # Neighbours in length share a batch, so that padding costs little.
        lengths = np.array([len(split.examples[int(i)]["input_ids"]) for i in new])
        new = new[np.argsort(lengths, kind="stable")]
        yield from (new[i : i + batch_size] for i in range(0, len(new), batch_size))


def _store(path: Path, nll: np.ndarray, count: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez(temporary, nll=nll, count=count)
