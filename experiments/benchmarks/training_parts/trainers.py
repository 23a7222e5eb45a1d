"""The trainers that are timed: each variant's own model, method and recorder, on batches that all cost the same."""

from __future__ import annotations

import argparse
import atexit
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from landscape.config import RunConfig
from landscape.loss import forward_losses
from landscape.methods import Recipe, attach, recipe
from landscape.methods.adapted import adapted_linears
from landscape.methods.base import AdamSettings, Start, noise_generator

from .variants import VARIANTS

LLAMA_2_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "use_cache": False,
}  # fmt: skip


def run_config(arguments: argparse.Namespace, variant: dict[str, Any]) -> RunConfig:
    """The run of one variant; everything that is not its own is off."""
    common = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "rank": arguments.rank,
        "alpha": 2.0 * arguments.rank,
        "learning_rate": 1e-4,
        "max_steps": arguments.steps,
        # Some methods grow or prune along the schedule: every round is at its beginning.
        "lr_scheduler_steps": 1000,
        "per_device_train_batch_size": arguments.batch,
        "gradient_accumulation_steps": arguments.accumulation,
        "max_length": arguments.length,
        "clean_loss_every": 0,
        "base_loss": False,
        "eval_steps": 0,
        "save_steps": 0,
        "capture": "none",
        "data_seed": 0,
    }
    return RunConfig.parse({**common, **{key: value for key, value in variant.items() if key != "loop"}})


def synthetic_batch(vocabulary: int, batch: int, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Full-length random tokens: every step costs the same."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (batch, length), generator=generator).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


class FixedSplit:
    """A training split whose every batch is `synthetic_batch`."""

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length

    def __len__(self) -> int:
        return 10_000

    def collate(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """As `landscape.data.Split.collate`."""
        return synthetic_batch(self.vocabulary, len(indices), self.length, torch.device("cpu"))


def build_model(arguments: argparse.Namespace, config: RunConfig) -> torch.nn.Module:
    """The pretrained preset, or random weights of a published shape; on the device, with the method's adapter, started
    as the method starts it.
    """
    if arguments.shapes:
        from transformers import LlamaConfig, LlamaForCausalLM

        dtype = getattr(torch, arguments.dtype)
        with torch.device(arguments.device), torch.random.fork_rng(devices=[]):
            torch.set_default_dtype(dtype)
            model: torch.nn.Module = LlamaForCausalLM(LlamaConfig(**LLAMA_2_7B))
            torch.set_default_dtype(torch.float32)
    else:
        from landscape.models import load_model

        model = load_model(config).model  # type: ignore[assignment]
    model = attach(model.to(arguments.device), config).train()
    made = recipe(config)
    if made.adapter.initialize is not None:
        split = FixedSplit(vocabulary_size(model), arguments.length)

        def batches(size: int) -> Iterator[dict[str, torch.Tensor]]:
            return (split.collate(list(range(size))) for _ in range(100))

        made.adapter.initialize(model, Start(made.adapter_arguments, config.seed, batches))
    return model


def make_stepper(arguments: argparse.Namespace, name: str) -> Callable[[int], list[float]]:
    """A function that takes n steps of this variant and returns each one's seconds."""
    variant = VARIANTS[name]
    config = run_config(arguments, variant)
    model = build_model(arguments, config)
    if variant.get("loop"):
        return bare_loop(arguments, model)
    return shared_trainer(config, model, arguments.length)


def vocabulary_size(model: Any) -> int:
    """From the model's config."""
    return int(model.config.vocab_size)


def bare_loop(arguments: argparse.Namespace, model: torch.nn.Module) -> Callable[[int], list[float]]:
    """What one would write by hand: forward, loss, backward, AdamW, and the loss read once a step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    device = parameters[0].device
    vocabulary = vocabulary_size(model)

    def steps(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            total = torch.zeros((), device=device)
            for _ in range(arguments.accumulation):
                batch = synthetic_batch(vocabulary, arguments.batch, arguments.length, device)
                loss = forward_losses(model, batch, "causal").mean / arguments.accumulation
                loss.backward()
                total += loss.detach()
            optimizer.step()
            optimizer.zero_grad()
            float(total)
            seconds.append(time.perf_counter() - start)
        return seconds

    return steps


def shared_trainer(config: RunConfig, model: torch.nn.Module, length: int) -> Callable[[int], list[float]]:
    """The real trainer and recorder, into a store of its own."""
    import numpy as np

    from landscape.store import SnapshotLayout, Store, plan_capture
    from landscape.training import LandscapeTrainer, resolve
    from landscape.training.recorder import Recorder
    from landscape.training.rules import RuleCallback

    vocabulary = vocabulary_size(model)
    data: Any = type("Data", (), {"train": FixedSplit(vocabulary, length)})()
    rounds = iter(range(10**6))
    folder = Path(tempfile.mkdtemp(prefix="landscape-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def steps(count: int) -> list[float]:
        resolved = resolve(config.replace(max_steps=count))
        made = recipe(resolved)
        order = np.arange(count * config.per_device_train_batch_size * config.gradient_accumulation_steps)
        trainer = LandscapeTrainer(
            model, resolved, split=data.train, order=order, kind="causal", output_dir=folder,
            perturbation=perturbation(made), build_optimizer=optimizer(made, resolved),
        )  # fmt: skip
        trainer.add_callback(RuleCallback(trainer, made, config.seed, {}))
        run = Store.create(folder).add(resolved, f"bench-{next(rounds)}", {})
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        plan = plan_capture(config.capture, count, SnapshotLayout.from_tensors(trainable).record_bytes)
        stamps: list[float] = []
        attempt = run.begin_attempt()
        recorder = QuietRecorder(
            trainer, resolved, data, order, run=run, attempt=attempt, plan=plan,
            base_loss=None, on_step=lambda _: stamps.append(time.perf_counter()),
        )  # fmt: skip
        trainer.add_callback(recorder)
        trainer.train()
        recorder.close()
        attempt.close()
        # From one step's record to the next: everything between is in it, capture too.
        return [later - earlier for earlier, later in itertools.pairwise(stamps)]

    class QuietRecorder(Recorder):
        """Evaluates nothing, not even at the ends."""

        def _evaluate(self, step: int) -> None: ...

    return steps


def perturbation(made: Recipe) -> Any:
    """The method's perturbation as the trainer takes it."""
    from landscape.methods import PerturbationCallback

    factory = made.method.perturbation
    if factory is None:
        return None
    return PerturbationCallback(lambda model, optimizer: factory(model, optimizer, made.arguments, 0))


def optimizer(made: Recipe, config: RunConfig) -> Callable[[torch.nn.Module], torch.optim.Optimizer] | None:
    """The adapter's own optimizer, or None for AdamW with one learning rate."""
    factory = made.adapter.optimizer
    if factory is None:
        return None
    betas = (config.adam_beta1, config.adam_beta2)
    settings = AdamSettings(config.learning_rate, betas, config.adam_epsilon, config.weight_decay)
    return lambda model: factory(model, made.adapter_arguments, settings)


def draw_floor(model: torch.nn.Module) -> float:
    """Seconds to draw one standard normal for every adapted weight: what GGPO cannot do without."""
    layers = adapted_linears(model)
    buffers = [torch.empty(layer.shape, device=layer.B.device, dtype=torch.float32) for layer in layers]
    start = time.perf_counter()
    for i, buffer in enumerate(buffers):
        buffer.normal_(generator=noise_generator(buffer.device, 0, 0, i))
    if buffers[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
