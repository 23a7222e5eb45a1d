"""Curvature of the loss: operators that multiply by a Hessian, and questions asked of them."""

from landscape.curvature.eigenvalues import EigenResult, top_eigenvalues
from landscape.curvature.operators import SPACES, HessianOperator, check_space
from landscape.measurement import NonFiniteLossError, measuring

__all__ = [
    "SPACES",
    "EigenResult",
    "HessianOperator",
    "NonFiniteLossError",
    "check_space",
    "measuring",
    "top_eigenvalues",
]
