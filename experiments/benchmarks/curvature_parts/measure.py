"""What the curvature benchmark measures inside one process: a tool on the workload, and a tool along a training run."""

from __future__ import annotations

import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.curvature import CurvatureOperator, EigenResult, SharpnessTracker, top_eigenvalues

from .peers import MOST_PRODUCTS, PEERS, TOLERANCE, Stopwatch, model_loss, right, summary
from .workload import Batch, TruthTable, build, load_weights, set_weights, trainable, training

OURS = "landscape"
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "scipy",
    "numpy",
    "PyHessian",
    "hessian-eigenthings",
    "curvlinops-for-pytorch",
)


def run_part(task: dict[str, Any]) -> Any:
    """One of the functions below, as the task names it; a process runs one task."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(task["threads"])
    return {"survey": survey, "tool": measure_tool, "trajectory": measure_trajectory}[task["part"]](task)


def survey(_: dict[str, Any]) -> dict[str, Any]:
    """Versions of what is compared, and the peers that are missing."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    missing = {name: requirement for name, (module, requirement, _) in PEERS.items() if find_spec(module) is None}
    return {"python": sys.version.split()[0], "versions": found, "missing": missing}


def peak_mib() -> float:
    """Most memory that this process has held at once.

    Linux hands ``ru_maxrss`` on from the process that started this one; the high-water mark in /proc is its own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_tool(task: dict[str, Any]) -> dict[str, Any]:
    """One tool at one shape on untrained and trained weights, with the time of gradients around it and peak memory.

    The floor is the memory after imports (the peer's too) and building the model, before any gradient.
    """
    tool, shape = task["tool"], task["shape"]
    if tool in PEERS:
        __import__(PEERS[tool][0])
    model, batch = build(shape)
    floor = peak_mib()
    result: dict[str, Any] = {"weights": {}}
    for weights, case in task["weights"].items():
        load_weights(model, case["path"])
        before = gradient_seconds(model, batch)
        if tool == OURS:
            measured = ours(model, batch, task["seed"], case["truths"], case["oracle"])
        else:
            watch = PEERS[tool][2](model, batch, task["seed"], case["truths"])
            measured = summary(tool, watch, case["truths"])
        measured["gradient_seconds"] = [*before, *gradient_seconds(model, batch)]
        result["weights"][weights] = measured
        print(f"{tool} {shape} {weights}: done", file=sys.stderr)
    return {**result, "floor_mib": floor, "peak_mib": peak_mib()}


def gradient_seconds(model: nn.Module, batch: Batch, repeats: int = 3) -> list[float]:
    """Seconds of gradients of the loss, after a warm-up."""
    parameters = list(trainable(model).values())

    def gradient() -> float:
        began = time.perf_counter()
        torch.autograd.grad(model_loss(model, batch), parameters)
        return time.perf_counter() - began

    gradient()
    return [gradient() for _ in range(repeats)]


def ours(model: nn.Module, batch: Batch, seed: int, truths: dict[str, float], oracle: int) -> dict[str, Any]:
    """`top_eigenvalues` with the fewest products that make it right, and with its own stopping rule."""
    truth = truths["largest"]
    stops = {
        "right": timed(lambda: top_eigenvalues(model, batch, tol=TOLERANCE, max_matvecs=oracle, seed=seed), truth),
        "certified": timed(lambda: top_eigenvalues(model, batch, tol=TOLERANCE, seed=seed), truth),
    }
    operator, seconds = CurvatureOperator(model, batch), []
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(seed))
    for _ in range(8):
        began = time.perf_counter()
        _ = operator @ vector
        seconds.append(time.perf_counter() - began)
    return {"stops": stops, "product_seconds": seconds[1:]}


def timed(measure: Callable[[], EigenResult], truth: float) -> dict[str, Any]:
    """A result of ours as the stops of the peers are told."""
    watch = Stopwatch()
    result = measure()
    seconds, cpu_seconds = watch.read()
    value = float(result.values[0])
    return {
        "seconds": seconds, "cpu_seconds": cpu_seconds, "products": result.num_matvecs, "value": value,
        "residual": float(result.residuals[0]), "error": abs(value - truth) / abs(truth),
        "converged": result.converged, "cold": result.cold,
    }  # fmt: skip


def fewest_products(model: nn.Module, batch: Batch, seed: int, truth: float) -> int:
    """The smallest ``max_matvecs`` at which `top_eigenvalues` is right, by a search that guesses high."""

    def measured(products: int) -> EigenResult:
        return top_eigenvalues(model, batch, tol=TOLERANCE, max_matvecs=products, seed=seed)

    wrong, enough = 0, measured(MOST_PRODUCTS).num_matvecs
    while enough - wrong > 1:
        middle = (wrong + 2 * enough) // 3
        if right(float(measured(middle).values[0]), truth):
            enough = middle
        else:
            wrong = middle
    return enough


def measure_trajectory(task: dict[str, Any]) -> dict[str, Any]:
    """Ours, tracked, at every one of the first snapshots of a training run, and at some of them the others too.

    curvlinops is left out: it makes the same Krylov sequence as eigenthings with slower products.
    """
    shape, table = task["shape"], TruthTable(Path(task["truth"]), task["recompute"])
    model, batch = build(shape)
    losses, snapshots, truths = [], [], {}
    steps = training(model, batch, task["learning_rate"])
    for step in range(1, task["snapshots"] + 1):
        losses.append(next(steps))
        snapshots.append({name: parameter.detach().clone() for name, parameter in trainable(model).items()})
        if step % task["every"] == 0:
            truths[step] = table.largest(shape, model)
    gradient = statistics.median(gradient_seconds(model, batch, 9))
    peers = [name for name in task["tools"] if name in ("PyHessian", "eigenthings")]
    tracker = SharpnessTracker(model, batch, tol=TOLERANCE, max_matvecs=MOST_PRODUCTS, seed=0)
    rows = []
    for step, (snapshot, loss) in enumerate(zip(snapshots, losses, strict=True), 1):
        set_weights(model, snapshot)
        truth = truths.get(step)
        row = {"step": step, "loss_before": loss, "truth": truth, OURS: timed(tracker.measure, truth or float("nan"))}
        if truth is not None:
            row[f"{OURS}, from scratch"] = timed(lambda: top_eigenvalues(model, batch, tol=TOLERANCE), truth)
            for name in peers:
                # PyHessian's target is taken to be the same; where it is not, its answer never becomes right.
                watch = PEERS[name][2](model, batch, 0, {"largest": truth})
                row[name] = summary(name, watch, {"largest": truth})["stops"]
        else:
            row[OURS]["error"] = None
        rows.append(row)
        print(f"snapshot {step}: {row[OURS]}", file=sys.stderr)
    return {"gradient_seconds": gradient, "snapshots": rows}


def tiny_run(folder: Path, tokens: int, every: int, steps: int) -> dict[str, Any]:
    """Sharpness along a real run of the `tiny` preset, and what the run itself took; both through the public functions.

    Args:
        folder: of the store.
        tokens: the probe has the fewest examples that hold so many tokens other than padding.
        every: steps between snapshots.
        steps: of the run.
    """
    from landscape.analysis import analyze_sharpness, open_run
    from landscape.config import RunConfig
    from landscape.store import Store
    from landscape.training import train

    settings = {
        "model": "tiny", "task": "arithmetic", "max_steps": steps, "learning_rate": 5e-3, "capture": {"every": every},
        "eval_steps": 0, "base_loss": False, "save_steps": 0, "clean_loss_every": 0,
    }  # fmt: skip
    began = time.perf_counter()
    trained = train(RunConfig.parse(settings), folder)
    training_seconds = time.perf_counter() - began
    run = Store.open(folder).get(trained.run_id)
    probe = open_run(run).data.probe
    counts = [int(probe.collate([position])["attention_mask"].sum()) for position in range(len(probe))]
    examples = next(n for n in range(1, len(counts) + 1) if sum(counts[:n]) >= tokens)
    began = time.perf_counter()
    table: Any = analyze_sharpness(run, every=every, tol=1e-2, num_examples=examples)
    seconds = time.perf_counter() - began
    columns = ["step", "value", "residual", "num_matvecs", "converged", "loss", "seconds"]
    metrics: Any = run.metrics()
    between = metrics["seconds"].groupby((metrics["step"] - 1) // every).sum()
    return {
        "settings": settings, "tol": 1e-2, "probe": {
            "examples": examples, "tokens": sum(counts[:examples]), "labels": int(table["num_labels"].iloc[0]),
        },
        "training_seconds": training_seconds,
        "step_seconds": float(metrics["seconds"].sum()),
        "seconds_of_the_steps_between_snapshots": [float(value) for value in between],
        "sharpness_seconds": seconds,
        "snapshots": table[columns].to_dict("records"),
    }  # fmt: skip
