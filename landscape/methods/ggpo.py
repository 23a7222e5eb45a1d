"""GGPO: Gaussian noise on W' = W + s·BA, row by row as large as the row and its gradient.

LoRA-GGPO, arXiv 2502.14538 v1, equations 4-8. Rows are output rows of W (out, in), and n = in:
ε_ij ~ N(0, σ²/n · (‖W'_i‖² + β·‖G_i‖²)), drawn once an optimizer step and held over its micro-batches. G can only be
the gradient of the step before, since the draw precedes the forward; the first step has the weight term alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.methods.adapted import AdaptedLinear, WeightSwap, adapted_linears
from landscape.methods.base import METHODS, Arguments, Method, noise_generator
from landscape.methods.gradient_rows import ExactGradientRows, ProxyGradientRows


class GGPOArguments(Arguments):
    """σ and β of both experiments (section 4, "Implementation Details", which first gives σ = 0.05 for all)."""

    sigma: float = Field(0.03, ge=0, description="σ: size of the noise relative to the weights")
    beta: float = Field(0.01, ge=0, description="β: weight of the gradient's row norms")
    weight_norm: bool = Field(True, description="false: the ablation with gradient norms only")
    gradient_norm: bool = Field(True, description="false: the ablation with weight norms only")
    gradient: Literal["proxy", "exact"] = Field(
        "proxy", description="proxy: rows of B's gradient, as the paper describes; exact: rows of dL/dW"
    )
    apply: Literal["auto", "swap", "regenerate"] = Field(
        "auto", description="swap: W + ε in a second buffer; regenerate: ε drawn again in forward and backward"
    )
    offload: bool = Field(False, description="with swap: the saved copy of W in (pinned) host memory")

    @model_validator(mode="after")
    def _has_a_term(self) -> GGPOArguments:
        if not (self.weight_norm or self.gradient_norm):
            raise ValueError("weight_norm and gradient_norm are both false: no noise is left")
        return self


class GGPO:
    """The perturbation of one model; see the module docstring for the formula.

    Args:
        model: a PEFT model with LoRA on linear layers.
        seed: with the step and the layer it keys the noise: equal on every process and in recomputed forwards.
        **arguments: `GGPOArguments`.
    """

    def __init__(self, model: nn.Module, *, seed: int = 0, **arguments: Any) -> None:
        self.arguments = GGPOArguments(**arguments)
        self.sigma = self.arguments.sigma
        self.layers = adapted_linears(model)
        self.seed = seed
        self.step = 0
        self.norm = 0.0
        self.gradient_ratio = 0.0
        rows = ExactGradientRows if self.arguments.gradient == "exact" else ProxyGradientRows
        self.gradients = rows(self.layers)
        self.mode = self._choose_mode()
        self._swap = WeightSwap([layer.base.weight for layer in self.layers], self._saved_where())  # type: ignore[misc]
        self._base_squared: list[Tensor] = []
        self._patched: list[nn.Module] = []

    @torch.no_grad()
    def perturb(self) -> None:
        """Draw ε for this optimizer step and let the base layers compute with W + ε."""
        if self._swap.active or self._patched:
            raise RuntimeError("perturb() twice without restore() between")
        deviations = self.row_deviations()
        squares = [d.square().sum() * layer.shape[1] for d, layer in zip(deviations, self.layers, strict=True)]
        self.norm = math.sqrt(_total(squares))
        if self.mode == "swap":
            self._show_swapped(deviations)
        else:
            self._patch_forwards(deviations)

    @torch.no_grad()
    def restore(self, grad_norm: float | None = None) -> None:
        """Put W back bit for bit and keep this step's gradient rows for the next draw."""
        self._put_back()
        self.step += 1
        if self.arguments.gradient_norm:
            self.gradients.update()

    @torch.no_grad()
    def row_deviations(self) -> list[Tensor]:
        """Standard deviation of each row's noise (eq. 6), one (out,) tensor a layer."""
        if not self._base_squared:
            self._base_squared = [layer.base_row_norms_squared() for layer in self.layers]
        a, deviations, weight_norms, gradient_norms = self.arguments, [], [], []
        for layer, base_squared, rows in zip(self.layers, self._base_squared, self.gradients.squared, strict=True):
            weights = layer.row_norms_squared(base_squared)
            variance = weights if a.weight_norm else torch.zeros_like(weights)
            weight_norms.append(weights.sum())
            if a.gradient_norm and rows is not None:
                variance = variance + a.beta * rows
                gradient_norms.append(rows.sum())
            deviations.append((self.sigma**2 / layer.shape[1] * variance).sqrt())
        self.gradient_ratio = a.beta * _total(gradient_norms) / _total(weight_norms)
        return deviations

    def noise(self, index: int, deviation: Tensor, step: int | None = None) -> Tensor:
        """ε of one layer, (out, in), in float64 for float64 weights and else float32."""
        device = self.layers[index].B.device
        generator = noise_generator(device, self.seed, self.step if step is None else step, index)
        shape = self.layers[index].shape
        return torch.randn(shape, generator=generator, device=device, dtype=deviation.dtype) * deviation[:, None]

    def perturbed_weight(self, index: int, deviation: Tensor, step: int | None = None) -> Tensor:
        """W + ε of one layer, (out, in), rounded once to W's dtype."""
        weight = self.layers[index].dense_weight()
        return (weight + self.noise(index, deviation, step)).to(weight.dtype)

    def metrics(self) -> dict[str, float]:
        """``ggpo_gradient_ratio`` = β‖G‖²/‖W'‖²: how much the gradient term adds; tiny at the paper's β."""
        return {"ggpo_gradient_ratio": self.gradient_ratio}

    def state_dict(self) -> dict[str, Tensor]:
        """The step counter and the last gradient rows."""
        rows = {f"rows.{i}": rows for i, rows in enumerate(self.gradients.squared) if rows is not None}
        return {"step": torch.tensor(self.step), **rows}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.step = int(state["step"])
        self.gradients.squared = [
            state[f"rows.{i}"].to(layer.B.device) if f"rows.{i}" in state else None
            for i, layer in enumerate(self.layers)
        ]

    def close(self) -> None:
        """Restore, and remove the gradient hooks."""
        self._put_back()
        self.gradients.close()

    def _choose_mode(self) -> Literal["swap", "regenerate"]:
        dense = all(layer.weight is not None for layer in self.layers)
        if self.arguments.apply == "swap" and not dense:
            raise ValueError("apply: 'swap' needs dense base weights; quantized ones take 'regenerate'")
        if self.arguments.apply != "auto":
            return self.arguments.apply
        return "swap" if dense and (self.arguments.offload or self._copy_fits()) else "regenerate"

    def _copy_fits(self) -> bool:
        weights = [layer.base.weight for layer in self.layers]
        needed = sum(w.numel() * w.element_size() for w in weights)  # type: ignore[operator,union-attr]
        device = self.layers[0].B.device
        # Half of what is free is left to activations; on the CPU a second copy is taken for granted.
        return device.type != "cuda" or needed < torch.cuda.mem_get_info(device)[0] / 2

    def _saved_where(self) -> Literal["device", "host"]:
        return "host" if self.arguments.offload else "device"

    def _show_swapped(self, deviations: list[Tensor]) -> None:
        targets = self._swap.targets()
        sources = self._swap.sources()
        index_of = {layer.base.weight.data_ptr(): i for i, layer in reversed(list(enumerate(self.layers)))}  # type: ignore[operator]
        for source, target in zip(sources, targets, strict=True):
            self._write_noisy(index_of[source.data_ptr()], deviations, source, target)
        self._swap.show()

    def _write_noisy(self, index: int, deviations: list[Tensor], source: Tensor, target: Tensor) -> None:
        layer, deviation = self.layers[index], deviations[index]
        if source.dtype == deviation.dtype and target.data_ptr() != source.data_ptr() and not layer.transposed:
            # The same operations as `noise` and `perturbed_weight`, without a temporary.
            generator = noise_generator(source.device, self.seed, self.step, index)
            target.normal_(generator=generator).mul_(deviation[:, None]).add_(source)
        else:
            noisy = self.perturbed_weight(index, deviation)
            target.copy_(noisy.T if layer.transposed else noisy)

    def _patch_forwards(self, deviations: list[Tensor]) -> None:
        for index, (layer, deviation) in enumerate(zip(self.layers, deviations, strict=True)):
            layer.base.forward = self._noisy_forward(index, layer, deviation)  # type: ignore[method-assign]
            self._patched.append(layer.base)

    def _noisy_forward(self, index: int, layer: AdaptedLinear, deviation: Tensor) -> Callable[..., Tensor]:
        step, base = self.step, layer.base
        if layer.weight is not None:
            draw = lambda: self.perturbed_weight(index, deviation, step)  # noqa: E731
            return lambda x, *args, **kwargs: _DrawnLinear.apply(x, base.bias, draw)
        original = type(base).forward
        draw = lambda: self.noise(index, deviation, step)  # noqa: E731
        return lambda x, *args, **kwargs: original(base, x, *args, **kwargs) + _DrawnLinear.apply(x, None, draw)

    def _put_back(self) -> None:
        self._swap.restore()
        for base in self._patched:
            del base.forward
        self._patched = []


def _total(values: list[Tensor]) -> float:
    """One transfer from the device for all layers, where one each would make the step wait as often."""
    return float(torch.stack(values).sum()) if values else 0.0


class _DrawnLinear(torch.autograd.Function):
    """x ↦ x·Mᵀ + bias where M (out, in) is drawn afresh, equal each time, in forward and in backward.

    Nothing of M's size outlives either pass, and M gets no gradient: the base is frozen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, draw: Callable[[], Tensor]) -> Tensor:
        device = x.device.type
        ctx.draw = draw
        ctx.input_dtype = x.dtype
        ctx.compute_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        matrix = draw().to(ctx.compute_dtype)
        bias = None if bias is None else bias.to(ctx.compute_dtype)
        return torch.nn.functional.linear(x.to(ctx.compute_dtype), matrix, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        grad = grad_outputs[0].to(ctx.compute_dtype) @ ctx.draw().to(ctx.compute_dtype)
        return grad.to(ctx.input_dtype), None, None


def build(model: nn.Module, optimizer: Optimizer, arguments: GGPOArguments, seed: int) -> GGPO:
    """The perturbation of a run; the optimizer is not needed."""
    return GGPO(model, seed=seed, **arguments.model_dump())


METHODS.add(
    Method(
        name="ggpo",
        summary="LoRA under Gaussian noise on W', scaled by row norms of weights and gradients",
        source="LoRA-GGPO, arXiv 2502.14538 v1, eq. 4-8",
        adapter="lora",
        arguments=GGPOArguments,
        perturbation=build,
        perturbs="frozen W",
        extra_memory="swap: one copy of W (or pinned host); regenerate: one layer",
        execution_arguments=frozenset({"apply", "offload"}),
    )
)
