"""``landscape analyze episodes``: rebounds of every run, and what the runs of a sweep say together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.along_runs import Rows, Workplace, check_anything_left, engine_for
from landscape.cli.console import (
    EXIT_FAILED_RUNS,
    JsonOption,
    StoreArgument,
    WhereOption,
    errors_as_exits,
    print_json,
    stderr,
    stdout,
)
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from landscape.analysis.episodes import EpisodeSettings
    from landscape.episodes.sweep import Outcome
    from landscape.store import Run
    from landscape.sweeps.analyses import AnalysisResult

_CELL = "landscape.analysis.episodes:episodes_cell"
_SEPARATE = frozenset({"method", "adapter", "rank", "alpha", "learning_rate", "train_examples", "seed", "data_seed"})
"""Config keys in which the runs of one comparison may differ, beside those that do not change a result."""


@errors_as_exits
def episodes(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    column: Annotated[
        str, typer.Option(help="loss_clean, loss_perturbed, grad_norm...; eval or probe: its evaluations.")
    ] = "loss_clean",
    alpha: Annotated[float, typer.Option(help="False-discovery rate, and level of the comparisons.")] = 0.05,
    adjust: Annotated[
        str, typer.Option(help="Take out the batches' difficulty: none, base (loss_base), siblings (other runs).")
    ] = "none",
    logarithm: Annotated[
        bool | None,
        typer.Option(
            "--log/--no-log",
            help="Test the column's logarithm, or not (default: of gradient norms, if all are above 0).",
            show_default=False,
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=99, help="Of the null; the smallest p-value is 0.0001.")] = 99,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Rebounds with p- and q-values, the grid of cells, methods compared on paired seeds, and final losses by axis."""
    if not 0 < alpha < 1:
        raise UsageError(f"--alpha: {alpha!r} must lie between 0 and 1.")
    from landscape.analysis.episodes import EpisodeSettings, set_q_values
    from landscape.cli.selection import select_runs

    settings = EpisodeSettings(column, adjust, resamples, seed, logarithm)
    runs, skipped = _ready(select_runs(store, where), column)
    check_anything_left(store, len(runs), skipped)
    result = _tested(store, runs, settings, as_json)
    if len(result.errors) == len(runs):
        raise UsageError(next(iter(result.errors.values())).strip().splitlines()[-1].partition(": ")[2])
    q = set_q_values([run for run in runs if run.id in result.results], settings)
    for run_id, rows in result.results.items():
        for row in rows:
            row.update(q_value=q[run_id][0], q_value_dependent=q[run_id][1], q_runs=len(q))
    sweeps = [_together(group, alpha) for group in _groups(runs, result.results)]
    if as_json:
        answer = {"results": result.results, "errors": result.errors, "skipped": skipped, "sweeps": sweeps}
        print_json({"store": store, "settings": asdict(settings), "alpha": alpha, **answer})
    else:
        for run_id, rows in result.results.items():
            typer.echo(f"{run_id}: {_line(rows, alpha)}")
        for one in sweeps:
            _print_sweep(one, alpha)
        for reason in dict.fromkeys(skipped.values()):
            typer.echo(f"skipped ({reason}): {', '.join(k for k, v in skipped.items() if v == reason)}", err=True)
    if result.errors:
        raise typer.Exit(EXIT_FAILED_RUNS)


def _ready(runs: Sequence[Run], column: str) -> tuple[list[Run], dict[str, str]]:
    """Runs that have started and logged the curve, and why the others are skipped."""
    from landscape.config.imported import ImportedConfig

    ready, skipped = [], {}
    for run in runs:
        try:
            if run.status.attempt == 0:
                skipped[run.id] = "not started"
                continue
            # Somebody else's log of a perturbing method holds no other loss.
            if column == "loss_clean" and isinstance(run.config, ImportedConfig) and not _has(run, column):
                skipped[run.id] = "no loss at unperturbed weights; --column loss_perturbed tests the other"
                continue
        except StoreError:
            pass  # the analysis will say what is wrong
        ready.append(run)
    return ready, skipped


def _has(run: Run, column: str) -> bool:
    metrics = run.metrics()
    return column in metrics and bool(metrics[column].notna().any())


def _tested(store: Path, runs: Sequence[Run], settings: EpisodeSettings, quiet: bool) -> AnalysisResult:
    """Every run's rows; those of siblings need the unadjusted test first."""
    from landscape.analysis.episodes import EpisodeSettings, choose_siblings
    from landscape.sweeps.analyses import run_analyses

    place = {run.id: {"store": str(store.absolute()), "run_id": run.id} for run in runs}

    def ask(title: str, options: EpisodeSettings, siblings: Mapping[str, Sequence[Run]]) -> AnalysisResult:
        arguments = {
            run_id: {**values, "options": asdict(options), "siblings": [one.id for one in siblings.get(run_id, ())]}
            for run_id, values in place.items()
        }
        # A curve takes some hundredths of a second: it is done before a worker would have started.
        with engine_for(len(arguments), Workplace(store, workers=0)) as engine:
            return run_analyses(title, _CELL, arguments, engine, stderr(quiet=quiet))

    siblings: dict[str, list[Run]] = {}
    if settings.adjust == "siblings":
        raw = ask("episodes, raw", EpisodeSettings(settings.column, "none", settings.resamples, settings.seed), {})
        siblings = choose_siblings([run for run in runs if run.id in raw.results], raw.results)
    return ask("episodes", settings, siblings)


def _groups(runs: Sequence[Run], results: Mapping[str, Rows]) -> list[tuple[dict[str, Any], list[Outcome]]]:
    """Outcomes of runs that differ in nothing but what is compared, and the settings that they share.

    Runs that have not ended, and imported ones of unknown seed or learning rate, are compared with nobody.
    """
    from landscape.config.identity import NOT_HASHED, method_name
    from landscape.episodes.sweep import Outcome

    groups: dict[str, list[Outcome]] = {}
    for run in runs:
        config, state = run.config.model_dump(mode="json"), run.status.state
        if run.id in results and Outcome.is_known(config, state):
            apart = _SEPARATE | NOT_HASHED | {"method_args", "adapter_args"}
            shared = {key: value for key, value in config.items() if key not in apart}
            shared["alpha"] = _alpha(config)
            key = json.dumps(shared, sort_keys=True)
            named = config | {"method": method_name(config["method"], config.get("adapter"))}
            groups.setdefault(key, []).append(Outcome.of(run.id, named, state, results[run.id]))
    return [(json.loads(key), outcomes) for key, outcomes in groups.items()]


def _alpha(config: Mapping[str, Any]) -> Any:
    """Alpha over rank, so that one rule is one setting."""
    if config["method"] == "full" or config["alpha"] is None or config["rank"] is None:
        return None
    from landscape.config.run import alpha_value

    return round(alpha_value(config["alpha"], config["rank"]) / config["rank"], 9)


def _together(group: tuple[dict[str, Any], list[Outcome]], alpha: float) -> dict[str, Any]:
    """Cells, comparisons and axes of one group, with their sentences."""
    from landscape.episodes.sweep import axis_outcomes, cell_outcomes, compare_methods
    from landscape.episodes.verdicts import axis_verdict, cells_verdict, comparison_verdict

    shared, outcomes = group
    cells = cell_outcomes(outcomes, alpha)
    comparisons = compare_methods(outcomes, alpha)
    axes = axis_outcomes(outcomes, alpha)
    methods = list(dict.fromkeys(cell.method for cell in cells))
    return {
        "model": shared["model"],
        "task": shared["task"],
        "runs": len(outcomes),
        "cells": [asdict(cell) for cell in cells],
        "comparisons": [{**asdict(one), "verdict": comparison_verdict(one, alpha)} for one in comparisons],
        "axes": [{**asdict(one), "verdict": axis_verdict(one, alpha)} for one in axes],
        "verdicts": [
            *(cells_verdict(cells, method, alpha) for method in methods),
            *(comparison_verdict(one, alpha) for one in comparisons if one.setting != "cell"),
            *(axis_verdict(one, alpha) for one in axes if not one.result.underpowered),
        ],
    }


def _line(rows: Rows, alpha: float) -> str:
    """One run in one line."""
    from landscape.episodes.sentences import lost_words

    first = rows[0]
    found = [row for row in rows if row["p_value"] <= alpha and "non_finite" not in row["flags"]]
    gaps = [(row["onset"], row["recovery"], row["flags"].split(",")) for row in rows if "non_finite" in row["flags"]]
    lost = f"; {lost_words(gaps)}" if gaps else ""
    size = f"largest rise {first['rise']:.3g}"
    if not found:
        return f"no rebound (p = {first['run_p_value']:.2g}, q = {first['q_value']:.2g}; {size}){lost}"
    one = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    flags = f" [{one['flags']}]" if one["flags"] else ""
    return (
        f"{one['kind']} from step {one['onset']:g} to {one['recovery']:g}, up {one['amplitude']:.3g} at {one['peak']:g}"
        f"{flags} (p = {one['p_value']:.2g}, q = {first['q_value']:.2g}; {size}){more}{lost}"
    )


def _print_sweep(one: dict[str, Any], alpha: float) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    sizes = len({cell["train_examples"] for cell in one["cells"]}) > 1
    settings = ["method", "rank", "learning rate", *(["examples"] if sizes else [])]
    for title in (*settings, "runs", f"q ≤ {alpha:g}", "diverged", "rise", "± sd", "p", "q"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for cell in one["cells"]:
        examples = "all" if cell["train_examples"] is None else f"{cell['train_examples']}"
        texts = [
            cell["method"], "-" if cell["rank"] is None else f"{cell['rank']}", f"{cell['learning_rate']:g}",
            *([examples] if sizes else []), f"{cell['runs']}", f"{cell['rebounding']}", f"{cell['diverged']}",
            f"{cell['rise']:.3g}", f"{cell['rise_sd']:.2g}", f"{cell['p_value']:.2g}", f"{cell['q_value']:.2g}",
        ]  # fmt: skip
        table.add_row(*texts, style=None if cell["q_value"] <= alpha else "dim")
    typer.echo("")
    typer.echo(f"{one['model']}, {one['task']}: {one['runs']} runs")
    stdout().print(table, markup=False)
    for sentence in one["verdicts"]:
        typer.echo(sentence)
    weak = [line["result"]["underpowered"] for line in one["axes"] if line["result"]["underpowered"]]
    for reason in dict.fromkeys(weak):
        typer.echo(f"underpowered, {weak.count(reason)} lines along an axis: {reason}.")
