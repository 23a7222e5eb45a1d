"""Runs with realistic curves but no training behind them: rebounds, divergence, seeds, torn ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from landscape.config import RunConfig
from landscape.plots import RunData
from landscape.store import Store

STEPS = 240


def config(**changes: Any) -> dict[str, Any]:
    """A resolved config as plain values."""
    values = {"method": "lora", "rank": 8, "learning_rate": 5e-4, "seed": 0, "max_steps": STEPS, "alpha": 16} | changes
    if values["method"] == "full":
        values.update(rank=None, alpha=None, lora_dropout=None, target_modules=None)
    elif values["alpha"] == "r":
        values["alpha"] = float(values["rank"])
    return RunConfig.parse(values).model_dump(mode="json")


def curves(settings: dict[str, Any], diverges_at: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Step metrics and evaluations: exponential descent, a rebound that grows with rank and rate, batch noise."""
    steps_total = settings["max_steps"]
    batch = np.random.default_rng(1000 + settings["seed"])
    noise = np.random.default_rng(settings["seed"] * 17 + (settings["rank"] or 1) + len(settings["method"]))
    steps = np.arange(1, steps_total + 1)
    strength = {"full": 1.1, "mgpo": 0.12, "ggpo": 0.3}.get(settings["method"], 1.0)
    strength *= ((settings["rank"] or 64) / 64) ** 0.7 * settings["learning_rate"] / 5e-4
    rebound = 0.55 * strength * np.exp(-0.5 * ((steps / steps_total - 0.42) / 0.07) ** 2)
    speed = 14 * (settings["learning_rate"] / 5e-4) ** 0.4
    trend = 0.35 + 1.9 * np.exp(-speed * steps / steps_total) + rebound
    hardness = 0.10 * batch.standard_normal(steps_total)
    clean = trend + hardness + 0.02 * noise.standard_normal(steps_total)
    perturbed = clean + (0.03 if settings["method"] in ("mgpo", "ggpo") else 0.0)
    base = 2.3 + hardness
    if diverges_at is not None:
        steps = steps[:diverges_at]
        clean = clean[:diverges_at].copy()
        clean[-12:-1] *= np.geomspace(1.1, 9.0, 11)
        clean[-1] = np.nan
        perturbed, base = clean.copy(), base[:diverges_at]
    perturbation = 0.05 if settings["method"] in ("mgpo", "ggpo") else 0.0
    metrics = pd.DataFrame(
        {
            "step": steps, "epoch": steps / 120, "tokens": steps * 512, "learning_rate": settings["learning_rate"],
            "loss_clean": clean, "loss_perturbed": perturbed, "loss_base": base, "grad_norm": 1.0,
            "perturbation_norm": perturbation, "adapter_norm": np.sqrt(steps), "seconds": 0.02,
        }
    )  # fmt: skip
    rows = []
    for step in range(0, len(steps) + 1, 10):
        level = trend[max(step - 1, 0)] if step else 2.3
        for split, extra in (("eval", 0.02 + 0.25 * step / steps_total), ("probe", 0.0)):
            rows.append(
                {
                    "step": step, "split": split, "loss": level + extra + 0.01 * noise.standard_normal(),
                    "standard_error": 0.03, "num_examples": 256, "num_labels": 1024,
                }
            )  # fmt: skip
    return metrics, pd.DataFrame(rows)


def sharpness(settings: dict[str, Any], every: int = 20) -> pd.DataFrame:
    """A progressively sharpening run with one eigenvalue that did not converge."""
    steps = np.arange(0, settings["max_steps"] + 1, every)
    top = 4 + 30 * (1 - np.exp(-steps / 80)) * (0.5 if settings["method"] == "mgpo" else 1.0)
    rows = [
        {
            "step": int(step), "index": index, "value": float(value) / (index + 1), "residual": 1e-3,
            "num_matvecs": 24, "converged": not (index == 0 and step == 40), "space": "adapter", "split": "probe",
            "num_examples": 128, "num_labels": 512, "loss": 1.0, "seconds": 0.4, "tol": 1e-3, "seed": 0,
        }
        for step, value in zip(steps, top, strict=True)
        for index in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def run(diverges_at: int | None = None, sharp: bool = False, **changes: Any) -> RunData:
    """One run; ``diverges_at`` cuts it with a rise and a NaN."""
    settings = config(**changes)
    metrics, evaluations = curves(settings, diverges_at)
    method, rank, rate, seed = (settings[key] for key in ("method", "rank", "learning_rate", "seed"))
    return RunData(
        run_id=f"{method}-r{rank}-lr{rate:g}-s{seed}-0123456789",
        config=settings,
        metrics=metrics,
        evaluations=evaluations,
        sharpness=sharpness(settings) if sharp else None,
        state="diverged" if diverges_at else "done",
        step=len(metrics),
        max_steps=settings["max_steps"],
    )


def sweep(
    methods: tuple[str, ...] = ("full", "lora", "mgpo"),
    ranks: tuple[int, ...] = (16, 32, 64, 128),
    rates: tuple[float, ...] = (5e-4,),
    seeds: int = 3,
    sharp: bool = False,
) -> list[RunData]:
    """A grid of runs with alpha = r; full fine-tuning once a rate and seed. One LoRA run at the top rank diverges."""
    runs = []
    for rate in rates:
        for method in methods:
            for rank in (None,) if method == "full" else ranks:
                for seed in range(seeds):
                    worst = method == "lora" and rank == max(ranks) and seed == seeds - 1 and rate == max(rates)
                    settings = {"method": method, "rank": rank, "alpha": "r", "learning_rate": rate, "seed": seed}
                    runs.append(run(diverges_at=150 if worst else None, sharp=sharp, **settings))
    return runs


def write(runs: list[RunData], path: Path) -> Store:
    """A real store that holds the runs."""
    store = Store.create(path)
    for data in runs:
        settings = RunConfig.parse(dict(data.config))
        folder = store.add(settings, data.run_id, {"data": "d" * 16, "model": "m" * 16})
        attempt = folder.begin_attempt()
        for frame in (data.metrics, data.evaluations):
            for record in frame.to_dict("records"):
                attempt.log(record)
        attempt.close()
        folder.set_status(state=data.state, step=data.step, error=data.error)
        for name, frame in (("sharpness", data.sharpness), ("gap", data.gap)):
            if frame is not None:
                folder.analysis_dir.mkdir(exist_ok=True)
                frame.to_parquet(folder.analysis_dir / f"{name}.parquet")
        if data.state == "done":
            folder.compact()
    return store
