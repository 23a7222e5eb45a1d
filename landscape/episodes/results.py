"""What the detector says of a curve."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["episode", "partial", "divergence", "rebound_only", "spike"]
KINDS: tuple[Kind, ...] = ("episode", "partial", "divergence", "rebound_only", "spike")
FLAGS = (
    "warmup",
    "schedule_confounded",
    "epoch_edge",
    "periodic",
    "resume",
    "resolution",
    "bad_batch",
    "right_censored",
    "non_finite",
)


@dataclass(frozen=True)
class Episode:
    """One rebound of a loss curve: where it is, how large, and how surprising under a trend that never rises.

    Steps are in the curve's own unit, amplitudes in the loss's. A candidate counts when `p_value` ≤ alpha; candidates
    that a mark explains (warm-up, resume, epoch edge, rising learning rate) and single bad batches have p-value 1.
    """

    kind: Kind
    onset: float
    peak: float
    recovery: float
    """First step back at the onset's level; where the fall ends if it stays above; the last step of a divergence."""
    amplitude: float
    """Peak level minus onset level; infinite where the loss stopped being finite."""
    amplitude_noise: float
    """In standard deviations of one point's noise at the onset."""
    amplitude_relative: float
    """As a share of the descent before the onset; NaN where there was none."""
    duration: float
    """recovery - onset."""
    excess_area: float
    """Loss above the onset's level, summed over the episode: loss x steps."""
    second_descent_gain: float
    """Onset level minus the lowest level afterwards: negative if the run never gets below its first minimum."""
    p_value: float
    flags: tuple[str, ...] = ()
    tested_curve: str = "raw"
    """"raw", "logarithm", or what the curve was adjusted by."""
    resolution: float = 0.0
    """Distance in steps between the points the boundaries were read from."""

    def times(self, unit: float) -> Episode:
        """With everything that has the loss's unit multiplied."""
        return replace(
            self,
            amplitude=self.amplitude * unit,
            excess_area=self.excess_area * unit,
            second_descent_gain=self.second_descent_gain * unit,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "flags": list(self.flags)}
