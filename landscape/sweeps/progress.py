"""What a running sweep shows: a line for each run that ended, and a bar over all their steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_REFRESH_SECONDS = 1.0
STATE_STYLES = {
    "done": "green",
    "diverged": "yellow",
    "failed": "red",
    "interrupted": "magenta",
    "running": "cyan",
    "damaged": "red",
}


class SweepDisplay:
    """A bar on a terminal; elsewhere (a log file) only the line of each run that ended; nothing on a quiet console.

    It is told the statuses found in the run folders, so it is the same for every engine.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self._task = self._progress.add_task("", total=None, rate="")
        self._title = ""
        self._unit = "step"
        self._max_steps: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._steps_off = 0
        self._began = 0.0
        self._next = 0.0
        self._first_steps: dict[str, int] = {}
        self._last_steps: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, title: str, max_steps: Mapping[str, int], unit: str = "step") -> None:
        """A stage starts with these jobs and how many steps, or other units, each takes (0: it counts none)."""
        self._title, self._unit = title, unit
        self._max_steps = dict(max_steps)
        self._counts.clear()
        self._steps_off = 0
        self._began = time.monotonic()
        self._first_steps, self._last_steps = {}, {}
        total = sum(max_steps.values()) or len(max_steps)
        self._progress.reset(self._task, total=total, description=self._description(), rate="")

    def ended(self, key: str, state: str, step: int, seconds: float, error: str | None) -> None:
        """A job ended: print its line and count it."""
        self._counts[state] += 1
        # A diverged run stops early; the steps that it will never take are off the bar all the same.
        self._steps_off += self._max_steps[key] or 1
        self._last_steps[key] = step
        number = f"[{sum(self._counts.values())}/{len(self._max_steps)}]"
        steps = f"{self._unit} {step}  " if self._max_steps[key] else ""
        style = STATE_STYLES.get(state, "")
        self.console.print(
            f"{number} {state:<11} {key}  {steps}{seconds:.1f} s", style=style, markup=False, highlight=False
        )
        if error and state == "failed":
            self.console.print(f"    {error.strip().splitlines()[-1]}", style=style, markup=False, highlight=False)
        self._progress.update(self._task, completed=self._steps_off, description=self._description())

    def running(self, steps: Mapping[str, int]) -> None:
        """How far the jobs under way are: move the bar, and measure the rate over all workers."""
        for key, step in steps.items():
            self._first_steps.setdefault(key, step)
            self._last_steps[key] = step
        taken = sum(step - self._first_steps.get(key, 0) for key, step in self._last_steps.items())
        rate = taken / max(1e-9, time.monotonic() - self._began)
        under_way = sum(min(step, self._max_steps[key]) for key, step in steps.items())
        self._progress.update(self._task, completed=self._steps_off + under_way, rate=f"{rate:.1f} {self._unit}s/s")

    def due(self) -> bool:
        """Whether it is time for another `running`; never where no bar is drawn."""
        if self._progress.disable or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _REFRESH_SECONDS
        return True

    def _description(self) -> str:
        parts = [f"{sum(self._counts.values())}/{len(self._max_steps)} runs"]
        parts += [f"{self._counts[state]} {state}" for state in ("failed", "diverged") if self._counts[state]]
        return f"{self._title}: {', '.join(parts)}" if self._title else ""
