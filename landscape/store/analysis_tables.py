"""Tables of analyses as whoever shows them reads them: what a column holds is checked, the file may be anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import StoreError
from landscape.store.tables import read_table

if TYPE_CHECKING:
    import pyarrow as pa

_NEEDED = {
    **dict.fromkeys(("sharpness", "gap", "density", "layers", "trace"), ("step",)),
    "episodes": (
        *("column", "adjust", "kind", "onset", "peak", "recovery", "amplitude", "p_value", "run_p_value", "rise"),
        *("rise_area", "final_eval", "final_train"),
    ),
}
"""Columns without which a table is not drawn, by its name; of others the readers look themselves."""
_WHOLE = ("step", "index", "points", "seed", "resamples", "q_runs")
_NUMBERS = (
    *("value", "residual", "threshold", "threshold_ratio", "tol", "train_loss", "eval_loss", "gap", "standard_error"),
    *("onset", "peak", "recovery", "amplitude", "amplitude_noise", "amplitude_relative", "duration", "excess_area"),
    *("second_descent_gain", "resolution", "p_value", "run_p_value", "rise", "rise_area", "rise_trough", "rise_peak"),
    *("final_eval", "final_train", "q_value", "q_value_dependent", "bandwidth", "smallest", "largest"),
)
_WORDS = (
    *("space", "split", "layer", "group", "column", "adjust", "tested_curve", "kind", "flags", "controls", "metrics"),
)
_ARRAYS = ("grid", "density", "nodes", "weights")
_FLAGS = ("converged",)


def read_analysis(path: Path) -> pa.Table | None:
    """The table of one analysis; None where there is no file.

    Raises:
        StoreError: the file is damaged, lacks a column, or a column holds what it cannot.
    """
    import pyarrow as pa

    table = read_table(path)
    if table is None:
        return None
    missing = [name for name in _NEEDED.get(path.stem, ()) if name not in table.column_names]
    if missing or len(set(table.column_names)) < table.num_columns:
        problem = f"has no column {missing[0]!r}" if missing else "has two columns of one name"
        raise StoreError(f"{path} {problem}; delete it to measure again")
    for place, name in enumerate(table.column_names):
        if name in _NUMBERS and table[name].type == pa.null():  # nothing was measured
            table = table.set_column(place, name, pa.nulls(table.num_rows, pa.float64()))
        if not _holds(name, table[name]):
            raise StoreError(
                f"{path} is damaged (column {name!r} holds {str(table[name].type)[:60]}, or gaps); "
                "delete it to measure again"
            )
    return table


def _holds(name: str, column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    kind = column.type
    if name in _WHOLE:
        return pa.types.is_integer(kind) and not column.null_count
    if name in _ARRAYS or (name == "standard_error" and pa.types.is_list(kind)):  # of a density it is one a point
        return pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)
    if name in _NUMBERS:
        return pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if name in _WORDS:
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pa.types.is_boolean(kind) if name in _FLAGS else True
