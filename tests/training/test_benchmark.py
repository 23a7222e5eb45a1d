"""The training benchmark times every registered method, each as the trainer runs it, and pairs times by round."""

from __future__ import annotations

import argparse
import json

import pytest

from landscape.methods import METHODS
from tests.benchmark_scripts import BENCHMARKS, load_benchmark

ARGUMENTS = argparse.Namespace(
    model="tiny", shapes=None, dtype="float32", device="cpu", rank=4, batch=2, length=12, accumulation=1, steps=3
)


@pytest.fixture(scope="module")
def benchmark():
    return load_benchmark("training")


def test_every_method_is_a_variant_held_against_lora(benchmark):
    assert {*benchmark.EVERY_METHOD, "lora"} == set(METHODS)
    assert {name for name, over in benchmark.GOALS if over == "lora"} >= set(benchmark.EVERY_METHOD)


@pytest.mark.parametrize("name", ["sam", "lora-ga", "lora-pro", "mgpo"])
def test_steps_of_rules_initializations_optimizers_and_perturbations_are_timed(benchmark, name):
    seconds = benchmark.make_stepper(ARGUMENTS, name)(3)
    assert len(seconds) == 2  # from one step's record to the next
    assert all(value > 0 for value in seconds)


def test_ratios_are_of_one_round(benchmark):
    seconds = {"lora": [1.0, 2.0, 4.0], "sam": [2.0, 5.0, 8.8], "noise draw": [0.1, 0.1, 0.1]}
    (row,) = benchmark.ratios(seconds)
    assert (row["variant"], row["over"], row["goal"]) == ("sam", "lora", None)
    assert row["ratio"] == pytest.approx(2.2)
    assert row["range"] == pytest.approx([2.0, 2.5])


def test_the_committed_costs_are_those_of_the_page(benchmark):
    known = json.loads((BENCHMARKS / "results" / "methods-cpu.json").read_text())
    table = benchmark.cost_table(known["time"], known["memory"])
    assert f"\n{table}\n" in (BENCHMARKS.parents[1] / "docs" / "choosing.md").read_text()
    assert {row["variant"] for row in known["time"]["ratios"]} == set(benchmark.EVERY_METHOD)


def test_memory_is_held_against_the_lora_of_its_own_part(benchmark):
    timed = {"ratios": [{"variant": "sam", "ratio": 2.0, "range": [1.9, 2.104]}]}
    parts = [{"memory_mib": {"lora": 100.0}}, {"memory_mib": {"lora": 200.0, "sam": 190.0}}]
    assert benchmark.cost_table(timed, parts).splitlines()[-1] == "| `sam` | 2.00 [1.90, 2.10] | 0.95 (−10 MiB) |"
