"""Flatness beside sharpness and the generalization gap: one row a captured step, from the analyses that there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from landscape.analysis.rank_correlation import rank_correlations
from landscape.analysis.series import SPLIT
from landscape.analysis.sharpness import SHARPNESS_FILE
from landscape.analysis.tables import read_rows
from landscape.errors import UsageError, unknown
from landscape.generalization import generalization_gap
from landscape.store.slice_info import read_described_slice
from landscape.store.slices import FLATNESS, NORMALIZATIONS, SPACES, SliceFile, slice_files

if TYPE_CHECKING:
    import pandas as pd

    from landscape.store import Run

RUN_COLUMNS = ("run", "method", "rank", "learning_rate", "seed")
NUMBERS = tuple(name for number in FLATNESS for name in (number, f"{number}_error"))
EIGENVALUES = ("lambda_max", "lambda_max_residual", "lambda_max_balanced", "lambda_max_balanced_residual")
FLOATS = ("loss", *NUMBERS, *EIGENVALUES, "gap", "gap_error")
COLUMNS = (*RUN_COLUMNS, "step", *FLOATS, "num_draws", "dims", "radius", "points", "num_examples", "slice")

LATER = {"split": SPLIT}
"""What the settings of slices mean that were made before they had these keys."""

PAIRS = (
    ("width", "lambda_max"), ("width", "gap"), ("lambda_max", "gap"), ("width", "lambda_max_balanced"),
    ("lambda_max_balanced", "gap"),
)  # fmt: skip


def flatness_table(
    runs: Iterable[Run],
    *,
    space: str = "adapter",
    normalization: str = "filter",
    delta: float = 0.1,
    dims: int | None = None,
    radius: float | None = None,
) -> pd.DataFrame:
    """Flatness of slices along random directions, λmax and the gap of the same snapshots; nothing is measured.

    A row for every captured step of which there is such a slice or a largest eigenvalue of the Hessian; what was not
    analyzed is NaN. Numbers of slices compare only within one kind, so the table holds one: of the probe split in the
    model's own precision; of one number of dimensions, radius and set of examples, by default those that most snapshots
    have (of equally many: 2D, then the largest). Of several such slices of a snapshot the one with most draws counts.

    Args:
        space, normalization, delta: of the slices; ``delta`` is the rise of the loss, in nats, of ``width``.
        dims, radius: of the slices, instead of the commonest.

    Returns:
        Ordered by run and step. ``width`` (infinite where the loss never rises by ``delta`` within the slice),
        ``anisotropy`` and ``nonconvexity`` as `landscape.slices.Flatness`, each with its standard error over directions
        (of one: NaN) in ``num_draws`` draws; ``slice``, the file; ``lambda_max`` in the adapter space and
        ``lambda_max_balanced``, each with its relative residual; ``gap`` with its standard error, over examples;
        ``loss`` on the whole probe split, in nats a counted label.

    Raises:
        UsageError: an argument out of range.
        StoreError: a damaged file, which it names.
    """
    import pandas as pd

    for key, value, allowed in (("space", space, SPACES), ("normalization", normalization, NORMALIZATIONS)):
        if value not in allowed:
            raise unknown(key, value, allowed)
    if dims not in (None, 1, 2):
        raise UsageError(f"dims: {dims}; allowed: 1, 2")
    wanted = {"space": space, "normalization": normalization, "delta": float(delta), "split": SPLIT, "precision": None}
    wanted |= {key: value for key, value in (("dims", dims), ("radius", radius)) if value is not None}
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    listed = list(runs)
    for found in _of_one_kind([row for run in listed for row in _slices(run, wanted)]):
        rows[found["run"], found["step"]] = found
    for run in listed:
        for found in _eigenvalues(run):
            rows.setdefault((run.id, found["step"]), {}).update(found)
        _add_run(run, [row for (run_id, _), row in rows.items() if run_id == run.id])
    ordered = [rows[key] for key in sorted(rows)]
    table = pd.DataFrame(ordered, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(FLOATS, "float64"))


def flatness_correlations(table: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """`landscape.analysis.rank_correlation.rank_correlations` of the `PAIRS` of which the table has any."""
    both = [(x, y) for x, y in PAIRS if bool((table[x].notna() & table[y].notna()).any())]
    return rank_correlations(table, both or PAIRS[:3], **options)


def kind_of_slices(table: pd.DataFrame) -> str:
    """Of which slices a table's numbers are, in words."""
    found = table.dropna(subset=["dims"])
    if found.empty:
        return "no random slices"
    first = found.iloc[0]
    return (
        f"{first['dims']:.0f}D slices of radius {first['radius']:g} on {first['num_examples']:.0f} examples, "
        "± standard error over directions"
    )


def _slices(run: Run, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Numbers of the run's slices along random directions, with these settings."""
    found = []
    for path in slice_files(run.analysis_dir):
        item = read_described_slice(path, drawn=False)
        settings, step = item.info["settings"], item.info["step"]
        # Directions that were normalized at another snapshot have other units.
        own = settings.get("common") in (None, step)
        if item.flatness is None or settings["directions"] != "random" or not own:
            continue
        if all(settings.get(key, LATER.get(key)) == value for key, value in wanted.items()):
            found.append(_numbers(run, item, path.name))
    return found


def _numbers(run: Run, item: SliceFile, name: str) -> dict[str, Any]:
    settings = item.info["settings"]
    row: dict[str, Any] = {
        "run": run.id, "step": item.info["step"], "dims": item.dims, "radius": settings["radius"],
        "points": len(item.axes[0]), "num_examples": item.info["num_examples"], "num_draws": settings["draws"],
        "slice": name,
    }  # fmt: skip
    for number in FLATNESS:
        row[number], row[f"{number}_error"], _ = (item.flatness or {})[number]
    if item.info["num_examples"] >= run.config.probe_examples:
        row["loss"] = item.origin_loss
    return row


def _of_one_kind(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One slice a snapshot, all of the commonest kind."""
    kinds: dict[tuple[Any, ...], dict[tuple[str, int], dict[str, Any]]] = {}
    for row in slices:
        chosen = kinds.setdefault((row["dims"], row["radius"], row["num_examples"]), {})
        key = row["run"], row["step"]
        if key not in chosen or (row["num_draws"], row["points"]) > (chosen[key]["num_draws"], chosen[key]["points"]):
            chosen[key] = row
    return list(max(kinds.items(), key=lambda kind: (len(kind[1]), kind[0]))[1].values()) if kinds else []


def _eigenvalues(run: Run) -> list[dict[str, Any]]:
    """λmax of the Hessian at each step where it was measured."""
    columns = ("step", "index", "space", "value", "residual", "max_examples", "loss")
    found: dict[int, dict[str, Any]] = {}
    for row in read_rows(run.analysis_dir / SHARPNESS_FILE, columns, optional=("max_examples",)):
        name = {"adapter": "lambda_max", "balanced": "lambda_max_balanced"}.get(row["space"])
        if name is None or row["index"] != 0:
            continue
        values = found.setdefault(row["step"], {"step": row["step"]})
        values |= {name: row["value"], f"{name}_residual": row["residual"]}
        if (row["max_examples"] or 0) >= run.config.probe_examples:
            values["loss"] = row["loss"]
    return list(found.values())


def _add_run(run: Run, rows: list[dict[str, Any]]) -> None:
    """What is known of the run itself, and its gap where it was evaluated."""
    if not rows:
        return
    config = run.config
    gaps = generalization_gap(run.evaluations()).set_index("step")
    for row in rows:
        row.update(run=run.id, **{key: getattr(config, key) for key in RUN_COLUMNS[1:]})
        if row["step"] in gaps.index:
            at = gaps.loc[row["step"]]
            row.update(gap=at["gap"], gap_error=at["standard_error"], loss=at["train_loss"])
