"""What a method is: an adapter, and possibly a perturbation of the weights during forward and backward."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from landscape.errors import UsageError, nearest, unknown


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


@dataclass(frozen=True)
class Method:
    """One way to fine-tune, as the registry keeps it."""

    name: str
    summary: str
    source: str
    """Paper and equation numbers, or the released code."""
    adapter: Literal["lora"] | None
    """None trains every weight of the base model."""
    arguments: type[Arguments] = Arguments
    perturbation: PerturbationFactory | None = None
    perturbs: str = "-"
    passes: str = "1"
    """Forward-backward passes an optimizer step, relative to LoRA."""
    extra_memory: str = "-"
    execution_arguments: frozenset[str] = frozenset()
    """Arguments that change where things are computed and not the result; they stay out of a run's identity."""

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
