"""What the analyses refuse before anything is loaded."""

from __future__ import annotations

from landscape.errors import UsageError


def check_counts(**counts: int | None) -> None:
    """Refuse a number below 1.

    Raises:
        UsageError: names the argument.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}: {value}; allowed: at least 1")


def check_tolerance(tol: float) -> None:
    """Refuse a relative residual outside (0, 1).

    Raises:
        UsageError: names what is allowed.
    """
    if not 0 < tol < 1:
        raise UsageError(f"tol: {tol}; allowed: greater than 0 and less than 1")
