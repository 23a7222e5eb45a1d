"""The configuration of a sweep: the keys of a run, plus a grid of values that is expanded to one run a cell."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from landscape.config.identity import NOT_HASHED
from landscape.config.overrides import assign, canonical_key, lookup
from landscape.config.run import RunConfig, canonical_keys
from landscape.config.values import parse_values
from landscape.errors import UsageError, unknown

MAX_CELLS = 100_000
"""A larger grid is a slip of the pen (a range too many), found before it is expanded."""

# These leave the run's id as it is, so that all their cells would be one and the same run.
_NOT_SWEPT = NOT_HASHED - {"data_dir", "data_files", "max_steps"}
_RANGE_FORM = re.compile(r"-?\d+\.\.-?\d+|log:.*")


@dataclass(frozen=True)
class SweepConfig:
    """Base values, the grid laid over them, and the cells to leave out.

    The first key of the grid varies slowest. Keys are canonical; dotted ones (``method_args.rho``) name one entry.
    """

    base: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    exclude: Sequence[Mapping[str, Any]] = field(default=())

    @classmethod
    def parse(
        cls,
        values: Mapping[str, Any],
        *,
        assignments: Mapping[str, Any] | None = None,
        grid: Mapping[str, Sequence[Any]] | None = None,
    ) -> SweepConfig:
        """From the mapping of a sweep file.

        Args:
            values: keys of a run, and ``sweep: {grid: {key: values}, exclude: [{key: value or values}]}``.
            assignments: what ``--set`` says, canonical keys; laid over the base.
            grid: what ``--rank 8,32`` and its like say; each replaces the file's values of that key.

        Raises:
            UsageError: an unknown key, an empty grid, a key both assigned and swept, or a key that does not change
                a run's result.
        """
        block = values.get("sweep") or {}
        if not isinstance(block, Mapping):
            raise UsageError(f"sweep: must hold grid and exclude, not {block!r}")
        for key in block:
            if key not in ("grid", "exclude"):
                raise unknown("sweep", key, ("grid", "exclude"))
        merged = {**_read_grid(block.get("grid") or {}), **_read_grid(grid or {})}
        if not merged:
            raise UsageError("nothing to sweep: give sweep: {grid: ...} or --rank 8,32 (one run is `landscape train`)")
        for key in assignments or {}:
            if key in merged:
                raise UsageError(f"--set {key}: the grid varies this key; replace its values with --grid {key}=...")
        base = canonical_keys({key: value for key, value in values.items() if key != "sweep"})
        return cls(assign(base, assignments or {}), merged, _read_exclude(block.get("exclude") or []))

    @property
    def num_cells(self) -> int:
        """Cells of the full grid, before any is left out."""
        return math.prod(len(values) for values in self.grid.values())

    def expand(self) -> list[RunConfig]:
        """One validated config a cell, in grid order, excluded cells left out.

        Raises:
            UsageError: a value out of range in any cell, a grid of more than `MAX_CELLS` cells, or nothing left.
        """
        if self.num_cells > MAX_CELLS:
            sizes = " x ".join(f"{len(values)} {key}" for key, values in self.grid.items())
            raise UsageError(f"sweep: {sizes} make {self.num_cells} cells; more than {MAX_CELLS} are refused")
        configs = []
        for cell in itertools.product(*self.grid.values()):
            values = assign(self.base, dict(zip(self.grid, cell, strict=True)))
            if not any(_matches(values, entry) for entry in self.exclude):
                configs.append(RunConfig.parse(values))
        if not configs:
            raise UsageError(f"sweep: exclude leaves none of the {self.num_cells} cells")
        return configs


def _read_grid(grid: Any) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping):
        raise UsageError(f"sweep.grid: must map keys to lists of values, not {grid!r}")
    result: dict[str, list[Any]] = {}
    for key, values in grid.items():
        full = canonical_key(str(key))
        if full in result:
            raise UsageError(f"sweep.grid: {key} is given twice (it is another spelling of {full})")
        root = full.partition(".")[0]
        if root in _NOT_SWEPT:
            raise UsageError(f"sweep.grid: {root} does not change a run's result (nor its id), so it cannot be swept")
        result[full] = _read_values(full, values)
    return result


def _read_values(key: str, values: Any) -> list[Any]:
    """A list as it stands (ranges inside it expanded), a string as `parse_values` reads it, else one value."""
    if isinstance(values, str):
        return _unique(parse_values(values, key))
    if not isinstance(values, (list, tuple)):
        return [values]
    if not values:
        raise UsageError(f"sweep.grid: {key} has no values")
    expanded: list[Any] = []
    for value in values:
        is_range = isinstance(value, str) and _RANGE_FORM.fullmatch(value)
        expanded.extend(parse_values(value, key) if is_range else [value])
    return _unique(expanded)


def _unique(values: list[Any]) -> list[Any]:
    """Without repeats; values may be lists or mappings, so not by hash. True and 1 are two values."""
    return [
        value
        for index, value in enumerate(values)
        if not any(type(value) is type(earlier) and value == earlier for earlier in values[:index])
    ]


def _read_exclude(entries: Any) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) and entry for entry in entries):
        raise UsageError(f"sweep.exclude: must be a list such as [{{method: full, rank: [8, 32]}}], not {entries!r}")
    return [{canonical_key(str(key)): value for key, value in entry.items()} for entry in entries]


def _matches(values: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    return all(_is_one_of(_value(values, key), wanted) for key, wanted in entry.items())


def _value(values: Mapping[str, Any], key: str) -> Any:
    """The cell's value, or the config's default where the sweep does not set the key."""
    root = key.partition(".")[0]
    default = RunConfig.model_fields[root].default
    return lookup({root: default} | dict(values), key)


def _is_one_of(value: Any, wanted: Any) -> bool:
    candidates = [wanted, *wanted] if isinstance(wanted, list) else [wanted]
    return any(same(value, candidate) for candidate in candidates)


def same(left: Any, right: Any) -> bool:
    """Equality that takes 0.0003 and the twelve-digit end of a ``log:`` range for one number."""
    if _is_number(left) and _is_number(right):
        return math.isclose(left, right, rel_tol=1e-9)
    return bool(left == right)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
