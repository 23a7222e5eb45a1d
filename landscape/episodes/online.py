"""Watching a curve while it grows: constant work a step, a warning when the loss climbs back.

At every dyadic time scale h the loss is averaged over blocks of h values. A finished block is compared with the ones
before it, in units of that scale's own noise, which second differences of the blocks' means give. The block's rise is
`detect_episodes`' statistic at that scale and place; the threshold is one number for all of them and was set on the
benchmark's development split to a false-alarm rate of 5 % a run (docs/episodes.md); no p-value is claimed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

THRESHOLD = 6.4
"""Noise units of a rise of block means."""
_SMALLEST = 4
"""Values a block, at least: shorter rises are spikes."""
_ENOUGH = 8
"""Second differences before a time scale's own noise is trusted."""
_MEDIAN = 0.6744898 * math.sqrt(1.5)
"""Median size of a second difference of independent block means of standard deviation 1."""
_BACK = 0.2
"""Share of the rise below which the loss counts as back."""
_SLOWER = 2**-0.25
"""Ratio of the noise of blocks twice as long where it is not known: independent noise has 2^-½, long memory more."""


@dataclass(frozen=True)
class Watch:
    """What is known after a step."""

    step: float
    warning: bool
    """The loss has risen and is not back."""
    score: float
    """Largest rise among the blocks that this step finished, in noise units; -inf if it finished none."""
    since: float | None
    """Step from which the rise that raised the warning was seen."""


class _RunningMedian:
    """Median of a stream: exact over its beginning, then by steps that shrink (Robbins and Monro 1951)."""

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0
        self._first: list[float] = []

    def add(self, x: float) -> None:
        self.count += 1
        if self.count <= 32:
            self._first.append(x)
            ordered = sorted(self._first)
            middle = self.count // 2
            self.value = ordered[middle] if self.count % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        else:
            self.value *= math.exp((1 if x > self.value else -1) * max(2.5 / self.count, 0.01))


class _Scale:
    """Block means of one width: the last four, and their noise."""

    def __init__(self) -> None:
        self.means: deque[float] = deque(maxlen=4)
        self.starts: deque[float] = deque(maxlen=4)
        self.noise = _RunningMedian()

    def push(self, mean: float, start: float) -> None:
        if len(self.means) >= 3:
            # The difference ends one block before the newest: a rise must not raise its own noise.
            a, b, c = list(self.means)[-3:]
            self.noise.add(abs(b - (a + c) / 2) / _MEDIAN)
        self.means.append(mean)
        self.starts.append(start)

    def rise(self, deviation: float) -> tuple[float, float, float]:
        """(score, level before, step at which the compared blocks begin)."""
        if len(self.means) < 4 or deviation <= 0:
            return -math.inf, 0.0, 0.0
        a, b, c, d = self.means
        near = (d - (a + b + c) / 3) / math.sqrt(4 / 3)
        far = (d - b) / math.sqrt(2)
        level = (a + b + c) / 3 if near >= far else b
        return max(near, far) / deviation, level, self.starts[1]


class OnlineWatch:
    """Fed one (step, loss) at a time; amortized constant work, memory logarithmic in the number of steps."""

    def __init__(self, warmup_steps: float = 0, threshold: float = THRESHOLD) -> None:
        self._warmup, self._threshold = warmup_steps, threshold
        self._first: float | None = None
        self._recent: deque[float] = deque(maxlen=5)
        self._pending: deque[tuple[float, float]] = deque()
        self._scales: list[_Scale] = []
        self._open: list[tuple[float, float] | None] = []
        self._block: list[float] = []
        self._block_start = 0.0
        self._level = self._height = 0.0
        self._since: float | None = None

    def update(self, step: float, loss: float) -> Watch:
        """Take one step's loss; a loss that is not finite warns at once."""
        self._first = step if self._first is None else self._first
        if step < self._first + self._warmup:
            return Watch(step, False, -math.inf, None)
        if not math.isfinite(loss):
            self._since = step if self._since is None else self._since
            return Watch(step, True, math.inf, self._since)
        self._recent.append(loss)
        # A value is judged with its two successors in sight, so that one or two bad batches are taken out.
        self._pending.append((step, loss))
        if len(self._recent) < 5:
            return Watch(step, self._since is not None, -math.inf, self._since)
        at, value = self._pending.popleft()
        middle = sorted(self._recent)
        spread = middle[3] - middle[1]
        value = min(max(value, middle[2] - 3 * spread), middle[2] + 3 * spread)
        score = self._add(at, value)
        return Watch(step, self._since is not None, score, self._since)

    def _add(self, step: float, value: float) -> float:
        if not self._block:
            self._block_start = step
        self._block.append(value)
        if len(self._block) < _SMALLEST:
            return -math.inf
        mean, start = sum(self._block) / _SMALLEST, self._block_start
        self._block = []
        best = -math.inf
        if self._since is not None and mean <= self._level + _BACK * self._height:
            self._since = None
        for k in range(64):
            if k == len(self._scales):
                self._scales.append(_Scale())
                self._open.append(None)
            scale = self._scales[k]
            scale.push(mean, start)
            score, level, since = scale.rise(self._deviation(k))
            best = max(best, score)
            if score > self._threshold and self._since is None:
                self._since, self._level, self._height = since, level, mean - level
            other = self._open[k]
            if other is None:
                self._open[k] = (mean, start)
                break
            self._open[k] = None
            mean, start = (mean + other[0]) / 2, other[1]
        return best

    def _deviation(self, k: int) -> float:
        """Noise of block means at scale k: its own, or from the nearest shorter scale that has seen enough."""
        for j in range(k, -1, -1):
            noise = self._scales[j].noise
            if noise.count >= _ENOUGH:
                return max(noise.value * _SLOWER ** (k - j), 1e-12)
        return 0.0
