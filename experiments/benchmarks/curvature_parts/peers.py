"""The tools of the curvature benchmark, each called as its users would at its best setting, watched by an oracle.

The peers have no stopping rule that leads to a stated error (PyHessian: a change between iterations; eigenthings: a
number of steps; ARPACK: a residual, after at least ncv products). To compare with their best, a `Watch` sees every
product that they make, computes the answer that they would return after it, and ends them at the first at which that
answer is right. Nobody without the truth at hand could stop them so early.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

MOST_PRODUCTS = 200
TOLERANCE = 1e-3
Batch = dict[str, Tensor]


class Stopped(Exception):
    """Raised through a peer when its answer is good enough."""


@dataclass
class Step:
    """After one product: seconds since the call began, the answer, its relative residual (NaN: the tool has none)."""

    seconds: float
    cpu_seconds: float
    value: float
    residual: float


class Stopwatch:
    """Seconds of the clock and of this process's processor time since it was made, less the pauses.

    Where the first is much more than the second, others were using the machine.
    """

    def __init__(self) -> None:
        self._began = self._now()
        self._stopped: tuple[float, float] | None = None

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(clock, processor)."""
        now = self._stopped or self._now()
        return now[0] - self._began[0], now[1] - self._began[1]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        self._stopped = self._now()
        yield
        now = self._now()
        pause = now[0] - self._stopped[0], now[1] - self._stopped[1]
        self._began = self._began[0] + pause[0], self._began[1] + pause[1]
        self._stopped = None


@dataclass
class Watch:
    """Sees every product of a tool; its own time is not counted.

    Args:
        done: whether the steps so far are enough.
    """

    done: Callable[[list[Step]], bool]
    steps: list[Step] = field(default_factory=list)
    product_seconds: list[float] = field(default_factory=list)
    _own: Stopwatch = field(default_factory=Stopwatch)

    def product(self, multiply: Callable[[], Any], answer: Callable[[Any], tuple[float, float]]) -> Any:
        """Make a product and note the answer (value, residual) that the tool would give after it."""
        start = time.perf_counter()
        product = multiply()
        self.product_seconds.append(time.perf_counter() - start)
        with self._own.paused():
            self.steps.append(Step(*self._own.read(), *answer(product)))
            enough = self.done(self.steps) or len(self.steps) >= MOST_PRODUCTS
        if enough:
            raise Stopped
        return product


class Tridiagonal:
    """The largest Ritz pair of a Lanczos iteration, read off the vectors that it multiplies."""

    def __init__(self) -> None:
        self._diagonal: list[float] = []
        self._off_diagonal: list[float] = []
        self._last: Tensor | None = None

    def __call__(self, vector: Tensor, product: Tensor) -> tuple[float, float]:
        """Value and relative residual after one more product; the vectors are the Lanczos vectors, in order.

        ARPACK multiplies its start, which is no unit vector, once before it begins.
        """
        if abs(float(vector.norm()) - 1) > TOLERANCE:
            return math.nan, math.nan
        vector, rest = vector.double(), product.double()
        if self._last is not None:
            rest -= self._off_diagonal[-1] * self._last
        self._diagonal.append(float(vector @ rest))
        rest -= self._diagonal[-1] * vector
        self._last = vector
        values, weights = eigh_tridiagonal(np.array(self._diagonal), np.array(self._off_diagonal))
        self._off_diagonal.append(float(rest.norm()))
        return float(values[-1]), self._off_diagonal[-1] * abs(float(weights[-1, -1])) / abs(float(values[-1]))


def right(value: float, truth: float) -> bool:
    """Within 1e-3 of the truth."""
    return abs(value - truth) <= TOLERANCE * abs(truth)


def certified(steps: list[Step]) -> Step | None:
    """The first step whose residual is at most 1e-3."""
    return next((step for step in steps if step.residual <= TOLERANCE), None)


def first_right(steps: list[Step], truth: float) -> Step | None:
    """The first step whose answer is right."""
    return next((step for step in steps if right(step.value, truth)), None)


def settled(steps: list[Step]) -> Step | None:
    """Where PyHessian stops by itself at tol=1e-3: it returns the value before the one that changed so little."""
    for before, step in itertools.pairwise(steps):
        if abs(before.value - step.value) / (abs(before.value) + 1e-6) < TOLERANCE:
            return Step(step.seconds, step.cpu_seconds, before.value, math.nan)
    return None


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Transformers' own loss, which on this batch is ours: every label counts."""
    return model(**batch).loss


def eigenthings(model: nn.Module, batch: Batch, seed: int, truths: dict[str, float]) -> Watch:
    """hessian-eigenthings: Lanczos on the largest algebraic end with full reorthogonalization."""
    package = importlib.import_module("hessian_eigenthings")
    watch = _lanczos_watch(truths)
    operator, answer = package.HessianOperator(model, [batch], package.hf_lm_loss()), Tridiagonal()
    watched = package.LambdaOperator(
        lambda vector: watch.product(lambda: operator.matvec(vector), lambda product: answer(vector, product)),
        size=operator.size, device=operator.device, dtype=operator.dtype,
    )  # fmt: skip
    return _run(watch, lambda: package.lanczos(
        watched, k=1, which="LA", max_iter=MOST_PRODUCTS, reorthogonalize=True, tol=TOLERANCE, seed=seed
    ))  # fmt: skip


class _Silu(nn.Module):
    """x·sigmoid(x): torch's own silu has no forward derivative of its backward pass, which curvlinops needs."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@contextlib.contextmanager
def _differentiable_silu(model: nn.Module) -> Iterator[None]:
    layers: list[Any] = [module for name, module in model.named_modules() if name.endswith("mlp")]
    originals = [layer.act_fn for layer in layers]
    for layer in layers:
        layer.act_fn = _Silu()
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.act_fn = original


class _Logits(nn.Module):
    """Shifted logits (positions, vocabulary) of a batch without its labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Batch) -> Tensor:
        return self.model(**inputs).logits[:, :-1].flatten(0, 1)


def curvlinops(model: nn.Module, batch: Batch, seed: int, truths: dict[str, float]) -> Watch:
    """curvlinops' Hessian under ARPACK, with an ncv that lets it end at any product."""
    package = importlib.import_module("curvlinops")
    watch = _lanczos_watch(truths)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    operator = package.HessianLinearOperator(
        _Logits(model), nn.CrossEntropyLoss(), parameters, [(inputs, batch["labels"][:, 1:].flatten())],
        check_deterministic=False, num_data=len(batch["labels"]), batch_size_fn=lambda x: len(x["input_ids"]),
    )  # fmt: skip
    scipy_operator, answer = operator.to_scipy(dtype=np.float32), Tridiagonal()

    def multiply(vector: np.ndarray) -> np.ndarray:
        vector = vector.reshape(-1)
        return watch.product(
            lambda: scipy_operator.matvec(vector),
            lambda product: answer(torch.from_numpy(vector.copy()), torch.from_numpy(product)),
        )

    watched = LinearOperator(scipy_operator.shape, matvec=multiply, dtype=np.float32)  # type: ignore[call-arg]
    size = scipy_operator.shape[0]
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed)).numpy()
    with _differentiable_silu(model):
        return _run(
            watch,
            lambda: eigsh(watched, k=1, which="LA", ncv=100, tol=TOLERANCE, v0=start),  # type: ignore[arg-type]
        )


class _Undictionaried(nn.Module):
    """A model that holds its batch, because PyHessian passes on tensors only, and returns its loss."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.model, self.batch = model, batch

    def forward(self, _: Tensor) -> Tensor:
        return model_loss(self.model, self.batch)


def pyhessian(model: nn.Module, batch: Batch, seed: int, truths: dict[str, float]) -> Watch:
    """PyHessian's power iteration; it ends at its own target, the eigenvalue of largest magnitude."""
    package: Any = importlib.import_module("pyhessian.hessian")
    target = own_target(truths)
    watch = Watch(lambda steps: first_right(steps, target) is not None and settled(steps) is not None)
    multiply = package.hessian_vector_product

    def watched(gradients: Any, parameters: Any, vector: list[Tensor]) -> Any:
        return watch.product(
            lambda: multiply(gradients, parameters, vector),
            lambda product: (float(sum((a * b).sum() for a, b in zip(vector, product, strict=True))), math.nan),
        )

    package.hessian_vector_product = watched
    position = torch.zeros(1)

    def call() -> None:
        solver = package.hessian(
            _Undictionaried(model, batch), lambda output, _: output, data=(position, position), cuda=False
        )
        solver.eigenvalues(maxIter=MOST_PRODUCTS, tol=-1.0)

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _run(watch, call)
    finally:
        package.hessian_vector_product = multiply
        model.zero_grad(set_to_none=True)


# With dependencies, pip would install torchvision and replace torch.
_CURVLINOPS = (
    "curvlinops-for-pytorch==3.0.1 backpack-for-pytorch unfoldNd einconv einops opt_einsum linear_operator jaxtyping "
    "wadler_lindig"
)
PEERS: dict[str, tuple[str, str, Callable[..., Watch]]] = {
    "PyHessian": ("pyhessian", "pyhessian==0.1", pyhessian),
    "eigenthings": ("hessian_eigenthings", "hessian-eigenthings==1.0.0a5", eigenthings),
    "curvlinops": ("curvlinops", _CURVLINOPS, curvlinops),
}
"""By name: the module, what to install, and a call that is watched to its end."""


def own_target(truths: dict[str, float]) -> float:
    """The eigenvalue of largest magnitude."""
    return max(truths.values(), key=abs)


def _lanczos_watch(truths: dict[str, float]) -> Watch:
    truth = truths["largest"]
    return Watch(lambda steps: certified(steps) is not None and first_right(steps, truth) is not None)


def _run(watch: Watch, call: Callable[[], object]) -> Watch:
    with contextlib.suppress(Stopped):
        call()
    return watch


def summary(name: str, watch: Watch, truths: dict[str, float]) -> dict[str, Any]:
    """A watched call: both stops, and for PyHessian where it was heading and where it would have stopped."""
    truth, target = truths["largest"], own_target(truths)
    stops: dict[str, Any] = {
        "right": _stop(watch, first_right(watch.steps, truth), truth),
        "certified": _stop(watch, certified(watch.steps), truth),
    }
    if name == "PyHessian":
        if target != truth:
            stops["own target"] = _stop(watch, first_right(watch.steps, target), target)
        stops["own stop"] = _stop(watch, settled(watch.steps), truth)
    return {"stops": stops, "product_seconds": watch.product_seconds}


def _stop(watch: Watch, step: Step | None, truth: float) -> dict[str, Any] | None:
    if step is None:
        return None
    products = sum(other.seconds <= step.seconds for other in watch.steps)
    residual = None if math.isnan(step.residual) else step.residual
    return {
        "seconds": step.seconds, "cpu_seconds": step.cpu_seconds, "products": products, "value": step.value,
        "residual": residual, "error": abs(step.value - truth) / abs(truth),
    }  # fmt: skip
