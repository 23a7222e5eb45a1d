"""What the slice benchmark measures inside one process: the cost of a point, what a tool does to a model, filling."""

from __future__ import annotations

import copy
import statistics
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from landscape.slices import adaptive_slice, loss_slice
from landscape.slices.adaptive import grid_points
from landscape.slices.grid import PreparedSlice, prepare_slice

from .peers import PEERS, Watch, flat
from .workload import Batch, bare_loss, build, logits_alone, seconds_of

OURS = "landscape"
RADIUS = 1.0
GRID = 51
HELD_OUT = 200
PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy", "loss-landscapes", "landscaper", "loss-landscape-3d")


def run_part(task: dict[str, Any]) -> Any:
    """One of the functions below, as the task names it; a process runs one task."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(task.get("threads", 1))
    parts = {"survey": survey, "cost": measure_costs, "correctness": measure_correctness, "adaptive": measure_adaptive}
    return parts[task["part"]](task)


def survey(_: dict[str, Any]) -> dict[str, Any]:
    """Versions of what is compared, and the peers that are missing."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    missing = {name: peer.requirement for name, peer in PEERS.items() if find_spec(peer.module) is None}
    return {"python": sys.version.split()[0], "versions": found, "missing": missing}


def measure_costs(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds a point of every tool over those of the bare forward passes just before and after, by round."""
    model, batch = build(task["case"])
    ours = {space: _Ours(model, batch, space, task["points"]) for space in task["spaces"]}
    tools: dict[str, Any] = {f"{OURS}, {space}": one.seconds for space, one in ours.items()}
    for name in task["peers"]:
        for adapter_only in (False, True):
            tools[_variant(name, adapter_only)] = lambda n=name, a=adapter_only: peer_seconds(
                n, model, batch, task["steps"], a
            )
    tools["logits without a loss"] = lambda: seconds_of(lambda: logits_alone(model, batch))
    ratios: dict[str, list[float]] = {name: [] for name in tools}
    bare: list[float] = [_bare_seconds(model, batch, 5)]
    for number in range(task["rounds"]):
        for name in tools if number % 2 == 0 else list(tools)[::-1]:
            before, seconds = _bare_seconds(model, batch), tools[name]()
            after = _bare_seconds(model, batch)
            ratios[name].append(seconds / ((before + after) / 2))
            bare += [before, after]
        print(f"{task['case']}: round {number + 1}/{task['rounds']}", file=sys.stderr)
    return {
        "bare_seconds": statistics.median(bare),
        "ratios": ratios,
        "ours": {space: one.facts for space, one in ours.items()},
    }


def _variant(name: str, adapter_only: bool) -> str:
    return f"{name}, adapter only" if adapter_only else name


def _bare_seconds(model: nn.Module, batch: Batch, repeats: int = 3) -> float:
    return statistics.median(seconds_of(lambda: bare_loss(model, batch)) for _ in range(repeats))


class _Ours:
    """One space, checked, with the fastest way chosen; then its points are timed."""

    def __init__(self, model: nn.Module, batch: Batch, space: str, points: int) -> None:
        self._points, self._random = points, np.random.default_rng(0)
        began = time.perf_counter()
        self._prepared: PreparedSlice = prepare_slice(model, batch, 2, GRID, RADIUS, None, space, 0)
        prepared = time.perf_counter() - began
        # Until every way was tried twice.
        while self._prepared.evaluator._to_try:
            self._prepared.evaluate(self._row())
        self.facts = {
            "prepare_seconds": prepared,
            "way": self._prepared.evaluator.way,
            "ways": self._prepared.evaluator.seconds,
            "points": points,
        }

    def _row(self) -> np.ndarray:
        axis = self._prepared.axes[1]
        columns = self._random.choice(axis, self._points, replace=self._points > len(axis))
        return np.stack([np.full(self._points, self._random.choice(axis)), columns], axis=1)

    def seconds(self) -> float:
        """A point of one row of a grid."""
        return seconds_of(lambda: self._prepared.evaluate(self._row())) / self._points


def peer_seconds(name: str, model: nn.Module, batch: Batch, steps: int, adapter_only: bool) -> float:
    """A point of a peer, on a copy of the model that it may spoil."""
    watch = Watch(copy.deepcopy(model), batch)
    PEERS[name].draw(watch, steps, adapter_only)
    return watch.seconds


def measure_correctness(task: dict[str, Any]) -> dict[str, Any]:
    """What every tool does to the model, and how far its surface is from direct evaluation."""
    model, batch = build(task["case"])
    result: dict[str, Any] = {f"{OURS}, adapter": _our_correctness(model, batch, task["steps"])}
    for name in task["peers"]:
        for adapter_only in (False, True):
            try:
                found = _peer_correctness(name, model, batch, task["steps"], adapter_only)
            except Exception as error:  # a peer that fails is a result
                found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            result[_variant(name, adapter_only)] = found
            print(f"{_variant(name, adapter_only)}: {found}", file=sys.stderr)
    return result


def _state(model: nn.Module) -> list[Any]:
    return [(p.requires_grad, p.grad is None) for p in model.parameters()] + [m.training for m in model.modules()]


def _our_correctness(model: nn.Module, batch: Batch, steps: int) -> dict[str, Any]:
    start, state = flat(model), _state(model)
    found = loss_slice(model, batch, points=steps, radius=RADIUS, seed=0)
    assert found.directions is not None
    trainable = [p for p in model.parameters() if p.requires_grad]
    copied = copy.deepcopy(model)
    moved = [p for p in copied.parameters() if p.requires_grad]
    origin = torch.cat([p.detach().reshape(-1) for p in trainable]).double()
    direct = np.empty_like(found.loss)
    for i, x in enumerate(found.axes[0]):
        for j, y in enumerate(found.axes[1]):
            point = origin + x * found.directions[0].double() + y * found.directions[1].double()
            vector_to_parameters(point.to(trainable[0].dtype), moved)
            direct[i, j] = bare_loss(copied, batch)
    after = flat(model)
    return {
        "frozen_share": 0.0,
        "error": float(np.abs(found.loss - direct).max() / np.ptp(direct)),
        "drift": 0.0,
        "center_error": float(abs(found.loss[steps // 2, steps // 2] - bare_loss(model, batch)) / np.ptp(direct)),
        "left": float((after - start).abs().max()),
        "state_kept": _state(model) == state,
    }


def _peer_correctness(name: str, model: nn.Module, batch: Batch, steps: int, adapter_only: bool) -> dict[str, Any]:
    """Against the grid that its documentation promises: regular, with the model at its center.

    The tool's own step between neighbors is taken for granted; ``drift`` is how far its points are from that grid, in
    such steps, and ``error`` how far its values are from direct evaluation on it, as a share of its range.
    """
    watch = Watch(copy.deepcopy(model), batch, keep=True)
    start, state, frozen = flat(model), _state(model), _frozen(model)
    surface = np.asarray(PEERS[name].draw(watch, steps, adapter_only), dtype=np.float64)
    places = dict(zip(PEERS[name].order(steps), watch.places, strict=True))
    last, center = steps - 1, steps // 2
    across = [(places[last, j] - places[0, j]) / last for j in range(steps)]
    along = [(places[i, last] - places[i, 0]) / last for i in range(steps)]
    u, v = torch.stack(across).mean(dim=0), torch.stack(along).mean(dim=0)
    copied, direct, drift = copy.deepcopy(model), np.empty_like(surface), 0.0
    for (i, j), place in places.items():
        promised = start + (i - center) * u + (j - center) * v
        drift = max(drift, float((place - promised).norm() / u.norm()))
        vector_to_parameters(promised, copied.parameters())
        direct[i, j] = bare_loss(copied, batch)
    moved = places[0, 0] - start
    after = flat(watch.model)
    return {
        "frozen_share": float(moved[frozen].square().sum() / moved.square().sum()),
        "error": float(np.abs(surface - direct).max() / np.ptp(direct)),
        "drift": drift,
        "center_error": float(abs(surface[center, center] - bare_loss(model, batch)) / np.ptp(direct)),
        "left": float((after - start).abs().max()),
        "state_kept": _state(watch.model) == state,
    }


def _frozen(model: nn.Module) -> Tensor:
    return torch.cat([torch.full((p.numel(),), not p.requires_grad) for p in model.parameters()])


def measure_adaptive(task: dict[str, Any]) -> dict[str, Any]:
    """Adaptive filling of 51×51 points, beside as many bare forward passes, and its error at points of its own."""
    model, batch = build(task["case"])
    space, seed = task["space"], task["seed"]
    bare_loss(model, batch)
    bare = [_bare_seconds(model, batch, 5)]
    began = time.perf_counter()
    found = adaptive_slice(model, batch, points=GRID, radius=RADIUS, space=space, seed=seed)
    seconds = time.perf_counter() - began
    bare.append(_bare_seconds(model, batch, 5))
    points = grid_points(found.slice.axes)
    unseen = np.flatnonzero(~found.filled.evaluated)
    chosen = np.random.default_rng(1000 + seed).choice(unseen, min(HELD_OUT, len(unseen)), replace=False)
    way = "in_place" if space == "adapter" else "merged"
    truth = prepare_slice(model, batch, 2, GRID, RADIUS, None, space, seed, evaluation=way).evaluate(points[chosen])
    extent = float(np.ptp(found.slice.loss[found.slice.finite]))
    errors = np.abs(truth.loss - found.slice.loss.ravel()[chosen]) / extent
    forwards = len(points) * statistics.median(bare)
    return {
        "case": task["case"], "space": space, "seed": seed, "threads": task.get("threads", 1),
        "evaluations": found.num_evaluations, "seconds": seconds, "forwards_seconds": forwards,
        "share": seconds / forwards, "held_out_points": len(chosen), "error": float(errors.max()),
        "bound": found.filled.error_bound / extent, "held_out_error": found.filled.held_out_error / extent,
        "coverage": found.filled.coverage, "num_held_out": found.filled.num_held_out,
        "num_tests": found.filled.num_tests, "converged": found.filled.converged, "way": found.slice.evaluation,
    }  # fmt: skip
