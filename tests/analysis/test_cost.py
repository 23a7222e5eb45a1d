"""The estimate of what an analysis costs, before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from landscape.analysis import analyze_sharpness, cost
from landscape.analysis.cost import (
    Estimate,
    ProbeCost,
    Work,
    available_memory,
    check_memory,
    estimate_cost,
    search_work,
    time_probe,
)
from landscape.analysis.questions import QUESTIONS
from landscape.errors import UsageError
from landscape.store import Run

GB = 10**9


def probe(run_id: str = "a", **changes: Any) -> ProbeCost:
    values: dict[str, Any] = {
        "gradient_seconds": 2.0, "num_parameters": 1000, "num_layers": 1, "layer_parameters": 1000, "item_bytes": 4,
        "memory_bytes": GB, "device": "cpu",
    }  # fmt: skip
    return ProbeCost(run_id, **(values | changes))


def test_seconds_are_gradients_times_products() -> None:
    """3 snapshots of a (2 s a gradient) and 1 of b (20 s), 10 to 20 products of 1.3 gradients, after 2."""
    probes = {"a": probe(), "b": probe("b", gradient_seconds=20.0)}
    found = estimate_cost(Work(10, 20, 50, 8), {"a": 3, "b": 1, "c": 0}, 4, probes, workers=1)
    assert found.seconds == pytest.approx(((3 * 2 + 20) * (2 + 13), (3 * 2 + 20) * (2 + 26)))
    assert (found.runs, found.snapshots, found.known, found.workers) == (2, 4, 4, 1)
    assert (found.vector_bytes, found.least_vector_bytes) == (50 * 4000, 8 * 4000)
    twice = estimate_cost(Work(10, 20, 50, 8), {"a": 3, "b": 1, "c": 0}, 4, probes, workers=7)
    assert twice.workers == 2  # of which only two have work
    assert twice.seconds == pytest.approx([seconds / 2 for seconds in found.seconds or ()])
    assert twice.vector_bytes == 2 * found.vector_bytes


def test_layers_multiply_products_and_shorten_vectors() -> None:
    layered = probe(num_layers=7, layer_parameters=300)
    found = estimate_cost(Work(10, 20, 50, 50, "module"), {"a": 1}, 0, {"a": layered}, workers=1)
    assert found.products == (70, 140)
    assert found.seconds == pytest.approx((2 * (2 + 1.3 * 70), 2 * (2 + 1.3 * 140)))
    assert found.vector_bytes == 50 * 300 * 4


def test_nothing_to_measure_and_nothing_timed() -> None:
    done = estimate_cost(Work(10, 20, 50, 8), {"a": 0}, 5, {}, workers=2)
    assert (done.seconds, done.products, done.vector_bytes) == (None, None, 0)
    assert done.sentence() == "0 snapshots of 0 runs to measure (5 are known)"
    untimed = estimate_cost(Work(10, 20, 50, 8), {"a": 1, "b": 1}, 0, {"a": probe()}, 1, {"b": "no memory"})
    assert untimed.seconds is None
    assert untimed.to_json()["problems"] == {"b": "no memory"}
    assert untimed.sentence() == "2 snapshots of 2 runs to measure; no estimate (b: no memory)"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.01, "about 0.15 to 0.28 s"), (2.0, "about 30 to 56 s"), (100.0, "about 25 to 47 min")]
)
def test_the_sentence_says_how_it_was_made(seconds: float, words: str) -> None:
    timed = probe(gradient_seconds=seconds, layer_parameters=10**6)
    text = estimate_cost(Work(10, 20, 50, 8), {"a": 1}, 0, {"a": timed}, 1).sentence()
    assert text.startswith(f"1 snapshot of 1 run to measure: {words}, 0.2 GB of vectors (10 to 20 products a snapshot")
    assert f"a gradient took {seconds:g} s on the probe of a; 1 process at a time" in text


SEARCHES: dict[str, tuple[tuple[Any, ...], Work]] = {
    "one": ((1, 1e-3, 200), Work(8, 35, 206, 16)),
    "coarser": ((1, 1e-2, 200), Work(6, 25, 206, 16)),
    "three": ((3, 1e-3, 500), Work(32, 140, 510, 24)),
    "bounded": ((1, 1e-3, 12), Work(8, 12, 18, 16)),
    "layers": ((1, 1e-2, 100, "block"), Work(6, 25, 106, 106, "block")),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_products_of_a_search(name: str) -> None:
    arguments, expected = SEARCHES[name]
    assert search_work(*arguments) == expected


# --- memory -----------------------------------------------------------------------------------------------------------


def needing(least: int, kept: int, memory: int) -> Estimate:
    """Of one search with vectors of 4 MB."""
    timed = probe(layer_parameters=10**6, memory_bytes=memory)
    return estimate_cost(Work(1, 1, kept, least), {"a": 1}, 0, {"a": timed}, 1)


def test_vectors_that_do_not_fit_are_refused() -> None:
    check_memory(needing(250, 250, GB))
    check_memory(estimate_cost(Work(1, 1, 251, 251), {"a": 1}, 0, {}, 1))  # nothing is known
    with pytest.raises(UsageError, match=r"memory: vectors need 1.00 GB in 1 process, and 1.00 GB can be had; lower"):
        check_memory(needing(251, 251, GB))


def test_a_search_restarts_where_it_would_take_half_of_the_memory() -> None:
    assert needing(10, 1000, GB).vector_bytes == GB // 2
    assert needing(200, 1000, GB).vector_bytes == 200 * 4 * 10**6
    assert needing(10, 1000, 9 * GB).vector_bytes == 4 * GB


def test_memory_is_no_more_than_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(cost, "_CGROUP_LIMITS", (tmp_path / "none", tmp_path / "max"))
    (tmp_path / "max").write_text("max\n")
    whole = available_memory(device)
    assert whole > 10**8
    (tmp_path / "max").write_text("12345678\n")
    assert available_memory(device) == 12345678


# --- timing -----------------------------------------------------------------------------------------------------------

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "sharpness": ("sharpness", {}),
    "preconditioned": ("sharpness", {"space": "preconditioned"}),
    "merged": ("sharpness", {"space": "merged"}),
    "balanced": ("trace", {"space": "balanced"}),
    "layers": ("layers", {"group": "block"}),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_timed_probe_has_the_size_that_results_report(run: Run, name: str) -> None:
    analysis, options = SIZES[name]
    timed = time_probe(run, QUESTIONS[analysis](num_examples=3, **options), 0, device="cpu")
    assert 0 < timed.gradient_seconds < 60
    expected = analyze_sharpness(
        run, [1], space="merged" if name == "merged" else "adapter", tol=0.5, max_matvecs=2, num_examples=3
    )
    assert timed.num_parameters == expected["num_parameters"].iloc[0]
    assert (timed.item_bytes, timed.device, timed.run_id) == (4, "cpu", run.id)
    blocks = 3 if name == "layers" else 1
    assert (timed.num_layers, timed.layer_parameters * timed.num_layers) == (blocks, timed.num_parameters)
