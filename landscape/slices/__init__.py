"""Loss slices that are right for adapters, and where a run went on them."""

from landscape.slices.adaptive import AdaptiveSlice, Filled, adaptive_slice, fill
from landscape.slices.coordinates import Coordinates, Vector
from landscape.slices.directions import (
    NORMALIZATIONS,
    balanced,
    check_normalization,
    loss_gradient,
    random_direction,
    update_direction,
)
from landscape.slices.examples import accuracy
from landscape.slices.flatness import Estimate, Flatness, flatness
from landscape.slices.grid import Row, SliceEnsemble, loss_slice, loss_slices
from landscape.slices.planes import Plane, line_through, plane_through, principal_plane
from landscape.slices.result import SliceResult
from landscape.slices.spaces import EVALUATIONS, SPACES, check_space
from landscape.slices.trajectory import Interpolation, Trajectory, covering_axes, interpolate, trace_trajectory

__all__ = [
    "EVALUATIONS",
    "NORMALIZATIONS",
    "SPACES",
    "AdaptiveSlice",
    "Coordinates",
    "Estimate",
    "Filled",
    "Flatness",
    "Interpolation",
    "Plane",
    "Row",
    "SliceEnsemble",
    "SliceResult",
    "Trajectory",
    "Vector",
    "accuracy",
    "adaptive_slice",
    "balanced",
    "check_normalization",
    "check_space",
    "covering_axes",
    "fill",
    "flatness",
    "interpolate",
    "line_through",
    "loss_gradient",
    "loss_slice",
    "loss_slices",
    "plane_through",
    "principal_plane",
    "random_direction",
    "trace_trajectory",
    "update_direction",
]
