"""Errors that callers of a measurement tell apart from misuse."""

from landscape.errors import LandscapeError


class NonFiniteLossError(LandscapeError):
    """The loss, or a product with its Hessian, is NaN or infinite: the parameters have diverged."""
