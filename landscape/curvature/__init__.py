"""Curvature of the loss: operators that multiply by a Hessian, and questions asked of them."""

from landscape.curvature.context import measuring
from landscape.curvature.eigenvalues import EigenResult, top_eigenvalues
from landscape.curvature.operators import SPACES, HessianOperator, NonFiniteLossError, check_space

__all__ = [
    "SPACES",
    "EigenResult",
    "HessianOperator",
    "NonFiniteLossError",
    "check_space",
    "measuring",
    "top_eigenvalues",
]
