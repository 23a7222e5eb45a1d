"""Which curvature matrix of a run is measured: its space, the matrix itself, and whose code measures it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from landscape.analysis.spaces import SPACES
from landscape.errors import UsageError, unknown

BACKENDS = ("landscape", "pyhessian")


@dataclass(frozen=True)
class Variant:
    """One curvature matrix, measured one way.

    Attributes:
        space: one of `landscape.analysis.spaces.SPACES`.
        matrix: ``hessian``, or ``ggn``, the generalized Gauss-Newton matrix.
        backend: ``landscape``, or ``pyhessian`` as a cross-check: the Hessian in the adapter space only.
    """

    space: str = "adapter"
    matrix: str = "hessian"
    backend: str = "landscape"

    def check(self, analysis: str) -> None:
        """Refuse names that are not known, and what an analysis cannot measure.

        Raises:
            UsageError: lists what is allowed and the nearest match.
        """
        from landscape.curvature import MATRICES

        for key, allowed in (("space", SPACES), ("matrix", MATRICES), ("backend", BACKENDS)):
            if getattr(self, key) not in allowed:
                raise unknown(key, getattr(self, key), allowed)
        if self.space == "preconditioned" and analysis != "sharpness":
            raise UsageError(
                f"space: 'preconditioned' is for sharpness; allowed for {analysis}: {', '.join(SPACES[:3])}"
            )
        if self.backend == "landscape":
            return
        if analysis == "layers" or (self.space, self.matrix) != ("adapter", "hessian"):
            raise UsageError("backend: 'pyhessian' measures the adapter space's whole Hessian only")
        if importlib.util.find_spec("pyhessian") is None:
            raise UsageError("backend: PyHessian is not installed; pip install 'lora-landscape[pyhessian]'")

    def table(self, analysis: str) -> str:
        """File of an analysis' results: another matrix or backend has its own, such as ``trace-ggn.parquet``."""
        names = (name for name in (self.matrix, self.backend) if name not in ("hessian", "landscape"))
        return f"{'-'.join((analysis, *names))}.parquet"
