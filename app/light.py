"""A few columns of a long run's table, for figures over a thousand runs: their last losses, and those at some steps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from landscape.errors import StoreError
from landscape.store.files import open_plain
from landscape.store.tables import MOST_CELLS

LAST_STEPS = 20
"""Optimizer steps that are kept, of the end."""

_STEP = ("step", "loss_clean")
_EVALUATION = ("step", "split", "loss", "standard_error")
_ATTEMPT_KEY = b"landscape.attempt"


def light_frames(path: Path, attempt: int, steps: Iterable[int]) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The last training losses, and of each split the last evaluation and those at ``steps``.

    Pages of the file are compared with their checksums; the checksum of the whole table, which only a reader of all
    columns could compare, is not.

    Returns:
        None where there is no file, or one that was made from another attempt.

    Raises:
        StoreError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with os.fdopen(open_plain(path), "rb") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            schema = parquet.schema_arrow
            if (schema.metadata or {}).get(_ATTEMPT_KEY) != str(attempt).encode():
                return None
            if parquet.metadata.num_rows * len(schema.names) > MOST_CELLS:
                raise StoreError(f"{path} declares {parquet.metadata.num_rows} rows: too large to read")
            for name, kind in (("step", "int64"), ("split", "string")):
                if name not in schema.names or str(schema.field(name).type) != kind:
                    raise StoreError(f"{path} is damaged (no column {name!r} of {kind})")
            wanted = [name for name in dict.fromkeys((*_STEP, *_EVALUATION)) if name in schema.names]
            table = parquet.read(columns=wanted, use_threads=False)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from error
    return _split(table, np.array([step for step in steps if isinstance(step, int)], dtype=np.int64))


def thin_frames(
    metrics: pd.DataFrame, evaluations: pd.DataFrame, steps: Iterable[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same of frames that were read whole."""
    if len(evaluations):
        last = ~evaluations.duplicated("split", keep="last")
        evaluations = evaluations.loc[last | evaluations["step"].isin(list(steps))].copy()
    return metrics.tail(LAST_STEPS).copy(), evaluations


def _split(table: Any, steps: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    evaluated = table["split"].is_valid().to_numpy()
    rows = np.flatnonzero(~evaluated)[-LAST_STEPS:]
    training = table.select([name for name in _STEP if name in table.column_names]).take(rows)
    places = np.flatnonzero(evaluated)
    splits = table["split"].take(places).to_pylist()
    last = dict(zip(splits, places.tolist(), strict=True))  # later ones replace earlier ones
    kept = evaluated & np.isin(table["step"].to_numpy(), steps)
    kept[list(last.values())] = True
    held = table.select([name for name in _EVALUATION if name in table.column_names]).take(np.flatnonzero(kept))
    return training.to_pandas(), held.to_pandas()
