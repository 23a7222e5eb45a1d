"""What a column's name says of how it is to be tested: evaluations, and gradient norms, which scatter by a factor."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import ArrayLike

from landscape.episodes.detector import CurveKind

_EVALUATION = re.compile(r"(?:^|/)(?:eval|evaluation|val|valid|validation|dev|test)(?:[_/]|$)", re.IGNORECASE)
_GRADIENT_NORM = re.compile(r"grad(?:ient)?_?norm", re.IGNORECASE)


def kind_of(column: str) -> CurveKind:
    """``evaluation`` for names like eval_loss, val/loss or test, else ``steps``."""
    return "evaluation" if _EVALUATION.search(column) else "steps"


def is_gradient_norm(column: str) -> bool:
    """For names like grad_norm or train/gradient_norm."""
    return bool(_GRADIENT_NORM.search(column))


def takes_logarithm(column: str, values: ArrayLike, choice: bool | None = None) -> bool:
    """Whether to test the logarithm: as chosen, else of gradient norms whose finite values are all positive."""
    if choice is not None:
        return choice
    known = np.asarray(values, dtype=np.float64)
    return is_gradient_norm(column) and bool((known[np.isfinite(known)] > 0).all())
