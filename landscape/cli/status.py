"""``status``: how the runs of a store stand, on one screen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.console import JsonOption, StoreArgument, WhereOption, errors_as_exits, print_json, printable, stdout
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from landscape.sweeps.overview import Overview, RunLine

_ROWS = 40
_ERRORS = 3
_COLUMNS = (
    *("run_id", "method", "rank", "learning_rate", "seed", "state", "step", "max_steps", "loss", "overrides", "error"),
)
_URGENCY = {"damaged": 0, "failed": 0, "running": 1, "interrupted": 2, "queued": 3, "diverged": 4, "done": 5}


@errors_as_exits
def status(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Rows at most; those that need a look come first. 0: all (default: 40).")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch/--once", help="Stay and refresh until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between refreshes.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """How the runs stand: counts, rate, time left, the last errors, and a row for each that needs a look."""
    from landscape.cli.selection import select_runs
    from landscape.sweeps.overview import RateMeter, read_lines, summarize

    if limit is not None and limit < 0:
        raise UsageError(f"--limit: {limit} is negative; 0 shows all")
    if interval <= 0:
        raise UsageError(f"--interval: {interval:g} must be more than 0")
    if watch and as_json:
        raise UsageError("--watch and --json: one of them")
    runs = select_runs(store, where)
    meter = RateMeter()
    lines = read_lines(runs)
    overview = summarize(lines, meter.measure(lines))
    if as_json:
        _print_as_json(store, lines, overview, limit or None)
        return
    rows = _ROWS if limit is None else limit
    if not watch:
        stdout().print(_screen(lines, overview, rows or None))
        return
    from rich.live import Live

    rows = min(rows or _ROWS, max(5, stdout().height - _ERRORS - 6))
    with Live(_screen(lines, overview, rows), console=stdout(), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            lines = read_lines(select_runs(store, where))
            live.update(_screen(lines, summarize(lines, meter.measure(lines)), rows), refresh=True)


def _print_as_json(store: Path, lines: list[RunLine], overview: Overview, limit: int | None) -> None:
    from landscape.sweeps.overview import last_errors

    chosen = {line.run.id for line in _urgent(lines, limit)}
    print_json(
        {
            "store": store,
            "counts": overview.counts,
            "steps": overview.steps,
            "max_steps": overview.max_steps,
            "steps_per_second": overview.rate,
            "seconds_left": overview.seconds_left,
            "errors": {line.run.id: _last_line(line.error) for line in last_errors(lines, _ERRORS)},
            "runs": [_row(line) for line in lines if line.run.id in chosen],
        }
    )


def _urgent(lines: list[RunLine], limit: int | None) -> list[RunLine]:
    return sorted(lines, key=lambda line: _URGENCY[line.state])[:limit]


def _row(line: RunLine) -> dict[str, Any]:
    """One line of the table; damage is shown in it rather than hiding the other runs."""
    from landscape.config import method_name
    from landscape.sweeps.overview import last_loss

    row: dict[str, Any] = dict.fromkeys(_COLUMNS) | {"run_id": line.run.id, "state": line.state, "error": line.error}
    try:
        values = line.run.config_values()
    except StoreError as error:
        return row | {"state": "damaged", "error": str(error)}
    if line.state == "damaged":
        return row
    try:
        loss = last_loss(line)
    except StoreError as error:
        loss, row["error"] = None, str(error)
    return row | {
        **{key: _number(values.get(key)) for key in ("rank", "learning_rate", "seed")},
        "method": method_name(str(values.get("method")), values.get("adapter")),
        "step": line.step,
        "max_steps": line.max_steps,
        "loss": loss,
        "overrides": dict(line.overrides or {}),
    }


def _screen(lines: list[RunLine], overview: Overview, limit: int | None) -> RenderableType:
    """The table, what it leaves out, and everything in three lines below it."""
    from rich.console import Group
    from rich.text import Text

    from landscape.sweeps.overview import last_errors

    shown = sorted((_row(line) for line in _urgent(lines, limit)), key=_reading_order)
    parts: list[RenderableType] = [_table(shown)]
    if len(lines) > len(shown):
        parts.append(Text(f"... and {len(lines) - len(shown)} more (--limit 0 shows all, --where chooses)"))
    visible = {row["run_id"] for row in shown}
    hidden = [line for line in last_errors(lines, _ERRORS) if line.run.id not in visible]
    parts += [Text(f"{line.run.id}: {printable(_last_line(line.error))}", "red", no_wrap=True) for line in hidden]
    counts = ", ".join(f"{count} {state}" for state, count in overview.counts.items()) or "none yet"
    parts.append(Text(f"{len(lines)} runs: {counts}{_pace(overview)}"))
    return Group(*parts)


def _pace(overview: Overview) -> str:
    if not overview.steps_left:
        return ""
    text = f"; step {overview.steps} of {overview.max_steps}"
    if overview.rate:
        text += f", {overview.rate:.1f} steps/s, about {_duration(overview.seconds_left or 0)} left"
    return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from landscape.sweeps.progress import STATE_STYLES

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, right in (("run", False), ("method", False), ("rank", True), ("lr", True), ("seed", True)):
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for title, right in (("state", False), ("step", True), ("loss", True)):
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    table.add_column("error")  # the only one that gives way where the screen is narrow
    for row in rows:
        table.add_row(
            _short(row["run_id"], 80),
            Text(_short(row["method"] or "-", 32)),
            _cell(row["rank"], "d"),
            _cell(row["learning_rate"], "g"),
            _cell(row["seed"], "d"),
            Text(row["state"], STATE_STYLES.get(row["state"], "")),
            f"{_cell(row['step'], 'd')}/{_cell(row['max_steps'], 'd')}",
            _cell(row["loss"], ".4f"),
            Text(printable(_last_line(row["error"]) or _departs(row["overrides"])), overflow="ellipsis", no_wrap=True),
        )
    return table


def _departs(overrides: dict[str, Any] | None) -> str:
    """What an attempt does otherwise than its config says: after an out-of-memory, say."""
    if not overrides:
        return ""
    batch, accumulation = (overrides.get(key) for key in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    return f"memory ran out: now {batch} examples x {accumulation}"


def _reading_order(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["method"] or "", row["rank"] or 0, row["learning_rate"] or 0, row["seed"] or 0, row["run_id"])


def _number(value: Any) -> float | None:
    """Of a config that nobody has validated: rows are sorted by it, and no float is as large as an int may be."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return value if known else None


def _cell(value: Any, spelling: str) -> str:
    """A number as the table spells it; whatever else a damaged or foreign config holds, as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else _short(str(value), 16)
    return format(int(value) if spelling == "d" else value, spelling)


def _short(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _last_line(text: str | None) -> str:
    return text.strip().splitlines()[-1] if text and text.strip() else ""
