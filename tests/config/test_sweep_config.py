"""Grids: how they are written, what they expand to, what is refused before anything runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from landscape.config import RunConfig
from landscape.config.overrides import parse_assignments
from landscape.config.sweep import SweepConfig
from landscape.errors import UsageError


def grid(**values: Any) -> dict[str, Any]:
    return {"sweep": {"grid": values}}


def cells(sweep: SweepConfig, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(config, key) for key in keys) for config in sweep.expand()]


def test_the_product_in_grid_order() -> None:
    sweep = SweepConfig.parse({"task": "arithmetic", **grid(method=["lora", "mgpo"], rank=[8, 64], lr=[1e-3, 5e-3])})
    expected = list(itertools.product(["lora", "mgpo"], [8, 64], [1e-3, 5e-3]))
    assert cells(sweep, "method", "rank", "learning_rate") == expected
    assert sweep.num_cells == 8


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([8, 32], [8, 32]),
        ("8,32", [8, 32]),
        ("8..10", [8, 9, 10]),
        (["8..9", 32], [8, 9, 32]),
        (16, [16]),
        ([8, 8, 32, "8..9"], [8, 32, 9]),
    ],
)
def test_spellings_of_values(values: Any, expected: list[int]) -> None:
    assert [rank for (rank,) in cells(SweepConfig.parse(grid(rank=values)), "rank")] == expected


def test_log_ranges_in_files() -> None:
    sweep = SweepConfig.parse(grid(learning_rate="log:1e-5:1e-3:3"))
    assert cells(sweep, "learning_rate") == [(1e-5,), (1e-4,), (1e-3,)]


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        (grid(alpha=["r", "2r", 16]), "alpha", ["r", "2r", 16.0]),
        (grid(bf16=[True, False]), "bf16", [True, False]),
        (grid(target_modules=[["q_proj"], ["q_proj", "v_proj"]]), "target_modules", [["q_proj"], ["q_proj", "v_proj"]]),
        (grid(method_args=[{}, {"rho": 0.1}]), "method_args", [{}, {"rho": 0.1}]),
        (grid(lr_scheduler_steps=[None, 100]), "lr_scheduler_steps", [None, 100]),
        (grid(data_seed=[0, 1]), "data_seed", [0, 1]),
    ],
)
def test_any_key_can_be_swept(values: dict[str, Any], key: str, expected: list[Any]) -> None:
    assert [value for (value,) in cells(SweepConfig.parse(values), key)] == expected


def test_parts_of_nested_keys() -> None:
    values = {"method": "mgpo", "method_args": {"beta": 0.9}, **grid(**{"method_args.rho": [0.01, 0.1]})}
    assert cells(SweepConfig.parse(values), "method_args") == [
        ({"beta": 0.9, "rho": 0.01},),
        ({"beta": 0.9, "rho": 0.1},),
    ]


def test_the_grid_varies_what_the_base_sets() -> None:
    assert cells(SweepConfig.parse({"rank": 4, "seed": 3, **grid(rank=[8, 16])}), "rank", "seed") == [(8, 3), (16, 3)]


def test_flags_replace_a_keys_values_and_add_keys() -> None:
    sweep = SweepConfig.parse(grid(rank=[8, 16], seed=[0, 1]), grid={"rank": [32], "method": ["lora"]})
    assert cells(sweep, "rank", "seed", "method") == [(32, 0, "lora"), (32, 1, "lora")]


def test_assignments_reach_every_cell() -> None:
    sweep = SweepConfig.parse({"max_steps": 200, **grid(rank=[8, 16])}, assignments=parse_assignments(["max_steps=5"]))
    assert cells(sweep, "rank", "max_steps") == [(8, 5), (16, 5)]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ([{"method": "full", "rank": 8}], [("lora", 8), ("lora", 64), ("full", 64)]),
        ([{"method": "full"}], [("lora", 8), ("lora", 64)]),
        ([{"rank": [8, 64], "method": "lora"}], [("full", 8), ("full", 64)]),
        ([{"method": "full", "r": 8}, {"method": "lora", "r": 64}], [("lora", 8), ("full", 64)]),
        ([{"seed": 0, "rank": 64}], [("lora", 8), ("full", 8)]),
        ([{"method": "dora"}], [("lora", 8), ("lora", 64), ("full", 8), ("full", 64)]),
    ],
)
def test_exclusion(exclude: list[dict[str, Any]], left: list[tuple[str, int]]) -> None:
    values = {"sweep": {"grid": {"method": ["lora", "full"], "rank": [8, 64]}, "exclude": exclude}}
    assert cells(SweepConfig.parse(values), "method", "rank") == left


def test_excluded_cells_need_not_be_valid() -> None:
    values = {"sweep": {"grid": {"rank": [0, 8]}, "exclude": [{"rank": 0}]}}
    assert cells(SweepConfig.parse(values), "rank") == [(8,)]


def test_exclusion_meets_the_end_of_a_log_range() -> None:
    values = {"sweep": {"grid": {"learning_rate": "log:1e-4:1e-3:3"}, "exclude": [{"lr": 0.000316227766017}]}}
    assert cells(SweepConfig.parse(values), "learning_rate") == [(1e-4,), (1e-3,)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"nothing to sweep: give sweep: \{grid: \.\.\.\} or --rank"),
        ({"sweep": {}}, "nothing to sweep"),
        ({"sweep": [1]}, r"sweep: must hold grid and exclude, not \[1\]"),
        ({"sweep": {"gird": {}}}, r"sweep: 'gird' is not known; allowed: exclude, grid\. Did you mean 'grid'\?"),
        ({"sweep": {"grid": [8]}}, "sweep.grid: must map keys to lists of values"),
        (grid(rnk=[8]), r"unknown config key 'rnk'\. Did you mean 'rank'\?"),
        (grid(rank=[8], r=[16]), "sweep.grid: r is given twice"),
        (grid(rank=[]), "sweep.grid: rank has no values"),
        (grid(rank="4..2"), "rank: the range '4..2' runs backwards"),
        (grid(eval_steps=[1, 2]), "eval_steps does not change a run's result"),
        (grid(**{"capture.every": [1, 2]}), "capture does not change a run's result"),
        (grid(**{"rank.x": [1]}), "rank.x: only"),
        ({"sweep": {"grid": {"rank": [8]}, "exclude": {"rank": 8}}}, "sweep.exclude: must be a list"),
        ({"sweep": {"grid": {"rank": [8]}, "exclude": [{}]}}, "sweep.exclude: must be a list"),
        ({"sweep": {"grid": {"rank": [8]}, "exclude": [{"rnk": 8}]}}, "unknown config key 'rnk'"),
        ({"lrr": 1, **grid(rank=[8])}, "unknown config key 'lrr'"),
    ],
)
def test_bad_sweeps(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SweepConfig.parse(values)


def test_a_key_both_assigned_and_swept() -> None:
    with pytest.raises(UsageError, match="--set rank: the grid varies this key"):
        SweepConfig.parse(grid(rank=[8]), assignments={"rank": 4})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (grid(rank=[8, 0]), "rank: 0"),
        ({"learning_rate": -1, **grid(rank=[8])}, "learning_rate: -1"),
        ({"sweep": {"grid": {"rank": [8]}, "exclude": [{"rank": 8}]}}, "exclude leaves none of the 1 cells"),
        (grid(rank="1..1000", seed="0..999"), "1000 rank x 1000 seed make 1000000 cells; more than 100000 are refused"),
    ],
)
def test_bad_cells(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SweepConfig.parse(values).expand()


def test_every_swept_key_is_a_config_key() -> None:
    assert set(SweepConfig.parse(grid(rank=[1])).base) <= set(RunConfig.model_fields)
