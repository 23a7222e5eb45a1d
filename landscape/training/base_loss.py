"""The untouched base model's loss on every training example that a run sees, computed once and shared by runs.

Most of a step loss's noise is the difficulty of its batch: on SmolLM2-135M with GSM8K at batch 4, the losses of two
runs on the same batches correlate 0.987. The base model's loss on the same batch takes that difficulty out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from landscape.config import RunConfig
from landscape.data import Split
from landscape.loss import LossKind, forward_losses
from landscape.store.atomic import replacing


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
    key = {"model": model_digest, "data": split.fingerprint, "dtype": config.dtype, "bf16": config.bf16}
    return folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.npz"


def load_base_loss(path: Path, num_examples: int) -> BaseLoss:
    """What is known so far; all nan where nothing is."""
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            if len(file["nll"]) == num_examples:
                return BaseLoss(file["nll"], file["count"])
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
    """
    known = load_base_loss(path, len(split))
    missing = np.unique(indices[np.isnan(known.nll[indices])])
    if len(missing) == 0:
        return known
    # Neighbours in length share a batch, so that padding costs little.
    lengths = np.array([len(split.examples[int(i)]["input_ids"]) for i in missing])
    missing = missing[np.argsort(lengths, kind="stable")]
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    nll, count = known.nll.copy(), known.count.copy()
    starts = tqdm(range(0, len(missing), batch_size), desc="base loss", disable=not progress, leave=False)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for start in starts:
            chunk = missing[start : start + batch_size]
            batch = {key: value.to(device) for key, value in split.collate(chunk.tolist()).items()}
            losses = forward_losses(model, batch, kind)
            nll[chunk] = losses.nll.double().cpu().numpy()
            count[chunk] = losses.count.double().cpu().numpy()
    model.train(training)
    _store(path, nll, count)
    return BaseLoss(nll, count)


def _store(path: Path, nll: np.ndarray, count: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez(temporary, nll=nll, count=count)
