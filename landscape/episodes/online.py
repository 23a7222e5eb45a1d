"""Watching a curve while it grows: constant work a step, a warning when the loss climbs back.

At every dyadic time scale h the loss is averaged over blocks of h values. A finished block is compared with the ones
before it, in units of that scale's own noise, which second differences of the blocks' means give. The block's rise is
`detect_episodes`' statistic at that scale and place; the threshold is one number for all of them and was set on the
benchmark's development split to a false-alarm rate of 5 % a run (docs/episodes.md); no p-value is claimed.

As in `detect_episodes` nothing is compared across a resume, nor while the learning rate rises: a rise there is no news.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

THRESHOLD = 8.0
"""Noise units of a rise of block means. On the development split 5 % of the runs without an episode exceed 7.2 to 8.0,
depending on what confounds them (experiments/benchmarks/watch.py --tune): this is the largest of the six."""
_SMALLEST = 4
"""Values a block, at least: shorter rises are spikes."""
_CLIP = 1.0
"""Half-spreads of five neighboring values within which the middle one is kept."""
_ENOUGH = 8
"""Second differences before a time scale's own noise is trusted."""
_MEDIAN = 0.6744898 * math.sqrt(1.5)
"""Median size of a second difference of independent block means of standard deviation 1."""
_BACK = 0.2
"""Share of the rise below which the loss counts as back."""
_PLAIN = ("first", "block_start", "level", "height", "since", "until")
"""Attributes of a watch that are numbers or None."""
_RATES = ("rate", "lowest_rate", "top_rate", "blind_until")
"""The same of what is known of the learning rate; states saved before there were any have none."""
_RISING = 0.01
"""Share of the largest learning rate by which it must have climbed to count as rising."""
_LAG = 0.04
"""Share of the steps so far for which the loss may go on rising after the learning rate has: 2 % of a run that is half
over."""
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


def _known(value: float) -> float | None:
    """None for what is not known yet, which JSON can hold."""
    return value if math.isfinite(value) else None


class _RunningMedian:
    """Median of a stream: exact over its beginning, then by steps that shrink (Robbins and Monro 1951)."""

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0
        self._first: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "value": self.value, "first": list(self._first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.value, self._first = state["count"], state["value"], list(state["first"])

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

    def state_dict(self) -> dict[str, Any]:
        return {"means": list(self.means), "starts": list(self.starts), "noise": self.noise.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.means.extend(state["means"])
        self.starts.extend(state["starts"])
        self.noise.load_state_dict(state["noise"])

    def forget(self) -> None:
        """Keep the noise and nothing to compare with."""
        self.means.clear()
        self.starts.clear()

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
        self._until: float | None = None
        self._rate = self._lowest_rate = self._top_rate = self._blind_until = -math.inf

    def state_dict(self) -> dict[str, Any]:
        """Everything that later answers depend on, as JSON holds it."""
        return {
            **{key: getattr(self, f"_{key}") for key in _PLAIN},
            **{key: _known(getattr(self, f"_{key}")) for key in _RATES},
            "recent": list(self._recent),
            "pending": list(self._pending),
            "block": list(self._block),
            "open": list(self._open),
            "scales": [scale.state_dict() for scale in self._scales],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; warm-up and threshold are those of this watch."""
        for key in _PLAIN:
            setattr(self, f"_{key}", state[key])
        for key in _RATES:
            value = state.get(key)
            setattr(self, f"_{key}", -math.inf if value is None else value)
        self._recent = deque(state["recent"], maxlen=self._recent.maxlen)
        self._pending = deque((at, value) for at, value in state["pending"])
        self._block = list(state["block"])
        self._open = [None if pair is None else (pair[0], pair[1]) for pair in state["open"]]
        self._scales = [_Scale() for _ in state["scales"]]
        for scale, saved in zip(self._scales, state["scales"], strict=True):
            scale.load_state_dict(saved)

    def resume(self) -> None:
        """Compare nothing that comes with anything before: training goes on from elsewhere, or with a new optimizer.

        What is known of the noise is kept, and a rebound that is going on still ends where the loss is back.
        """
        self._recent.clear()
        self._pending.clear()
        self._block = []
        self._open = [None] * len(self._open)
        for scale in self._scales:
            scale.forget()

    def update(self, step: float, loss: float, learning_rate: float | None = None) -> Watch:
        """Take one step's loss; a loss that is not finite warns at once.

        Args:
            step: larger than any before.
            learning_rate: of the step, where it is known: while it rises, and shortly after, nothing is compared.
        """
        self._first = step if self._first is None else self._first
        if learning_rate is not None and math.isfinite(learning_rate):
            self._follow(step, learning_rate)
        if step < self._first + self._warmup:
            return Watch(step, False, -math.inf, None)
        if not math.isfinite(loss):
            if self._since is None:
                self._since = step
                self._level, self._height = self._usual()
            return Watch(step, True, math.inf, self._since)
        if step < self._blind_until:
            return Watch(step, self._since is not None, -math.inf, self._since)
        self._recent.append(loss)
        # A value is judged with its two successors in sight, so that one or two bad batches are taken out.
        self._pending.append((step, loss))
        if len(self._recent) < 5:
            return Watch(step, self._since is not None, -math.inf, self._since)
        at, value = self._pending.popleft()
        middle = sorted(self._recent)
        # Each side by the spread of the other half: two bad batches of five are a half of their own.
        below, above = middle[2] - middle[0], middle[4] - middle[2]
        value = min(max(value, middle[2] - _CLIP * above), middle[2] + _CLIP * below)
        score = self._add(at, value)
        return Watch(step, self._since is not None, score, self._since)

    def _follow(self, step: float, rate: float) -> None:
        """Start anew where the learning rate has climbed since it last fell."""
        self._top_rate = max(self._top_rate, rate)
        self._lowest_rate = self._lowest_rate if rate >= self._rate > -math.inf else rate
        if rate > self._rate and rate - self._lowest_rate > _RISING * self._top_rate:
            self.resume()
            self._blind_until = step + _LAG * (step - (step if self._first is None else self._first))
        self._rate = rate

    def _usual(self) -> tuple[float, float]:
        """(level, height) such that a block within two standard deviations of the last one's level counts as back."""
        if not self._scales or not self._scales[0].means:
            return math.inf, 0.0
        return self._scales[0].means[-1], 2 * self._deviation(0) / _BACK

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
            self._since, self._until = None, step
        for k in range(64):
            if k == len(self._scales):
                self._scales.append(_Scale())
                self._open.append(None)
            scale = self._scales[k]
            scale.push(mean, start)
            score, level, since = scale.rise(self._deviation(k))
            best = max(best, score)
            # A longer block that has the last rebound in it would report it again.
            fresh = self._until is None or start >= self._until
            if score > self._threshold and self._since is None and fresh:
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
