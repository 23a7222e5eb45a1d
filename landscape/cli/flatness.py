"""``landscape analyze flatness``: what the other analyses found about the same snapshots, side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.console import (
    JsonOption,
    StoreArgument,
    WhereOption,
    errors_as_exits,
    print_json,
    stdout,
)
from landscape.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".csv", ".json")


@errors_as_exits
def flatness(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    space: Annotated[str, typer.Option(help="Of the slices: adapter, merged or tangent.")] = "adapter",
    normalization: Annotated[str, typer.Option(help="Of the slices: filter, layer or none.")] = "filter",
    delta: Annotated[float, typer.Option(help="Of the slices: rise of the loss at which widths are measured.")] = 0.1,
    dims: Annotated[int | None, typer.Option(help="Of the slices: 1 or 2 (default: what most snapshots have).")] = None,
    radius: Annotated[float | None, typer.Option(help="Of the slices (default: what most snapshots have).")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the table to this .csv, or all to this .json file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Widths of random slices, λ_max and the gap of the same snapshots in one table, and how they rank together."""
    from landscape.analysis.flatness import flatness_correlations, flatness_table
    from landscape.analysis.rank_correlation import correlation_sentence
    from landscape.cli.selection import select_runs

    if output is not None and output.suffix not in FORMATS:
        raise UsageError(f"--output: {output.name!r}; allowed: names that end in {' or '.join(FORMATS)}")
    table = flatness_table(
        select_runs(store, where), space=space, normalization=normalization, delta=delta, dims=dims, radius=radius
    )
    if table.empty:
        raise UsageError(
            f"{store}: no random slices with space={space}, normalization={normalization}, delta={delta:g} and no "
            "sharpness in these runs; landscape analyze slice2d and sharpness measure them"
        )
    correlations = flatness_correlations(table)
    if output is not None:
        _write(output, table, correlations)
    if as_json:
        answer = {"rows": table.to_dict("records"), "correlations": correlations.to_dict("records")}
        print_json({"store": store, "output": output, **answer})
        return
    if output is None:
        _print_table(table)
        if math.inf in table["width"].tolist():
            typer.echo(f"width inf: the loss does not rise by {delta:g} within the slice; slice with a larger --radius")
    else:
        typer.echo(output)
    for row in correlations.to_dict("records"):
        typer.echo(correlation_sentence(row))


def _write(path: Path, table: pd.DataFrame, correlations: pd.DataFrame) -> None:
    from landscape.store.atomic import replacing, write_json

    if path.suffix == ".csv":
        with replacing(path) as temporary:
            table.to_csv(temporary, index=False)
        return
    # What is not a finite number is null.
    tables = {"rows": table, "correlations": correlations}
    as_text = {key: str(part.to_json(orient="records", double_precision=15)) for key, part in tables.items()}
    write_json(path, {key: json.loads(text) for key, text in as_text.items()})


def _print_table(table: pd.DataFrame) -> None:
    from rich.table import Table

    from landscape.analysis.flatness import kind_of_slices

    balanced = bool(table["lambda_max_balanced"].notna().any())
    shown = Table(title=kind_of_slices(table), title_justify="left")
    shown.add_column("run")
    headings = ["step", "loss", "width", "anisotropy", "nonconvexity", "λ_max (residual)", "balanced", "gap"]
    for heading in headings:
        if balanced or heading != "balanced":
            shown.add_column(heading, justify="right")
    for row in table.to_dict("records"):
        cells = [str(row["run"]), str(row["step"]), _number(row["loss"])]
        cells += [_with_error(row, name) for name in ("width", "anisotropy", "nonconvexity")]
        cells.append(_eigenvalue(row, "lambda_max"))
        cells += [_eigenvalue(row, "lambda_max_balanced")] if balanced else []
        shown.add_row(*cells, _with_error(row, "gap"))
    stdout().print(shown)


def _with_error(row: dict[str, Any], name: str) -> str:
    error = row[f"{name}_error"]
    return _number(row[name]) + (f" ± {error:.2g}" if math.isfinite(error) else "")


def _eigenvalue(row: dict[str, Any], name: str) -> str:
    return _number(row[name]) + (f" ({row[f'{name}_residual']:.0e})" if math.isfinite(row[name]) else "")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
