"""The generalization gap: how much worse a model does on held-out examples than on those it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landscape.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

TRAIN_SPLIT, HELD_OUT_SPLIT = "probe", "eval"
"""The probe is a fixed subset of the training examples, evaluated like the held-out ones: same loss, eval mode."""

NEEDED = ("step", "split", "loss", "standard_error")


def generalization_gap(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Gap = eval loss - probe loss at every step at which both were measured.

    The two splits share no examples, so the gap's variance is the sum of theirs: standard_error = √(SE_eval² +
    SE_probe²). It is that of drawing other examples, for this one trained model; it says nothing about other seeds.

    Args:
        evaluations: as `landscape.store.Run.evaluations`: one row per (step, split) with ``loss`` and its
            ``standard_error``, in nats a counted label. Of rows that repeat a (step, split) the last counts.

    Returns:
        One row a step, ascending: step, train_loss, eval_loss, gap and standard_error (of the gap), in the same unit.
        NaN or infinite where a loss was.

    Raises:
        UsageError: a column is missing.
    """
    import numpy as np
    import pandas as pd

    for column in NEEDED:
        if column not in evaluations:
            raise UsageError(f"evaluations: no column {column!r} among {', '.join(map(str, evaluations.columns))}")
    sides = {}
    for split in (TRAIN_SPLIT, HELD_OUT_SPLIT):
        side = evaluations[evaluations["split"] == split].set_index("step")
        sides[split] = side[~side.index.duplicated(keep="last")]
    steps = sides[TRAIN_SPLIT].index.intersection(sides[HELD_OUT_SPLIT].index).sort_values()
    (train_loss, train_error), (eval_loss, eval_error) = (
        side.loc[steps, ["loss", "standard_error"]].to_numpy(dtype=float).T for side in sides.values()
    )
    with np.errstate(invalid="ignore"):
        gap = eval_loss - train_loss
    return pd.DataFrame(
        {
            "step": steps.to_numpy(dtype=np.int64),
            "train_loss": train_loss,
            "eval_loss": eval_loss,
            "gap": gap,
            "standard_error": np.hypot(train_error, eval_error),
        }
    )
