"""One run from its config to its folder."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import set_seed

from landscape.config import RunConfig
from landscape.data import TaskData, load_task, num_labels
from landscape.errors import StoreError, UsageError
from landscape.methods import PerturbationCallback, Recipe, attach, recipe
from landscape.methods.base import AdamSettings, Start
from landscape.models import LoadedModel, load_model
from landscape.store import Attempt, Run, RunStatus, SnapshotLayout, Store, plan_capture
from landscape.store.leases import Mark
from landscape.store.snapshots import read_base_tensors
from landscape.training.base_loss import BLOCK, BaseLoss, base_loss_path, compute_base_loss
from landscape.training.checkpoint import latest_checkpoint, load_counters, load_perturbation, step_of
from landscape.training.memory import PeakMemory
from landscape.training.order import stored_order
from landscape.training.ownership import begin, halved, owned, release_memory
from landscape.training.processes import world
from landscape.training.recorder import Recorder
from landscape.training.resolve import check, check_shapes, identify, resolve
from landscape.training.rules import RuleCallback, perturbation_state
from landscape.training.trackers import tracked
from landscape.training.trainer import LandscapeTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: ``state`` is done or diverged, ``step`` the optimizer steps that were taken."""

    run_id: str
    run_dir: Path
    state: str
    step: int


def train(
    config: RunConfig,
    store: Store | str | Path,
    *,
    resume: bool = True,
    progress: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    expired: Mark | None = None,
) -> TrainResult:
    """Train one run into the store, or return at once where it is finished already.

    A run that was interrupted continues from its newest checkpoint, bit for bit as if it had not been; a finished one
    whose ``max_steps`` was raised is lengthened. A loss that becomes nan or inf ends the run as ``diverged``, which is
    a result. One that runs out of memory is tried once more with half the micro-batch and twice the accumulation, which
    its status and its attempt record. Started under ``accelerate launch`` or ``torchrun`` it trains on several devices
    (DDP).

    Args:
        store: a store or the folder of one, created if it does not exist.
        resume: false starts over, in a new attempt.
        progress: show a progress bar.
        on_step: called with every step's metric record.
        expired: of another process's lease on this run that a `landscape.store.LeaseWatch` has seen expire.

    Raises:
        UsageError: before anything is loaded or written.
        LeaseHeldError: another process is training this run.
        LeaseLostError: another process has taken this run over while this one was suspended.
        StoreError: the folder cannot be written.
    """
    config = resolve(config)
    check(config)
    check_shapes(config)
    _refuse_sharding()
    run_id, digests = identify(config)
    store = store if isinstance(store, Store) else Store.create(store)
    with world().main_process_first():
        run = store.add(config, run_id, digests)
    if resume and _is_finished(run.status, config):
        return TrainResult(run_id, run.path, run.status.state, run.status.step)
    with owned(run, expired) as mine:
        if resume and _is_finished(mine.status, config):  # by somebody else, in the meantime
            return TrainResult(run_id, run.path, mine.status.state, mine.status.step)
        state, step = _train_owned(config, store, mine, digests, resume, progress, on_step)
    return TrainResult(run_id, run.path, state, step)


def _train_owned(
    config: RunConfig,
    store: Store,
    run: Run,
    digests: dict[str, str],
    resume: bool,
    progress: bool,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> tuple[str, int]:
    """State and step in which the run ended; what went wrong is raised, and in its status."""
    overrides = run.status.overrides if resume else {}
    if world().is_main_process:
        run.update_config(config)
        run.set_status(
            state="running",
            max_steps=config.max_steps,
            host=socket.gethostname(),
            pid=os.getpid(),
            error=None,
            environment=environment(),
            overrides=overrides,
        )
    memory = PeakMemory()
    options: dict[str, Any] = {"resume": resume, "progress": progress, "on_step": on_step}
    try:
        state, step = _train_or_halve(config, store, run, digests, overrides, options)
    except BaseException as error:
        if world().is_main_process:
            interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
            tail = "".join(traceback.format_exception(error)).strip()[-2000:]
            # On a full disk this fails too, and must not hide why.
            with contextlib.suppress(StoreError):
                peak = memory.read(run.status.peak_memory)
                run.set_status(state="interrupted" if interrupted else "failed", error=tail, peak_memory=peak)
        raise
    if world().is_main_process:
        run.compact()
        run.set_status(state=state, step=step, peak_memory=memory.read(run.status.peak_memory))
    return state, step


def _train_or_halve(
    config: RunConfig,
    store: Store,
    run: Run,
    digests: dict[str, str],
    overrides: dict[str, Any],
    options: dict[str, Any],
) -> tuple[str, int]:
    """`_train`; once more with half the micro-batch and the same effective batch where memory runs out."""
    try:
        return _train(config.replace(**overrides), store, run, digests, overrides=overrides, **options)
    except Exception as error:
        smaller = None if overrides else halved(config, error)
        if smaller is None:
            raise
        message = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    # Behind the handler, whose traceback holds the model.
    release_memory()
    logger.warning("run %s: out of memory (%s); once more with %s", run.id, message, smaller)
    run.set_status(overrides=smaller)
    return _train(config.replace(**smaller), store, run, digests, overrides=smaller, **options)


def prepare_base_loss(config: RunConfig, store: Store | str | Path, *, progress: bool = False) -> Path | None:
    """Fill the shared table of base losses for this run's batches; sweeps do so once before their runs start.

    Returns:
        The table's path, or None where there is no base loss: it is switched off, or the head is new.
    """
    config = resolve(config)
    store = store if isinstance(store, Store) else Store.create(store)
    _, digests = identify(config)
    if not config.base_loss:
        return None
    loaded = load_model(config, num_labels=num_labels(config))
    data = load_task(config, loaded.tokenizer, loaded.kind)
    if loaded.head_is_new:
        return None
    _base_loss(config, store, digests, loaded, data, _order(config, store, data, 1, BLOCK), progress)
    return base_loss_path(store.base_loss_dir, config, digests["model"], data.train)


def environment() -> dict[str, Any]:
    """What bit-identical repetition needs to be equal: versions, machine, threads, device."""
    packages = ("torch", "transformers", "peft", "accelerate", "numpy")
    cuda = torch.cuda.is_available()
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "processes": world().num_processes,
    }


def _train(
    config: RunConfig,
    store: Store,
    run: Run,
    digests: dict[str, str],
    *,
    overrides: dict[str, Any],
    resume: bool,
    progress: bool,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> tuple[str, int]:
    loaded = load_model(config, num_labels=num_labels(config))
    data = load_task(config, loaded.tokenizer, loaded.kind)
    order = _order(config, store, data, world().num_processes)
    base_loss = None
    if config.base_loss and not loaded.head_is_new:
        blocks = _order(config, store, data, world().num_processes, BLOCK)
        with world().main_process_first():
            base_loss = _base_loss(config, store, digests, loaded, data, blocks, progress)
    checkpoint = latest_checkpoint(run.checkpoint_dir) if resume else None
    resume_step = checkpoint[1] if checkpoint else 0
    world().wait_for_everyone()

    set_seed(config.seed)
    made = recipe(config)
    model = attach(loaded.model, config)
    rewritten = {} if checkpoint else _initialize(model, config, made, data, order)
    if world().is_main_process and hasattr(model, "peft_config"):
        model.peft_config["default"].save_pretrained(str(run.path))  # type: ignore[index,union-attr]
    perturbation = _perturbation(made, config.seed)
    trainer = LandscapeTrainer(
        model,
        config,
        split=data.train,
        order=order,
        kind=loaded.kind,
        output_dir=run.path,
        perturbation=perturbation,
        build_optimizer=_optimizer(made, config),
    )
    attempt: Attempt | None = None
    if world().is_main_process:
        attempt, own = begin(run, resume=checkpoint is not None, overrides=overrides)
        checkpoint = own and (own, step_of(own))
        resume_step = checkpoint[1] if checkpoint else 0
        _keep_base_tensors(attempt, store, model, rewritten, resumed=checkpoint is not None)
    plan = plan_capture(config.capture, config.max_steps, _record_bytes(config, model))
    bar = tqdm(total=config.max_steps, initial=resume_step, desc=run.id, disable=not progress or attempt is None)
    recorder = Recorder(
        trainer,
        config,
        data,
        order,
        run=run,
        attempt=attempt,
        plan=plan,
        base_loss=base_loss,
        tokens=load_counters(checkpoint[0])["tokens"] if checkpoint else 0,
        on_step=lambda line: _advance(bar, line, on_step),
    )
    state = load_perturbation(checkpoint[0]) if checkpoint else {}
    if perturbation is not None and checkpoint:
        trainer.add_callback(_after_build(perturbation, perturbation_state(state)))
    trainer.add_callback(RuleCallback(trainer, made, config.seed, state))
    trainer.add_callback(recorder)
    try:
        if resume_step < config.max_steps:
            with tracked(config.report_to if attempt is not None else ()):
                trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
    finally:
        if perturbation is not None:
            perturbation.close()
        recorder.close()
        bar.close()
        if attempt is not None:
            attempt.close()
    return ("diverged" if recorder.diverged else "done"), max(trainer.state.global_step, resume_step)


def _order(config: RunConfig, store: Store, data: TaskData, num_processes: int, multiple: int = 1) -> np.ndarray:
    """As many examples as the run steps on, rounded up to a multiple."""
    step = config.per_device_train_batch_size * config.gradient_accumulation_steps * num_processes
    seed = config.seed if config.data_seed is None else config.data_seed
    length = -(-config.max_steps * step // multiple) * multiple
    with world().main_process_first():
        return stored_order(store.orders_dir, len(data.train), seed, length)


def _base_loss(
    config: RunConfig,
    store: Store,
    digests: dict[str, str],
    loaded: LoadedModel,
    data: TaskData,
    blocks: np.ndarray,
    progress: bool,
) -> BaseLoss:
    device = world().device
    loaded.model.to(device)  # type: ignore[arg-type]
    return compute_base_loss(
        base_loss_path(store.base_loss_dir, config, digests["model"], data.train),
        loaded.model,
        data.train,
        blocks,
        loaded.kind,
        batch_size=config.per_device_eval_batch_size,
        bf16=config.bf16,
        progress=progress,
    )


def _perturbation(made: Recipe, seed: int) -> PerturbationCallback | None:
    factory = made.method.perturbation
    if factory is None:
        return None
    return PerturbationCallback(lambda model, optimizer: factory(model, optimizer, made.arguments, seed))


def _optimizer(made: Recipe, config: RunConfig) -> Callable[[torch.nn.Module], torch.optim.Optimizer] | None:
    factory = made.adapter.optimizer
    if factory is None:
        return None
    betas = (config.adam_beta1, config.adam_beta2)
    settings = AdamSettings(config.learning_rate, betas, config.adam_epsilon, config.weight_decay)
    return lambda model: factory(model, made.adapter_arguments, settings)


def _initialize(
    model: torch.nn.Module, config: RunConfig, made: Recipe, data: TaskData, order: np.ndarray
) -> dict[str, torch.Tensor]:
    """The method's own initialization; returns the base tensors that it rewrote."""
    if made.adapter.initialize is None:
        return {}
    model.to(world().device)

    def batches(size: int) -> Iterator[dict[str, torch.Tensor]]:
        return (data.train.collate(order[i : i + size].tolist()) for i in range(0, len(order), size))

    with torch.random.fork_rng(devices=[]):
        return made.adapter.initialize(model, Start(made.adapter_arguments, config.seed, batches))


def _keep_base_tensors(
    attempt: Attempt, store: Store, model: torch.nn.Module, rewritten: dict[str, torch.Tensor], *, resumed: bool
) -> None:
    """Snapshots hold the adapter alone: a base that the method rewrote is kept beside them, and resumed from there."""
    if not resumed:
        if rewritten:
            attempt.write_base_tensors(rewritten)
        return
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in read_base_tensors(attempt.path, store.path).items():
            named[name].copy_(tensor)


def _after_build(perturbation: PerturbationCallback, state: dict[str, Any]) -> Any:
    """A callback that restores the perturbation's state once its own callback has built it."""
    from transformers import TrainerCallback

    class RestorePerturbation(TrainerCallback):
        def on_train_begin(self, args: Any, state_: Any, control: Any, **kwargs: Any) -> None:
            if perturbation.perturbation is not None:
                perturbation.perturbation.load_state_dict(state)

    return RestorePerturbation()


def _record_bytes(config: RunConfig, model: torch.nn.Module) -> int:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    size = SnapshotLayout.from_tensors(trainable).record_bytes
    averages = sum(method.averages for method, _ in recipe(config).parts)
    return size * (1 + averages + config.capture.moments)


def _advance(bar: Any, line: dict[str, Any], on_step: Callable[[dict[str, Any]], None] | None) -> None:
    loss = line["loss_clean"] if line["loss_clean"] is not None else line["loss_perturbed"]
    bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
    bar.update(1)
    if on_step is not None:
        on_step(line)


def _is_finished(status: RunStatus, config: RunConfig) -> bool:
    return status.state == "diverged" or (status.state == "done" and status.step >= config.max_steps)


def _refuse_sharding() -> None:
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() == "true":
            raise UsageError(f"{name} is not supported: parameters would be sharded; use DDP (accelerate launch)")
