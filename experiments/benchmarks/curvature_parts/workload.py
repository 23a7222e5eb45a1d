"""What the curvature benchmark measures: a small Llama with LoRA on one fixed batch, and what the right answers are.

The truth is ARPACK's on this package's operator in float64, with norms and softmax in float64 too. It takes minutes, so
it is kept in a JSON file, under a checksum of every parameter and every token that it belongs to.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from landscape.curvature import CurvatureOperator
from landscape.loss import forward_losses

Batch = dict[str, Tensor]
SHAPES = {"4x32": (4, 32), "16x64": (16, 64)}
"""Rows and columns of the batch by name."""
WEIGHTS = ("untrained", "trained")


def build(shape: str, attention: str = "eager") -> tuple[nn.Module, Batch]:
    """The model in eval mode with 156,160 trainable parameters, and the batch: random tokens, each a label."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, intermediate_size=688,
        vocab_size=2048, max_position_embeddings=256, use_cache=False, tie_word_embeddings=False,
        attn_implementation=attention,  # type: ignore[call-arg]
    )  # fmt: skip
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", target_modules=targets)
    model = get_peft_model(LlamaForCausalLM(config), lora)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    ids = torch.randint(0, 2048, (16, 64), generator=torch.Generator().manual_seed(2))
    rows, columns = SHAPES[shape]
    ids = ids[:rows, :columns].contiguous()
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def training(model: nn.Module, batch: Batch, learning_rate: float) -> Iterator[float]:
    """AdamW steps on the batch, without end; yields the loss before each."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=learning_rate, weight_decay=0.0)
    while True:
        loss = forward_losses(model, batch, "causal").mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def train(shape: str, steps: int, learning_rate: float, folder: Path) -> dict[str, Any]:
    """Train on the shape's own batch; the LoRA weights are kept in a file of the folder."""
    model, batch = build(shape)
    first, *_ = [loss for _, loss in zip(range(steps), training(model, batch, learning_rate), strict=False)]
    with torch.no_grad():
        last = float(forward_losses(model, batch, "causal").mean)
    path = folder / f"{shape}.safetensors"
    save_file({name: parameter.detach().clone() for name, parameter in trainable(model).items()}, path)
    return {"steps": steps, "learning_rate": learning_rate, "loss": [first, last], "path": str(path)}


def set_weights(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into the trainable parameters, in place."""
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(values[name])


def load_weights(model: nn.Module, path: str | None) -> None:
    """The weights that `train` kept; none leaves the untrained ones."""
    if path:
        set_weights(model, load_file(path))


class _DoubleNorm(nn.Module):
    """Llama's norm computes in float32 whatever the dtype of the model."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + self.epsilon)


def in_double(shape: str, model: nn.Module) -> tuple[nn.Module, Batch]:
    """The workload with the model's weights, in float64 throughout."""
    exact, batch = build(shape, attention="sdpa")  # eager attention takes its softmax in float32
    set_weights(exact, {name: parameter.detach() for name, parameter in trainable(model).items()})
    for parent in list(exact.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(parent, name, _DoubleNorm(child))
    return exact.double(), batch


def extreme_eigenvalue(operator: CurvatureOperator, which: str, tol: float) -> dict[str, float]:
    """The largest (LA) or smallest (SA) eigenvalue by ARPACK, with the residual of its vector, relative."""
    products = operator.num_matvecs

    def multiply(vector: np.ndarray) -> np.ndarray:
        return (operator @ torch.from_numpy(np.ascontiguousarray(vector.reshape(-1)))).numpy()

    matrix = LinearOperator((operator.size, operator.size), matvec=multiply, dtype=np.float64)  # type: ignore[call-arg]
    start = np.random.default_rng(0).standard_normal(operator.size)
    values, vectors = eigsh(matrix, k=1, which=which, tol=tol, ncv=40, v0=start)  # type: ignore[arg-type]
    products = operator.num_matvecs - products
    residual = np.linalg.norm(multiply(vectors[:, 0]) - values[0] * vectors[:, 0]) / abs(values[0])
    return {"value": float(values[0]), "residual": float(residual), "products": products}


class TruthTable:
    """Right answers by the weights and the batch they are for, in one JSON file.

    Args:
        path: of the file, which need not exist.
        recompute: compute what is there already once more.
    """

    def __init__(self, path: Path, recompute: bool = False) -> None:
        self._path, self._recompute = path, recompute
        self._fresh: set[str] = set()

    def largest(self, shape: str, model: nn.Module) -> float:
        """λmax of the Hessian of the loss at the model's weights; residual ≤ 1e-9 asked for."""
        return self._eigenvalue(shape, model, "largest", "LA", 1e-9)["value"]

    def smallest(self, shape: str, model: nn.Module) -> float:
        """The other end of the spectrum, which says what a method for the largest magnitude is after."""
        return self._eigenvalue(shape, model, "smallest", "SA", 1e-6)["value"]

    def oracle(self, shape: str, model: nn.Module, name: str, compute: Callable[[], int]) -> int:
        """A number of products that makes an answer right, found once by ``compute``."""
        return self._known(fingerprint(shape, model), name, compute)

    def _eigenvalue(self, shape: str, model: nn.Module, name: str, which: str, tol: float) -> dict[str, float]:
        def compute() -> dict[str, float]:
            began = time.perf_counter()
            exact, batch = in_double(shape, model)
            found = extreme_eigenvalue(CurvatureOperator(exact, batch), which, tol)
            print(f"truth: {name} at {shape}: {found} ({time.perf_counter() - began:.0f} s)", file=sys.stderr)
            return found

        return self._known(fingerprint(shape, model), name, compute)

    def _known(self, entry: str, name: str, compute: Callable[[], Any]) -> Any:
        table = self._read()
        stale = self._recompute and f"{entry} {name}" not in self._fresh
        if name not in table.get(entry, {}) or stale:
            value = compute()
            table = self._read()
            table.setdefault(entry, {})[name] = value
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
            self._fresh.add(f"{entry} {name}")
        return table[entry][name]

    def _read(self) -> dict[str, dict[str, Any]]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}


def fingerprint(shape: str, model: nn.Module) -> str:
    """The shape and CRC-32s of the frozen weights and of the trainable ones; the batch follows from the shape."""
    checksums = {True: 0, False: 0}
    for parameter in model.parameters():
        content = parameter.detach().numpy().tobytes()
        checksums[parameter.requires_grad] = zlib.crc32(content, checksums[parameter.requires_grad])
    return f"{shape} base {checksums[False]:08x} lora {checksums[True]:08x}"


def source_digest() -> str:
    """Of the code whose product counts are kept."""
    import landscape.curvature

    folder = Path(landscape.curvature.__path__[0])
    checksum = 0
    for path in sorted(folder.glob("*.py")):
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return f"{checksum:08x}"
