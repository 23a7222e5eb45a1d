"""``--set key=value`` and config files of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from landscape.config.overrides import assign, canonical_key, load_run, lookup, parse_assignments
from landscape.errors import UsageError


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["rank=64", "lr=5e-4"], {"rank": 64, "learning_rate": 5e-4}),
        (["method=mgpo-released"], {"method": "mgpo-released"}),
        (["method_args.rho=0.1"], {"method_args.rho": 0.1}),
        (["method_args={rho: 0.1}"], {"method_args": {"rho": 0.1}}),
        ([" rank = 8 "], {"rank": 8}),
        (["columns={input: a=b, target: c}"], {"columns": {"input": "a=b", "target": "c"}}),
        ([], {}),
    ],
)
def test_assignments(items: list[str], expected: dict[str, Any]) -> None:
    assert parse_assignments(items) == expected


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["rank"], "--set 'rank': write key=value"),
        (["=8"], "--set '=8': write key=value"),
        (["rnk=8"], r"unknown config key 'rnk'\. Did you mean 'rank'\?"),
        (["rank.x=8"], "rank.x: only adapter_args, capture, columns, data_files, method_args, model_kwargs have parts"),
        (["method_args.=8"], "have parts"),
        (["rank=8", "r=16"], "--set 'r=16': rank was already set to 8"),
        (["method_args={rho: 1"], "cannot read the value"),
    ],
)
def test_bad_assignments(items: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_assignments(items)


@pytest.mark.parametrize(
    ("values", "assignments", "expected"),
    [
        ({}, {"method_args.rho": 0.1}, {"method_args": {"rho": 0.1}}),
        ({"method_args": {"rho": 1, "beta": 2}}, {"method_args.rho": 0.1}, {"method_args": {"rho": 0.1, "beta": 2}}),
        ({"capture": "log"}, {"capture.moments": True}, {"capture": {"policy": "log", "moments": True}}),
        ({"columns": None}, {"columns.input": "a"}, {"columns": {"input": "a"}}),
        ({"rank": 8}, {"rank": 16}, {"rank": 16}),
    ],
)
def test_assign(values: dict[str, Any], assignments: dict[str, Any], expected: dict[str, Any]) -> None:
    before = repr(values)
    assert assign(values, assignments) == expected
    assert repr(values) == before


def test_assign_to_a_part_of_no_mapping() -> None:
    with pytest.raises(UsageError, match=r"method_args\.rho: method_args is 3, which has no parts"):
        assign({"method_args": 3}, {"method_args.rho": 1})


@pytest.mark.parametrize(
    ("key", "expected"), [("rank", 8), ("method_args.rho", 1), ("method_args.x", None), ("no", None)]
)
def test_lookup(key: str, expected: Any) -> None:
    assert lookup({"rank": 8, "method_args": {"rho": 1}}, key) == expected


@pytest.mark.parametrize(
    ("key", "expected"), [("lr", "learning_rate"), ("seed", "seed"), ("capture.every", "capture.every")]
)
def test_canonical_key(key: str, expected: str) -> None:
    assert canonical_key(key) == expected


def test_a_run_from_file_and_assignments(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lr: 2e-4\nrank: 8\nmethod_args: {rho: 0.1}\n")
    config = load_run(path, parse_assignments(["rank=16", "method_args.beta=0.9"]))
    assert (config.learning_rate, config.rank) == (2e-4, 16)
    assert config.method_args == {"rho": 0.1, "beta": 0.9}


def test_a_run_without_a_file() -> None:
    assert load_run(None, {"rank": 4}).rank == 4


def test_a_sweep_file_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("sweep: {grid: {rank: [8, 16]}}\n")
    with pytest.raises(
        UsageError, match=r"has a sweep: key and describes many runs; start it with `landscape sweep -c"
    ):
        load_run(path)
