"""What was found in one curve, in plain words: the same in the terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from landscape.episodes.results import Episode


def curve_verdict(episodes: Sequence[Episode], values: ArrayLike, alpha: float) -> str:
    """One sentence on the rebounds that count, and one more for each kind of thing that does not; no capital, no stop.

    Args:
        episodes: of the curve, most significant first.
        values: (points,), the curve that was tested.
        alpha: level at which it was.
    """
    found = [e for e in episodes if e.p_value <= alpha and math.isfinite(e.amplitude)]
    lost = [e for e in episodes if e.p_value <= alpha and e not in found]
    parts = [_sentence(found)] if found else []
    parts += [lost_words((e.onset, e.recovery, e.flags) for e in lost)] if lost else []
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not found and len(finite) and np.ptp(finite) <= 0:
        parts.append(f"constant at {finite[0]:g}: nothing to test")
    elif not found:
        tested = [e.p_value for e in episodes if not is_explained(e) and e not in lost]
        smallest = f"smallest p {min(tested):.2g}" if tested else "no candidate"
        parts.append(f"no rebound beyond what noise explains at alpha = {alpha:g} ({smallest})")
    explained = [e for e in episodes if is_explained(e) and e.kind != "spike"]
    if explained:
        flags = ", ".join(sorted({flag for e in explained for flag in e.flags}))
        parts.append(f"{counted(len(explained), 'rise')} not counted ({flags})")
    spikes = sum(e.kind == "spike" for e in episodes)
    if spikes:
        parts.append(f"{counted(spikes, 'spike')} of one or two points, not counted")
    return "; ".join(parts)


def _sentence(found: Sequence[Episode]) -> str:
    first = found[0]
    kinds = {e.kind for e in found}
    noun = {"rebound_only": "rebound", "partial": "partial episode"}.get(first.kind, first.kind)
    count = counted(len(found), noun if len(kinds) == 1 else "rebound")
    which = "" if len(found) == 1 else "the clearest "
    size = f"by {first.amplitude:.3g} ({first.amplitude_noise:.1f} noise units)"
    end = "not back by the last step" if first.kind == "divergence" else f"over by step {first.recovery:g}"
    begun = " (within the warm-up)" if "warmup" in first.flags else ""
    steps = f"from step {first.onset:g}{begun} to {first.peak:g}"
    return f"{count} at p = {first.p_value:.2g}: {which}up {size} {steps}, {end}"


def lost_words(stretches: Iterable[tuple[float, float, Sequence[str]]]) -> str:
    """Where the loss was not finite, in order: (onset, recovery, flags) of each `non_finite` entry, at least one.

    Its recovery is the first finite step again, or the last step where there is none.
    """
    ordered = sorted(stretches)
    texts = [
        f"from step {onset:g} to {recovery:g}, the end" if "right_censored" in flags
        else f"from step {onset:g} until step {recovery:g}"
        for onset, recovery, flags in ordered
    ]  # fmt: skip
    more = f", and in {counted(len(texts) - 3, 'more stretch')}" if len(texts) > 3 else ""
    return f"not finite {', '.join(texts[:3])}{more}"


def counted(number: int, noun: str) -> str:
    """``1 rebound``, ``2 rebounds``."""
    return f"{number} {noun}{('es' if noun.endswith('ch') else 's') * (number != 1)}"


def is_explained(episode: Episode) -> bool:
    """Whether it was not tested: explained by a mark, or a bad batch."""
    return episode.kind == "spike" or (episode.p_value >= 1 and bool(episode.flags))
