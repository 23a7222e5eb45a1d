"""What a curve's noise is like: its local scale, its variance at every time scale, its spectrum and its innovations.

Nothing here subtracts a fitted trend. Scales come from differences that a slow trend does not enter: first differences
for the local scale, second differences of means over h points (Haar wavelets of two vanishing moments) for the variance
at time scale h. All of it works on many curves at once, (..., n), because the resamples of the null are measured by the
same code as the curve itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

_QUANTILE, _NORMAL = 0.6, 0.8416212
"""Scales are this quantile of |difference| over its value for a standard normal: it resists episodes and outliers in
up to 40 % of the differences."""
_DECAYS = (0.0, 0.3, 0.55, 0.75, 0.87, 0.935, 0.97, 0.985)
"""Coefficients of the AR(1) processes that spectra are mixtures of (0 is white noise)."""
_MEMORIES = (0.45, 0.8)
"""Memories d of the 1/f^2d components."""
_CLIP = 12.0
"""Innovations are cut at this many standard deviations."""
_BLOCK = 60
"""Points a block of the local scale, at least; there are at most `_BLOCKS` blocks."""
_BLOCKS = 8
_TINY = 1e-300
_FLOOR = 1e-6
"""Smallest noise variance at a time scale, relative to the largest; and smallest local scale, to the mean one."""


def quantile_scale(differences: Array) -> Array:
    """Standard deviation of (..., k) differences from a quantile of their sizes, (...)."""
    sizes = np.abs(differences)
    k = min(int(_QUANTILE * sizes.shape[-1]), sizes.shape[-1] - 1)
    return np.partition(sizes, k, axis=-1)[..., k] / _NORMAL


@dataclass(frozen=True, eq=False)
class NoiseDesign:
    """The time scales at which a curve of n points is measured, shared by all curves of that length."""

    points: int
    widths: tuple[int, ...]
    """Widths h of the means, in points."""
    dof: Array
    """Independent differences there are at each width, about."""
    blocks: int
    profile: Array
    """(blocks, n): linear interpolation from the blocks' centers to the points."""


@lru_cache(maxsize=64)
def noise_design(points: int) -> NoiseDesign:
    """Widths grow by √2 up to a twelfth of the curve; blocks have `_BLOCK` points or more."""
    largest = max(points // 12, 4)
    widths = sorted({round(2 ** (k / 2)) for k in range(40) if 2 ** (k / 2) <= largest} | {1, 2, largest})
    blocks = int(np.clip(points // _BLOCK, 1, _BLOCKS))
    centers = (np.arange(blocks) + 0.5) * points / blocks
    at = np.arange(points) + 0.5
    profile = np.stack([np.interp(at, centers, row) for row in np.eye(blocks)])
    dof = np.array([points / (2.0 * h) for h in widths])
    return NoiseDesign(points, tuple(widths), dof, blocks, profile.astype(np.float32))


def block_scales(curves: Array, design: NoiseDesign) -> Array:
    """Local standard deviation of the steps from point to point, (..., blocks), relative to their mean over the run."""
    steps = np.diff(curves, axis=-1)
    edges = np.linspace(0, steps.shape[-1], design.blocks + 1).astype(int)
    scales = np.stack([quantile_scale(steps[..., a:b]) for a, b in itertools.pairwise(edges)], axis=-1)
    mean = np.sqrt((scales**2).mean(axis=-1, keepdims=True))
    return np.maximum(scales / np.where(mean > 0, mean, 1), 1e-3)


def variances(prefix: Array, squared_scales: Array, design: NoiseDesign) -> Array:
    """Variance of a second difference of means over h points for each of the design's widths h, (..., widths).

    The difference is mean(middle) - (mean(left) + mean(right))/2 over three adjoining windows, divided by the local
    scale in the middle; white noise of variance 1 has 1.5/h.

    Args:
        prefix: (..., n + 1) cumulative sums of the curves, from 0.
        squared_scales: (..., blocks) squares of `block_scales`.
        design: `noise_design(n)`.
    """
    result = []
    for h in design.widths:
        stride = max(min(2, design.points // 200), h // 2, 1)
        c = [prefix[..., k * h : design.points + 1 - (3 - k) * h : stride] for k in range(4)]
        difference = (1.5 * (c[2] - c[1]) - 0.5 * (c[3] - c[0])) / h
        middle = design.profile[:, (3 * h) // 2 : (3 * h) // 2 + difference.shape[-1] * stride : stride]
        difference /= np.sqrt(squared_scales @ middle[:, : difference.shape[-1]])
        result.append(quantile_scale(difference) ** 2)
    found = np.stack(result, axis=-1)
    return np.maximum(found, _FLOOR * found.max(axis=-1, keepdims=True) + np.finfo(np.float32).tiny)


@lru_cache(maxsize=64)
def _spectral_tables(points: int, length: int) -> tuple[Array, Array]:
    """(transform length, spectra of the components (k, frequencies), their variances at the widths (k, widths))."""
    design = noise_design(points)
    omega = 2 * np.pi * np.fft.rfftfreq(length)
    decays = [phi for phi in _DECAYS if phi == 0 or 1 / (1 - phi) < points / 6]
    spectra = [(1 - phi**2) / (1 - 2 * phi * np.cos(omega) + phi**2) for phi in decays]
    slow = np.maximum(omega, np.pi / length)
    for d in _MEMORIES:
        spectra.append((2 * np.sin(slow / 2)) ** (-2 * d))
        spectra[-1] /= spectra[-1].mean()
    spectra.append(2 - 2 * np.cos(omega))  # Differenced white noise: what alternating noise needs.
    fold = np.full(len(omega), 2.0)
    fold[0] = fold[-1] = 1
    rows = []
    for h in design.widths:
        window = np.zeros(length)
        window[: 3 * h] = np.repeat([-0.5, 1, -0.5], h) / h
        rows.append(np.abs(np.fft.rfft(window)) ** 2 * fold / length)
    spectra = np.array(spectra)
    return spectra, spectra @ np.array(rows).T


def nonnegative_least_squares(matrix: Array, target: Array, iterations: int = 150) -> Array:
    """x ≥ 0 that nearly minimizes ‖A·x - y‖ for a nonnegative A and y (multiplicative updates, Lee and Seung 2000)."""
    gram, moment = matrix.T @ matrix, matrix.T @ target
    x = np.full(matrix.shape[1], moment.sum() / max(float(gram.sum()), _TINY))
    for _ in range(iterations):
        x = x * moment / (gram @ x + _TINY)
    return x


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """A linear process: independent innovations of variance 1 through a causal filter."""

    points: int
    transfer: NDArray[np.complexfloating]
    """Minimum-phase transfer function at the transform's frequencies."""
    innovations: Array
    """(m,) the curve's own, centered, variance 1: resampled with replacement."""
    variance: float
    """Of a point, where the local scale is 1."""
    slow: float
    """Share of the long-memory components in the variance at the largest time scale."""

    def sample(self, count: int, rng: np.random.Generator) -> Array:
        """(count, points) stationary noise, float32."""
        length = 2 * (len(self.transfer) - 1)
        drawn = self.innovations[rng.integers(0, len(self.innovations), (count, length), dtype=np.int32)]
        return np.fft.irfft(np.fft.rfft(drawn, axis=-1) * self.transfer, length, axis=-1)[:, : self.points]


def _minimum_phase(spectrum: Array) -> NDArray[np.complexfloating]:
    """The causal, causally invertible transfer function with |H|² = spectrum, by the cepstrum (Kolmogorov)."""
    length = 2 * (len(spectrum) - 1)
    cepstrum = np.fft.irfft(0.5 * np.log(spectrum), length)
    cepstrum[1 : length // 2] *= 2
    cepstrum[length // 2 + 1 :] = 0
    return np.exp(np.fft.rfft(cepstrum))


def fit_noise(found: Array, curve: Array, scale: Array) -> NoiseModel:
    """The process that resamples are drawn from.

    Args:
        found: (widths,) variances that the process is to have.
        curve: (n,) the whole curve, repaired: its innovations are resampled.
        scale: (n,) its local scales.
    """
    n = len(curve)
    length = 1 << int(np.ceil(np.log2(1.5 * n)))
    spectra, table = _spectral_tables(n, length)
    weight = np.sqrt(noise_design(n).dof) / found
    shares = nonnegative_least_squares((table * weight).T, found * weight)
    spectrum = np.maximum(shares @ spectra, 1e-9 * (shares @ spectra).max() + _TINY)
    transfer = _minimum_phase(spectrum)
    fold = np.full(len(spectrum), 2.0)
    fold[0] = fold[-1] = 1
    variance = float((spectrum * fold).sum() / length)
    innovations = _innovations(curve, scale, transfer)
    parts = shares * table[:, -1]
    slow = float(parts[-1 - len(_MEMORIES) : -1].sum() / parts.sum())
    return NoiseModel(n, transfer.astype(np.complex64), innovations.astype(np.float32), variance, slow)


def _innovations(curve: Array, scale: Array, transfer: NDArray[np.complexfloating]) -> Array:
    """What drives the process: the curve through the inverse filter, centered, of variance 1."""
    n, length = len(curve), 2 * (len(transfer) - 1)
    # The inverse filter looks at neighboring points mostly, so a coarse trend is enough to take away.
    width = min(max(n // 10, 5), n - 1)
    padded = np.pad(curve, (width, width), mode="reflect", reflect_type="odd")
    smooth = np.convolve(padded, np.ones(2 * width + 1) / (2 * width + 1), mode="valid")
    residual = (curve - smooth) / scale
    # An even extension leaves no step where the circle closes.
    circle = np.resize(np.concatenate([residual, residual[::-1]]), length)
    white = np.fft.irfft(np.fft.rfft(circle) / transfer, length)[:n]
    white = white - np.median(white)
    spread = quantile_scale(white)
    white = np.clip(white, -_CLIP * spread, _CLIP * spread)
    white -= white.mean()
    deviation = white.std()
    return white / (deviation if deviation > 0 else 1)
