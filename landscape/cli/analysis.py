"""``landscape analyze``: measure what was captured; results go into each run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import episodes, flatness, slices
from landscape.cli.along_runs import (
    AddressOption,
    EngineOption,
    Rows,
    Workplace,
    analyze_snapshots,
    check_anything_left,
    engine_for,
    finish,
)
from landscape.cli.console import JsonOption, StoreArgument, WhereOption, errors_as_exits, stderr
from landscape.errors import StoreError

if TYPE_CHECKING:
    from landscape.store import Run

app = typer.Typer(no_args_is_help=True, help="Measure what was captured; results go into each run's folder.")
app.command()(slices.slice1d)
app.command()(slices.slice2d)
app.command()(flatness.flatness)
app.command()(episodes.episodes)

_SPACES = "adapter; merged (W' = W + sBA); balanced (adapter, free of LoRA's gauge)"
_SPACE_HELP = f"Coordinates of the Hessian: {_SPACES}."
SpaceOption = Annotated[str, typer.Option(help=_SPACE_HELP)]
EveryOption = Annotated[int | None, typer.Option(min=1, help="Snapshots at multiples of so many steps; 1: all.")]
StepsOption = Annotated[str | None, typer.Option(help="Snapshots at these steps, e.g. 0,50,100 or 0..9.")]
TolOption = Annotated[float, typer.Option(min=0, max=1, help="Stop at this residual, relative to the eigenvalue.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the random vectors.")]
ExamplesOption = Annotated[int | None, typer.Option(min=1, help="Only so many of the probe split's examples.")]
MatrixOption = Annotated[str, typer.Option(help="hessian, or ggn: the generalized Gauss-Newton matrix.")]
BackendOption = Annotated[str, typer.Option(help="landscape, or pyhessian: a cross-check, kept apart.")]
WorkersOption = Annotated[
    int | None, typer.Option(help="Processes at a time (default: cores); 0: everything in this one.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")]


@app.command()
@errors_as_exits
def sharpness(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    space: Annotated[
        str, typer.Option(help=f"Coordinates of the Hessian: {_SPACES}; preconditioned (by Adam, at that step).")
    ] = "adapter",
    every: EveryOption = None,
    steps: StepsOption = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many of the largest eigenvalues.")] = 1,
    tol: TolOption = 1e-3,
    max_matvecs: Annotated[int, typer.Option(min=1, help="Hessian-vector products a snapshot, at most.")] = 200,
    seed: SeedOption = 0,
    num_examples: ExamplesOption = None,
    smallest: Annotated[bool, typer.Option("--smallest", help="The smallest eigenvalues instead.")] = False,
    matrix: MatrixOption = "hessian",
    backend: BackendOption = "landscape",
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Largest Hessian eigenvalues at captured steps (default: eight, evenly spaced)."""
    options = {
        "space": space, "k": k, "tol": tol, "max_matvecs": max_matvecs, "seed": seed, "num_examples": num_examples,
        "which": "smallest" if smallest else "largest", "matrix": matrix, "backend": backend,
    }  # fmt: skip
    place = Workplace(store, engine, workers, address)
    analyze_snapshots(
        "sharpness", _sharpness_line, options, where=where, every=every, steps=steps, place=place, dry_run=dry_run,
        as_json=as_json,
    )  # fmt: skip


@app.command()
@errors_as_exits
def trace(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    space: SpaceOption = "adapter",
    every: EveryOption = None,
    steps: StepsOption = None,
    num_probes: Annotated[int, typer.Option(min=2, help="Hessian-vector products a snapshot.")] = 100,
    method: Annotated[str, typer.Option(help="hutchinson or hutch++.")] = "hutchinson",
    seed: SeedOption = 0,
    num_examples: ExamplesOption = None,
    matrix: MatrixOption = "hessian",
    backend: BackendOption = "landscape",
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Trace of the Hessian, with its standard error, at captured steps (default: eight, evenly spaced)."""
    options = {
        "space": space, "num_probes": num_probes, "method": method, "seed": seed, "num_examples": num_examples,
        "matrix": matrix, "backend": backend,
    }  # fmt: skip
    place = Workplace(store, engine, workers, address)
    analyze_snapshots(
        "trace", _trace_line, options, where=where, every=every, steps=steps, place=place, dry_run=dry_run,
        as_json=as_json,
    )  # fmt: skip


@app.command()
@errors_as_exits
def density(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    space: SpaceOption = "adapter",
    every: EveryOption = None,
    steps: StepsOption = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Lanczos steps a random vector.")] = 60,
    num_probes: Annotated[int, typer.Option(min=1, help="Random vectors a snapshot.")] = 4,
    seed: SeedOption = 0,
    num_examples: ExamplesOption = None,
    matrix: MatrixOption = "hessian",
    backend: BackendOption = "landscape",
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Density of the Hessian's eigenvalues at captured steps (default: eight, evenly spaced)."""
    options = {
        "space": space, "num_steps": num_steps, "num_probes": num_probes, "seed": seed, "num_examples": num_examples,
        "matrix": matrix, "backend": backend,
    }  # fmt: skip
    place = Workplace(store, engine, workers, address)
    analyze_snapshots(
        "density", _density_line, options, where=where, every=every, steps=steps, place=place, dry_run=dry_run,
        as_json=as_json,
    )  # fmt: skip


@app.command()
@errors_as_exits
def layers(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    space: SpaceOption = "adapter",
    every: EveryOption = None,
    steps: StepsOption = None,
    group: Annotated[str, typer.Option(help="What a layer is: module or block.")] = "module",
    tol: TolOption = 1e-2,
    max_matvecs: Annotated[int, typer.Option(min=1, help="Hessian-vector products a layer, at most.")] = 100,
    seed: SeedOption = 0,
    num_examples: ExamplesOption = None,
    matrix: MatrixOption = "hessian",
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Largest eigenvalue of every layer's own block of the Hessian at captured steps (default: eight)."""
    options = {
        "space": space, "group": group, "tol": tol, "max_matvecs": max_matvecs, "seed": seed,
        "num_examples": num_examples, "matrix": matrix,
    }  # fmt: skip
    place = Workplace(store, engine, workers, address)
    analyze_snapshots(
        "layers", _layers_line, options, where=where, every=every, steps=steps, place=place, dry_run=dry_run,
        as_json=as_json,
    )  # fmt: skip


@app.command()
@errors_as_exits
def gap(*, store: StoreArgument, where: WhereOption = None, as_json: JsonOption = False) -> None:
    """Generalization gap: loss on the eval split minus loss on the probe split, at every evaluation."""
    from landscape.cli.selection import select_runs
    from landscape.sweeps.analyses import GAP, run_analyses

    runs = select_runs(store, where)
    ready = [run for run in runs if _is_started(run)]
    skipped = {run.id: "not started" for run in runs if run not in ready}
    check_anything_left(store, len(ready), skipped)
    arguments = {run.id: {"store": str(store.absolute()), "run_id": run.id} for run in ready}
    # It only reads the metrics, so it is done before a worker would have started.
    with engine_for(len(ready), Workplace(store, workers=0)) as engine:
        result = run_analyses("gap", GAP, arguments, engine, stderr(quiet=as_json))
    finish(store, result, _gap_line, skipped, as_json)


def _sharpness_line(rows: Rows) -> str:
    largest = [row for row in rows if row["index"] == 0]
    measured, left_out = _measured(largest)
    values = "  ".join(f"{row['step']}: {row['value']:.4g}{'' if row['converged'] else '?'}" for row in measured)
    threshold = measured[0]["threshold"] if measured else None
    edge = f"  (stable below {threshold:g})" if largest[0]["space"] == "preconditioned" and measured else ""
    name = "λ_min" if largest[0]["which"] == "smallest" else "λ_max"
    return f"{name} at step {values}{edge}{_open_ones(measured)}{left_out}"


def _trace_line(rows: Rows) -> str:
    measured, left_out = _measured(rows)
    values = "  ".join(f"{row['step']}: {row['value']:.4g} ± {row['standard_error']:.2g}" for row in measured)
    return f"trace at step {values}{left_out}"


def _density_line(rows: Rows) -> str:
    measured, left_out = _measured(rows)
    values = "  ".join(f"{row['step']}: {row['smallest']:.3g} to {row['largest']:.3g}" for row in measured)
    return f"eigenvalues at step {values}{left_out}"


def _layers_line(rows: Rows) -> str:
    measured, left_out = _measured(rows)
    top: dict[int, dict[str, Any]] = {}
    for row in measured:
        if row["step"] not in top or row["value"] > top[row["step"]]["value"]:
            top[row["step"]] = row
    values = "  ".join(f"{step}: {row['value']:.4g} in {row['layer']}" for step, row in top.items())
    return f"largest of the layers' λ_max at step {values}{_open_ones(measured)}{left_out}"


def _gap_line(rows: Rows) -> str:
    last = rows[-1]
    return f"gap {last['gap']:.4f} ± {last['standard_error']:.4f} at step {last['step']} ({len(rows)} evaluations)"


def _measured(rows: Rows) -> tuple[Rows, str]:
    """The rows with a value, and a note on the others."""
    left_out = [row for row in rows if isinstance(row["reason"], str)]
    steps = ", ".join(str(row["step"]) for row in left_out)
    note = f"  (undefined at step {steps}: {left_out[-1]['reason']})" if left_out else ""
    return [row for row in rows if row not in left_out], note


def _open_ones(rows: Rows) -> str:
    count = sum(not row["converged"] for row in rows)
    return f"  (? {count} not converged)" if count else ""


def _is_started(run: Run) -> bool:
    try:
        return run.status.attempt > 0
    except StoreError:
        return True  # the analysis will say what is wrong
