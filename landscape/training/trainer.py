"""The shared trainer: transformers' Trainer with our loss, our data order, and a clean beside the perturbed loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments, get_scheduler

from landscape.config import RunConfig
from landscape.data import Split
from landscape.loss import ExampleLosses, LossKind, count_labels, example_losses, forward_logits, forward_losses
from landscape.methods import PerturbationCallback
from landscape.methods.base import StepRule, global_norm
from landscape.training.checkpoint import load_optimizer, load_parameters, load_rng, load_scheduler
from landscape.training.processes import accelerated, cpu_group
from landscape.training.rng import RngState
from landscape.training.window import StepWindow


class OrderedExamples(Dataset):
    """The training examples in the order in which the run steps on them; an item is an index into the split."""

    def __init__(self, order: np.ndarray) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> int:
        return int(self.order[position])


@dataclass
class StepRecord:
    """What one optimizer step measured; losses in nats a counted label, over the whole window and all processes."""

    loss: float = math.nan
    loss_clean: float | None = None
    grad_norm: float = math.nan
    learning_rate: float = math.nan
    group_rates: dict[str, float] = field(default_factory=dict)
    """Learning rates of the optimizer's groups with a name."""
    tokens: int = 0


class LandscapeTrainer(Trainer):
    """Trains any method; what perturbs is a callback, the rest are rules, and nothing here names a method.

    The loss is `landscape.loss` with the denominator of the whole accumulation window over all processes. Stock
    Trainer is k times off there for models that swallow ``num_items_in_batch`` (T5, BERT).

    Args:
        order: (steps · examples a step,) indices into ``split``.
        perturbation: the callback that perturbs, if the method does.
        build_optimizer: model → optimizer, where it is not AdamW with one learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        *,
        split: Split,
        order: np.ndarray,
        kind: LossKind,
        output_dir: Path,
        perturbation: PerturbationCallback | None = None,
        build_optimizer: Callable[[nn.Module], Optimizer] | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=training_arguments(config, output_dir),
            train_dataset=OrderedExamples(order),
            data_collator=split.collate,
            # Only its presence counts: it tells Trainer that the loss is already normalized over the window.
            compute_loss_func=_window_loss,
            callbacks=[perturbation] if perturbation else None,
        )
        self.remove_callback(PrinterCallback)
        self.run_config = config
        self.kind: LossKind = kind
        self.module: nn.Module = model  # without DDP's wrapper, and never None
        self.perturbation_callback = perturbation
        self.rules: list[StepRule] = []
        self._build_optimizer = build_optimizer
        self.record = StepRecord()
        self._window: list[tuple[dict[str, Tensor], RngState]] = []
        self._window_labels: Tensor | int = 1
        self._losses: list[Tensor] = []
        self._first_losses: list[Tensor] = []
        self.trainable = [p for p in model.parameters() if p.requires_grad]

    # What is stepped on

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)  # type: ignore[arg-type]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Counted labels of the whole window, over all processes; also the place where a new window begins."""
        counts = [count_labels(batch["labels"], self.kind).sum() for batch in batch_samples]
        tokens = [batch["attention_mask"].sum() for batch in batch_samples]
        totals = torch.stack([torch.stack(counts).sum(), torch.stack(tokens).sum()]).to(device)
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
        labels, seen = totals.tolist()  # type: ignore[union-attr]
        self.record = StepRecord(tokens=seen)
        self._window, self._losses, self._first_losses = [], [], []
        self._window_labels = max(labels, 1)
        return totals[0]  # type: ignore[index,return-value]

    # The loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Σ nll of this micro-batch ÷ counted labels of the window, times the processes that DDP averages over.

        What a rule adds to it is differentiated, and not part of the reported loss.
        """
        if self._measures_clean() or self._replays():
            self._window.append((dict(inputs), RngState.capture(self.args.device)))
        loss, total = self.objective(model, inputs)
        self._losses.append(loss)
        return total

    def objective(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """These examples' share of the window's loss, detached, and what is differentiated: that and every penalty."""
        logits = forward_logits(model, inputs, self.kind)
        losses = example_losses(logits, inputs["labels"], self.kind)
        total = self._share(losses)
        loss = total.detach()
        for rule in self.rules:
            penalty = rule.penalty(self.module, inputs, logits)
            if penalty is not None:
                total = total + penalty * (losses.count.sum() / self._window_labels * self.accelerator.num_processes)
        return loss, total

    def _replays(self) -> bool:
        return any(rule.replays for rule in self.rules)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of a micro-batch; after the window's last one, the rules that want other gradients."""
        if all(rule.first_gradient for rule in self.rules):
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            model.train()
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
        if self.accelerator.sync_gradients and self._replays():
            now = RngState.capture(self.args.device)
            window = StepWindow(self, model, self._window)
            found = [rule.gradients(window) for rule in self.rules if rule.replays]
            now.restore()
            self._first_losses = self._losses
            # None: the first pass's gradients stand, and so does its loss.
            self._losses = self._losses if found[0] is None else [found[0]]
        return loss

    def _share(self, losses: ExampleLosses) -> Tensor:
        return losses.nll.sum() / self._window_labels * self.accelerator.num_processes

    def _measures_clean(self) -> bool:
        every = self.run_config.clean_loss_every
        return bool(self.perturbation_callback and every and (self.state.global_step + 1) % every == 0)

    @torch.no_grad()
    def measure_clean_loss(self) -> None:
        """The window's loss at the restored weights, with the dropout that its forward drew.

        The random state is put back, so that measuring changes nothing; and without perturbation it is bitwise the
        loss that was differentiated.
        """
        if self._first_losses:
            self.record.loss_clean = self._reduced(self._first_losses)
            return
        if self.perturbation_callback is None:
            self.record.loss_clean = self.record.loss
            return
        if not self._window:
            return
        now = RngState.capture(self.args.device)
        losses = []
        for inputs, state in self._window:
            state.restore()
            losses.append(self._share(forward_losses(self.module, inputs, self.kind)))
        now.restore()
        self._window = []
        self.record.loss_clean = self._reduced(losses)

    def _reduced(self, losses: list[Tensor]) -> float:
        """Sum over the window; the mean over processes undoes the factor in `_share`."""
        # Added one by one as autograd's window does: the order of a sum is part of its bits.
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, reduction="mean")
        return float(total)  # type: ignore[arg-type]

    # Around the optimizer step

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """The norm before clipping; here the step's loss is known, and a step on nan or inf is not taken."""
        if grad_norm is None:
            grads = [p.grad for p in self.trainable if p.grad is not None]
            grad_norm = global_norm(grads)
        self.record.grad_norm = float(grad_norm)
        self.record.loss = self._reduced(self._losses)
        groups = self.optimizer.param_groups  # type: ignore[union-attr]
        self.record.learning_rate = groups[0]["lr"]
        self.record.group_rates = {group["name"]: group["lr"] for group in groups if "name" in group}
        if self.perturbation_callback is not None:
            self.perturbation_callback.grad_norm = self.record.grad_norm
        if not math.isfinite(self.record.loss):
            for parameter in self.trainable:
                parameter.grad = None
        return self.record.grad_norm

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The method's own optimizer, or AdamW with one learning rate."""
        if self.optimizer is None and self._build_optimizer is not None:
            self.optimizer = self._build_optimizer(self.module)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """transformers' schedule over ``lr_scheduler_steps``; beyond its end it stays at its last value."""
        config = self.run_config
        length = config.lr_scheduler_steps or num_training_steps
        if self.lr_scheduler is None:
            scheduler = get_scheduler(
                config.lr_scheduler_type,
                optimizer=optimizer or self.optimizer,  # type: ignore[arg-type]
                num_warmup_steps=math.ceil(config.warmup_ratio * length),
                num_training_steps=length,
            )
            # A cosine would rise again beyond its end.
            scheduler.lr_lambdas = [_held_at(length, rule) for rule in scheduler.lr_lambdas]  # type: ignore[attr-defined]
            self.lr_scheduler = scheduler
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not counted: walking over all parameters for every micro-batch costs more than it tells."""
        return 0

    # Resuming from our own checkpoint, which holds no pickle

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_parameters(Path(resume_from_checkpoint), model or self.module)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer)  # type: ignore[arg-type]
            load_scheduler(Path(checkpoint), self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_rng(Path(checkpoint), self.args.process_index, self.args.device)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: float32 or bfloat16."""


def training_arguments(config: RunConfig, output_dir: Path) -> TrainingArguments:
    """Ours as transformers'; logging, evaluation and saving are the recorder's, so that nothing is done twice."""
    # transformers calls it activation checkpointing from 5.2x on, and warns about the old name.
    fields = TrainingArguments.__dataclass_fields__
    checkpointing = next(key for key in ("activation_checkpointing", "gradient_checkpointing") if key in fields)
    memory = {checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        max_grad_norm=config.max_grad_norm,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        optim="adamw_torch_fused",
        bf16=config.bf16,
        seed=config.seed,
        use_cpu=cpu_group() or (config.bf16 and not accelerated()),  # transformers wants to be told so for bf16
        ddp_backend="gloo" if cpu_group() else None,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to=config.report_to or "none",
        run_name=output_dir.name,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        log_level="error",
        ddp_find_unused_parameters=False,
        **(memory if config.gradient_checkpointing else {}),
    )


def _window_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
    raise RuntimeError("LandscapeTrainer computes its loss in compute_loss")


def _held_at(length: int, rule: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: rule(min(step, length))
