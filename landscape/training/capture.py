"""Which captured states reach the disk: the planned ones at once, and around events what a ring still holds."""

from __future__ import annotations

import math
from collections import deque

from torch import Tensor

from landscape.store import Attempt, CapturePlan, SnapshotLayout

RING_BYTES = 4e9
"""Host memory that the snapshots kept for an event may take; a ring that would need more is shorter."""


class Capture:
    """Snapshots of one attempt: the planned steps at once, and around events what a ring still holds.

    Streams: ``params`` (trainable parameters) and, with ``moments``, ``adam_v`` (Adam's second moments).

    Attributes:
        watched: whether anybody looks for events; without, no ring is kept.
    """

    def __init__(self, attempt: Attempt, plan: CapturePlan, streams: dict[str, dict[str, Tensor]]) -> None:
        self.plan = plan
        self.watched = True
        self.writers = {
            name: attempt.snapshot_writer(name, SnapshotLayout.from_tensors(tensors))
            for name, tensors in streams.items()
        }
        held = max(int(RING_BYTES // sum(writer.layout.record_bytes for writer in self.writers.values())), 1)
        self._ring: deque[tuple[int, dict[str, dict[str, Tensor]]]] = deque(maxlen=min(max(plan.ring, 1), held))
        self._events = 0
        self._after_event = 0
        self._left = math.inf if plan.budget_bytes is None else plan.budget_bytes - plan.estimated_bytes

    def take(self, step: int, streams: dict[str, dict[str, Tensor]], event: bool = False) -> None:
        """Capture the state after ``step`` optimizer steps, if planned or near an event."""
        if event:
            self.keep()
        if self.plan.wants(step) or self._after_event > 0:
            self._put(step, streams)
        elif self.plan.ring and self.watched:
            copies = {name: {key: _host(tensor) for key, tensor in items.items()} for name, items in streams.items()}
            self._ring.append((step, copies))
        self._after_event = max(self._after_event - 1, 0)

    def keep(self) -> None:
        """An event: write what the ring holds, and as many of the states to come."""
        if self.plan.ring and self._affords_event():
            for earlier, tensors in self._ring:
                self._put(earlier, tensors)
            self._ring.clear()
            self._after_event = self.plan.ring

    def _affords_event(self) -> bool:
        """The plan has the first event in it; further ones take what the budget has left."""
        if self._events > 0:
            cost = 2 * self.plan.ring * sum(writer.layout.record_bytes for writer in self.writers.values())
            if cost > self._left:
                return False
            self._left -= cost
        self._events += 1
        return True

    def _put(self, step: int, streams: dict[str, dict[str, Tensor]]) -> None:
        for name, tensors in streams.items():
            if name in self.writers:
                self.writers[name].put(step, tensors)

    def close(self) -> None:
        """Write what is queued and end the background threads."""
        for writer in self.writers.values():
            writer.close()


def _host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
