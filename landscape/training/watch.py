"""Rebounds noticed while training: `EventWatch` in our trainer, `EpisodeWatchCallback` in anyone's.

>>> trainer = Trainer(model=..., callbacks=[EpisodeWatchCallback(stop=True, patience=200)])
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from landscape.episodes.online import THRESHOLD, OnlineWatch
from landscape.errors import UsageError

TAG = "episode_warning"
"""Key in the log and column in the store of a step at which a rebound was noticed; value: since which step it rises."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchEvent:
    """A rebound that was noticed while it happened."""

    step: int
    """When it was noticed."""
    since: float
    """From which step on the loss was seen to rise."""
    over: int | None = None
    """When the loss was back; None while it is not."""


class EventWatch:
    """Turns `OnlineWatch`'s state into events: one for each rebound, until the loss is back."""

    def __init__(self, warmup_steps: float = 0, threshold: float = THRESHOLD) -> None:
        self.events: list[WatchEvent] = []
        self._watch = OnlineWatch(warmup_steps, threshold)

    @property
    def current(self) -> WatchEvent | None:
        """The rebound that is going on."""
        return self.events[-1] if self.events and self.events[-1].over is None else None

    def update(self, step: int, loss: float, learning_rate: float | None = None) -> WatchEvent | None:
        """Take the next loss; the event if one begins here.

        Args:
            step: optimizer step at which the loss was measured.
            learning_rate: of that step, where it is known: no rise counts while it rises.
        """
        seen = self._watch.update(step, loss, learning_rate)
        if seen.warning and self.current is None:
            self.events.append(WatchEvent(step, step if seen.since is None else seen.since))
            return self.events[-1]
        if not seen.warning and self.current is not None:
            self.events[-1] = replace(self.events[-1], over=step)
        return None

    def resume(self) -> None:
        """Compare no later loss with an earlier one: training goes on with another optimizer state or other batches."""
        self._watch.resume()

    def replay(self, losses: Iterable[tuple[int, float] | tuple[int, float, float | None]]) -> None:
        """Take the losses of a run that is resumed: steps, losses and, where known, learning rates."""
        for step, loss, *rate in losses:
            self.update(step, loss, rate[0] if rate else None)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later answers depend on, as JSON holds it."""
        return {"watch": self._watch.state_dict(), "events": [asdict(event) for event in self.events]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self._watch.load_state_dict(state["watch"])
        self.events = [WatchEvent(**event) for event in state["events"]]


class EpisodeWatchCallback(TrainerCallback, ExportableState):
    """Warns when the training loss climbs back, in any transformers or TRL Trainer, and can stop the run.

    The loss watched is the one that the Trainer logs: a mean over ``logging_steps`` steps. Each rebound gives one
    warning. Its log entry (``trainer.state.log_history``, ``trainer_state.json``) gets the key ``episode_warning``
    with the step since which the loss rises, and a `landscape.training.SnapshotCallback` in the same Trainer keeps the
    snapshots around it. What was seen is saved with checkpoints, and a resumed run goes on from it; across a resume
    without the optimizer's state (``save_only_model``) or on batches from the start (``ignore_data_skip``) nothing is
    compared, and no rise counts while the learning rate rises. Of several processes the first decides.

    Args:
        warmup_steps: steps at the beginning that are not watched; None: the Trainer's own warm-up.
        threshold: noise units of a rise; the default gives a false alarm in 2 to 5 % of runs (docs/episodes.md).
        stop: end the training when a rebound has lasted ``patience`` optimizer steps after its warning.
        patience: 0 stops at the warning.

    Attributes:
        events: every rebound so far.

    Raises:
        UsageError: a negative number, or patience without ``stop``.
    """

    def __init__(
        self, *, warmup_steps: float | None = None, threshold: float = THRESHOLD, stop: bool = False, patience: int = 0
    ) -> None:
        if (warmup_steps or 0) < 0 or patience < 0:
            raise UsageError(f"warmup_steps, patience: {warmup_steps!r} and {patience!r} must not be negative")
        if not threshold > 0:
            raise UsageError(f"threshold: {threshold!r} must be greater than 0")
        if patience and not stop:
            raise UsageError(f"patience: {patience!r} has no effect without stop=True")
        self.warmup_steps = warmup_steps
        self.threshold = threshold
        self.stop = stop
        self.patience = patience
        self._watch = EventWatch(warmup_steps or 0, threshold)
        self._each_step = False
        self._losses: list[Tensor] = []
        self._untold: WatchEvent | None = None
        self._stopping = False

    @property
    def events(self) -> tuple[WatchEvent, ...]:
        """Every rebound so far; on the first process only."""
        return tuple(self._watch.events)

    def watch(self, trainer: Trainer) -> None:
        """Look at the loss of every optimizer step, whatever ``logging_steps`` is.

        A rebound is then noticed earlier, and not-a-number at once. The price is one wait for the device a step. The
        step of a warning is logged besides those that ``logging_steps`` asks for, and trackers get the tag too.
        """
        original, handler = trainer.training_step, trainer.callback_handler

        def training_step(*args: Any, **kwargs: Any) -> Tensor:
            loss = original(*args, **kwargs)
            # Not `self`: resuming may replace the callbacks by restored ones.
            for callback in handler.callbacks:
                if isinstance(callback, EpisodeWatchCallback):
                    callback._each_step = True
                    callback._losses.append(loss.detach())
            return loss

        trainer.training_step = training_step  # type: ignore[method-assign]
        if self in handler.callbacks:  # before the trackers, which then see the tag
            handler.callbacks.remove(self)
            handler.callbacks.insert(0, self)

    # What transformers saves with a checkpoint

    def state(self) -> dict[str, Any]:
        """Arguments and what was seen so far, for ``trainer_state.json``."""
        arguments = {key: getattr(self, key) for key in ("warmup_steps", "threshold", "stop", "patience")}
        return {"args": arguments, "attributes": {"seen": self.seen}}

    @property
    def seen(self) -> dict[str, Any]:
        """What was seen so far, as JSON holds it; can be set."""
        return self._watch.state_dict()

    @seen.setter
    def seen(self, value: Mapping[str, Any]) -> None:
        self._watch.load_state_dict(value)

    # Trainer's events

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew, or go on from the checkpoint's state; from its log where it was saved without this callback."""
        warmup = args.get_warmup_steps(state.max_steps) if self.warmup_steps is None else self.warmup_steps
        name = type(self).__name__
        self._watch = EventWatch(warmup, self.threshold)
        self._losses, self._untold, self._stopping = [], None, False
        saved = state.stateful_callbacks.get(name)
        if state.global_step and saved:
            self.seen = (saved[-1] if isinstance(saved, list) else saved)["attributes"]["seen"]
        elif state.global_step:
            logged = (entry for entry in state.log_history if "loss" in entry)
            self._watch.replay((entry["step"], float(entry["loss"]), entry.get("learning_rate")) for entry in logged)
        if state.global_step and (args.save_only_model or args.ignore_data_skip):
            # The loss may jump here: a new optimizer, or batches from the start again.
            self._watch.resume()
        # transformers fails to save a callback that the checkpoint it resumed from does not know.
        state.stateful_callbacks.setdefault(name, self.state())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """With `watch`: judge the step's loss. With several processes: stop where the first one says so."""
        several = args.world_size > 1
        if self._losses:
            total = torch.stack(self._losses).sum()
            self._losses = []
            if several:
                torch.distributed.all_reduce(total)
            rate = kwargs["optimizer"].param_groups[0]["lr"] if "optimizer" in kwargs else None
            self._judge(state, float(total) / args.world_size, rate)
        telling = self._each_step and self._untold is not None
        if several and (self.stop or self._each_step):
            # Logging gathers the loss: either all of the processes do it, or none.
            flags = torch.tensor([int(self._stopping), int(telling)], device=args.device)
            torch.distributed.broadcast(flags, src=0)
            self._stopping, telling = (bool(flag) for flag in flags.tolist())
        control.should_log |= telling
        control.should_training_stop |= self._stopping and (several or self._each_step)
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Judge the logged loss, and tag the entry of a warning."""
        if logs is None or "loss" not in logs:
            return control
        if not self._each_step:
            self._judge(state, float(logs["loss"]), logs.get("learning_rate"))
            # The other processes learn of it in the next step, where all of them are sure to ask.
            control.should_training_stop |= self._stopping and args.world_size == 1
        if self._untold is not None:
            logs[TAG] = self._untold.since
            entry = state.log_history[-1] if state.log_history else {}
            if entry.get("step") == state.global_step:
                entry[TAG] = self._untold.since
            self._untold = None
        return control

    def _judge(self, state: Any, loss: float, learning_rate: float | None) -> None:
        if not state.is_world_process_zero:
            return
        before = self._watch.current
        event = self._watch.update(state.global_step, loss, learning_rate)
        if event is not None:
            self._untold = event
            found = f"is {loss}" if not math.isfinite(loss) else f"has been rising since step {event.since:g}"
            logger.warning("step %d: the training loss %s", event.step, found)
        current = self._watch.current
        if before is not None and current is None:
            logger.info("step %d: the training loss is back", state.global_step)
        if self.stop and current is not None and state.global_step - current.step >= self.patience:
            if not self._stopping:
                logger.warning("step %d: training is stopped", state.global_step)
            self._stopping = True
