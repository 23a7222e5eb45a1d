"""MGPO and dense snapshots in your own ``transformers.Trainer``: two callbacks.

python experiments/examples/hf_trainer.py --steps 20 --store out/hf
"""

import argparse

from transformers import Trainer, TrainingArguments

from landscape.config import RunConfig
from landscape.data import load_task
from landscape.methods import MGPOCallback, attach
from landscape.models import load_model
from landscape.training import SnapshotCallback


def main(steps: int, store: str) -> Trainer:
    # Any PEFT model and any dataset do; these need no download.
    config = RunConfig.parse({"model": "tiny", "task": "arithmetic", "rank": 8, "alpha": 16})
    loaded = load_model(config)
    data = load_task(config, loaded.tokenizer, loaded.kind)

    trainer = Trainer(
        model=attach(loaded.model, config),
        args=TrainingArguments(
            output_dir=f"{store}-trainer",
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            max_grad_norm=0,  # the papers clip nothing; with clipping on, call perturbation.watch(trainer)
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        ),
        train_dataset=list(range(len(data.train))),  # type: ignore[arg-type]
        data_collator=data.train.collate,
        callbacks=[MGPOCallback(rho=0.05), SnapshotCallback(store, perturbed=True)],
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--store", default="out/hf")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.store)
    print(f"now try: landscape status {arguments.store}")
