"""Which steps leave a snapshot, decided before the run from what a record costs."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Literal

from landscape.config import Capture
from landscape.errors import UsageError

LOG_STEPS = 100
"""Most steps that the policies ``log`` and ``events`` take by themselves; ``auto`` takes what half the budget holds."""

Policy = Literal["every", "log", "events", "none"]


@dataclass(frozen=True)
class CapturePlan:
    """The decided steps, and how many to keep around an event.

    ``policy`` is never ``auto``. ``steps`` is ascending and, unless the policy is ``none``, has 0 and the last step.
    ``ring`` snapshots before and as many from an event on are kept in addition to ``steps``; 0 keeps none.
    ``estimated_bytes`` is for the steps and, with a ring, for one event. ``budget_bytes`` is what several events
    together must not exceed; None where the policy was chosen rather than fitted.
    """

    policy: Policy
    steps: tuple[int, ...]
    ring: int
    estimated_bytes: int
    budget_bytes: int | None = None

    def wants(self, step: int) -> bool:
        """Whether this step is captured whatever happens."""
        position = bisect.bisect_left(self.steps, step)
        return position < len(self.steps) and self.steps[position] == step


def plan_capture(capture: Capture, max_steps: int, record_bytes: int) -> CapturePlan:
    """Decide which of the steps 0 (initial parameters) to ``max_steps`` leave a snapshot.

    =========  =========================================================================================
    policy     steps
    =========  =========================================================================================
    none       none
    every      0, k, 2k, ... and the last, whatever they cost
    log        0 and log-spaced steps to the last: at most `LOG_STEPS`, and no more than the budget holds
    events     as log, in half the budget, plus a ring of ``capture.ring`` around each event
    auto       every step if the budget holds them all; else log-spaced steps, as many as half the budget
               holds, plus a ring around events, at most ``capture.ring``, so that one event fits the rest;
               ``log`` where not even a ring of one fits
    =========  =========================================================================================

    The first and the last step are always among them (except with none), even where the budget holds fewer than two.

    Args:
        capture: the config's; ``budget_gb`` is in 10⁹ bytes.
        max_steps: length of the run in optimizer steps.
        record_bytes: one snapshot of every captured stream together.

    Raises:
        UsageError: a run without steps, or a record without bytes.
    """
    if max_steps < 1:
        raise UsageError(f"max_steps: {max_steps} is not at least 1")
    if record_bytes < 1:
        raise UsageError(f"record_bytes: {record_bytes} is not at least 1")
    budget = int(capture.budget_gb * 1e9)
    held, everything = budget // record_bytes, max_steps + 1
    if capture.policy == "none":
        return CapturePlan("none", (), 0, 0)
    if capture.policy == "every":
        steps = tuple(sorted({*range(0, max_steps + 1, capture.every), max_steps}))
        return CapturePlan("every", steps, 0, len(steps) * record_bytes)
    if capture.policy == "log":
        steps = log_spaced(max_steps, min(held, LOG_STEPS))
        return CapturePlan("log", steps, 0, len(steps) * record_bytes)
    if capture.policy == "events":
        steps = log_spaced(max_steps, min(held // 2, LOG_STEPS))
        ring = capture.ring if len(steps) < everything else 0
        return CapturePlan("events", steps, ring, (len(steps) + 2 * ring) * record_bytes)
    if everything <= held:
        return CapturePlan("every", tuple(range(everything)), 0, everything * record_bytes, budget)
    steps = log_spaced(max_steps, held // 2)
    ring = min(capture.ring, max(held - len(steps), 0) // 2)
    policy: Policy = "events" if ring else "log"
    return CapturePlan(policy, steps, ring, (len(steps) + 2 * ring) * record_bytes, budget)


def log_spaced(last: int, count: int) -> tuple[int, ...]:
    """``count`` distinct steps from 0 to ``last``, as evenly spaced in the logarithm as integers allow.

    Early on the wanted ratio is below one step, so consecutive steps are taken and the ratio of the rest is widened,
    which gives exactly ``count`` steps. At least the first and the last are taken, at most all of them.
    """
    count = min(max(count, 2), last + 1)
    steps = [0]
    for remaining in range(count - 1, 0, -1):
        before = steps[-1]
        wanted = 1.0 if before == 0 and remaining > 1 else before * (last / max(before, 1)) ** (1 / remaining)
        steps.append(last if remaining == 1 else max(before + 1, round(wanted)))
    return tuple(steps)
