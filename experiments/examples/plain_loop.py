"""GGPO or MGPO in a plain PyTorch loop, on any PEFT model: three calls around what you have.

python experiments/examples/plain_loop.py --steps 20
"""

import argparse

import torch

from landscape.config import RunConfig
from landscape.data import load_task
from landscape.loss import forward_losses
from landscape.methods import GGPO, MGPO, attach
from landscape.models import load_model


def main(steps: int, method: str) -> list[float]:
    # Any PEFT model and any batches do; these need no download.
    config = RunConfig.parse({"model": "tiny", "task": "arithmetic", "rank": 8, "alpha": 16})
    loaded = load_model(config)
    data = load_task(config, loaded.tokenizer, loaded.kind)
    model = attach(loaded.model, config).train()

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    perturbation = MGPO(model, optimizer, rho=0.05) if method == "mgpo" else GGPO(model, sigma=0.03)

    losses = []
    for step in range(steps):
        batch = data.train.collate(list(range(16 * step, 16 * step + 16)))
        perturbation.perturb()
        loss = forward_losses(model, batch).mean
        loss.backward()
        perturbation.restore()  # before clipping, if you clip
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        print(f"step {step + 1:3d}  loss {losses[-1]:.4f}  perturbation {perturbation.norm:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--method", choices=["mgpo", "ggpo"], default="mgpo")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.method)
