"""SAM, MSAM, RWP, LPF-SGD and Entropy-SGD on a quadratic, where the gradient anywhere is H(θ - c)."""

from __future__ import annotations

import math

import pytest
import torch

from landscape.loss import forward_losses
from landscape.methods import MGPO, ReleasedMGPO
from landscape.methods.adapted import adapted_linears
from landscape.methods.base import noise_generator
from landscape.methods.entropy_sgd import EntropySGD, EntropySGDArguments
from landscape.methods.lpf_sgd import LPFSGD, LPFSGDArguments
from landscape.methods.msam import MSAM
from landscape.methods.rwp import RWP
from landscape.methods.sam import SAM
from tests.methods.quadratic import Quadratic, QuadraticWindow, flat, grads
from tests.small_models import batch, lora_model


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def noise(model: Quadratic, deviation: float, seed: int, step: int, draw: int = 0) -> torch.Tensor:
    """Standard normal numbers of the documented key, times the norm of their filter."""
    found = []
    for index, p in enumerate((model.matrix.detach(), model.vector.detach())):
        generator = noise_generator(p.device, seed, step, 2 * draw + index)
        norms = torch.stack([row.norm() for row in p])[:, None] if p.dim() == 2 else p.norm()
        found.append(torch.randn(p.shape, generator=generator, dtype=p.dtype) * norms * deviation)
    return flat(found)


def test_sam_takes_the_gradient_at_the_top_of_the_ball():
    model = Quadratic()
    window, rule, theta = QuadraticWindow(model), SAM(model, rho=0.3), model.theta
    window.backward()
    g = model.gradient(theta)
    top = theta + 0.3 * g / g.norm()
    loss = rule.gradients(window)
    close(grads(model), model.gradient(top))
    close(loss, model.loss(top))
    assert torch.equal(model.theta, theta)
    assert rule.norm == 0.3


def test_sam_without_radius_changes_no_bit_and_without_gradient_nothing():
    model = Quadratic()
    window = QuadraticWindow(model)
    window.backward()
    before = grads(model)
    SAM(model, rho=0.0).gradients(window)
    assert torch.equal(grads(model), before)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    assert SAM(model).gradients(window) is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_msam_takes_the_gradient_ahead_along_the_momentum(optimizer):
    model = Quadratic()
    window, lr, rho = QuadraticWindow(model), 0.05, 0.2
    stepper = (
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    )
    msam = MSAM(model, stepper, rho=rho)
    theta, m, v = model.theta, torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    for t in range(1, 5):
        ahead = theta - rho * m / m.norm() if t > 1 else theta
        g = model.gradient(ahead)
        if optimizer == "sgd":
            m = 0.9 * m + g
            theta = theta - lr * m
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            theta = theta - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        msam.perturb()
        assert msam.norm == (rho if t > 1 else 0.0)
        close(model.theta, ahead)
        window.backward()
        msam.restore()
        stepper.step()
        stepper.zero_grad()
        close(model.theta, theta)


def test_msam_restores_bit_for_bit_and_refuses_to_perturb_twice():
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    msam = MSAM(model, optimizer, rho=0.7)
    QuadraticWindow(model).backward()
    optimizer.step()
    before = model.theta
    msam.perturb()
    assert not torch.equal(model.theta, before)
    with pytest.raises(RuntimeError, match="without restore"):
        msam.perturb()
    msam.close()
    assert torch.equal(model.theta, before)


@pytest.mark.parametrize("mix", [0.0, 0.5, 0.8])
def test_rwp_mixes_two_gradients(mix):
    model = Quadratic()
    window, rule, theta = QuadraticWindow(model), RWP(model, sigma=0.1, mix=mix, seed=5), model.theta
    for step in range(2):
        epsilon = noise(model, 0.1, 5, step)
        for p in model.parameters():
            p.grad = None
        if rule.first_gradient:
            window.backward()
        rule.gradients(window)
        close(grads(model), mix * model.gradient(theta) + (1 - mix) * model.gradient(theta + epsilon))
        assert rule.norm == pytest.approx(float(epsilon.norm()), rel=1e-8)
        assert torch.equal(model.theta, theta)


@pytest.mark.parametrize("draws", [1, 3])
def test_lpf_sgd_averages_over_draws_of_a_growing_filter(draws):
    model = Quadratic()
    arguments = LPFSGDArguments(gamma=0.05, draws=draws, growth=4.0, ramp_steps=3)
    window, rule, theta = QuadraticWindow(model), LPFSGD(model, arguments, seed=2), model.theta
    for step in range(5):
        # γ_t = γ₀(α/2·(1 - cos(πt/T)) + 1): γ₀ at the start, five times that from T on.
        gamma = 0.05 * (2 * (1 - math.cos(math.pi * min(step / 3, 1))) + 1)
        places = [theta + noise(model, gamma, 2, step, draw) for draw in range(draws)]
        loss = rule.gradients(window)
        close(grads(model), sum(model.gradient(place) for place in places) / draws)
        close(loss, sum(model.loss(place) for place in places) / draws)
        assert rule.metrics()["lpf_sgd_gamma"] == pytest.approx(gamma, rel=1e-12)
        assert torch.equal(model.theta, theta)
    assert gamma == pytest.approx(0.25)


def test_the_noise_has_the_stated_size():
    model = Quadratic()
    rule = RWP(model, sigma=0.1, mix=0.0)
    window = QuadraticWindow(model)
    theta = model.theta
    for _ in range(2000):
        rule.gradients(window)
    entries = (torch.stack(window.visited) - theta)[:, 0] / (0.1 * model.matrix[0].norm().detach())
    # The variance of n normals has the standard error √(2/n).
    assert abs(float(entries.var()) - 1) < 4 * math.sqrt(2 / 2000)
    assert abs(float(entries.mean())) < 4 / math.sqrt(2000)


def test_entropy_sgd_without_noise_has_a_closed_form():
    """y_k = y* + M^k(θ - y*), with M = I - η'(H + γI) and y* = (H + γI)⁻¹(Hc + γθ); μ averages them."""
    model = Quadratic()
    arguments = EntropySGDArguments(inner_steps=6, gamma=0.4, inner_rate=0.1, noise=0.0, average=0.75)
    window, rule, theta = QuadraticWindow(model), EntropySGD(model, arguments), model.theta
    held = model.H + 0.4 * torch.eye(8, dtype=torch.float64)
    fixed = torch.linalg.solve(held, model.H @ model.c + 0.4 * theta)
    M = torch.eye(8, dtype=torch.float64) - 0.1 * held
    states = [fixed + torch.linalg.matrix_power(M, k) @ (theta - fixed) for k in range(7)]
    mu = 0.25**6 * theta + sum(0.75 * 0.25 ** (6 - k) * states[k] for k in range(1, 7))
    window.backward()
    loss = rule.gradients(window)
    close(grads(model), 0.4 * (theta - mu))
    close(torch.stack(window.visited), torch.stack(states[:6]))
    close(loss, torch.stack([model.loss(y) for y in states[1:6]]).mean())
    assert torch.equal(model.theta, theta)


def test_entropy_sgd_adds_thermal_noise():
    model = Quadratic()
    arguments = EntropySGDArguments(inner_steps=1, gamma=0.4, inner_rate=0.1, noise=0.5, average=0.75)
    window, theta = QuadraticWindow(model), model.theta
    rule = EntropySGD(model, arguments, seed=3)
    window.backward()
    rule.gradients(window)
    generators = [noise_generator(torch.device("cpu"), 3, 0, index) for index in range(2)]
    shapes = [(3, 2), (2,)]
    normal = flat([torch.randn(s, generator=g, dtype=torch.float64) for s, g in zip(shapes, generators, strict=True)])
    y = theta - 0.1 * model.gradient(theta) + math.sqrt(0.1) * 0.5 * normal
    close(grads(model), 0.4 * 0.75 * (theta - y))


@pytest.mark.parametrize("make", [lambda m: RWP(m, seed=1), lambda m: LPFSGD(m, LPFSGDArguments(), seed=1),
                                  lambda m: EntropySGD(m, EntropySGDArguments(inner_steps=2), seed=1)])  # fmt: skip
def test_the_noise_continues_from_a_checkpoint(make):
    model = Quadratic()

    def third_gradient(rule, steps):
        for _ in range(steps):
            for p in model.parameters():
                p.grad = None
            QuadraticWindow(model).backward()
            rule.gradients(QuadraticWindow(model))
        return grads(model)

    first, second, other = make(model), make(model), make(model)
    expected = third_gradient(make(model), 3)
    third_gradient(first, 2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(third_gradient(second, 1), expected)
    assert not torch.equal(third_gradient(other, 1), expected)


# MGPO, its released code, and Momentum-SAM: one step from the same momentum


def with_momentum():
    """A model and an optimizer that has taken one step."""
    model = lora_model("causal")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return model, optimizer


def one_step(make):
    """What a perturbation moves after one optimizer step: by parameter name, and by frozen weight."""
    model, optimizer = with_momentum()
    perturbation = make(model, optimizer)
    perturbation.perturb()
    forward_losses(model, batch("causal")).mean.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    perturbation.restore()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    m = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters() if p.requires_grad}
    perturbation.perturb()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    moved = {name: delta.clone() for name, delta in moved.items() if bool(delta.any())}
    return model, m, gradients, norm, moved


def test_mgpo_its_released_code_and_msam_are_three_methods():
    rho = 0.05
    model, m, _, norm, mgpo = one_step(lambda model, optimizer: MGPO(model, optimizer, rho=rho))
    length = math.sqrt(sum(float(v.square().sum()) for v in m.values()))
    # The paper's: A and B, uphill along m, one norm, ρ/ḡ long.
    assert mgpo.keys() == m.keys()
    for name, delta in mgpo.items():
        close(delta, rho / norm * m[name] / length)

    _, m, _, _, msam = one_step(lambda model, optimizer: MSAM(model, optimizer, rho=rho))
    # Momentum-SAM: the same direction with the other sign, ρ long whatever the gradients' size.
    assert msam.keys() == mgpo.keys()
    for name, delta in msam.items():
        close(delta, -rho * m[name] / length)
        close(delta, -norm * mgpo[name])

    model, m, gradients, _, released = one_step(lambda model, optimizer: ReleasedMGPO(model, optimizer, rho=rho))
    # The released code's: W of every layer, downhill, a norm and a ḡ for each, 1/ḡ at most 10.
    layers = adapted_linears(model)
    assert released.keys() == {f"{layer.name}.base_layer.weight" for layer in layers}
    clamped = 0
    for layer in layers:
        A, B = f"{layer.name}.lora_A.default.weight", f"{layer.name}.lora_B.default.weight"
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        # v at the momentum and at the factors after the step; ḡ from the gradients and factors before it.
        v = layer.scaling * (m[B] @ parameters[A] + parameters[B] @ m[A])
        step = {key: 1e-2 * gradients[key] / (gradients[key].abs() + 1e-8) for key in (A, B)}
        old = {key: (parameters[key] + step[key]) / (1 - 1e-4) for key in (A, B)}  # undo Adam's first step
        g = float((layer.scaling * (gradients[B] @ old[A] + old[B] @ gradients[A])).norm())
        scale = min(1 / g, 10.0)
        clamped += 1 / g > 10
        delta = released[f"{layer.name}.base_layer.weight"]
        torch.testing.assert_close(delta, (-rho * scale * v / v.norm()).detach(), rtol=1e-6, atol=1e-9)  # W - W̃ rounds
    assert 0 < clamped < len(layers)
