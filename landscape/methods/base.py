"""What a method is: an adapter, and possibly a perturbation of the weights or a rule of its own for each step."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from landscape.errors import UsageError, nearest, unknown

if TYPE_CHECKING:
    from peft import PeftConfig

Structure = Literal["lora", "dora", "adalora", "nlora"]
"""How an adapted layer computes: W + s·BA, its rows renormalized, W + s·B·diag(E)·A, or W + s·BNA."""

EVERY_STRUCTURE: frozenset[Structure | None] = frozenset({"lora", "dora", "adalora", "nlora", None})


class Arguments(BaseModel):
    """Base of every method's hyperparameters: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Perturbation(Protocol):
    """Moves weights away for one forward and backward, and puts them back bit for bit.

    In a plain loop::

        perturbation.perturb()
        loss(model(batch)).backward()          # any number of micro-batches
        perturbation.restore()
        optimizer.step()
        optimizer.zero_grad()
    """

    norm: float
    """Frobenius norm of the last perturbation over all that it moved; 0 where nothing was moved."""

    def perturb(self) -> None:
        """Move the weights; before the first forward of an optimizer step."""
        ...

    def restore(self, grad_norm: float | None = None) -> None:
        """Put the weights back and learn from the gradients; after the last backward, before ``optimizer.step()``.

        Args:
            grad_norm: global gradient norm *before clipping*; computed from ``.grad`` when not given.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers of this step worth a column in the metrics; names are prefixed by the method."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to continue bit for bit."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        ...

    def close(self) -> None:
        """Restore if needed and remove every hook; the model is then as it was found."""
        ...


PerturbationFactory = Callable[[nn.Module, torch.optim.Optimizer, Any, int], Perturbation]
"""(model, optimizer, the method's Arguments, seed) → perturbation."""


class Window(Protocol):
    """The batches of one optimizer step, for rules that differentiate them again."""

    parameters: list[nn.Parameter]
    """The trainable parameters."""

    def backward(self, part: int = 0, parts: int = 1) -> Tensor:
        """Add the window's gradient at the present weights to ``.grad``, under the dropout of its first pass.

        Args:
            part: differentiate only this part of the examples; all parts together are the window.
            parts: number of parts, dealt out over the window in turns.

        Returns:
            The loss that was differentiated, a detached scalar: Σ nll of the part ÷ counted labels of the window.
        """
        ...


class StepRule:
    """What a method does in an optimizer step beside moving weights; every part is optional.

    In the order in which they come: `penalty` with each forward, `gradients` after the last backward, `after_step`
    after ``optimizer.step()`` with the gradients still there.
    """

    norm: float = 0.0
    """Frobenius norm of the step's perturbation, if the rule perturbs."""
    replays: bool = False
    """`gradients` differentiates the window again."""
    first_gradient: bool = True
    """False: `gradients` does not need the gradient at the step's own weights, and only their loss is computed."""

    def penalty(self, model: nn.Module, inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor | None:
        """A scalar to differentiate beside the cross-entropy, which stays what is reported; weighted by labels."""
        return None

    def gradients(self, window: Window) -> Tensor | None:
        """Replace ``.grad``; returns the loss that was differentiated, or None where the gradients stand."""
        return None

    def after_step(self, step: int) -> None:
        """After ``optimizer.step()``; ``step`` counts the steps taken before it."""

    def averages(self) -> dict[str, list[Tensor]]:
        """Other values of the trainable parameters, by name, to evaluate and capture beside the present ones."""
        return {}

    def metrics(self) -> dict[str, float]:
        """Numbers of this step worth a column in the metrics; names are prefixed by the method."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to continue bit for bit."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""


RuleFactory = Callable[[nn.Module, torch.optim.Optimizer, Any, int], StepRule]
"""(model, optimizer, the method's Arguments, seed) → rule."""


@dataclass(frozen=True)
class AdamSettings:
    """The run's AdamW."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


OptimizerFactory = Callable[[nn.Module, Any, AdamSettings], torch.optim.Optimizer]
"""(model, the method's Arguments, settings) → optimizer. Groups with a ``name`` have their learning rates logged."""


@dataclass(frozen=True)
class Start:
    """What an initialization may read: the method's arguments, and training batches in the run's own order."""

    arguments: Any
    seed: int
    batches: Callable[[int], Iterator[Mapping[str, Tensor]]]
    """(examples a batch) → batches on the CPU."""


@dataclass(frozen=True)
class Method:
    """One way to fine-tune, as the registry keeps it."""

    name: str
    summary: str
    source: str
    """Paper and equation numbers, or the released code."""
    adapter: Structure | None
    """How the adapted layers compute; None trains every weight of the base model."""
    arguments: type[Arguments] = Arguments
    perturbation: PerturbationFactory | None = None
    perturbs: str = "-"
    passes: str = "1"
    """Forward-backward passes an optimizer step, relative to LoRA."""
    extra_memory: str = "-"
    execution_arguments: frozenset[str] = frozenset()
    """Arguments that change where things are computed and not the result; they stay out of a run's identity."""

    # A perturbation or a rule that is laid over another method's adapter (config key ``adapter``)
    over: frozenset[Structure | None] = frozenset()
    """Structures that it means something for."""
    not_over: Mapping[str, str] = field(default_factory=dict)
    """Adapters that it means nothing for in spite of their structure, with the reason."""
    rule: RuleFactory | None = None
    averages: int = 0
    """Averages of the trained parameters that the rule keeps, each captured beside them."""

    # An adapter
    peft: Callable[[dict[str, Any], Any], PeftConfig] | None = None
    """(keywords of LoraConfig, Arguments) → PEFT's config; None: LoraConfig with these keywords."""
    prepare: Callable[[nn.Module, int], None] | None = None
    """(PEFT model, seed): adds what PEFT does not have; part of building the model, also to read snapshots back."""
    initialize: Callable[[nn.Module, Start], dict[str, Tensor]] | None = None
    """Sets the adapter's values before training; returns the base tensors that it rewrote, by name."""
    optimizer: OptimizerFactory | None = None
    keeps_moments: bool = True
    """The optimizer keeps Adam's moments of every trained parameter."""
    largest_rank: Callable[[int, Any], int] | None = None
    """(rank, Arguments) → the rank that is allocated, where it is not the config's."""
    resolve: Callable[[Any, int], Arguments] | None = None
    """(Arguments, length of the schedule in steps) → Arguments without open defaults."""

    @property
    def composes(self) -> bool:
        """Whether it is laid over an adapter, and not an adapter itself."""
        return bool(self.over) or self.perturbation is not None

    def parse_arguments(self, values: Mapping[str, Any]) -> Arguments:
        """Validated hyperparameters with every default filled in.

        Raises:
            UsageError: unknown name (with the nearest match) or a value out of range.
        """
        fields = self.arguments.model_fields
        for key in values:
            if key not in fields:
                allowed = ", ".join(sorted(fields)) or "none"
                message = f"method_args.{key}: method {self.name!r} has no such argument; allowed: {allowed}."
                raise UsageError(message + nearest(key, fields))
        try:
            return self.arguments.model_validate(dict(values))
        except ValueError as error:
            raise UsageError(_one_line(error)) from None


def _one_line(error: ValueError) -> str:
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    return "; ".join(
        f"method_args.{'.'.join(map(str, item['loc']))}: {item['input']!r}: {item['msg']}" for item in details()
    )


class Registry(dict[str, Method]):
    """Methods by name; `add` refuses a second method of the same name."""

    def add(self, method: Method) -> Method:
        """Register a method; also the way to add one from outside the package."""
        if method.name in self:
            raise UsageError(f"method: {method.name!r} is already registered")
        self[method.name] = method
        return method

    def __missing__(self, name: str) -> Method:
        raise unknown("method", name, self)


METHODS = Registry()


def noise_generator(device: torch.device, seed: int, step: int, layer: int) -> torch.Generator:
    """A private generator keyed by (seed, step, layer).

    Equal on every process and in every recomputation of activation checkpointing, which replays only the global
    generator; and drawing from it never changes dropout.
    """
    key = hashlib.blake2b(struct.pack("<QQQ", seed, step, layer), digest_size=8).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(key, "little") >> 1)
    return generator


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, a scalar on the first one's device."""
    if not tensors:
        return torch.zeros(())
    return torch.nn.utils.get_total_norm(tensors)
