"""PyHessian 0.1 as a cross-check: its answers for transformers and PEFT models, wrapped so that it runs at all.

PyHessian (Yao, Gholami, Keutzer and Mahoney, PyHessian: Neural Networks Through the Lens of the Hessian, 2020) knows
neither dict batches nor parameters without influence nor current torch, writes into ``.grad`` and draws from the global
generators. What it needs is put around it here. Its files carry GPL-3.0 headers: it is an optional extra, nothing but
the functions below imports it, and none of it is copied.

What it answers is left as it is: its eigenvalues are those of largest magnitude, its tolerance is a change between two
iterations, and it divides vectors by their norms plus 1e-6, which makes eigenvalues 2e-6 too small and shows in the
density where curvature is below about 1e-3.
"""

from __future__ import annotations

import importlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.curvature.density import DensityResult, Quadrature, covering_grid, default_bandwidth
from landscape.curvature.eigenvalues import EigenResult
from landscape.curvature.operators import CurvatureOperator
from landscape.curvature.trace import TraceResult
from landscape.errors import LandscapeError, UsageError
from landscape.loss import LossKind, forward_losses, loss_kind
from landscape.measurement import Batch, NonFiniteLossError, count_batches, measuring


def pyhessian_top_eigenvalues(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    seed: int = 0,
) -> EigenResult:
    """The k eigenvalues of largest magnitude by PyHessian's power iteration; a negative one is returned as such.

    ``values`` are PyHessian's own, in the order in which it found them; ``which`` is ``magnitude``. It does not know
    how good they are: residuals are computed by one product a vector of our own operator, and ``converged`` says
    whether they are at most ``tol``. That is rare when PyHessian stops, which it does at a *change* of ``tol`` between
    iterations.

    Args:
        model: as in `landscape.curvature.top_eigenvalues`, on one CPU or CUDA device.
        batches: as there.
        k: how many.
        tol: handed to PyHessian, and compared with the residuals.
        max_matvecs: most products, those for the residuals among them.
        seed: of the start vectors.

    Raises:
        UsageError: PyHessian is not installed, an argument out of range, or a model or batches that cannot be measured.
        NonFiniteLossError: the loss or a product is NaN or infinite.
        LandscapeError: PyHessian fails.
    """
    if k < 1:
        raise UsageError(f"k: {k}; allowed: at least 1")
    if not 0 < tol < 1:
        raise UsageError(f"tol: {tol}; allowed: greater than 0 and less than 1")
    if max_matvecs < 2 * k:
        raise UsageError(f"max_matvecs: {max_matvecs}; allowed: at least {2 * k}, two for each of the k = {k}")
    session = _Session(model, batches, seed)
    if k > session.num_parameters:
        raise UsageError(f"k: {k}; allowed: 1 to the number of parameters, {session.num_parameters}")
    budget = (max_matvecs - k) // k
    found, rows = session.run(lambda solver: solver.eigenvalues(maxIter=budget, tol=tol, top_n=k))
    values = session.finite(found)
    operator = CurvatureOperator(session.model, session.batches)
    vectors = torch.stack([torch.cat([part.reshape(-1) for part in row]).to(operator.dtype) for row in rows])
    vectors /= vectors.norm(dim=1, keepdim=True)
    absolute = np.array(
        [
            float((operator @ vector - float(value) * vector).norm())
            for value, vector in zip(values, vectors, strict=True)
        ]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        residuals = np.where(absolute == 0, 0.0, absolute / np.abs(values))
    session.num_matvecs += k
    return EigenResult(
        values=values,
        residuals=residuals,
        converged=bool((residuals <= tol).all()),
        tol=tol,
        which="magnitude",
        matrix="hessian",
        product=session.product,
        cold=True,
        next_start=vectors.sum(dim=0),
        vectors=vectors,
        **session.facts(),
    )


def pyhessian_trace(
    model: nn.Module, batches: Batch | Iterable[Batch], num_probes: int = 100, *, seed: int = 0
) -> TraceResult:
    """The trace of the Hessian by PyHessian's Hutchinson estimator.

    PyHessian's own stopping test divides by the running trace and passes whenever that is negative, so it is switched
    off: exactly ``num_probes`` products are made.

    Args:
        model: as in `pyhessian_top_eigenvalues`; so are ``batches``, and what is raised.
        num_probes: how many vectors of random signs, at least 2.
        seed: of the random vectors.
    """
    if num_probes < 2:
        raise UsageError(f"num_probes: {num_probes}; allowed: at least 2, or there is no standard error")
    session = _Session(model, batches, seed)
    samples = session.finite(session.run(lambda solver: solver.trace(maxIter=num_probes, tol=-math.inf)))
    return TraceResult(
        value=float(samples.mean()),
        standard_error=float(samples.std(ddof=1)) / math.sqrt(num_probes),
        num_probes=num_probes,
        method="hutchinson",
        layers={},
        **session.facts(),
    )


def pyhessian_density(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    num_steps: int = 60,
    num_probes: int = 4,
    *,
    seed: int = 0,
    num_points: int = 1000,
    bandwidth: float | None = None,
) -> DensityResult:
    """The spectral density of the Hessian: nodes and weights by PyHessian, drawn as `spectral_density` draws its own.

    Args:
        model: as in `pyhessian_top_eigenvalues`; so are ``batches``, and what is raised.
        num_steps: Lanczos steps a probe, at most the number of parameters.
        num_probes: how many vectors of random signs.
        seed: of the random vectors.
        num_points: as in `landscape.curvature.density.spectral_density`; so is ``bandwidth``.
    """
    for name, value in (("num_steps", num_steps), ("num_probes", num_probes), ("num_points", num_points)):
        if value < 1:
            raise UsageError(f"{name}: {value}; allowed: at least 1")
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise UsageError(f"bandwidth: {bandwidth}; allowed: greater than 0")
    session = _Session(model, batches, seed)
    if num_steps > session.num_parameters:
        raise UsageError(f"num_steps: {num_steps}; allowed: at most the number of parameters, {session.num_parameters}")
    nodes, weights = session.run(lambda solver: solver.density(iter=num_steps, n_v=num_probes))
    quadrature = Quadrature(session.finite(nodes), session.finite(weights), session.num_matvecs)
    width = default_bandwidth(quadrature, num_steps) if bandwidth is None else bandwidth
    grid = covering_grid(quadrature, width, num_points)
    density, standard_error = quadrature.density(grid, width)
    return DensityResult(
        grid=grid,
        density=density,
        standard_error=standard_error,
        bandwidth=width,
        quadrature=quadrature,
        num_steps=num_steps,
        num_probes=num_probes,
        **session.facts(),
    )


class MeanLoss(nn.Module):
    """What PyHessian is given as a model: the loss of one batch as a function of copies of the trainable parameters.

    Copies, because PyHessian accumulates gradients that hold their graph into ``.grad``: it never sees the model's own.
    A batch goes by its number, in a tensor with one entry a counted label (`keys`): PyHessian weights batches by the
    length of their input, and the loss over all batches together weights them by their counted labels.
    """

    def __init__(self, model: nn.Module, batches: list[dict[str, Any]], counts: list[int]) -> None:
        super().__init__()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.copies = nn.ParameterList([parameter.detach().clone() for _, parameter in named])
        self.keys = [torch.tensor([position]).expand(count) for position, count in enumerate(counts)]
        # In a tuple, so that it does not become a submodule whose frozen parameters PyHessian would visit.
        self._measured: tuple[nn.Module, list[dict[str, Any]], LossKind] = (model, batches, loss_kind(model))

    def forward(self, key: Tensor) -> Tensor:
        """Σ nll ÷ Σ counted labels of one batch."""
        model, batches, kind = self._measured
        values = dict(zip(self.names, self.copies, strict=True))

        def at_copies(**inputs: Any) -> Any:
            return functional_call(model, values, (), inputs)

        losses = forward_losses(cast(nn.Module, at_copies), batches[int(key[0])], kind)
        # PyHessian cannot do with a parameter on which the gradient does not depend.
        return losses.mean + sum(0 * copy.float().square().sum() for copy in self.copies)

    @staticmethod
    def criterion(output: Tensor, _: Tensor) -> Tensor:
        """The model's output is the loss already."""
        return output


class _Session:
    """One model and one set of batches, checked, for one question to PyHessian."""

    def __init__(self, model: nn.Module, batches: Batch | Iterable[Batch], seed: int) -> None:
        self._began = time.perf_counter()
        self._package = _import_pyhessian()
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self._seed = seed
        self._device = _only_device(self.model)
        self.batches = count_batches(batches, loss_kind(self.model), self._device).batches
        # Refuses what cannot be measured; its graphs are gone before PyHessian builds its own.
        checked = CurvatureOperator(self.model, self.batches)
        self._counts = {name: getattr(checked, name) for name in ("loss", "space", "num_examples", "num_labels")}
        self.num_parameters = checked.size
        self.product = "reuse" if len(self.batches) == 1 else "rebuild"
        self.num_matvecs = 0

    def facts(self) -> dict[str, Any]:
        """What every result says."""
        return {
            **self._counts,
            "num_parameters": self.num_parameters,
            "num_matvecs": self.num_matvecs,
            "seed": self._seed,
            "seconds": time.perf_counter() - self._began,
        }

    def run(self, question: Callable[[Any], Any]) -> Any:
        """PyHessian's answer about the loss over all batches together."""
        kind = loss_kind(self.model)
        counts = [count_batches(batch, kind, self._device).num_labels for batch in self.batches]
        with measuring(self.model), self._prepared():
            function = MeanLoss(self.model, self.batches, counts)
            pairs = [(key, key) for key in function.keys]
            # With one batch it keeps the gradient's graph, with several it rebuilds one at a time.
            data = {"data": pairs[0]} if len(pairs) == 1 else {"dataloader": pairs}
            try:
                solver = self._package.hessian(function, MeanLoss.criterion, cuda=self._device.type == "cuda", **data)
                return question(solver)
            except RuntimeError as error:
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise LandscapeError(f"PyHessian failed: {message}") from error
            finally:
                function.zero_grad()  # a gradient with a graph and its parameter hold each other

    def finite(self, numbers: Any) -> np.ndarray:
        """As float64."""
        array = np.asarray(numbers, dtype=np.float64)
        if not np.isfinite(array).all():
            raise NonFiniteLossError("a product with the Hessian is not finite; the parameters have diverged")
        return array

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Its generators seeded (`measuring` restores them), its names patched, its warning about cycles silenced."""
        module, solver = self._package, self._package.hessian
        originals = module.torch, module.hessian_vector_product, solver.dataloader_hv_product
        torch.default_generator.manual_seed(self._seed)
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True", UserWarning)
            if self._device.type == "cuda":
                stack.enter_context(torch.cuda.device(self._device))
                torch.cuda.manual_seed(self._seed)
            try:
                module.torch = _TorchWithEig()
                module.hessian_vector_product, solver.dataloader_hv_product = map(self._counted, originals[1:])
                yield
            finally:
                module.torch, module.hessian_vector_product, solver.dataloader_hv_product = originals

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.num_matvecs += 1
            return function(*arguments)

        return counted


class _TorchWithEig:
    """torch with its removed ``eig``, as far as PyHessian uses it: on a symmetric matrix, real parts in column 0."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def _import_pyhessian() -> Any:
    """Its module of the same name as its class, which hides it in the package."""
    try:
        return importlib.import_module("pyhessian.hessian")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("pyhessian"):
            raise
        raise UsageError("backend: PyHessian is not installed; pip install 'lora-landscape[pyhessian]'") from error


def _only_device(model: nn.Module) -> torch.device:
    devices = {parameter.device for parameter in model.parameters()}
    names = ", ".join(sorted(map(str, devices)))
    if len(devices) != 1 or not names.startswith(("cpu", "cuda")):
        raise UsageError(
            f"backend: PyHessian needs a model on one CPU or CUDA device; this one is on {names or 'none'}"
        )
    return devices.pop()
