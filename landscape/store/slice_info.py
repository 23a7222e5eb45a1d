"""What a slice says of itself, checked before anybody shows it: the file may be somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.store.slices import NORMALIZATIONS, SPACES, SliceFile, read_slice

if TYPE_CHECKING:
    import numpy as np

Check = Callable[[Any], bool]

_MOST = 1 << 53
"""Whole numbers up to here are floats, too."""


def read_described_slice(path: Path, *, drawn: bool = True) -> SliceFile:
    """As `landscape.store.slices.read_slice`, for whoever shows it: its ``info`` and its axes are checked too.

    Args:
        drawn: false for who only reads its numbers; the step, the settings and the examples are checked then.

    Raises:
        StoreError: the file is missing or damaged, or says of itself what no slice is.
    """
    item = read_slice(path)
    try:
        _look(item.info, _INFO if drawn else {key: _INFO[key] for key in _NUMBERS_OF}, "info")
        _look(item.info["settings"], _SETTINGS, "settings")
        if drawn:
            _check(item)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); delete it to measure again") from error
    return item


def _check(item: SliceFile) -> None:
    """`ValueError` that names what is wrong."""
    info = item.info
    for draw in info["draws"]:
        _look(draw, _ADAPTIVE if "error_bound" in draw else {}, "draws")
        _look(draw, _TESTED if draw.get("coverage") else {}, "draws")
    if "common" in info:
        _look(info["common"], {"id": _is_text, "step": _is_count}, "common")
        _look(info, {"center": lambda value: _is_numbers(value) and len(value) == item.dims}, "info")
    _look(info, {key: check for key, check in _OPTIONAL.items() if key in info}, "info")
    ends = item.dims + 1 if info["settings"]["directions"] == "line" and len(item.runs) == 1 else 1
    if len(info["anchors"]) < ends or not item.runs or (info["step"] is None and len(item.runs) == 1):
        raise ValueError("its info names too few runs or steps")
    if not len(item.loss) or not all(map(_is_ascending, item.axes)):
        raise ValueError("its axes do not ascend, or it has no values")
    for trajectory in item.trajectories:
        if not trajectory.steps.size or trajectory.steps.dtype.kind not in "iu":
            raise ValueError("a trajectory has no steps")


def _look(values: Mapping[str, Any], checks: Mapping[str, Check], name: str) -> None:
    for key, check in checks.items():
        if key not in values or not check(values[key]):
            raise ValueError(f"{name}: {key!r} is {str(values.get(key))[:80]!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _MOST)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _all(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_ascending(axis: np.ndarray) -> bool:
    import numpy as np

    return axis.size > 1 and bool(np.isfinite(axis).all() and (np.diff(axis) > 0).all())


_INFO: dict[str, Check] = {
    "id": _is_text, "step": _or_none(_is_count), "anchors": _all(_is_count), "settings": _is_mapping,
    "draws": _all(_is_mapping), "metric": _is_text, "num_examples": _is_count, "num_labels": _is_count,
    "precision": _is_text, "split": _is_text,
}  # fmt: skip
_NUMBERS_OF = ("step", "settings", "num_examples")
_OPTIONAL: dict[str, Check] = {
    "since": _is_count, "eigenvalues": _or_none(_is_numbers), "barrier": _or_none(_is_number),
    "explained": _is_numbers, "center": _is_numbers,
}  # fmt: skip
_SETTINGS: dict[str, Check] = {
    "directions": _is_text, "normalization": NORMALIZATIONS.__contains__, "space": SPACES.__contains__,
    "delta": _is_number, "draws": _is_count, "radius": _or_none(_is_number),
}  # fmt: skip
_ADAPTIVE: dict[str, Check] = {
    "error_bound": _is_number, "num_held_out": _is_count, "converged": lambda value: isinstance(value, bool),
}  # fmt: skip
_TESTED: dict[str, Check] = {"coverage": _is_number, "held_out_error": _is_number}
