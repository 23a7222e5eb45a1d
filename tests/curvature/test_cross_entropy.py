"""The closed form against autograd's own derivatives of the one definition of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from landscape.curvature.cross_entropy import twice_differentiable_losses
from landscape.loss import LossKind, example_losses

SHAPES: dict[LossKind, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "causal": ((3, 5, 7), (3, 5)),
    "seq2seq": ((3, 5, 7), (3, 5)),
    "classification": ((6, 4), (6,)),
}


def case(kind: LossKind, masked: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape, label_shape = SHAPES[kind]
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, shape[-1], label_shape, generator=generator)
    if masked:
        labels.view(-1)[::3] = -100
    return logits, labels


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_values_and_both_derivatives(kind: LossKind, masked: bool) -> None:
    logits, labels = case(kind, masked)
    generator = torch.Generator().manual_seed(1)
    results = []
    for losses_of in (twice_differentiable_losses, example_losses):
        generator.manual_seed(1)
        # A non-linear function above and below, so that the weights of the losses vary with the logits too.
        leaf = logits.clone().requires_grad_()
        losses = losses_of(torch.sinh(leaf / 3), labels, kind)
        weights = torch.rand(len(losses.nll), generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((losses.nll**2 @ weights), leaf, create_graph=True)
        vector = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        (product,) = torch.autograd.grad(gradient, leaf, vector)
        results.append((losses.nll, losses.count, gradient, product))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


def test_low_precision_logits_and_large_ones() -> None:
    logits, labels = case("causal", True)
    expected = example_losses(logits.bfloat16(), labels, "causal").nll
    torch.testing.assert_close(twice_differentiable_losses(logits.bfloat16(), labels, "causal").nll, expected)
    huge = (1e4 * logits).float().requires_grad_()
    losses = twice_differentiable_losses(huge, labels, "causal")
    torch.testing.assert_close(losses.nll, example_losses(huge, labels, "causal").nll)
    (gradient,) = torch.autograd.grad(losses.nll.sum(), huge, create_graph=True)
    (product,) = torch.autograd.grad(gradient, huge, torch.ones_like(huge))
    assert bool(torch.isfinite(product).all())
