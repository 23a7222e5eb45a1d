"""LoRA-Pro's projected gradients against dense least squares, and its AdamW written out."""

from __future__ import annotations

import pytest
import torch

from landscape.loss import forward_losses
from landscape.methods.adapted import adapted_linears
from landscape.methods.base import AdamSettings
from landscape.methods.lora_pro import LoRAProAdamW, projected_gradients
from tests.small_models import batch, lora_model

OUT, IN, RANK, S = 7, 6, 3, 1.7
SETTINGS = AdamSettings(1e-2, (0.9, 0.999), 1e-8, 0.01)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(B_scale: float = 1.0):
    """A, B, G and the gradients of A and B that G gives."""
    A, B, G = random(RANK, IN, seed=0), B_scale * random(OUT, RANK, seed=1), random(OUT, IN, seed=2)
    return A, B, G, S * B.T @ G, S * G @ A.T


def moved(A, B, d_a, d_b):
    return S * (d_b @ A + B @ d_a)


def jacobian(A, B):
    """The matrix of (d_A, d_B) ↦ s(d_B·A + B·d_A), both sides flattened."""
    columns = []
    for index in range(RANK * IN + OUT * RANK):
        unit = torch.zeros(RANK * IN + OUT * RANK, dtype=torch.float64)
        unit[index] = 1
        d_a, d_b = unit[: RANK * IN].view(RANK, IN), unit[RANK * IN :].view(OUT, RANK)
        columns.append(moved(A, B, d_a, d_b).flatten())
    return torch.stack(columns, dim=1)


def by_least_squares(A, B, g_a, g_b, s):
    """d_A and d_B from the gradients alone, by a dense decomposition in place of theorems 2.1 and 2.3.

    With J the matrix of (d_A, d_B) ↦ s(d_B·A + B·d_A), J = U·S·Vᵀ, the gradients are Jᵀ·vec(G): the smallest of the
    least-squares solutions is V·S⁻²·Vᵀ of them, and the one nearest to the gradients has their part in J's null space.
    """
    (rank, columns), rows = A.shape, len(B)
    unit = torch.eye(rank * (columns + rows), dtype=A.dtype)
    d_a, d_b = unit[:, : rank * columns].reshape(-1, rank, columns), unit[:, rank * columns :].reshape(-1, rows, rank)
    J = (s * (d_b @ A + B @ d_a)).flatten(1).T
    _, values, Vh = torch.linalg.svd(J, full_matrices=True)
    kept = int((values > 1e-7 * values[0]).sum())
    assert len(Vh) - kept == rank**2
    gradients = Vh @ torch.cat([g_a.flatten(), g_b.flatten()])
    nearest = Vh.T @ torch.cat([gradients[:kept] / values[:kept] ** 2, gradients[kept:]])
    return nearest[: rank * columns].view(rank, columns), nearest[rank * columns :].view(rows, rank)


def test_moves_w_as_least_squares_would():
    A, B, G, g_a, g_b = problem()
    d_a, d_b = projected_gradients(A, B, g_a, g_b, S)
    J = jacobian(A, B)
    best = torch.linalg.lstsq(J, G.flatten(), driver="gelsd").solution
    torch.testing.assert_close(moved(A, B, d_a, d_b).flatten(), J @ best, rtol=1e-8, atol=1e-10)


def test_of_all_minimizers_it_is_the_one_nearest_to_the_gradients():
    A, B, G, g_a, g_b = problem()
    d_a, d_b = projected_gradients(A, B, g_a, g_b, S)
    J = jacobian(A, B)
    best = torch.linalg.lstsq(J, G.flatten(), driver="gelsd").solution
    # Minimizers are best + the null space of J; the nearest one is the gradients' projection onto that plane.
    _, values, Vh = torch.linalg.svd(J, full_matrices=True)
    null = Vh[int((values > 1e-10 * values[0]).sum()) :]
    assert len(null) == RANK**2
    wanted = torch.cat([g_a.flatten(), g_b.flatten()])
    nearest = best + null.T @ (null @ (wanted - best))
    torch.testing.assert_close(torch.cat([d_a.flatten(), d_b.flatten()]), nearest, rtol=1e-8, atol=1e-10)


def test_the_first_step_where_b_is_zero():
    A, B, G, g_a, g_b = problem(B_scale=0.0)
    d_a, d_b = projected_gradients(A, B, g_a, g_b, S)
    assert not d_a.any()
    torch.testing.assert_close(d_b, g_b @ torch.linalg.inv(A @ A.T) / S**2, rtol=1e-8, atol=1e-12)
    # W' moves by G seen through A's row space, the nearest that B alone can do.
    torch.testing.assert_close(moved(A, B, d_a, d_b), G @ torch.linalg.pinv(A) @ A, rtol=1e-8, atol=1e-10)


def test_a_tiny_b_is_inverted_in_double_precision():
    A, B, _, g_a, g_b = problem(B_scale=1e-4)
    d_a, d_b = projected_gradients(*(t.float() for t in (A, B, g_a, g_b)), S)
    expected = projected_gradients(A, B, g_a, g_b, S)
    for found, exact in zip((d_a, d_b), expected, strict=True):
        # Rounding B to float32 is magnified by its condition number.
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("moments", ["equivalent", "factors"])
def test_adamw_written_out(moments):
    """Algorithm 2 on dense least squares, with bias corrections that count from 1 and the layer's own scaling."""
    model, reference = lora_model("causal"), lora_model("causal")
    optimizer = LoRAProAdamW(model, SETTINGS, moments)
    state: dict = {}

    def adam(key, g, t):
        m, v = state.get(key, (torch.zeros_like(g), torch.zeros_like(g)))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        state[key] = m, v
        return (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    for t in range(1, 4):
        for m in (model, reference):
            m.zero_grad()
            forward_losses(m, batch("causal", seed=t)).mean.backward()
        optimizer.step()
        with torch.no_grad():
            for layer in adapted_linears(reference):
                A, B, s = layer.A, layer.B, layer.scaling
                d_a, d_b = by_least_squares(A, B, A.grad, B.grad, s)
                if moments == "factors":
                    u_a, u_b = adam((layer.name, "A"), d_a, t), adam((layer.name, "B"), d_b, t)
                else:
                    g = adam(layer.name, s * (d_b @ A + B @ d_a), t)
                    u_a, u_b = by_least_squares(A, B, s * B.T @ g, s * g @ A.T, s)
                A.copy_((1 - 1e-4) * A - 1e-2 * u_a)
                B.copy_((1 - 1e-4) * B - 1e-2 * u_b)
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            # Adam's direction and the inverse of a small BᵀB magnify rounding.
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_a_trained_head_gets_plain_adamw():
    model = lora_model("classification")
    head = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert head
    optimizer = LoRAProAdamW(model, SETTINGS)
    plain = torch.optim.AdamW([p.detach().clone() for p in head.values()], lr=1e-2, weight_decay=0.01)
    for seed in range(3):
        model.zero_grad()
        forward_losses(model, batch("classification", seed=seed)).mean.backward()
        for copy, p in zip(plain.param_groups[0]["params"], head.values(), strict=True):
            copy.grad = p.grad.clone()
        optimizer.step()
        plain.step()
    for copy, p in zip(plain.param_groups[0]["params"], head.values(), strict=True):
        torch.testing.assert_close(p.detach(), copy, rtol=1e-8, atol=1e-12)
