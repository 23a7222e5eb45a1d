"""``landscape detect``: rebounds in somebody's training log, each with a p-value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.console import JsonOption, errors_as_exits, print_json, stdout, write_json_file
from landscape.errors import LandscapeError, UsageError, unknown

if TYPE_CHECKING:
    from landscape.episodes import Episode
    from landscape.importers import LogCurve

_FORMATS = ("png", "svg", "pdf", "html", "json")
_KINDS = ("steps", "evaluation")
_TITLES = ("kind", "onset", "peak", "recovery", "amplitude", "noise units", "p", "flags")


@dataclass(frozen=True, eq=False)
class Result:
    """One curve and what was found; ``reason`` says why it could not be tested."""

    run: str
    column: str
    curve: LogCurve | None
    episodes: Sequence[Episode]
    verdict: str
    reason: str = ""
    kind: str = "steps"
    tested_curve: str = "raw"
    said: Sequence[str] = ()
    """What was tested, where that is not the column's plain values step by step."""


@errors_as_exits
def detect(
    *,
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV, JSONL, trainer_state.json or a checkpoint's folder, logs of TensorBoard, W&B, MLflow."
        ),
    ],
    column: Annotated[str, typer.Option(help="What to test, e.g. loss, eval_loss, grad_norm.")] = "loss",
    run: Annotated[str | None, typer.Option(help="Only this run (default: each run, on its own).")] = None,
    warmup: Annotated[float, typer.Option(min=0, help="Steps at the beginning in which a rise does not count.")] = 0,
    alpha: Annotated[float, typer.Option(help="Level of the test of each curve.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    control: Annotated[
        str | None,
        typer.Option(help="Column with the loss of another model on the same batches; 'base' in its name: untouched."),
    ] = None,
    logarithm: Annotated[
        bool | None,
        typer.Option(
            "--log/--no-log",
            help="Test the logarithm of the column, or not (default: of gradient norms, if all are above 0).",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="steps, or evaluation: few points far apart, of nearly white noise (default: by the name)."),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", help=f"File to write ({', '.join(_FORMATS)}); can be given several times."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find rebounds of the loss in a training log: where, how large, and how surprising."""
    asked = _Asked(warmup, alpha, seed, control, logarithm, kind)
    files = output or []
    asked.check()
    _check_files(files)
    from landscape.importers import read_log

    log = read_log(file)
    selected = log.select(column, run)
    results = [_test(one, name, asked) for one, name in selected]
    if all(result.reason for result in results):
        raise UsageError(f"{log.path}: {results[0].reason}")
    names = {one.name for one, _ in selected}
    notes = [*log.notes]
    notes += [f"run {one.name!r} has no column {column!r}" for one in log.runs if run is None and one.name not in names]
    notes += [note if len(results) == 1 else f"{r.run}: {note}" for r in results if r.curve for note in r.curve.notes]
    if len(results) > 1:
        notes.append(f"{len(results)} curves, each tested at alpha = {alpha:g}: the p-values are not adjusted for that")
    head = {"file": log.path, "format": log.format, "alpha": alpha, "seed": seed, "warmup": warmup}
    answer = {**head, "notes": notes, "curves": [_record(r, alpha) for r in results]}
    for path in files:
        if path.suffix == ".json":
            write_json_file(path, answer)
        else:
            _draw(results, alpha, path, log.path)
    if as_json:
        print_json({**answer, "files": files})
        return
    _print(results, alpha)
    for note in notes:
        typer.echo(f"note: {note}")
    for path in files:
        typer.echo(f"written: {path}")


@dataclass(frozen=True)
class _Asked:
    """How every curve of a call is tested."""

    warmup: float
    alpha: float
    seed: int
    control: str | None
    logarithm: bool | None
    kind: str | None

    def check(self) -> None:
        """Raise UsageError for what no curve can be tested with."""
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha: {self.alpha!r} must lie between 0 and 1.")
        if self.kind not in (None, *_KINDS):
            raise unknown("--kind", self.kind, _KINDS)
        if self.logarithm and self.control is not None:
            raise UsageError("--log: difficulty adds to a loss, and so to no logarithm; leave --control out, or --log.")


def _check_files(files: Sequence[Path]) -> None:
    for path in files:
        if path.suffix[1:] not in _FORMATS:
            raise unknown("--output", path.suffix[1:], _FORMATS)
        if not path.parent.is_dir():
            raise UsageError(f"--output: no folder {path.parent}.")


def _test(run: Any, column: str, asked: _Asked) -> Result:
    """The verdict on one curve; a curve that cannot be tested does not keep the others from it."""
    from landscape.episodes import Control, detect_episodes
    from landscape.episodes.columns import is_gradient_norm, kind_of, takes_logarithm
    from landscape.episodes.sentences import curve_verdict

    kind: Any = asked.kind or kind_of(column)
    tested, known, said = "raw", None, []
    try:
        curve = run.curve(column, asked.control)
        if curve.control is not None:
            known = Control(curve.control, "base" if "base" in str(asked.control).lower() else "sibling")
            tested = f"adjusted by {known.kind}"
            said = [f"the curve {tested}"]
        logarithm = known is None and takes_logarithm(column, curve.values, asked.logarithm)
        if logarithm:
            tested, said = "logarithm", ["the logarithm; amplitudes are log ratios"]
        elif known is None and asked.logarithm is None and is_gradient_norm(column):
            said = ["the values as they are: not all are above 0, and only those have a logarithm"]
        if kind == "evaluation":
            said.append("as evaluations: few points, of nearly white noise")
        episodes = detect_episodes(
            curve.steps, curve.values, asked.warmup, asked.alpha, asked.seed, curve.learning_rate, curve.epoch_steps,
            curve.resume_steps, curve.standard_errors, known, kind=kind, logarithm=logarithm,
        )  # fmt: skip
    except LandscapeError as error:
        return Result(run.name, column, None, (), f"not tested: {error}", str(error))
    verdict = curve_verdict(episodes, curve.values, asked.alpha)
    return Result(run.name, column, curve, episodes, verdict, kind=kind, tested_curve=tested, said=said)


def _print(results: Sequence[Result], alpha: float) -> None:
    from rich.table import Table

    several = len(results) > 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in (("run",) if several else ()) + _TITLES:
        table.add_column(title, justify="right" if title in _TITLES[1:-1] else "left")
    for result in results:
        for e in result.episodes:
            cells = [
                e.kind, f"{e.onset:g}", f"{e.peak:g}", f"{e.recovery:g}", f"{e.amplitude:.3g}",
                f"{e.amplitude_noise:.1f}", f"{e.p_value:.3g}", ", ".join(e.flags) or "-",
            ]  # fmt: skip
            style = None if e.p_value <= alpha else "dim"
            table.add_row(*([result.run] if several else []), *cells, style=style)
    if table.row_count:
        stdout().print(table, markup=False)
    for result in results:
        points = "" if result.curve is None else f" ({len(result.curve.steps)} points)"
        typer.echo(f"{f'{result.run}, ' if several else ''}{result.column}{points}: {result.verdict}")
        for said in result.said:
            typer.echo(f"tested: {said}")


def _record(result: Result, alpha: float) -> dict[str, Any]:
    """One curve for ``--json``; amplitudes that are not finite are null there."""
    curve = result.curve
    record: dict[str, Any] = {
        "run": result.run,
        "column": result.column,
        "verdict": result.verdict,
        "tested": curve is not None,
        "count": sum(e.p_value <= alpha for e in result.episodes),
        "episodes": [e.as_dict() for e in result.episodes],
    }
    if curve is not None:
        record |= {
            "points": len(curve.steps),
            "first_step": float(curve.steps[0]),
            "last_step": float(curve.steps[-1]),
            "resume_steps": curve.resume_steps,
            "epoch_steps": curve.epoch_steps,
            "learning_rate": curve.learning_rate is not None,
            "standard_errors": curve.standard_errors is not None,
            "control": curve.control is not None,
            "kind": result.kind,
            "tested_curve": result.tested_curve,
        }
    return record


def _draw(results: Sequence[Result], alpha: float, path: Path, source: Path) -> None:
    from landscape.figures import write_figure
    from landscape.plots.episodes import MarkedCurve, episode_curves

    several = len(results) > 1
    tested = [
        MarkedCurve(r.run if several else "", r.curve.steps, r.curve.values, r.episodes, _heading(r, alpha))
        for r in results
        if r.curve is not None
    ]
    name = results[0].column
    figure = episode_curves(tested, alpha=alpha, y_label=name, title=f"{name} of {source.name}")
    write_figure(figure, path)


def _heading(result: Result, alpha: float) -> str:
    from landscape.episodes.sentences import counted

    count = sum(e.p_value <= alpha for e in result.episodes)
    return counted(count, "rebound") if count else "no rebound"
