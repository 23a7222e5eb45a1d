"""How the sharpness of one function depends on how its adapter is written, and that the balanced value does not.

    python experiments/gauge.py                      # trains, measures, writes docs/images/gauge.json and gauge.png
    python experiments/gauge.py --draw-only          # the picture from the JSON

A LoRA adapter of the built-in model is trained for a while, in float64 so that rounding plays no part. Then its factors
are replaced, in every layer, by (B·R⁻¹, R·A), which leaves the function: first with R = c·I, then with random R of a
given condition number and determinant 1. Each time the largest eigenvalue of the Hessian is measured twice, in the
coordinates (A, B) and in the balanced ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from landscape.config import RunConfig
from landscape.curvature import top_eigenvalues
from landscape.curvature.gauge import change_gauge
from landscape.data import load_task
from landscape.loss import forward_losses
from landscape.methods import attach
from landscape.methods.adapted import adapted_linears
from landscape.models import load_model
from landscape.plots.matplotlib_renderer import RC
from landscape.plots.style import GRID, INK, MUTED

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SCALES = [float(c) for c in np.logspace(-2, 2, 17)]
CONDITIONS = [float(kappa) for kappa in np.logspace(0, 4, 9)]
DRAWS = 3
"""Random gauges a condition number."""
SETTING: dict[str, Any] = {"model": "tiny", "task": "arithmetic", "learning_rate": 5e-3, "probe_examples": 16}
TOL = 1e-3
IN_COORDINATES, BALANCED = "#d55e00", "#0072b2"


def trained(rank: int, steps: int) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """The model after some steps of AdamW, and a fixed part of its training data."""
    config = RunConfig.parse({**SETTING, "rank": rank, "alpha": rank})
    loaded = load_model(config)
    data = load_task(config, loaded.tokenizer, loaded.kind)
    model = attach(loaded.model, config).double().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=SETTING["learning_rate"])
    for step in range(steps):
        loss = forward_losses(model, data.train.collate(list(range(16 * step, 16 * step + 16)))).mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, [dict(data.probe.collate(list(range(SETTING["probe_examples"]))))]


def random_gauge(rank: int, condition: float, generator: torch.Generator) -> Tensor:
    """(r, r) with singular values evenly over the decades around 1."""
    left, right = (
        torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0] for _ in range(2)
    )
    half = np.log10(condition) / 2
    return left @ torch.diag(torch.logspace(-half, half, rank, dtype=torch.float64)) @ right


def gauges(rank: int) -> Iterator[tuple[dict[str, float], Callable[[], Tensor]]]:
    """What each gauge is called, and its R, drawn anew for every layer."""
    for c in SCALES:
        yield {"c": c}, lambda c=c: c * torch.eye(rank, dtype=torch.float64)
    for condition in CONDITIONS:
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(draw)
            yield {"condition": condition, "draw": draw}, lambda k=condition, g=generator: random_gauge(rank, k, g)


def measure(rank: int, steps: int) -> dict[str, Any]:
    model, batches = trained(rank, steps)
    layers = adapted_linears(model)
    originals = [(layer.A.detach().clone(), layer.B.detach().clone()) for layer in layers]
    rows = []
    for label, make in gauges(rank):
        with torch.no_grad():
            for layer, (A, B) in zip(layers, originals, strict=True):
                for parameter, moved in zip((layer.A, layer.B), change_gauge(A, B, make()), strict=True):
                    parameter.copy_(moved)
        row: dict[str, Any] = dict(label)
        for name, balance in (("adapter", False), ("balanced", True)):
            found = top_eigenvalues(model, batches, tol=TOL, balance=balance)
            row |= {name: float(found.values[0]), f"{name}_converged": found.converged, "loss": found.loss}
            row[f"{name}_matvecs"] = found.num_matvecs
        rows.append(row)
        print("  ".join(f"{key} {value:.8g}" for key, value in row.items()), flush=True)
    return {**SETTING, "rank": rank, "steps": steps, "tol": TOL, "layers": len(layers), "rows": rows}


def draw(result: dict[str, Any]) -> Figure:
    rows = result["rows"]
    loss = [row["loss"] for row in rows]
    spread = float(np.ptp(loss))
    unit = 10.0 ** np.floor(np.log10(spread))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6.6, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key, label in (
            (left, "c", "c, with A → c·A and B → B/c"),
            (right, "condition", "condition number of R, with A → R·A and B → B·R⁻¹"),
        ):
            panel([row for row in rows if key in row], axes, key, label)
        left.set_ylabel("largest Hessian eigenvalue")
        left.legend(loc="upper center", frameon=False, fontsize=7.5)
        figure.suptitle(
            f"One function, {len(rows)} ways to write its adapter: the loss is {np.mean(loss):.4f} in all of them "
            f"(to within {np.ceil(spread / unit) * unit:.0e})",
            fontsize=8.5,
        )
    return figure


def panel(rows: list[dict[str, Any]], axes: Axes, key: str, label: str) -> None:
    x = [row[key] for row in rows]
    style = {"linestyle": "-" if len(set(x)) == len(x) else "none", "linewidth": 1.0, "markersize": 3.6}
    for name, color, marker, text in (
        ("adapter", IN_COORDINATES, "o", "in the coordinates A and B"),
        ("balanced", BALANCED, "s", "balanced"),
    ):
        axes.plot(x, [row[name] for row in rows], color=color, marker=marker, label=text, **style)
    axes.set(xscale="log", yscale="log", xlabel=label)
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(which="both", colors=MUTED)
    axes.xaxis.label.set_color(INK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=IMAGES / "gauge.json", help="the picture goes beside it")
    arguments = parser.parse_args()
    if not arguments.draw_only:
        arguments.output.write_text(json.dumps(measure(arguments.rank, arguments.steps), indent=1) + "\n")
    draw(json.loads(arguments.output.read_text())).savefig(arguments.output.with_suffix(".png"), dpi=200)


if __name__ == "__main__":
    main()
