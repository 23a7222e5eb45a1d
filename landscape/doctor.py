"""What this machine and this installation can do, found out by trying, and what to install for what they cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Status = Literal["ok", "limited", "missing"]

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "pyarrow", "plotly", "matplotlib")
"""Without which nothing runs."""
EXTRAS = {
    "streamlit": ("landscape app", "lora-landscape[app]"),
    "ray": ("landscape sweep --engine ray", "lora-landscape[ray]"),
    "playwright": ("tests of the dashboard", "playwright"),
    "tensorboard": ("report_to: [tensorboard], and reading its logs", "lora-landscape[tensorboard]"),
    "wandb": ("report_to: [wandb]", "wandb"),
    "mlflow": ("report_to: [mlflow]", "mlflow"),
    "trackio": ("report_to: [trackio]", "trackio"),
    "bitsandbytes": ("base models in 4 and 8 bits", "bitsandbytes"),
    "pyhessian": ("a cross-check of eigenvalues; GPL-3.0", "lora-landscape[pyhessian]"),
}
"""What each optional package is for, and what pip is to be told."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LITTLE_DISK = 10e9
LITTLE_MEMORY = 4e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``ok``, ``limited`` (works, with less), or ``missing``; ``advice`` where not ok."""

    group: str
    name: str
    status: Status
    detail: str
    advice: str = ""


def examine(folder: Path) -> list[Finding]:
    """Look at everything; takes some seconds, most of them for importing torch.

    Args:
        folder: where runs are, or will be, stored; its disk is looked at.
    """
    return [
        *_versions(),
        *_devices(),
        *_attention(),
        *_engines(),
        *_optional(),
        *_browsers(),
        *_machine(folder),
    ]


def _versions() -> Iterator[Finding]:
    yield Finding(
        "versions", "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    for name in PACKAGES:
        found = _version(name)
        if found is None:
            yield Finding("versions", name, "missing", "not installed", f"pip install {name}")
        else:
            yield Finding("versions", name, "ok", found)


def _devices() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        detail = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        with torch.cuda.device(index):
            half = torch.cuda.is_bf16_supported()
        yield Finding("devices", f"cuda:{index}", "ok", f"{detail}, bfloat16 {'yes' if half else 'no'}")
    if torch.backends.mps.is_available():
        advice = "curvature falls back to the CPU where an operation has no second derivative"
        yield Finding("devices", "mps", "limited", "Apple GPU; not among the machines that are tested", advice)
    if not torch.cuda.is_available():
        detail = f"{os.cpu_count()} cores; no CUDA device that this build of torch ({torch.__version__}) can use"
        advice = "models of up to some hundred million parameters; for larger ones a build for CUDA: pytorch.org"
        yield Finding("devices", "cpu", "limited", detail, advice)


def _attention() -> Iterator[Finding]:
    """Each kernel on each device: a second derivative, compared with that of attention written out."""
    import torch
    from torch.nn.attention import SDPBackend

    kernels = {
        "eager": None,
        "math": SDPBackend.MATH,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for name, kernel in kernels.items():
            problem = second_derivative_problem(kernel, device)
            label = f"{name} on {device}"
            if problem is None:
                yield Finding("attention", label, "ok", "second derivatives are right")
            elif name in ("eager", "math"):
                advice = "curvature needs one of eager and math: install another build of torch"
                yield Finding("attention", label, "missing", problem, advice)
            else:
                advice = "none: curvature switches to eager attention by itself"
                yield Finding("attention", label, "limited", problem, advice)


def second_derivative_problem(kernel: Any, device: str) -> str | None:
    """Why a kernel of scaled dot-product attention cannot be differentiated twice; None where it can.

    Args:
        kernel: a `torch.nn.attention.SDPBackend`, or None for attention written out.
    """
    import torch
    from torch.nn.attention import sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.float32 if device == "cpu" or kernel is None or kernel.name == "MATH" else torch.float16
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 8, 16, generator=generator).to(device, dtype) for _ in range(3)]
    expected = _second_derivative(_written_out, inputs)
    if kernel is None:
        return None if bool(expected.isfinite().all()) else "not finite"
    try:
        with warnings.catch_warnings(), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # it warns of every kernel that it does not use
            found = _second_derivative(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), inputs)
    except RuntimeError as error:
        return " ".join(str(error).split())[:160]
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    wrong = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    return None if wrong < tolerance else f"wrong: off by {wrong:.1e} of the largest value"


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import torch

    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def _second_derivative(attention: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
    import torch

    leaves = [item.clone().requires_grad_() for item in inputs]
    first = torch.autograd.grad(attention(*leaves).square().sum(), leaves, create_graph=True)
    squares = torch.stack([item.square().sum() for item in first]).sum()
    return torch.cat([item.flatten() for item in torch.autograd.grad(squares, leaves)])


def _engines() -> Iterator[Finding]:
    yield Finding("engines", "local", "ok", "processes of this machine")
    if _version("ray") is None:
        yield Finding("engines", "ray", "missing", "not installed", f"pip install '{EXTRAS['ray'][1]}'")
    else:
        yield Finding(
            "engines", "ray", "ok", f"{_version('ray')}; a private cluster, or an existing one by its address"
        )


def _optional() -> Iterator[Finding]:
    for name, (purpose, wanted) in EXTRAS.items():
        if name != "ray":
            found = _version(name)
            advice = "" if found else f"pip install '{wanted}'"
            yield Finding(
                "optional", name, "ok" if found else "missing", f"{found or 'not installed'}: {purpose}", advice
            )


def _browsers() -> Iterator[Finding]:
    """The tests of the dashboard use the system's Chromium; its version is asked of the program itself."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        advice = "apt-get install chromium (macOS: brew install --cask chromium); only tests of the dashboard need it"
        yield Finding("browsers", "chromium", "missing", "none found", advice)
        return
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
        yield Finding("browsers", "chromium", "ok", f"{' '.join(said.split())[:80]} at {path}")
    except (OSError, subprocess.SubprocessError) as error:
        detail = f"{path} does not start: {' '.join(str(error).split())[:120]}"
        yield Finding("browsers", "chromium", "limited", detail, "install it anew")


def _machine(folder: Path) -> Iterator[Finding]:
    import psutil
    import torch

    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    little = free < LITTLE_DISK
    advice = "capture: {budget_gb: ...} bounds a run's snapshots; landscape prune drops old ones" if little else ""
    detail = f"{free / 1e9:.1f} GB free at {place}"
    yield Finding("machine", "disk", "limited" if little else "ok", detail, advice)
    memory = psutil.virtual_memory()
    tight = memory.available < LITTLE_MEMORY
    advice = "fewer --workers, or a smaller model" if tight else ""
    detail = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    yield Finding("machine", "memory", "limited" if tight else "ok", detail, advice)
    threads, cores = torch.get_num_threads(), _usable_cores()
    crowded = threads > cores
    detail = (
        f"{threads} of torch on {cores} usable cores (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')})"
    )
    advice = f"OMP_NUM_THREADS={cores}" if crowded else ""
    yield Finding("machine", "threads", "limited" if crowded else "ok", detail, advice)


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _version(package: str) -> str | None:
    """Of an installed package; None also where its files are there and its module is not."""
    try:
        if importlib.util.find_spec(package) is None:
            return None
        # A module may come with another package than its own: mlflow with mlflow-skinny.
        packages = [package, *packages_distributions().get(package, [])]
        return next(found for name in packages if (found := _installed(name)))
    except (ImportError, ValueError, StopIteration):
        return None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
