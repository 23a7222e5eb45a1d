"""A rebound noticed in your own ``transformers.Trainer``: here one that a learning-rate shock plants.

python experiments/examples/watch.py --steps 300 --store out/watched
"""

import argparse
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from landscape.config import RunConfig
from landscape.data import load_task
from landscape.methods import attach
from landscape.models import load_model
from landscape.training import EpisodeWatchCallback, SnapshotCallback


class LearningRateShock(TrainerCallback):
    """Multiplies the learning rate for a few steps, so that there is something to notice."""

    def __init__(self, at: int, length: int, factor: float) -> None:
        self.steps, self.factor = range(at, at + length), factor

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The schedule sets it anew after each step."""
        if state.global_step in self.steps:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] *= self.factor


def main(steps: int, store: str, *, shock: float = 30, stop: bool = False, logging_steps: int = 1, seed: int = 0):
    # Any PEFT model and any dataset do; these need no download.
    config = RunConfig.parse({"model": "tiny", "task": "arithmetic", "rank": 8, "alpha": 16, "seed": seed})
    loaded = load_model(config)
    data = load_task(config, loaded.tokenizer, loaded.kind)

    watch = EpisodeWatchCallback(stop=stop, patience=20 if stop else 0)
    trainer = Trainer(
        model=attach(loaded.model, config),
        args=TrainingArguments(
            output_dir=f"{store}-trainer",
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=logging_steps,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            seed=seed,
        ),
        train_dataset=list(range(len(data.train))),  # type: ignore[arg-type]
        data_collator=data.train.collate,
        callbacks=[
            watch,
            SnapshotCallback(store, capture={"policy": "events", "ring": 20, "budget_gb": 0.01}),
            LearningRateShock(steps * 2 // 3, 5, shock),
        ],
    )
    watch.watch(trainer)  # every step's loss, not only what is logged; without it logging_steps sets the pace
    trainer.train()
    return trainer, watch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--store", default="out/watched")
    parser.add_argument("--shock", type=float, default=30)
    parser.add_argument("--stop", action="store_true")
    arguments = parser.parse_args()
    _, found = main(arguments.steps, arguments.store, shock=arguments.shock, stop=arguments.stop)
    for event in found.events:
        print(f"noticed at step {event.step}, rising since {event.since:g}, back at {event.over}")
    print(f"now try: landscape status {arguments.store}")
