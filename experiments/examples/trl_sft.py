"""GGPO and dense snapshots in TRL's ``SFTTrainer``: two callbacks.

python experiments/examples/trl_sft.py --steps 20 --store out/sft
"""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from landscape.config import RunConfig
from landscape.methods import GGPOCallback
from landscape.models import load_model
from landscape.training import SnapshotCallback


def main(steps: int, store: str) -> SFTTrainer:
    # Your model and your dataset go here; these need no download.
    loaded = load_model(RunConfig.parse({"model": "tiny"}))
    rows = [{"prompt": f"{a} + {b} = ", "completion": str(a + b)} for a in range(20) for b in range(20)]

    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        args=SFTConfig(
            output_dir=f"{store}-trainer",
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            max_length=64,
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[GGPOCallback(sigma=0.03), SnapshotCallback(store, perturbed=True)],
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--store", default="out/sft")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.store)
    print(f"now try: landscape status {arguments.store}")
