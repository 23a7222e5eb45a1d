"""The two halves of a run's method: what is done to the weights in a step, and the adapter that it is done to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.errors import UsageError, nearest, unknown
from landscape.methods.base import METHODS, Arguments, Method

if TYPE_CHECKING:
    from landscape.config import RunConfig

_STRUCTURES = {
    "lora": "W + s·BA",
    "dora": "DoRA, whose rows are renormalized",
    "adalora": "AdaLoRA, W + s·B·diag(E)·A",
    "nlora": "NLoRA, W + s·BNA",
    None: "full fine-tuning, which has no adapter",
}


@dataclass(frozen=True)
class Recipe:
    """A run's method and the adapter below it; one and the same where the method is an adapter itself."""

    method: Method
    adapter: Method
    arguments: Arguments
    adapter_arguments: Arguments

    @property
    def is_composed(self) -> bool:
        """A perturbation or rule over an adapter."""
        return self.method is not self.adapter

    @property
    def parts(self) -> list[tuple[Method, Arguments]]:
        """Each method once, with its arguments."""
        own = (self.method, self.arguments)
        return [own, (self.adapter, self.adapter_arguments)] if self.is_composed else [own]


def recipe(config: RunConfig) -> Recipe:
    """What ``method``, ``adapter`` and their arguments mean together.

    Raises:
        UsageError: an unknown method, adapter or argument, or a combination that means nothing.
    """
    method = METHODS[config.method]
    arguments = _resolved(method, config.method_args, config)
    if not method.composes:
        if config.adapter not in (None, method.name):
            raise UsageError(
                f"adapter: {config.adapter!r} cannot go below method {method.name!r}, which is an adapter itself; "
                f"allowed below a perturbation: {', '.join(adapters())}"
            )
        if config.adapter_args:
            raise UsageError(f"adapter_args: method {method.name!r} takes its arguments in method_args")
        return Recipe(method, method, arguments, arguments)
    adapter = METHODS["lora" if config.adapter is None else _known(config.adapter)]
    _check(method, adapter)
    try:
        adapter_arguments = _resolved(adapter, config.adapter_args, config)
    except UsageError as error:
        raise UsageError(str(error).replace("method_args", "adapter_args").replace("method ", "adapter ", 1)) from None
    return Recipe(method, adapter, arguments, adapter_arguments)


def adapters() -> list[str]:
    """Names that the key ``adapter`` takes."""
    return sorted(name for name, method in METHODS.items() if not method.composes)


def compositions(method: Method) -> list[str]:
    """Names of the adapters that a perturbation or rule may be laid over."""
    over = method.over or {"lora"}
    return [name for name in adapters() if METHODS[name].adapter in over and name not in method.not_over]


def _known(name: str) -> str:
    if name not in METHODS:
        raise unknown("adapter", name, adapters())
    return name


def _check(method: Method, adapter: Method) -> None:
    key = f"adapter: {adapter.name!r} below method {method.name!r}"
    allowed = compositions(method)
    if adapter.composes:
        raise UsageError(f"{key}: it is no adapter; allowed: {', '.join(allowed)}.{nearest(adapter.name, allowed)}")
    if adapter.name in method.not_over:
        raise UsageError(f"{key}: {method.not_over[adapter.name]}; allowed: {', '.join(allowed)}")
    if adapter.adapter not in (method.over or {"lora"}):
        raise UsageError(f"{key} means nothing for {_STRUCTURES[adapter.adapter]}; allowed: {', '.join(allowed)}")


def _resolved(method: Method, values: dict[str, Any], config: RunConfig) -> Arguments:
    arguments = method.parse_arguments(values)
    if method.resolve is None:
        return arguments
    return method.resolve(arguments, config.lr_scheduler_steps or config.max_steps)
