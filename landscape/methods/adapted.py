"""PEFT's LoRA layers seen as W' = W + s·BA: their parts, their row norms, and swapping W for a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from landscape.errors import UsageError


@dataclass(frozen=True)
class AdaptedLinear:
    """One adapted linear layer: W (out, in), B (out, r), A (r, in) and the scaling s."""

    name: str
    module: LoraLayer
    adapter: str

    @property
    def base(self) -> nn.Module:
        """The frozen layer inside."""
        return self.module.get_base_layer()

    @property
    def A(self) -> nn.Parameter:
        """(r, in)."""
        return self.module.lora_A[self.adapter].weight  # type: ignore[return-value]

    @property
    def B(self) -> nn.Parameter:
        """(out, r)."""
        return self.module.lora_B[self.adapter].weight  # type: ignore[return-value]

    @property
    def scaling(self) -> float:
        """s: alpha/r, or alpha/√r with rank stabilization."""
        return self.module.scaling[self.adapter]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def transposed(self) -> bool:
        """GPT-2's Conv1D keeps W as (in, out)."""
        return bool(getattr(self.module, "fan_in_fan_out", False))

    @property
    def weight(self) -> Tensor | None:
        """W as (out, in), a view; None where the base is quantized and holds packed integers."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        if not weight.is_floating_point() or weight.ndim != 2 or hasattr(weight, "quant_state"):
            return None
        return weight.T if self.transposed else weight

    def dense_weight(self) -> Tensor:
        """W (out, in), dequantized where needed; a view of the base weight where it is dense."""
        if (weight := self.weight) is not None:
            return weight
        from peft.utils.integrations import dequantize_module_weight

        return dequantize_module_weight(self.base)

    @torch.no_grad()
    def base_row_norms_squared(self) -> Tensor:
        """‖Wᵢ‖² (out,), in at least float32."""
        return self.dense_weight().to(_wide(self.B)).square().sum(dim=1)

    @torch.no_grad()
    def row_norms_squared(self, base_squared: Tensor) -> Tensor:
        """‖(W + sBA)ᵢ‖² (out,) without forming W + sBA.

        ‖Wᵢ‖² + 2s⟨(WAᵀ)ᵢ, Bᵢ⟩ + s²·Bᵢ(AAᵀ)Bᵢᵀ, which costs as much as pushing r tokens through the layer.

        Args:
            base_squared: `base_row_norms_squared`, which stays valid as long as W is frozen.
        """
        wide = _wide(self.B)
        A, B, s = self.A.to(wide), self.B.to(wide), self.scaling
        cross = self.dense_weight().to(wide) @ A.T
        squared = base_squared + 2 * s * (cross * B).sum(dim=1) + s**2 * ((B @ (A @ A.T)) * B).sum(dim=1)
        return squared.clamp_min(0)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def adapted_linears(model: nn.Module) -> list[AdaptedLinear]:
    """Every linear layer of the model with an active LoRA adapter, in module order.

    Raises:
        UsageError: there is none.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and module.active_adapters:
            adapter = module.active_adapters[0]
            if adapter in module.lora_A:
                found.append(AdaptedLinear(name, module, adapter))
    if not found:
        raise UsageError(f"{type(model).__name__} has no active LoRA adapter on a linear layer: nothing to perturb")
    return found


class WeightSwap:
    """Shows other values in frozen weights for a while, and restores them bit for bit.

    Adding noise and subtracting it again does not restore: 200 such cycles change 59 % of a bfloat16 model's entries.
    With ``saved="device"`` the originals never move, the parameters point at a second buffer meanwhile (one copy of
    the swapped weights in memory). With ``saved="host"`` the originals are copied once to (pinned) host memory, the
    device keeps a single copy, and every restore is a transfer. Tied weights are one weight.
    """

    def __init__(self, weights: Sequence[Tensor], saved: Literal["device", "host"] = "device") -> None:
        self.weights = list({weight.data_ptr(): weight for weight in weights}.values())
        self.saved = saved
        self._originals: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self.active = False

    def targets(self) -> list[Tensor]:
        """Where the perturbed values go, one per weight; contents are undefined."""
        if not self._buffers:
            if self.saved == "device":
                self._buffers = [torch.empty_like(weight) for weight in self.weights]
            else:
                self._buffers = [weight.data for weight in self.weights]
                self._originals = [_host_copy(weight) for weight in self.weights]
        return self._buffers

    def sources(self) -> list[Tensor]:
        """The unperturbed values, one per weight."""
        return [weight.data for weight in self.weights]

    def show(self) -> None:
        """Let the weights read from `targets`."""
        if self.saved == "device":
            self._originals = [weight.data for weight in self.weights]
            for weight, buffer in zip(self.weights, self._buffers, strict=True):
                weight.data = buffer
        self.active = True

    def restore(self) -> None:
        """Show the originals again; harmless when nothing is swapped."""
        if not self.active:
            return
        for weight, original in zip(self.weights, self._originals, strict=True):
            if self.saved == "device":
                weight.data = original
            else:
                weight.data.copy_(original, non_blocking=True)
        self.active = False


def _host_copy(weight: Tensor) -> Tensor:
    copy = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)
    return copy.copy_(weight)
