"""What a column's name says of how it is to be tested."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.episodes.columns import kind_of, takes_logarithm


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        *(
            (name, "evaluation")
            for name in ("eval_loss", "eval/loss", "Val_Loss", "validation/nll", "test", "dev_loss")
        ),
        *((name, "evaluation") for name in ("metrics/eval_loss", "evaluation/loss")),
        *(
            (name, "steps")
            for name in ("loss", "train/loss", "interval_loss", "evaluations_seen", "value", "latest_loss")
        ),
    ],
)
def test_evaluations_are_known_by_their_name(column: str, kind: str) -> None:
    assert kind_of(column) == kind


@pytest.mark.parametrize(
    ("column", "values", "choice", "expected"),
    [
        ("grad_norm", [1, 2], None, True),
        ("train/grad_norm", [1, np.nan, np.inf], None, True),
        ("gradient_norm", [1, 2], None, True),
        ("GradNorm", [1, 2], None, True),
        ("grad_norm", [1, 0], None, False),
        ("grad_norm", [1, 2], False, False),
        ("loss", [1, 2], None, False),
        ("loss", [1, 2], True, True),
        ("loss", [-1, 2], True, True),  # Asked for: then it is an error, and no silent choice.
    ],
)
def test_logarithms_are_for_gradient_norms_or_as_asked(
    column: str, values: list[float], choice: bool | None, expected: bool
) -> None:
    assert takes_logarithm(column, values, choice) is expected
