"""The random state that a forward draws from, captured and put back."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RngState:
    """torch's generators: the CPU's and, on an accelerator, the device's."""

    cpu: Tensor
    device: Tensor | None
    where: torch.device

    @classmethod
    def capture(cls, device: torch.device) -> RngState:
        """The present state."""
        on_device = torch.get_device_module(device).get_rng_state() if device.type != "cpu" else None
        return cls(torch.get_rng_state(), on_device, device)

    def restore(self) -> None:
        """Continue from this state."""
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(self.where).set_rng_state(self.device)

    def tensors(self) -> dict[str, Tensor]:
        """For a safetensors file, together with Python's and NumPy's legacy generators, which models may use."""
        version, internal, gauss = random.getstate()
        _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
        extra = {"device": self.device} if self.device is not None else {}
        return {
            "cpu": self.cpu,
            **extra,
            "python": torch.tensor([version, *internal], dtype=torch.int64),
            "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
            "numpy": torch.tensor(np.asarray(keys, dtype=np.int64)),
            "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        }

    @classmethod
    def restore_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Continue from `tensors`."""
        version, *internal = tensors["python"].tolist()
        gauss = float(tensors["python_gauss"])
        random.setstate((version, tuple(internal), None if math.isnan(gauss) else gauss))
        position, has_gauss, cached = tensors["numpy_rest"].tolist()
        keys = tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))  # noqa: NPY002
        cls(tensors["cpu"], tensors.get("device"), device).restore()
