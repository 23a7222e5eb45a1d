"""The gauge of a LoRA adapter: factors that change while W + s·BA, and with it the function, does not.

(B, A) → (B·R⁻¹, R·A) leaves BA as it is for every invertible R (r x r), and so does trading the scaling s against the
size of the factors. The Hessian in the coordinates (A, B) is another one for each choice, its largest eigenvalue
without any bound. One choice singles itself out: Â, B̂ with B̂Â = s·BA and B̂ᵀB̂ = ÂÂᵀ. It makes ‖Â‖² + ‖B̂‖² least
among all factors of the same product (Srebro, Rennie and Jaakkola, Maximum-Margin Matrix Factorization, NIPS 2004),
and it is unique up to an orthogonal R, under which no eigenvalue changes. With the SVD s·BA = UΣVᵀ it is B̂ = UΣ^½ and
Â = Σ^½Vᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import UsageError
from landscape.measurement import NonFiniteLossError

RANK_TOLERANCE = {torch.float64: 1e-13}
"""By dtype of the factors: share of BA's largest singular value up to which another counts as zero."""
_COARSE_RANK_TOLERANCE = 1e-6
"""Of float32 and coarser dtypes: some ten roundings of float32."""


def balanced_factors(A: Tensor, B: Tensor, scaling: float, *, name: str = "layer") -> tuple[Tensor, Tensor]:
    """Â (r, in) and B̂ (out, r) with B̂Â = s·BA and B̂ᵀB̂ = ÂÂᵀ; used with a scaling of 1.

    From QR factorizations of B and Aᵀ and the SVD of an r x r matrix, in float64 on the CPU whatever the device, so
    that BA is never formed. B̂ᵀB̂ = ÂÂᵀ comes out diagonal and falling, and each column of B̂ has its entry of largest
    magnitude positive; that fixes the factors as far as the singular values differ. Where A and B are badly
    conditioned, the smallest singular values of BA lose digits, absolutely about 1e-16·‖A‖·‖B‖.

    Args:
        A: (r, in), of any floating dtype and device.
        B: (out, r).
        scaling: s of PEFT, alpha/r or alpha/√r; greater than 0.
        name: of the layer, for messages.

    Returns:
        Â and B̂, detached, on the devices of A and B, in the wider of their dtypes and at least float32: rounding them
        to bfloat16 would change the function.

    Raises:
        UsageError: shapes that do not fit, a scaling that is not positive, or a product BA of rank below r, as at
            initialization, where B = 0: such factors cannot be balanced by any R. The rank is the number of singular
            values above 1e-6 (float64 factors: 1e-13) of the largest.
        NonFiniteLossError: NaN or infinite entries.
    """
    _check_factors(A, B, scaling, name)
    dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
    q_b, r_b = torch.linalg.qr(_double(B))
    q_a, r_a = torch.linalg.qr(_double(A).T)
    u, sigma, vh = torch.linalg.svd(r_b @ r_a.T)
    rank = A.shape[0]
    tolerance = RANK_TOLERANCE.get(dtype, _COARSE_RANK_TOLERANCE)
    found = int((sigma > tolerance * sigma[0]).sum())
    if found < rank:
        advice = "; at initialization B is 0, so measure after the first step" if not bool(B.any()) else ""
        raise UsageError(
            f"{name}: balance: BA has numerical rank {found}, below r = {rank} (singular values above {tolerance:g} of "
            f"the largest count){advice}"
        )
    root = (scaling * sigma).sqrt()
    left, right = q_b @ u, vh @ q_a.T
    signs = torch.where(left.gather(0, left.abs().argmax(dim=0, keepdim=True))[0] < 0, -1.0, 1.0) * root
    return (signs[:, None] * right).to(A.device, dtype), (left * signs).to(B.device, dtype)


def change_gauge(A: Tensor, B: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """R·A (r, in) and B·R⁻¹ (out, r), other factors of the same product BA, in the dtypes of A and B.

    Args:
        A: (r, in).
        B: (out, r).
        R: (r, r), invertible; the work is done in float64 on the CPU.

    Raises:
        UsageError: shapes that do not fit, or a singular R.
    """
    rank = A.shape[0]
    if R.shape != (rank, rank) or B.shape[1:] != (rank,):
        raise UsageError(f"R: shape {tuple(R.shape)}; A {tuple(A.shape)} and B {tuple(B.shape)} need ({rank}, {rank})")
    wide = _double(R)
    inverted, failed = torch.linalg.solve_ex(wide, _double(B), left=False)
    if int(failed):
        raise UsageError("R: is singular; a gauge needs an invertible matrix")
    return (wide @ _double(A)).to(A.device, A.dtype), inverted.to(B.device, B.dtype)


def check_balanceable(layer: nn.Module, adapter: str, *, name: str = "layer") -> None:
    """Refuse a PEFT layer whose adapter is not s·BA with A and B both free.

    Plain LoRA on a linear layer passes, whatever its scaling rule (rsLoRA), its initialization and its base (quantized,
    or GPT-2's transposed one). It looks at attributes alone, so that PEFT need not be installed.

    Args:
        layer: a module that PEFT put into the model.
        adapter: name of the adapter in it.
        name: of the layer, for messages.

    Raises:
        UsageError: names the layer and why its gauge is another one.
    """
    reason = next(_obstacles(layer, adapter), None)
    if reason is not None:
        raise UsageError(f"{name}: balance: {reason}; allowed: plain LoRA on linear layers (rsLoRA too)")


def _obstacles(layer: Any, adapter: str) -> Iterator[str]:
    """Why the adapter has not the gauge (B·R⁻¹, R·A) for every invertible R; only the first reason may be asked for."""
    if hasattr(layer, "lora_E"):
        yield "AdaLoRA's diagonal between B and A leaves only permutations and scales free"
    variant = getattr(layer, "lora_variant", {}).get(adapter)
    if getattr(layer, "use_dora", {}).get(adapter) or "Dora" in type(variant).__name__:
        yield "DoRA divides by the norms of W + s·BA, which makes its magnitude part of another gauge"
    if variant is not None:
        yield f"the LoRA variant {type(variant).__name__} is not s·BA alone"
    factors = getattr(layer, "lora_A", {}), getattr(layer, "lora_B", {})
    if any(adapter not in group for group in factors):
        yield f"{type(layer).__name__} has no matrices A and B under the adapter {adapter!r}"
    if hasattr(layer, "parameter_name"):
        yield f"{type(layer).__name__} adapts a bare parameter, with one B and A for each of its slices"
    A, B = (group[adapter] for group in factors)
    if not (isinstance(A, nn.Linear) and isinstance(B, nn.Linear)):
        yield f"its A is a {type(A).__name__} and its B a {type(B).__name__}"
    if A.bias is not None or B.bias is not None:
        yield "lora_bias adds a bias that the scaling multiplies too"
    if not (A.weight.requires_grad and B.weight.requires_grad):
        yield f"{'B' if A.weight.requires_grad else 'A'} is frozen, so the factors cannot be exchanged"


def _check_factors(A: Tensor, B: Tensor, scaling: float, name: str) -> None:
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
        raise UsageError(f"{name}: A {tuple(A.shape)} and B {tuple(B.shape)}; needed: (r, in) and (out, r)")
    if not 0 < scaling < float("inf"):
        raise UsageError(f"{name}: scaling: {scaling}; allowed: finite and greater than 0")
    for label, factor in (("A", A), ("B", B)):
        if not bool(torch.isfinite(factor).all()):
            raise NonFiniteLossError(f"{name}: {label} holds NaN or infinite entries; the parameters have diverged")


def _double(tensor: Tensor) -> Tensor:
    """On the CPU in float64, which some devices lack."""
    return tensor.detach().to("cpu", torch.float64)
