import itertools
import math

import pytest

from landscape.config import Capture
from landscape.errors import UsageError
from landscape.store import plan_capture
from landscape.store.capture import LOG_STEPS, log_spaced

MB = 10**6


@pytest.mark.parametrize(
    ("capture", "max_steps", "record_bytes", "policy", "count", "ring"),
    [
        # auto, budget 2 GB
        ("auto", 200, MB, "every", 201, 0),
        ("auto", 1999, MB, "every", 2000, 0),  # exactly the budget
        ("auto", 2000, MB, "events", 1000, 50),  # one record too many
        ("auto", 200, 156 * MB, "events", 6, 3),  # 12 fit: 6 steps and 3 + 3 around an event
        ("auto", 200, 538 * MB, "log", 2, 0),  # 3 fit: the ends, and too little for a ring
        ("auto", 200, 5000 * MB, "log", 2, 0),  # not even the ends fit, they are taken all the same
        ("auto", 1, 5000 * MB, "log", 2, 0),
        ({"policy": "auto", "ring": 2}, 2000, MB, "events", 1000, 2),
        ({"policy": "auto", "budget_gb": 0.1}, 2000, MB, "events", 50, 25),
        ({"policy": "auto", "budget_gb": 100}, 2000, 40 * MB, "every", 2001, 0),
        # chosen
        ("none", 200, MB, "none", 0, 0),
        ("every", 200, 5000 * MB, "every", 201, 0),
        ({"every": 50}, 200, MB, "every", 5, 0),
        ({"every": 30}, 100, MB, "every", 5, 0),  # 0 30 60 90 100
        ({"every": 500}, 100, MB, "every", 2, 0),
        ("log", 2000, MB, "log", LOG_STEPS, 0),
        ("log", 20, MB, "log", 21, 0),
        ("log", 2000, 100 * MB, "log", 20, 0),
        ("events", 2000, MB, "events", LOG_STEPS, 50),
        ({"policy": "events", "ring": 7}, 2000, 100 * MB, "events", 10, 7),
        ("events", 20, MB, "events", 21, 0),  # every step is there: nothing to keep around an event
    ],
)
def test_plans(capture, max_steps, record_bytes, policy, count, ring):
    config = Capture.model_validate(capture)
    plan = plan_capture(config, max_steps, record_bytes)
    assert (plan.policy, len(plan.steps), plan.ring) == (policy, count, ring)
    assert plan.estimated_bytes == (count + 2 * ring) * record_bytes
    assert list(plan.steps) == sorted(set(plan.steps))
    if policy != "none":
        assert (plan.steps[0], plan.steps[-1]) == (0, max_steps)
    if config.policy == "auto":
        assert plan.budget_bytes == round(config.budget_gb * 1e9)
        assert plan.estimated_bytes <= max(plan.budget_bytes, 2 * record_bytes)
    else:
        assert plan.budget_bytes is None
    assert [step for step in range(max_steps + 1) if plan.wants(step)] == list(plan.steps)
    assert not plan.wants(-1)
    assert not plan.wants(max_steps + 1)


def test_log_spaced_steps_are_exactly_as_many_as_asked():
    for last in range(1, 80):
        for count in range(90):
            steps = log_spaced(last, count)
            assert len(steps) == min(max(count, 2), last + 1)
            assert (steps[0], steps[-1]) == (0, last)
            assert all(before < after for before, after in itertools.pairwise(steps))


def test_log_spaced_steps_grow_by_one_ratio_once_steps_are_no_longer_consecutive():
    steps = log_spaced(10_000, 60)
    ratios = [after / before for before, after in itertools.pairwise(steps) if before > 50]
    assert max(ratios) / min(ratios) < 1.03  # rounding to integers above 50 moves a ratio by at most 1/50
    assert math.isclose(math.prod(ratios), 10_000 / next(step for step in steps if step > 50))


@pytest.mark.parametrize(("max_steps", "record_bytes"), [(0, 1), (-1, 1), (10, 0)])
def test_nonsense_is_refused(max_steps, record_bytes):
    with pytest.raises(UsageError, match="is not at least 1"):
        plan_capture(Capture(), max_steps, record_bytes)
