"""Curvature of the loss: operators that multiply by a Hessian, and questions asked of them."""

from landscape.curvature.ball import AverageSharpness, BallSharpness, average_sharpness, sam_sharpness
from landscape.curvature.coordinates import SPACES, check_space
from landscape.curvature.density import DensityResult, spectral_density
from landscape.curvature.eigenvalues import EigenResult, SharpnessTracker, top_eigenvalues
from landscape.curvature.layers import LayerResult, layer_eigenvalues
from landscape.curvature.objective import Objective
from landscape.curvature.operators import MATRICES, CurvatureOperator
from landscape.curvature.stability import adam_preconditioner, stability_threshold
from landscape.curvature.trace import TraceResult, trace
from landscape.measurement import NonFiniteLossError, measuring

__all__ = [
    "MATRICES",
    "SPACES",
    "AverageSharpness",
    "BallSharpness",
    "CurvatureOperator",
    "DensityResult",
    "EigenResult",
    "LayerResult",
    "NonFiniteLossError",
    "Objective",
    "SharpnessTracker",
    "TraceResult",
    "adam_preconditioner",
    "average_sharpness",
    "check_space",
    "layer_eigenvalues",
    "measuring",
    "sam_sharpness",
    "spectral_density",
    "stability_threshold",
    "top_eigenvalues",
    "trace",
]
