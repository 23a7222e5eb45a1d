"""A row of a reproduction: the paper's value, ours, and what a rule makes of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["confirmed", "not confirmed", "contradicted", "undecided", "not comparable"]
VERDICTS: dict[str, str] = {
    "confirmed": "what is claimed was found: by a test at level 0.05, or within the bound that the row states",
    "not confirmed": "a test that could have reached that level did not; its interval says what it leaves open",
    "contradicted": "the opposite was found, likewise",
    "undecided": "too few seeds for any test at that level, or nothing happened that could be judged",
    "not comparable": "a score at another scale than the paper's, in the tables of scores without a judgment",
}
ALPHA = 0.05


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        quantity: what was claimed or compared, with its unit.
        scale: model, task, steps and seeds of ours.
        sentence: the numbers behind the verdict.
    """

    paper: str
    place: str
    quantity: str
    paper_value: float | None
    our_value: float | None
    our_sd: float | None
    scale: str
    verdict: Verdict
    sentence: str
    experiment: str

    def plain(self) -> dict[str, Any]:
        """For JSON and CSV: what is not finite is null, six digits of the rest."""
        return {key: rounded(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Judged:
    """What a rule says, before it is put beside its paper."""

    verdict: Verdict
    sentence: str
    value: float = math.nan
    sd: float = math.nan


def rounded(value: Any, digits: int = 6) -> Any:
    """Floats to six significant digits and null for what is not finite, all the way down."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
